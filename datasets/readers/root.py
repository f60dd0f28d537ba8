"""The folder of source files: local, s3, or any backend of fsspec (https, memory, gs…)."""

import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cluster import storage
from cluster.errors import PlethoraError

THREADS = 8


def _foreign(uri: str) -> bool:
    return "://" in uri and not uri.startswith(("s3://", "file://"))


def _sizes(folder: str) -> dict[str, int]:
    """Bytes of all files below a local folder; follows links, which data managers use."""
    found = {}
    for at, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = os.path.join(at, name)
            if os.path.exists(path):
                found[os.path.relpath(path, folder).replace(os.sep, "/")] = os.stat(path).st_size
    return dict(sorted(found.items()))


class Root:
    """`uri`: the folder; `sizes`: {path below it: bytes}. Raises PlethoraError if it holds no files."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if _foreign(uri) else storage.normalise(uri)
        if _foreign(uri):
            self.sizes = self._foreign_sizes()
        else:
            self.sizes = _sizes(self.uri) if self.local else storage.sizes(self.uri)
        if not self.sizes:
            raise PlethoraError(
                f"{self.uri} holds no files: --root is the folder that holds the source files"
            )

    @classmethod
    def reopen(cls, uri: str, names: Iterable[str]) -> "Root":
        """The root at `uri`, restricted to `names`, without listing it again."""
        root = cls.__new__(cls)
        root.uri, root.sizes = uri, dict.fromkeys(names, 0)
        return root

    @property
    def local(self) -> bool:
        return "://" not in self.uri

    def fetch(self, names: Iterable[str], folder: Path) -> Path:
        """A local folder that holds `names` below it: the root itself if it is local, else copies.
        PlethoraError for a name that leads out of the root; links below it are followed, see `_sizes`.
        """
        names = list(names)
        for name in names:
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise PlethoraError(f"{self.uri}: `{name}` leads out of this folder: correct the descriptor")
        if self.local:
            return Path(self.uri)

        def copy(name: str) -> None:
            target = storage.inside(folder, name)
            if target.exists():
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            if _foreign(self.uri):
                fs, path = self._filesystem()
                try:
                    fs.get_file(f"{path}/{name}", str(target))
                except Exception as error:  # each of fsspec's backends raises its own errors
                    raise self._unreachable(name, error) from error
            else:
                target.write_bytes(storage.read_bytes(storage.join(self.uri, name)))

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(copy, [name for name in dict.fromkeys(names) if name in self.sizes]))
        return folder

    def read(self, name: str) -> bytes:
        """The content of one file."""
        with tempfile.TemporaryDirectory() as scratch:
            return (self.fetch([name], Path(scratch)) / name).read_bytes()

    def _filesystem(self) -> tuple[Any, str]:
        import fsspec

        if "@" in urlsplit(self.uri).netloc:
            raise PlethoraError("--root must not hold a user or password: they go into fsspec's own settings")
        try:
            fs, path = fsspec.core.url_to_fs(self.uri)
        except (ValueError, ImportError) as error:  # unknown protocol, or its package is not installed
            raise PlethoraError(f"{self.uri}: fsspec cannot open it: {error}") from error
        return fs, path.rstrip("/")

    def _foreign_sizes(self) -> dict[str, int]:
        fs, path = self._filesystem()
        try:
            listed = fs.find(path, detail=True)
            sizes = {full: about.get("size") for full, about in listed.items()}
            unknown = [full for full, size in sizes.items() if size is None]  # web pages list only names
            with ThreadPoolExecutor(THREADS) as pool:
                sizes |= zip(unknown, pool.map(fs.size, unknown), strict=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # each of fsspec's backends raises its own errors
            raise self._unreachable("", error) from error
        silent = next((full for full, size in sizes.items() if size is None), None)
        if silent is not None:
            raise PlethoraError(f"{silent}: the server does not state its size: copy the files first")
        return {full[len(path) :].lstrip("/"): int(size) for full, size in sorted(sizes.items())}

    def _unreachable(self, name: str, error: Exception) -> PlethoraError:
        words = (str(error) or type(error).__name__).splitlines()[0]
        return PlethoraError(f"{self.uri}/{name}: cannot be read: {words}".replace("/:", ":"))
