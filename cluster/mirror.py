"""A local folder of growing files, mirrored to the storage."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster import storage

UPLOAD_EVERY_S = 30.0


class Mirror:
    """`folder` is the folder `uri` itself. For a bucket it is a temporary folder whose changed files are
    uploaded whole in the background: every 30 s at `tick`, and all of them at `flush`.
    """

    def __init__(self, uri: str) -> None:
        self.uri = storage.normalise(uri)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._pool: ThreadPoolExecutor | None = None
        if storage.is_remote(self.uri):
            self._temporary = tempfile.TemporaryDirectory(prefix="plethora-mirror-")
            self._pool = ThreadPoolExecutor(1)
            self.folder = Path(self._temporary.name)
        else:
            self.folder = Path(self.uri)
            self.folder.mkdir(parents=True, exist_ok=True)
        self._sent: dict[str, tuple[int, float]] = {}
        self._pending: Any = None
        self._sent_at = time.monotonic()

    def tick(self) -> None:
        """Upload changed files if an upload is due; raises the error of an earlier failed upload."""
        now = time.monotonic()
        if self._pool is None or now - self._sent_at < UPLOAD_EVERY_S:
            return
        self._sent_at = now
        if self._pending is not None and self._pending.done():
            self._pending.result()  # raise the error of a failed upload
        if self._pending is None or self._pending.done():
            self._pending = self._pool.submit(self._send)

    def flush(self) -> None:
        """Upload everything; when this returns, all that was written is on the storage."""
        if self._pool is not None:
            self._pool.submit(self._send).result()

    def close(self) -> None:
        """Flush and stop; a temporary folder is removed."""
        self.flush()
        if self._pool is not None:
            self._pool.shutdown()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _send(self) -> None:
        for name in storage.listing(self.folder):
            path = self.folder / name
            stat = path.stat()
            mark = (stat.st_size, stat.st_mtime)
            if self._sent.get(name) != mark:
                storage.write_bytes(storage.join(self.uri, name), path.read_bytes())
                self._sent[name] = mark
