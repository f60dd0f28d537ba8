"""What a search file may hold: its own keys, and how a key of the run varies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.config import Config
from cluster.errors import PlethoraError

KINDS = ("choice", "uniform", "loguniform", "int")
Values = dict[str, Any]


class Objective(Config):
    """What is best. A figure of validation is known at every validation; a probe (`task`) of the trial's
    bundle, on validation people, at its end."""

    metric: str
    mode: Literal["min", "max"]
    at: Literal["last", "best"] = "last"  # of the validations of a trial
    task: str = ""  # a task of finetune/tasks, or a TOML file: then `metric` is one of its metrics
    damage: dict[str, Any] = {}  # of a probe: judged on damaged windows, see tuning/objective.py
    unit: str = ""

    @property
    def name(self) -> str:
        return f"{self.task} {self.metric}" if self.task else self.metric


class Scheduler(Config):
    """Which trials end early, judged by `metric` (default: the first objective) as the trial goes on."""

    kind: Literal["asha", "median", "none"] = "asha"
    metric: str = ""  # needed where the objective is a probe, which is known at the end only
    mode: Literal["min", "max"] | None = None
    grace: float = Field(default=0.1, gt=0, lt=1)  # share of its steps that every trial may run
    reduction: float = Field(default=3.0, gt=1)  # ASHA: the best 1/reduction go on at each rung
    min_trials: int = Field(default=3, ge=1)  # median: trials to compare with, at least


class Searcher(Config):
    """Where the next point comes from. `start`: points known to be good, tried first (missing keys: as the
    base run has them, or drawn)."""

    kind: Literal["optuna", "random", "grid"] = "optuna"
    seed: int = 0
    start: tuple[dict[str, Any], ...] = ()


class Budget(Config):
    """When the search ends, whichever comes first. `retries`: of a trial whose process died."""

    trials: int = Field(default=16, ge=1)
    hours: float | None = Field(default=None, gt=0)
    concurrent: int = Field(default=2, ge=1)  # at most; fewer where the cluster has no room
    retries: int = Field(default=2, ge=0)


class Spread(Config):
    """How one key varies: one of choice, uniform, loguniform, int."""

    choice: list[Any] | dict[str, dict[str, Any]] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    whole: tuple[int, int] | None = Field(default=None, alias="int")  # both ends included
    step: float | None = Field(default=None, gt=0)  # of uniform and int
    when: dict[str, Any] = {}  # {key of the space: its value, or a list of values}

    @model_validator(mode="after")
    def _check(self) -> Spread:
        given = [k for k in KINDS if getattr(self, "whole" if k == "int" else k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}, not {' and '.join(given) or 'none'}")
        if self.choice is not None:
            if not self.choice:
                raise ValueError("choice = []: give at least one value")
            if isinstance(self.choice, list) and any(isinstance(v, dict) for v in self.choice):
                raise ValueError("give tables of choice a name: choice = { small = {…}, large = {…} }")
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"{self.kind} = [{low:g}, {high:g}]: the lower bound comes first")
        if self.kind == "loguniform" and (low <= 0 or self.step):
            raise ValueError("loguniform takes bounds above 0, and no step")
        if self.step and (self.step > high - low or (self.kind == "int" and self.step % 1)):
            raise ValueError(f"step = {self.step:g} does not fit {self.kind} = [{low:g}, {high:g}]")
        return self

    @property
    def kind(self) -> str:
        return next(k for k in KINDS if getattr(self, "whole" if k == "int" else k) is not None)

    @property
    def bounds(self) -> tuple[float, float]:
        found = self.uniform or self.loguniform or self.whole
        assert found is not None  # a choice has none
        return found

    @property
    def choices(self) -> list[Any]:
        """What there is to choose: values, or the names of tables."""
        return list(self.choice or ())

    def levels(self) -> list[Any] | None:
        """Every value it can take; None: too many to count."""
        if self.choice is not None:
            return self.choices
        if self.kind != "int" and self.step is None:
            return None
        low, high = self.bounds
        step = self.step or 1
        found = [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]
        return [int(v) for v in found] if self.kind == "int" else [round(v, 12) for v in found]

    def holds(self, value: Any) -> bool:
        """Whether `value` is one that it can take."""
        levels = self.levels()
        if levels is not None:
            return value in levels
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.bounds[0] <= value <= self.bounds[1]

    def ends(self) -> list[Any]:
        """The values that a mistake would show at: each choice, both bounds."""
        return self.choices if self.choice is not None else list(self.bounds)

    def table(self) -> dict[str, Any]:
        """As the record of the search has it: {kind, low, high | choices, step?, when?}."""
        found: dict[str, Any] = {"kind": self.kind}
        if self.choice is not None:
            found["choices"] = self.choices
        else:
            found |= dict(zip(("low", "high"), self.bounds, strict=True))
        return found | ({"step": self.step} if self.step else {}) | ({"when": self.when} if self.when else {})


class Search(Config):
    """The search's own keys."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    base: str
    objective: tuple[Objective, ...] = Field(min_length=1, max_length=2)
    space: dict[str, Spread]
    scheduler: Scheduler = Scheduler()
    searcher: Searcher = Searcher()
    budget: Budget = Budget()
    track: tuple[Literal["mlflow", "wandb"], ...] = ()  # shown there, too: see tuning/trackers.py
    scaling: tuple[str, ...] = ()  # facts of a trial that a scaling curve is drawn over: parameters, hours

    def order(self) -> list[str]:
        """The keys of the space, each after those that its `when` asks for."""
        done: list[str] = []
        while len(done) < len(self.space):
            ready = [k for k, s in self.space.items() if k not in done and all(w in done for w in s.when)]
            if not ready:
                raise PlethoraError(
                    f"search {self.name}: `when` runs in a circle through "
                    f"{', '.join(k for k in self.space if k not in done)}: remove one of them"
                )
            done += ready
        return done

    def values(self, pick: Callable[[str, Spread], Any]) -> Values:
        """One point: `pick` is asked for each key whose `when` holds."""
        found: Values = {}
        for key in self.order():
            spread = self.space[key]
            if all(k in found and found[k] in _listed(wanted) for k, wanted in spread.when.items()):
                found[key] = pick(key, spread)
        return {key: found[key] for key in self.space if key in found}

    def reaching(self, key: str) -> Values:
        """Values of other keys under which `key` is asked for."""
        found: Values = {}
        for other, wanted in self.space[key].when.items():
            found |= self.reaching(other) | {other: _listed(wanted)[0]}
        return found

    def points(self) -> Iterator[Values]:
        """Every point of a grid, in order. PlethoraError where a key has no steps."""
        endless = [k for k, s in self.space.items() if s.levels() is None]
        if endless:
            raise PlethoraError(
                f"search {self.name}: a grid needs steps, and {', '.join(endless)} has none: give step = …, "
                "use choice = […], or searcher.kind = optuna"
            )
        order = self.order()

        def below(found: Values, rest: Sequence[str]) -> Iterator[Values]:
            if not rest:
                yield {key: found[key] for key in self.space if key in found}
                return
            spread = self.space[rest[0]]
            if not all(k in found and found[k] in _listed(w) for k, w in spread.when.items()):
                yield from below(found, rest[1:])
                return
            for level in spread.levels() or ():
                yield from below({**found, rest[0]: level}, rest[1:])

        yield from below({}, order)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
