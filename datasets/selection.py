"""The windows of an index that a plan orders, and where each of them lies: computed on request."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.catalogue import OK, Catalogue
from datasets.plan import CorpusShare, _Last
from datasets.schema import Corpus
from datasets.split import Split, assign
from datasets.windows import WindowSpec

if TYPE_CHECKING:
    from datasets.prepared import Prepared

CACHED = 256  # row groups whose chosen windows are cached


@dataclass(frozen=True)
class Windows:
    """Places of some windows; all (n,). `group`: row group of the shard; `row`: row in it, as `index` reads
    it; `offset_s` within the row; `subject`: a 64-bit name; `has` (uint8): bit i says whether signal i of the
    spec is used; `id`: the window's id. `target` (n, k) float32, NaN if unknown: the targets of a supervised
    method. `place`: its place in its file, for materialised windows.
    """

    shard: np.ndarray
    group: np.ndarray
    row: np.ndarray
    offset_s: np.ndarray
    subject: np.ndarray
    has: np.ndarray
    id: np.ndarray
    target: np.ndarray | None = None
    place: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Choice:
    """A selection from an index: accepted windows of subjects in `side` (codes,) bool (None: all), with a
    label if there is a `target` (index's windows, k).
    """

    side: np.ndarray | None = None
    target: np.ndarray | None = None

    def mask(self, kept: Catalogue, low: int, high: int) -> np.ndarray:
        """(high - low,) bool: whether each window [low, high) is chosen."""
        mask = kept.window("verdict")[low:high] == OK
        if self.side is not None:
            first, last = kept.run_of(np.array([low, high - 1]))
            lengths = np.diff(np.clip(kept.begin(np.arange(first, last + 2)), low, high))
            mask &= np.repeat(self.side[kept.run("subject")[first : last + 1]], lengths)
        if self.target is not None:
            mask &= np.isfinite(self.target[low:high]).any(axis=1)
        return mask


@dataclass(frozen=True, eq=False)
class Selection:
    """The windows of one corpus that a `plan.CorpusShare` orders, in the same order. Only what grows with the
    row groups is in memory; the rest is looked up in the index's memory map.

    number: (g,) int32, the corpus row group of each of the share's row groups; starts: (g + 1,) int64, their
    first windows. prepared: read materialised windows (datasets.prepared) instead of the corpus.
    """

    corpus: Corpus
    spec: WindowSpec
    kept: Catalogue
    choice: Choice
    number: np.ndarray
    starts: np.ndarray
    prepared: Prepared | None = None
    _cached: _Last = field(default_factory=lambda: _Last(CACHED), repr=False)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cached": _Last(CACHED)}

    @property
    def target(self) -> np.ndarray | None:
        """(index's windows, k) targets of a supervised recipe."""
        return self.choice.target

    def source(self, weight: float) -> CorpusShare:
        """The share that the plan orders."""
        return CorpusShare(np.diff(self.starts), Ids(self), weight)

    def prepared_as(self, prepared: Prepared | None) -> Selection:
        """The same windows, read from `prepared`."""
        return replace(self, prepared=prepared, _cached=_Last(CACHED))

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """(g,) shard and (g,) row group in it, for each of the share's row groups."""
        run = self.kept.edges[self.number]
        return self.kept.run("shard")[run], self.kept.run("group")[run]

    def rows(self, position: np.ndarray | slice) -> np.ndarray:
        """(n,) row numbers in the index of the windows at these positions."""
        if not isinstance(position, slice):
            return self._look(position, 0)
        low, high, _ = position.indices(len(self))
        if low >= high:
            return np.empty(0, np.int64)
        first, last = (np.searchsorted(self.starts, (low, high - 1), "right") - 1).tolist()
        begin, end = self._bounds(first)[0], self._bounds(last)[1]
        found = begin + np.flatnonzero(self.choice.mask(self.kept, begin, end))
        return found[low - self.starts[first] : high - self.starts[first]]

    def windows(self, position: np.ndarray) -> Windows:
        """The places of the windows at these positions (n,) of the share."""
        kept, rows = self.kept, self.rows(position)
        run = kept.run_of(rows)
        return Windows(
            kept.run("shard")[run],
            kept.run("group")[run],
            kept.run("row")[run],
            kept.offsets(rows, run),
            kept.keys[kept.run("subject")[run]],
            has(kept, self.spec, rows),
            ids(self.corpus, rows),
            None if self.target is None else self.target[rows],
            None if self.prepared is None else self._look(position, 1),
        )

    def subjects(self) -> set[str]:
        """The subjects of the windows."""
        kept, names = self.kept, self.kept.subjects
        found = np.zeros(len(names), bool)
        code = kept.run("subject")
        for a, b in kept.stretches():
            first, last = kept.edges[[a, b]].tolist()
            begin = kept.begin(np.arange(first, last + 1))
            mask = self.choice.mask(kept, int(begin[0]), int(begin[-1]))
            found[code[first:last][np.logical_or.reduceat(mask, begin[:-1] - begin[0])]] = True
        return {name for name, there in zip(names, found, strict=True) if there}

    def _look(self, position: np.ndarray, what: int) -> np.ndarray:
        """(n,) for the windows at these positions: 0, row numbers; 1, places among the accepted windows of
        their row groups.
        """
        out = np.empty(len(position), np.int64)
        number = np.searchsorted(self.starts, position, "right") - 1
        order = np.argsort(number, kind="stable")
        groups, begin = np.unique(number[order], return_index=True)
        ends = [*begin.tolist(), len(order)]
        for group, low, high in zip(groups.tolist(), ends[:-1], ends[1:], strict=True):
            which = order[low:high]
            within = self._chosen(group)[what][position[which] - self.starts[group]].astype(np.int64)
            out[which] = within if what else within + self._bounds(group)[0]
        return out

    def _bounds(self, group: int) -> tuple[int, int]:
        at = int(self.number[group])
        low, high = self.kept.begin(self.kept.edges[at : at + 2]).tolist()
        return low, high

    def _chosen(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """The chosen windows of a row group: their numbers among its windows, and (for materialised windows)
        among its accepted ones.
        """

        def find() -> tuple[np.ndarray, np.ndarray]:
            low, high = self._bounds(group)
            small = np.min_scalar_type(high - low)  # some hundred row groups of these are cached
            within = np.flatnonzero(self.choice.mask(self.kept, low, high))
            place = np.empty(0, small)
            if self.prepared is not None:
                place = np.cumsum(self.kept.window("verdict")[low:high] == OK)[within] - 1
            return within.astype(small), place.astype(small)

        return self._cached.get(group, find)


def select(corpus: Corpus, spec: WindowSpec, kept: Catalogue, choice: Choice) -> Selection:
    """The chosen windows of an index."""
    begin = kept.begin(kept.edges)
    counts = np.zeros(len(begin) - 1, np.int64)
    for a, b in kept.stretches():
        mask = choice.mask(kept, int(begin[a]), int(begin[b]))
        counts[a:b] = np.add.reduceat(mask, begin[a:b] - begin[a], dtype=np.int64)
    held = np.flatnonzero(counts)
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts[held])))
    return Selection(corpus, spec, kept, choice, held.astype(np.int32), starts)


