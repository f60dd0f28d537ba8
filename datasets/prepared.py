"""Materialised windows: an index's windows as a recipe receives them, as fixed-shape columns, read without a
transform.

    <uri>/<shard>/<group>.parquet   the accepted windows of one row group of the corpus, in the index's order:
                                    a fixed-size binary column per modality (little-endian float32 samples),
                                    and the columns that a recipe computed ahead (token ids)
    <uri>/windows.json              written last: corpus and spec hash, columns, files with their windows

The index and the plan are unchanged: the same windows come in the same order.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.cli import progress
from cluster.errors import PlethoraError
from datasets import memory
from datasets.ahead import MOST_OPEN, Ahead
from datasets.index import Index, Selection
from datasets.split import Split
from datasets.windows import WindowSpec

MANIFEST = "windows.json"
VERSION = 1
TOGETHER = 256  # windows prepared at a time
Foresee = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Prepared:
    """A complete set of materialised windows. columns: {name: (dtype, shape of one window)}."""

    uri: str
    columns: tuple[tuple[str, str, tuple[int, ...]], ...]
    counts: tuple[tuple[int, int, int], ...]  # shard, group, windows

    @property
    def windows(self) -> int:
        return sum(n for _, _, n in self.counts)


def groups(selection: Selection) -> list[tuple[int, int, int]]:
    """[(shard, group, windows)] of a selection's row groups; of accepted windows, of the files."""
    shard, group = selection.groups()
    return list(zip(shard.tolist(), group.tolist(), np.diff(selection.starts).tolist(), strict=True))


def write(index: Index, uri: str, make: Callable[[], Foresee] | None = None, actors: int = 2) -> Prepared:
    """Materialise the accepted windows of `index` at `uri` with Ray Data; a complete set is kept.

    make: called once in each actor; its result computes further columns of a batch of windows, {name: (n,
    …)}.
    """
    if storage.exists(storage.join(uri, MANIFEST)):
        return open_prepared(uri, index)
    import ray.data

    from cluster.session import data_context

    data_context()
    jobs = groups(index.selection(None, Split()))
    tasks = [{"task": number} for number in range(len(jobs))]
    if not tasks:
        raise PlethoraError(f"{index.corpus.uri} has no window of {index.spec.window_s:g} s to materialise")
    columns: dict[str, tuple[str, tuple[int, ...]]] = {}
    written = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _Writer,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(tasks))),
        fn_constructor_args=(index, uri, make),
        num_cpus=1,
    )
    with progress(len(tasks), "materialise", "row group") as bar:
        batch: Any
        for batch in written.iter_batches(batch_size=None):
            bar.update(len(batch["columns"]))
            columns |= {
                name: (kind, tuple(shape)) for name, kind, shape in json.loads(str(batch["columns"][0]))
            }
    manifest = {
        "version": VERSION,
        "corpus": index.corpus.hash,
        "spec": index.spec.hash,
        "columns": [[name, kind, list(shape)] for name, (kind, shape) in sorted(columns.items())],
        "groups": [list(job) for job in jobs],
    }
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    return open_prepared(uri, index)


class _Writer:
    def __init__(self, index: Index, uri: str, make: Callable[[], Foresee] | None) -> None:
        self.index, self.uri = index, uri
        self.selection = index.selection(None, Split())
        self.jobs = groups(self.selection)
        memory.keep_freed()
        self.foresee = make() if make is not None else None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import pyarrow.parquet as pq

        columns: list[Any] = []
        for task in batch["task"].tolist():
            shard, group, _ = self.jobs[task]
            rows = self.selection.rows(slice(*self.selection.starts[task : task + 2]))
            parts: list[dict[str, np.ndarray]] = []
            for low in range(0, len(rows), TOGETHER):
                some = rows[low : low + TOGETHER]
                loaded = self.index.load(some)
                more = self.foresee(loaded | {"window": self.index.ids(some)}) if self.foresee else {}
                parts.append({m: x for m, x in loaded.items() if not m.startswith("has_")} | more)
            whole = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
            table = pa.table({name: _binary(values) for name, values in whole.items()})
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="none", use_dictionary=False, write_page_checksum=True)
            storage.write_bytes(_file(self.uri, shard, group), sink.getvalue().to_pybytes())
            columns = [[n, v.dtype.newbyteorder("<").str, list(v.shape[1:])] for n, v in whole.items()]
        return {"columns": np.array([json.dumps(columns)] * len(batch["task"]), object)}


