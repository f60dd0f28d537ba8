"""Metrics of an adapter on held-out subjects, compared with predicting the mean of its training windows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from finetune import metrics
from finetune.adapter import Adapter, HeldOut
from finetune.evaluation import classes
from finetune.evaluation.readings import units
from finetune.evaluation.results import CorpusInfo, Counts, Result, Row
from finetune.metrics import Difference
from finetune.targets import Head
from finetune.task import Task


@dataclass(frozen=True)
class BaseInfo:
    """The network under an adapter; `mean` and `std`: an image backbone's normalisation."""

    name: str
    source: str
    hash: str
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass(frozen=True)
class AdapterInfo(Result):
    uri: str
    base: BaseInfo


@dataclass(frozen=True)
class TaskFigures(Result):
    """Rows "model" and "mean" (for classes: the prevalence), and the paired difference model − mean of the
    main metric. Where no window has the label, only `note` is set.
    """

    task: Task
    classes: tuple[str, ...]
    refused: Mapping[str, int]
    counts: Counts
    rows: tuple[Row, ...] = ()
    difference: Difference | None = None
    level: str | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        found = super().to_json()
        task = found["task"] | {"classes": found.pop("classes"), "main": self.task.main}
        return found | {"task": task}


@dataclass(frozen=True)
class Assessment(Result):
    """An adapter on one corpus."""

    bundle: AdapterInfo
    corpus: CorpusInfo
    notes: tuple[str, ...]
    tasks: tuple[TaskFigures, ...]


@dataclass(frozen=True)
class Assessed:
    """`predictions`: one row per window, labelled or not; `split`: {side: subjects}. `compare` reads both
    from files.
    """

    result: Assessment
    predictions: pa.Table
    split: Mapping[str, Sequence[str]]


def assess(adapter: Adapter, held_out: HeldOut, seed: int = 0) -> Assessed:
    """Metrics with 95 % intervals (bootstrap over subjects), those of predicting the mean (or prevalence) of
    the training windows, and the paired differences.
    """
    every = adapter.predict(held_out.index, held_out.rows)
    columns: dict[str, Any] = {
        "subject": held_out.subject,
        "record": held_out.record,
        "start_s": held_out.start_s,
    }
    tasks = []
    for number, (head, predicted) in enumerate(zip(adapter.heads, every, strict=True)):
        if predicted.ndim == 2 and predicted.shape[1] > 1:
            columns |= {f"{head.name}: {c}": predicted[:, k] for k, c in enumerate(head.classes)}
        else:
            columns[head.name] = predicted.ravel()
        tasks.append(_figures(head, held_out, held_out.labels.values[held_out.rows, number], predicted, seed))
    bundle = adapter.bundle
    result = Assessment(
        bundle=AdapterInfo(bundle.uri, BaseInfo(**bundle.config["base"])),
        corpus=CorpusInfo(held_out.corpus.uri, held_out.corpus.hash),
        notes=tuple(held_out.notes),
        tasks=tuple(tasks),
    )
    return Assessed(result, pa.table(columns), held_out.sides)


def _figures(
    head: Head, held_out: HeldOut, target: np.ndarray, predicted: np.ndarray, seed: int
) -> TaskFigures:
    task, good = held_out.labels.tasks[head.name], np.isfinite(target)
    refused = Counter(held_out.labels.why[head.name])
    if not good.any():
        return TaskFigures(task, head.classes, refused, Counts(0), note="no window has this label")
    reading = held_out.labels.readings.get(head.name)
    reading = None if reading is None else reading[held_out.rows][good]
    places = held_out.subject[good], held_out.record[good], reading
    y, p, who = pooled(task.level, target[good], predicted[good], *places)
    drawn = _drawn(head, y, p, who, seed)
    labels = {"model": "This model", "mean": "Predict the prevalence" if head.classes else "Predict the mean"}
    main = head.task.main
    return TaskFigures(
        task=task,
        classes=head.classes,
        refused=refused,
        counts=Counts(int(good.sum()), subjects=len(set(held_out.subject[good])), rows=len(y)),
        rows=tuple(Row(name, labels[name], metrics.each_interval(found)) for name, found in drawn.items()),
        difference=metrics.difference(drawn["model"][main], drawn["mean"][main]),
        level=task.level,
    )


def pooled(
    level: str,
    y: np.ndarray,
    p: np.ndarray,
    subject: np.ndarray,
    record: np.ndarray,
    reading: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target, prediction (the mean over its windows) and subject of each row (see `readings.units`)."""
    if level == "window":
        return y, p, subject
    first, group = units(level, y, subject, record, reading)
    count = np.bincount(group).astype(float)
    flat = p.reshape(len(p), -1)
    mean = np.stack([np.bincount(group, column) / count for column in flat.T], axis=1)
    return y[first], mean.reshape(len(first), *p.shape[1:]), subject[first]


def _drawn(
    head: Head, y: np.ndarray, p: np.ndarray, who: np.ndarray, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """{"model", "mean": {metric: (1 + draws,)}}"""
    weights = metrics.draw_weights(len(np.unique(who)), seed=seed)
    if not head.classes:
        rows = {"model": p, "mean": np.full_like(y, head.mean)}
        return {n: metrics.drawn(metrics.subject_sums(y, x, who), weights) for n, x in rows.items()}
    share = np.array(head.share)[1:] if head.columns == 1 else np.array(head.share)
    rows = {"model": p, "mean": np.broadcast_to(share, p.shape)}
    hot = classes.one_hot(y, len(head.classes))
    return {n: classes.drawn(hot, classes.evidence(x, rows["mean"]), who, weights) for n, x in rows.items()}
