"""Shards on disk or in a bucket → batches in train workers: MB/s of waveform (int16 as stored), first batch,
memory, and how long training on a fast GPU would wait.

The limit in the same run: bare pyarrow scans of the same columns, in one process and in as many as there are
workers. Beside it, unless --no-peers: a torch DataLoader over Parquet, mosaicml-streaming, litdata,
webdataset and Hugging Face datasets, with as many workers, each in processes and an environment of its own,
on windows that were cut beforehand. Every contender has imported what it needs before its clock starts.
Rounds alternate, the best of each counts. Batches count as a step receives them, float32.

Ours reads in threads of the workers (`stream.actors = 0`), through transform actors that prepare windows
(`stream.prepare = "actor"`), and through actors that pass them on raw (`"worker"`, as for a GPU, whose part
the worker's CPU does here). A worker reads the first windows itself while its actors start: speed is that of
what actors delivered, "by itself %" the share of the others, "actors s" when the first delivered batch came.

Windows pass through unfiltered: 240 s of PPG at 125 Hz, or with --paired 10 s of PPG at 125 Hz and ECG at
500 Hz (no peers then). The last rows are SIGMA pro's windows (filtered, 50 Hz) to a worker that sleeps as
long as an H100 takes, says `python -m pretrain plan pretrain/runs/sigma/pro.toml --gpus 8 --hours 120000`.

    python -m tests.benchmarks.stream [--quick] [--paired] [--mb 480] [--workers 1 2 4] [--s3 s3://…]
"""

import argparse
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.session import session
from datasets import index, prepared
from datasets.schema import open_corpus
from pretrain.recipes.sigma_windows import Windows
from tests.benchmarks import peers
from tests.benchmarks.streamed import LONG, PAIRED, Case, Nothing, Ours, Seen, best, scan, write_corpus
from tests.benchmarks.table import ROOT, show

# A worker's 1,024 of 8,192 windows in four micro-batches: 416 ms on one of 8 H100 by the plan's roofline.
STEP_S, MICROS, A_WORKER = 0.416, 4, 1024
SIGMA = Windows(window_s=240.0).spec()


class Rivals:
    """The peers on `mb` of LONG windows, written at `home`. best: {(peer, workers): (MB/s, seconds to the
    first batch)} of all rounds so far.
    """

    def __init__(self, home: Path, mb: float) -> None:
        self.home, self.best = home, dict[tuple[str, int], tuple[float, float]]()
        self.python = peers.environment(ROOT / "out" / "peers")
        samples = round(LONG.window_s * LONG.rates["ppg"])
        size = ["--windows", str(round(mb * 1e6 / LONG.window_bytes)), "--samples", str(samples)]
        for kind in peers.KINDS:
            command = [self.python, peers.__file__, "write", kind, str(home / kind), *size]
            subprocess.run(command, check=True)

    def round(self, workers: list[int]) -> None:
        for kind in peers.KINDS:
            for world in workers:
                size = LONG.batch // world
                a_second, first = peers.measure(self.python, kind, str(self.home / kind), size, world)
                mb_s, soonest = self.best.get((kind, world), (0.0, float("inf")))
                mb_s = max(mb_s, a_second * size * LONG.window_bytes / 1e6)
                self.best[kind, world] = mb_s, min(soonest, first)


def row(what: str, workers: int, more: dict[str, Any], seen: Seen | None = None) -> dict[str, Any]:
    """One line of the table."""
    line: dict[str, Any] = {"what": what, "workers": workers, "MB/s": "", "of 1 scan": "", "of scans": ""}
    line |= {"first s": "", "actors s": "", "by itself %": "", "longest wait s": ""}
    line |= {"store MB": "", "beyond MB": "", "waits %": ""}
    if seen is not None:
        line |= {"MB/s": seen.mb_s, "first s": seen.first_s, "longest wait s": seen.longest_wait_s}
        line |= {"store MB": seen.store_mb, "beyond MB": seen.beyond_mb}
        if seen.actors_s:
            line |= {"actors s": seen.actors_s, "by itself %": 100 * seen.self_read}
    return line | more


@dataclass(frozen=True)
class Way:
    """How our workers get their windows."""

    actors: int
    as_raw: bool = False

    def __str__(self) -> str:
        who = f"{self.actors} transform actor(s) a worker" if self.actors else "workers read themselves"
        return f"plethora, {who}{', raw' if self.as_raw else ''}"


def ways(actors: int) -> list[Way]:
    return [Way(0), Way(actors), Way(actors, as_raw=True)]


