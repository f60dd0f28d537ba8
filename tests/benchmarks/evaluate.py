"""Where an evaluation's time goes: `finetune compare` on BIDMC (heart rate), and the bootstrap alone.

Windows embedded a second (every encoder, its untrained twin and the handcrafted features count as one each),
seconds of the whole comparison with nothing in the cache and again with all vectors in it, the share of the
probes, and 2,000 draws over 10,000 windows of 500 subjects. Without a BUNDLE it takes a small untrained one.

    python -m tests.benchmarks.evaluate [BUNDLE[#MODE] ...] [--root DIR_OF_BIDMC]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.cli import entry
from datasets.ingest import ingest
from finetune import metrics
from finetune.compare import compare
from finetune.evaluation import classes, held, table
from tests.benchmarks.table import show
from tests.finetune.tiny import make_bundle

WINDOWS, SUBJECTS = 10_000, 500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("PLETHORA_DATA", "../shared/data")
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE[#MODE]")
    parser.add_argument("--root", default=f"{data}/bidmc", help="BIDMC as it is published")
    parser.add_argument("--task", default="heart_rate")
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = f"{folder}/bidmc"
        ingest("datasets/corpora/bidmc.toml", given.root, corpus)
        bundles = given.bundles or [make_bundle(Path(folder) / "made", f"{folder}/bundle")]
        rows = [
            compared(f"compare, {how}", bundles, corpus, given.task, folder)
            for how in ("nothing cached", "vectors cached")
        ]
    draws = bootstrap()
    show(
        f"evaluation of {len(bundles)} encoder{'s' * (len(bundles) > 1)} on BIDMC, {given.task}",
        [*rows, *draws],
        {"2,000 draws over 10,000 windows under 1 s": all(row["seconds"] < 1 for row in draws)},
    )


def compared(name: str, bundles: list[str], corpus: str, task: str, folder: str) -> dict[str, Any]:
    """One whole comparison, and what of it went into vectors, probes and the rest of the tables."""
    spent = {"embed": 0.0, "probe": 0.0}
    embedded = 0

    def clocked(what: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            nonlocal embedded
            began = time.perf_counter()
            found = work(*args, **more)
            spent[what] += time.perf_counter() - began
            if what == "embed":
                embedded += sum(len(x) for x in found.values())
            return found

        return run

    whole = {held: ("cached_vectors", "embed"), table: ("probed", "probe")}
    kept = {module: getattr(module, name) for module, (name, _) in whole.items()}
    try:
        for module, (function, what) in whole.items():
            setattr(module, function, clocked(what, kept[module]))
        began = time.perf_counter()
        compare(bundles, corpus, [task], f"{folder}/out", cache=f"{folder}/cache")
        seconds = time.perf_counter() - began
    finally:
        for module, (function, _) in whole.items():
            setattr(module, function, kept[module])
    return {
        "what": name,
        "seconds": seconds,
        "windows/s": embedded / spent["embed"],
        "share embed": spent["embed"] / seconds,
        "share probes": spent["probe"] / seconds,
    }


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