def side(kept: Catalogue, part: str | None, split: Split) -> np.ndarray | None:
    """(codes,) bool: whether `split` puts each subject into `part`; None for all subjects."""
    if part is None:
        return None
    return np.array([assign(s, split) == part for s in kept.subjects], bool)


def has(kept: Catalogue, spec: WindowSpec, rows: np.ndarray) -> np.ndarray:
    """(n,) uint8: bit i says whether signal i of the spec is used in these windows."""
    bits = np.zeros(len(rows), np.uint8)
    for number, sig in enumerate(spec.signals):
        used = np.ones(len(rows), bool)
        if not sig.required:
            used = kept.window(f"verdict_{sig.modality}")[rows] == OK
        bits |= used.astype(np.uint8) << number
    return bits


def ids(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """(n,) int64 window ids, the same in every run over this corpus: splitmix64 of hash and row."""
    x = rows.astype(np.uint64) + np.uint64(int(corpus.hash[:16], 16))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


@dataclass(frozen=True, eq=False)
class Ids:
    """The ids of a selection's windows, computed on request: by positions, or a slice of them."""

    selection: Selection

    def __len__(self) -> int:
        return len(self.selection)

    def __getitem__(self, at: slice | np.ndarray) -> np.ndarray:
        return ids(self.selection.corpus, self.selection.rows(at))
