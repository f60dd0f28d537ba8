"""Variables of a MATLAB file, v5 (scipy) or v7.3 (HDF5), the same way: arrays in MATLAB's orientation.

A dotted name reaches into a struct (`data.ppg.v`). In a file of many records (`elements`) every name stands
for the part that belongs to one record: its element of an array of structs, its cell of a cell array, its row
or column (`axis`) of a matrix, its entry of a list that is as long as there are records; or else for the one
number, word or struct that serves all.
"""

import math
import os
from abc import abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from datasets.readers import kinds, rates
from datasets.readers.base import Refused

INFLATION = 1100  # deflate cannot do more; a file that claims more elements than that was tampered with
DEPTH = 3  # how many names deep a struct is searched for rates
MANY = 200  # fields of a struct that are listed


@contextmanager
def clear(path: Path) -> Iterator[None]:
    """Whatever a library raises over a broken file becomes one Refused."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # scipy and h5py raise whatever their parsing runs into
        raise Refused(
            "corrupt", f"{path.name} cannot be read as a MATLAB file ({kinds.said(error)})"
        ) from error


class MatFile(rates.Facts):
    """An open file. `shape(name)`: without reading the array where the format allows."""

    def __init__(
        self, path: Path, elements: str | None = None, element: int | None = None, axis: int | None = None
    ) -> None:
        self.path, self.elements, self.element, self.axis = path, elements, element, axis

    @abstractmethod
    def get(self, name: str) -> np.ndarray | None:
        """An array of numbers or a word, None where there is none."""

    @abstractmethod
    def what(self, name: str) -> str | None:
        """What a name stands for if no array of numbers and no word (`a cell array of 1 x 3`); else None."""

    @abstractmethod
    def total(self, name: str) -> int:
        """How many numbers a variable holds, in all cells of a cell array; 0 where there are none."""

    @abstractmethod
    def names(self) -> list[str]:
        """The variables of the file, with their sizes."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        found = self.get(name)
        return None if found is None else found.shape

    @abstractmethod
    def count(self) -> int:
        """Elements of a file of many records. Refused: `elements` is not there, or no array of records."""

    def fact(self, name: str) -> object:
        shape = self.shape(name)
        return self.get(name) if shape is not None and math.prod(shape) <= MANY else None

    def word(self, name: str) -> str | None:
        """A scalar or a word as text, for labels; None for anything else."""
        found = self.get(name)
        if found is None or not found.size:
            return None
        if found.dtype.kind in "US":
            return "".join(found.ravel().tolist()).strip()
        return repr(found.ravel()[0].item()) if found.size == 1 and found.dtype.kind in "biuf" else None

    def _rows(self, name: str, shape: tuple[int, ...]) -> int:
        """How many records a matrix holds."""
        if self.axis is None:
            raise Refused(
                "unsupported",
                f"{name} is {size(shape)}: say elements_axis = 0 where each row is a record, or 1 where each "
                "column is",
            )
        return shape[self.axis]

    def _no_elements(self) -> Refused:
        return Refused(
            "corrupt",
            f"{self.path.name} has no records in {self.elements!r}, but {', '.join(self.names()[:20])}: "
            "name a struct array, a cell array or a matrix in `elements`",
        )


def size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def split(found: np.ndarray, count: int, element: int, axis: int | None) -> np.ndarray | None:
    """What belongs to one of `count` records in an array of numbers: its row or column, its entry, or the
    one number that serves all; None where the array has no part for each."""
    if axis is not None and found.ndim > axis and found.shape[axis] == count and found.size > count:
        return np.take(found, element, axis)
    if found.size == count:
        return found.ravel(order="F")[element : element + 1]
    return found if found.size == 1 or found.dtype.kind in "US" else None


@contextmanager
def opened(
    path: Path, elements: str | None = None, element: int | None = None, axis: int | None = None
) -> Iterator[MatFile]:
    """The MATLAB file at `path`. Refused: it is none, or of version 4, or broken."""
    with open(path, "rb") as file:
        start = file.read(520)
    with clear(path):
        if start[512:520] == b"\x89HDF\r\n\x1a\n" or start[:8] == b"\x89HDF\r\n\x1a\n":
            import h5py

            from datasets.readers.mat_hdf5 import Hdf5

            with h5py.File(path, "r") as h5:
                yield Hdf5(path, h5, elements, element, axis)
        elif start[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
            yield V5(path, elements, element, axis)
        else:
            raise Refused("corrupt", f"{path.name} is {_other(start, path)}")


def _other(start: bytes, path: Path) -> str:
    """What a file without the header of MATLAB 5 or 7.3 is, and what to do."""
    if (found := kinds.kind_of(path)) and found.reader != "mat" and found is not kinds.BINARY:
        return str(found)
    first = int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")
    if len(start) > 20 and any(0 <= n < 5000 and n % 10 in (0, 1) for n in first) and b"\0" in start[:20]:
        return "a MATLAB file of version 4: save it again with save(..., '-v7')"
    if start and b"\0" not in start:
        return (
            'text, as save -ascii writes it, no MATLAB file of version 5 or 7.3: take reader = "table" '
            "with header = 0, or save it with '-v7'"
        )
    return "no MATLAB file of version 5 or 7.3"


# ---------------------------------------------------------------- version 5


@lru_cache(maxsize=6)
def _loaded(path: str, name: str, _stamp: tuple[int, int]) -> Any:
    from scipy.io import loadmat

    # one variable at a time, in the type in which it was stored: integers stay integers
    return loadmat(path, variable_names=[name], mat_dtype=False).get(name)


@lru_cache(maxsize=64)
def _shapes(path: str, stamp: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], str]]:
    from scipy.io import whosmat

    found = {name: (tuple(shape), kind) for name, shape, kind in whosmat(path)}
    for name, (shape, _) in found.items():
        if math.prod(shape) > INFLATION * stamp[0]:
            raise Refused("corrupt", f"{name} claims {math.prod(shape):,} elements")
    return found


