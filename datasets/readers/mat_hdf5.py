"""MATLAB files of version 7.3, which are HDF5: see `mat_file`."""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from datasets.readers.base import Refused
from datasets.readers.mat_file import DEPTH, INFLATION, MANY, MatFile, size, split

NUMBERS = (b"char", b"logical", b"double", b"single", b"")


class Hdf5(MatFile):
    def __init__(
        self, path: Path, h5: h5py.File, elements: str | None, element: int | None, axis: int | None
    ) -> None:
        super().__init__(path, elements, element, axis)
        self.h5 = h5

    @cached_property
    def _count(self) -> int | None:
        return None if self.elements is None else self.count()

    def _inside(self, at: Any, parts: list[str], mine: bool = True) -> Any:
        """The node below a group under the names `parts`, in this record if it is `mine`; links out of the
        file are not followed."""
        for i, part in enumerate(parts):
            at = self._cell(at) if i and mine else at
            if not isinstance(at, h5py.Group) or isinstance(at.get(part, getlink=True), h5py.ExternalLink):
                return None
            at = at.get(part)
        return at

    def _cell(self, node: Any) -> Any:
        """The part of this record: its cell, or its element of a struct array; else the node itself."""
        if isinstance(node, h5py.Dataset) and node.dtype == h5py.ref_dtype:
            return self.h5[node[()].ravel()[self.element or 0]] if node.size == self._count else None
        return node

    def _found(self, name: str) -> tuple[Any, bool]:
        """The node of a name, and whether it holds many records, of which one is to be taken."""
        parts = name.split(".")
        if self.elements is None:
            return self._inside(self.h5, parts), False
        holder = self._inside(self.h5, self.elements.split("."))
        mine = self._cell(holder)
        if isinstance(mine, h5py.Group) and (found := self._inside(mine, parts)) is not None:
            return self._cell(found), False
        found = self._inside(self.h5, parts)
        return self._cell(found), not _cells(found)

    def _node(self, name: str) -> tuple[h5py.Dataset | None, bool]:
        """The numeric dataset of `name`, or None; and whether it holds many records."""
        at, many = self._found(name)
        if not isinstance(at, h5py.Dataset) or at.dtype.kind not in "biuf" or at.external or at.is_virtual:
            return None, many
        if at.size is None or "MATLAB_empty" in at.attrs or _opaque(at):
            return None, many
        if at.size * at.dtype.itemsize > INFLATION * self.path.stat().st_size:
            raise Refused("corrupt", f"{name} claims {at.size:,} elements")
        return at, many

    def get(self, name: str) -> np.ndarray | None:
        node, many = self._node(name)
        if node is None:
            return None
        if node.attrs.get("MATLAB_class", b"") == b"char":
            return np.array("".join(chr(code) for code in np.asarray(node[()]).T.ravel().tolist()))
        if not many or self._count is None:
            return np.asarray(node[()]).T
        shape, axis, at = tuple(reversed(node.shape)), self.axis, self.element or 0
        if axis is not None and len(shape) > axis and shape[axis] == self._count and node.size > self._count:
            return np.asarray(node[(*[slice(None)] * (len(shape) - 1 - axis), at)]).T  # this record only
        return split(np.asarray(node[()]).T, self._count, at, None)

    def what(self, name: str) -> str | None:
        at, _ = self._found(name)
        if isinstance(at, h5py.Group):
            return "a struct"
        if _cells(at):
            return f"a cell array of {size(tuple(reversed(at.shape)))}"
        return "an object of MATLAB's own (a string, table or datetime)" if _opaque(at) else None

    def names(self) -> list[str]:
        found = []
        for name in _leaves(self.h5, "", DEPTH):
            node = self.h5[name.replace(".", "/")]
            kind = "cell array " if _cells(node) else "object " if _opaque(node) else ""
            found.append(f"{name} ({kind}{size(tuple(reversed(node.shape)))})")
        return found

    def total(self, name: str) -> int:
        found = self._inside(self.h5, name.split("."))
        cells = [self.h5[ref] for ref in found[()].ravel()] if _cells(found) else [found]
        return sum(c.size for c in cells if isinstance(c, h5py.Dataset) and c.dtype.kind in "biuf")

    def shape(self, name: str) -> tuple[int, ...] | None:
        node, many = self._node(name)
        if node is None:
            return None
        if many or node.attrs.get("MATLAB_class", b"") == b"char":
            return super().shape(name)
        return tuple(reversed(node.shape))

    def count(self) -> int:
        found = self._inside(self.h5, (self.elements or "").split("."), mine=False)
        if isinstance(found, h5py.Group) and len(found):
            columns = [node for node in found.values() if isinstance(node, h5py.Dataset)]
            return max((node.size if _cells(node) else 1) for node in columns) if columns else 0
        if _cells(found):
            return int(found.size)
        if isinstance(found, h5py.Dataset) and found.dtype.kind in "biuf" and found.shape:
            return self._rows(self.elements or "", tuple(reversed(found.shape)))
        raise self._no_elements()

    def facts(self) -> Collection[str]:
        found = _leaves(self.h5, "", DEPTH)
        if self.elements and isinstance(
            mine := self._cell(self._inside(self.h5, self.elements.split("."))), h5py.Group
        ):
            found += _leaves(mine, "", DEPTH)
        return found


def _cells(node: Any) -> bool:
    return isinstance(node, h5py.Dataset) and node.dtype == h5py.ref_dtype


def _opaque(node: Any) -> bool:
    """Whether a dataset holds a MATLAB object instead of numbers."""
    kind = node.attrs.get("MATLAB_class", b"") if isinstance(node, h5py.Dataset) else b""
    return "MATLAB_object_decode" in getattr(node, "attrs", {}) or not (
        kind in NUMBERS or kind.startswith((b"int", b"uint"))
    )


def _leaves(group: h5py.Group, prefix: str, depth: int) -> list[str]:
    names: list[str] = []
    for field in list(group)[:MANY]:
        if field.startswith("#") or isinstance(group.get(field, getlink=True), h5py.ExternalLink):
            continue
        name, node = f"{prefix}.{field}" if prefix else field, group.get(field)
        if isinstance(node, h5py.Group):
            names += _leaves(node, name, depth - 1) if depth > 1 else []
        else:
            names.append(name)
    return names
