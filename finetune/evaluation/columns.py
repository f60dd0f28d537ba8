"""Which tables of several folders are one column of a leaderboard, who is in it, and what it is called.

Tables share a column only where corpus, task, protocol and the very windows are the same.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.errors import PlethoraError
from finetune.evaluation.written import Seat, TaskTable
from finetune.task import Task

SHOWN = ("handcrafted", "tracker", "demographics", "mean")  # baselines that are rows, given ones beside
Names = Mapping[tuple[str, str], str]  # {(uri, mode): what an encoder is called}


@dataclass(frozen=True)
class Entry:
    """A row of a column: the table that holds it, and its row there."""

    table: TaskTable
    row: str
    label: str
    twin: str = ""  # of an encoder: the row of its untrained self


@dataclass(frozen=True)
class Group:
    """Tables of one column. `encoders`: by name; `baselines`: by the row of the leaderboard."""

    title: str
    tables: tuple[TaskTable, ...]
    encoders: Mapping[str, Entry]
    baselines: Mapping[str, Entry]

    @property
    def first(self) -> TaskTable:
        return self.tables[0]

    @property
    def task(self) -> Task:
        return self.first.result.task

    @property
    def entries(self) -> dict[str, Entry]:
        """Encoders, then baselines."""
        return {**self.encoders, **self.baselines}

    def drawn(self, weights: np.ndarray) -> np.ndarray:
        """(entries, 1 + draws) of the main metric: `TaskTable.drawn`."""
        return np.stack([entry.table.drawn(entry.row, weights) for entry in self.entries.values()])


def names_of(seats: Sequence[Seat]) -> dict[tuple[str, str], str]:
    """{(uri, mode): name}: what the first folder calls it; two encoders of one name get the shortest ends of
    their addresses that tell them apart.
    """
    called: dict[tuple[str, str], str] = {}
    for seat in seats:
        called.setdefault(seat.identity, seat.called)
    count = Counter(called.values())
    for name in (name for name, times in count.items() if times > 1):
        alike = {i: re.split("(?=[/&])", f"{i[0]}#{i[1]}") for i, its in called.items() if its == name}
        longest = max(map(len, alike.values()))
        depth = next(
            d for d in range(1, longest + 1) if len({tuple(p[-d:]) for p in alike.values()}) == len(alike)
        )
        called |= {i: f"{name}, {''.join(parts[-depth:]).lstrip('/&')}" for i, parts in alike.items()}
    return called


def columns_of(tables: Sequence[TaskTable], called: Names) -> list[Group]:
    """Columns in order of appearance. PlethoraError: one encoder has two different results in a column."""
    joined: list[list[TaskTable]] = []
    for table in tables:
        group = next((each for each in joined if not differing(each[0], table)), None)
        if group is None:
            joined.append([table])
        else:
            group.append(table)
    titles = titles_of([group[0] for group in joined])
    return [
        Group(title, tuple(group), _encoders(group, called, title), _baselines(group))
        for title, group in zip(titles, joined, strict=True)
    ]


def differing(a: TaskTable, b: TaskTable) -> list[str]:
    """What keeps two tables apart, in words; [] where they share a column."""
    keys = [
        {
            "corpus": t.corpus.hash,
            "task": t.result.task,
            "protocol": (_protocol(t), t.result.protocol.draws),
            "windows": (t.result.counts.windows, t.scored.digest),
        }
        for t in (a, b)
    ]
    return [part for part in keys[0] if keys[0][part] != keys[1][part]]


def _encoders(group: Sequence[TaskTable], called: Names, title: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for table in group:
        for seat in table.seats:
            name = called[seat.identity]
            known = found.setdefault(name, Entry(table, seat.row, name, seat.twin))
            if not table.agrees(seat.row, known.table, known.row):
                raise PlethoraError(
                    f"{title}: encoder {seat.info.uri} (mode {seat.info.mode}) has other predictions in "
                    f"{known.table.folder} than in {table.folder}: it changed in between; leave one out"
                )
    return found


def _baselines(group: Sequence[TaskTable]) -> dict[str, Entry]:
    """Baselines with figures. One that predicts something else in another folder (features of another
    version) is a row of its own, called after the folder.
    """
    found: dict[str, Entry] = {}
    for table in group:
        for row in table.result.rows:
            if not row.metrics or not (row.name in SHOWN or row.label.endswith("(given predictions)")):
                continue
            alike = [e for e in found.values() if e.row == row.name]
            if any(table.agrees(row.name, e.table, e.row) for e in alike):
                continue
            mark = f", {table.folder.rpartition('/')[2]}" if alike else ""
            found[row.name + mark] = Entry(table, row.name, row.label + mark)
    return found


# ---------------------------------------------------------------- titles


def titles_of(firsts: Sequence[TaskTable]) -> list[str]:
    """A title a column, as "Heart rate, bidmc"; columns that would share one say what tells them apart."""
    details: tuple[Callable[[TaskTable], str], ...] = (_size, _protocol, lambda t: t.corpus.uri, _folder)
    plain = [f"{t.result.task.title}, {corpus_name(t)}" for t in firsts]
    titles = list(plain)
    for title in {name for name, times in Counter(plain).items() if times > 1}:
        mine = [i for i, other in enumerate(plain) if other == title]
        for count in range(1, len(details) + 1):
            for i in mine:
                titles[i] = f"{title} ({'; '.join(tell(firsts[i]) for tell in details[:count])})"
            if len({titles[i] for i in mine}) == len(mine):
                break
    return titles


def corpus_name(table: TaskTable) -> str:
    return table.corpus.name or table.corpus.uri.rpartition("/")[2]


def _size(table: TaskTable) -> str:
    return f"{table.result.counts.windows} windows, {len(table.people)} people"


def _protocol(table: TaskTable) -> str:
    how = table.result.protocol
    folds = f"split {how.split}" if how.split else f"{how.folds} of {how.folds_asked} folds"
    return f"{folds}, seed {how.seed}"


def _folder(table: TaskTable) -> str:
    return table.folder
