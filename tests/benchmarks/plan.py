"""Is a plan true? Its memory against resident peaks of real ranks, its time against real runs.

python -m tests.benchmarks.plan --memory    # two networks, every ZeRO stage, two ranks; minutes
python -m tests.benchmarks.plan --time --corpus URI --storage URI    # tiny tokenizer at 1 and 2 workers
"""

import argparse
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from cluster import config, storage
from datasets.schema import open_corpus
from pretrain.config import RunConfig
from tests.benchmarks.table import ROOT, show

SIZES = (("pretrain/runs/sigma/base.toml", 12), ("pretrain/runs/sigma/pro.toml", 2))
TINY = "pretrain/runs/sigma/tiny_tokenizer.toml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--only", type=int, default=None, help="one ZeRO stage, or one number of workers")
    parser.add_argument("--corpus", default="out/demo/corpus")
    parser.add_argument("--storage", default="out/plan")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    if given.time:
        timed(given)
    else:
        held(given)


def held(given: argparse.Namespace) -> None:
    """Planned and resident bytes of two ranks, without and with accumulation."""
    import torch

    from pretrain.planning.memory import peak
    from pretrain.planning.probe import probe
    from pretrain.planning.rehearse import rehearsal
    from tests.benchmarks.peak import measured

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for path, micro in SIZES:
        run = config.load(ROOT / path, RunConfig, ["corpus=none"])
        cost = probe(rehearsal(run), bf16=False, workers=2)
        for stage in (0, 1, 2, 3) if given.only is None else (given.only,):
            table = run.model_dump() | {"engine": run.engine.model_dump() | {"zero_stage": stage}}
            for accumulation in (1, 2):
                job = {"run": table, "world": 2, "micro": micro, "accumulation": accumulation}
                found = measured(job)
                planned = peak(cost, stage, 2, micro, accumulation, laid=False).total
                rows.append(
                    {
                        "run": run.name,
                        "stage": stage,
                        "micro": micro,
                        "accumulation": accumulation,
                        "planned MB": planned / 1e6,
                        "measured MB": found / 1e6,
                        "ratio": planned / found,
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    show(
        "memory of a rank of two on CPU, fp32: planned against resident",
        rows,
        {"every figure within 15 % of the measured peak": all(0.85 <= r["ratio"] <= 1.15 for r in rows)},
    )


def timed(given: argparse.Namespace) -> None:
    """The tiny tokenizer's run, planned and then made: seconds of its training, first to last step."""
    from pretrain.planning.plan import plan

    rows: list[dict[str, Any]] = []
    for workers in (1, 2) if given.only is None else (given.only,):
        name = f"plan-{workers}-{uuid.uuid4().hex[:6]}"
        sets = [
            f'corpus="{given.corpus}"',
            f'storage="{given.storage}"',
            f"workers={workers}",
            f"steps={given.steps}",
            f'name="{name}"',
            "validate_every=100",
        ]
        run = config.load(ROOT / TINY, RunConfig, sets)
        hours = open_corpus(given.corpus).manifest["counts"]["hours"]["ppg"]
        planned = plan(run, hours, None, "here")
        point, before = planned.chosen["raw"], planned.given["start_s"].value
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pretrain", TINY, *(a for s in sets for a in ("--set", s))],
            cwd=ROOT,
            check=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        whole = time.perf_counter() - began
        lines = storage.read_bytes(
            str(Path(given.storage).resolve() / name / "telemetry" / "metrics.jsonl")
        ).splitlines()
        first, last = (json.loads(line)["time"] for line in (lines[0], lines[-1]))
        training = point.run_s - before
        rows.append(
            {
                "workers": workers,
                "planned s": training,
                "measured s": last - first,
                "ratio": training / (last - first),
                "planned whole s": point.run_s,
                "whole s": whole,
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    show(
        f"time of {given.steps} steps of {TINY}: planned against a real run",
        rows,
        {"within 25 %": all(0.75 <= r["ratio"] <= 1.25 for r in rows)},
    )


if __name__ == "__main__":
    main()
