"""Opens a MATLAB file of version 5 or 7.3: see `mat_file`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.readers import kinds
from datasets.readers.base import Refused
from datasets.readers.mat_file import MatFile, clear
from datasets.readers.mat_v5 import V5


@contextmanager
def opened(
    path: Path, elements: str | None = None, element: int | None = None, axis: int | None = None
) -> Iterator[MatFile]:
    """The MATLAB file at `path`. Refused: it is not one, or of version 4, or broken."""
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
    """The type of a file without a MATLAB 5 or 7.3 header, and what to do."""
    if (found := kinds.kind_of(path)) and found.reader != "mat" and found is not kinds.BINARY:
        return str(found)
    first = int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")
    if len(start) > 20 and any(0 <= n < 5000 and n % 10 in (0, 1) for n in first) and b"\0" in start[:20]:
        return "a MATLAB file of version 4: save it again with save(..., '-v7')"
    if start and b"\0" not in start:
        return (
            'text, as save -ascii writes it, not a MATLAB file of version 5 or 7.3: use reader = "table" '
            "with header = 0, or save it with '-v7'"
        )
    return "not a MATLAB file of version 5 or 7.3"
