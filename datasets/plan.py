"""Who reads what in which order: a pure function of (row groups, weights, seed, batch, world size, position).

The sequence of optimizer steps does not depend on the world size; only its split among workers does. So two
workers see, step by step, what one would, and a run resumes on another world size without losing or repeating
a window. Memory grows with the row groups, not with the windows: an order is computed where it is needed.

    pass       a corpus's row groups in random order, split into `lanes` lanes of equal length (± 1 window)
    reel       `mixed` row groups of a lane (the first one alone): its windows come in random order
    sequence   all windows of a run, endless: its places go to the lanes in turn, and each lane takes
               from the corpora by weight
    step       `batch` places of the sequence: the same number from every lane (± 1, in turn)
    worker     an equal share of the step's places by lane: whole lanes if the world size divides them
    block      a number of a worker's windows (one read task, one Ray Data block)
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np

from cluster.errors import PlethoraError

VERSION = 2  # of the order: a run cannot resume with the ledger of another version
LANES, MIXED = 64, 2
BLOCK_BYTES = 64e6  # of prepared windows: large enough to make Ray's cost per block negligible
CHUNK = 1 << 20  # ids generated at a time to be summed
GOLDEN = (5**0.5 - 1) / 2
T = TypeVar("T")


class Names(Protocol):
    """Window ids, (n,) int64, by position or slice: an array, or an object that computes them."""

    def __getitem__(self, at: Any, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class CorpusShare:
    """The accepted training windows of one corpus, row group after row group.

    `counts` (groups,) int64: windows of each row group. `ids`: their ids, (n,) int64, or an object that
    computes them on request; only the ledger reads them.
    """

    counts: np.ndarray
    ids: Names
    weight: float = 1.0

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> np.ndarray:
        """(groups + 1,) the first window of each row group, and the number of windows."""
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(self.counts)))

    @cached_property
    def sums(self) -> np.ndarray:
        """(groups + 1,) uint64 sums of ids before each row group, modulo 2**64."""
        filled = np.flatnonzero(self.counts)
        begin = self.starts[np.append(filled, len(self.counts))]
        each = np.zeros(len(self.counts), np.uint64)
        at = 0
        while at < len(filled):
            to = max(at + 1, int(np.searchsorted(begin, begin[at] + CHUNK, "right")) - 1)
            ids = self.ids[begin[at] : begin[to]].view(np.uint64)
            each[filled[at:to]] = np.add.reduceat(ids, begin[at:to] - begin[at])
            at = to
        return np.concatenate((np.zeros(1, np.uint64), np.cumsum(each, dtype=np.uint64)))


@dataclass(frozen=True)
class Block:
    """Windows [first, last) of all that worker `rank` receives, counted from step 0."""

    rank: int
    first: int
    last: int


@dataclass(frozen=True)
class Rows:
    """Windows of a block in order; all (n,). `position` indexes the source's windows, `at` is the place in
    the block.
    """

    source: np.ndarray
    position: np.ndarray
    pass_: np.ndarray
    step: np.ndarray
    at: np.ndarray


@dataclass(frozen=True)
class Part:
    """Part `number` of `count` of a worker's lanes: what one of its transform actors reads."""

    number: int = 0
    count: int = 1


WHOLE = Part()


@dataclass(frozen=True)
class _Pass:
    """The order of one pass: its row groups `turn` (groups,), the first window of each among all windows in
    that order, and the boundaries of each lane's reels."""

    turn: np.ndarray
    begin: np.ndarray
    reels: list[np.ndarray]