def _binary(values: np.ndarray) -> pa.Array:
    """(n, …) as n fixed-size binaries, little-endian."""
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    size = plain.nbytes // len(plain)
    return pa.Array.from_buffers(pa.binary(size), len(plain), [None, pa.py_buffer(plain)])


def _file(uri: str, shard: int, group: int) -> str:
    return storage.join(uri, f"{shard:05d}", f"{group:05d}.parquet")


def open_prepared(uri: str, index: Index) -> Prepared:
    """The materialised windows at `uri`. PlethoraError if there are none, or if they are not the windows of
    `index`.
    """
    where = storage.join(uri, MANIFEST)
    if not storage.exists(where):
        raise PlethoraError(
            f"{uri} holds no materialised windows: run `python -m pretrain materialize` with this run file, "
            "or set stream.materialised = false"
        )
    manifest = storage.read_json(where)
    wanted = {"version": VERSION, "corpus": index.corpus.hash, "spec": index.spec.hash}
    counts = groups(index.selection(None, Split()))
    same = manifest.get("groups") == [list(its) for its in counts]
    if not same or any(manifest.get(name) != value for name, value in wanted.items()):
        raise PlethoraError(
            f"{uri} holds windows of another corpus, spec or version: delete it, materialise again"
        )
    columns = tuple((name, kind, tuple(shape)) for name, kind, shape in manifest["columns"])
    return Prepared(storage.normalise(uri), columns, tuple(counts))


def _load(prepared: Prepared, shard: int, group: int) -> dict[str, np.ndarray]:
    """{column: (windows, …)} of one file, without a copy if its samples are contiguous."""
    import pyarrow.parquet as pq

    where = _file(prepared.uri, shard, group)
    try:
        data = pa.BufferReader(storage.read_bytes(where))
        table = pq.read_table(data, page_checksum_verification=True)
        out = {}
        for name, kind, shape in prepared.columns:
            column = _whole(table[name])
            buffer = column.buffers()[1]
            size = np.dtype(kind).itemsize * int(np.prod(shape))
            if column.type != pa.binary(size):
                raise pa.ArrowInvalid(f"{name} is {column.type}")
            flat = np.frombuffer(buffer, np.uint8)[
                column.offset * size : (column.offset + len(column)) * size
            ]
            out[name] = flat.view(kind).reshape(len(column), *shape)
    except (pa.ArrowException, OSError, KeyError) as broken:
        raise PlethoraError(f"{where} is corrupt: delete {prepared.uri}, materialise again") from broken
    return out


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; combine_chunks would copy even a single chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _spill(columns: dict[str, np.ndarray], room: float) -> tuple[dict[str, np.ndarray], int]:
    """The columns in memory or, if they do not fit, in unnamed files that are mapped."""
    size = sum(x.nbytes for x in columns.values())
    if size <= room:
        return columns, size
    mapped: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        with tempfile.TemporaryFile(prefix="plethora-") as file:
            values.tofile(file)
            mapped[name] = np.memmap(file, values.dtype, "r", 0, values.shape)
    return mapped, 0


read = Ahead(_load, MOST_OPEN, _spill)  # for streams, which release results


def gather(
    prepared: list[Prepared],
    source: np.ndarray,
    shard: np.ndarray,
    group: np.ndarray,
    place: np.ndarray,
    has: np.ndarray,
    spec: WindowSpec,
) -> dict[str, np.ndarray]:
    """Like `datasets.index.gather`, for materialised windows: `place` (n,) is each one's place in its
    file."""
    out = {name: np.empty((len(place), *shape), kind) for name, kind, shape in prepared[0].columns}
    files, inverse = np.unique(np.stack([source, shard, group]), axis=1, return_inverse=True)
    for number, table in enumerate(read.each([(prepared[s], sh, g) for s, sh, g in files.T.tolist()])):
        which = np.flatnonzero(inverse.ravel() == number)
        for name, values in out.items():
            values[which] = table[name][place[which]]
    for bit, signal in enumerate(spec.signals):
        if not signal.required:
            out[f"has_{signal.modality}"] = (has >> bit & 1) == 1
    return out
