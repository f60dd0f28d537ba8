"""Several encoders on the same windows, folds and drawn subjects: one table a task."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from finetune.encoders.opening import opened
from finetune.evaluation.entrant import entrants_of
from finetune.evaluation.options import Options
from finetune.evaluation.study import study
from finetune.reports import comparison
from finetune.reports.sheet import Sheet
from finetune.task import load_task


@dataclass(frozen=True)
class Compare:
    """`bundles`: addresses of encoders (`opening.ADDRESS`); `out`: a folder."""

    bundles: Sequence[str]
    corpus: str
    tasks: Sequence[str]
    out: str
    how: Options = field(default_factory=Options)


def run(options: Compare) -> Sheet:
    """A window counts where every encoder takes it; subjects that any of them saw in pretraining are left
    out.
    """
    count = Counter([*options.bundles, *options.tasks])
    twice = next((name for name, times in count.items() if times > 1), None)
    if twice:
        raise PlethoraError(f"{twice} is named twice: name each encoder and each task once")
    if not options.tasks:
        raise PlethoraError("--tasks names no task")
    tasks, source = [load_task(name) for name in options.tasks], open_corpus(options.corpus)
    files: dict[str, str] = {}
    for task, file in zip(tasks, options.tasks, strict=True):
        if files.setdefault(task.name, file) != file:
            raise PlethoraError(
                f"{files[task.name]} and {file} are both named {task.name}: rename one of them"
            )
    entrants = entrants_of([opened(name) for name in options.bundles])
    outcomes = study(entrants, source, tasks, options.how)
    return comparison.of_several(outcomes, {e.name: e.info for e in entrants}, options.out)
