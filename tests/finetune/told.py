"""Results of comparisons that nobody ran, shaped like the real ones, for tests of what is written of them."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from finetune import metrics
from finetune.evaluation import classes
from finetune.reports import comparison

ROWS = {
    "a": "a", "b": "b", "a, untrained": "a, untrained", "b, untrained": "b, untrained",
    "handcrafted": "Handcrafted features", "demographics": "Demographics only", "mean": "Predict the mean",
}  # fmt: skip


def interval(value: float, half: float = 0.5) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def task(**changed: Any) -> dict[str, Any]:
    return {
        "name": "sbp", "title": "Systolic pressure", "kind": "regression", "label": "sbp", "unit": "mmHg",
        "window_s": 10.0, "until_s": None, "pieces": 1, "main": "mae", "metrics": ["mae", "rmse", "r2"],
        "classes": [],
    } | changed  # fmt: skip


def numbers(subjects: int = 12, each: int = 6, **changed: Any) -> tuple[dict[str, Any], Any]:
    """(table, outcome) of a regression of SBP; "demographics" could not be predicted."""
    rng = np.random.default_rng(5)
    who = np.repeat([f"s{i:02}" for i in range(subjects)], each)
    y = np.repeat(rng.normal(130, 18, subjects), each) + rng.normal(0, 3, subjects * each)
    predicted = {n: 130 + 0.5 * (y - 130) + rng.normal(0, 6, len(y)) for n in ROWS if n != "demographics"}
    predicted["mean"] = np.full(len(y), 130.0)
    weights = metrics.draw_weights(subjects, 60)
    drawn = {n: metrics.drawn(metrics.subject_sums(y, p, who), weights) for n, p in predicted.items()}
    return _both(task(**changed), who, y, predicted, drawn)


def binary(subjects: int = 14, each: int = 5) -> tuple[dict[str, Any], Any]:
    """(table, outcome) of two classes."""
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
    asked = task(name="sex", title="Sex", kind="binary", label="sex", unit="", main="auroc",
                 metrics=["auroc", "auprc", "f1"], classes=["not F", "F"])  # fmt: skip
    return _both(asked, who, y, predicted, drawn)


def _both(
    asked: dict[str, Any], who: np.ndarray, y: np.ndarray, predicted: dict[str, Any], drawn: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    def shown(values: np.ndarray) -> dict[str, Any]:
        return vars(metrics.interval(values))

    rows = [
        {"name": n, "label": label, "note": "" if n in drawn else "the corpus has no age or sex",
         "metrics": {m: shown(v) for m, v in drawn[n].items()} if n in drawn else {}}
        for n, label in ROWS.items()
    ]  # fmt: skip
    main = asked["main"]
    differences = {
        e: {n: vars(metrics.difference(drawn[e][main], drawn[n][main])) for n in drawn if n != e}
        for e in ("a", "b")
    }
    counts: dict[str, Any] = {"subjects": len(set(who)), "records": len(set(who)), "windows": len(y)}
    if asked["classes"]:
        counts["classes"] = {name: int(np.sum(y == k)) for k, name in enumerate(asked["classes"])}
    table = {
        "task": asked, "counts": counts, "refused": {"no label": 3}, "rows": rows, "differences": differences,
        "refused_by": {"a": {}, "b": {"flat": 2}}, "placed": len(y) + 5, "warnings": [],
        "corpus": corpus(),
        "overlap": {"kind": "none", "why": ["same key"], "shared_subjects": 0, "policy": "unseen",
                    "left_out": {"subjects": 0, "windows": 0}},
        "protocol": {"folds": 5, "folds_asked": 5, "seed": 0, "draws": 60, "handcrafted": ["x"],
                     "demographics": []},
    }  # fmt: skip
    table["verdict"] = comparison.verdicts(table)
    rng = np.random.default_rng(7)
    vectors = {n: rng.normal(size=(len(y), 6)) + y[:, None] / 30 for n in ("a", "b")}
    windows = SimpleNamespace(target=y, subject=who, record=who, start_s=10.0 * np.arange(len(y)))
    outcome = SimpleNamespace(
        results=table, windows=windows, predicted=predicted, vectors=vectors, fold=np.zeros(len(y), int)
    )
    return table, outcome


def corpus() -> dict[str, str]:
    return {"uri": "/data/c", "source": "https://example.org/c/", "hash": "0" * 64, "licence": "CC0"}


def comparison_of(*pairs: tuple[dict[str, Any], Any]) -> tuple[dict[str, Any], list[Any]]:
    """(results, outcomes) as `compare` makes them."""
    encoders = {n: {"uri": f"/runs/{n}/bundle", "mode": "ppg", "dim": 6} for n in ("a", "b")}
    results = {"encoders": encoders, "corpus": corpus(), "tasks": [table for table, _ in pairs]}
    return results, [outcome for _, outcome in pairs]


def everything(table: dict[str, Any]) -> None:
    """Adds each part of the schema that a table may have to it."""
    every = {row["name"]: interval(3.0 + i) for i, row in enumerate(table["rows"])}
    main = table["task"]["main"]
    table["level"] = "subject"
    table["warnings"] = ["subjects that pretraining saw are in this table"]
    table["few_shot"] = [
        {"share": share, "subjects": 12 * share, "rows": {n: interval(10 - 8 * share) for n in every}}
        for share in (0.1, 0.5, 1.0)
    ]
    table["subgroups"] = [
        {"column": "sex", "unknown": 2, "gap": every, "groups": [
            {"name": name, "subjects": 6, "windows": 36, "metrics": {n: {main: v} for n, v in every.items()}}
            for name in ("F", "M")]}
    ]  # fmt: skip
    table["published_protocol"] = {"windows": 72, "rows": {n: {main: v} for n, v in every.items()}}
    table["delong"] = {"a": interval(0.7, 0.1)}
    table["per_label"] = {"a": [{"label": "I10", "positives": 9, "auroc": interval(0.8, 0.1)},
                                {"label": "E11", "positives": 4, "auroc": interval(0.6, 0.1)}]}  # fmt: skip
    table["above"] = {"a": {"0.7": 1, "0.8": 0}}
