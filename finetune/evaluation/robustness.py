"""Probes fitted on clean windows of some people and tested on damaged windows of others: how much damage does
an encoder bear, beside the same network untrained and handcrafted features?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.session import session
from datasets.schema import Corpus
from finetune import metrics
from finetune.evaluation import corrupt
from finetune.evaluation.adapt import adapted
from finetune.evaluation.data import TaskData, runs, task_data
from finetune.evaluation.entrant import Entrant, check_takes
from finetune.evaluation.groups import pool
from finetune.evaluation.kinds import Answer, answer_of
from finetune.evaluation.naming import Drawn, note_handcrafted, row_labels
from finetune.evaluation.options import Options
from finetune.evaluation.results import (
    CorpusInfo,
    Counts,
    EncoderInfo,
    Metrics,
    Overlap,
    Protocol,
    Result,
    Row,
)
from finetune.evaluation.rows import Row as Inputs
from finetune.evaluation.rows import probed, rows_of
from finetune.evaluation.vectors import vectors_at
from finetune.metrics import Difference
from finetune.probe import Folds
from finetune.task import Task, demographics
from finetune.task import classes as class_names

CLEAN = "clean"  # beside the kinds of damage


@dataclass(frozen=True)
class Condition:
    """A kind of damage at one severity."""

    kind: str = CLEAN
    severity: float = 0.0


@dataclass(frozen=True)
class Damaged(Result):
    """A row's figures at one severity. `change`: of the main metric, damaged − clean."""

    severity: float
    metrics: Metrics
    change: Difference


