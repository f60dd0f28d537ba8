"""Early stopping: Ray Tune's ASHA and median rule, with the reason for each stop, replayed on earlier ones.

Both compare trials at the same share of their steps (``progress``, percent), so that trials with other
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

TuneResult = dict[str, Any]  # what a trial reports to Tune: see tuning/trial.py


@dataclass(frozen=True)
class _Earlier:
    """All that a scheduler reads of a trial that ran in an earlier session."""

    trial_id: str


class _WithReason(ABC):
    """Mixed into a scheduler of Tune: `why` = {trial id: why it was stopped}. A trial at its last step goes
    on, for its bundle is yet to come; a score that is not finite is not compared."""

    why: dict[str, str]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: TuneResult) -> str:
        if not comparable(result) or result[PROGRESS] >= END:
            return str(FIFOScheduler.CONTINUE)
        decision: str = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        if decision == FIFOScheduler.STOP:
            self.why[trial.trial_id] = f"{self.reason(trial, result)} at step {result['step']}"
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: TuneResult) -> None:
        if comparable(result):
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]

    @abstractmethod
    def reason(self, trial: Any, result: TuneResult) -> str:
        """Why this result is not good enough to go on."""


class Asha(_WithReason, ASHAScheduler):
    def __init__(self, config: Scheduler, mode: str) -> None:
        grace: Any = config.grace * END  # Ray's annotations want integers here, its code does not
        super().__init__(
            time_attr=PROGRESS,
            metric=SCORE,
            mode=mode,
            max_t=int(END) + 1,
            grace_period=grace,
            reduction_factor=config.reduction,
            stop_last_trials=False,
        )
        self.why = {}

    def reason(self, trial: Any, result: TuneResult) -> str:
        for rung, recorded in self._brackets[0]._rungs:  # from the highest down
            if rung <= result[PROGRESS]:
                others = len(recorded) - (trial.trial_id in recorded)
                return (
                    f"asha: {result[SCORE]:.4g} is not in the best 1/{self._reduction_factor:g} of the "
                    f"{others} before it at {rung:.0f} % of the steps,"
                )
        return "asha"


class Median(_WithReason, MedianStoppingRule):
    def __init__(self, config: Scheduler, mode: str) -> None:
        never: Any = math.inf  # no pauses: a trial has no Tune checkpoint to go on from
        super().__init__(
            time_attr=PROGRESS,
            metric=SCORE,
            mode=mode,
            grace_period=config.grace * END,
            min_samples_required=config.min_trials,
            min_time_slice=never,
        )
        self.why = {}

    def reason(self, trial: Any, result: TuneResult) -> str:
        return (
            f"median: {self._best_result(trial):.4g}, its best, is worse than the median of the others' means"
        )


class NoStopping(FIFOScheduler):
    def __init__(self) -> None:
        super().__init__()
        self.why: dict[str, str] = {}


def scheduler(
    config: Scheduler, mode: str, score: str, earlier: Iterable[Trial]
) -> Asha | Median | NoStopping:
    """The scheduler of a search that judges by the figure `score`, in the state in which the `earlier` trials
    left it."""
    if config.kind == "none":
        return NoStopping()
    found: Asha | Median = (Asha if config.kind == "asha" else Median)(config, mode)
    controller: Any = None  # neither rule reads it
    for trial in earlier:
        stub: Any = _Earlier(trial.trial)
        result: TuneResult = {}
        found.on_trial_add(controller, stub)
        for step, figures in trial.curve:
            value = figures.get(score)
            progress = END * step / (trial.steps or math.nan)
            result = {"step": step, PROGRESS: progress, SCORE: math.nan if value is None else value}
            found.on_trial_result(controller, stub, result)
        if result and trial.state == "done":
            found.on_trial_complete(controller, stub, result)
    found.why.clear()
    return found


def comparable(result: TuneResult) -> bool:
    """Whether a result has a finite score at a known progress."""
    return all(math.isfinite(result.get(name, math.nan)) for name in (PROGRESS, SCORE))
