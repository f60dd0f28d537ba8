"""The windows of a corpus as an index stores them: two memory-mapped files, so that all processes of a
machine share the pages.

    <folder>/rows.arrow      one entry per run: windows of one corpus row, each a hop after the previous one
    <folder>/windows.arrow   one entry per window, run after run: its verdict
    <folder>/index.json      written last: version, counts, the files' SHA-256

Both are Arrow IPC files of one record batch, uncompressed: each column is contiguous in the file.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.errors import PlethoraError
from cluster.scratch import filling
from datasets.judge import VERDICTS, schema
from datasets.windows import WindowSpec

VERSION = 3  # of an index's content and files; an index of another version is rebuilt
MARK, FILES = "index.json", ("rows.arrow", "windows.arrow")
OK = VERDICTS.index("ok")
CHUNK = 1 << 20  # windows processed at a time: bounds memory
UNUSED_S = 7 * 86400.0  # a machine's copy of a bucket's index is removed when unused for so long
NAMES = pa.dictionary(pa.int32(), pa.large_string())  # 64-bit offsets: no number of names is too large
RUNS = pa.schema(
    [
        ("shard", pa.int32()),
        ("group", pa.int32()),
        ("row", pa.int32()),
        ("first", pa.int64()),  # number of the run's first window; it ends where the next run begins
        ("offset_s", pa.float64()),  # of that window within the row
        ("start_s", pa.float64()),  # of that window within the record
        ("subject", NAMES),  # a name may have several codes
        ("record", NAMES),
    ]
)


def columns(spec: WindowSpec) -> pa.Schema:
    """The schema of windows.arrow: `judge.schema` without places and names, verdicts as codes (of
    `VERDICTS`); quality is NaN if unknown.
    """
    fields = [f for f in schema(spec) if f.name not in RUNS.names]
    return pa.schema([(f.name, pa.int8() if pa.types.is_string(f.type) else f.type) for f in fields])


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The windows of one index, in order of their places. Window k of a run starts `hop_s` · k after the
    run's first window.

    runs: as `RUNS`; windows: as `columns`. home, checksums: the folder of these files, and their content;
    such a catalogue is pickled as their names, one in memory as its data.
    """

    runs: pa.RecordBatch
    windows: pa.RecordBatch
    hop_s: float
    home: str | None = None
    checksums: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.home is not None:
            return mapped, (self.home, self.checksums, self.hop_s)
        return Catalogue, (self.runs, self.windows, self.hop_s)

    def __len__(self) -> int:
        return self.windows.num_rows

    def run(self, name: str) -> np.ndarray:
        """(runs,) a column of the runs (for names, their codes); not copied."""
        column = self.runs.column(name)
        return (column.indices if pa.types.is_dictionary(column.type) else column).to_numpy()

    def window(self, name: str) -> np.ndarray:
        """(n,) a non-boolean column of the windows; not copied."""
        return self.windows.column(name).to_numpy()

    def run_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) the run of each window."""
        return np.searchsorted(self.run("first"), rows, "right") - 1

    def begin(self, runs: np.ndarray) -> np.ndarray:
        """(n,) int64 first window of each of these runs; for the run after the last one, the number of
        windows."""
        first = self.run("first")
        begin = np.full(len(runs), len(self), np.int64)
        begin[runs < len(first)] = first[runs[runs < len(first)]]
        return begin

    def offsets(self, rows: np.ndarray, run: np.ndarray) -> np.ndarray:
        """(n,) start of each window within its corpus row, s, given their runs."""
        return self.run("offset_s")[run] + (rows - self.run("first")[run]) * self.hop_s

    @cached_property
    def edges(self) -> np.ndarray:
        """(row groups + 1,) int32: the first run of each row group of the corpus, and the number of runs."""
        shard, group = self.run("shard"), self.run("group")
        change = (shard[1:] != shard[:-1]) | (group[1:] != group[:-1])
        inner = np.flatnonzero(change) + 1
        return np.concatenate(([0], inner, [len(shard)]) if len(shard) else ([0],)).astype(np.int32)

    @property
    def subjects(self) -> list[str]:
        """The subject name of each code."""
        return self.runs.column("subject").dictionary.to_pylist()

    @cached_property
    def keys(self) -> np.ndarray:
        """(codes,) int64: the first half of each subject's name."""
        return np.array([int(s[:16], 16) for s in self.subjects], np.uint64).view(np.int64)

    def part(self, a: int, b: int) -> "Catalogue":
        """The windows of row groups [a, b); not copied."""
        low, high = self.edges[[a, b]].tolist()
        begin, end = self.begin(self.edges[[a, b]]).tolist()
        at, runs = RUNS.get_field_index("first"), self.runs.slice(low, high - low)
        runs = runs.set_column(at, RUNS.field(at), pa.array(runs.column(at).to_numpy() - begin))
        return Catalogue(runs, self.windows.slice(begin, end - begin), self.hop_s)

    def stretches(self) -> Iterator[tuple[int, int]]:
        """Consecutive ranges [a, b) of row groups that hold about `CHUNK` windows each."""
        begin = self.begin(self.edges)
        at = 0
        while at < len(begin) - 1:
            to = int(np.searchsorted(begin, begin[at] + CHUNK, "right")) - 1
            to = max(at + 1, min(to, len(begin) - 1))
            yield at, to
            at = to


