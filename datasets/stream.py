"""One worker's Ray Data plan: planned blocks → transform actors that read and prepare them → batches.

Every worker runs a dataset of its own over its part of the plan, instead of one `streaming_split` for all:
the plan says who reads what anyway, so nothing is left to share, and the first batch does not wait for a
coordinator that imports Ray Data before it starts the actors (2 workers on 2 cores: first batch after 4-5 s
against 8-9 s, then 350-430 MB/s against 250-310). A worker knows world size and position when it asks.
"""

import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cluster.errors import PlethoraError
from datasets import index, prepared
from datasets.ahead import THREADS
from datasets.index import Shelf
from datasets.plan import BLOCK_BYTES, Block, Plan, Rows
from datasets.windows import WindowSpec

if TYPE_CHECKING:
    import ray.data
    import torch

WAITING = 3  # blocks of a worker that wait in the object store, and as many as are being made
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Reader:
    """A transform actor: a planned block in, its prepared windows out.

    Reading sits in the same actor as the transform: a stage of its own would carry every raw byte through the
    object store once more, and the order of blocks does not depend on it.
    """

    def __init__(self, plan: Plan, shelves: list[Shelf], spec: WindowSpec, alone: bool = False) -> None:
        """alone: every block comes to this actor, so that it may begin to read the next one."""
        self.plan, self.shelves, self.spec, self.alone = plan, shelves, spec, alone
        _keep_freed_memory()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row a block (`Block`'s fields) → {modality: (n, channels, samples) float32, "window", "step",
        …}.
        """
        if len(batch["span"]) != 1:
            raise PlethoraError(
                "a transform actor was given several planned blocks at once: Ray Data merged them"
            )
        block = Block(**{name: int(column[0]) for name, column in batch.items()})
        rows = self.plan.rows(block)
        ready = [shelf.prepared for shelf in self.shelves]
        there = ("place",) if ready[0] is not None else ("row", "offset_s")
        place = self._columns(rows, ("shard", "group", "has", *there))
        more = self._columns(rows, ("subject", *(["target"] if self.shelves[0].target is not None else [])))
        if ready[0] is not None:
            windows = prepared.gather(ready, rows.source, **place, spec=self.spec)
        else:
            windows = index.gather([s.corpus for s in self.shelves], rows.source, **place, spec=self.spec)
        if self.alone and (after := self.plan.after(block)) is not None:
            self._begin(self.plan.rows(after))
        return windows | {
            "window": _pick([s.ids for s in self.plan.sources], rows.source, rows.position),
            **more,
            "source": rows.source,
            "pass": rows.pass_,
            "step": rows.step,
        }

    def _columns(self, rows: Rows, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """{name: (n, …)} of the shelves' columns, row by row."""
        return {
            name: _pick([getattr(s, name) for s in self.shelves], rows.source, rows.position)
            for name in names
        }

    def _begin(self, rows: Rows) -> None:
        """Begin to read the first row groups of a block."""
        place = self._columns(rows, ("shard", "group"))
        first = np.unique(np.stack([rows.source, *place.values()]), axis=1)[:, :THREADS]
        for source, shard, group in first.T.tolist():
            shelf = self.shelves[source]
            if shelf.prepared is not None:
                prepared.read.begin(shelf.prepared, shard, group)
            else:
                index.read.begin(shelf.corpus, shard, group, self.spec)


def _pick(columns: list[np.ndarray], source: np.ndarray, position: np.ndarray) -> np.ndarray:
    """columns[source][position], row by row."""
    out = np.empty((len(source), *columns[0].shape[1:]), columns[0].dtype)
    for number, column in enumerate(columns):
        which = source == number
        out[which] = column[position[which]]
    return out


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of the last block for the next one instead of returning it to the system:
    blocks are larger than its largest threshold, and faulting fresh pages in took half of a reader's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library decides for itself
        for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(threshold, 1 << 30)


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

    options = data_context(plan.world).execution_options
    blocks = [vars(block) for block in plan.blocks(rank)]
    if not blocks:
        return ray.data.from_items([])
    # A put into pages of the store that were used before takes a fifth of the time of one into fresh ones,
    # so that few blocks in turn are faster than many in store.
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


def batches(
    data: "ray.data.Dataset", size: int, first_step: int, per_step: int
) -> Iterator[dict[str, "torch.Tensor"]]:
    """A worker's micro-batches of `size` windows, `per_step` of them a step, checked against the planned
    step.

    Raises PlethoraError when a batch is not the one that the position calls for: training on would silently
    skip or repeat data.
    """
    # On the host: the positions checked here and counted by the ledger would else be fetched back from a
    # GPU, each time after all that it was told to do.
    given = data.iter_torch_batches(batch_size=size, drop_last=True, prefetch_batches=2, device="cpu")
    for number, batch in enumerate(given):
        want = first_step + number // per_step
        if not bool((batch["step"] == want).all()):
            raise PlethoraError(
                f"the stream delivered step {batch['step'].unique().tolist()} where {want} was due: "
                f"relaunch with --resume, and report this"
            )
        yield batch
