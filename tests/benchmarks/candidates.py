"""Which of several trained encoders to keep, judged on the validation subjects of their own runs.

Every table of `compare` leaves out whom pretraining saw, validation subjects among them: they chose weights.
Here they, and nobody else, choose among candidates that share a split. A row a candidate, its network before
training beside it: the linear probe's main metric, folds disjoint by subject. --on URI=TASK[:LABEL], again
for more; LABEL in place of the task's own.

    python -m tests.benchmarks.candidates BUNDLE BUNDLE … --on out/bidmc=heart_rate
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.cli import entry
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.schema import open_corpus
from datasets.split import assign
from finetune.encoders.bundle import opened_bundle
from finetune.evaluation.adapt import adapted
from finetune.evaluation.data import task_data
from finetune.evaluation.entrant import Entrant, entrants_of
from finetune.evaluation.options import Options
from finetune.evaluation.table import outcome
from finetune.networks.int8 import split_of
from finetune.task import load_task
from tests.benchmarks.table import show


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE[#MODE]")
    parser.add_argument("--on", action="append", required=True, metavar="URI=TASK[:LABEL]")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    encoders = [opened_bundle(address, threads=1) for address in given.bundles]
    if len({repr(split_of(e)) for e in encoders}) > 1:
        raise PlethoraError("the candidates' runs have different splits: nobody is in validation for all")
    entrants = entrants_of(encoders)
    with session(actors=2):
        columns = [_column(entrants, on, given.folds) for on in given.on]
    names = list(columns[0][1])
    rows = [
        {"row": name} | {title: found.get(name, float("nan")) for title, found in columns} for name in names
    ]
    show("linear probes on validation subjects", rows, {})


def _column(entrants: Sequence[Entrant], on: str, folds: int) -> tuple[str, dict[str, float]]:
    """Title, and {row: the task's main metric}."""
    uri, _, name = on.rpartition("=")
    name, _, label = name.partition(":")
    source, task = open_corpus(uri), load_task(name)
    if label:
        task = task.model_copy(update={"label": label})
    options, split = Options(allow_overlap=True, few_shot=False, folds=folds), split_of(entrants[0].encoder)  # type: ignore[arg-type]
    (data,) = task_data(entrants, source, [adapted(task, source, None)], options)
    kept = np.flatnonzero([assign(subject, split) == "val" for subject in data.windows.subject])
    windows, vectors = data.windows.at(kept), {name: x[kept] for name, x in data.vectors.items()}
    found = outcome(entrants, data.task, data.labels, windows, vectors, data.notes, options).result
    plain = [n for e in entrants for n in (e.name, e.twin)] + ["handcrafted", "mean"]
    figures: dict[str, Any] = {row.name: row.metrics for row in found.rows}
    title = f"{task.name}, {task.main} ({found.counts.subjects} people of {source.manifest['name']})"
    return title, {n: figures[n][task.main].value for n in plain if figures.get(n)}


if __name__ == "__main__":
    entry(lambda _: main())
