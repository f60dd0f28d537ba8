"""Hostile bundles and corpora: good ones, changed by somebody who then seals them again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets import schema

Change = Callable[[Path], Any]


def seal_bundle(folder: Path) -> str:
    """Make SHA256SUMS and _COMPLETE agree with what lies in `folder`, whatever that is."""
    names = sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("SHA256SUMS", "_COMPLETE")
    )
    return seal_sums(folder, [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}" for n in names])


def seal_sums(folder: Path, lines: list[str]) -> str:
    text = "".join(f"{line}\n" for line in lines).encode()
    (folder / "SHA256SUMS").write_bytes(text)
    (folder / "_COMPLETE").write_text(hashlib.sha256(text).hexdigest() + "\n")
    return str(folder)


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite the JSON document at `path` as `change` leaves it (NaN allowed, as Python writes it)."""
    table = json.loads(path.read_text())
    found = change(table)
    path.write_text(json.dumps(table if found is None else found))


def seal_corpus(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda m: None) -> str:
    """Apply `change` to the manifest and give it the hash that fits."""
    path = folder / schema.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["hash"] = schema.content_hash(manifest)
    path.write_text(json.dumps(manifest))
    return str(folder)


def edit_rows(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> str:
    """Rewrite the first shard's rows as `change` leaves them, and seal the corpus."""
    shard = next((folder / schema.SHARDS_DIR).glob("*.parquet"))
    table = pq.read_table(shard)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard, row_group_size=len(rows))
    data = shard.read_bytes()

    def told(manifest: dict[str, Any]) -> None:
        manifest["shards"] = manifest["shards"][:1]
        manifest["shards"][0] |= {
            "rows": len(rows),
            "row_groups": [len(rows)],
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    return seal_corpus(folder, told)