class _Last:
    """A cache of the last `size` results of a function."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.results: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        found = self.results.get(key)
        if found is None:
            found = make()
            self.results[key] = found
            if len(self.results) > self.size:
                self.results.popitem(last=False)
        return found


@dataclass(frozen=True)
class Plan:
    """`steps` optimizer steps of `batch` windows over `world` workers, from step `start` on.

    `lanes` (a power of two) is a setting of the run, independent of the world size: the row groups read at a
    time by all workers together. `mixed`: row groups whose windows a lane mixes. `first_rows`: windows per
    block within the first step, whose blocks are small so that it arrives early (0: same as the others).
    """

    sources: tuple[CorpusShare, ...]
    seed: int
    batch: int
    steps: int
    world: int = 1
    start: int = 0
    lanes: int = LANES
    mixed: int = MIXED
    window_bytes: int = 4
    first_rows: int = 0
    _orders: dict[str, _Last] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise PlethoraError(f"batch = {self.batch} does not divide over workers = {self.world}")
        if self.lanes < 1 or self.lanes & (self.lanes - 1):
            raise PlethoraError(f"stream.lanes = {self.lanes} is not a power of two: 64 is usual")
        for number, source in enumerate(self.sources):
            if not len(source):
                raise PlethoraError(f"corpus {number + 1} has no window to train on")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_orders": {}}

    @property
    def pass_windows(self) -> int:
        """Total number of windows in all corpora."""
        return sum(len(s) for s in self.sources)

    @property
    def share(self) -> int:
        """Windows per worker and step."""
        return self.batch // self.world

    @property
    def block_rows(self) -> int:
        """Windows per block: whole steps if one fits, else equal parts of one."""
        fit = max(1, int(BLOCK_BYTES // self.window_bytes))
        if fit >= self.share:
            return fit // self.share * self.share
        return -(-self.share // -(-self.share // fit))

    def reads(self, number: int, pass_: int) -> int:
        """Number of row groups of a corpus that all lanes together open in a pass."""
        order = self.order(number, pass_)
        return sum(
            int(np.diff(np.searchsorted(order.begin, [borders[0], borders[-1] - 1], "right"))[0]) + 1
            for borders in order.reels
            if borders[-1] > borders[0]
        )

    def count(self) -> int:
        """Blocks per worker, from `start` on."""
        rest = (self.steps - self.start) * self.share
        return 0 if rest <= 0 else self._first_blocks - (-(rest - self.share) // self.block_rows)

    def block(self, rank: int, number: int) -> Block:
        """Block `number` of a worker, from 0."""
        return Block(rank, self._border(number), self._border(number + 1))

    def blocks(self, rank: int | None = None) -> Iterator[Block]:
        """Every block: of one worker, or of all of them in turn."""
        for number in range(self.count()):
            for worker in range(self.world) if rank is None else (rank,):
                yield self.block(worker, number)

    @property
    def _first_block_rows(self) -> int:
        return min(self.first_rows or self.share, self.share, self.block_rows)

    @property
    def _first_blocks(self) -> int:
        return -(-self.share // self._first_block_rows)

    def _border(self, number: int) -> int:
        """Windows of a worker, counted from step 0, before its block `number`."""
        later = max(0, number - self._first_blocks) * self.block_rows
        windows = min(number * self._first_block_rows, self.share) + later
        return min(self.start * self.share + windows, self.steps * self.share)

    def rows(self, block: Block, part: Part = WHOLE) -> Rows:
        """The windows of one block, in the order in which its worker consumes them: all, or those of a part
        of its lanes.
        """
        first, last = block.first // self.share, -(-block.last // self.share)
        slot, turn, step = self._places(np.arange(first, last), block.rank)
        low = block.first - first * self.share
        mine = np.arange(low, low + block.last - block.first)
        if part.count > 1:
            mine = mine[np.isin(slot[mine], self.slots(block.rank, part))]
        return self._windows(slot[mine], turn[mine], step[mine], mine - low)

    def still_open(self, block: Block, part: Part = WHOLE) -> set[tuple[int, int]]:
        """(source, place in its `counts`) of the row groups that a worker, or a part of its lanes, still uses
        after the block.
        """
        last, at = divmod(block.last - 1, self.share)
        slot, turn, _ = self._places(np.array([last]), block.rank)
        places = turn[at] * self.lanes + slot[at] + 1  # already passed by the lanes of all workers
        slots = self.slots(block.rank, part)
        turns = -((slots - places) // self.lanes)
        found: set[tuple[int, int]] = set()
        for number, source in enumerate(self.sources):
            at = self.given(number, slots, turns) * self.lanes + slots
            for pass_, place in zip(*(x.tolist() for x in divmod(at, len(source))), strict=True):
                order, (within, lane) = self.order(number, pass_), divmod(place, self.lanes)
                borders = order.reels[lane]
                here = borders[0] + within
                reel = int(np.searchsorted(borders, here, "right")) - 1
                if reel < len(borders) - 1 and here > borders[reel]:
                    first = np.searchsorted(order.begin, borders[reel], "right") - 1
                    last = np.searchsorted(order.begin, borders[reel + 1], "left")
                    found |= {(number, int(group)) for group in order.turn[first:last]}
        return found

    # ------------------------------------------------------------ places of the sequence

    def _places(self, steps: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A worker's places of these steps in order: the slot whose turn it is, its turn number, the step.

        A step's places are sorted by lane and split evenly among the workers. Places go to the slots in turn,
        and slot and lane are each other's bit reversal: then any range of places falls evenly on the lanes'
        halves, quarters and so on, and boundaries between lanes stay the same from step to step.
        """
        slots = backwards(np.arange(self.lanes))  # of each lane
        begin = steps[:, None] * self.batch
        each, more = divmod(self.batch, self.lanes)
        count = each + ((slots - begin) % self.lanes < more)
        before = np.cumsum(count, axis=1) - count
        low = np.clip(rank * self.share - before, 0, count)
        high = np.clip((rank + 1) * self.share - before, 0, count)
        first = -((slots - begin) // self.lanes) + low  # number of turns that the slot has had
        taken = (high - low).ravel()
        slot = np.repeat(np.broadcast_to(slots, count.shape).ravel(), taken)
        turn = np.repeat(first.ravel() - np.cumsum(taken) + taken, taken) + np.arange(taken.sum())
        order = np.argsort(turn * self.lanes + slot)
        return slot[order], turn[order], np.repeat(steps, self.share)

    def slots(self, rank: int, part: Part = WHOLE) -> np.ndarray:
        """The slots of which a worker gets places in any step (they repeat after `lanes`), in lane order:
        all, or those of a part.
        """
        last = self._orders.setdefault("slots", _Last(self.world))
        slots = backwards(np.arange(self.lanes))  # of each lane, and vice versa
        lanes = last.get(rank, lambda: np.unique(slots[self._places(np.arange(self.lanes), rank)[0]]))
        mine = np.arange(len(lanes)) * part.count // len(lanes) == part.number
        return slots[lanes[mine]]

    def given(self, number: int, slot: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """The number of windows of corpus `number` that a slot takes in its first `turns` turns.

        Each corpus takes from what the previous ones left: each count only grows, and they add up exactly.
        The slots are staggered, so that every step holds the corpora in their shares.
        """
        weights = np.array([s.weight for s in self.sources], float)
        left, phase = turns, (slot * GOLDEN) % 1
        for earlier in range(number + 1):
            last = earlier == len(weights) - 1
            share = weights[earlier] / weights[earlier:].sum()
            taken = left if last else np.floor(left * share + phase).astype(np.int64)
            left = left - taken
        return taken

    def _windows(self, slot: np.ndarray, turn: np.ndarray, step: np.ndarray, at: np.ndarray) -> Rows:
        """The windows at these places."""
        source, position, pass_ = (np.zeros(len(slot), np.int64) for _ in range(3))
        out = Rows(source, position, pass_, step, at)
        for number in range(len(self.sources)):
            given = self.given(number, slot, turn)
            mine = np.flatnonzero(self.given(number, slot, turn + 1) > given)
            out.source[mine] = number
            out.pass_[mine], place = divmod(given[mine] * self.lanes + slot[mine], len(self.sources[number]))
            out.position[mine] = self._positions(number, out.pass_[mine], place)
        return out

    # ------------------------------------------------------------ the order of a pass

    def _positions(self, number: int, pass_: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Positions of the windows with number `at` in these passes."""
        position = np.empty(len(at), np.int64)
        within, lane = divmod(at, self.lanes)
        key = pass_ * self.lanes + lane
        order = np.argsort(key, kind="stable")
        ends = np.flatnonzero(np.diff(key[order], append=-1)) + 1
        for low, high in pairwise([0, *ends.tolist()]):
            which = order[low:high]
            p, its = divmod(int(key[which[0]]), self.lanes)
            borders = self.order(number, p).reels[its]
            place = borders[0] + within[which]
            reel = np.searchsorted(borders, place, "right") - 1
            for r in range(int(reel.min()), int(reel.max()) + 1):
                some = reel == r
                position[which[some]] = self.reel(number, p, its, r)[place[some] - borders[r]]
        return position

    def order(self, number: int, pass_: int) -> _Pass:
        last = self._orders.setdefault("pass", _Last(2 * len(self.sources)))
        return last.get((number, pass_), lambda: self._draw(number, pass_))

    def _draw(self, number: int, pass_: int) -> _Pass:
        source = self.sources[number]
        turn = np.random.default_rng([self.seed, 0, number, pass_]).permutation(len(source.counts))
        begin = np.concatenate(([0], np.cumsum(source.counts[turn])))
        each, more = divmod(len(source), self.lanes)
        lanes = np.arange(self.lanes + 1)
        ends = lanes * each + np.minimum(lanes, more)
        group = np.searchsorted(begin, ends, "right") - 1  # the row group in which a lane begins
        reels = []
        for low, high, a, b in zip(ends[:-1], ends[1:], group[:-1], group[1:], strict=True):
            # A lane's first row group, shared with another lane, stands alone: so the first batch waits for
            # one row group per lane, and the lanes do not all open their next ones at the same time.
            borders = np.unique(begin[a + 1 : b + 1 : self.mixed])  # row groups may be empty
            reels.append(np.concatenate(([low], borders[(borders > low) & (borders < high)], [high])))
        return _Pass(turn.astype(np.int32), begin, reels)

    def reel(self, number: int, pass_: int, lane: int, reel: int) -> np.ndarray:
        """Positions of a reel's windows in order."""

        def draw() -> np.ndarray:
            order, source = self.order(number, pass_), self.sources[number]
            low, high = order.reels[lane][reel : reel + 2]
            rng = np.random.default_rng([self.seed, 1, number, pass_, lane, reel])
            at = low + rng.permutation(high - low)
            group = np.searchsorted(order.begin, at, "right") - 1
            return source.starts[order.turn[group]] + at - order.begin[group]

        last = self._orders.setdefault("reel", _Last(2 * self.lanes * len(self.sources)))
        return last.get((number, pass_, lane, reel), draw)


def backwards(numbers: np.ndarray) -> np.ndarray:
    """The numbers 0 to n - 1, n a power of two, each with its bits reversed."""
    out = np.zeros_like(numbers)
    for bit in range(max(0, len(numbers).bit_length() - 1)):
        out = out << 1 | numbers >> bit & 1
    return out


def steps_for(epochs: float, windows: int, batch: int) -> int:
    """Steps that see `windows` · `epochs` windows; the last batch is completed from the next pass."""
    return -(-round(windows * epochs) // batch)
