"""Who reads what in which order: a pure function of (row groups, weights, seed, batch, world size, position).

The sequence of optimizer steps does not know the world size; only its cut into workers does. So two workers
see, step by step, what one would, and a run resumes on another world size without losing or repeating a
window. What is held grows with the row groups, not with the windows: an order is computed where it is needed.

    pass       a corpus's row groups in drawn order, cut into `lanes` lanes of equal length (± 1 window)
    reel       `mixed` row groups of a lane (the first one alone): its windows come in drawn order
    sequence   all windows of a run, without end: its places go to the lanes in turn, and each lane takes
               from the corpora by weight
    step       `batch` places of the sequence: the same number from every lane (± 1, in turn)
    worker     an equal cut of the step's places by lane: whole lanes where the world size divides them
    block      a number of a worker's windows (one read task, one Ray Data block)
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np

from cluster.errors import PlethoraError

VERSION = 2  # of the order: another one cannot go on with a run's ledger
LANES, MIXED = 64, 2
BLOCK_BYTES = 64e6  # Ray Data cuts blocks above 128 MB, which would change who gets which rows
CHUNK = 1 << 20  # names that are made at a time to be summed
GOLDEN = (5**0.5 - 1) / 2
T = TypeVar("T")


class Names(Protocol):
    """Names of windows, (n,) int64, by their positions or a slice of them: an array, or what makes them."""

    def __getitem__(self, at: Any, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Source:
    """The accepted training windows of one corpus, row group after row group.

    `counts` (groups,) int64: windows of each row group. `ids`: their names, (n,) int64, or what makes those
    that it is asked for; only the ledger reads them.
    """

    counts: np.ndarray
    ids: Names
    weight: float = 1.0

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> np.ndarray:
        """(groups + 1,) where the windows of each row group begin."""
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(self.counts)))

    @cached_property
    def sums(self) -> np.ndarray:
        """(groups + 1,) uint64 sums of ids before each row group, modulo 2**64."""
        held = np.flatnonzero(self.counts)
        begin = self.starts[np.append(held, len(self.counts))]
        each = np.zeros(len(self.counts), np.uint64)
        at = 0
        while at < len(held):
            to = max(at + 1, int(np.searchsorted(begin, begin[at] + CHUNK, "right")) - 1)
            ids = self.ids[begin[at] : begin[to]].view(np.uint64)
            each[held[at:to]] = np.add.reduceat(ids, begin[at:to] - begin[at])
            at = to
        return np.concatenate((np.zeros(1, np.uint64), np.cumsum(each, dtype=np.uint64)))


@dataclass(frozen=True)
class Block:
    """Windows [first, last) of all that worker `rank` gets, counted from step 0."""

    rank: int
    first: int
    last: int


@dataclass(frozen=True)
class Rows:
    """The windows of some rows in order; all (n,). `position` indexes the source's windows."""

    source: np.ndarray
    position: np.ndarray
    pass_: np.ndarray
    step: np.ndarray


@dataclass(frozen=True)
class _Pass:
    """The order of one pass: its row groups `turn` (groups,), where the windows of each begin among all
    windows in that order, and of each lane the borders of its reels."""

    turn: np.ndarray
    begin: np.ndarray
    reels: list[np.ndarray]