def throughput(given: argparse.Namespace, ours: Ours, case: Case, home: Path, uri: str) -> tuple:
    """Rows and goals: scans, our stream and the peers at each number of workers."""
    limits: dict[int, float] = {}
    runs: dict[tuple[int, Way], list[Seen]] = {
        (w, way): [] for w in given.workers for way in ways(given.actors)
    }
    floors: dict[int, list[Seen]] = {w: [] for w in given.workers}
    rivals = Rivals(home, given.mb) if given.peers and case is LONG else None
    for _ in range(given.rounds):
        for world in {1, *given.workers}:
            limits[world] = max(limits.get(world, 0.0), scan(uri, case, world))
        for (world, way), found in runs.items():
            found.append(ours.run(uri, case, world, given.rounds_mb, way.actors, as_raw=way.as_raw))
        for world in given.workers if not given.quick else ():
            floors[world].append(ours.run(uri, case, world, given.rounds_mb, given.actors, reader=Nothing))
        if rivals is not None:
            rivals.round(given.peer_workers)
    rows, goals = [], {}
    others = rivals.best if rivals is not None else {}
    for world in sorted({1, *given.workers}):
        rows.append(row("bare pyarrow scan", world, {"MB/s": limits[world]}))
    for world in given.workers:
        share = 0.9 if world <= 2 and case is LONG else 0.8
        for way in ways(given.actors):
            seen = best(runs[world, way], lambda s: s.mb_s)
            first = min(s.first_s for s in runs[world, way])
            shares = {"of 1 scan": seen.mb_s / limits[1], "of scans": seen.mb_s / limits[world]}
            rows.append(row(str(way), world, shares | {"first s": first}, seen))
            told = f"{way}, {world} worker(s)"
            goals[f"{told}: at least {share} of one bare scan"] = seen.mb_s >= share * limits[1]
            goals[f"{told}: first batch under 0.5 s"] = first < 0.5
            rivals_mb_s = [mb_s for (_, count), (mb_s, _) in others.items() if count == world]
            if rivals_mb_s and world <= 2:
                goals[f"{told}: 1.3 times the fastest peer"] = seen.mb_s >= 1.3 * max(rivals_mb_s)
        if floors[world]:
            floor = best(floors[world], lambda s: s.mb_s)
            share = {"of 1 scan": floor.mb_s / limits[1], "of scans": floor.mb_s / limits[world]}
            rows.append(row("plethora, nothing read or prepared", world, share, floor))
        for kind in [kind for kind, count in others if count == world]:
            mb_s, soon = others[kind, world]
            shares = {"of 1 scan": mb_s / limits[1], "of scans": mb_s / limits[world]}
            rows.append(row(peers.NAMES[kind], world, {"MB/s": mb_s, "first s": soon} | shares))
    return rows, goals


def memory(given: argparse.Namespace, ray: Any, case: Case, home: Path) -> tuple:
    """Rows and goals: as much streamed from a corpus and from others of ten and a hundred times its size, by
    processes that did nothing before.
    """
    rows: list[dict[str, Any]] = []
    peaks: dict[tuple[int, Way], float] = {}
    uris = {times: write_corpus(home / f"times{times}", given.rung_mb, case, times) for times in given.ladder}
    for uri in uris.values():  # first: Ray keeps the processes that index
        index.build(open_corpus(uri), case.spec, storage.join(uri, "cache"))
    for times, uri in uris.items():
        for way in (Way(0), Way(given.actors, as_raw=True)):
            with Ours(ray, 1) as fresh:
                seen = fresh.run(uri, case, 1, given.rung_mb * 10, way.actors, as_raw=way.as_raw)
            peaks[times, way] = seen.beyond_mb
            rows.append(row(f"{way}, {given.rung_mb * times:g} MB corpus", 1, {}, seen))
    goals = {}
    for way in {way for _, way in peaks}:
        flat = all(peaks[times, way] <= 1.1 * peaks[given.ladder[0], way] for times in given.ladder)
        goals[f"{way}: memory flat to 10 % from 1 to {given.ladder[-1]} times the corpus"] = flat
    return rows, goals