@dataclass(frozen=True)
class DamagedRow(Row):
    """`metrics`: of clean windows; `damaged`: {kind: figures at each severity}."""

    damaged: Mapping[str, tuple[Damaged, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Apart(Difference):
    """Encoder − row of the main metric under the same damage."""

    severity: float = 0.0


@dataclass(frozen=True)
class RobustnessResult(Result):
    """`against`: {encoder: {row: {kind or CLEAN: differences at each severity}}}."""

    task: Task
    classes: tuple[str, ...]
    rows: tuple[DamagedRow, ...]
    against: Mapping[str, Mapping[str, Mapping[str, tuple[Apart, ...]]]]
    kinds: Mapping[str, corrupt.Kind]
    counts: Counts
    refused: Mapping[str, int]
    adapted: tuple[str, ...]
    overlap: Overlap
    warnings: tuple[str, ...]
    protocol: Protocol
    encoders: Mapping[str, EncoderInfo]
    corpus: CorpusInfo
    verdict: tuple[str, ...] = ()

    def row(self, name: str) -> DamagedRow:
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> dict[str, Any]:
        about = {"main": self.task.main, "classes": list(self.classes)}
        found = super().to_json() | {"task": self.task.model_dump(mode="json") | about}
        del found["classes"]
        return found


def robustness(
    entrants: Sequence[Entrant], source: Corpus, task: Task, kinds: Sequence[str], options: Options
) -> RobustnessResult:
    """Figures of every row on clean windows and at each severity of each of `kinds` (see `corrupt.KINDS`)."""
    asked = adapted(task, source, options.window_s)
    check_takes(entrants, asked[0])
    conditions = [Condition()]
    conditions += [Condition(kind, s) for kind in kinds for s in corrupt.KINDS[kind].severities]
    with session(actors=2):
        (data,) = task_data(entrants, source, [asked], options)
    vectors = _vectors(entrants, data, conditions, options.seed)
    note_handcrafted(data.vectors, data.notes)
    return _result(entrants, data, conditions, vectors, options)


def _vectors(
    entrants: Sequence[Entrant], data: TaskData, conditions: Sequence[Condition], seed: int
) -> list[Mapping[str, np.ndarray]]:
    """{row: (n, d)} under each condition; the first is clean."""
    encoders, raw = runs(data, entrants), corrupt.recorded(data.places)
    found: list[Mapping[str, np.ndarray]] = [data.vectors]
    for condition in conditions[1:]:
        places = corrupt.damaged(data.places, raw, condition.kind, condition.severity, seed)
        found.append(vectors_at(places, data.windows.rows, encoders))
    return found


def _result(
    entrants: Sequence[Entrant],
    data: TaskData,
    conditions: Sequence[Condition],
    vectors: Sequence[Mapping[str, np.ndarray]],
    options: Options,
) -> RobustnessResult:
    """Figures of every row under every condition, over the same drawn subjects."""
    task, source, names = data.task, data.source, class_names(data.labels, data.task)
    drawn, folds = _drawn(data, vectors, names, options)
    labels, notes = row_labels(entrants, (), bool(names), task), dict(data.notes)
    if "demographics" not in drawn[0]:
        notes["demographics"] = "not in the corpus"
    asked = {condition.kind for condition in conditions}
    rows = [Row(n, label, {}, notes.get(n, "")) for n, label in labels.items() if n in {*drawn[0], *notes}]
    return RobustnessResult(
        task=task,
        classes=tuple(names),
        rows=tuple(_with_figures(row, conditions, drawn, task.main) for row in rows),
        against={e.name: _against(e, conditions, drawn, task.main) for e in entrants},
        kinds={name: kind for name, kind in corrupt.KINDS.items() if name in asked},
        counts=data.counts(names),
        refused=data.windows.refused,
        adapted=tuple(data.adapted),
        overlap=data.overlap(),
        warnings=tuple(data.warnings()),
        protocol=Protocol(folds, options.seed, metrics.DRAWS),
        encoders={e.name: e.info for e in entrants},
        corpus=CorpusInfo(source.uri, source.hash, name=source.manifest["name"]),
    )


def _drawn(
    data: TaskData, vectors: Sequence[Mapping[str, np.ndarray]], names: Sequence[str], options: Options
) -> tuple[list[Drawn], int]:
    """Of each condition every metric of every row, point and draws; and the number of folds."""
    task, windows = data.task, data.windows
    people, _ = demographics(data.labels, windows.record.tolist(), task.demographics)
    each = [{n: x[n] for n in data.vectors} | {"demographics": people} for x in vectors]
    if task.level != "window":
        pooled = [pool(data.windows, x, task) for x in each]
        windows, each = pooled[0][0], [x for _, x, _ in pooled]
    stacked = {n: np.concatenate([x[n] for x in each]) for n in each[0]}
    rows = rows_of(stacked, stacked.pop("demographics"), [])
    plain = {n: row for n, row in rows.items() if " + " not in n}
    answer = answer_of(task, windows.target, names)
    folds = answer.folds(windows.subject, options.folds, options.seed)
    repeated = answer_of(task, np.concatenate([windows.target] * len(vectors)), names)
    predicted = everywhere(plain, repeated, windows.subject, folds, len(vectors), options.seed)
    weights = metrics.draw_weights(len(set(windows.subject)), seed=options.seed)
    drawn: list[Drawn] = [
        {n: answer.drawn(p[k], predicted["mean"][k], windows.subject, weights) for n, p in predicted.items()}
        for k in range(len(vectors))
    ]
    return drawn, len(folds)


def everywhere(
    rows: Mapping[str, Inputs], repeated: Answer, who: np.ndarray, folds: Folds, conditions: int, seed: int
) -> dict[str, np.ndarray]:
    """{row: (conditions, n, …)} predictions. Rows and `repeated` hold the windows of all conditions one below
    the other, the clean ones first: each fold's probe learns from its clean training windows alone and
    predicts its test subjects under every condition. `who`, `folds`: of the n clean windows.
    """
    n = len(who)
    laid = [(train, np.concatenate([k * n + test for k in range(conditions)])) for train, test in folds]
    found = probed(rows, repeated, np.tile(who, conditions), laid, seed)
    return {name: p.predicted.reshape(conditions, n, *p.predicted.shape[1:]) for name, p in found.items()}


def _with_figures(row: Row, conditions: Sequence[Condition], drawn: Sequence[Drawn], main: str) -> DamagedRow:
    """The row's clean metrics, and under every damage its metrics and the change of the main one, paired over
    the same drawn subjects.
    """
    if row.name not in drawn[0]:
        return DamagedRow(**vars(row))
    clean = drawn[0][row.name]
    damaged: dict[str, tuple[Damaged, ...]] = {}
    for c, values in zip(conditions[1:], drawn[1:], strict=True):
        here = values[row.name]
        point = Damaged(c.severity, metrics.each_interval(here), metrics.difference(here[main], clean[main]))
        damaged[c.kind] = (*damaged.get(c.kind, ()), point)
    return DamagedRow(row.name, row.label, metrics.each_interval(clean), row.note, damaged)


def _against(
    entrant: Entrant, conditions: Sequence[Condition], drawn: Sequence[Drawn], main: str
) -> dict[str, dict[str, tuple[Apart, ...]]]:
    """{row: {kind: encoder − row at each severity}} of the rows that there are."""
    found: dict[str, dict[str, tuple[Apart, ...]]] = {}
    for row in (entrant.twin, "handcrafted", "demographics", "mean"):
        if row not in drawn[0]:
            continue
        of = found.setdefault(row, {})
        for c, here in zip(conditions, drawn, strict=True):
            apart = metrics.difference(here[entrant.name][main], here[row][main])
            of[c.kind] = (*of.get(c.kind, ()), Apart(**vars(apart), severity=c.severity))
    return found
