"""The filesystem that Ray Train writes a run through.

Ray rewrites the list of a run's committed checkpoints in place: if the controller dies or the disk fills up
at that moment, half a list would remain, and with it no checkpoint at all. Here a file that Python code
writes appears whole or not at all. Buckets guarantee this themselves.
"""

import io
from types import TracebackType
from typing import Any

import pyarrow.fs

from cluster import storage


def durable(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of `uri` for Ray, and the path within it."""
    found, path = storage.filesystem(uri)
    return (found, path) if storage.is_remote(uri) else (_Disk(), path)


class _Disk(pyarrow.fs.LocalFileSystem):
    """A local disk on which a file from `open_output_stream` becomes visible only when complete. Copies made
    in C++ (the checkpoints, which their manifests protect) are streamed as usual.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _Disk, ()

    def open_output_stream(self, path: str, *_: Any, **__: Any) -> "_Whole":
        return _Whole(path)


class _Whole(io.BytesIO):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            super().close()  # an incomplete file is not written
        self.close()

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            storage.write_bytes(self.path, data)
