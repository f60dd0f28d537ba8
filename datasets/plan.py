"""Who reads what in which order: a pure function of (windows, weights, seed, batch, world size, position).

The sequence of optimizer steps does not know the world size; only its cut into workers does. So two workers
see, step by step, what one would, and a run resumes on another world size without losing or repeating a
window.

    pass       one permutation of a corpus's windows: its row groups shuffled, then the windows inside each
    sequence   the corpora's passes, interleaved by weight, without end
    span       a stretch of the sequence of about `shuffle_windows`, dealt into lanes; each lane is shuffled
    step       `batch` windows: the same number from every lane
    block      a worker's part of a span (one read task, one Ray Data block): whole lanes, hence few row
    groups
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import gcd

import numpy as np

from cluster.errors import PlethoraError

VERSION = 1  # of the order: a run goes on only with the one that it began with
MAX_LANES = 64  # more lanes mix better and read more row groups a block; every usual worker count divides 64
BLOCK_BYTES = 100e6  # Ray Data cuts blocks above 128 MB, which would change who gets which rows


@dataclass(frozen=True)
class Source:
    """The accepted training windows of one corpus. `group` (n,): each window's row group, `ids` (n,) int64:
    its name.
    """

    group: np.ndarray
    ids: np.ndarray
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Block:
    """Steps [first, last) of `rank`, rows [part/parts) of them when a worker's share is too large for one
    block.
    """

    span: int
    rank: int
    part: int
    parts: int
    first: int
    last: int


@dataclass(frozen=True)
class Rows:
    """The windows of some rows in order; all (n,). `position` indexes the source's arrays."""

    source: np.ndarray
    position: np.ndarray
    pass_: np.ndarray
    step: np.ndarray


