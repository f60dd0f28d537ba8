"""MATLAB files of version 5, read by scipy: see `mat_file`."""

import math
import os
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import numpy as np

from datasets.readers.base import Refused
from datasets.readers.mat_file import DEPTH, INFLATION, MANY, MatFile, size, split


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
        """The value of a dotted name in the whole file, None if there is none."""
        first, *parts = name.split(".")
        if self._about.get(first, ((), "unknown"))[1] in OBJECTS:
            return None
        about = os.stat(self.path)
        return _inside(_loaded(str(self.path), first, (about.st_size, about.st_mtime_ns)), parts)

    def _found(self, name: str) -> Any:
        """The value of a name, in this record if the file holds many."""
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
    """The value in a struct under the names `parts`; None if there is no such field, or many structs."""
    for part in parts:
        if part not in _fields(found) or found.size != 1:
            return None
        found = found[part].ravel()[0]
    return found


def _leaves(found: Any, prefix: str, depth: int) -> list[str]:
    """Dotted names of the fields of a struct, recursively."""
    names: list[str] = []
    for field in _fields(found)[:MANY] if getattr(found, "size", 0) == 1 else ():
        name, inner = f"{prefix}.{field}" if prefix else field, found[field].ravel()[0]
        names += _leaves(inner, name, depth - 1) if _fields(inner) and depth else [name]
    return names
