"""Outcomes of comparisons that nobody ran, shaped like real ones, for tests of what is written of them."""

from dataclasses import replace
from typing import Any

import numpy as np

from finetune import metrics
from finetune.evaluation import bloodpressure, classes
from finetune.evaluation.choose import Windows
from finetune.evaluation.naming import table_rows
from finetune.evaluation.results import (
    Calibrated,
    CorpusInfo,
    Counts,
    EncoderInfo,
    FewShotPoint,
    Gap,
    LabelScore,
    LeftOut,
    Overlap,
    PressureCard,
    Protocol,
    Published,
    Row,
    Stage,
    SubgroupFigures,
    Subgroups,
    TaskResult,
)
from finetune.evaluation.table import Outcome, paired_differences
from finetune.metrics import Difference, Interval
from finetune.reports.sheet import Sheet
from finetune.reports.task_section import of_result, verdicts
from finetune.task import Task

ROWS = {
    "a": "a",
    "b": "b",
    "a, untrained": "a, untrained",
    "b, untrained": "b, untrained",
    "handcrafted": "Handcrafted features",
    "demographics": "Demographics only",
    "mean": "Predict the mean",
}
ENCODERS = ("a", "b")
CORPUS = CorpusInfo("/data/c", "0" * 64, "https://example.org/c/", "CC0")
INFO = {name: EncoderInfo(f"/runs/{name}/bundle", "ppg", 6) for name in ENCODERS}
NO_OVERLAP = Overlap("none", ("same key",), "unseen", 0, LeftOut())
SBP = Task(
    name="sbp",
    title="Systolic pressure",
    kind="regression",
    label="sbp",
    unit="mmHg",
    window_s=10.0,
    hop_s=10.0,
    metrics=("mae", "rmse", "r2"),
)
SEX = Task(
    name="sex",
    title="Sex",
    kind="binary",
    label="sex",
    positive="F",
    window_s=10.0,
    hop_s=10.0,
    metrics=("auroc", "auprc", "f1"),
)


def interval(value: float, half: float = 0.5) -> Interval:
    return Interval(value, value - half, value + half)


def numbers(subjects: int = 12, each: int = 6, task: Task = SBP) -> Outcome:
    """A regression of SBP; "demographics" could not be predicted."""
    rng = np.random.default_rng(5)
    who = np.repeat([f"s{i:02}" for i in range(subjects)], each)
    y = np.repeat(rng.normal(130, 18, subjects), each) + rng.normal(0, 3, subjects * each)
    predicted = {n: 130 + 0.5 * (y - 130) + rng.normal(0, 6, len(y)) for n in ROWS if n != "demographics"}
    predicted["mean"] = np.full(len(y), 130.0)
    weights = metrics.draw_weights(subjects, 60)
    drawn = {n: metrics.drawn(metrics.subject_sums(y, p, who), weights) for n, p in predicted.items()}
    return _outcome(task, who, y, predicted, drawn)


def binary(subjects: int = 14, each: int = 5) -> Outcome:
    """Two classes."""
    rng = np.random.default_rng(6)
    who = np.repeat([f"s{i:02}" for i in range(subjects)], each)
    y = np.repeat(np.arange(subjects) % 2, each).astype(float)
    predicted = {
        n: 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(0, 1, len(y)))))[:, None]
        for n in ROWS
        if n != "demographics"
    }
    predicted["mean"] = np.full((len(y), 1), 0.5)
    weights, hot = metrics.draw_weights(subjects, 60), classes.one_hot(y, 2)
    drawn = {
        n: classes.drawn(hot, classes.evidence(p, predicted["mean"]), who, weights)
        for n, p in predicted.items()
    }
    return _outcome(SEX, who, y, predicted, drawn, ("not F", "F"))