def from_table(table: pa.Table, spec: WindowSpec) -> Catalogue:
    """The in-memory catalogue of a table as `judge.schema`, whose strings may be codes."""
    hop, n = spec.hop_s or spec.window_s, table.num_rows
    place = [table[c].to_numpy() for c in ("shard", "group", "row")]
    offset, start = table["offset_s"].to_numpy(), table["start_s"].to_numpy()
    names = [_coded(table[c]) for c in ("subject", "record")]
    codes = [c.indices.to_numpy() for c in names]
    change = np.ones(n, bool)  # a window that starts a run
    change[1:] = np.any([x[1:] != x[:-1] for x in (*place, *codes)], axis=0)
    first = np.flatnonzero(change)
    its = np.cumsum(change) - 1
    later = (np.arange(n) - first[its]) * hop
    odd = (offset != offset[first][its] + later) | (start != start[first][its] + later)
    change |= np.bincount(its[odd], minlength=len(first))[its] > 0  # made by hand: each window a run
    first = np.flatnonzero(change)
    runs = [pa.array(x[first]) for x in place]
    runs += [pa.array(x, t) for x, t in ((first, pa.int64()), (offset[first], None), (start[first], None))]
    for column, code in zip(names, codes, strict=True):
        words = column.dictionary.cast(pa.large_string())
        runs.append(pa.DictionaryArray.from_arrays(pa.array(code[first], pa.int32()), words))
    arrays: list[pa.Array] = []
    for field in columns(spec):
        column = table[field.name]
        if field.type == pa.int8():
            arrays.append(_verdicts(column))
        elif field.type == pa.float32():
            arrays.append(pa.array(np.asarray(column.to_numpy(), np.float32)))  # null: NaN
        else:
            arrays.append(_one(column))
    return Catalogue(
        pa.RecordBatch.from_arrays(runs, schema=RUNS),
        pa.RecordBatch.from_arrays(arrays, schema=columns(spec)),
        hop,
    )


def to_table(kept: Catalogue, spec: WindowSpec) -> pa.Table:
    """As `judge.schema`, strings as codes: the inverse of `from_table`."""
    n, known = len(kept), kept.runs.num_rows
    lengths = np.diff(kept.begin(np.arange(known + 1))) if n else np.empty(0, int)
    run = np.repeat(np.arange(known), lengths)
    later = (np.arange(n) - kept.run("first")[run]) * kept.hop_s
    out: dict[str, Any] = {}
    for field in schema(spec):
        name = field.name
        if name in ("subject", "record"):
            words = _coded(pa.chunked_array([kept.runs.column(name).dictionary.cast(pa.string())]))
            codes = words.indices.to_numpy()[kept.run(name)[run]]
            out[name] = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), words.dictionary)
        elif pa.types.is_string(field.type):
            codes = pa.array(kept.window(name), pa.int32())
            out[name] = pa.DictionaryArray.from_arrays(codes, pa.array(VERDICTS))
        elif name == "quality":
            out[name] = pa.array(kept.window(name), from_pandas=True)
        elif name in RUNS.names:
            values = kept.run(name)[run]
            out[name] = values + later if name in ("offset_s", "start_s") else values
        else:
            out[name] = kept.windows.column(name)
    return pa.table(out)


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else whole.chunk(0)


