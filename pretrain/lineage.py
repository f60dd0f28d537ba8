"""The lineage of a run's model: its corpora and parent bundles, with their terms."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import bundle, storage, terms
from pretrain.config import RunConfig
from pretrain.data import Data


def corpora(data: Data) -> list[dict[str, Any]]:
    """`Data.lineage`, with the name of each corpus and who may have models trained on it."""
    manifests = [found.corpus.manifest for found in data.indexes]
    return [
        {**entry, "name": m.get("name", ""), "models": terms.audience(m)}
        for entry, m in zip(data.lineage(), manifests, strict=True)
    ]


def parents(run: RunConfig) -> list[dict[str, str]]:
    """The inputs that the run's method names: bundles (a frozen tokenizer, a teacher) with the hash of their
    SHA256SUMS, and weights files with their SHA-256.
    """
    found = []
    for value in _leaves(run.method):
        if isinstance(value, str) and storage.exists(mark := storage.join(value, "_COMPLETE")):
            found.append({"uri": value, "hash": storage.read_bytes(mark).decode().strip()})
        elif isinstance(value, str) and Path(value).suffix not in ("", ".toml") and Path(value).is_file():
            found.append({"uri": value, "hash": hashlib.sha256(Path(value).read_bytes()).hexdigest()})
    return found


def inherited(run: RunConfig) -> list[dict[str, Any]]:
    """The terms of the data behind the bundles that the run's method names; they also bind its model."""
    found = []
    for value in _leaves(run.method):
        if isinstance(value, str) and value and storage.exists(storage.join(value, "_COMPLETE")):
            found += terms.inherited(bundle.open(value).lineage)
    return found


def _leaves(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    if inner is None:
        yield value
    else:
        for each in inner:
            yield from _leaves(each)
