"""Where the column chunks of a Parquet file lie, read from its footer (Thrift's compact protocol).

pyarrow provides this too, but aborts the process over some damaged column metadata (an offset flipped into
another field), and a corpus may come from a stranger. This takes about 2 ms for a footer of 16 row groups, so
it is done once, when footers are collected.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_DEEPEST = 16
Chunks = list[dict[str, tuple[int, int]]]


class _Compact:
    """A cursor over Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.depth = data, 0, 0

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def value(self, kind: int) -> Any:
        """A value of a compact type: a struct is {field id: value}, a list is a list, text is bytes."""
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            self.at += 1
            return self.data[self.at - 1]
        if kind in (4, 5, 6):
            return self.zigzag()
        if kind == 7:
            self.at += 8
            return None
        if kind == 8:
            size = self.varint()
            self.at += size
            if self.at > len(self.data):
                raise IndexError("text ends beyond the footer")
            return self.data[self.at - size : self.at]
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError("nested too deep")
        found = self.struct() if kind == 12 else self.list() if kind in (9, 10) else self._unknown(kind)
        self.depth -= 1
        return found

    def _unknown(self, kind: int) -> Any:
        raise ValueError(f"type {kind}")

    def list(self) -> list[Any]:
        head = self.data[self.at]
        self.at += 1
        size, kind = head >> 4, head & 0x0F
        size = self.varint() if size == 15 else size
        if size > len(self.data) - self.at:
            raise ValueError("a list longer than the footer")
        if kind in (1, 2):  # in a list each takes one byte
            self.at += size
            return []
        return [self.value(kind) for _ in range(size)]

    def struct(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        while head := self.data[self.at]:
            self.at += 1
            number = number + (head >> 4) if head >> 4 else self._number()
            found[number] = self.value(head & 0x0F)
        self.at += 1
        return found

    def _number(self) -> int:
        return self.zigzag()


def chunks(footer: bytes, size: int) -> tuple[list[int], Chunks]:
    """Rows of each row group, and {column: (first byte, length)} of each, from the footer of a file whose
    pages end before byte `size`. ArrowInvalid if the footer is inconsistent.
    """
    try:
        about = _Compact(footer).struct()
        rows, found = [], []
        for group in about[4]:
            rows.append(group[3])
            columns: dict[str, tuple[int, int]] = {}
            for chunk in group[1]:
                if 8 in chunk or 9 in chunk or 1 in chunk:
                    raise ValueError("encrypted, or in another file")
                meta = chunk[3]
                name = b".".join(meta[3]).decode()
                first, more = meta[9], meta.get(11, 0)  # the data pages, preceded by a dictionary
                first = more if 0 < more < first else first
                if not (first >= 4 and meta[7] >= 0 and first + meta[7] <= size):
                    raise ValueError(f"column {name!r} lies outside of its file")
                columns[name] = first, meta[7]
            found.append(columns)
        return rows, found
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as broken:
        raise pa.ArrowInvalid(f"its footer is not Parquet's: {broken}".splitlines()[0]) from broken
