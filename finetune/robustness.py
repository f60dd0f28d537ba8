"""Probes fitted on clean windows of some people, tested on damaged windows of others: how much damage does an
encoder bear, beside the same network untrained and handcrafted features?
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.schema import open_corpus
from finetune import metrics
from finetune.compare import entrants_of, opened
from finetune.evaluate import about
from finetune.evaluation import corrupt
from finetune.evaluation.adapt import adapted
from finetune.evaluation.groups import pool
from finetune.evaluation.held import Entrant, Held, held_by, runs, suits
from finetune.evaluation.kinds import Answer
from finetune.evaluation.rows import Row, probed, rows_of
from finetune.evaluation.table import Drawn, Options, note_handcrafted, row_labels
from finetune.evaluation.vectors import vectors_at
from finetune.probe import Folds
from finetune.reports import robustness_report
from finetune.task import classes as class_names
from finetune.task import demographics, load_task


@dataclass(frozen=True)
class Condition:
    """A kind of damage at one severity; clean windows have kind ""."""

    kind: str = ""
    severity: float = 0.0


def robustness(
    bundles: Sequence[str],
    corpus: str,
    task: str,
    out: str,
    options: Options,
    kinds: Sequence[str] = (),
) -> dict[str, Any]:
    """Write robustness.md, results.json, robustness.csv and curves.png to `out`; return the results. Encoders
    are BUNDLE or BUNDLE#MODE; `kinds` of `corrupt.KINDS` (none: all).
    """
    strange = [k for k in kinds if k not in corrupt.KINDS]
    if strange:
        raise PlethoraError(f"--kinds: no damage {strange[0]!r}; there are {', '.join(corrupt.KINDS)}")
    source, named = open_corpus(corpus), load_task(task)
    if named.kind not in ("regression", "binary", "multi-class"):
        raise PlethoraError(f"task {task} is {named.kind}: robustness takes numbers and classes")
    entrants = entrants_of([opened(name) for name in bundles])
    conditions = [Condition()] + [
        Condition(kind, s) for kind in kinds or corrupt.KINDS for s in corrupt.KINDS[kind].severities
    ]
    asked = adapted(named, source, options.window_s)
    suits(entrants, asked[0])
    with session(actors=2):
        (held,) = held_by(entrants, source, [asked], options)
    vectors, own, raw = [held.vectors], runs(held, entrants), corrupt.recorded(held.places)
    for c in conditions[1:]:
        places = corrupt.damaged(held.places, raw, c.kind, c.severity, options.seed)
        vectors.append(vectors_at(places, held.windows.rows, own))
    note_handcrafted(held.vectors, held.notes)
    results = _outcome(entrants, held, conditions, vectors, options)
    results |= {
        "encoders": {e.name: about(e.encoder) for e in entrants},
        "corpus": {"uri": source.uri, "hash": source.hash, "name": source.manifest["name"]},
    }
    results["verdict"] = robustness_report.verdicts(results)
    _write(results, out)
    results["out"] = storage.normalise(out)
    return results


def _outcome(
    entrants: Sequence[Entrant],
    held: Held,
    conditions: Sequence[Condition],
    vectors: Sequence[Mapping[str, np.ndarray]],
    options: Options,
) -> dict[str, Any]:
    """Figures of every row under every condition, over the same drawn subjects."""
    task, names = held.task, class_names(held.labels, held.task)
    windows, stacked = held.windows, {n: [v[n] for v in vectors] for n in held.vectors}
    people, people_names = demographics(held.labels, windows.record.tolist(), task.demographics)
    stacked["demographics"] = [people] * len(conditions)
    if task.level != "window":
        for k in range(len(conditions)):
            small, pooled, _ = pool(windows, {n: x[k] for n, x in stacked.items()}, task)
            for n, x in pooled.items():
                stacked[n][k] = x
        windows = small
    whole = {n: np.concatenate(x) for n, x in stacked.items()}
    rows = rows_of(whole, whole.pop("demographics"), [])
    plain = {n: row for n, row in rows.items() if " + " not in n}
    asked = held.answer(windows.target, names)
    outer = asked.folds(windows.subject, options.folds, options.seed)
    many = held.answer(np.concatenate([windows.target] * len(conditions)), names)
    predicted = everywhere(plain, many, windows.subject, outer, len(conditions), options.seed)
    weights = metrics.draw_weights(len(set(windows.subject)), seed=options.seed)
    drawn: list[Drawn] = [
        {n: asked.drawn(p[k], predicted["mean"][k], windows.subject, weights) for n, p in predicted.items()}
        for k in range(len(conditions))
    ]
    labels = row_labels(entrants, (), bool(names), task)
    notes = held.notes | ({} if people_names else {"demographics": "not in the corpus"})
    return {
        "task": task.model_dump() | {"main": task.main, "classes": names},
        "rows": [
            {"name": n, "label": label, "note": notes.get(n, "")} | _figures(n, conditions, drawn, task.main)
            for n, label in labels.items()
            if n in predicted or n in notes
        ],
        "against": _against(entrants, conditions, drawn, task.main),
        "kinds": {
            k: {"title": kind.title, "unit": kind.unit, "severities": list(kind.severities)}
            for k, kind in corrupt.KINDS.items()
            if any(c.kind == k for c in conditions)
        },
        "counts": held.counts(names),
        "refused": held.windows.refused,
        "adapted": held.said,
        "overlap": held.overlap(),
        "warnings": held.warnings(),
        "protocol": {"folds": len(outer), "seed": options.seed, "draws": metrics.DRAWS},
    }


def everywhere(
    rows: Mapping[str, Row], many: Answer, who: np.ndarray, folds: Folds, conditions: int, seed: int
) -> dict[str, np.ndarray]:
    """{row: (conditions, n, …)} predictions. Rows and `many` hold the windows of all conditions one below the
    other, the clean ones first: each fold's probe learns from its clean training windows alone and answers
    for its test subjects under every condition. `who`, `folds`: of the n clean windows.
    """
    n = len(who)
    laid = [(train, np.concatenate([k * n + test for k in range(conditions)])) for train, test in folds]
    found = probed(dict(rows), many, np.tile(who, conditions), laid, seed)
    return {name: p.predicted.reshape(conditions, n, *p.predicted.shape[1:]) for name, p in found.items()}


def _figures(name: str, conditions: Sequence[Condition], drawn: Sequence[Drawn], main: str) -> dict[str, Any]:
    """Clean metrics, and under every damage the main metric and its change against clean, paired over the
    same drawn subjects.
    """
    if name not in drawn[0]:
        return {"metrics": {}, "damaged": {}}
    clean = drawn[0][name]
    damaged: dict[str, list[dict[str, Any]]] = {}
    for c, here in zip(conditions[1:], drawn[1:], strict=True):
        damaged.setdefault(c.kind, []).append(
            {
                "severity": c.severity,
                "metrics": {m: asdict(metrics.interval(v)) for m, v in here[name].items()},
                "change": asdict(metrics.difference(here[name][main], clean[main])),
            }
        )
    return {"metrics": {m: asdict(metrics.interval(v)) for m, v in clean.items()}, "damaged": damaged}


def _against(
    entrants: Sequence[Entrant], conditions: Sequence[Condition], drawn: Sequence[Drawn], main: str
) -> dict[str, Any]:
    """{encoder: {row: {kind: [{severity, value, low, high, p}]}}}: encoder − row under the same damage."""
    found: dict[str, Any] = {}
    for e in entrants:
        for row in (e.twin, "handcrafted", "demographics", "mean"):
            if row not in drawn[0]:
                continue
            of = found.setdefault(e.name, {}).setdefault(row, {})
            for c, here in zip(conditions, drawn, strict=True):
                apart = asdict(metrics.difference(here[e.name][main], here[row][main]))
                of.setdefault(c.kind or "clean", []).append({"severity": c.severity} | apart)
    return found


def _write(results: dict[str, Any], out: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        robustness_report.draw(results, here / "curves.png")
        (here / "robustness.md").write_text(robustness_report.markdown(results), encoding="utf-8")
        (here / "robustness.csv").write_text(robustness_report.csv_text(results), encoding="utf-8")
        (here / "results.json").write_bytes(storage.json_bytes(results))
        print(robustness_report.terminal(results), flush=True)
        storage.upload(here, out)
        print(f"\ntables and curves: {storage.normalise(out)}")
