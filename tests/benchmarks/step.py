"""What our optimizer step costs beside the same step without us: same recipe, windows, weights and threads.

One worker: our loop and engines against a hand-written torch loop, in one process. Two workers over gloo: our
loop and engines under Ray Train against a plain DistributedDataParallel script under torchrun, each in
processes of its own. Rounds alternate, best of rounds. Each does the same work: the losses of its steps are
compared, and the last one is printed. How far rounding alone drives them apart is there, too: the
hand-written loop again with every initial weight one rounding off. Windows are in memory: the stream has a
benchmark of its own.

Goals count processor seconds of all threads of the training processes, as other programs on the machine do
not enter; wall clock stands beside them, and means something on a quiet machine.

SIGMA's step also with token ids read beside the windows (`python -m pretrain materialize`) against asking the
paper's tokenizer for them.

    python -m tests.benchmarks.step [--recipe sigma] [--batch 8] [--rounds 5] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
import torch
import torch.distributed as dist

from pretrain.recipes.sigma import Masked
from tests.benchmarks.step_workers import PLAIN, RECIPES, STAGES, Runner, by_hand, ours, taken, windows
from tests.benchmarks.table import ROOT, show

HAND, OFF = "hand-written torch", "the same, weights off by one rounding"
ASKED, KNOWN = "the paper's tokenizer asked at every step", "its ids and priors materialised"
OVERHEAD, ALIKE = 0.03, 1e-4  # of processor seconds; of any loss, of which those above 1 by share
PATIENCE = 600  # s
Take = Callable[[int, int], list[dict[str, Any]]]  # (first step, steps) -> what each rank tells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="sigma", help="its published size")
    parser.add_argument("--batch", type=int, default=8, help="windows of a worker")
    parser.add_argument("--steps", type=int, default=2, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="batch 4, 4 rounds of 2 steps")
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    if given.quick:
        given.batch, given.steps, given.rounds = 4, 2, 4
    torch.set_num_threads(1)
    rows = [row for count in given.workers for row in (alone, together)[count - 1](given)]
    checks = {}
    for row in rows:
        if row["what"] in STAGES:
            title = f"{row['what']}, {row['workers']} worker(s)"
            checks[f"{title}: under {OVERHEAD:.0%} over {row['over']}"] = row["overhead %"] < 100 * OVERHEAD
            checks[f"{title}: the same losses within {ALIKE:g}"] = row["losses apart"] < ALIKE
    show(f"step ({given.recipe}, batch {given.batch} a worker, 1 thread each)", rows, checks)


def alone(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One worker, this process."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    recipe = RECIPES[given.recipe]()
    batch = windows(recipe, given.batch, 0)
    off = torch.finfo(torch.float32).eps
    runners = {HAND: by_hand(recipe, batch), OFF: by_hand(RECIPES[given.recipe](), batch, off=off)}
    for name, stage in STAGES.items():
        recipe = RECIPES[given.recipe]()
        runners[name] = ours(recipe, batch, stage)
    rows = table(rounds(_here(runners), given), HAND, 1, given)
    if isinstance(recipe, Masked):
        whole = Masked(recipe.config.model_copy(update={"codebook_size": 4096}), 0).rehearsal()
        known = batch | whole.foresee(whole.frozen(), batch)
        runners = {ASKED: ours(whole, batch, 0), KNOWN: ours(whole, known, 0)}
        rows += table(rounds(_here(runners), given), ASKED, 1, given)
    dist.destroy_process_group()
    return rows


def _here(runners: dict[str, Runner]) -> dict[str, Take]:
    return {name: lambda first, steps, run=run: [taken(run, first, steps)] for name, run in runners.items()}


def together(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Two workers on either side."""
    with tempfile.TemporaryDirectory(prefix="plethora-bench-") as name:
        folder = Path(name)
        this, what = "tests.benchmarks.step_workers", [str(folder), given.recipe, str(given.batch)]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        sides = {(PLAIN,): [*torchrun, this, "plain", *what], tuple(STAGES): ["-m", this, "ours", *what]}
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            environment.pop(key, None)
        told = (folder / "told").open("w+")
        processes = [
            subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=told, stderr=told)
            for command in sides.values()
        ]
        turns = Turns(folder, processes, told)
        try:
            turns.wait(f"ready-{'+'.join(names)}-{rank}" for names in sides for rank in (0, 1))
            takes: dict[str, Take] = {
                name: lambda first, steps, name=name: turns.take(name, first, steps)
                for names in sides
                for name in names
            }
            found = rounds(takes, given)
            turns.end()
        finally:
            for process in processes:
                process.terminate()
    return table(found, PLAIN, 2, given)


class Turns:
    """Asks one side at a time for steps."""

    def __init__(self, folder: Path, processes: list[subprocess.Popen], told: Any) -> None:
        self.folder, self.processes, self.told, self.number = folder, processes, told, 0

    def wait(self, names: Iterable[str]) -> None:
        """Until all those files are there. SystemExit with what was said when a process ended before, or
        after ``PATIENCE``."""
        late = time.monotonic() + PATIENCE
        for name in names:
            while not (self.folder / name).exists():
                ended = any(process.poll() is not None for process in self.processes)
                if ended or time.monotonic() > late:
                    self.told.seek(0)
                    raise SystemExit(self.told.read()[-4000:])
                time.sleep(0.02)

    def ask(self, **what: Any) -> None:
        part = self.folder / "part"
        part.write_text(json.dumps(what))
        part.rename(self.folder / f"turn-{self.number}")

    def take(self, who: str, first: int, steps: int) -> list[dict[str, Any]]:
        self.ask(who=who, first=first, steps=steps)
        names = [f"done-{self.number}-{rank}.json" for rank in (0, 1)]
        self.wait(names)
        self.number += 1
        return [json.loads((self.folder / name).read_text()) for name in names]

    def end(self) -> None:
        self.ask(who="end")
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)


def rounds(takes: dict[str, Take], given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{name: least "cpu" and "wall" seconds of a round, "losses" of all steps and ranks}; the first round
    warms up."""
    found: dict[str, dict[str, Any]] = {
        name: {"cpu": float("inf"), "wall": float("inf"), "losses": []} for name in takes
    }
    order = list(takes)
    for round_ in range(given.rounds + 1):
        for name in order if round_ % 2 else reversed(order):
            ranks = takes[name](round_ * given.steps, given.steps)
            found[name]["losses"] += [loss for rank in ranks for step in rank["losses"] for loss in step]
            if round_:
                found[name]["cpu"] = min(found[name]["cpu"], sum(rank["cpu"] for rank in ranks))
                found[name]["wall"] = min(found[name]["wall"], max(rank["wall"] for rank in ranks))
    return found


def table(
    found: dict[str, dict[str, Any]], base: str, workers: int, given: argparse.Namespace
) -> list[dict[str, Any]]:
    limit, count = found[base], given.steps * given.batch * workers
    return [
        {
            "workers": workers,
            "what": name,
            "windows/cpu s": count / side["cpu"],
            "windows/s": count / side["wall"],
            "over": "" if name == base else base,
            "overhead %": 100 * (side["cpu"] / limit["cpu"] - 1),
            "of its wall %": 100 * (side["wall"] / limit["wall"] - 1),
            "last loss": f"{side['losses'][-1]:.7f}",
            "losses apart": max(
                abs(a - b) / max(1.0, abs(b)) for a, b in zip(side["losses"], limit["losses"], strict=True)
            ),
        }
        for name, side in found.items()
    ]


if __name__ == "__main__":
    main()
