"""Probes fitted on one corpus and tested on another without refitting: do an encoder's vectors hold there?

Beside that figure, from the same vectors: the figure inside the first corpus (subject-disjoint folds) and,
where the second has enough subjects, the figure of probes that are refitted there. It tells whether the
vectors lost the answer or only the probe's scale moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import PlethoraError
from cluster.session import session
from datasets.schema import Corpus
from finetune import metrics, probe
from finetune.evaluation import transfer
from finetune.evaluation.data import TaskData, task_data
from finetune.evaluation.entrant import Entrant, check_takes
from finetune.evaluation.kinds import Answer, answer_of
from finetune.evaluation.naming import Drawn, note_handcrafted, row_labels, table_rows
from finetune.evaluation.options import Options
from finetune.evaluation.predictions import of_task
from finetune.evaluation.results import CorpusInfo, Counts, Metrics, Overlap, Protocol, Result, Row
from finetune.evaluation.rows import Row as Inputs
from finetune.evaluation.rows import probed, rows_of
from finetune.evaluation.table import added_to_demographics, paired_differences
from finetune.metrics import Difference
from finetune.probe import Folds
from finetune.task import Task


@dataclass(frozen=True)
class ShiftRow(Row):
    """`metrics`: on the second corpus, not refitted; `inside`: on the first, by folds; `refitted`: on the
    second, by folds. `loss` = metrics − inside, `fitting_there` = metrics − refitted.
    """

    inside: Metrics = field(default_factory=dict)
    refitted: Metrics = field(default_factory=dict)
    loss: Difference | None = None
    fitting_there: Difference | None = None


@dataclass(frozen=True)
class Side(Result):
    """One of the two corpora."""

    corpus: CorpusInfo
    counts: Counts
    overlap: Overlap
    refused: Mapping[str, int]
    adapted: tuple[str, ...]


@dataclass(frozen=True)
class ShiftResult(Result):
    """One task: probes fitted on the corpus of `fit`, tested on that of `test`. `differences`: encoder − row
    on the second corpus.
    """

    task: Task
    classes: tuple[str, ...]
    rows: tuple[ShiftRow, ...]
    differences: Mapping[str, Mapping[str, Difference]]
    added: Mapping[str, Difference]
    fit: Side
    test: Side
    between: transfer.SharedPeople
    warnings: tuple[str, ...]
    protocol: Protocol
    verdict: tuple[str, ...] = ()

    def row(self, name: str) -> ShiftRow:
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> dict[str, Any]:
        about = {"main": self.task.main, "classes": list(self.classes)}
        found = super().to_json() | {
            "task": self.task.model_dump(mode="json") | about,
            "level": self.task.level,
        }
        sides = {"fit": found.pop("fit"), "test": found.pop("test")}
        del found["classes"]
        if not self.added:
            del found["added"]
        parts = ("counts", "overlap", "refused", "adapted")
        return found | {part: {name: side[part] for name, side in sides.items()} for part in parts}


@dataclass(frozen=True)
class Shifted:
    """A task's result, and every prediction on the second corpus."""

    result: ShiftResult
    predictions: pa.Table


def shift(
    entrants: Sequence[Entrant], fit: Corpus, test: Corpus, tasks: Sequence[Task], options: Options
) -> list[Shifted]:
    """Every task's outcome, in their order. PlethoraError when the corpora share people, or a task cannot be
    answered in one of them.
    """
    between = transfer.people_in_both(fit, test)
    asked = [transfer.alike(task, fit, test, options.window_s) for task in tasks]
    for (task, _), _ in asked:
        check_takes(entrants, task)
    with session(actors=2):
        fitted = task_data(entrants, fit, [pair[0] for pair in asked], options)
        tested = task_data(entrants, test, [pair[1] for pair in asked], options)
    for data in (*fitted, *tested):
        note_handcrafted(data.vectors, data.notes)
    return [
        outcome(entrants, here.pooled(), there.pooled(), between, options)
        for here, there in zip(fitted, tested, strict=True)
    ]


