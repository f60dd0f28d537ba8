"""The interface of an open file of columns, common to all its formats."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa

from datasets.readers import rates
from datasets.readers.base import Refused

LARGEST = 8 * 2**30  # maximum unpacked size of a file's variable, or of a text in it, bytes


class Columns(rates.Facts):
    """An open file: `names` of its columns, read one at a time."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    @abstractmethod
    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        """One column, (samples,), NaN for missing values: empty, or one of `missing` (numbers as stored,
        words). Refused: not numeric, or more than one channel."""

    def raw(self, name: str) -> np.ndarray | pa.Array | pa.ChunkedArray | None:
        """A column as the file holds it: numbers, words or times; None if there is none."""
        return self.read(name) if name in self.names else None

    def length(self, name: str) -> int:
        return len(self.read(name))

    def facts(self) -> Collection[str]:
        return self.names

    def fact(self, name: str) -> object:
        if name not in self.names:
            return None
        with suppress(Refused):
            return self.read(name)
        return None

    def path(self, name: str) -> str:
        """A column's dotted path in the file; attributes beside it describe it."""
        return name


def check_size(name: str, size: int, most: int = LARGEST) -> None:
    """Refused (corrupt): something unpacks to more than `most` bytes."""
    if size > most:
        raise Refused(
            "corrupt", f"{name} unpacks to {size / 2**30:,.1f} GiB: larger than any recording may be"
        )
