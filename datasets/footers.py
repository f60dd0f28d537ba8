"""The footers of all shards of a corpus in one local file, so that reading a row group is a single request.

A file holds, little-endian:

    magic      8 bytes
    per shard  its footer (Thrift's FileMetaData), then (groups, columns, 2) int64: the first byte and the
               length of every column chunk, -1 and 0 if the shard lacks the column
    table      one row per shard (`_ROW`): where its entry lies, its checksum, and the size of the shard
    about      JSON: the corpus's hash, the column names, where the table lies
    end        bytes and checksum of table and about, magic
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import functools
import hashlib
import io
import json
import mmap
import os
import secrets
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import ranges, storage
from cluster.errors import PlethoraError
from datasets import thrift, trust

if TYPE_CHECKING:
    from datasets.schema import Corpus

MAGIC = b"PLFOOT01"
TAIL = 64 << 10  # bytes of a shard requested first; ours have footers of 2 to 20 kB
LONGEST = 64 << 20  # maximum length of a footer, bytes
AT_A_TIME, LOCALLY = 16, 2  # concurrent footer requests
PARSED = 128  # number of parsed footers kept, about 0.1 MB each
_ROW = np.dtype([("at", "<u8"), ("size", "<u8"), ("bytes", "<u4"), ("groups", "<u4"), ("crc", "<u4")])
_END = struct.Struct("<QII8s")  # bytes of the table, bytes of about, checksum of both, magic


class Footers:
    """The footers in the file at `path`, checked and mapped on first use. Pickled as the path.

    Raises PlethoraError, one line, if the file is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)

    def __repr__(self) -> str:
        return f"Footers({self.path!r})"

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path}

    @property
    def corpus(self) -> str:
        """The hash of the corpus whose footers these are."""
        return self._mapped[2]["corpus"]

    def __len__(self) -> int:
        return len(self._mapped[1])

    def size(self, shard: int) -> int:
        """Size of a shard in bytes."""
        return int(self._mapped[1][shard]["size"])

    def of(self, shard: int) -> pq.FileMetaData:
        """The footer of a shard. ArrowInvalid if it is not a Parquet footer."""
        return self._parsed(shard)

    def ranges(self, shard: int, group: int, columns: Sequence[str] | None = None) -> list[tuple[int, int]]:
        """(first byte, length) of the ranges to read for these columns (None: all) of a row group: one range
        from the first to the last column; if they fill less than half of it, it is split at each gap of more
        than `cluster.ranges.GAP`. ArrowInvalid if a column is missing, or the data would fill the memory.
        """
        _, table, about = self._mapped
        row, names = table[shard], about["columns"]
        blob = self._blob(shard)
        if not 0 <= group < row["groups"]:
            raise pa.ArrowInvalid(f"it has {row['groups']} row groups, number {group} is asked for")
        chunks = np.frombuffer(blob, "<i8", offset=int(row["bytes"])).reshape(row["groups"], len(names), 2)
        places = dict(zip(names, chunks[group].tolist(), strict=True))
        wanted = [places.get(name, (-1, 0)) for name in (names if columns is None else columns)]
        if columns is not None and any(first < 0 for first, _ in wanted):
            lacking = [name for name, place in zip(columns, wanted, strict=True) if place[0] < 0]
            raise pa.ArrowInvalid(f"column {lacking[0]!r}")
        found = merged([(first, size) for first, size in wanted if first >= 0])
        if sum(size for _, size in found) > trust.MOST_BYTES:
            raise pa.ArrowInvalid(f"a row group of {sum(size for _, size in found) / 2**30:,.1f} GiB")
        return found

    @functools.cached_property
    def _mapped(self) -> tuple[mmap.mmap, np.ndarray, dict[str, Any]]:
        """The file, its table and its description."""
        with storage.clear_errors(self.path), builtins.open(self.path, "rb") as file:
            if os.fstat(file.fileno()).st_size < len(MAGIC) + _END.size:
                raise self._damaged()
            data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        last = len(data) - _END.size
        table_bytes, about_bytes, crc, magic = _END.unpack_from(data, last)
        start = last - about_bytes - table_bytes
        if magic != MAGIC or data[: len(MAGIC)] != MAGIC or start < len(MAGIC):
            raise self._damaged()
        if table_bytes % _ROW.itemsize or zlib.crc32(data[start:last]) != crc:
            raise self._damaged()
        table = np.frombuffer(data, _ROW, table_bytes // _ROW.itemsize, start)
        return data, table, json.loads(data[start + table_bytes : last])

    def _blob(self, shard: int) -> memoryview:
        """A shard's footer and the places of its column chunks."""
        data, table, about = self._mapped
        row = table[shard]
        at, size = int(row["at"]), int(row["bytes"]) + 16 * int(row["groups"]) * len(about["columns"])
        blob = memoryview(data)[at : at + size]
        if zlib.crc32(blob) != row["crc"]:
            raise self._damaged()
        return blob

    @functools.cached_property
    def _parsed(self) -> Any:
        return functools.lru_cache(PARSED)(self._parse)

    def _parse(self, shard: int) -> pq.FileMetaData:
        footer = self._blob(shard)[: int(self._mapped[1][shard]["bytes"])]
        whole = b"".join((b"PAR1", footer, struct.pack("<I", len(footer)), b"PAR1"))
        return pq.read_metadata(pa.BufferReader(whole))

    def _damaged(self) -> PlethoraError:
        return PlethoraError(f"{self.path} is corrupt: delete it, it is rebuilt")


def merged(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges that cover all of `places` (first byte, length): see `Footers.ranges`."""
    places = sorted(place for place in places if place[1])
    if not places:
        return []
    last = max(first + size for first, size in places)
    sparse = 2 * sum(size for _, size in places) < last - places[0][0]
    found = [places[0]]
    for first, size in places[1:]:
        begin, end = found[-1][0], sum(found[-1])
        if sparse and first - end > ranges.GAP:
            found.append((first, size))
        else:
            found[-1] = begin, max(end, first + size) - begin
    return found


class Parts(io.RawIOBase):
    """A file of `size` bytes of which only some are in memory: reading any other is an OSError.

    For `pa.PythonFile`, which takes the result of `read_buffer` without a copy. Measured on row groups of
    14 MB, CPU time to decode one: 19.5 ms; from the bytes at their places in an anonymous map as large as the
    shard 28.7 ms, because its fresh pages cost more.
    """

    def __init__(self, parts: Sequence[tuple[int, bytes]], size: int) -> None:
        self._parts = [(first, pa.py_buffer(data)) for first, data in parts]
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read_buffer(self, size: int = -1) -> pa.Buffer:
        """The next `size` bytes (-1: all), as a slice of the bytes in memory."""
        size = self._size - self._at if size < 0 else min(size, self._size - self._at)
        for first, data in self._parts:
            if first <= self._at and self._at + size <= first + data.size:
                self._at += size
                return data.slice(self._at - size - first, size)
        raise OSError(f"bytes {self._at} to {self._at + size} are no part of what was asked for")

    def read(self, size: int = -1) -> bytes:
        return self.read_buffer(size).to_pybytes()


# ---------------------------------------------------------------- making them


def open(path: str | Path) -> Footers:
    """The footers in the file at `path`. PlethoraError if it is missing or damaged."""
    found = Footers(path)
    len(found)
    return found


def place(corpus: Corpus) -> Path:
    """Where this machine keeps the footers of a corpus, by its hash and URI: in the user's cache or, if that
    is not writable, in the temporary folder.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "plethora", "footers")
    try:
        home.mkdir(parents=True, exist_ok=True)
        usable = os.access(home, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        home = Path(tempfile.gettempdir(), f"plethora-footers-{os.getuid()}")
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != os.getuid():
            raise PlethoraError(f"{home} is another user's: delete it, or name another folder with TMPDIR")
    return home / f"{corpus.hash[:16]}-{hashlib.sha256(corpus.uri.encode()).hexdigest()[:8]}.footers"


def there(corpus: Corpus, path: str | Path | None = None) -> Footers:
    """The footers of a corpus at `path` (None: `place`), collected first if this machine lacks them; of
    several processes that ask, one collects.
    """
    path = Path(path or place(corpus))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.clear_errors(str(path)), builtins.open(f"{path}.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                collect(corpus, path)
    found = open(path)
    if found.corpus != corpus.hash or len(found) != len(corpus.shards):
        raise PlethoraError(f"{path} holds the footers of another corpus: delete it, it is rebuilt")
    return found


def collect(corpus: Corpus, path: str | Path) -> Footers:
    """Read the footer of every shard and write them to `path` atomically.

    From a bucket: one request per shard for its last `TAIL` bytes, another if the footer is longer, 16 in
    flight. PlethoraError, one line, if a shard differs from the manifest.
    """
    names = corpus.column_names
    part = Path(f"{path}.{secrets.token_hex(4)}.part")
    table = np.zeros(len(corpus.shards), _ROW)
    try:
        with storage.clear_errors(str(path)), builtins.open(part, "wb") as file:
            at = file.write(MAGIC)
            for shard, (footer, size, chunks) in enumerate(_each(corpus)):
                places = np.full((len(chunks), len(names), 2), (-1, 0), "<i8")
                for group, columns in enumerate(chunks):
                    for number, name in enumerate(names):
                        places[group, number] = columns.get(name, (-1, 0))
                blob = footer + places.tobytes()
                table[shard] = at, size, len(footer), len(chunks), zlib.crc32(blob)
                at += file.write(blob)
            about = json.dumps({"corpus": corpus.hash, "columns": names}).encode()
            end = table.tobytes() + about
            file.write(end + _END.pack(table.nbytes, len(about), zlib.crc32(end), MAGIC))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return open(path)


def _each(corpus: Corpus) -> Iterator[tuple[bytes, int, thrift.Chunks]]:
    """For each shard, in order: footer, size in bytes and places of the column chunks."""
    threads = AT_A_TIME if storage.is_remote(corpus.uri) else LOCALLY
    with ThreadPoolExecutor(threads, "footers") as pool, contextlib.ExitStack() as last:
        last.callback(pool.shutdown, wait=False, cancel_futures=True)  # a damaged shard cancels the others
        for low in range(0, len(corpus.shards), 64 * threads):  # bounds how many wait to be written
            numbers = range(low, min(low + 64 * threads, len(corpus.shards)))
            yield from pool.map(functools.partial(_footer, corpus), numbers)


def _footer(corpus: Corpus, shard: int) -> tuple[bytes, int, thrift.Chunks]:
    entry = corpus.shards[shard]
    where = storage.join(corpus.uri, entry["path"])
    if not storage.is_remote(corpus.uri):
        storage.inside(corpus.uri, entry["path"])
    data, size = _tail(where, TAIL)
    if entry.get("bytes", 0) not in (0, size):
        raise trust.replaced(where, size, entry["bytes"])
    try:
        if len(data) < 12 or data[-4:] != b"PAR1":
            raise pa.ArrowInvalid("it is not a Parquet file")
        length = struct.unpack("<I", data[-8:-4])[0]
        if length > min(LONGEST, size - 12):
            raise pa.ArrowInvalid(f"a footer of {length:,} bytes")
        if length + 8 > len(data):
            data, _ = _tail(where, length + 8)
        footer = data[-8 - length : -8]
        rows, chunks = thrift.chunks(footer, size - length - 8)
        if rows != list(entry["row_groups"]):
            raise pa.ArrowInvalid(f"row groups of {rows[:3]}… rows for {entry['row_groups'][:3]}…")
    except pa.ArrowInvalid as broken:
        raise trust.corrupt(where, broken) from broken
    return footer, size, chunks


def _tail(where: str, size: int) -> tuple[bytes, int]:
    """The last `size` bytes of a file, and its size in bytes."""
    if storage.is_remote(where):
        return ranges.tail(where, size)
    with storage.clear_errors(where), builtins.open(where, "rb") as file:
        whole = file.seek(0, os.SEEK_END)
        file.seek(max(0, whole - size))
        return file.read(), whole
