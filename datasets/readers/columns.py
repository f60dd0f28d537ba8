"""Files of columns: text, Parquet, NPY, NPZ, HDF5 and pickles of arrays, each as named arrays."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.descriptor import Array, Table
from datasets.readers import arrays as files
from datasets.readers import kinds, marks, rates, text
from datasets.readers.arrays import Arrays, check_zip
from datasets.readers.base import Refused
from datasets.readers.column import Columns, check_size
from datasets.readers.text import Choices

__all__ = ["Columns", "check_zip", "ids_of", "opened", "rows"]


class _Parquet(Columns):
    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        check_size(path.name, 8 * self._file.metadata.num_rows)
        self._schema = self._file.schema_arrow
        numeric = (pa.types.is_floating, pa.types.is_integer)
        super().__init__([f.name for f in self._schema if any(kind(f.type) for kind in numeric)])
        self._about: dict[str, object] = {
            k.decode(errors="replace"): v for k, v in (self._schema.metadata or {}).items()
        }
        for field in self._schema:
            about = (field.metadata or {}).items()
            self._about |= {f"{field.name}.{k.decode(errors='replace')}": v for k, v in about}

    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        column = self._file.read([name])[name]
        if column.null_count:
            column = column.cast(pa.float64())
        return marks.without(column.to_numpy(), missing)

    def raw(self, name: str) -> pa.ChunkedArray | None:
        return self._file.read([name])[name] if name in self._schema.names else None

    def length(self, name: str) -> int:
        return int(self._file.metadata.num_rows)

    def facts(self) -> Collection[str]:
        return [*self._about, *self.names]

    def fact(self, name: str) -> object:
        return self._about.get(name) if name in self._about else super().fact(name)


class _Text(Columns):
    """A text file's columns as strings, converted to numbers on request: most columns are not needed."""

    def __init__(self, table: pa.Table, spec: Table, delimiter: str) -> None:
        super().__init__(table.column_names)
        self._table, self._spec, self._delimiter = table, spec, delimiter

    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        return text.numbers(self._table[name], self._spec, self._delimiter, f"column {name}", missing)

    def raw(self, name: str) -> pa.Array | None:
        return text.words(self._table[name]) if name in self.names else None

    def length(self, name: str) -> int:
        return int(self._table.num_rows)


class _Row(Columns):
    """A text file whose numbers, line after line, form one channel."""

    def __init__(self, path: Path, spec: Table) -> None:
        super().__init__(["1"])
        self._spec = spec
        self._cells, self._delimiter = text.row(path, spec)
        try:  # report decimal commas before the file counts as valid; words may be markers
            self.read("1")
        except Refused as why:
            if why.reason == "decimal_comma":
                raise

    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        return text.numbers(self._cells, self._spec, self._delimiter, "the row", missing)

    def length(self, name: str) -> int:
        return len(self._cells)


@contextmanager
def opened(
    path: Path,
    spec: Table,
    arrays: Sequence[Array] = (),
    element: int | None = None,
    wanted: Sequence[Choices] = (),
) -> Iterator[Columns]:
    """The columns of the file at `path`. Refused: corrupt, unsupported, decimal_comma, missing_file.

    `wanted`: the channels to read; they distinguish two unnamed columns from one with decimal commas.
    """
    if not path.is_file():
        raise Refused("missing_file", f"{path.name} does not exist")
    suffix = path.suffix.lower()
    try:
        words = None
        if suffix in (*files.SUFFIXES, ".parquet"):
            same = {".hdf5": ".h5", ".hdf": ".h5", ".pickle": ".pkl"}
            words = kinds.other(path, same.get(suffix, suffix))
        if words:
            raise Refused("corrupt", f"{path.name} is {words}")
        if suffix in files.SUFFIXES:
            with files.opened(path) as (file, variables):
                count = None
                if element is not None and spec.ids is not None and spec.ids in variables:
                    count = int(np.prod(file[spec.ids].shape))
                yield Arrays(file, variables, arrays, element, count, path)
        elif suffix == ".parquet":
            yield _Parquet(path)
        else:
            if words := kinds.no_text(path):
                raise Refused("unsupported", f"{path.name} is {words}")
            yield _Row(path, spec) if spec.layout == "row" else _Text(*_table(path, spec, wanted))
    except Refused as why:
        raise Refused(
            why.reason, why.detail if path.name in why.detail else f"{path.name}: {why.detail}"
        ) from why
    except Exception as error:  # any error of numpy, h5py and pyarrow, here or at `read`
        raise Refused("corrupt", f"{path.name} cannot be read ({kinds.message_of(error)})") from error


def _table(path: Path, spec: Table, wanted: Sequence[Choices]) -> tuple[pa.Table, Table, str]:
    table, delimiter = text.read(path, spec, wanted)
    return table, spec, delimiter


def ids_of(path: Path, name: str) -> list[str]:
    """The names of the records in the file at `path` (see `ids`)."""
    if path.suffix.lower() not in files.SUFFIXES:
        raise Refused("unsupported", f"{path.name}: `ids` names the records of .npz and .hdf5 files only")
    try:
        with files.opened(path) as (file, variables):
            return files.ids(file, variables, name)
    except Refused as why:
        raise Refused(why.reason, f"{path.name}: {why.detail}") from why


def rates_vary(path: Path, named: Collection[str]) -> bool:
    """Whether a file of many records states rates that differ between records, under usual names or one of
    `named`."""
    try:
        with files.opened(path) as (file, variables):
            for variable in variables:
                name = variable.replace("/", ".")
                if name in named or name.rpartition(".")[2] in named or rates.is_rate(name):
                    x = np.asarray(file[variable][()]).reshape(-1)
                    if x.size > 1 and not (x == x[0]).all():
                        return True
    except Exception:  # reported when the records themselves are read
        return False
    return False


def rows(path: Path, spec: Table, names: Collection[str], arrays: Sequence[Array] = ()) -> int:
    """How many samples of the channels `names` an unusable file would hold, 0 if unknown."""
    suffix = path.suffix.lower()
    if not path.is_file():
        return 0
    try:
        if suffix == ".parquet":
            return int(pq.ParquetFile(path).metadata.num_rows)
        if suffix not in files.SUFFIXES:
            return 0 if kinds.no_text(path) else text.rows(path, spec)
        held = {channel: array.variable for array in arrays for channel in array.channels}
        with files.opened(path) as (file, variables):
            of = [name for name in dict.fromkeys(held.get(n, n) for n in names) if name in variables]
            shapes = [tuple(file[name].shape) for name in of]
            return max((max(shape[spec.ids is not None :], default=0) for shape in shapes), default=0)
    except Exception:  # a file that cannot be opened has no known length
        return 0
