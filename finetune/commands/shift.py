"""Probes fitted on one corpus and tested on another without refitting: a table a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from finetune.encoders.opening import opened
from finetune.evaluation.entrant import entrants_of
from finetune.evaluation.options import Options
from finetune.evaluation.shift import shift
from finetune.reports import shift_report
from finetune.reports.sheet import Sheet
from finetune.task import load_task


@dataclass(frozen=True)
class Shift:
    """`bundles`: each BUNDLE or BUNDLE#MODE; `fit`, `test`: corpora; `out`: a folder."""

    bundles: Sequence[str]
    fit: str
    test: str
    tasks: Sequence[str]
    out: str
    how: Options = field(default_factory=Options)


def run(options: Shift) -> Sheet:
    """shift.md and report.html, results.json, predictions.parquet, shift.png. PlethoraError when the corpora
    share people, or a task cannot be answered in one of them.
    """
    tasks = [load_task(name) for name in options.tasks]
    if not tasks:
        raise PlethoraError("--tasks names no task")
    for task in tasks:
        if task.kind not in ("regression", "binary", "multi-class"):
            raise PlethoraError(f"task {task.name} is {task.kind}: shift takes numbers and classes")
    entrants = entrants_of([opened(name) for name in options.bundles])
    found = shift(entrants, open_corpus(options.fit), open_corpus(options.test), tasks, options.how)
    return shift_report.sheet(found, {e.name: e.info for e in entrants}, options.out)
