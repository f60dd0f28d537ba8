"""What a search cost, and what it would have cost without early stopping, or as a full grid."""

from dataclasses import dataclass

from tuning.record import Record, Trial
from tuning.space import grid_points, stepless

POINTS = 5  # values that the grid of comparison has of a key without steps


@dataclass(frozen=True)
class Cost:
    """Seconds of running trials. An estimate is None where no trial's pace is known."""

    spent_s: float
    failed_s: float  # of it, by trials that failed
    unstopped_s: float | None  # the same trials, each run to its end
    grid_s: float | None  # every point of the grid, each run to its end
    grid_points: int
    stepless: tuple[str, ...]  # keys that the grid has POINTS values of

    @property
    def saved(self) -> float | None:
        """The share that early stopping saved."""
        return None if not self.unstopped_s else 1 - self.spent_s / self.unstopped_s


def cost(record: Record) -> Cost:
    """The cost of the trials so far. A running trial counts as it stands in every sum."""
    trials = record.trials
    full = [seconds for t in trials if (seconds := to_the_end(t)) is not None]
    mean = sum(full) / len(full) if full else None
    unstopped = sum(t.spent_s if t.state == "running" else to_the_end(t) or t.spent_s for t in trials)
    space = record.search.space
    points, free = record.info.grid_points, tuple[str, ...]()
    if record.search.searcher.kind != "grid" or not points:
        points = grid_points(space, POINTS) or 0
        free = tuple(key for key, spread in space.items() if stepless(spread))
    return Cost(
        sum(t.spent_s for t in trials),
        sum(t.spent_s for t in record.having("failed")),
        None if mean is None else unstopped,
        None if mean is None else points * mean,
        points,
        free,
    )


def to_the_end(trial: Trial) -> float | None:
    """Seconds of all of a trial's steps at its own pace; None where that is not known."""
    if trial.state == "done":
        return trial.spent_s
    if trial.state == "failed" or not trial.step or not trial.steps or trial.spent_s <= 0:
        return None
    return trial.spent_s * trial.steps / trial.step