OBJECTS = ("object", "function", "opaque", "unknown")
NESTED = ("struct", "cell", *OBJECTS)


class V5(MatFile):
    @property
    def _about(self) -> dict[str, tuple[tuple[int, ...], str]]:
        about = os.stat(self.path)
        return _shapes(str(self.path), (about.st_size, about.st_mtime_ns))

    def _whole(self, name: str) -> Any:
        """What a dotted name stands for in the whole file, None where there is none."""
        first, *parts = name.split(".")
        if self._about.get(first, ((), "unknown"))[1] in OBJECTS:
            return None
        about = os.stat(self.path)
        return _inside(_loaded(str(self.path), first, (about.st_size, about.st_mtime_ns)), parts)

    def _found(self, name: str) -> Any:
        """What a name stands for, in this record where the file holds many."""
        if not self.elements:
            return self._whole(name)
        mine = self._part(self._whole(self.elements))
        if _fields(mine) and (found := _inside(mine, name.split("."))) is not None:
            return found
        return self._part(self._whole(name))

    def _part(self, found: Any) -> Any:
        if not isinstance(found, np.ndarray):
            return None
        count, at = self.count(), self.element or 0
        if found.dtype.kind == "O" and found.size == count:
            return found.ravel(order="F")[at]
        if _fields(found):
            return (
                found.ravel(order="F")[at : at + 1]
                if found.size == count
                else found
                if found.size == 1
                else None
            )
        return split(found, count, at, self.axis) if found.dtype.kind != "O" else None

    def get(self, name: str) -> np.ndarray | None:
        found = self._found(name)
        return found if isinstance(found, np.ndarray) and found.dtype.kind in "biufUS" else None

    def what(self, name: str) -> str | None:
        kind = self._about.get(name, ((), ""))[1]
        if kind in OBJECTS:
            return "an object of MATLAB's own (a string, table or datetime)"
        found = self._found(name)
        if not isinstance(found, np.ndarray) or found.dtype.kind in "biufUS":
            return None
        if _fields(found):
            return f"a struct array of {size(found.shape)}" if found.size != 1 else "a struct"
        return f"a cell array of {size(found.shape)}"

    def total(self, name: str) -> int:
        found = self._whole(name)
        if not isinstance(found, np.ndarray) or _fields(found):
            return 0
        cells = found.ravel().tolist() if found.dtype.kind == "O" else [found]
        return sum(cell.size for cell in cells if isinstance(cell, np.ndarray) and cell.dtype.kind in "biuf")

    def names(self) -> list[str]:
        mine = self._part(self._whole(self.elements)) if self.elements else None
        listed = list(_fields(mine))
        for name, (shape, kind) in self._about.items():
            one = kind == "struct" and math.prod(shape) == 1
            listed += (
                _leaves(self._whole(name), name, DEPTH) if one else [f"{name} ({_kind(kind)}{size(shape)})"]
            )
        return listed

    def shape(self, name: str) -> tuple[int, ...] | None:
        if self.elements or "." in name:
            return super().shape(name)
        shape, kind = self._about.get(name, (None, ""))
        return None if kind in NESTED else shape

    def count(self) -> int:
        found = self._whole(self.elements or "")
        if not isinstance(found, np.ndarray) or found.dtype.kind in "US":
            raise self._no_elements()
        if _fields(found) or found.dtype.kind == "O":
            return int(found.size)
        return self._rows(self.elements or "", found.shape)

    def facts(self) -> Collection[str]:
        found: list[str] = []
        for name, (shape, kind) in self._about.items():
            if kind == "struct" and math.prod(shape) == 1:
                found += _leaves(self._whole(name), name, DEPTH - 1)
            elif kind not in NESTED:
                found.append(name)
        if (
            self.elements
            and "." not in self.elements
            and self._about.get(self.elements, ((), ""))[1] in NESTED
        ):
            found += _leaves(self._part(self._whole(self.elements)), "", DEPTH - 1)
        return found


def _kind(kind: str) -> str:
    return {"cell": "cell array ", "struct": "struct array "}.get(kind, "object " if kind in OBJECTS else "")


def _fields(found: Any) -> tuple[str, ...]:
    return getattr(getattr(found, "dtype", None), "names", None) or ()


def _inside(found: Any, parts: list[str]) -> Any:
    """What lies in a struct under the names `parts`; None where there is no such field, or many structs."""
    for part in parts:
        if part not in _fields(found) or found.size != 1:
            return None
        found = found[part].ravel()[0]
    return found


def _leaves(found: Any, prefix: str, depth: int) -> list[str]:
    """Dotted names of the fields of a struct and of those in it."""
    names: list[str] = []
    for field in _fields(found)[:MANY] if getattr(found, "size", 0) == 1 else ():
        name, inner = f"{prefix}.{field}" if prefix else field, found[field].ravel()[0]
        names += _leaves(inner, name, depth - 1) if _fields(inner) and depth else [name]
    return names
