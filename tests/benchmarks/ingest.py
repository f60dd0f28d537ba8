"""Hours of waveform a core-second from files to shards and from shards to windows, against what one would
write instead, and against the bare work, in one run over real recordings (PLETHORA_DATA).

ingest: WFDB files -> shards, labels, ledger, manifest (hours: of each signal). loop: a record after another
through pandas, 10 s at a time, physical float32 to .npz (tests/benchmarks/looped.py). kernel: the same
channels read by wfdb and written as zstd Parquet, nothing checked. Windows: tests/benchmarks/transform.py.

neurokit2: its ecg_clean and ecg_quality a window (default; Zhao 2018), on windows of "anyppg index", in an
environment of its own that the first run makes and that is not part of requirements.lock; how its verdict
agrees with ours is printed, too.

    python -m tests.benchmarks.ingest [--quick] [--corpora bidmc cinc2015] [--without-neurokit]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("PLETHORA_SUBJECT_KEY", "benchmark")
import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from datasets import assemble, ingest, memory, schema
from datasets.descriptor import Descriptor
from datasets.ingest import read_descriptor
from datasets.readers import READERS, given
from datasets.readers.base import RecordFile, Root
from tests.benchmarks import gate, looped, transform
from tests.benchmarks.table import ROOT, show

CHANNELS = {"bidmc": ["PLETH", "II", "RESP"], "cinc2015": ["PLETH", "II", "V", "ABP"]}


def sources(root: Root, descriptor: Descriptor) -> list[RecordFile]:
    return given.complete(READERS[descriptor.reader].scan(root, descriptor), root, descriptor)


def described(name: str) -> Descriptor:
    return read_descriptor(ROOT / "datasets" / "corpora" / f"{name}.toml")


def some_of(root: str, name: str, place: Path, records: int) -> str:
    """A folder of links with `records` of the records alone, so that all who are compared read the same."""
    files = Root(root)
    found = sources(files, described(name))
    sound = [s for s in found if s.broken is None]
    chosen = {s.record for s in sound[:: max(1, len(sound) // records)][:records]}
    others = {path for s in found if s.record not in chosen for path, _ in s.files}
    for path in files.sizes.keys() - others:
        link = place / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(root, path).resolve())
    return str(place)


def ours(root: str, name: str, out: str) -> schema.Corpus:
    """What `python -m datasets ingest` does, in this process."""
    descriptor = described(name)
    files = Root(root)
    some = sources(files, descriptor)
    key, key_id = schema.subject_key()
    about = ingest._about(descriptor, key_id, some, files)
    assemble.prepare(out, force=True)
    tasks = ingest.plan(some, key, descriptor.id_space)
    reports = [ingest._work(files.uri, out, descriptor, task, lambda: None) for task in tasks]
    assemble.finish(out, reports, about)
    return schema.open_corpus(out)


def loop(root: str, name: str, out: Path, records: Sequence[str]) -> None:
    for record in records:
        looped.record(f"{root}/{record}", f"{out}/loop-{record}", CHANNELS[name])


def kernel(root: str, name: str, out: Path, records: Sequence[str]) -> None:
    import wfdb

    rows = []
    for record in records:
        there = wfdb.rdheader(f"{root}/{record}").sig_name
        names = [c for c in CHANNELS[name] if c in there]
        read = wfdb.rdrecord(f"{root}/{record}", channel_names=names, physical=False)
        rows.append({n: x.astype("<i2").tobytes() for n, x in zip(names, read.d_signal.T, strict=True)})
    pq.write_table(
        pa.Table.from_pylist(rows), out / "kernel.parquet", compression="zstd", use_dictionary=False
    )


def ingested(
    root: str, name: str, place: Path, records: int, rounds: int
) -> tuple[dict[str, Any], schema.Corpus]:
    """The row of an ingest, and the corpus that it made."""
    root = some_of(root, name, place / f"{name}-records", records)
    corpus = ours(root, name, str(place / name))
    some = sorted(set(corpus.labels(["ppg_channel"])["record"].to_pylist()))
    mine, theirs, bare = transform.best(
        [
            partial(ours, root, name, str(place / name)),
            partial(loop, root, name, place, some),
            partial(kernel, root, name, place, some),
        ],
        rounds,
    )
    hours = sum(sum(shard["hours"].values()) for shard in corpus.shards)
    row = {"what": "ingest", "corpus": name, "h/core-s": hours / mine, "loop": hours / theirs}
    row |= {"kernel": hours / bare, "own kernel": "", "x loop": theirs / mine, "x kernel's time": mine / bare}
    return row | {"x own kernel's": "", "us a window": "", "apart": ""}, corpus


def goals(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Two a kind of row, each over all corpora, and how far outputs may be apart."""
    said = {}
    for what in dict.fromkeys(row["what"] for row in rows):
        alike = [row for row in rows if row["what"] == what]
        times, beyond = min(r["x loop"] for r in alike), max(r["x kernel's time"] for r in alike)
        said[f"{what}: at least {transform.LOOP:g} times the loop ({times:.1f})"] = times >= transform.LOOP
        least = f"{what}: at most {transform.KERNEL:g} times the kernel's time ({beyond:.2f})"
        said[least] = beyond <= transform.KERNEL
    for what, most in transform.TOLERANCE.items():
        apart = [row["apart"] for row in rows if row["what"] == what and row["apart"] != ""]
        if apart:
            said[f"{what}: equal to {most:g} ({max(apart):.1e})"] = max(apart) <= most
    return said


