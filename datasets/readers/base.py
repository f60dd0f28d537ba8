"""What every reader speaks: a root of files, sources found in it, and the recordings they hold."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError


class Refused(Exception):
    """A record that must not go in: a reason from the ledger's vocabulary, and what a person should know."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return Refused, (self.reason, self.detail)


@dataclass
class Samples:
    """One modality of one record, at its native rate.

    `x_tc` (samples, channels): integers or floats, physical = x * scale + offset.
    `missing` (samples,): where the source has no value.
    """

    x_tc: np.ndarray
    missing: np.ndarray
    rate: Fraction
    scale: float
    offset: float
    unit: str


@dataclass
class Labels:
    """Labels of one name. `values` is a float array, or a list of words; times None: of the whole record."""

    name: str
    values: np.ndarray | list[str]
    unit: str | None = None
    start_s: np.ndarray | None = None
    end_s: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """A record as its header describes it, before any sample is read.

    `seconds`: what the header promises, a modality. `refused`: modality -> reason known from the header.
    `broken`: (reason, detail) when the whole record is refused. `files`: paths below the root, with bytes.
    """

    record: str
    subject: str
    groups: dict[str, str]
    files: tuple[tuple[str, int], ...]
    seconds: dict[str, Fraction]
    samples: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    broken: tuple[str, str] | None = None

    @property
    def stem(self) -> str:
        """The first file's path below the root, without its suffix: what WFDB calls the record."""
        return self.files[0][0].rsplit(".", 1)[0]


@dataclass
class Recording:
    """`problems`: labels that could not be read, in words; the waveforms are sound all the same."""

    signals: dict[str, Samples]
    labels: list[Labels]
    problems: list[str] = field(default_factory=list)


def _sizes(folder: str) -> dict[str, int]:
    """Bytes of all files below a local folder, links followed: data managers keep files behind them."""
    found = {}
    for at, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = os.path.join(at, name)
            if os.path.exists(path):
                found[os.path.relpath(path, folder).replace(os.sep, "/")] = os.stat(path).st_size
    return dict(sorted(found.items()))


class Root:
    """The folder that holds the source files: local or s3."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.normalise(uri)
        self.sizes = storage.sizes(self.uri) if storage.is_remote(self.uri) else _sizes(self.uri)
        if not self.sizes:
            raise PlethoraError(
                f"{self.uri} holds no files: --root is the folder that holds the source files"
            )

    @classmethod
    def reopen(cls, uri: str, names: Iterable[str]) -> "Root":
        """The root at `uri` as far as `names` are concerned, without listing it again."""
        root = cls.__new__(cls)
        root.uri, root.sizes = uri, dict.fromkeys(names, 0)
        return root

    def fetch(self, names: Iterable[str], folder: Path) -> Path:
        """A local folder that holds `names` below it: the root itself when it is local, else copies."""
        if not storage.is_remote(self.uri):
            return Path(self.uri)

        def copy(name: str) -> None:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(storage.read_bytes(storage.join(self.uri, name)))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(copy, [name for name in names if name in self.sizes]))
        return folder
