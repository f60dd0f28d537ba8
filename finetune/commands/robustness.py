"""Probes of clean windows tested on damaged ones: a table and a curve a kind of damage."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from finetune.encoders.opening import opened
from finetune.evaluation import corrupt
from finetune.evaluation.entrant import entrants_of
from finetune.evaluation.options import Options
from finetune.evaluation.robustness import robustness
from finetune.reports import robustness_report
from finetune.reports.sheet import Sheet
from finetune.task import load_task


@dataclass(frozen=True)
class Robustness:
    """`bundles`: each BUNDLE or BUNDLE#MODE; `out`: a folder; `kinds`: of `corrupt.KINDS`, none for all."""

    bundles: Sequence[str]
    corpus: str
    task: str
    out: str
    kinds: Sequence[str] = ()
    how: Options = field(default_factory=Options)


def run(options: Robustness) -> Sheet:
    """robustness.md and report.html, results.json, robustness.csv, curves.png."""
    strange = [kind for kind in options.kinds if kind not in corrupt.KINDS]
    if strange:
        raise PlethoraError(f"--kinds: no damage {strange[0]!r}; there are {', '.join(corrupt.KINDS)}")
    source, task = open_corpus(options.corpus), load_task(options.task)
    if task.kind not in ("regression", "binary", "multi-class"):
        raise PlethoraError(f"task {task.name} is {task.kind}: robustness takes numbers and classes")
    entrants = entrants_of([opened(name) for name in options.bundles])
    result = robustness(entrants, source, task, options.kinds or tuple(corrupt.KINDS), options.how)
    return robustness_report.sheet(result, options.out)
