"""SIGMA's ways of hiding patches on one budget: random, prior-guided, adversarial, and both (the paper's).

Each trains `tiny` on the same windows with the same tokenizer and seed; all are judged on one mask that none
of them chose (random, the same for every run), on held-out subjects.

    python -m tests.benchmarks.masking --tokenizer BUNDLE --corpus URI [--corpus URI] --out FOLDER [--steps
    300]
"""

import argparse
import sys
from typing import Any

from cluster.config import load
from cluster.session import session
from pretrain import driver
from pretrain.config import RunConfig
from tests.benchmarks.table import show

RUN = "pretrain/runs/sigma/tiny.toml"
MODES = ("random", "prior", "adversarial", "both")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokenizer", required=True, help="URI of a tokenizer bundle made by tiny_tokenizer.toml"
    )
    parser.add_argument("--corpus", required=True, action="append", help="weighted equally when given twice")
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    corpora = ", ".join(f'"{uri}" = 1.0' for uri in given.corpus)
    sets = [
        f"corpus={{{corpora}}}",
        f"storage={given.out}",
        f"steps={given.steps}",
        f"workers={given.workers}",
    ]
    sets += [
        f"validate_every={given.steps}",
        f"checkpoint_every={given.steps}",
        f"method.tokenizer={given.tokenizer}",
    ]
    rows: list[dict[str, Any]] = []
    with session(given.workers, 1):
        for mode in MODES:
            run = load(RUN, RunConfig, [*sets, f"method.masking={mode}", f"name=masking-{mode}"])
            found = driver.launch(run, resume=True)
            metrics = found["metrics"]
            rows.append(
                {
                    "masking": mode,
                    "random mask: loss": metrics["loss_random_mask"],
                    "accuracy": metrics["accuracy_random_mask"],
                    "unigram rate": metrics["unigram_rate_random_mask"],
                    "own mask: accuracy": metrics["accuracy"],
                    "hidden": metrics["hidden"],
                }
            )
    print(f"every run: {given.steps} steps of {RUN}", file=sys.stderr)
    best = min(rows, key=lambda row: row["random mask: loss"])["masking"]
    goal = "masked accuracy above twice the unigram rate in every mode"
    met = all(row["accuracy"] > 2 * row["unigram rate"] for row in rows)
    show(f"masking (lowest loss on the common random mask: {best})", rows, {goal: met})


if __name__ == "__main__":
    main()
