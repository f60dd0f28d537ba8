"""Files of arrays: NPY, NPZ, HDF5, pickles. A file is one record, or each of its rows is one (`ids`)."""

import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from datasets.descriptor import Array
from datasets.readers import kinds, marks, pickles
from datasets.readers.base import Refused
from datasets.readers.column import LARGEST, Columns, check_size

HDF5 = (".h5", ".hdf5", ".hdf")
SUFFIXES = (".npz", ".npy", *HDF5, *pickles.SUFFIXES)
NPY = "array"  # name of a .npy file's array in [[arrays]]
LONGEST_ID = 200
# attributes of an HDF5 dataset that give its missing-value number, letters only
MARKS = (
    "fillvalue",
    "missingvalue",
    "missingvalues",
    "missingvaluemarker",
    "missingmarker",
    "nodata",
    "nodatavalue",
)


class Arrays(Columns):
    """Variables of a .npy, .npz or HDF5 file: one-dimensional ones by their name, the channels of `arrays`,
    and each field of a .npy file of records (`[("ppg", "f4"), …]`).

    With `element`, every variable has a leading axis of records, and only this row of it is read; `count` is
    the required number of rows.
    """

    def __init__(
        self,
        file: Any,
        variables: Sequence[str],
        arrays: Sequence[Array],
        element: int | None,
        count: int | None,
        path: Path,
    ) -> None:
        self._places = {name: (name, 0, -1) for name in variables}
        for array in arrays:
            if array.variable in variables:
                self._places |= {c: (array.variable, array.axis, i) for i, c in enumerate(array.channels)}
        self._named = {a.variable: len(a.channels) for a in arrays}
        self._file, self._element, self._count = file, element, count
        self._path = path if path.suffix.lower() == ".npz" else None
        self._about = _attributes(file) if hasattr(file, "attrs") else {}
        super().__init__(list(self._places))

    def variable(self, name: str) -> Any:
        """A variable, or this element's row of it."""
        try:
            value = self._whole(name)
            if self._element is None:
                return value[()]
            if self._count is not None and (not value.shape or len(value) != self._count):
                raise Refused(
                    "corrupt",
                    f"{name} is {_size(value)}, and not a row for each of the {self._count} records of `ids`",
                )
            return value[self._element]
        except ValueError as error:  # numpy: an array of Python objects would have to be unpickled
            raise Refused("unsupported", f"{name} cannot be read as plain numbers ({error})") from error

    def _whole(self, name: str) -> Any:
        if self._path is not None and self._element is not None:
            return _member(self._path, self._path.stat().st_mtime_ns, name)
        value = self._file[name]
        if hasattr(value, "is_virtual"):
            _check_stored(name, value)
        return value

    def raw(self, name: str) -> np.ndarray | None:
        if name not in self.names:
            return None
        return self.read(name) if self._places[name][2] >= 0 else np.asarray(self.variable(name)).reshape(-1)

    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        variable, axis, channel = self._places[name]
        value = np.asarray(self.variable(variable))
        if value.dtype.kind not in "iuf":
            kind = "words" if value.dtype.kind in "SUO" else f"{value.dtype}"
            raise Refused("corrupt", f"{variable} holds {kind}, not numbers")
        if channel < 0:
            value = value.squeeze() if value.ndim > 1 else value
            if value.ndim != 1:
                raise Refused(
                    "corrupt", f"{variable} is {_size(value)}, not one channel: {_remedy(variable)}"
                )
        elif value.ndim != 2 or value.shape[axis] != self._named[variable]:
            raise Refused(
                "corrupt",
                f"{variable} is {_size(value)}, not {self._named[variable]} channels along axis {axis}: "
                "correct `channels` or `axis` in [[arrays]]",
            )
        else:
            value = value[channel] if axis == 0 else value[:, channel]
        return marks.without(value, [*missing, *self._marks(variable)])

    def _marks(self, variable: str) -> list[float]:
        """Numbers that the file's attributes declare as missing values."""
        found: list[float] = []
        for key, value in (self._about.get(variable) or {}).items():
            if "".join(c for c in key.casefold() if c.isalpha()) in MARKS:
                with suppress(ValueError, TypeError, OverflowError):
                    found += np.asarray(value).astype(np.float64).reshape(-1).tolist()
        return found

    def length(self, name: str) -> int:
        variable, axis, channel = self._places[name]
        whole = channel >= 0 and self._element is None
        shape = getattr(self._file[variable], "shape", None) if whole else None
        if shape and len(shape) == 2 and shape[axis] == self._named[variable]:
            return int(shape[1 - axis])
        return len(self.read(name))

    def path(self, name: str) -> str:
        return self._places[name][0].replace("/", ".")

    def facts(self) -> Collection[str]:
        attributes = [_dotted(at, key) for at, about in self._about.items() for key in about]
        return [*attributes, *(name.replace("/", ".") for name in self.names)]

    def fact(self, name: str) -> object:
        at, _, key = name.replace("/", ".").rpartition(".")
        for held, about in self._about.items():
            if held.replace("/", ".") == at and key in about:
                return about[key]
        for own in self.names:
            if own.replace("/", ".") == name.replace("/", ".") and self._places[own][2] < 0:
                with suppress(Refused, ValueError):
                    value = self._whole(own)
                    each = self._count is not None and value.shape[:1] == (self._count,)
                    return np.asarray(value[self._element] if each else value[()])
        return None


