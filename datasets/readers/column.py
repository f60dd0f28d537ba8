"""A file of columns being read: what its formats have in common."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa

from datasets.readers import rates
from datasets.readers.base import Refused

LARGEST = 8 * 2**30  # bytes that one variable of a file, or a text in it, may unpack to


class Columns(rates.Facts):
    """A file being read: `names` of its columns, read one by one."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    @abstractmethod
    def read(self, name: str, missing: Sequence[float | str] = ()) -> np.ndarray:
        """One column, (samples,), NaN where it is missing: empty, or one of `missing` (numbers as they
        are stored, words). Refused: no numbers, or more than one channel."""

    def raw(self, name: str) -> np.ndarray | pa.Array | pa.ChunkedArray | None:
        """A column as the file holds it: numbers, words or times; None where there is none."""
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
        """Where a column lies in the file, dotted: what stands beside it speaks of it."""
        return name


def check_size(name: str, size: int, most: int = LARGEST) -> None:
    """Refused (corrupt): what unpacks to more than `most` bytes."""
    if size > most:
        raise Refused(
            "corrupt", f"{name} unpacks to {size / 2**30:,.1f} GiB: no recording of ours is so large"
        )
