"""One worker's part of the plan: planned blocks → transform actors that read and prepare them → batches.

Every worker runs its own datasets over its part of the plan, instead of one `streaming_split` for all: the
plan already says who reads what, so there is nothing to share and no coordinator to wait for. A worker passes
world size and position when it asks.

A transform actor reads a part of the worker's lanes and is one Ray Dataset, so each row group is open in one
actor only; a pool that takes blocks in turn would read each row group in every actor. While the actors start
(Ray Data's import takes seconds) the worker reads the first blocks itself. Without actors it reads all blocks
in a thread: nothing goes through the object store, but preparation uses the worker's own cores. Order and
windows are bit-identical.
"""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cluster.errors import PlethoraError
from datasets import index, memory, prepared, raw
from datasets.ahead import Ahead
from datasets.index import Selection
from datasets.plan import BLOCK_BYTES, WHOLE, Block, Part, Plan, Rows
from datasets.windows import WindowSpec

if TYPE_CHECKING:
    import ray.data
    import torch

T = TypeVar("T")
WAITING = 3  # blocks per actor that wait in the object store, and as many in progress
TASKS = 256  # per actor at most: Ray Data puts each into the object store before the first one starts


class Reader:
    """Reads and prepares the planned blocks of worker `rank`: whole blocks, or the lanes of `part`.

    As a transform actor it receives ranges of block numbers. Reading runs in the same actor as the transform:
    a separate stage would carry every raw byte through the object store once more, and the order of blocks
    does not depend on it.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        selections: list[Selection],
        spec: WindowSpec,
        as_raw: bool = False,
        part: Part = WHOLE,
    ) -> None:
        """as_raw: windows stay raw (`datasets.raw`), unless they are materialised."""
        self.plan, self.rank, self.selections, self.spec, self.part = plan, rank, selections, spec, part
        self.as_raw = as_raw
        self._last: tuple[int, Block, Rows] | None = None
        self.places = [selection.groups() for selection in selections]
        memory.keep_freed()

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Blocks [first, last), each as a table of one row, which Ray Data neither splits nor merges."""
        for first, last in zip(batch["first"].tolist(), batch["last"].tolist(), strict=True):
            for number in range(first, last):
                yield {name: x[None] for name, x in self.read(number).items()}

    def read(self, number: int, ahead: bool = True) -> dict[str, np.ndarray]:
        """{modality: (n, channels, samples) float32, "window", "step", "at", …} of block `number`. ahead:
        start reading what the next block needs.
        """
        block, rows = self._planned(number)
        if not len(rows.at):
            return {"at": rows.at}
        ready = [selection.prepared for selection in self.selections if selection.prepared is not None]
        there = ("place",) if ready else ("row", "offset_s")
        place = self._columns(rows, ("shard", "group", "has", *there))
        names = ("id", "subject", *(["target"] if self.selections[0].target is not None else []))
        more = self._columns(rows, names)
        corpora = [selection.corpus for selection in self.selections]
        if ready:
            windows = prepared.gather(ready, rows.source, **place, spec=self.spec)
        else:
            parts = index.opened(corpora, rows.source, **place, spec=self.spec, read=index.row_groups)
            make = raw.gather if self.as_raw else index.gather
            windows = make(parts, len(rows.at), self.spec)
        self._let_go(block)
        if ahead and number + 1 < self.plan.count():
            self._begin(self._planned(number + 1)[1])
        return windows | {
            "window": more.pop("id"),
            **more,
            "source": rows.source,
            "pass": rows.pass_,
            "step": rows.step,
            "at": rows.at,
        }

    def _planned(self, number: int) -> tuple[Block, Rows]:
        """A block and its windows; needed to read it, and earlier to prefetch its row groups."""
        if self._last is None or self._last[0] != number:
            block = self.plan.block(self.rank, number)
            self._last = number, block, self.plan.rows(block, self.part)
        return self._last[1], self._last[2]

    def _columns(self, rows: Rows, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """{name: (n, …)} of the selections' columns, row by row."""
        out: dict[str, np.ndarray] = {}
        for number, selection in enumerate(self.selections):
            which = rows.source == number
            found = selection.windows(rows.position[which])
            for name in names:
                values = getattr(found, name)
                out.setdefault(name, np.empty((len(which), *values.shape[1:]), values.dtype))[which] = values
        return out

    def _let_go(self, block: Block) -> None:
        """Drop the row groups from which no later block takes windows."""
        wanted: dict[Ahead, list[tuple]] = {index.row_groups: [], prepared.read: []}
        for opened in self.plan.still_open(block, self.part):
            cache, key = self._cached(*opened)
            wanted[cache].append(key)
        for cache, keys in wanted.items():
            cache.keep(keys)

    def _begin(self, rows: Rows) -> None:
        """Start reading the row groups of a block that are not open yet, in the order of first use."""
        for number in dict.fromkeys(zip(rows.source.tolist(), self._groups(rows), strict=True)):
            cache, key = self._cached(*number)
            cache.begin(*key)

    def _groups(self, rows: Rows) -> list[int]:
        """(n,) each window's row group: its place in its source's `counts`."""
        group = np.empty(len(rows.source), np.int64)
        for number, source in enumerate(self.plan.sources):
            which = rows.source == number
            group[which] = np.searchsorted(source.starts, rows.position[which], "right") - 1
        return group.tolist()

    def _cached(self, source: int, number: int) -> tuple[Ahead, tuple]:
        """The cache that holds a row group, and its key there."""
        selection = self.selections[source]
        shard, group = (int(each[number]) for each in self.places[source])
        if selection.prepared is not None:
            return prepared.read, (selection.prepared, shard, group)
        return index.row_groups, (selection.corpus, shard, group, self.spec)


@dataclass(frozen=True)
class Actors:
    """A worker's transform actors: how many, CPUs each (0: the worker's share includes theirs), the MB of
    prepared windows that the worker reads itself while they start, and labels of the nodes to run on.
    """

    count: int = 1
    cpus: float = 1
    self_read_mb: float = 500
    on: Mapping[str, str] = field(default_factory=dict)


def dataset(reader: type[Reader], made_of: tuple, first: int, actors: Actors) -> "ray.data.Dataset":
    """The blocks from number `first` on that one transform actor, `reader(*made_of)`, reads: a lazy Ray
    Dataset with one row per block, in planned order.
    """
    import ray.data

    from cluster.session import data_context

    plan, *_, part = made_of
    context = data_context()
    context.target_max_block_size = 1  # each result is a separate block, whatever its size
    # A worker that first reads blocks itself, slowly, is no hang: the actors wait for it, results ready.
    context.execution_no_progress_timeout_s = -1
    # Each dataset stays within its share: Ray Data lets each take half of the store, so that two would spill.
    # A put into store pages that were used before takes a fifth of the time of one into fresh pages, so
    # reusing few blocks is faster than keeping many.
    share = ray.cluster_resources()["object_store_memory"] / 2 / plan.world / part.count
    room = min(share, (1 + WAITING) * BLOCK_BYTES / part.count)
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=room)
    count = plan.count() - first
    borders = [first + count * task // min(count, TASKS) for task in range(min(count, TASKS) + 1)]
    tasks = [{"first": low, "last": high} for low, high in pairwise(borders)]
    where: Any = {"label_selector": dict(actors.on)} if actors.on else {}  # Ray has no annotation for it
    return ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        reader,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=1),
        fn_constructor_args=made_of,
        num_cpus=actors.cpus,
        **where,
    )


