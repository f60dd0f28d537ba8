"""What a search cost, and what it would have cost without stopping, or as a full grid."""

import itertools
import math
from dataclasses import dataclass

from tuning.record import Key, Record, Trial

POINTS = 5  # values that a grid would give a key which has no steps of its own


@dataclass(frozen=True)
class Spending:
    """Seconds of running trials. An estimate is None where no trial told its pace."""

    spent_s: float
    failed_s: float  # of it, by trials that failed
    unstopped_s: float | None  # the same trials, had each run to its end
    grid_s: float | None  # every point of the grid, each to its end
    grid_points: int
    stepless: tuple[str, ...]  # keys that the grid was given POINTS values of

    @property
    def saved(self) -> float | None:
        """Share that stopping saved."""
        return None if not self.unstopped_s else 1 - self.spent_s / self.unstopped_s


def spending(record: Record) -> Spending:
    """Costs of the trials so far. One still running counts as it stands in both."""
    trials = record.trials
    whole = [full for t in trials if (full := to_the_end(t)) is not None]
    mean = sum(whole) / len(whole) if whole else None
    unstopped = None
    if mean is not None:
        unstopped = sum(
            (to_the_end(t) or t.spent_s) if t.state in ("done", "stopped") else t.spent_s for t in trials
        )
    points, stepless = grid_points(record.search.space)
    if record.search.searcher.get("kind") == "grid" and record.search.grid_points:
        points, stepless = record.search.grid_points, ()
    return Spending(
        sum(t.spent_s for t in trials),
        sum(t.spent_s for t in record.having("failed")),
        unstopped,
        None if mean is None else points * mean,
        points,
        stepless,
    )


def to_the_end(trial: Trial) -> float | None:
    """Seconds of all of a trial's steps at the pace that it had; None where it told none."""
    if trial.state == "done":
        return trial.spent_s
    if trial.state == "failed" or not trial.step or not trial.steps or trial.spent_s <= 0:
        return None
    return trial.spent_s * trial.steps / trial.step


def grid_points(space: dict[str, Key]) -> tuple[int, tuple[str, ...]]:
    """(points of the full grid, keys without steps of their own, which count as POINTS values each: every
    whole number from 1 to 64 would be a grid that nobody runs).
    """
    asked = {other for key in space.values() for other in key.when}
    stepless = tuple(name for name, key in space.items() if _levels(key) is None)
    levels = {name: space[name].levels() or [None] for name in asked if name in space}
    free = [name for name in space if name not in asked]
    count = 0
    for values in itertools.product(*levels.values()):
        chosen = dict(zip(levels, values, strict=True))
        given = {name: v for name, v in chosen.items() if _holds(space[name], chosen)}
        if any(v != levels[name][0] for name, v in chosen.items() if name not in given):
            continue  # a key that is not drawn counts once
        count += math.prod(len(_levels(space[n]) or [0] * POINTS) for n in free if _holds(space[n], given))
    return count, stepless


def _levels(key: Key) -> list[object] | None:
    found = key.levels()
    endless = found is None or (key.kind == "int" and not key.step and len(found) > POINTS)
    return None if endless else found


def _holds(key: Key, given: dict[str, object]) -> bool:
    return all(other in given and given[other] in key.asks(other) for other in key.when)
