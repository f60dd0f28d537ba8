"""Which trials end early and why: Ray Tune's ASHA and median rule, told in words, taught by earlier trials.

Both compare trials at the same share of their own steps (``progress``, percent), so that trials with other
batches or more data are comparable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

if TYPE_CHECKING:
    from tuning.config import Scheduler
    from tuning.record import Trial

PROGRESS, SCORE = "progress", "score"
END = 100.0


@dataclass(frozen=True)
class _Earlier:
    """All that a scheduler asks of a trial that ran in an earlier session."""

    trial_id: str


class _Told(ABC):
    """Beside a scheduler of Tune: `why` = {trial id: why it was stopped}. A trial at its last step is let
    alone, for its bundle is yet to come, and a score that is no number is not compared."""

    why: dict[str, str]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not judged(result) or result[PROGRESS] >= END:
            return str(FIFOScheduler.CONTINUE)
        decision: str = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        if decision == FIFOScheduler.STOP:
            self.why[trial.trial_id] = f"{self.reason(trial, result)} at step {result['step']}"
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if judged(result):
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]

    @abstractmethod
    def reason(self, trial: Any, result: dict[str, Any]) -> str:
        """Why this result is not good enough to go on."""


class Asha(_Told, ASHAScheduler):
    def __init__(self, config: Scheduler, mode: str) -> None:
        grace: Any = config.grace * END  # Ray's annotations want whole numbers here, its code does not
        super().__init__(
            time_attr=PROGRESS, metric=SCORE, mode=mode, max_t=int(END) + 1, stop_last_trials=False,
            grace_period=grace, reduction_factor=config.reduction,
        )  # fmt: skip
        self.why = {}

    def reason(self, trial: Any, result: dict[str, Any]) -> str:
        for rung, recorded in self._brackets[0]._rungs:  # from the highest down
            if rung <= result[PROGRESS]:
                others = len(recorded) - (trial.trial_id in recorded)
                return (
                    f"asha: {result[SCORE]:.4g} is not in the best 1/{self._reduction_factor:g} of the "
                    f"{others} before it at {rung:.0f} % of the steps,"
                )
        return "asha"


class Median(_Told, MedianStoppingRule):
    def __init__(self, config: Scheduler, mode: str) -> None:
        never: Any = math.inf  # no pauses: a driver has no Tune checkpoint to go on from
        super().__init__(
            time_attr=PROGRESS, metric=SCORE, mode=mode, grace_period=config.grace * END,
            min_samples_required=config.min_trials, min_time_slice=never,
        )  # fmt: skip
        self.why = {}

    def reason(self, trial: Any, result: dict[str, Any]) -> str:
        return (
            f"median: {self._best_result(trial):.4g}, its best, is worse than the median of the others' means"
        )


class Never(FIFOScheduler):
    def __init__(self) -> None:
        super().__init__()
        self.why: dict[str, str] = {}


def scheduler(config: Scheduler, mode: str, score: str, earlier: Iterable[Trial]) -> Asha | Median | Never:
    """The scheduler of a search, as it would be had it seen the `earlier` trials; `score`: the figure that it
    judges by.
    """
    if config.kind == "none":
        return Never()
    found: Any = (Asha if config.kind == "asha" else Median)(config, mode)
    for trial in earlier:
        stub, last = _Earlier(trial.trial), None
        found.on_trial_add(None, stub)
        for step, figures in trial.curve:
            value = figures.get(score)
            progress = END * step / (trial.steps or math.nan)
            last = {"step": step, PROGRESS: progress, SCORE: math.nan if value is None else value}
            found.on_trial_result(None, stub, last)
        if last is not None and trial.state == "done":
            found.on_trial_complete(None, stub, last)
    taught: Asha | Median = found
    taught.why.clear()
    return taught


def judged(result: dict[str, Any]) -> bool:
    """Whether a result has a score to compare, at a known place."""
    return all(math.isfinite(result.get(name, math.nan)) for name in (PROGRESS, SCORE))
