"""The keys of a search file that are the search's and not its runs'. docs/tuning.md explains them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cluster.config import Config
from tuning.space import Spread


class Objective(Config):
    """What is optimised: a validation figure, known at every validation; or, with `task`, a probe of the
    trial's bundle on validation subjects, known at its end."""

    metric: str
    mode: Literal["min", "max"]
    at: Literal["last", "best"] = "last"  # of a trial's validations
    task: str = ""  # a task of finetune/tasks, or a TOML file: then `metric` is one of its metrics
    damage: dict[str, Any] = {}  # of a probe: {kind: severity} of damage to its windows, see tuning/probe.py
    unit: str = ""

    @property
    def name(self) -> str:
        return f"{self.task} {self.metric}" if self.task else self.metric

    @property
    def title(self) -> str:
        """Name and unit, as on an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def sign(self) -> float:
        """The factor that makes smaller better."""
        return 1.0 if self.mode == "min" else -1.0


class Scheduler(Config):
    """Which trials stop early, judged by `metric` (default: the first objective)."""

    kind: Literal["asha", "median", "none"] = "asha"
    metric: str = ""  # needed where the objective is a probe
    mode: Literal["min", "max"] | None = None
    grace: float = Field(default=0.1, gt=0, lt=1)  # share of its steps that every trial may run
    reduction: float = Field(default=3.0, gt=1)  # ASHA: the best 1/reduction go on at each rung
    min_trials: int = Field(default=3, ge=1)  # median: trials to compare with, at least


class Searcher(Config):
    """How points are chosen. `start`: points that are tried first (missing keys are sampled)."""

    kind: Literal["optuna", "random", "grid"] = "optuna"
    seed: int = 0
    start: tuple[dict[str, Any], ...] = ()


class Budget(Config):
    """The search ends at whichever limit comes first. `retries`: of a trial whose process died."""

    trials: int = Field(default=16, ge=1)
    hours: float | None = Field(default=None, gt=0)
    concurrent: int = Field(default=2, ge=1)  # at most; fewer where the cluster has no room
    retries: int = Field(default=2, ge=0)


class Search(Config):
    """A search file without the keys of its runs."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    base: str
    objective: tuple[Objective, ...] = Field(min_length=1, max_length=2)
    space: dict[str, Spread]
    scheduler: Scheduler = Scheduler()
    searcher: Searcher = Searcher()
    budget: Budget = Budget()
    track: tuple[Literal["mlflow", "wandb"], ...] = ()  # see tuning/trackers.py
    scaling: tuple[str, ...] = ()  # facts of a trial that a scaling curve is fitted over: parameters, hours

    @property
    def score(self) -> tuple[str, str]:
        """(figure that the scheduler judges by, its mode)."""
        first = self.objective[0]
        return self.scheduler.metric or first.metric, self.scheduler.mode or first.mode
