"""Variables of a MATLAB file, v5 (scipy) or v7.3 (HDF5), the same way: arrays in MATLAB's orientation.

A dotted name reaches into a struct (`data.ppg.v`). In a file of many records, an array of structs whose every
element is a record, names are those of the element's fields.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from datasets.readers.base import Refused

INFLATION = 1100  # deflate cannot do more; a file that claims more elements than that was tampered with


@contextmanager
def clear(path: Path) -> Iterator[None]:
    """Whatever a library raises over a broken file becomes one Refused."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # scipy and h5py raise whatever their parsing runs into
        words = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise Refused("corrupt", f"{path.name} cannot be read as a MATLAB file ({words})") from error


class MatFile(ABC):
    """An open file. `shape(name)`: without reading the array where the format allows."""

    def __init__(self, path: Path, elements: str | None = None, element: int | None = None) -> None:
        self.path, self.elements, self.element = path, elements, element

    @abstractmethod
    def get(self, name: str) -> np.ndarray | None:
        """An array, None where there is none."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        found = self.get(name)
        return None if found is None else found.shape

    @abstractmethod
    def count(self) -> int:
        """Elements of a file of many records."""

    def word(self, name: str) -> str | None:
        """A scalar or a word as text, for labels; None for anything else."""
        found = self.get(name)
        if found is None or not found.size:
            return None
        if found.dtype.kind in "US":
            return "".join(found.ravel().tolist()).strip()
        return repr(found.ravel()[0].item()) if found.size == 1 and found.dtype.kind in "biuf" else None


@contextmanager
def opened(path: Path, elements: str | None = None, element: int | None = None) -> Iterator[MatFile]:
    """The MATLAB file at `path`. Refused: it is none, or of version 4, or broken."""
    with open(path, "rb") as file:
        start = file.read(520)
    with clear(path):
        if start[512:520] == b"\x89HDF\r\n\x1a\n" or start[:8] == b"\x89HDF\r\n\x1a\n":
            import h5py

            with h5py.File(path, "r") as h5:
                yield _Hdf5(path, h5, elements, element)
        elif start[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
            yield _V5(path, elements, element)
        else:
            raise Refused("corrupt", f"{path.name} is not a MATLAB file of version 5 or 7.3")


# ---------------------------------------------------------------- version 5


@lru_cache(maxsize=2)
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


class _V5(MatFile):
    def _variable(self, name: str) -> Any:
        about = os.stat(self.path)
        stamp = (about.st_size, about.st_mtime_ns)
        return _loaded(str(self.path), name, stamp) if name in _shapes(str(self.path), stamp) else None

    def get(self, name: str) -> np.ndarray | None:
        parts = name.split(".")
        if self.elements:
            found = self._variable(self.elements)
            found = None if found is None else found.ravel()[self.element : (self.element or 0) + 1]
        else:
            found = self._variable(parts.pop(0))
        for part in parts:
            fields = getattr(getattr(found, "dtype", None), "names", None) or ()
            if part not in fields or found.size != 1:
                return None
            found = found[part].ravel()[0]
        return found if isinstance(found, np.ndarray) and found.dtype.kind in "biufUS" else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        if self.elements or "." in name:
            return super().shape(name)
        about = os.stat(self.path)
        shape, kind = _shapes(str(self.path), (about.st_size, about.st_mtime_ns)).get(name, (None, ""))
        return shape if kind not in ("struct", "cell", "object", "function", "opaque", "unknown") else None

    def count(self) -> int:
        found = self._variable(self.elements or "")
        if found is None or getattr(found.dtype, "names", None) is None:
            raise Refused("corrupt", f"no array of structs {self.elements!r}")
        return int(found.size)


# ---------------------------------------------------------------- version 7.3


class _Hdf5(MatFile):
    def __init__(self, path: Path, h5: Any, elements: str | None, element: int | None) -> None:
        super().__init__(path, elements, element)
        self.h5 = h5

    def _node(self, name: str) -> Any:
        """The dataset that `name` stands for, or None; links out of the file are not followed."""
        import h5py

        at: Any = self.h5
        parts = [self.elements, *name.split(".")] if self.elements else name.split(".")
        for part in parts:
            if not isinstance(at, h5py.Group) or isinstance(at.get(part, getlink=True), h5py.ExternalLink):
                return None
            at = at.get(part)
        if self.elements and isinstance(at, h5py.Dataset) and at.dtype == h5py.ref_dtype:
            refs = at[()].ravel()  # a struct array: one reference an element
            at = self.h5[refs[self.element or 0]] if (self.element or 0) < len(refs) else None
        if not isinstance(at, h5py.Dataset) or at.dtype.kind not in "biuf" or at.external or at.is_virtual:
            return None
        if at.size is None or "MATLAB_empty" in at.attrs:
            return None
        if at.size * at.dtype.itemsize > INFLATION * self.path.stat().st_size:
            raise Refused("corrupt", f"{name} claims {at.size:,} elements")
        return at

    def get(self, name: str) -> np.ndarray | None:
        node = self._node(name)
        if node is None:
            return None
        found = np.asarray(node[()]).T
        if node.attrs.get("MATLAB_class", b"") == b"char":
            return np.array("".join(chr(code) for code in found.ravel().tolist()))
        return found

    def shape(self, name: str) -> tuple[int, ...] | None:
        node = self._node(name)
        return None if node is None else tuple(reversed(node.shape))

    def count(self) -> int:
        import h5py

        group = self.h5.get(self.elements or "")
        if not isinstance(group, h5py.Group) or not len(group):
            raise Refused("corrupt", f"no array of structs {self.elements!r}")
        columns = [node for node in group.values() if isinstance(node, h5py.Dataset)]
        return max((node.size if node.dtype == h5py.ref_dtype else 1) for node in columns) if columns else 0
