"""Recordings → one vector a window, as Parquet."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cluster import storage
from cluster.errors import PlethoraError
from finetune.embed import Embedded, embed_arrays, embed_corpus
from finetune.encoders.opening import opened
from finetune.evaluation.results import to_json
from finetune.reports.figures import reasons
from finetune.reports.sheet import Section, Sheet


@dataclass(frozen=True)
class Embed:
    """`input`: a corpus or an .npz; `out`: the Parquet file; `window_s`: the encoder's own by default;
    `hop_s`: `window_s` by default; `force`: replace `out`.
    """

    bundle: str
    input: str
    out: str
    window_s: float | None = None
    hop_s: float | None = None
    mode: str | None = None
    force: bool = False


def run(options: Embed) -> Sheet:
    """Writes the file whole or not at all."""
    out = storage.normalise(options.out)
    if storage.exists(out) and not options.force:
        raise PlethoraError(f"{out} exists: choose another --out, or replace it with --force")
    if not storage.is_remote(out) and os.path.isdir(out):
        raise PlethoraError(f"{out} is a folder: --out names one Parquet file")
    for name, value in (("--window-s", options.window_s), ("--hop-s", options.hop_s)):
        if value is not None and not value > 0:
            raise PlethoraError(f"{name} {value:g}: must be above 0 seconds")
    encoder = opened(options.bundle, options.mode)
    with tempfile.TemporaryDirectory(prefix="plethora-embed-") as folder:
        path = Path(folder) / Path(out).name
        write = embed_arrays if options.input.endswith(".npz") else embed_corpus
        found = write(encoder, options.input, path, options.window_s, options.hop_s)
        if storage.is_remote(out):
            storage.upload(folder, out.rpartition("/")[0])
        else:
            storage.write_bytes(out, path.read_bytes())
    return _sheet(found, options.input, out)


def _sheet(found: Embedded, source: str, out: str) -> Sheet:
    title, tail = f"Vectors of {source}", found.unused_tail_s
    unused = f"; the last {tail:g} s of each row fill no window and are not used" if tail else ""
    facts = (
        f"{found.windows} windows of {found.window_s:g} s → {found.dim} numbers each",
        f"refused: {reasons(found.refused)}{unused}",
        f"written: {out}",
    )
    return Sheet("embed", title, (), (Section(title, facts=facts),), {"out": out, **to_json(found)})
