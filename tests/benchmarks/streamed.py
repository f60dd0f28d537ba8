"""What the stream's benchmark streams and what reads it: corpora, the bare scan, a train worker without the
training, memory.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from datasets import index, prepared, stream
from datasets.plan import Plan
from datasets.schema import content_hash, open_corpus, row_schema
from datasets.split import Split
from datasets.windows import Signal, WindowSpec, empty

GROUP_BYTES = 16.2e6


@dataclass(frozen=True)
class Case:
    """What is streamed: rates in Hz by modality as stored, seconds a window, windows a step; spec: how they
    are prepared (None: as they are).
    """

    rates: dict[str, float]
    window_s: float
    batch: int
    given: WindowSpec | None = None

    @property
    def spec(self) -> WindowSpec:
        if self.given is not None:
            return self.given
        signals = tuple(Signal(modality=m, rate=rate) for m, rate in self.rates.items())
        return WindowSpec(signals=signals, window_s=self.window_s)

    @property
    def row_bytes(self) -> int:
        """Of an hour, as stored."""
        return sum(round(3600 * rate * 2) for rate in self.rates.values())

    @property
    def window_bytes(self) -> int:
        """Of a window, as stored."""
        return sum(round(self.window_s * rate * 2) for rate in self.rates.values())


LONG = Case({"ppg": 125.0}, 240.0, 64)  # SIGMA's
PAIRED = Case({"ppg": 125.0, "ecg": 500.0}, 10.0, 512)  # AnyPPG's


def write_corpus(folder: Path, mb: float, case: Case, times: int = 1) -> str:
    """Hours of pulse-like noise, laid out as ingest does: rows of an hour in row groups of 16 MB, 16 groups a
    shard. The shards are there `times` over, under names of their own (hard links).
    """
    rng = np.random.default_rng(0)
    hours = max(1, round(GROUP_BYTES / case.row_bytes))
    groups = max(1, round(mb * 1e6 / (hours * case.row_bytes)))
    (folder / "shards").mkdir(parents=True)
    base = {
        m: (3000 * np.sin(np.arange(round(3600 * r)) * 7.5 / r)).astype("<i2") for m, r in case.rates.items()
    }
    entries, schema = [], row_schema(list(case.rates))
    for shard in range(-(-groups // 16)):
        path = folder / "shards" / f"{shard:05d}.parquet"
        sizes = [hours] * min(16, groups - 16 * shard)
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
            for group, rows in enumerate(sizes):
                table = []
                for row in range(rows):
                    name = f"{shard * 1000 + group * 20 + row:032x}"
                    line: dict[str, Any] = {
                        "subject": name,
                        "record": name,
                        "start_s": 0.0,
                        "duration_s": 3600.0,
                    }
                    for m, rate in case.rates.items():
                        x = base[m] + rng.integers(-200, 200, len(base[m]), dtype="<i2")
                        line |= {m: x.tobytes(), f"{m}_rate": rate, f"{m}_scale": 1e-3, f"{m}_offset": 0.0}
                        line[f"{m}_channels"] = 1
                    table.append(line)
                writer.write_table(pa.Table.from_pylist(table, schema))
        for turn in range(times):
            name = path.name if not turn else f"{turn:03d}-{path.name}"
            if turn:
                os.link(path, path.with_name(name))
            entries.append({"path": f"shards/{name}", "rows": sum(sizes), "row_groups": sizes})
    manifest: dict[str, Any] = {"version": 1, "source": "benchmark", "modalities": list(case.rates)}
    manifest["shards"] = entries
    (folder / "corpus.json").write_text(json.dumps(manifest | {"hash": content_hash(manifest)}))
    return str(folder)


def scan(uri: str, case: Case, processes: int = 1) -> float:
    """MB/s of nothing but pyarrow's reading of the waveform columns, row group by row group, in so many
    processes, each its part: the limit.
    """
    if processes == 1:
        return _scan(uri, case, 0, 1)
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(processes + 1)  # each has imported what it needs
    with spawn.Pool(processes, ready.wait) as pool:
        ready.wait()
        jobs = [(uri, case, rank, processes) for rank in range(processes)]
        began = time.perf_counter()
        speeds = pool.starmap(_scan_bytes, jobs, 1)
        return sum(speeds) / 1e6 / (time.perf_counter() - began)


def _scan(uri: str, case: Case, rank: int, world: int) -> float:
    began = time.perf_counter()
    return _scan_bytes(uri, case, rank, world) / 1e6 / (time.perf_counter() - began)


def _scan_bytes(uri: str, case: Case, rank: int, world: int) -> int:
    corpus, done = open_corpus(uri), 0
    fs, root = storage.filesystem(uri)
    for shard in corpus.shards:
        with fs.open_input_file(f"{root}/{shard['path']}") as source:
            file = pq.ParquetFile(source, pre_buffer=True)
            for group in range(rank, file.num_row_groups, world):
                table = file.read_row_group(group, columns=list(case.rates))
                done += sum(table[m].nbytes for m in case.rates)
    return done


@dataclass(frozen=True)
class Seen:
    """Of one run. came: when each rank's micro-batches came; peaks in MB: the object store, all else."""

    mb_s: float
    first_s: float
    longest_wait_s: float
    store_mb: float
    beyond_mb: float
    waits: float  # share of the time after the first step that the slowest rank waited for data
    cpu_s: float  # of a window: all processes
    self_read: float  # share of the micro-batches that workers read for themselves while actors started
    actors_s: float  # seconds to the first batch that actors delivered


