"""Where an evaluation's time goes, beside an older commit: `finetune compare` on BIDMC, and the bootstrap.

One encoder (a small untrained bundle unless one is named), nothing cached, then all vectors in the cache.
Both commits run whole comparisons in processes of their own, in turn; each at its best. Windows a second
count the encoder, its untrained twin and the handcrafted features as one each, over the time from the call
that embeds to its answer: the start of actors is in it. `port`: the same network as a class of a file,
without a twin. Then 2,000 draws over 10,000 windows of 500 subjects, and what a head costs in one fold, its
nested choice included.

    python -m tests.benchmarks.evaluate [BUNDLE] [--root DIR_OF_BIDMC] [--rounds 2] [--older d1d4553]
    python -m tests.benchmarks.evaluate [BUNDLE] --heads     # the heads alone
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

import numpy as np

from cluster.cli import entry
from datasets.ingest import ingest
from finetune import metrics
from finetune.evaluation import classes
from tests.benchmarks.older import worktree
from tests.benchmarks.table import ROOT, show
from tests.finetune.tiny import make_bundle

WINDOWS, SUBJECTS, GOAL = 10_000, 500, 3.0

# one comparison; prints seconds whole, of embedding and of probes, and the vectors that were embedded
CODE = """
import json, sys, time
address, corpus, task, folder, older = sys.argv[1:]
if older == "yes":
    from finetune.compare import compare
    from finetune.evaluation import held as embeds, table as probes
else:
    from finetune.commands import compare as command
    from finetune.evaluation import data as embeds, table as probes
    from finetune.evaluation.options import Options
    from finetune.reports.sheet import write
    def compare(encoders, corpus, tasks, out, cache):
        write(command.run(command.Compare(encoders, corpus, tasks, out, Options(cache=cache))))
spent, vectors = {"cached_vectors": 0.0, "probed": 0.0}, 0
def clocked(name, work):
    def run(*args, **more):
        global vectors
        began = time.perf_counter()
        found = work(*args, **more)
        spent[name] += time.perf_counter() - began
        if name == "cached_vectors":
            vectors += sum(len(x) for x in found.values())
        return found
    return run
for module, name in ((embeds, "cached_vectors"), (probes, "probed")):
    setattr(module, name, clocked(name, getattr(module, name)))
began = time.perf_counter()
compare([address], corpus, [task], folder + "/out", cache=folder + "/cache")
whole = time.perf_counter() - began
print(json.dumps({"s": whole, "embed": spent["cached_vectors"], "probe": spent["probed"], "n": vectors}))
"""

# one comparison with every head; prints {head: its seconds a fold}
HEADS = """
import json, sys, time
from finetune.commands import compare as command
from finetune.evaluation import heads
from finetune.evaluation.options import NETWORK_HEADS, VECTOR_HEADS, Options
from finetune.reports.sheet import write
address, corpus, task, folder = sys.argv[1:]
spent, true = {}, heads.head_probe
def clocked(head, kind, x, y, who, folds, seed):
    began = time.perf_counter()
    found = true(head, kind, x, y, who, folds, seed)
    spent.setdefault(head.predict.__name__, (time.perf_counter() - began) / len(folds))
    return found
heads.head_probe = clocked
how = Options(heads=("linear", *VECTOR_HEADS, *NETWORK_HEADS), few_shot=False, cache=folder + "/cache")
write(command.run(command.Compare([address], corpus, [task], folder + "/out", how)))
print(json.dumps(spent))
"""

PORT = """
import onnxruntime