@dataclass(frozen=True)
class Plan:
    """`steps` optimizer steps of `batch` windows over `world` workers, from step `start` on."""

    sources: tuple[Source, ...]
    seed: int
    batch: int
    steps: int
    world: int = 1
    start: int = 0
    shuffle_windows: int = 4096
    window_bytes: int = 4
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise PlethoraError(f"batch = {self.batch} does not divide over workers = {self.world}")
        for number, source in enumerate(self.sources):
            if not len(source):
                raise PlethoraError(f"corpus {number + 1} has no window to train on")

    @property
    def pass_windows(self) -> int:
        """Windows of all corpora together."""
        return sum(len(s) for s in self.sources)

    @property
    def span_steps(self) -> int:
        """Steps a span; no longer than one pass, so that shuffling does not mix far passes."""
        return max(1, min(self.shuffle_windows, self.pass_windows) // self.batch)

    def blocks(self, rank: int | None = None) -> Iterator[Block]:
        """Every block from `start` on, step by step: of one worker, or of all of them in turn."""
        ranks = range(self.world) if rank is None else (rank,)
        share = self.batch // self.world
        if self.start >= self.steps:
            return
        for span in range(self.start // self.span_steps, -(-self.steps // self.span_steps)):
            first = max(self.start, span * self.span_steps)
            last = min(self.steps, (span + 1) * self.span_steps)
            rows = (last - first) * share
            parts = next(p for p in range(1, rows + 1) if rows % p == 0 and self._fits(rows // p))
            for part in range(parts):
                for worker in ranks:
                    yield Block(span, worker, part, parts, first, last)

    def after(self, block: Block) -> Block | None:
        """The same worker's next block, None after the last one."""
        if block.part + 1 < block.parts:
            return replace(block, part=block.part + 1)
        return next(replace(self, start=block.last).blocks(block.rank), None)

    def _fits(self, rows: int) -> bool:
        return rows == 1 or rows * self.window_bytes <= BLOCK_BYTES

    def rows(self, block: Block) -> Rows:
        """The windows of one block, in the order in which its worker consumes them."""
        table, offset = self._span(block.span), block.span * self.span_steps
        share = self.batch // self.world
        steps = slice(block.first - offset, block.last - offset)
        lanes = slice(block.rank * share, (block.rank + 1) * share)
        mine = table[:, steps, lanes].reshape(3, -1)
        step = np.repeat(np.arange(block.first, block.last), share)
        size = mine.shape[1] // block.parts
        cut = slice(block.part * size, (block.part + 1) * size)
        return Rows(mine[0, cut], mine[1, cut], mine[2, cut], step[cut])

    def expected(self, until: int | None = None) -> dict[tuple[int, int], tuple[int, int]]:
        """The ledger of steps [0, until): {(source, pass): (windows, sum of their ids modulo 2**64)}."""
        until = self.steps if until is None else until
        ledger: dict[tuple[int, int], tuple[int, int]] = {}
        for span in range(-(-until // self.span_steps)):
            taken = self._span(span)[:, : until - span * self.span_steps].reshape(3, -1)
            tally(ledger, taken[0], taken[2], self._ids(taken[0], taken[1]))
        return ledger

    def _ids(self, source: np.ndarray, position: np.ndarray) -> np.ndarray:
        ids = np.empty(len(source), np.int64)
        for number, s in enumerate(self.sources):
            ids[source == number] = s.ids[position[source == number]]
        return ids

    def _span(self, span: int) -> np.ndarray:
        """(source, position, pass) × (steps of this span, batch)."""
        found = self._cache.get(span)  # one step each: a thread may read ahead
        if found is None:
            found = self._deal(span)
            self._cache.clear()
            self._cache[span] = found
        return found

    def _deal(self, span: int) -> np.ndarray:
        first = span * self.span_steps * self.batch
        last = min(self.steps, (span + 1) * self.span_steps) * self.batch
        parts, place = [], []
        for number, (low, high) in enumerate(self._quota(first, last)):
            position, pass_ = self._take(number, low, high)
            parts.append(np.stack([np.full(high - low, number), position, pass_]))
            place.append((np.arange(high - low) + 0.5) / max(high - low, 1))
        # Stable merge by relative place: every lane gets the corpora in their shares, each as one contiguous
        # stretch.
        table = np.concatenate(parts, axis=1)[:, np.argsort(np.concatenate(place), kind="stable")]
        if span % 2:  # there and back: a worker's next block begins in the row group where its last one ended
            table = table[:, ::-1]
        lanes = gcd(self.batch, MAX_LANES)
        per_lane = table.shape[1] // lanes
        order = np.tile(np.arange(per_lane), (lanes, 1))
        order = np.random.default_rng([self.seed, 1, span]).permuted(order, axis=1)
        table = table.reshape(3, lanes, per_lane)[:, np.arange(lanes)[:, None], order]
        steps = (last - first) // self.batch
        return (
            table.reshape(3, lanes, steps, self.batch // lanes)
            .transpose(0, 2, 1, 3)
            .reshape(3, steps, self.batch)
        )

    def _quota(self, first: int, last: int) -> list[tuple[int, int]]:
        """How much of [first, last) of the sequence each corpus gives, as a range of its own endless passes.

        Corpus by corpus off what the ones before it left: each count only grows, and they add up exactly.
        """
        weights = np.array([s.weight for s in self.sources], float)
        out, low, high = [], first, last
        for number, weight in enumerate(weights):
            share = weight / weights[number:].sum()
            a, b = (t if number == len(weights) - 1 else int(np.floor(t * share + 0.5)) for t in (low, high))
            out.append((a, b))
            low, high = low - a, high - b
        return out

    def _take(self, number: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, passes) of the range [low, high) of one corpus's passes, laid end to end."""
        n = len(self.sources[number])
        positions, passes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while low < high:
            p, within = divmod(low, n)
            take = min(n - within, high - low)
            positions.append(
                _pass_order(_Key(self.sources[number]), self.seed, number, p)[within : within + take]
            )
            passes.append(np.full(take, p))
            low += take
        return np.concatenate(positions), np.concatenate(passes)


class _Key:
    """Lets lru_cache hold on to a Source by identity (arrays do not hash)."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __hash__(self) -> int:
        return id(self.source)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.source is self.source


@lru_cache(maxsize=8)
def _pass_order(key: _Key, seed: int, number: int, pass_: int) -> np.ndarray:
    """One permutation of a corpus: row groups in drawn order, windows of a group in drawn order, (n,)
    positions.
    """
    rng = np.random.default_rng([seed, 0, number, pass_])
    group = key.source.group
    drawn = rng.random(len(group))
    together = np.argsort(group, kind="stable").astype(np.int32)  # every reader holds some passes of it
    groups = np.split(together, np.flatnonzero(np.diff(group[together])) + 1)
    turn = np.argsort(rng.permutation(len(groups)))
    return np.concatenate([g[np.argsort(drawn[g], kind="stable")] for g in (groups[i] for i in turn)])


def tally(ledger: dict, source: np.ndarray, pass_: np.ndarray, ids: np.ndarray) -> None:
    """Add windows to a ledger {(source, pass): (count, sum of ids modulo 2**64)} in place."""
    for s, p in {(int(a), int(b)) for a, b in np.unique(np.stack([source, pass_]), axis=1).T}:
        which = (source == s) & (pass_ == p)
        count, total = ledger.get((s, p), (0, 0))
        added = int(ids[which].view(np.uint64).sum(dtype=np.uint64))
        ledger[s, p] = (count + int(which.sum()), (total + added) % 2**64)


def steps_for(epochs: float, windows: int, batch: int) -> int:
    """Steps that see `windows` · `epochs` windows; the last batch is filled up from the next pass."""
    return -(-round(windows * epochs) // batch)
