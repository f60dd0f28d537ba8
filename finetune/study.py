"""Encoders + corpus + tasks → for each task one table: every encoder beside the same network untrained, and
the baselines that could embarrass it, on the same windows, the same folds and the same drawn subjects.
"""

from collections.abc import Sequence

from cluster.session import session
from datasets.schema import Corpus
from finetune.evaluation.adapt import adapted
from finetune.evaluation.given import read_split
from finetune.evaluation.held import Entrant, held_by, suits
from finetune.evaluation.lengths import fit
from finetune.evaluation.table import BASELINES, Options, Outcome, outcome
from finetune.task import Task

__all__ = ["BASELINES", "Entrant", "Options", "Outcome", "study"]


def study(
    entrants: Sequence[Entrant], source: Corpus, tasks: Sequence[Task], options: Options
) -> list[Outcome]:
    """Every task's outcome, in their order."""
    if options.split:
        read_split(options.split)  # a wrong file is told before anything is embedded
    fitted = [adapted(task, source, options.window_s) for task in tasks]
    for task, _ in fitted:
        suits(entrants, task)
    about = {"uri": source.uri, "hash": source.hash, "source": source.manifest["source"],
             "licence": source.manifest.get("licence", "")}  # fmt: skip
    found = []
    with session(actors=2):
        for held in held_by(entrants, source, fitted, options):
            one = outcome(entrants, held.task, held.labels, held.windows, held.vectors, held.notes, options)
            one.results |= {
                "overlap": held.overlap(),
                "refused_by": held.places.refused_by(),
                "placed": held.places.index.table.num_rows,
                "adapted": [*held.said, *_lengths(entrants, held.task)],
                "warnings": [*held.warnings(), *one.results["warnings"]],
                "corpus": about,
            }
            found.append(one)
    return found


def _lengths(entrants: Sequence[Entrant], task: Task) -> list[str]:
    """A line for each encoder that does not take the windows whole."""
    said = [(e.label, fit(e.encoder, task.window_s).said()) for e in entrants]
    return [f"{label}: {how}" for label, how in said if how]
