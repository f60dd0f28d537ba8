"""Columns of several folders → ranks of encoders with intervals, and the mean rank.

Ranks are those of encoders among encoders; a baseline gets the place that it would take among them. Equals
share the mean of their places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune import metrics
from finetune.evaluation.columns import SHOWN, Entry, Group, columns_of, differing, names_of
from finetune.evaluation.results import CorpusInfo, EncoderInfo, Overlap, Result
from finetune.evaluation.written import TaskTable
from finetune.metrics import Difference, Interval
from finetune.task import Task

TWIN = "untrained"  # an encoder's untrained self among what it is compared with
RIVALS = (TWIN, *SHOWN)
UNKNOWN = float("nan")


@dataclass(frozen=True)
class Cell(Result):
    """A row's main metric in a column, and its rank, whose interval is NaN where there are no predictions to
    draw from.
    """

    row: str
    figure: Interval
    rank: Interval


@dataclass(frozen=True)
class Absent(Result):
    """Why a cell is empty, or what its figure lacks."""

    row: str
    why: str


@dataclass(frozen=True)
class Seen(Result):
    """What pretraining of an encoder saw of a column's people. `together`: its folder knows only what its
    encoders saw together (an earlier version wrote it).
    """

    overlap: Overlap
    together: bool


@dataclass(frozen=True)
class Column(Result):
    """A task on a corpus. `folders`: where its tables are from; `cells`: encoders, then baselines; `seen`: by
    encoder; `differences`: {encoder: {one of RIVALS: encoder − it}} of the main metric.
    """

    title: str
    task: Task
    corpus: CorpusInfo
    windows: int
    subjects: int
    folders: tuple[str, ...]
    cells: tuple[Cell, ...]
    seen: Mapping[str, Seen]
    differences: Mapping[str, Mapping[str, Difference]]
    absent: tuple[Absent, ...]

    @property
    def rows(self) -> dict[str, Cell]:
        return {cell.row: cell for cell in self.cells}


@dataclass(frozen=True)
class Overall(Result):
    """Mean rank over `columns`, those that every encoder has. `together`: columns that share people, who are
    drawn once for all of them; other columns are drawn independently.
    """

    columns: tuple[str, ...]
    together: tuple[tuple[str, ...], ...]
    mean_rank: Mapping[str, Interval]


@dataclass(frozen=True)
class Board(Result):
    """`encoders` in the order of their mean rank (without one: of the folders); `baselines`: {row: label}."""

    encoders: Mapping[str, EncoderInfo]
    baselines: Mapping[str, str]
    columns: tuple[Column, ...]
    overall: Overall


def leaderboard(tables: Sequence[TaskTable]) -> Board:
    """PlethoraError: one encoder has two different results in a column."""
    seats = [seat for table in tables for seat in table.seats]
    called = names_of(seats)
    info = {called[seat.identity]: seat.info for seat in reversed(seats)}
    groups = columns_of(tables, called)
    overall = _overall(groups, list(called.values()))
    names = list(called.values())
    if overall.columns:
        names.sort(key=lambda name: overall.mean_rank[name].value)
    labels = {row: entry.label for g in reversed(groups) for row, entry in g.baselines.items()}
    order = {row: SHOWN.index(row) if row in SHOWN else len(SHOWN) for row in labels}
    return Board(
        encoders={name: info[name] for name in names},
        baselines={row: labels[row] for row in sorted(labels, key=lambda row: (order[row], row))},
        columns=tuple(_column(group, groups, names) for group in groups),
        overall=overall,
    )


def mid_ranks(values: np.ndarray, encoders: int, lower: bool) -> np.ndarray:
    """(rows, draws) metrics → ranks among the first `encoders` rows, 1 the best; equals share the mean of
    their places. A draw in which a row has no value has no ranks (NaN).

    Another row than these has the place that it would take among them: 1 + the encoders that are better +
    half of those that are equal.
    """
    signed = values if lower else -values
    rivals = signed[None, :encoders]
    rank = 1 + (rivals < signed[:, None]).sum(1) + (rivals == signed[:, None]).sum(1) / 2
    rank[:encoders] -= 0.5  # each equals itself
    return np.where(np.isfinite(values).all(0), rank, UNKNOWN)


def _ranked(group: Group, weights: np.ndarray) -> np.ndarray:
    """(entries, 1 + draws) of ranks."""
    return mid_ranks(group.drawn(weights), len(group.encoders), _lower(group.task))


def _lower(task: Task) -> bool:
    return task.kind == "regression"


# ---------------------------------------------------------------- one column


def _column(group: Group, groups: Sequence[Group], names: Sequence[str]) -> Column:
    first = group.first
    figures = [entry.table.figure(entry.row) for entry in group.entries.values()]
    if first.scored.predicted:
        how = first.result.protocol
        weights = metrics.draw_weights(len(first.people), how.draws, how.seed)
        ranks = [metrics.interval(one) for one in _ranked(group, weights)]
    else:
        point = np.array([[figure.value] for figure in figures])
        places = mid_ranks(point, len(group.encoders), _lower(group.task))
        ranks = [Interval(float(one), UNKNOWN, UNKNOWN) for one in places[:, 0]]
    cells = {
        row: Cell(row, figure, rank) for row, figure, rank in zip(group.entries, figures, ranks, strict=True)
    }
    ordered = [*(name for name in names if name in cells), *group.baselines]
    return Column(
        title=group.title,
        task=group.task,
        corpus=first.corpus,
        windows=first.result.counts.windows,
        subjects=len(first.people),
        folders=tuple(table.folder for table in group.tables),
        cells=tuple(cells[row] for row in ordered),
        seen={name: _seen(entry) for name, entry in group.encoders.items()},
        differences={name: _differences(group, name) for name in group.encoders},
        absent=(*_missing(group, groups, names), *_notes(group)),
    )


def _seen(entry: Entry) -> Seen:
    result = entry.table.result
    assert result.overlap is not None  # `read_folder` asks for it
    own = result.seen_by.get(entry.row)
    return Seen(own or result.overlap, own is None and len(entry.table.seats) > 1)


def _differences(group: Group, name: str) -> dict[str, Difference]:
    """Of the encoder's own folder, whose figures are paired."""
    entry = group.encoders[name]
    found = entry.table.result.differences[entry.row]
    rows = {TWIN: entry.twin} | {row: row for row in SHOWN}
    return {rival: found[row] for rival, row in rows.items() if row in found}


