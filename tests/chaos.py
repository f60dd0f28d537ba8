"""Runs under faults drawn from a seed, each compared with the unbroken run.

    python tests/chaos.py --runs 20 --seed 1
    python tests/chaos.py --runs 20 --seed 1 --first 5 --last 9 --home DIR     # a part; DIR keeps the rest
    python tests/chaos.py --runs 1 --only sigterm

Every run trains a tiny network on a Ray cluster of three machines (raylets) on this one, token authentication
on. After each: final weights bitwise those of the unbroken run, history and ledger equal (an elastic run:
ledger equal, loss near), every committed checkpoint and the bundle whole whenever one looks, no orphan left,
and no step lost where a notice was given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # as a script, this folder would come first, and its folders bear our packages' names

from safetensors.torch import load_file  # noqa: E402

from cluster import bundle, storage  # noqa: E402
from pretrain import checkpoint  # noqa: E402
from tests.chaos_faults import ENDS, FAULTS, LOSES_NOTHING, PACE_S, STEPS, Drawn, draw  # noqa: E402
from tests.chaos_world import BUCKET, Lost, World, dies_with_us, until  # noqa: E402
from tests.datasets.test_stream import write_corpus  # noqa: E402

PATIENCE_S = 420  # for one run; a busy machine starts Ray's workers slowly


class Run:
    """One run of the tiny network: its settings, its trail, its driver's process."""

    def __init__(
        self, world: World, name: str, zero: int, where: str, elastic: bool = False, pace_s: float = 0.1
    ) -> None:
        self.world, self.name, self.where, self.elastic = world, name, where, elastic
        self.trail = world.home / f"{name}-trail"
        self.trail.unlink(missing_ok=True)
        self.home = storage.join(where, name)
        self.settings: dict[str, Any] = {
            "recipe": "tests.chaos_recipe:Paced",
            "method": {"trail": str(self.trail), "pace_s": pace_s},
            "corpus": str(world.home / "corpus"),
            "storage": where,
            "name": name,
            "steps": STEPS,
            "batch": 8,
            "workers": [1, 2] if elastic else 2,
            "resize_every_s": 5.0,
            "split": {"val": 0.2, "test": 0.2},
            "validate_every": 10,
            "validate_windows": 24,
            "checkpoint_every": 8,
            "log_every": 1,
            "optim": {"lr": 0.02, "warmup_steps": 2},
            "engine": {"zero_stage": zero},
            "stream": {"self_read_mb": 0.002},  # all but the first windows come through transform actors
        }

    def start(self, resume: bool = False) -> subprocess.Popen[bytes]:
        order = self.world.home / f"{self.name}.json"
        order.write_text(json.dumps({"run": self.settings, "resume": resume}))
        address = self.world.machines.address
        with open(self.world.home / f"{self.name}.log", "ab") as log:
            command = [sys.executable, __file__, "--drive", str(order), "--address", address]
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, preexec_fn=dies_with_us)

    def steps(self) -> list[tuple[float, int, int]]:
        """(unix seconds, step, workers) of every step begun."""
        if not self.trail.exists():
            return []
        lines = [line.split() for line in self.trail.read_text().splitlines()]
        return [(float(t), int(step), int(workers)) for t, step, workers in (x for x in lines if len(x) == 3)]

    def reached(self, step: int) -> bool:
        """Whether `step` has begun, or at least the run (0)."""
        steps = self.steps()
        return step == 0 or (bool(steps) and steps[-1][1] >= min(step, STEPS - 1))

    def said(self) -> str:
        return (self.world.home / f"{self.name}.log").read_text(errors="replace")