def _coded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    if pa.types.is_dictionary(column.type):
        return _one(column.unify_dictionaries())
    return _one(column.dictionary_encode())


def _verdicts(column: pa.ChunkedArray) -> pa.Array:
    coded = _coded(column)
    known = pc.index_in(coded.dictionary, pa.array(VERDICTS))
    if known.null_count:
        raise ValueError(f"verdicts are {', '.join(VERDICTS)}, not {coded.dictionary.to_pylist()}")
    return known.take(coded.indices).cast(pa.int8())


# ---------------------------------------------------------------- files


def opened(home: str, hop_s: float) -> Catalogue:
    """The index in folder `home` (a URI); reads its files once to verify them. PlethoraError if they are
    damaged.
    """
    home = storage.normalise(home)
    corrupt = PlethoraError(f"{home} is corrupt: delete it, the next run rebuilds it")
    try:
        mark = storage.read_json(storage.join(home, MARK))
        checksums = tuple(str(mark["sha256"][name]) for name in FILES)
        counts = int(mark["runs"]), int(mark["windows"])
    except (PlethoraError, KeyError, TypeError, ValueError) as broken:
        raise corrupt from broken
    folder = _near(home, checksums)
    if checksums_of(folder) != checksums:
        mapped.cache_clear()  # this process may have mapped the damaged file
        if not storage.is_remote(home):
            raise corrupt
        if checksums_of(_near(home, checksums, again=True)) != checksums:  # damaged at the source
            raise corrupt
    found = mapped(home, checksums, hop_s)
    if (found.runs.num_rows, len(found)) != counts:
        raise corrupt
    return found


@functools.lru_cache(maxsize=16)
def mapped(home: str, checksums: tuple[str, ...], hop_s: float) -> Catalogue:
    """The files of folder `home`, mapped: once per process."""
    folder = _near(home, checksums)
    try:
        runs, windows = (pa.ipc.open_file(pa.memory_map(str(folder / f))).get_batch(0) for f in FILES)
    except (pa.ArrowException, OSError) as broken:
        raise PlethoraError(f"{home} is corrupt: delete it, the next run rebuilds it") from broken
    return Catalogue(runs, windows, hop_s, home, checksums)


def in_memory(folder: Path, hop_s: float) -> Catalogue:
    """The files of a local folder, which may disappear."""
    runs, windows = (pa.ipc.open_file((folder / name).read_bytes()).get_batch(0) for name in FILES)
    return Catalogue(runs, windows, hop_s)


def checksums_of(folder: Path) -> tuple[str, ...]:
    """SHA-256 of the `FILES` in a local folder; "" for a missing one."""
    found = []
    for name in FILES:
        try:
            with open(folder / name, "rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        except FileNotFoundError:
            found.append("")
    return tuple(found)


def _near(home: str, checksums: tuple[str, ...], again: bool = False) -> Path:
    """The folder itself or, for a bucket, this machine's copy: fetched by one process, shared by all.
    again: fetch anew if the copy is damaged.
    """
    if not storage.is_remote(home):
        return Path(home)
    copies = Path(tempfile.gettempdir(), f"plethora-indexes-{os.getuid()}")
    copies.mkdir(mode=0o700, exist_ok=True)
    if copies.stat().st_uid != os.getuid():
        raise PlethoraError(f"{copies} is another user's: delete it, or name another folder with TMPDIR")
    folder = copies / hashlib.sha256("".join(checksums).encode()).hexdigest()[:32]
    with open(copies / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in copies.iterdir():
            if left.is_dir() and left != folder and time.time() - left.stat().st_mtime > UNUSED_S:
                shutil.rmtree(left, ignore_errors=True)  # processes that have it mapped keep it
        if again and folder.exists() and checksums_of(folder) != checksums:
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            stage = Path(tempfile.mkdtemp(dir=copies))
            try:
                with filling(copies):
                    storage.download(home, stage)
                os.rename(stage, folder)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
        os.utime(folder)
    return folder
