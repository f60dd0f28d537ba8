"""Files of columns: text, Parquet, NPZ and HDF5, each as named arrays of numbers. Nothing is unpickled."""

import csv
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from datasets.descriptor import Array, Table
from datasets.readers.base import Refused
from datasets.readers.sheets import delimiter_of

ARRAYS = (".npz", ".h5", ".hdf5")
NOTHING = ["", "NA", "N/A", "NaN", "nan", "null", "None"]  # cells that hold no number and say so
LARGEST = 8 * 2**30  # bytes that one variable of a file, or a text in it, may unpack to
COMMA = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")


class Columns(ABC):
    """A file being read: `names` of its columns, read one by one."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    @abstractmethod
    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        """One column, (samples,), NaN where missing."""

    def stamps(self, name: str) -> np.ndarray | pa.ChunkedArray | None:
        """A column of times as it is stored: numbers, words, dates; None where there is none of that name."""
        return self.read(name) if name in self.names else None

    def length(self, name: str) -> int:
        return len(self.read(name))

    def path(self, name: str) -> str:
        """Where a column lies in the file, dotted: what stands beside it speaks of it."""
        return name


class _Loaded(Columns):
    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        super().__init__(list(columns))
        self._columns = columns

    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        return self._columns[name]


class _Parquet(_Loaded):
    def __init__(self, path: Path) -> None:
        super().__init__({n: _floats(c) for n, c in _parquet(path)})
        self._file = pq.ParquetFile(path)

    def stamps(self, name: str) -> np.ndarray | pa.ChunkedArray | None:
        return self._file.read([name])[name] if name in self._file.schema_arrow.names else None


class _Arrays(Columns):
    """Variables of a .npz or HDF5 file: one-dimensional ones by their own name, and the channels of `arrays`.

    With `element`, every variable has one axis more, the first, and only this row of it is read.
    """

    def __init__(
        self, file: Any, variables: Sequence[str], arrays: Sequence[Array], element: int | None
    ) -> None:
        self._places = {name: (name, 0, -1) for name in variables}
        for array in arrays:
            if array.variable in variables:
                self._places |= {c: (array.variable, array.axis, i) for i, c in enumerate(array.channels)}
        self._named = {a.variable: len(a.channels) for a in arrays}
        self._file, self._element = file, element
        super().__init__(list(self._places))

    def variable(self, name: str) -> Any:
        """A variable, or this element's part of it."""
        try:
            value = self._file[name]
            if hasattr(value, "is_virtual"):
                _check_stored(name, value)
            return value[self._element] if self._element is not None else value[()]
        except ValueError as error:  # numpy: an array of Python objects would have to be unpickled
            raise Refused("unsupported", f"{name} cannot be read as plain numbers ({error})") from error

    def stamps(self, name: str) -> np.ndarray | pa.ChunkedArray | None:
        if name not in self.names or self._places[name][2] >= 0:
            return super().stamps(name)
        value = np.asarray(self.variable(self._places[name][0]))
        return value.squeeze() if value.ndim > 1 else value

    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        variable, axis, channel = self._places[name]
        value = np.asarray(self.variable(variable))
        if value.dtype.kind not in "iuf":
            raise Refused("corrupt", f"{variable} holds {value.dtype}, no numbers")
        if channel < 0:
            value = value.squeeze() if value.ndim > 1 else value
            if value.ndim != 1:
                raise Refused(
                    "corrupt", f"{variable} has the shape {value.shape}: name its channels in [[arrays]]"
                )
            return value
        if value.ndim != 2 or value.shape[axis] != self._named[variable]:
            raise Refused(
                "corrupt", f"{variable} has the shape {value.shape}, not {self._named[variable]} channels"
            )
        return value[channel] if axis == 0 else value[:, channel]

    def length(self, name: str) -> int:
        variable, axis, channel = self._places[name]
        shape = getattr(self._file[variable], "shape", None) if channel >= 0 else None
        shape = shape[1:] if shape and self._element is not None else shape
        if shape and len(shape) == 2 and shape[axis] == self._named[variable]:
            return int(shape[1 - axis])
        return len(self.read(name))


@contextmanager
def opened(
    path: Path, spec: Table, arrays: Sequence[Array] = (), element: int | None = None
) -> Iterator[Columns]:
    """The columns of the file at `path`. Refused: corrupt, unsupported, decimal_comma, missing_file."""
    if not path.is_file():
        raise Refused("missing_file", f"{path.name} is not there")
    try:
        if path.suffix.lower() == ".npz":
            check_zip(path)
            with np.load(path, allow_pickle=False) as file:
                yield _Arrays(file, file.files, arrays, element)
        elif path.suffix.lower() in ARRAYS:
            import h5py

            with h5py.File(path, "r") as file:
                found: list[str] = []
                file.visititems(
                    lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
                )
                yield _Arrays(file, found, arrays, element)
        elif path.suffix.lower() == ".parquet":
            yield _Parquet(path)
        elif spec.layout == "row":
            yield _Loaded({"1": _row(path, spec)})
        else:
            yield _text(path, spec)
    except Refused as why:
        raise Refused(
            why.reason, why.detail if path.name in why.detail else f"{path.name}: {why.detail}"
        ) from why
    except Exception as error:  # whatever numpy, h5py and pyarrow run into, here or at `read`
        raise Refused("corrupt", f"{path.name} cannot be read ({_first_line(error)})") from error


