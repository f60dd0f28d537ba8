"""Speed measurements on this machine: windows that a core prepares, and training steps on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import PlethoraError
from cluster.session import ROOT
from datasets import raw
from datasets.windows import TOGETHER, WindowSpec, empty, transform
from pretrain.config import RunConfig

SECONDS = 6.0  # of timed steps per worker; at least three steps
GROUP_BYTES = 16e6  # samples in a row group, as ingest writes them
AHEAD = 2  # steps that may be prepared ahead


@dataclass(frozen=True)
class Steps:
    """Seconds of processor time of one worker, with all other workers and the processes that feed them
    running on this machine. Other programs do not count."""

    step: float  # an optimizer step
    forward: float  # a micro-batch without gradients


def prepare_rate(spec: WindowSpec, native: dict[str, float], seconds: float = 1.0) -> float:
    """Windows per second that one core prepares from raw samples. native: {modality: rate in Hz}."""
    return TOGETHER / _best(lambda: prepare(spec, native, TOGETHER), seconds)


def prepare(spec: WindowSpec, native: dict[str, float], n: int) -> None:
    """Prepare `n` synthetic windows, as a transform actor does."""
    out = empty(n, spec)
    for s in spec.signals:
        rate = native[s.modality]
        time_s = np.arange(round(spec.window_s * rate))[:, None] / rate
        wave = (1000 * np.sin(7.5 * time_s) + np.zeros(s.channels)).astype("<i2")
        gain = np.full(n, rate), np.full(n, 1e-3), np.zeros(n)
        transform([wave] * n, *gain, s, out[s.modality], np.arange(n))


def actor_rate(
    spec: WindowSpec, native: dict[str, float], as_raw: bool, materialised: bool, seconds: float = 1.0
) -> float:
    """Windows per second that a transform actor on one core reads and, unless they travel raw (`as_raw`) or
    are materialised, prepares.
    """
    if materialised:
        return copy_rate(spec)
    read = _read_seconds(spec, native, seconds)
    return 1 / (read if as_raw else read + 1 / prepare_rate(spec, native, seconds))


def _read_seconds(spec: WindowSpec, native: dict[str, float], seconds: float) -> float:
    """Seconds per window to decode a compressed row group of noise into raw windows."""
    counts = {s.modality: round(spec.window_s * native[s.modality]) * s.channels for s in spec.signals}
    rows = max(1, round(GROUP_BYTES / 2 / sum(counts.values())))
    rng, columns = np.random.default_rng(0), dict[str, pa.Array]()
    for s in spec.signals:
        m, n = s.modality, counts[s.modality]
        samples = rng.integers(-500, 500, (rows, n), dtype="<i2")
        columns[m] = pa.array([x.tobytes() for x in samples], pa.binary())
        facts = {"_rate": native[m], "_scale": 1e-3, "_offset": 0.0, "_channels": s.channels}
        columns |= {m + part: pa.array([value] * rows) for part, value in facts.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns), sink, compression="zstd", use_dictionary=False, write_page_checksum=True
    )
    data, at, start = sink.getvalue(), np.arange(rows), np.zeros(rows)

    def read() -> None:
        table = pq.read_table(pa.BufferReader(data), use_threads=False, page_checksum_verification=True)
        raw.gather([(table, at, start, at, None)], rows, spec)

    return _best(read, seconds) / rows


def copy_rate(spec: WindowSpec, seconds: float = 0.3) -> float:
    """Windows per second that one core copies from prepared columns."""
    n = max(1, int(8e6 / spec.bytes))
    windows = np.ones((n, spec.bytes), np.uint8)
    order = np.random.default_rng(0).permutation(n)
    return n / _best(lambda: windows[order].tobytes(), seconds)


def _best(work: Any, seconds: float) -> float:
    """The minimum processor time of one call; other programs on the machine do not count."""
    work()
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return max(best, 1e-9)


def steps(run: RunConfig, native: dict[str, float]) -> Steps:
    """Time a step of `run` with one single-threaded process per worker, as Ray starts them, each fed by a
    process that prepares windows. native: {modality: rate in Hz}. PlethoraError: a process failed."""
    with tempfile.TemporaryDirectory() as folder:
        job = {"run": run.model_dump(), "folder": folder, "native": native}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "pretrain.planning.local", json.dumps(job)],
                env=os.environ
                | {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(run.most), "OMP_NUM_THREADS": "1"},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for r in range(run.most)
        ]
        outputs = [rank.communicate() for rank in ranks]
    for rank, (_, error) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            last = (error.strip().splitlines() or ["no message"])[-1]
            raise PlethoraError(f"timing a step of {run.name} on this machine failed: {last}")
    times = [json.loads(text.strip().splitlines()[-1]) for text, _ in outputs]
    return Steps(*(max(t[name] for t in times) for name in ("step", "forward")))


def _feed(spec: WindowSpec, native: dict[str, float], share: int, ready: Any) -> None:
    while True:
        prepare(spec, native, share)
        ready.put(True)


def _rank(job: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    from pretrain.engine import wrap
    from pretrain.loop import optimize, validate
    from pretrain.planning.probe import made_up
    from pretrain.planning.rehearse import rehearsal

    torch.set_num_threads(1)
    run = RunConfig(**job["run"])
    rank = int(os.environ["RANK"])
    multiprocessing.set_start_method("fork")
    dist.init_process_group("gloo", f"file://{job['folder']}/meeting", rank=rank, world_size=run.most)
    device = torch.device("cpu")
    recipe = rehearsal(run)
    modules, frozen = recipe.modules(), recipe.frozen()
    engines = {
        name: wrap(name, m, run.optim_for(name), run.engine, run.micro, run.accumulation, device)
        for name, m in modules.items()
    }
    rates = dict.fromkeys(engines, 1e-4)
    micros = [made_up(recipe.windows(), run.micro)] * run.accumulation
    late = 10**6  # beyond any recipe's start-up steps
    share = run.batch // run.most
    ready: Any = multiprocessing.Queue(AHEAD)
    args = (recipe.windows(), job["native"], share, ready)
    feeder = multiprocessing.Process(target=_feed, args=args, daemon=True)
    feeder.start()

    def once(step: int) -> None:
        ready.get()
        optimize(recipe, engines, frozen, micros, late + step, rates, 0, rank)

    for step in range(AHEAD + 1):
        once(step)
    began = time.perf_counter()
    once(AHEAD + 1)
    count = torch.tensor([max(3.0, SECONDS / (time.perf_counter() - began))])
    dist.broadcast(count, 0)
    number = int(count.item())
    began = time.process_time()
    for step in range(number):
        once(AHEAD + 2 + step)
    spent = (time.process_time() - began) / number
    feeder.kill()
    wrapped = {name: engine.module for name, engine in engines.items()}
    began = time.process_time()
    validate(recipe, wrapped, frozen, micros[:1], late, device)
    print(json.dumps({"step": spent, "forward": time.process_time() - began}), flush=True)
    dist.barrier()
    os._exit(0)  # as in tests/pretrain/group.py: gloo's threads may still hold tensors


if __name__ == "__main__":
    _rank(json.loads(sys.argv[1]))
