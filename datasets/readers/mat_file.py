"""Variables of a MATLAB file, v5 (scipy) or v7.3 (HDF5), with one interface: arrays in MATLAB's orientation.

A dotted name reaches into a struct (`data.ppg.v`). In a file of many records (`elements`) every name means
the part that belongs to one record: its element of an array of structs, its cell of a cell array, its row or
column (`axis`) of a matrix, its entry of a list with one entry per record; or else the one number, word or
struct that serves all.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datasets.readers import kinds, rates
from datasets.readers.base import Refused

INFLATION = 1100  # deflate's limit; a file that claims more elements was tampered with
DEPTH = 3  # maximum depth of the search for rates in structs
MANY = 200  # maximum number of listed fields of a struct


@contextmanager
def clear(path: Path) -> Iterator[None]:
    """Turns any error that a library raises over a broken file into one Refused."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # scipy and h5py raise any error of their parsing
        raise Refused(
            "corrupt", f"{path.name} cannot be read as a MATLAB file ({kinds.message_of(error)})"
        ) from error


class MatFile(rates.Facts):
    """An open file. `shape(name)`: without reading the array if the format allows."""

    def __init__(
        self, path: Path, elements: str | None = None, element: int | None = None, axis: int | None = None
    ) -> None:
        self.path, self.elements, self.element, self.axis = path, elements, element, axis

    @abstractmethod
    def get(self, name: str) -> np.ndarray | None:
        """An array of numbers or a string, None if there is none."""

    @abstractmethod
    def what(self, name: str) -> str | None:
        """The type of what is neither a numeric array nor a string (`a cell array of 1 x 3`); else None."""

    @abstractmethod
    def total(self, name: str) -> int:
        """Number of values in a variable, in all cells of a cell array; 0 if there are none."""

    @abstractmethod
    def names(self) -> list[str]:
        """The variables of the file, with their sizes."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        found = self.get(name)
        return None if found is None else found.shape

    @abstractmethod
    def count(self) -> int:
        """Number of elements in a file of many records. Refused: `elements` is missing, or not an array of
        records."""

    def fact(self, name: str) -> object:
        shape = self.shape(name)
        return self.get(name) if shape is not None and math.prod(shape) <= MANY else None

    def word(self, name: str) -> str | None:
        """A scalar or a string as text, for labels; None for anything else."""
        found = self.get(name)
        if found is None or not found.size:
            return None
        if found.dtype.kind in "US":
            return "".join(found.ravel().tolist()).strip()
        return repr(found.ravel()[0].item()) if found.size == 1 and found.dtype.kind in "biuf" else None

    def _rows(self, name: str, shape: tuple[int, ...]) -> int:
        """Number of records in a matrix."""
        if self.axis is None:
            raise Refused(
                "unsupported",
                f"{name} is {size(shape)}: set elements_axis = 0 if each row is a record, or 1 if each "
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
    """The part of a numeric array that belongs to one of `count` records: its row or column, its entry, or
    the one number that serves all; None if the array has no part for each."""
    if axis is not None and found.ndim > axis and found.shape[axis] == count and found.size > count:
        return np.take(found, element, axis)
    if found.size == count:
        return found.ravel(order="F")[element : element + 1]
    return found if found.size == 1 or found.dtype.kind in "US" else None