def drive(order: str, address: str) -> int:
    """In a process of its own: what `python -m pretrain` does, on a cluster that is there."""
    import ray

    from cluster.errors import PlethoraError
    from pretrain import driver
    from pretrain.config import RunConfig

    given = json.loads(Path(order).read_text())
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    try:
        driver.launch(RunConfig.model_validate(given["run"]), given["resume"])
    except PlethoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def befall(world: World, drawn: Drawn) -> dict[str, Any]:
    """One run and its fault; {"wrong": [what does not hold], "recovery_s", "lost", "relaunched", …}."""
    found: dict[str, Any] = {**asdict(drawn), "wrong": [], "relaunched": 0}
    if drawn.kind == "disk" and not world.mounted():
        return found | {"skipped": "mounting a small disk needs root"}
    places = {"disk": str(world.disk), "bucket": f"s3://{BUCKET}/runs"}
    where = places.get(drawn.kind, str(world.home / "runs"))
    storage.delete(storage.join(where, f"run-{drawn.number}"))
    elastic = drawn.kind == "elastic"
    reference = Run(world, f"unbroken-{drawn.zero}", drawn.zero, str(world.home / "runs"))
    run = Run(world, f"run-{drawn.number}", drawn.zero, where, elastic, PACE_S.get(drawn.kind, 0.1))
    until(lambda: not world.running("MapWorker"), PATIENCE_S, "the run before has ended")
    begun = time.time()
    process = run.start()
    torn: list[str] = []
    over = threading.Event()
    peeper = threading.Thread(target=peep, args=(run.home, torn, over), daemon=True)
    peeper.start()
    try:
        dead = lambda: process.poll() is not None
        until(lambda: run.reached(drawn.step) or dead(), PATIENCE_S, f"step {drawn.step} begins")
        if dead():
            raise Lost("it ended before its fault")
        struck = time.time()
        FAULTS[drawn.kind](world, drawn, process)
        while process.wait(PATIENCE_S) != 0:
            if drawn.kind not in ENDS or found["relaunched"] == 2:
                raise Lost(f"the driver ended: {run.said().splitlines()[-1:]}")
            until(lambda: not world.trainers(), 90, "the dead run's workers end")
            found["relaunched"] += 1
            process = run.start(resume=True)
    except (Lost, subprocess.TimeoutExpired) as error:
        found["wrong"].append(str(error))
        if process.poll() is None:
            process.kill()
        return found
    finally:
        over.set()
        peeper.join()
    steps = run.steps()
    found["recovery_s"] = recovery(steps, struck, time.time())
    found["lost"] = len(steps) - len({step for _, step, _ in steps})
    found["wall_s"] = round(time.time() - begun, 1)
    found["workers"] = sorted({workers for _, _, workers in steps})
    found["wrong"] += torn + compared(run, reference, elastic)
    if elastic and 1 not in found["workers"]:
        found["wrong"].append("it never went on with one worker")
    if drawn.kind in LOSES_NOTHING and found["lost"]:
        found["wrong"].append(f"{found['lost']} steps were done twice")
    return found


def recovery(steps: list[tuple[float, int, int]], struck: float, ended: float) -> float:
    """Seconds of the longest wait for a step that was not there yet, after the fault."""
    first: dict[int, float] = {}
    for t, step, _ in steps:
        first.setdefault(step, t)
    after = sorted(t for t in first.values() if t > struck) or [ended]
    return round(max(b - a for a, b in itertools.pairwise([struck, *after])), 1)


def compared(run: Run, reference: Run, elastic: bool) -> list[str]:
    """What of a finished run is not as it should be."""
    wrong = []
    whole, broken = (bundle.open(storage.join(r.home, "bundle")) for r in (reference, run))
    a, b = (load_file(x.path("model.safetensors")) for x in (whole, broken))
    if not elastic and (a.keys() != b.keys() or any((a[k] != b[k]).any() for k in a)):
        wrong.append("final weights differ from the unbroken run's")
    if not elastic and whole.metrics["history"] != broken.metrics["history"]:
        wrong.append("validations differ from the unbroken run's")
    if elastic and abs(broken.metrics["last"]["loss/net"] / whole.metrics["last"]["loss/net"] - 1) > 0.1:
        wrong.append("the loss is far from the unbroken run's")
    if whole.lineage["windows_seen"] != broken.lineage["windows_seen"]:
        wrong.append("the ledger differs from the unbroken run's")
    wrong += unwhole(run.home)
    known = set(checkpoint.listed(run.home))
    expected = {"bundle", "owner", "plan.json", "telemetry", checkpoint.SNAPSHOT, ".validate_storage_marker"}
    for name in {path.split("/")[0] for path in storage.listing(run.home)} - known - expected:
        wrong.append(f"{name} is an orphan")
    return wrong


def unwhole(home: str) -> list[str]:
    """What one who looks at a run's folder now sees half of."""
    wrong = []
    place = storage.join(home, "bundle")
    if storage.exists(storage.join(place, "_COMPLETE")):
        try:
            bundle.verify(place)
        except Exception as error:
            wrong.append(f"a torn bundle is visible: {error}")
    for name in checkpoint.listed(home):
        with tempfile.TemporaryDirectory() as folder:
            try:
                storage.download(storage.join(home, name), folder)
                checkpoint.verify(Path(folder))
            except Exception as error:
                if name in checkpoint.listed(home):  # else it was let go meanwhile
                    wrong.append(f"a torn checkpoint is visible: {error}")
    return wrong


