"""python -m pretrain plan RUN.toml --hours H [--gpus N] [--accelerator h100 | here]"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cluster import config
from cluster.errors import PlethoraError

NOT_YET = "planned"  # placeholder for a corpus that the run file does not name


def main(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain plan",
        description="Estimate what a run would read, its memory, time and cost, and list every assumption. "
        "No corpus is opened: --hours gives the length of the signals. Exits 1 if the run does not fit.",
    )
    parser.add_argument("run", metavar="RUN.toml", help="the run, as in pretrain/runs/")
    parser.add_argument("--hours", type=float, required=True, metavar="H", help="hours of signal")
    parser.add_argument("--gpus", type=int, metavar="N", help="accelerators; default: the run's workers")
    parser.add_argument(
        "--accelerator",
        metavar="NAME",
        help="h200, h100, a100-80, a100-40, l40s, a10g, l4, or here: this machine's CPU, timed now; "
        "default: h100, and here for a run without GPUs",
    )
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace an assumption of the plan",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: optim.lr=1e-3"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line on stdout"
    )
    given = parser.parse_args(argv)
    if given.gpus is not None and given.gpus < 1:
        raise PlethoraError(f"--gpus {given.gpus}: at least 1")

    from pretrain.config import RunConfig

    sets = list(given.set)
    table = config.read_toml(given.run, sets)
    sets += [f'corpus="{NOT_YET}"'] if "corpus" not in table else []
    if given.gpus:  # the file's micro-batch is adapted to the new share below
        sets += [] if "micro_batch" not in table else ["micro_batch=1"]
        sets.append(f"workers={given.gpus}")
    run = config.load(given.run, RunConfig, sets)
    if "micro_batch" in table:
        run = run.model_copy(update={"micro_batch": table["micro_batch"]})
    kind = given.accelerator or ("h100" if run.resources.gpu or given.gpus else "here")

    from pretrain.planning import show
    from pretrain.planning.plan import plan

    planned = plan(run, given.hours, given.gpus, kind, given.assume)
    out = sys.stderr if given.json else sys.stdout
    for line in (*show.text(planned), "", *show.assumed(planned)):
        print(line, file=out)
    if planned.refused:
        print(f"error: {planned.refused}", file=sys.stderr)
    return show.as_json(planned)
