"""Windows pooled to readings, records or subjects, and figures of subgroups of people beside each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from finetune import metrics
from finetune.evaluation.choose import Windows
from finetune.evaluation.kinds import Answer
from finetune.evaluation.readings import units
from finetune.evaluation.results import Gap, SubgroupFigures, Subgroups
from finetune.probe import Folds
from finetune.task import Subgroup, Task, whole_record

MIN_SUBJECTS = 3  # fewer are no group: an interval over them says nothing


def pool(
    windows: Windows, vectors: Mapping[str, np.ndarray], task: Task
) -> tuple[Windows, dict[str, np.ndarray], np.ndarray]:
    """Windows of a reading, record or subject as one: vectors are averaged (what is NaN in some, over the
    others), targets never (see `readings.units`). Also the group of each window, (n,).
    """
    first, group = units(task.level, windows.target, windows.subject, windows.record, windows.reading)
    return windows.at(first), {name: averaged(x, group) for name, x in vectors.items()}, group


def several_values(windows: Windows, task: Task, names: Sequence[str]) -> list[str]:
    """A line where the task is about people, and a person's records say different things."""
    if task.level != "subject":
        return []
    first, _ = units("subject", windows.target, windows.subject, windows.record)
    who, count = np.unique(windows.subject[first], return_counts=True)
    if not (count > 1).any():
        return []
    example = who[count > 1][0]
    values = windows.target[first][windows.subject[first] == example]
    shown = [] if values.ndim > 1 else [names[int(v)] if names else f"{v:g}" for v in values]
    sample = f" (one has {', '.join(shown[:5])})" if shown else ""
    return [
        f"{(count > 1).sum()} of {len(who)} subjects have more than one value of label {task.label}{sample}: "
        "each value is a row of its own, they are not averaged"
    ]


@dataclass(frozen=True)
class Level:
    """What probes learn from and what is scored. `learn` with its `vectors` are windows, or (pooled vectors)
    the very rows of `score`; `up` (windows → learn) and `over` (learn → score) are the group of each, None
    where the two are the same.
    """

    learn: Windows
    score: Windows
    vectors: dict[str, np.ndarray]
    up: np.ndarray | None = None
    over: np.ndarray | None = None

    def learnt(self, x_n: np.ndarray) -> np.ndarray:
        """Of windows → of what probes learn from."""
        return x_n if self.up is None else averaged(x_n, self.up)

    def scored(self, x_n: np.ndarray) -> np.ndarray:
        """Of what probes learn from → of the rows that are scored."""
        return x_n if self.over is None else averaged(x_n, self.over)

    def tests(self, folds: Folds) -> list[np.ndarray]:
        """The rows that each fold scores."""
        return [test if self.over is None else np.unique(self.over[test]) for _, test in folds]


def level_of(windows: Windows, vectors: dict[str, np.ndarray], task: Task) -> Level:
    """Where a task's level is the window, nothing is pooled; else predictions (or vectors, as `pool` says) of
    a reading's, record's or subject's windows are averaged.
    """
    if task.level == "window":
        return Level(windows, windows, vectors)
    small, pooled, group = pool(windows, vectors, task)
    if task.pool == "vectors":
        return Level(small, small, pooled, up=group)
    return Level(windows, small, vectors, over=group)


def averaged(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(groups, …) means of (n, …) over each group, NaN left out."""
    x = np.asarray(x, np.float64)
    known = np.isfinite(x)
    total = np.zeros((int(group.max()) + 1, *x.shape[1:]))
    count = np.zeros_like(total)
    np.add.at(total, group, np.where(known, x, 0.0))
    np.add.at(count, group, known)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def group_of(labels: pa.Table, record_n: list[str], subgroup: Subgroup) -> np.ndarray:
    """(n,) str: the group of each record, "" where it is not known."""
    known = whole_record(labels, subgroup.label)

    def shown(value: float | str | None) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        if not subgroup.edges:
            return f"{value:g}"
        return _bin(int(np.searchsorted(subgroup.edges, value, side="right")), subgroup.edges)

    return np.array([shown(known.get(r)) for r in record_n], object)


def _bin(place: int, edges: tuple[float, ...]) -> str:
    if not edges:
        return ""
    if place == 0:
        return f"under {edges[0]:g}"
    low = f"{edges[place - 1]:g}"
    return f"{low} and over" if place == len(edges) else f"{low} to under {edges[place]:g}"


def subgroup_tables(
    task: Task,
    labels: pa.Table,
    windows: Windows,
    answer: Answer,
    predicted: Mapping[str, np.ndarray],
    weights: np.ndarray,
) -> tuple[Subgroups, ...]:
    """Every row's main metric in each subgroup, over the same drawn subjects, and the gap between the groups
    where it is worst and where it is best (chosen by the estimates, so it leans to be large; 0 lies inside
    its interval where nothing is proven).
    """
    people = np.unique(windows.subject)
    lower = task.kind == "regression"
    tables = []
    for subgroup in task.subgroups:
        of = group_of(labels, windows.record.tolist(), subgroup)
        groups, drawn = [], {}
        for name in _ordered(of, subgroup):
            rows = np.flatnonzero(of == name)
            who = windows.subject[rows]
            mine = np.isin(people, who)
            part = answer.at(rows)
            if mine.sum() < MIN_SUBJECTS or not part.can_be_scored():
                continue
            drawn[name] = {
                row: part.drawn(p[rows], predicted["mean"][rows], who, weights[:, mine])[task.main]
                for row, p in predicted.items()
            }
            figures = {row: {task.main: metrics.interval(v)} for row, v in drawn[name].items()}
            groups.append(SubgroupFigures(name, int(mine.sum()), len(rows), figures))
        if not groups:
            continue
        gap = {row: _gap({g: d[row] for g, d in drawn.items()}, lower) for row in predicted}
        unknown = len(set(windows.subject[of == ""]))
        tables.append(Subgroups(subgroup.label, tuple(groups), gap if len(groups) > 1 else {}, unknown))
    return tuple(tables)


def _ordered(of: np.ndarray, subgroup: Subgroup) -> list[str]:
    """Names that are there, bins from low to high."""
    bins = [_bin(place, subgroup.edges) for place in range(len(subgroup.edges) + 1)]
    there = set(of.tolist()) - {""}
    return [name for name in bins if name in there] + sorted(there - set(bins))


def _gap(drawn: Mapping[str, np.ndarray], lower: bool) -> Gap:
    """worst − best."""
    points = {name: float(v[0]) for name, v in drawn.items() if np.isfinite(v[0])}
    if len(points) < 2:
        return Gap(float("nan"), float("nan"), float("nan"))
    ranked = sorted(points, key=lambda n: points[n], reverse=lower)
    worst, best = ranked[0], ranked[-1]
    found = metrics.interval(drawn[worst] - drawn[best])
    return Gap(found.value, found.low, found.high, (worst, best))
