"""Encoders + corpus + tasks → for each task one table: every encoder beside the same network untrained, and
the baselines that could embarrass it, on the same windows, the same folds and the same drawn subjects.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from cluster.session import session
from datasets.schema import Corpus
from finetune.evaluation.adapt import adapted
from finetune.evaluation.bloodpressure import with_cards
from finetune.evaluation.data import TaskData, task_data
from finetune.evaluation.entrant import Entrant, check_takes
from finetune.evaluation.given import sides_of
from finetune.evaluation.heads import Head
from finetune.evaluation.lengths import fit
from finetune.evaluation.options import Options
from finetune.evaluation.results import CorpusInfo
from finetune.evaluation.table import Outcome, outcome
from finetune.evaluation.tracked import tracked
from finetune.task import Task


def study(
    entrants: Sequence[Entrant], source: Corpus, tasks: Sequence[Task], options: Options
) -> list[Outcome]:
    """Every task's outcome, in their order."""
    # a wrong file fails before anything is embedded
    sides = sides_of(options.split, source) if options.split else None
    fitted = [adapted(task, source, options.window_s) for task in tasks]
    for task, _ in fitted:
        check_takes(entrants, task)
    with session(actors=2):
        return [
            _outcome(entrants, source, data, options, sides)
            for data in task_data(entrants, source, fitted, options)
        ]


def _outcome(
    entrants: Sequence[Entrant],
    source: Corpus,
    data: TaskData,
    options: Options,
    sides: Mapping[str, str] | None,
) -> Outcome:
    direct = tracked(data.places.index, data.windows, data.task)
    with _network_heads(entrants, data, options) as trained:
        found = outcome(
            entrants,
            data.task,
            data.labels,
            data.windows,
            data.vectors,
            data.notes,
            options,
            direct,
            trained,
            sides,
        )
    result = replace(
        found.result,
        overlap=data.overlap(),
        seen_by={name: seen.overlap() for name, seen in data.seen_by.items()},
        refused_by=data.places.refused_by(),
        placed=data.places.index.table.num_rows,
        adapted=(*data.adapted, *_lengths(entrants, data.task)),
        warnings=(*data.warnings(), *found.result.warnings),
        corpus=corpus_info(source),
    )
    return replace(found, result=with_cards(result, found.windows, found.predicted, source))


def _network_heads(
    entrants: Sequence[Entrant], data: TaskData, options: Options
) -> AbstractContextManager[Mapping[str, Head]]:
    """Heads that train networks, where they are asked for: torch takes seconds to import."""
    if not options.network_heads:
        return nullcontext({})
    from finetune.evaluation.finetuned import network_heads

    return network_heads(entrants, data, options)


def corpus_info(source: Corpus) -> CorpusInfo:
    manifest = source.manifest
    return CorpusInfo(
        source.uri, source.hash, manifest["source"], manifest.get("licence", ""), manifest["name"]
    )


def _lengths(entrants: Sequence[Entrant], task: Task) -> list[str]:
    """A line for each encoder that does not take the windows whole."""
    lines = [(e.label, fit(e.encoder, task.window_s).said()) for e in entrants]
    return [f"{label}: {line}" for label, line in lines if line]