class _Last:
    """The last `size` results of a function."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        found = self.held.get(key)
        if found is None:
            found = make()
            self.held[key] = found
            if len(self.held) > self.size:
                self.held.popitem(last=False)
        return found


@dataclass(frozen=True)
class Plan:
    """`steps` optimizer steps of `batch` windows over `world` workers, from step `start` on.

    `lanes` (a power of two) is a run's setting and never the world's: row groups that are read at a time, of
    all workers together. `mixed`: row groups whose windows a lane mixes.
    """

    sources: tuple[Source, ...]
    seed: int
    batch: int
    steps: int
    world: int = 1
    start: int = 0
    lanes: int = LANES
    mixed: int = MIXED
    window_bytes: int = 4
    _orders: dict[str, _Last] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise PlethoraError(f"batch = {self.batch} does not divide over workers = {self.world}")
        if self.lanes < 1 or self.lanes & (self.lanes - 1):
            raise PlethoraError(f"stream.lanes = {self.lanes} is no power of two: 64 is usual")
        for number, source in enumerate(self.sources):
            if not len(source):
                raise PlethoraError(f"corpus {number + 1} has no window to train on")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_orders": {}}

    @property
    def pass_windows(self) -> int:
        """Windows of all corpora together."""
        return sum(len(s) for s in self.sources)

    @property
    def share(self) -> int:
        """Windows of a worker in a step."""
        return self.batch // self.world

    @property
    def block_rows(self) -> int:
        """Windows of a block: whole steps where one fits, else even parts of one."""
        fit = max(1, int(BLOCK_BYTES // self.window_bytes))
        if fit >= self.share:
            return fit // self.share * self.share
        return -(-self.share // -(-self.share // fit))

    def reads(self, number: int, pass_: int) -> int:
        """How many row groups of a corpus the lanes open in a pass, all together."""
        order = self._pass(number, pass_)
        return sum(
            int(np.diff(np.searchsorted(order.begin, [borders[0], borders[-1] - 1], "right"))[0]) + 1
            for borders in order.reels
            if borders[-1] > borders[0]
        )

    def blocks(self, rank: int | None = None) -> Iterator[Block]:
        """Every block from `start` on: of one worker, or of all of them in turn.

        The first holds one step at most, so that this comes soon.
        """
        first, end = self.start * self.share, self.steps * self.share
        last = min(first + min(self.share, self.block_rows), end)
        while first < last:
            for worker in range(self.world) if rank is None else (rank,):
                yield Block(worker, first, last)
            first, last = last, min(last + self.block_rows, end)

    def after(self, block: Block) -> Block | None:
        """The same worker's next block, None after the last one."""
        last = min(block.last + self.block_rows, self.steps * self.share)
        return Block(block.rank, block.last, last) if block.last < last else None

    def rows(self, block: Block) -> Rows:
        """The windows of one block, in the order in which its worker consumes them."""
        first, last = block.first // self.share, -(-block.last // self.share)
        slot, turn, step = self._places(np.arange(first, last), block.rank)
        mine = slice(block.first - first * self.share, block.last - first * self.share)
        return self._windows(slot[mine], turn[mine], step[mine])

    def still_open(self, block: Block) -> set[tuple[int, int]]:
        """(source, place in its `counts`) of the row groups that a worker goes on with after the block."""
        last, at = divmod(block.last - 1, self.share)
        slot, turn, _ = self._places(np.array([last]), block.rank)
        places = turn[at] * self.lanes + slot[at] + 1  # that are behind all workers' lanes
        slots = self._slots(block.rank)
        turns = -((slots - places) // self.lanes)
        found: set[tuple[int, int]] = set()
        for number, source in enumerate(self.sources):
            at = self._given(number, slots, turns) * self.lanes + slots
            for pass_, place in zip(*(x.tolist() for x in divmod(at, len(source))), strict=True):
                order, (within, lane) = self._pass(number, pass_), divmod(place, self.lanes)
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
        """A worker's places of these steps in order: whose turn it is (`slot`), for which time, the step.

        A step's places are sorted by lane and cut evenly among the workers. Places go to the slots in turn,
        and slot and lane are each other's bits backwards: then any stretch of places falls evenly on the
        lanes' halves, quarters and so on, and cuts between lanes stay where they are from step to step.
        """
        slots = backwards(np.arange(self.lanes))  # of each lane
        begin = steps[:, None] * self.batch
        each, more = divmod(self.batch, self.lanes)
        count = each + ((slots - begin) % self.lanes < more)
        before = np.cumsum(count, axis=1) - count
        low = np.clip(rank * self.share - before, 0, count)
        high = np.clip((rank + 1) * self.share - before, 0, count)
        first = -((slots - begin) // self.lanes) + low  # how often the slot had its turn
        taken = (high - low).ravel()
        slot = np.repeat(np.broadcast_to(slots, count.shape).ravel(), taken)
        turn = np.repeat(first.ravel() - np.cumsum(taken) + taken, taken) + np.arange(taken.sum())
        order = np.argsort(turn * self.lanes + slot)
        return slot[order], turn[order], np.repeat(steps, self.share)

    def _slots(self, rank: int) -> np.ndarray:
        """The slots of which a worker gets places in one step or another (they repeat after `lanes`)."""
        last = self._orders.setdefault("slots", _Last(self.world))
        return last.get(rank, lambda: np.unique(self._places(np.arange(self.lanes), rank)[0]))

    def _given(self, number: int, slot: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """How many windows of corpus `number` a slot takes in its first `turns` turns.

        Corpus by corpus off what the ones before it left: each count only grows, and they add up exactly. The
        slots are out of step with each other, so that every step holds the corpora in their shares.
        """
        weights = np.array([s.weight for s in self.sources], float)
        left, phase = turns, (slot * GOLDEN) % 1
        for earlier in range(number + 1):
            last = earlier == len(weights) - 1
            share = weights[earlier] / weights[earlier:].sum()
            taken = left if last else np.floor(left * share + phase).astype(np.int64)
            left = left - taken
        return taken

    def _windows(self, slot: np.ndarray, turn: np.ndarray, step: np.ndarray) -> Rows:
        """The windows at these places."""
        source, position, pass_ = (np.zeros(len(slot), np.int64) for _ in range(3))
        out = Rows(source, position, pass_, step)
        for number in range(len(self.sources)):
            given = self._given(number, slot, turn)
            mine = np.flatnonzero(self._given(number, slot, turn + 1) > given)
            out.source[mine] = number
            out.pass_[mine], at = divmod(given[mine] * self.lanes + slot[mine], len(self.sources[number]))
            out.position[mine] = self._positions(number, out.pass_[mine], at)
        return out

    # ------------------------------------------------------------ the order of a pass

    def _positions(self, number: int, pass_: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Positions of the windows that come as number `at` of these passes."""
        position = np.empty(len(at), np.int64)
        lane, within = at % self.lanes, at // self.lanes
        for p, its in {(int(p), int(k)) for p, k in zip(pass_, lane, strict=True)}:
            which = np.flatnonzero((pass_ == p) & (lane == its))
            borders = self._pass(number, p).reels[its]
            place = borders[0] + within[which]
            reel = np.searchsorted(borders, place, "right") - 1
            for r in np.unique(reel).tolist():
                some = reel == r
                position[which[some]] = self._reel(number, p, its, r)[place[some] - borders[r]]
        return position

    def _pass(self, number: int, pass_: int) -> _Pass:
        last = self._orders.setdefault("pass", _Last(2 * len(self.sources)))
        return last.get((number, pass_), lambda: self._draw(number, pass_))

    def _draw(self, number: int, pass_: int) -> _Pass:
        source = self.sources[number]
        turn = np.random.default_rng([self.seed, 0, number, pass_]).permutation(len(source.counts))
        begin = np.concatenate(([0], np.cumsum(source.counts[turn])))
        each, more = divmod(len(source), self.lanes)
        lanes = np.arange(self.lanes + 1)
        ends = lanes * each + np.minimum(lanes, more)
        held = np.searchsorted(begin, ends, "right") - 1  # the row group in which a lane begins
        reels = []
        for low, high, a, b in zip(ends[:-1], ends[1:], held[:-1], held[1:], strict=True):
            # The first row group of a lane, part of which is another lane's, stands alone: so the first batch
            # waits for one a lane, and lanes do not all open their next ones at a time.
            borders = np.unique(begin[a + 1 : b + 1 : self.mixed])  # row groups may be empty
            reels.append(np.concatenate(([low], borders[(borders > low) & (borders < high)], [high])))
        return _Pass(turn.astype(np.int32), begin, reels)

    def _reel(self, number: int, pass_: int, lane: int, reel: int) -> np.ndarray:
        """Positions of a reel's windows in their order."""

        def draw() -> np.ndarray:
            order, source = self._pass(number, pass_), self.sources[number]
            low, high = order.reels[lane][reel : reel + 2]
            rng = np.random.default_rng([self.seed, 1, number, pass_, lane, reel])
            at = low + rng.permutation(high - low)
            group = np.searchsorted(order.begin, at, "right") - 1
            return source.starts[order.turn[group]] + at - order.begin[group]

        last = self._orders.setdefault("reel", _Last(2 * self.lanes * len(self.sources)))
        return last.get((number, pass_, lane, reel), draw)

    # ------------------------------------------------------------ the ledger

    def expected(self, until: int | None = None) -> dict[tuple[int, int], tuple[int, int]]:
        """The ledger of steps [0, until): {(source, pass): (windows, sum of their ids modulo 2**64)}."""
        places = (self.steps if until is None else until) * self.batch
        slots = np.arange(self.lanes)
        turns = -((slots - places) // self.lanes)  # of each slot
        ledger: dict[tuple[int, int], tuple[int, int]] = {}
        for number, source in enumerate(self.sources):
            given = self._given(number, slots, turns)
            n = len(source)
            for pass_ in range(-(-int((given * self.lanes + slots).max()) // n)):
                before = -((slots - pass_ * n) // self.lanes)  # what each slot takes of earlier passes
                after = -((slots - (pass_ + 1) * n) // self.lanes)
                taken = np.clip(given, before, after) - before
                if taken.any():
                    ledger[number, pass_] = int(taken.sum()), self._sum(number, pass_, taken)
        return ledger

    def _sum(self, number: int, pass_: int, taken: np.ndarray) -> int:
        """The sum of the ids of the first `taken` (lanes,) windows that each slot takes of a pass."""
        source = self.sources[number]
        if taken.sum() == len(source):
            return int(source.sums[-1])
        total = np.zeros(1, np.uint64)
        with np.errstate(over="ignore"):
            for slot, count in enumerate(taken.tolist()):
                lane = (slot - pass_ * len(source)) % self.lanes
                borders = self._pass(number, pass_).reels[lane]
                whole = int(np.searchsorted(borders, borders[0] + count, "right")) - 1
                total += self._stretch(number, pass_, int(borders[0]), int(borders[whole]))
                if rest := int(borders[0] + count - borders[whole]):
                    ids = source.ids[self._reel(number, pass_, lane, whole)[:rest]]
                    total += ids.view(np.uint64).sum(dtype=np.uint64)
        return int(total[0])

    def _stretch(self, number: int, pass_: int, low: int, high: int) -> np.ndarray:
        """The sum of the ids of windows [low, high) of all, row groups in the order of a pass."""
        order, source = self._pass(number, pass_), self.sources[number]
        total = np.zeros(1, np.uint64)
        first, last = np.searchsorted(order.begin, [low, high], "right") - 1
        for at in range(first, min(last + 1, len(order.turn))):
            group = order.turn[at]
            a, b = max(low, order.begin[at]), min(high, order.begin[at + 1])
            if a == order.begin[at] and b == order.begin[at + 1]:
                total += source.sums[group + 1] - source.sums[group]
            elif a < b:
                ids = source.ids[source.starts[group] + np.arange(a, b) - order.begin[at]]
                total += ids.view(np.uint64).sum(dtype=np.uint64)
        return total


def backwards(numbers: np.ndarray) -> np.ndarray:
    """Each of the numbers 0 to n - 1, n a power of two, with its bits in the other order."""
    out = np.zeros_like(numbers)
    for bit in range(max(0, len(numbers).bit_length() - 1)):
        out = out << 1 | numbers >> bit & 1
    return out


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
