"""Shards on disk → batches in train workers: MB/s of waveform (int16 as stored), first batch, epochs, memory.

Beside it in the same run: a bare pyarrow scan of the same column in one process (the limit), and a torch
DataLoader worker that reads the same row groups and cuts the same windows; with --peers mosaicml-streaming,
webdataset and Hugging Face datasets, too, with as many workers, on windows cut beforehand in formats of their
own. Windows pass through unfiltered: 240 s of PPG at 125 Hz, or with --paired 10 s of PPG at 125 Hz and ECG
at 500 Hz.

    python -m tests.benchmarks.stream [--paired] [--peers] [--mb 240] [--workers 2] [--actors 1] [--epochs 10]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.session import session
from datasets import index, stream
from datasets.plan import Plan
from datasets.schema import content_hash, open_corpus, row_schema
from datasets.windows import Signal, WindowSpec
from tests.benchmarks import peers
from tests.benchmarks.table import ROOT, show


@dataclass(frozen=True)
class Case:
    """What is streamed: rates in Hz by modality, seconds a window, windows a batch."""

    rates: dict[str, float]
    window_s: float
    batch: int

    @property
    def spec(self) -> WindowSpec:
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


def write_corpus(folder: Path, mb: float, case: Case) -> str:
    """Hours of pulse-like noise, laid out as ingest does: rows of an hour in row groups of 16 MB, 16 groups a
    shard.
    """
    rng = np.random.default_rng(0)
    hours = max(1, round(16.2e6 / case.row_bytes))
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
        entries.append({"path": f"shards/{path.name}", "rows": sum(sizes), "row_groups": sizes})
    manifest: dict[str, Any] = {"version": 1, "source": "benchmark", "modalities": list(case.rates)}
    manifest["shards"] = entries
    (folder / "corpus.json").write_text(json.dumps(manifest | {"hash": content_hash(manifest)}))
    return str(folder)


def scan(uri: str, case: Case) -> float:
    """MB/s of reading the waveform columns row group by row group in this process."""
    corpus, began, done = open_corpus(uri), time.perf_counter(), 0
    for shard, entry in enumerate(corpus.shards):
        for group in range(len(entry["row_groups"])):
            table = corpus.read_row_group(shard, group, list(case.rates))
            done += sum(table[m].nbytes for m in case.rates)
    return done / 1e6 / (time.perf_counter() - began)


def dataloader(uri: str, case: Case) -> float:
    """MB/s of a torch DataLoader with one worker process: the same windows and batches, after the first."""
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    class Windows(IterableDataset):
        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            corpus, columns = open_corpus(uri), case.spec.columns
            for shard, entry in enumerate(corpus.shards):
                for group in range(len(entry["row_groups"])):
                    table = corpus.read_row_group(shard, group, columns)
                    for row in range(len(table)):
                        x = {m: np.frombuffer(table[m][row].as_buffer(), "<i2") for m in case.rates}
                        for number in range(int(3600 // case.window_s)):
                            yield {m: self.cut(x[m], m, number) for m in x}

        def cut(self, x: np.ndarray, modality: str, number: int) -> np.ndarray:
            size = round(case.window_s * case.rates[modality])
            return x[number * size : (number + 1) * size].astype(np.float32) * np.float32(1e-3)

    torch.set_num_threads(1)
    began, done = 0.0, 0
    for batch in DataLoader(Windows(), batch_size=case.batch, num_workers=1, prefetch_factor=4):
        if not began:
            began = time.perf_counter()
        else:
            done += len(batch["ppg"]) * case.window_bytes
    return done / 1e6 / (time.perf_counter() - began)


def others(home: Path, mb: float, workers: int) -> dict[str, tuple[float, float]]:
    """{peer: (MB/s, seconds to the first batch)} on as many MB of LONG windows."""
    python, found = peers.environment(ROOT / "out" / "peers"), {}
    samples = round(LONG.window_s * LONG.rates["ppg"])
    windows = round(mb * 1e6 / LONG.window_bytes)
    for kind in peers.KINDS:
        folder = str(home / kind)
        size = ["--windows", str(windows), "--samples", str(samples)]
        subprocess.run([python, peers.__file__, "write", kind, folder, *size], check=True)
        speed, first = max(
            peers.measure(python, kind, folder, LONG.batch // workers, workers) for _ in range(2)
        )
        found[peers.NAMES[kind]] = speed * LONG.batch / workers * LONG.window_bytes / 1e6, first
    return found


class Worker:
    """What a train worker does without the training; imports come before the clock starts, as there."""

    def __init__(self) -> None:
        import ray.train.torch  # noqa: F401
        import torch

        torch.set_num_threads(1)

    def consume(self, plan: Plan, rank: int, shelf: Any, actors: int, case: Case) -> list[float]:
        """When each batch came."""
        data = stream.dataset(plan, rank, [shelf], case.spec, actors)
        return [time.time() for _ in stream.batches(data, case.batch // plan.world, 0, 1)]


def ours(uri: str, case: Case, workers: int, actors: int, epochs: float) -> dict[str, float]:
    """MB/s after the first batch, seconds to the first batch, longest wait at an epoch's end, peak memory in
    MB.
    """
    import ray

    consumers = [ray.remote(num_cpus=1)(Worker).remote() for _ in range(workers)]
    ray.get([c.__ray_ready__.remote() for c in consumers])
    began = time.time()
    spec, batch = case.spec, case.batch
    found = index.build(open_corpus(uri), spec, str(Path(uri) / "cache"))
    source, shelf = found.source(found.select(None), 1.0)
    steps = int(len(source) * epochs) // batch
    plan = Plan((source,), 0, batch, steps, workers, 0, round(128e6 / spec.bytes), spec.bytes)
    with Peak() as peak:
        seen = ray.get(
            [c.consume.remote(plan, rank, shelf, actors, case) for rank, c in enumerate(consumers)]
        )
    first, last = max(times[0] for times in seen), max(times[-1] for times in seen)
    waits = np.diff(seen[0])
    edges = [round(e * len(source) / batch) for e in range(1, int(np.ceil(epochs)))]
    near = [waits[max(e - 2, 0) : e + 2].max() for e in edges if e < len(waits)]
    delivered = (steps - 1) * batch * case.window_bytes
    return {
        "mb_s": delivered / 1e6 / (last - first),
        "first_s": first - began,
        "epoch_gap_s": float(max(near, default=0.0)),
        "longest_wait_s": float(waits.max()),
        "peak_mb": peak.mb,
    }


class Peak:
    """Peak memory of this process, the raylet and all below it: what each has for itself, and the object
    store's pages once. (Proportional set sizes say the same, but walking every page table took a third of a
    core from what is measured.)
    """

    def __enter__(self) -> "Peak":
        self.mb, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.3):
            total = psutil.disk_usage("/dev/shm").used
            for process in [me := psutil.Process(), *me.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                    total += memory.rss - memory.shared
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.mb = max(self.mb, total / 1e6)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mb", type=float, default=240, help="of the small corpus; the large one has ten times that"
    )
    parser.add_argument("--paired", action="store_true", help="short windows of two signals")
    parser.add_argument("--peers", action="store_true", help="install and time them, too (long windows)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    case = PAIRED if given.paired else LONG
    with tempfile.TemporaryDirectory(prefix="plethora-bench-") as home:
        print("writing two corpora …", file=sys.stderr)
        small = write_corpus(Path(home) / "small", given.mb, case)
        large = write_corpus(Path(home) / "large", given.mb * 10, case)
        with session(given.workers, given.actors) as ray:
            ray.get(ray.remote(lambda: None).remote())
            ours(small, case, given.workers, given.actors, 1.0)  # warm: imports, index, page cache
            few = ours(small, case, given.workers, given.actors, given.epochs)
            index.build(open_corpus(large), case.spec, str(Path(large) / "cache"))
            many = ours(large, case, given.workers, given.actors, 1.0)
        limit = max(scan(large, case) for _ in range(2))
        loader = max(dataloader(large, case) for _ in range(2))
        rivals = others(Path(home), 10 * given.mb, given.workers) if given.peers else {}
    few_name, many_name = (
        f"plethora, {given.mb:g} MB, {given.epochs:g} epochs",
        f"plethora, {given.mb * 10:g} MB",
    )
    rows = [
        {"what": what, "MB/s": mb_s, "of the scan": mb_s / limit, "first batch s": first, "peak MB": peak}
        for what, mb_s, first, peak in (
            ("bare pyarrow scan, 1 process", limit, "", ""),
            ("torch DataLoader, 1 worker", loader, "", ""),
            (few_name, few["mb_s"], few["first_s"], few["peak_mb"]),
            (many_name, many["mb_s"], many["first_s"], many["peak_mb"]),
            *((f"{name}, {given.workers} workers", *found, "") for name, found in rivals.items()),
        )
    ]
    ahead = {
        f"above {name}, and the first batch sooner": many["mb_s"] > mb_s and few["first_s"] < first
        for name, (mb_s, first) in rivals.items()
    }
    show(
        f"stream of {' + '.join(f'{m} {r:g} Hz' for m, r in case.rates.items())}, {case.window_s:g} s "
        f"({given.workers} workers, {given.actors} transform actor(s) each; longest wait at an "
        f"epoch's end {few['epoch_gap_s']:.2f} s, anywhere {few['longest_wait_s']:.2f} s)",
        rows,
        {
            "at least 0.4 of the bare scan": many["mb_s"] / limit >= 0.4,
            "above a DataLoader worker": many["mb_s"] > loader,
            **ahead,
            "first batch within 6 s": few["first_s"] <= 6,
            "no gap between epochs (under 0.5 s)": few["epoch_gap_s"] < 0.5,
            "peak memory within 10 % for ten times the corpus": many["peak_mb"] <= 1.1 * few["peak_mb"],
        },
    )


if __name__ == "__main__":
    main()