@lru_cache(maxsize=8)  # if fewer than a record's variables, each record would unpack all of them again
def _member(path: Path, _changed: int, name: str) -> np.ndarray:
    """A variable of an .npz file, cached while its records are read one after another."""
    with np.load(path, allow_pickle=False) as file:
        return np.asarray(file[name])


def _size(value: Any) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def _dotted(at: str, key: str) -> str:
    return f"{at.replace('/', '.')}.{key}" if at else key


def _remedy(variable: str) -> str:
    return (
        f'name its channels in [[arrays]] (variable = "{variable}"); if each row is a separate record, '
        "`ids` in [table] names the variable that holds their names"
    )


def _attributes(file: Any) -> dict[str, dict[str, Any]]:
    """Attributes of an HDF5 file ("") and of everything in it."""
    found = {"": _values(file)}
    file.visititems(lambda name, item: found.update({name: _values(item)}))
    return {name: about for name, about in found.items() if about}


def _values(item: Any) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for key in item.attrs:
        with suppress(Exception):  # types unknown to h5py state no number
            held[key] = item.attrs[key]
    return held


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """A file of arrays and their names. Samples are read on request."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        check_zip(path)
        with np.load(path, allow_pickle=False) as file:
            yield file, list(file.files)
    elif suffix == ".npy":
        try:
            whole = np.load(path, allow_pickle=False, mmap_mode="r")
        except ValueError as error:
            if "object" in str(error).lower():
                raise Refused(
                    "unsupported", "it holds pickled Python objects: save it as an array of numbers"
                ) from error
            raise Refused(
                "corrupt", f"it cannot be read as plain numbers ({kinds.plain(str(error))})"
            ) from error
        held: Mapping[str, np.ndarray] = {NPY: whole}
        if whole.dtype.names:
            held = {name: whole[name] for name in whole.dtype.names}
        elif whole.ndim == 1 or sum(n != 1 for n in whole.shape) <= 1:
            held = {NPY: whole, "1": whole}
        yield held, list(held)
    elif suffix in pickles.SUFFIXES:
        inside = pickles.arrays(path)
        yield inside, list(inside)
    else:
        import h5py

        with h5py.File(path, "r") as file:
            found: list[str] = []
            file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
            yield file, found


def ids(file: Any, variables: Collection[str], name: str) -> list[str]:
    """The names of a file's records: integers or strings, one per record.

    Refused: missing, neither integers nor strings, duplicated, or not usable in a record's name.
    """
    if name not in variables:
        raise Refused("corrupt", f"it has no {name!r}, which names its records")
    value = file[name]
    if hasattr(value, "is_virtual"):
        _check_stored(name, value)
    try:
        held = np.asarray(value[()]).reshape(-1).tolist()
    except ValueError as error:
        raise Refused(
            "unsupported", f"{name} holds Python objects: save words as np.array(ids, dtype=str)"
        ) from error
    found = [_id(name, word) for word in held]
    twice = next((word for word, n in Counter(found).items() if n > 1), None)
    if twice is not None:
        raise Refused("corrupt", f"{name} names two records {twice!r}")
    return found


def _id(name: str, value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return str(int(value))
    word = value.strip() if isinstance(value, str) else ""
    # a record's name is used in file names (`{id}`) and on terminals
    if (
        not word
        or len(word) > LONGEST_ID
        or not word.isprintable()
        or set(word) & set("/\\")
        or word in (".", "..")
    ):
        raise Refused("corrupt", f"{name} holds {value!r:.60}, which cannot name a record")
    return word


def check_zip(path: Path, most: int = LARGEST) -> None:
    """Refused (corrupt): a zip archive (.npz, .xlsx) with a member that unpacks to more than `most` bytes."""
    with zipfile.ZipFile(path) as held:
        for member in held.infolist():
            check_size(f"{path.name}, {member.filename}", member.file_size, most)


def _check_stored(name: str, value: Any) -> None:
    """Refused: an HDF5 dataset whose samples lie in another file, or that claims more than it can hold."""
    if value.external or value.is_virtual:
        raise Refused("unsupported", f"{name} lies in another file: store its samples in this one")
    check_size(name, value.size * value.dtype.itemsize if value.size else 0)