def delivered(
    made: "Callable[[], list[ray.data.Dataset]]", after: threading.Event
) -> Iterator[dict[str, np.ndarray]]:
    """The blocks that transform actors return, reassembled. The actors start `after`: their imports would
    take CPU time from the first batch.
    """
    after.wait()
    how: Any = {"batch_size": None, "batch_format": "numpy", "prefetch_batches": 1}
    # in threads, or each actor would start only after the previous one has returned a block
    each = [threaded(iter(data.iter_batches(**how))) for data in made()]
    for parts in zip(*each, strict=True):
        yield _whole([{name: x[0] for name, x in part.items()} for part in parts])


def _whole(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """A block assembled from each actor's part, in the order of the block ("at")."""
    parts = [part for part in parts if len(part["at"])]
    if len(parts) == 1:
        return {name: x for name, x in parts[0].items() if name != "at"}
    names = [name for name in parts[0] if name != "at"]
    return {name: _joined([part[name] for part in parts], [part["at"] for part in parts]) for name in names}


def _joined(parts: list[np.ndarray], at: list[np.ndarray]) -> np.ndarray:
    """(n, …) with the rows of each part at the places `at`. Raw windows may be longer in one part than in
    another: they are padded with zeros.
    """
    rooms = {x.shape[1:] for x in parts}
    room = np.empty if len(rooms) == 1 else np.zeros
    out = room((sum(map(len, at)), *np.max(list(rooms), axis=0)), parts[0].dtype)
    for rows, x in zip(at, parts, strict=True):
        if x.shape[1:] == out.shape[1:]:
            out[rows] = x
        else:
            out[rows, ..., : x.shape[-1]] = x
    return out


def self_read(reader: Reader, count: int, first: threading.Event) -> Iterator[dict[str, np.ndarray]]:
    """The first `count` blocks, read by this process; `first` is set when the first one is ready."""
    try:
        for number in range(count):
            block = _whole([reader.read(number, ahead=number + 1 < count)])
            first.set()
            yield block
        for cache in (index.row_groups, prepared.read):  # the actors continue
            cache.clear()
    finally:
        first.set()


def self_read_blocks(plan: Plan, actors: Actors) -> int:
    """How many blocks a worker reads itself: all, or those of the first `self_read_mb`."""
    windows = actors.self_read_mb * 1e6 / plan.window_bytes
    number = 0
    while number < plan.count() and plan.block(0, number).last - plan.start * plan.share < windows:
        number += 1
    return number if actors.count else plan.count()


def cut(blocks: Iterable[dict[str, np.ndarray]], size: int) -> Iterator[dict[str, "torch.Tensor"]]:
    """Batches of `size` rows from consecutive blocks; only a batch that spans two blocks is a copy."""
    held: dict[str, np.ndarray] = {}  # less than a batch
    for block in blocks:
        rows, first = len(block["step"]), size - len(held["step"]) if held else 0
        if held:
            order = np.split(np.arange(min(size, len(held["step"]) + rows)), [len(held["step"])])
            held = {name: _joined([x, block[name][:first]], order) for name, x in held.items()}
            if rows < first:
                continue
            yield {name: _tensor(x) for name, x in held.items()}
        last = rows - (rows - first) % size
        for low in range(first, last, size):
            yield {name: _tensor(x[low : low + size]) for name, x in block.items()}
        held = {name: x[last:] for name, x in block.items()} if last < rows else {}


def _tensor(x: np.ndarray) -> "torch.Tensor":
    import torch

    if x.flags.writeable:
        return torch.from_numpy(x)
    with warnings.catch_warnings():  # object store data is read-only, and nobody writes to it
        warnings.simplefilter("ignore")
        return torch.from_numpy(x)


def batches(
    plan: Plan,
    rank: int,
    selections: list[Selection],
    spec: WindowSpec,
    size: int,
    per_step: int,
    actors: Actors = Actors(),
    as_raw: bool = False,
    reader: type[Reader] = Reader,
) -> Iterator[dict[str, "torch.Tensor"]]:
    """A worker's micro-batches of `size` windows, `per_step` per step, from the plan's first step on; reading
    starts at once. as_raw: raw windows (`datasets.raw`), unless they are materialised.

    Raises PlethoraError if a batch is not the one due at this position (training on it would silently skip or
    repeat data), or if there are more actors than lanes for them.
    """
    first = self_read_blocks(plan, actors)
    here = threading.Event()
    given = threaded(self_read(reader(plan, rank, selections, spec, as_raw), first, here))
    if first < plan.count():
        lanes = plan.slots(rank)
        if len(lanes) < actors.count:
            raise PlethoraError(
                f"stream.actors = {actors.count} is more than the {len(lanes)} lanes that a worker reads: "
                f"raise stream.lanes = {plan.lanes}, or lower stream.actors"
            )
        made_of = [(plan, rank, selections, spec, as_raw, Part(k, actors.count)) for k in range(actors.count)]
        coming = delivered(lambda: [dataset(reader, args, first, actors) for args in made_of], here)
        given = chain(given, threaded(coming))
    return checked(cut(given, size), plan.start, per_step)


def threaded(items: Iterator[T]) -> Iterator[T]:
    """`items`, each made in a thread while the previous one is used; the first one starts now."""
    pool = ThreadPoolExecutor(1, "stream")  # one: the first item has the cores to itself and arrives sooner
    first = pool.submit(lambda: list(islice(items, 1)))

    def each() -> Iterator[T]:
        coming = first
        try:
            while item := coming.result():
                coming = pool.submit(lambda: list(islice(items, 1)))
                yield item[0]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return each()


def checked(
    given: Iterable[dict[str, "torch.Tensor"]], first_step: int, per_step: int
) -> Iterator[dict[str, "torch.Tensor"]]:
    """`given`, with each batch checked to be of the step that is due."""
    for number, batch in enumerate(given):
        want = first_step + number // per_step
        if not bool((batch["step"] == want).all()):
            raise PlethoraError(
                f"the stream delivered step {batch['step'].unique().tolist()} where {want} was due: "
                f"relaunch with --resume, and report this"
            )
        yield batch
