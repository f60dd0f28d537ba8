"""What an index of many windows takes: on disk, in the driver that puts it together, in a process that reads
by it. Its parts are made up and not judged; they are written, merged, opened and read by what a run does.
"""

import hashlib
import json
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from datasets import catalogue, memory, parts
from datasets.index import Index
from datasets.judge import VERDICTS, schema
from datasets.ledger import expected
from datasets.plan import Plan
from datasets.schema import Corpus
from datasets.signal import Signal
from datasets.split import Split
from datasets.windows import WindowSpec

ROW, SHARD = 60, 64  # windows of a corpus row (ten minutes), row groups of a shard
SPEC = WindowSpec(
    signals=(
        Signal(modality="ppg", rate=125.0),
        Signal(modality="ecg", rate=250.0, required=False, upright=True, band=(0.5, 40.0)),
    ),
    window_s=10.0,
)


def part(groups: range, group: int, stay: int, last: int) -> pa.Table:
    """The windows of these row groups, `group` each, of people who stay `stay` windows; `last`: of all."""
    rng = np.random.default_rng(groups.start)
    n = np.arange(groups.start * group, min(groups.stop * group, last))
    within, its = n % group, n // group
    person, row = n // stay, within // ROW
    offset = (within % ROW) * SPEC.window_s
    people, code = np.unique(person, return_inverse=True)
    names = [hashlib.sha256(b"%d" % p).hexdigest()[:32] for p in people.tolist()]
    words = [VERDICTS[0], VERDICTS[4]]
    verdict = rng.choice(2, (2, len(n)), p=(0.99, 0.01))
    told = {
        "shard": its // SHARD,
        "group": its % SHARD,
        "row": row,
        "offset_s": offset,
        "start_s": (n % stay - within % ROW) * SPEC.window_s + offset,
        "subject": pa.array(names).take(pa.array(code)),
        "record": pa.array([f"{name[:8]}/00001" for name in names]).take(pa.array(code)),
        "quality": rng.random(len(n), np.float32),
        "verdict": pa.array(words).take(pa.array(verdict[0])),
        "verdict_ecg": pa.array(words).take(pa.array(verdict[1])),
        "inverted_ecg": rng.random(len(n)) < 0.2,
    }
    return pa.table({f.name: pa.array(told[f.name], f.type) for f in schema(SPEC)})


def measured(windows: int, group: int, stay: int, batch: int, window_bytes: int) -> dict[str, float]:
    """bytes (on disk, a window), merge_mb (the driver's peak), merge_s, kept (bytes of plan, orders and what
    finds windows), grown_mb (what a process has grown by that opened the index and looked up twenty blocks
    of a pass), look_us (a window), plan_s, ledger_s.
    """
    with tempfile.TemporaryDirectory(prefix="plethora-scale-") as folder:
        cuts = parts.cut(-(-windows // group))
        given, whole = storage.join(folder, "parts"), Path(folder, "whole")
        for number, its in enumerate(cuts):
            data = parts.encode(part(its, group, stay, windows))
            storage.write_bytes(storage.join(given, parts.name(number)), data)
        whole.mkdir()
        told = apart(_merge, given, len(cuts), whole)
        told["bytes"] = sum((whole / name).stat().st_size for name in catalogue.FILES) / windows
        return told | apart(_read, str(whole), batch, window_bytes)


def apart(work: Callable[..., Any], *given: Any) -> dict[str, float]:
    """What `work` returns, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_told, args=(its, work, given))
    process.start()
    its.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _told(pipe: Connection, work: Callable[..., Any], given: tuple) -> None:
    pipe.send(work(*given))


def _memory(field: str) -> float:
    """MB of this process, as /proc says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3


def _merge(given: str, count: int, whole: Path) -> dict[str, float]:
    began = time.perf_counter()
    windows, runs = parts.merge(given, count, SPEC, whole)
    sums = dict(zip(catalogue.FILES, catalogue.checksums_of(whole), strict=True))
    told = {"version": catalogue.VERSION, "windows": windows, "runs": runs, "sha256": sums}
    (whole / catalogue.MARK).write_text(json.dumps(told))
    return {"merge_s": time.perf_counter() - began, "merge_mb": _memory("VmHWM")}


def _read(home: str, batch: int, window_bytes: int) -> dict[str, float]:
    corpus = Corpus("nowhere", {"hash": "0" * 64})
    pa.array([0]).to_numpy()  # imports pandas
    memory.give_back()
    before = _memory("RssAnon")
    began = time.perf_counter()
    index = Index(corpus, SPEC, catalogue.opened(home, SPEC.window_s))
    selection = index.selection(None, Split())
    plan_s = time.perf_counter() - began
    plan = Plan((selection.source(1.0),), 0, batch, len(selection) // batch, window_bytes=window_bytes)
    looked, took = 0, 0.0
    for step in np.linspace(plan.steps * 0.05, plan.steps * 0.95, 20).astype(int).tolist():
        position = plan.rows(next(replace(plan, start=step).blocks())).position
        began = time.perf_counter()
        selection.windows(position)
        took += time.perf_counter() - began
        looked += len(position)
    kept = len(
        pickle.dumps(
            (
                plan,
                plan._orders,
                selection,
                selection._cached.results,
                selection.kept.edges,
                selection.kept.keys,
            )
        )
    )
    del position
    memory.give_back()
    grown = _memory("RssAnon") - before
    began = time.perf_counter()
    expected(plan)
    return {
        "kept": kept,
        "grown_mb": grown,
        "look_us": 1e6 * took / looked,
        "plan_s": plan_s,
        "ledger_s": time.perf_counter() - began,
    }