def _outcome(
    task: Task,
    who: np.ndarray,
    y: np.ndarray,
    predicted: dict[str, Any],
    drawn: dict[str, Any],
    names: tuple[str, ...] = (),
) -> Outcome:
    people = len(set(who))
    counted = {name: int(np.sum(y == k)) for k, name in enumerate(names)} or None
    result = TaskResult(
        task=task,
        classes=names,
        pieces=1,
        refused={"no label": 3},
        warnings=(),
        counts=Counts(len(y), subjects=people, records=people, classes=counted),
        protocol=Protocol(5, 0, 60, folds_asked=5, handcrafted=("x",), demographics=()),
        rows=table_rows(ROWS, drawn, {"demographics": "the corpus has no age or sex"}),
        differences=paired_differences(ROWS, ENCODERS, drawn, task.main),
        overlap=NO_OVERLAP,
        refused_by={"a": {}, "b": {"flat": 2}},
        placed=len(y) + 5,
        corpus=CORPUS,
    )
    rng = np.random.default_rng(7)
    vectors = {n: rng.normal(size=(len(y), 6)) + y[:, None] / 30 for n in ENCODERS}
    windows = Windows(np.arange(len(y)), y, who, who, 10.0 * np.arange(len(y)))
    return judged(Outcome(result, windows, predicted, np.zeros(len(y), int), vectors))


def judged(outcome: Outcome, **changed: Any) -> Outcome:
    """The outcome with its result changed, and the verdict that follows."""
    result = replace(outcome.result, **changed)
    return replace(outcome, result=replace(result, verdict=verdicts(result)))


def of_one(low: float = -2.0, high: float = -1.0, absent: str | None = None, **changed: Any) -> Outcome:
    """An evaluation of heart rate whose differences all lie between low and high; row `absent` has no
    figures.
    """
    task = SBP.model_copy(
        update={"name": "heart_rate", "title": "Heart rate", "label": "hr", "unit": "bpm", "window_s": 30.0}
    )
    names = ("encoder", "untrained", "handcrafted", "demographics", "mean")
    apart = Difference((low + high) / 2, low, high, 0.04)
    shown = dict.fromkeys(("mae", "rmse", "r2", "pearson"), Interval(3.0, 2.0, 4.0))
    rows = tuple(
        Row(n, n.title(), {}, "the corpus has no age or sex") if n == absent else Row(n, n.title(), shown)
        for n in names
    )
    result = TaskResult(
        task=task,
        classes=(),
        pieces=1,
        refused={"no label": 3},
        warnings=(),
        counts=Counts(60, subjects=4, records=5),
        protocol=Protocol(4, 0, 2000, folds_asked=5, handcrafted=("a",), demographics=("age",)),
        rows=rows,
        differences={"encoder": {n: apart for n in names[1:] if n != absent}},
        overlap=NO_OVERLAP,
        corpus=CORPUS,
    )
    windows = Windows(np.arange(0), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
    bare = Outcome(replace(result, **changed), windows, {}, np.zeros(0, int), {})
    return judged(bare)


def sheet_of(outcome: Outcome) -> Sheet:
    """A sheet of one section without pictures."""
    return Sheet("report", "Evaluation", (), (of_result(outcome.result),), outcome.result.to_json())


def everything(outcome: Outcome) -> Outcome:
    """With each part that a result may have."""
    result, main = outcome.result, outcome.result.task.main
    every = {row.name: interval(3.0 + i) for i, row in enumerate(result.rows)}
    each = {name: {main: found} for name, found in every.items()}
    gaps = {name: Gap(**vars(found), between=("F", "M")) for name, found in every.items()}
    scores = (LabelScore("I10", 9, interval(0.8, 0.1)), LabelScore("E11", 4, interval(0.6, 0.1)))
    free = bloodpressure.agreement(outcome.windows.target, outcome.predicted["a"], outcome.windows.subject)
    card = PressureCard(
        "SBP", free, Calibrated("", free, free, 3), (Stage(**vars(free), name="Normal"),), "x", 72
    )
    points = (FewShotPoint(s, 12 * s, {n: interval(10 - 8 * s) for n in every}) for s in (0.1, 0.5, 1.0))
    groups = tuple(SubgroupFigures(name, 6, 36, each) for name in ("F", "M"))
    return judged(
        outcome,
        task=result.task.model_copy(update={"level": "subject"}),
        warnings=("subjects that pretraining saw are in this table",),
        few_shot=tuple(points),
        subgroups=(Subgroups("sex", groups, gaps, 2),),
        published_protocol=Published("", 72, each),
        delong={"a": interval(0.7, 0.1)},
        per_label={"a": scores},
        above={"a": {"0.7": 1, "0.8": 0}},
        blood_pressure=dict.fromkeys(outcome.predicted, card),
    )