class Nothing(stream.Reader):
    """Blocks of the planned shape that are neither read nor prepared: what is left is Ray's own share."""

    held: dict[str, np.ndarray] | None = None

    def read(self, number: int, ahead: bool = True) -> dict[str, np.ndarray]:
        rows = self.plan.rows(self.plan.block(self.rank, number), self.part)
        if self.held is None or len(self.held["window"]) != len(rows.step):
            self.held = empty(len(rows.step), self.spec)
            self.held |= {"window": rows.position, "source": rows.source, "pass": rows.pass_}
        return self.held | {"step": rows.step, "at": rows.at}


class Worker:
    """What a train worker does without the training; imports come before the clock starts, as there."""

    def __init__(self) -> None:
        import ray.train.torch  # noqa: F401
        import torch

        import pretrain.transfer  # noqa: F401

        torch.set_num_threads(1)

    def consume(
        self,
        plan: Plan,
        rank: int,
        selection: Any,
        spec: WindowSpec,
        actors: stream.Actors,
        micros: int,
        sleep_s: float,
        as_raw: bool,
        on_gpu: bool,
        reader: type[stream.Reader],
    ) -> tuple[list[float], float]:
        """When each micro-batch came, as a step receives it, and the seconds waited for them after the first
        step.
        """
        import torch

        from pretrain.transfer import arriving

        size = plan.batch // plan.world // micros
        read = stream.batches(plan, rank, [selection], spec, size, micros, actors, as_raw, reader)
        given: Iterator[Any] = read if on_gpu else arriving(read, spec, torch.device("cpu"), as_raw)
        came: list[float] = []
        waited = 0.0
        while True:
            asked = time.time()
            if next(given, None) is None:
                return came, waited
            came.append(time.time())
            if len(came) > micros:
                waited += came[-1] - asked
            time.sleep(sleep_s)


