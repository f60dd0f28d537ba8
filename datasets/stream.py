"""One worker's part of the plan: planned blocks → transform actors that read and prepare them → batches.

Every worker runs a dataset of its own over its part of the plan, instead of one `streaming_split` for all:
the plan says who reads what anyway, so nothing is left to share, and the first batch does not wait for a
coordinator that imports Ray Data before it starts the actors. A worker knows world size and position when it
asks.

Without transform actors a worker reads for itself, in a thread: nothing goes through the object store and no
process has to start, but what preparing takes, it takes from the worker's own cores.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cluster.errors import PlethoraError
from datasets import index, memory, prepared
from datasets.ahead import Ahead
from datasets.index import Shelf
from datasets.plan import BLOCK_BYTES, Block, Plan, Rows
from datasets.windows import WindowSpec

if TYPE_CHECKING:
    import ray.data
    import torch

T = TypeVar("T")
WAITING = 3  # blocks of a worker that wait in the object store, and as many as are being made


class Reader:
    """A transform actor: a planned block in, its prepared windows out.

    Reading sits in the same actor as the transform: a stage of its own would carry every raw byte through the
    object store once more, and the order of blocks does not depend on it.
    """

    def __init__(self, plan: Plan, shelves: list[Shelf], spec: WindowSpec, alone: bool = False) -> None:
        """alone: every block comes to this actor, so that it may begin to read the next one."""
        self.plan, self.shelves, self.spec, self.alone = plan, shelves, spec, alone
        memory.keep_freed()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row a block (`Block`'s fields) → {modality: (n, channels, samples) float32, "window", "step",
        …}.
        """
        if len(batch["rank"]) != 1:
            raise PlethoraError(
                "a transform actor was given several planned blocks at once: Ray Data merged them"
            )
        block = Block(**{name: int(column[0]) for name, column in batch.items()})
        rows = self.plan.rows(block)
        ready = [s.prepared for s in self.shelves if s.prepared is not None]
        there = ("place",) if ready else ("row", "offset_s")
        place = self._columns(rows, ("shard", "group", "has", *there))
        names = ("id", "subject", *(["target"] if self.shelves[0].target is not None else []))
        more = self._columns(rows, names)
        if ready:
            windows = prepared.gather(ready, rows.source, **place, spec=self.spec)
        else:
            windows = index.gather(
                [s.corpus for s in self.shelves], rows.source, **place, spec=self.spec, read=index.held
            )
        self._let_go(block)
        if self.alone and (after := self.plan.after(block)) is not None:
            self._begin(self.plan.rows(after))
        return windows | {
            "window": more.pop("id"),
            **more,
            "source": rows.source,
            "pass": rows.pass_,
            "step": rows.step,
        }

    def _columns(self, rows: Rows, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """{name: (n, …)} of the shelves' columns, row by row."""
        out: dict[str, np.ndarray] = {}
        for number, shelf in enumerate(self.shelves):
            which = rows.source == number
            found = shelf.windows(rows.position[which])
            for name in names:
                values = getattr(found, name)
                out.setdefault(name, np.empty((len(which), *values.shape[1:]), values.dtype))[which] = values
        return out

    def _let_go(self, block: Block) -> None:
        """Keep no row groups but those from which later blocks take windows."""
        wanted: dict[Ahead, list[tuple]] = {index.held: [], prepared.read: []}
        places = [shelf.groups() for shelf in self.shelves]
        for source, number in self.plan.still_open(block):
            shelf = self.shelves[source]
            shard, group = (int(x[number]) for x in places[source])
            if shelf.prepared is not None:
                wanted[prepared.read].append((shelf.prepared, shard, group))
            else:
                wanted[index.held].append((shelf.corpus, shard, group, self.spec))
        for cache, keys in wanted.items():
            cache.keep(keys)

    def _begin(self, rows: Rows) -> None:
        """Begin to read the row groups of a block that are not open yet."""
        place = self._columns(rows, ("shard", "group"))
        for source, shard, group in np.unique(np.stack([rows.source, *place.values()]), axis=1).T.tolist():
            shelf = self.shelves[source]
            if shelf.prepared is not None:
                prepared.read.begin(shelf.prepared, shard, group)
            else:
                index.held.begin(shelf.corpus, shard, group, self.spec)


def dataset(
    plan: Plan,
    rank: int,
    shelves: list[Shelf],
    spec: WindowSpec,
    actors: int = 1,
    reader: type[Reader] = Reader,
    cpus: float = 1,
) -> "ray.data.Dataset":
    """The blocks of `rank` as a lazy Ray Dataset: one planned block = one Ray Data block, in planned order.

    `actors`: transform actors, `cpus` logical CPUs each (0: the worker's own share holds theirs). An empty
    plan (a run restarted after its last commit) gives an empty dataset.
    """
    import ray.data

    from cluster.session import data_context

    options = data_context().execution_options
    blocks = [vars(block) for block in plan.blocks(rank)]
    if not blocks:
        return ray.data.from_items([])
    # Each worker's dataset within its share: Ray Data lets each take half of the store, so that two would
    # spill. And a put into pages of the store that were used before takes a fifth of the time of one into
    # fresh ones, so that few blocks in turn are faster than many in store.
    share = ray.cluster_resources()["object_store_memory"] / 2 / plan.world
    room = min(share, (actors + WAITING) * BLOCK_BYTES)
    options.resource_limits = ray.data.ExecutionResources(object_store_memory=room)
    return ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
        reader,
        batch_size=None,  # a block in, a block out
        compute=ray.data.ActorPoolStrategy(size=actors),
        fn_constructor_args=(plan, shelves, spec),
        fn_constructor_kwargs={"alone": True} if actors == 1 else {},
        num_cpus=cpus,
    )