@dataclass(frozen=True)
class _Probes:
    """What probes learn from, by row of the table, their targets, and the subject of each."""

    rows: Mapping[str, Inputs]
    answer: Answer
    who: np.ndarray

    def at(self, which: np.ndarray) -> "_Probes":
        rows = {name: replace(row, x=row.x[which]) for name, row in self.rows.items()}
        return _Probes(rows, self.answer.at(which), self.who[which])

    def predicted(self, folds: Folds, seed: int) -> dict[str, np.ndarray]:
        found = probed(self.rows, self.answer, self.who, folds, seed)
        return {name: p.predicted for name, p in found.items()}

    def drawn(self, predicted: Mapping[str, np.ndarray], seed: int) -> Drawn:
        weights = metrics.draw_weights(len(set(self.who)), seed=seed)
        return {n: self.answer.drawn(p, predicted["mean"], self.who, weights) for n, p in predicted.items()}


def outcome(
    entrants: Sequence[Entrant],
    fit: TaskData,
    test: TaskData,
    between: transfer.SharedPeople,
    options: Options,
) -> Shifted:
    """One task's outcome. PlethoraError where the second corpus has too few subjects for an interval."""
    task, names, seed = fit.task, transfer.same_classes(fit, test), options.seed
    people = len(set(test.windows.subject))
    if people < probe.MIN_SUBJECTS:
        raise PlethoraError(
            f"{people} subjects of {test.source.uri} are left for task {task.name}: intervals over subjects "
            f"need at least {probe.MIN_SUBJECTS}; use a corpus with more, or --allow-overlap"
        )
    encoders, labels = [e.name for e in entrants], row_labels(entrants, (), bool(names), task)
    rows, notes = _rows(fit, test, encoders)
    target, who = (
        np.concatenate([getattr(d.windows, k) for d in (fit, test)]) for k in ("target", "subject")
    )
    whole = _Probes(rows, answer_of(task, target, names), who)
    first, second = np.split(np.arange(len(who)), [len(fit.windows.target)])
    here, there = whole.at(first), whole.at(second)
    folds = here.answer.folds(here.who, options.folds, seed)
    carried = {name: p[second] for name, p in whole.predicted([(first, second)], seed).items()}
    # seeds of draws differ: the subjects of the two corpora are drawn independently
    drawn = {
        "inside": here.drawn(here.predicted(folds, seed), seed),
        "there": there.drawn(carried, seed + 1),
    }
    not_refitted = ""
    try:
        refitted = there.predicted(there.answer.folds(there.who, options.folds, seed), seed)
    except PlethoraError as error:
        not_refitted = str(error)
    else:
        drawn["refitted"] = there.drawn(refitted, seed + 1)
    result = ShiftResult(
        task=task,
        classes=tuple(names),
        rows=tuple(_with_others(row, drawn, task.main) for row in table_rows(labels, drawn["there"], notes)),
        differences=paired_differences(labels, encoders, drawn["there"], task.main),
        added=added_to_demographics(encoders, drawn["there"], task.main),
        fit=_side(fit, names),
        test=_side(test, names),
        between=between,
        warnings=tuple(
            f"{data.source.manifest['name']}: {line}" for data in (fit, test) for line in data.warnings()
        ),
        protocol=Protocol(len(folds), seed, metrics.DRAWS, not_refitted=not_refitted),
    )
    return Shifted(result, of_task(task, test.windows, carried, names))


def _rows(fit: TaskData, test: TaskData, encoders: Sequence[str]) -> tuple[dict[str, Inputs], dict[str, str]]:
    """What probes learn from, the first corpus above the second, and why rows are missing."""
    people, notes = transfer.shared_demographics(fit, test), {**test.notes, **fit.notes}
    if not people.shape[1]:
        notes["demographics"] = "not in both corpora"
    vectors = {n: np.concatenate([x, test.vectors[n]]) for n, x in fit.vectors.items() if n in test.vectors}
    return rows_of(vectors, people, encoders), notes


def _with_others(row: Row, drawn: Mapping[str, Drawn], main: str) -> ShiftRow:
    """The row, whose metrics are those on the second corpus, with the figures that it is compared with."""
    there, inside, refitted = (drawn.get(of, {}).get(row.name, {}) for of in ("there", "inside", "refitted"))
    return ShiftRow(
        **vars(row),
        inside=metrics.each_interval(inside),
        refitted=metrics.each_interval(refitted),
        loss=metrics.difference(there[main], inside[main]) if inside else None,
        fitting_there=metrics.difference(there[main], refitted[main]) if refitted else None,
    )


def _side(data: TaskData, names: Sequence[str]) -> Side:
    manifest = data.source.manifest
    corpus = CorpusInfo(data.source.uri, data.source.hash, manifest["source"], name=manifest["name"])
    counts, refused = data.counts(names), data.windows.refused
    return Side(corpus, counts, data.overlap(), refused, tuple(data.adapted))