class Ours:
    """Our stream in a Ray session, to as many as `most` workers. They are made once: trainers start theirs
    beside this clock, too; they end with the `with` block.
    """

    def __init__(self, ray: Any, most: int) -> None:
        self.ray = ray
        self.consumers = [ray.remote(num_cpus=1)(Worker).remote() for _ in range(most)]
        ray.get([c.__ray_ready__.remote() for c in self.consumers])

    def __enter__(self) -> "Ours":
        return self

    def __exit__(self, *_: object) -> None:
        for consumer in self.consumers:
            self.ray.kill(consumer)

    def run(
        self,
        uri: str,
        case: Case,
        workers: int,
        mb: float,
        actors: int = 1,
        ready: str | None = None,
        micros: int = 1,
        sleep_s: float = 0.0,
        as_raw: bool = False,
        on_gpu: bool = False,
        reader: type[stream.Reader] = stream.Reader,
    ) -> Seen:
        """`mb` of windows, as stored, to `workers`, through `actors` transform actors each (0: they read for
        themselves); ready: a URI of materialised windows to read instead; on_gpu: raw windows stay raw, as a
        GPU would prepare them. The speed is that of what actors delivered, after what workers read for
        themselves while these started.
        """
        corpus, cache = open_corpus(uri), storage.join(uri, "cache")
        index.build(corpus, case.spec, cache)
        began = time.time()
        found = index.build(corpus, case.spec, cache)
        selection = found.selection(None, Split())
        source = selection.source(1.0)
        if ready is not None:
            there = prepared.open_prepared(ready, found)
            selection = selection.prepared_as(there)
        steps = max(2, round(mb * 1e6 / case.window_bytes / case.batch))
        how = stream.Actors(actors)
        size = case.batch // workers // micros
        plan = Plan(
            (source,), 0, case.batch, steps, workers, 0, window_bytes=case.spec.bytes, first_rows=size
        )
        self_read = stream.self_read_blocks(plan, how) if actors else 0
        after = -(
            -plan.block(0, self_read).first // size
        )  # micro-batches before the first that actors deliver
        if after + 1 >= steps * micros:
            after = 0  # so short a run is over before they deliver any
        with Peak() as peak:
            seen = self.ray.get(
                [
                    c.consume.remote(
                        plan, rank, selection, case.spec, how, micros, sleep_s, as_raw, on_gpu, reader
                    )
                    for rank, c in enumerate(self.consumers[:workers])
                ]
            )
        came = [times for times, _ in seen]
        first, last = (max(times[at] for times in came) for at in (after, -1))
        told = Seen(
            (len(came[0]) - 1 - after) * size * workers * case.window_bytes / 1e6 / (last - first),
            max(times[0] for times in came) - began,
            max(float(np.diff(times).max()) for times in came) - sleep_s,
            peak.store_mb,
            peak.beyond_mb,
            max(waited / (times[-1] - times[micros - 1]) for times, waited in seen),
            peak.cpu_s / (steps * case.batch),
            after / len(came[0]),
            first - began if actors else 0.0,
        )
        print(f"{workers} workers, {actors} actors each, {told}", file=sys.stderr)
        return told


class Peak:
    """Peak memory of this process, the raylet and all below it, in MB: what each has for itself, and the
    object store's pages; and the processor seconds that they took. (Proportional set sizes say the same, but
    walking every page table took a third of a core from what is measured.)
    """

    def __enter__(self) -> "Peak":
        self.beyond_mb, self.store_mb, self._over = 0.0, 0.0, threading.Event()
        self._before: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._look()
        self._before = dict(self._last)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.3):
            self._look()

    def _look(self) -> None:
        total = 0.0
        for process in [me := psutil.Process(), *me.children(recursive=True)]:
            try:
                memory, spent = process.memory_info(), process.cpu_times()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            total += memory.rss - memory.shared
            self._last[process.pid] = spent.user + spent.system
        self.beyond_mb = max(self.beyond_mb, total / 1e6)
        self.store_mb = max(self.store_mb, psutil.disk_usage("/dev/shm").used / 1e6)

    @property
    def cpu_s(self) -> float:
        """Processor seconds of all but this process."""
        spent = {pid: s - self._before.get(pid, 0.0) for pid, s in self._last.items() if pid != os.getpid()}
        return sum(spent.values())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def best(found: list[Seen], by: Callable[[Seen], float]) -> Seen:
    return max(found, key=by)