class Same:
    \"\"\"The bundle's network as a port.\"\"\"

    preprocessing = {PREPROCESSING}

    def __init__(self):
        self.net = onnxruntime.InferenceSession({FILE!r})

    def embed(self, x):
        return self.net.run(None, {{self.net.get_inputs()[0].name: x}})[0]
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("PLETHORA_DATA", "../shared/data")
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="of one mode")
    parser.add_argument("--root", default=f"{data}/bidmc", help="BIDMC as it is published")
    parser.add_argument("--task", default="heart_rate")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--heads", action="store_true", help="only the heads' seconds a fold")
    parser.add_argument("--older", default="d1d4553", help="the commit to compare with")
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = str(folder / "bidmc")
        ingest("datasets/corpora/bidmc.toml", given.root, corpus)
        bundle = given.bundle or make_bundle(folder / "made", str(folder / "bundle"))
        spent = _measured(
            [sys.executable, "-c", HEADS, bundle, corpus, given.task, str(folder / "heads")], ROOT
        )
        print("seconds a fold:", ", ".join(f"{name} {s:.1f}" for name, s in spent.items()), flush=True)
        if given.heads:
            return
        sides = {
            f"compare at {given.older}": (bundle, worktree(given.older), "yes"),
            "compare": (bundle, ROOT, "no"),
            "compare, port": (_port(bundle, folder), ROOT, "no"),
        }
        rows = [row for side in _in_turn(sides, corpus, given.task, folder, given.rounds) for row in side]
    draws = bootstrap()
    old, new, port = (row["windows/s"] for row in rows if row["what"].endswith("nothing cached"))
    show(
        f"evaluation of one encoder on BIDMC, {given.task}",
        [*rows, *draws],
        {
            f"compare embeds {GOAL:g} times the windows a second of {given.older}": new >= GOAL * old,
            f"a port embeds {GOAL:g} times the windows a second of compare at {given.older}": port
            >= GOAL * old,
            "2,000 draws over 10,000 windows under 1 s": all(row["seconds"] < 1 for row in draws),
        },
    )


def _in_turn(
    sides: dict[str, tuple[str, Path, str]], corpus: str, task: str, folder: Path, rounds: int
) -> list[list[dict[str, Any]]]:
    """Rows of each side: the best round with nothing cached, and with the vectors of that round."""
    runs: dict[str, list[tuple[dict[str, float], ...]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, (address, at, older) in sides.items():
            into = str(folder / f"{name} {number}")
            arguments = [sys.executable, "-c", CODE, address, corpus, task, into, older]
            runs[name].append(tuple(_measured(arguments, at) for _ in range(2)))
    found = []
    for name, pairs in runs.items():
        cold, warm = min(pairs, key=lambda pair: pair[0]["embed"])
        found.append([_row(f"{name}, nothing cached", cold), _row(f"{name}, vectors cached", warm)])
    return found


def _measured(arguments: list[str], at: Path) -> dict[str, float]:
    done = subprocess.run(arguments, cwd=at, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _row(what: str, found: dict[str, float]) -> dict[str, Any]:
    return {
        "what": what,
        "seconds": found["s"],
        "windows/s": found["n"] / found["embed"],
        "share embed": found["embed"] / found["s"],
        "share probes": found["probe"] / found["s"],
    }


def _port(bundle: str, folder: Path) -> str:
    from cluster import bundle as bundles

    opened = bundles.open(bundle)
    (mode,) = opened.described.modes.values()
    file = folder / "port.py"
    made = PORT.format(PREPROCESSING=repr(dict(opened.preprocessing)), FILE=str(opened.path(mode.file)))
    file.write_text(made)
    return f"{file}:Same"


def bootstrap() -> list[dict[str, Any]]:
    """Seconds from predictions to 2,000 draws of every metric, of a number and of a class."""
    rng = np.random.default_rng(0)
    subject = np.sort(rng.integers(0, SUBJECTS, WINDOWS).astype(str))
    truth, said = rng.normal(size=(2, WINDOWS))
    began = time.perf_counter()
    weights = metrics.draw_weights(len(np.unique(subject)))
    metrics.intervals(metrics.subject_sums(truth, said, subject), weights)
    numbers = time.perf_counter()
    classes.drawn((truth > 0)[:, None], said[:, None], subject, weights)
    ranks = time.perf_counter()
    found = {"numbers": numbers - began, "classes (AUROC, AUPRC, …)": ranks - numbers}
    empty = {"windows/s": float("nan"), "share embed": float("nan"), "share probes": float("nan")}
    return [{"what": f"bootstrap, {name}", "seconds": s, **empty} for name, s in found.items()]


if __name__ == "__main__":
    entry(lambda _: main())
