"""An index under construction: tables of some row groups each, stored as they arrive, and merged without ever
holding all of them in memory.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import PlethoraError
from datasets.catalogue import FILES, NAMES, RUNS, columns, from_table
from datasets.windows import WindowSpec

MOST, FEWEST = 16, 64  # row groups per part; minimum number of parts, if there are as many row groups


def cut(groups: int) -> list[range]:
    """The parts of a corpus with this number of row groups: the row groups of each."""
    size = min(MOST, max(1, groups // FEWEST))
    return [range(low, min(low + size, groups)) for low in range(0, groups, size)]


def name(number: int) -> str:
    """The file of part `number`."""
    return f"{number:06d}.parquet"


def encode(table: pa.Table) -> bytes:
    """A table as `judge.schema`, encoded as a part's file."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read(folder: str, count: int) -> Iterator[pa.Table]:
    """The tables of `count` parts in a folder (a URI), in order; strings stay codes."""
    import pyarrow.parquet as pq

    for number in range(count):
        where = storage.join(folder, name(number))
        try:
            source = pa.BufferReader(storage.read_bytes(where))
            strings = [f.name for f in pq.read_schema(source) if pa.types.is_string(f.type)]
            yield pq.read_table(source, page_checksum_verification=True, read_dictionary=strings)
        except (pa.ArrowException, OSError) as broken:
            raise PlethoraError(f"{where} is corrupt: delete it, the next run rebuilds it") from broken


def merge(folder: str, count: int, spec: WindowSpec, into: Path) -> tuple[int, int]:
    """Merge the `count` parts in `folder` (a URI): writes the `catalogue.FILES` into the empty local folder
    `into`. Returns the numbers of windows and runs.

    Each column grows in its own file, part by part; the result is written from memory maps of these.
    """
    raw = into / "columns"
    raw.mkdir()
    runs, windows = _Columns(raw, RUNS), _Columns(raw, columns(spec))
    for table in read(folder, count):
        part = from_table(table, spec)
        first = pa.array(part.run("first") + windows.rows)
        at = RUNS.get_field_index("first")
        runs.add(part.runs.set_column(at, RUNS.field(at), first))
        windows.add(part.windows)
    for file, table in zip(FILES, (runs, windows), strict=True):
        batch = table.whole()
        with pa.ipc.new_file(str(into / file), batch.schema) as out:
            out.write_batch(batch)
        del batch
    for left in raw.iterdir():
        os.unlink(left)
    raw.rmdir()
    return windows.rows, runs.rows


class _Columns:
    """Columns that grow on disk, one file each: numbers unchanged, booleans one byte each, names as codes
    with two more files for their dictionary.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema, self.rows = folder, schema, 0
        self.words = dict.fromkeys((f.name for f in schema if f.type == NAMES), 0)
        self.text = dict.fromkeys(self.words, 0)  # bytes

    def add(self, batch: pa.RecordBatch) -> None:
        for field, column in zip(self.schema, batch.columns, strict=True):
            if field.type != NAMES:
                self._append(field.name, column.to_numpy(zero_copy_only=False))
                continue
            words = column.dictionary
            self._append(field.name, column.indices.to_numpy() + self.words[field.name])
            self._name(field.name, words)
        self.rows += batch.num_rows

    def _name(self, name: str, words: pa.Array) -> None:
        """Append dictionary entries: their bytes, and where each one ends."""
        offsets = pa.Array.from_buffers(
            pa.int64(), len(words) + 1, [None, words.buffers()[1]], 0, words.offset
        )
        ends = offsets.to_numpy()
        text = memoryview(words.buffers()[2] or b"")[int(ends[0]) : int(ends[-1])]
        self._append(f"{name}.ends", ends[1:] - ends[0] + self.text[name])
        with open(self.folder / f"{name}.text", "ab") as file:
            file.write(text)
        self.words[name] += len(words)
        self.text[name] += len(text)

    def _append(self, name: str, values: np.ndarray) -> None:
        with open(self.folder / name, "ab") as file:
            values.tofile(file)

    def whole(self) -> pa.RecordBatch:
        """The complete table, over maps of the files."""
        return pa.RecordBatch.from_arrays([self._column(f) for f in self.schema], schema=self.schema)

    def _column(self, field: pa.Field) -> pa.Array:
        data = _map(self.folder / field.name)
        if field.type == NAMES:
            codes = pa.Array.from_buffers(pa.int32(), self.rows, [None, data])
            return pa.DictionaryArray.from_arrays(codes, self._names(field.name))
        if field.type == pa.bool_():
            return pa.array(np.frombuffer(data, bool))
        return pa.Array.from_buffers(field.type, self.rows, [None, data])

    def _names(self, name: str) -> pa.Array:
        n = self.words[name]
        ends = np.frombuffer(_map(self.folder / f"{name}.ends"), np.int64)
        offsets = pa.py_buffer(np.concatenate((np.zeros(1, np.int64), ends)))
        return pa.Array.from_buffers(
            pa.large_string(), n, [None, offsets, _map(self.folder / f"{name}.text")]
        )


def _map(path: Path) -> pa.Buffer:
    """The bytes of a file, memory-mapped."""
    if not path.exists() or not path.stat().st_size:
        return pa.py_buffer(b"")  # an empty file cannot be mapped
    return pa.memory_map(str(path)).read_buffer()