def own(plan: Plan, rank: int, read: Reader) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of `rank`, in planned order, each read by a thread of this process while the one before it
    is used. One thread, and one block ahead: the first has the cores to itself, and comes the sooner.
    """
    with ThreadPoolExecutor(1, "stream") as pool:
        coming: deque[Future] = deque()
        for block in plan.blocks(rank):
            coming.append(pool.submit(read, {name: np.array([value]) for name, value in vars(block).items()}))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def cut(blocks: Iterable[dict[str, np.ndarray]], size: int) -> Iterator[dict[str, "torch.Tensor"]]:
    """Batches of `size` rows out of blocks that follow each other; only a batch over a border is a copy."""
    import torch

    held: dict[str, np.ndarray] = {}  # less than a batch
    for block in blocks:
        rows, first = len(block["step"]), size - len(held["step"]) if held else 0
        if held:
            held = {name: np.concatenate([x, block[name][:first]]) for name, x in held.items()}
            if rows < first:
                continue
            yield {name: torch.from_numpy(x) for name, x in held.items()}
        last = rows - (rows - first) % size
        for low in range(first, last, size):
            yield {name: torch.from_numpy(x[low : low + size]) for name, x in block.items()}
        held = {name: x[last:] for name, x in block.items()} if last < rows else {}


def batches(
    plan: Plan,
    rank: int,
    shelves: list[Shelf],
    spec: WindowSpec,
    size: int,
    per_step: int,
    actors: int = 1,
    cpus: float = 1,
    reader: type[Reader] = Reader,
) -> Iterator[dict[str, "torch.Tensor"]]:
    """A worker's micro-batches of `size` windows, `per_step` of them a step, from the plan's first step on;
    reading begins at once. `actors`, `cpus`: see `dataset`; no actor: this process reads.

    Raises PlethoraError when a batch is not the one that the position calls for: training on would silently
    skip or repeat data.
    """
    given: Iterator[dict[str, torch.Tensor]]
    if actors:
        data = dataset(plan, rank, shelves, spec, actors, reader, cpus)
        # On the host: the positions checked here and counted by the ledger would else be fetched back from a
        # GPU, each time after all that it was told to do.
        batched: Any = data.iter_torch_batches(
            batch_size=size, drop_last=True, prefetch_batches=2, device="cpu"
        )
        given = iter(batched)
    else:
        given = cut(own(plan, rank, reader(plan, shelves, spec, alone=True)), size)
    return checked(begun(given), plan.start, per_step)


def begun(items: Iterator[T]) -> Iterator[T]:
    """`items`, whose first is made in a thread from now on, while the caller does something else."""
    pool = ThreadPoolExecutor(1, "begun")
    first = pool.submit(lambda: list(islice(items, 1)))
    pool.shutdown(wait=False)

    def rest() -> Iterator[T]:
        yield from first.result()
        yield from items

    return rest()


def checked(
    given: Iterable[dict[str, "torch.Tensor"]], first_step: int, per_step: int
) -> Iterator[dict[str, "torch.Tensor"]]:
    """`given`, each of them of the step that is due."""
    for number, batch in enumerate(given):
        want = first_step + number // per_step
        if not bool((batch["step"] == want).all()):
            raise PlethoraError(
                f"the stream delivered step {batch['step'].unique().tolist()} where {want} was due: "
                f"relaunch with --resume, and report this"
            )
        yield batch