def peep(home: str, torn: list[str], over: threading.Event) -> None:
    """Look at a run's folder again and again, as its readers may at any moment."""
    while not over.wait(1.0) and not storage.is_remote(home):  # a bucket that is down shows nothing
        torn += [found for found in unwhole(home) if found not in torn]


def unbroken(world: World, zero: int) -> None:
    """The reference, once for each kind of engine."""
    run = Run(world, f"unbroken-{zero}", zero, str(world.home / "runs"))
    if not storage.exists(storage.join(run.home, "bundle", "_COMPLETE")):
        storage.delete(run.home)
        if run.start().wait(PATIENCE_S) != 0:
            raise SystemExit(f"the unbroken run fails: {run.said()[-2000:]}")


def table(results: list[dict[str, Any]]) -> list[str]:
    """What held, by kind of fault."""
    mean: Callable[[list[float]], str] = lambda x: f"{sum(x) / len(x):.1f}" if x else "-"
    lines = [
        f"{'fault':<12}{'runs':>5}{'held':>6}{'recovery s':>12}{'most':>7}{'lost steps':>12}{'resumed':>9}"
    ]
    for kind in FAULTS:
        mine = [r for r in results if r["kind"] == kind and "skipped" not in r]
        times = [r["recovery_s"] for r in mine if "recovery_s" in r]
        lost = [r["lost"] for r in mine if "lost" in r]
        held = sum(not r["wrong"] for r in mine)
        if mine:
            lines.append(
                f"{kind:<12}{len(mine):>5}{held:>6}{mean(times):>12}{max(times, default=0):>7.1f}"
                f"{mean(lost):>12}{sum(r['relaunched'] for r in mine):>9}"
            )
    ran = [r for r in results if "skipped" not in r]
    lines.append(f"{sum(not r['wrong'] for r in ran)} of {len(ran)} hold; {len(results) - len(ran)} skipped")
    return lines


def chaos(given: argparse.Namespace, home: Path) -> int:
    fates = draw(given.runs, given.seed)
    fates = [f for f in fates if given.first <= f.number <= (given.last if given.last >= 0 else f.number)]
    if given.only:
        fates = [f for f in draw(len(FAULTS) * given.runs, given.seed) if f.kind in given.only.split(",")]
        fates = fates[: given.runs * len(given.only.split(","))]
    told = home / "results.jsonl"
    if not (home / "corpus").exists():
        write_corpus(home / "corpus", shards=2, rows=6)
    with World(home, any(f.kind == "bucket" for f in fates)) as world:
        for zero in sorted({f.zero for f in fates}):
            unbroken(world, zero)
        for fate in fates:
            result = befall(world, fate)
            with told.open("a") as file:
                file.write(json.dumps({**result, "seed": given.seed}) + "\n")
            state = result.get("skipped") or "; ".join(result["wrong"]) or "holds"
            figures = f"recovery {result.get('recovery_s', '-')} s, lost {result.get('lost', '-')} steps"
            print(f"{fate.number:>3}  {fate}: {state} ({figures}, {result.get('wall_s', '-')} s)", flush=True)
            while len(world.machines.worker_nodes) < 2:
                world.add()
    newest = {(r["seed"], r["number"], r["kind"]): r for r in map(json.loads, told.read_text().splitlines())}
    print("\n".join(table(list(newest.values()))), flush=True)
    return int(any(r["wrong"] for r in newest.values()))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first run of this part")
    parser.add_argument("--last", type=int, default=-1, help="number of the last run of this part")
    parser.add_argument("--only", default="", help=f"kinds of fault: {','.join(FAULTS)}")
    parser.add_argument("--home", help="a folder that keeps unbroken runs and results over parts")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    strange = set(filter(None, given.only.split(","))) - set(FAULTS)
    if strange:
        parser.error(f"--only {', '.join(sorted(strange))}: the kinds are {', '.join(FAULTS)}")
    if given.drive:
        return drive(given.drive, given.address)
    if given.home:
        Path(given.home).mkdir(parents=True, exist_ok=True)
        return chaos(given, Path(given.home).resolve())
    with tempfile.TemporaryDirectory(prefix="plethora-chaos-") as home:
        return chaos(given, Path(home))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # moto's and the proxy's threads need not be waited for