def check_zip(path: Path, most: int = LARGEST) -> None:
    """Refused (corrupt): a zip archive (.npz, .xlsx) of which a member unpacks to more than `most` bytes."""
    with zipfile.ZipFile(path) as held:
        for member in held.infolist():
            _check_size(f"{path.name}, {member.filename}", member.file_size, most)


def _check_stored(name: str, value: Any) -> None:
    """Refused: an HDF5 dataset whose samples lie in another file, or that claims more than it can hold."""
    if value.external or value.is_virtual:
        raise Refused("unsupported", f"{name} lies in another file: store its samples in this one")
    _check_size(name, value.size * value.dtype.itemsize if value.size else 0)


def _check_size(name: str, size: int, most: int = LARGEST) -> None:
    if size > most:
        raise Refused(
            "corrupt", f"{name} unpacks to {size / 2**30:,.1f} GiB: no recording of ours is so large"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _parquet(path: Path) -> Iterator[tuple[str, pa.ChunkedArray]]:
    file = pq.ParquetFile(path)
    _check_size(path.name, 8 * file.metadata.num_rows)
    for field in file.schema_arrow:
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type):
            yield field.name, file.read([field.name])[field.name]


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count:
        column = column.cast(pa.float64())
    return column.to_numpy()


def header(path: Path, spec: Table) -> list[str]:
    """Names of a text file's columns: line `spec.header`, or 1, 2, … where there is none."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = csv.reader(file, delimiter=delimiter_of(path.name, spec.delimiter))
        wanted = spec.header - 1 if spec.header else spec.skip
        for number, cells in enumerate(lines):
            if number == wanted:
                names = [" ".join(c.split()) for c in cells] if spec.header else []
                return names or [str(i + 1) for i in range(len(cells))]
    raise Refused("corrupt", f"it ends before line {wanted + 1}")


def _text(path: Path, spec: Table) -> Columns:
    names = header(path, spec)
    unnamed = [name or f"({i + 1})" for i, name in enumerate(names)]
    if len(set(unnamed)) < len(unnamed):
        raise Refused("corrupt", "two columns have one name")
    delimiter = delimiter_of(path.name, spec.delimiter)
    try:
        table = pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(
                column_names=unnamed, skip_rows=spec.header + spec.skip, use_threads=False
            ),
            # an empty line of a file of one column is a missing sample
            pyarrow.csv.ParseOptions(delimiter=delimiter, ignore_empty_lines=len(unnamed) > 1),
            pyarrow.csv.ConvertOptions(column_types={n: pa.string() for n in unnamed}),
        )
    except pa.ArrowInvalid as broken:
        hint = f"; {_advice(spec, delimiter)}" if delimiter == "," and "columns, got" in str(broken) else ""
        raise Refused("corrupt", f"{_first_line(broken)}{hint}") from broken
    return _Text(table, spec, delimiter)


class _Text(Columns):
    """A text file's columns as words, turned into numbers when asked for: most have nothing to do with us."""

    def __init__(self, table: pa.Table, spec: Table, delimiter: str) -> None:
        super().__init__(table.column_names)
        self._table, self._spec, self._delimiter = table, spec, delimiter

    def stamps(self, name: str) -> np.ndarray | pa.ChunkedArray | None:
        return self._table[name] if name in self.names else None

    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        words = self._table[name].combine_chunks()
        return _numbers(words, self._spec, self._delimiter, f"column {name}")

    def length(self, name: str) -> int:
        return self._table.num_rows


def _row(path: Path, spec: Table) -> np.ndarray:
    """All numbers of the file, line after line; a delimiter at a line's end closes it."""
    delimiter = delimiter_of(path.name, spec.delimiter)
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()[spec.header + spec.skip :]
    cells = [
        cell for line in lines if line.strip() for cell in line.rstrip().rstrip(delimiter).split(delimiter)
    ]
    return _numbers(pa.array(cells, pa.string()), spec, delimiter, "the row")


def _numbers(words: pa.StringArray, spec: Table, delimiter: str, where: str) -> np.ndarray:
    """Words as float64; those of `NOTHING` are NaN. Refused names the first that is no number."""
    compute = pa.compute
    words = compute.utf8_trim_whitespace(words.fill_null(""))
    nothing = compute.is_in(words, value_set=pa.array(NOTHING))
    if spec.decimal == ",":
        words = compute.replace_substring(words, ",", ".")
    try:
        numbers = compute.if_else(nothing, None, words).cast(pa.float64())
    except pa.ArrowInvalid as broken:
        for i, word in enumerate(words.to_pylist()):
            if word not in NOTHING and not _is_number(word):
                if COMMA.fullmatch(word):
                    detail = f"{where}, row {i + 1}: {word!r} has a decimal comma; {_advice(spec, delimiter)}"
                    raise Refused("decimal_comma", detail) from broken
                raise Refused("corrupt", f"{where}, row {i + 1}: {word!r} is no number") from broken
        raise
    return numbers.to_numpy(zero_copy_only=False)


def _is_number(word: str) -> bool:
    try:
        pa.scalar(word).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _advice(spec: Table, delimiter: str) -> str:
    if delimiter == ",":
        return "if it writes decimal commas, export it again with points: commas also part its columns"
    return 'say decimal = "," in [table] of the descriptor, or export it again with points'
