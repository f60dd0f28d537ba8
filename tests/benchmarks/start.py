"""Seconds from `python -m pretrain` to its first optimizer step, and where they go, against an empty trainer.

The empty trainer is what Ray itself needs: the same session, number of workers and imports, and a loop that
only notes when it began. Both run whole, as a user types them, in processes of their own, in turn; each at
its best. Cold: no window index yet, and the first start of all. Warm: the index is there. Windows come
through a transform actor a worker (the default), or the workers read for themselves (`stream.actors=0`).

    python -m tests.benchmarks.start [--workers 1] [--rounds 3]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster import storage
from datasets.synthetic import synthesize
from tests.benchmarks.table import ROOT, show

GOAL = 1.5
RUN = "pretrain/runs/sigma/tiny_tokenizer.toml"
BEFORE, AFTER = "imports, Ray, index", "workers, data, step"

EMPTY = """
import sys, time
from cluster import session
from pretrain import driver, engine
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

def loop(config):
    import ray.train.torch
    import torch
    import vector_quantize_pytorch  # the same imports: of the run's recipe, and of its engine
    from pretrain import engine, loop
    engine._deepspeed(torch.device("cpu"))
    ray.train.torch.get_device()
    if ray.train.get_context().get_world_rank() == 0:
        open(config["mark"], "w").write(str(time.time()))

workers, mark, storage = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with session.session(workers, 1):
    TorchTrainer(
        loop, train_loop_config={"mark": mark}, torch_config=TorchConfig(backend="gloo"),
        scaling_config=session.scaling(workers, 0),
        run_config=ray.train.RunConfig(name="empty", storage_path=storage),
    ).fit()
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plethora-bench-") as name:
        home = Path(name)
        synthesize(str(home / "corpus"), hours=1, subjects=8, seed=0)
        cold = first_step(home, given.workers, "cold")
        empty: list[float] = []
        warm: dict[int, list[dict[str, float]]] = {1: [], 0: []}
        for number in range(given.rounds):
            empty.append(bare(home, given.workers, number))
            for actors, found in warm.items():
                found.append(first_step(home, given.workers, f"warm{actors}-{number}", actors))
    limit = min(empty)
    best = {actors: min(found, key=lambda one: one["first step s"]) for actors, found in warm.items()}
    rows: list[dict[str, Any]] = [
        {"what": "an empty TorchTrainer", "first step s": limit, "of it": 1.0, BEFORE: "", AFTER: ""}
    ]
    goals = {}
    runs = {"cold": cold, "warm": best[1], "warm, workers read themselves": best[0]}
    for what, one in runs.items():
        of = one["first step s"] / limit
        rows.append({"what": f"python -m pretrain, {what}", "first step s": 0.0, "of it": of} | one)
        if one is not cold:
            goals[f"{what}: within {GOAL:g} times an empty trainer"] = of <= GOAL
    show(f"start, {given.workers} worker(s), {RUN}", rows, goals)


def first_step(home: Path, workers: int, name: str, actors: int = 1) -> dict[str, float]:
    """Seconds to the end of the first of two steps, by the run's own telemetry, and where they went."""
    sets = {
        "corpus": home / "corpus",
        "storage": home / "runs",
        "name": name,
        "workers": workers,
        "steps": 2,
        "log_every": 1,
        "validate_every": 0,
        "batch": 8 * workers,
        "stream.actors": actors,
    }
    command = [sys.executable, "-m", "pretrain", RUN]
    for key, value in sets.items():
        command += ["--set", f"{key}={value}"]
    began = told = time.time()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("run  "):
            told = time.time()
    if process.wait():
        raise SystemExit("".join(said))
    lines = storage.read_bytes(str(home / "runs" / name / "telemetry" / "metrics.jsonl")).splitlines()
    stepped = json.loads(lines[0])["time"]
    return {"first step s": stepped - began, BEFORE: told - began, AFTER: stepped - told}


def bare(home: Path, workers: int, number: int) -> float:
    """Seconds until an empty loop runs in the workers."""
    mark, began = home / f"mark{number}", time.time()
    command = [sys.executable, "-c", EMPTY, str(workers), str(mark), str(home / f"empty{number}")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    return float(mark.read_text()) - began


if __name__ == "__main__":
    main()