def waiting(given: argparse.Namespace, ours: Ours, home: Path, uri: str) -> tuple:
    """Rows and goals: SIGMA pro's windows, materialised and raw, beside an H100's step."""
    rows, goals = [], {}
    ready = str(home / "ready")
    found = index.build(open_corpus(uri), SIGMA, storage.join(uri, "cache"))
    prepared.write(found, ready)
    for world in (w for w in given.workers if w <= 2):
        case = Case(LONG.rates, LONG.window_s, A_WORKER * world, SIGMA)
        mb = given.steps * case.batch * case.window_bytes / 1e6
        for way in (Way(0), Way(given.actors)):
            seen = ours.run(uri, case, world, mb, way.actors, ready, MICROS, STEP_S / MICROS)
            what = f"SIGMA pro, materialised, H100's step: {way}"
            rows.append(row(what, world, {"waits %": 100 * seen.waits}, seen))
            goals[f"{way}, {world} worker(s): materialised, data wait under 2 % of a step"] = (
                seen.waits < 0.02
            )
    case = Case(LONG.rates, LONG.window_s, A_WORKER, SIGMA)
    costs = {}
    for way in ways(given.actors):
        sizes = (12, 24)  # steps: the difference leaves out what the actors take to start
        mbs = [n * A_WORKER * case.window_bytes / 1e6 for n in sizes]
        few, many = (
            ours.run(uri, case, 1, mb, way.actors, as_raw=way.as_raw, on_gpu=way.as_raw) for mb in mbs
        )
        costs[way] = (sizes[1] * many.cpu_s - sizes[0] * few.cpu_s) / (sizes[1] - sizes[0])
        cores = costs[way] * A_WORKER / STEP_S
        told = f"{way}: {1e6 * costs[way]:.0f} µs of all processes a window, {cores:.2g} cores an H100"
        rows.append(row(f"SIGMA pro, {told}", 1, {}, many))
    host = costs[Way(given.actors, as_raw=True)] / costs[Way(given.actors)]
    goals[f"the host's part where a GPU filters ({host:.2f}): at most a quarter"] = host <= 0.25
    return rows, goals


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of less, under 150 s on two cores")
    parser.add_argument("--paired", action="store_true", help="short windows of two signals")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--mb", type=float, help="of the corpus, as stored")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of workers to measure with")
    parser.add_argument("--actors", type=int, default=1, help="transform actors a worker")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--s3", help="a URI to put the corpus at and to stream it from, as well (AWS_*)")
    parser.add_argument("--json", action="store_true", help="for symmetry: JSON is always the last line")
    given = parser.parse_args()
    given.mb = given.mb or (240 if given.quick else 480)
    given.workers = given.workers or ([1, 2] if given.quick else [1, 2, 4])
    given.rounds = given.rounds or (1 if given.quick else 3)
    given.peer_workers = given.workers[-1:] if given.quick else given.workers
    given.rounds_mb = (4 if given.quick else 8) * given.mb
    given.ladder, given.rung_mb = ((1, 10) if given.quick else (1, 10, 100)), 240
    given.steps = 8 if given.quick else 30
    case = PAIRED if given.paired else LONG
    with tempfile.TemporaryDirectory(prefix="plethora-bench-") as home:
        uri = write_corpus(Path(home) / "corpus", given.mb, case)
        with session(max(given.workers), given.actors) as ray:
            with Ours(ray, 1) as first:
                first.run(uri, case, 1, given.mb)  # warm: the helpers of Ray Data, page cache
            rows, goals = memory(given, ray, case, Path(home))
            with Ours(ray, max(given.workers)) as ours:
                parts = [
                    throughput(given, ours, case, Path(home), uri),
                    *([on_s3(given, ours, case, uri)] if given.s3 else []),
                    *([waiting(given, ours, Path(home), uri)] if case is LONG else []),
                ]
            for more, met in parts:
                rows, goals = rows + more, goals | met
    show(
        f"stream of {' + '.join(f'{m} {r:g} Hz' for m, r in case.rates.items())}, {case.window_s:g} s, "
        f"{given.actors} transform actor(s) a worker; an H100's step: {STEP_S:g} s for {A_WORKER} windows",
        rows,
        goals,
    )


def on_s3(given: argparse.Namespace, ours: Ours, case: Case, uri: str) -> tuple:
    """Rows: the same from a bucket."""
    away = storage.join(given.s3, "corpus")
    storage.upload(uri, away)
    limit = max(scan(away, case) for _ in range(given.rounds))
    rows = [row("bare pyarrow scan, S3", 1, {"MB/s": limit})]
    for world, way in product(given.workers[:2], ways(given.actors)):
        found = [
            ours.run(away, case, world, 4 * given.mb, way.actors, as_raw=way.as_raw)
            for _ in range(given.rounds)
        ]
        seen = best(found, lambda s: s.mb_s)
        rows.append(row(f"{way}, S3", world, {"of 1 scan": seen.mb_s / limit}, seen))
    return rows, {}


if __name__ == "__main__":
    main()