def beside(
    rows: list[dict[str, Any]], python: str | None, corpus: schema.Corpus, most: int, scratch: Path
) -> None:
    """Give the rows of `corpus` a column neurokit2, and say how far its verdicts agree with ours."""
    name = corpus.manifest["name"]
    for row in rows:
        row.setdefault("neurokit2", "")
    (row,) = [r for r in rows if (r["what"], r["corpus"]) == ("anyppg index", name)]
    if python is None:
        row["neurokit2"] = "not there"
        return
    at = transform.selection(corpus, transform.SPECS["anyppg"], most)
    cuts, (rate, scale, offset) = at.cuts[1]
    x = np.stack(cuts)[..., 0] * scale[:, None] + offset[:, None]
    theirs = gate.asked(python, x, float(rate[0]), scratch)
    row["neurokit2"] = f"{at.hours / theirs['default']:.2g}, Zhao {at.hours / theirs['zhao']:.2g}"
    found = gate.agreement(transform.sound(at), theirs)
    said = ", ".join(f"{k} {'-' if v is None else f'{v:.3g}'}" for k, v in found.items())
    print(f"ECG gate on {name}, beside {gate.PACKAGE}: {said}", file=sys.stderr, flush=True)
    row["agreement"] = found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few records and windows, under two minutes")
    parser.add_argument("--corpora", nargs="+", choices=tuple(CHANNELS), default=list(CHANNELS))
    parser.add_argument("--without-neurokit", action="store_true", help="do not fetch neurokit2")
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    memory.keep_freed()  # as its readers do; for all that is compared
    data = Path(os.environ.get("PLETHORA_DATA", ROOT.parent / "shared" / "data"))
    if not data.is_dir():
        parser.exit(1, f"no recordings at {data}: set PLETHORA_DATA to their folder\n")
    records, rounds = (10, 3) if asked.quick else (40, 5)
    most = (
        {"sigma": 20, "anyppg": 300, "vision": 120}
        if asked.quick
        else {"sigma": 80, "anyppg": 1500, "vision": 480}
    )
    python = None if asked.without_neurokit else gate.environment(ROOT / "out" / "neurokit2")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.corpora:
            row, corpus = ingested(str(data / name), name, Path(folder), records, rounds)
            rows.append(row)
            rows += transform.presets(corpus, most, rounds)
            beside(rows, python, corpus, most["anyppg"] // 2, Path(folder))
    show("ingest", rows, goals(rows))


if __name__ == "__main__":
    main()