def _missing(group: Group, groups: Sequence[Group], names: Sequence[str]) -> list[Absent]:
    found = []
    for name in names:
        if name in group.encoders:
            continue
        why = f"not in {' or '.join(table.folder for table in group.tables)}"
        for other in groups:
            alike = other.task.name == group.task.name and other.first.corpus.hash == group.first.corpus.hash
            if alike and name in other.encoders:
                apart = " and ".join(differing(other.first, group.first))
                why = f"it stands in the column “{other.title}”: {apart} differ"
        found.append(Absent(name, why))
    return found


def _notes(group: Group) -> list[Absent]:
    """Notes of the tables on baselines and on untrained twins."""
    found: dict[tuple[str, str], None] = {}
    for table in group.tables:
        twins = {e.twin: f"{name}, untrained" for name, e in group.encoders.items() if e.table is table}
        for row in table.result.rows:
            if row.note and (row.name in SHOWN or row.name in twins):
                found[twins.get(row.name, row.label), row.note] = None
    return [Absent(row, why) for row, why in found]


# ---------------------------------------------------------------- all columns


def _overall(groups: Sequence[Group], names: Sequence[str]) -> Overall:
    """Ranks of a draw are averaged over the columns. People whom columns share are drawn once for all of
    these, so that a draw that is hard in one is hard in the others; columns without a common subject have
    draws of their own.
    """
    shared = [g for g in groups if g.first.scored.predicted and g.encoders.keys() == set(names)]
    ranks: list[np.ndarray] = []
    together = sharing(shared)
    for number, columns in enumerate(together):
        people = np.unique(np.concatenate([group.first.people for group in columns]))
        how = shared[0].first.result.protocol
        weights = metrics.draw_weights(len(people), how.draws, how.seed + number)
        for group in columns:
            found = _ranked(group, weights[:, np.searchsorted(people, group.first.people)])
            ranks.append(found[[list(group.entries).index(name) for name in names]])
    mean = dict(zip(names, np.mean(ranks, axis=0), strict=True)) if ranks else {}
    return Overall(
        columns=tuple(group.title for group in shared),
        together=tuple(tuple(group.title for group in columns) for columns in together),
        mean_rank={name: metrics.interval(values) for name, values in mean.items()},
    )


def sharing(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that share a subject, directly or through others, together."""
    found: list[tuple[set[str], list[Group]]] = []
    for group in groups:
        people, members = set(group.first.people), [group]
        for known in [each for each in found if each[0] & people]:
            people |= known[0]
            members = [*known[1], *members]
            found.remove(known)
        found.append((people, members))
    return [members for _, members in found]
