"""Probes fitted on one corpus, tested on another without refitting: does what an encoder tells hold there?

Beside it, from the same vectors: the figure inside the first corpus (subject-disjoint folds) and, where the
second has enough subjects, the figure when probes are fitted there, which tells whether the vectors lost what
they knew or only the probe's scale moved.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.schema import Corpus, open_corpus
from datasets.split import corpus_subjects, overlap
from finetune import metrics, probe
from finetune.compare import entrants_of, opened
from finetune.evaluate import about
from finetune.evaluation.adapt import adapted
from finetune.evaluation.held import Entrant, Held, held_by, suits
from finetune.evaluation.rows import Row, probed, rows_of
from finetune.evaluation.table import Drawn, Options, note_handcrafted, row_labels, table
from finetune.reports import shift_report
from finetune.task import Task, demographics, load_task
from finetune.task import classes as class_names

Folds = probe.Folds


def shift(
    bundles: Sequence[str], fit: str, test: str, tasks: Sequence[str], out: str, options: Options
) -> dict[str, Any]:
    """Fit on `fit`, test on `test`; write shift.md, results.json, predictions.parquet and shift.png to `out`;
    return the results. Encoders are BUNDLE or BUNDLE#MODE.

    PlethoraError when a person is in both corpora, or a task cannot be asked of one of them.
    """
    questions = [load_task(name) for name in tasks]
    if not questions:
        raise PlethoraError("--tasks names no task")
    for task in questions:
        if task.kind not in ("regression", "binary", "multi-class"):
            raise PlethoraError(f"task {task.name} is {task.kind}: shift takes numbers and classes")
    entrants = entrants_of([opened(name) for name in bundles])
    here, there = open_corpus(fit), open_corpus(test)
    between = _between(here, there)
    asked = [_alike(task, here, there, options.window_s) for task in questions]
    for pair in asked:
        suits(entrants, pair[0][0])
    with session(actors=2):
        inside, outside = (
            held_by(entrants, source, [pair[k] for pair in asked], options)
            for k, source in enumerate((here, there))
        )
    found, tables = [], []
    for one, other in zip(inside, outside, strict=True):
        for held in (one, other):
            note_handcrafted(held.vectors, held.notes)
        results, predictions = _outcome(entrants, one.pooled(), other.pooled(), options)
        found.append(results | {"between": between})
        tables.append(predictions)
    results = {
        "encoders": {e.name: about(e.encoder) for e in entrants},
        "fit": _corpus(here), "test": _corpus(there), "tasks": found,
    }  # fmt: skip
    for one_task in found:
        one_task["verdict"] = shift_report.verdicts(one_task, results["test"]["name"])
    _write(results, tables, out)
    results["out"] = storage.normalise(out)
    return results


def _corpus(source: Corpus) -> dict[str, str]:
    return {"uri": source.uri, "hash": source.hash, "source": source.manifest["source"],
            "name": source.manifest["name"]}  # fmt: skip


def _between(here: Corpus, there: Corpus) -> dict[str, Any]:
    """Whether the two corpora share people. PlethoraError when they do."""
    if here.hash == there.hash:
        raise PlethoraError(f"--fit and --test are one corpus ({here.uri}): use compare, or another --test")
    told = here.manifest
    found = overlap(
        corpus_subjects(here), told["key_id"], told["id_space"], told["subjects_published"], there
    )
    if found.kind == "shared":
        raise PlethoraError(
            f"{here.uri} and {there.uri} share {len(found.shared)} subjects: what is fitted on a person must "
            "not be tested on them; choose corpora that share nobody"
        )
    return {"kind": found.kind, "why": found.why}


def _alike(
    task: Task, here: Corpus, there: Corpus, window_s: float | None
) -> tuple[tuple[Task, list[str]], tuple[Task, list[str]]]:
    """The task as each corpus can answer it, over windows of one length: the shorter of the two."""
    one, other = adapted(task, here, window_s), adapted(task, there, window_s)
    shortest = min(one[0].window_s, other[0].window_s)
    if one[0].window_s != other[0].window_s:
        one, other = adapted(task, here, shortest), adapted(task, there, shortest)
    if one[0].level != other[0].level:  # probes of averaged vectors are not for single ones
        one, other = ((t.model_copy(update={"level": "window"}), said) for t, said in (one, other))
    return one, other


def _outcome(
    entrants: Sequence[Entrant], here: Held, there: Held, options: Options
) -> tuple[dict[str, Any], pa.Table]:
    """One task's results, and its predictions on the second corpus."""
    task, names, seed = here.task, _same_classes(here, there), options.seed
    y, who = ([getattr(h.windows, k) for h in (here, there)] for k in ("target", "subject"))
    if len(set(who[1])) < probe.MIN_SUBJECTS:
        raise PlethoraError(
            f"{len(set(who[1]))} subjects of {there.source.uri} are left for task {task.name}: intervals "
            f"over subjects need at least {probe.MIN_SUBJECTS}; use a corpus with more, or --allow-overlap"
        )
    fitted, total = len(y[0]), len(y[0]) + len(y[1])
    people, notes = _demographics(here, there), {**there.notes, **here.notes}
    if not people.shape[1]:
        notes["demographics"] = "not in both corpora"
    vectors = {
        n: np.concatenate([x, there.vectors[n]]) for n, x in here.vectors.items() if n in there.vectors
    }
    encoders = [e.name for e in entrants]
    rows, both = rows_of(vectors, people, encoders), np.concatenate(y)
    asked = [h.answer(h.windows.target, names) for h in (here, there)]
    outer = asked[0].folds(who[0], options.folds, seed)
    predicted = {"inside": _predicted(_part(rows, slice(fitted)), asked[0], who[0], outer, seed)}
    across = [(np.arange(fitted), np.arange(fitted, total))]
    whole = _predicted(rows, here.answer(both, names), np.concatenate(who), across, seed)
    predicted["there"] = {n: p[fitted:] for n, p in whole.items()}
    why_not = ""
    try:
        again = asked[1].folds(who[1], options.folds, seed)
        part = _part(rows, slice(fitted, total))
        predicted["refitted"] = _predicted(part, asked[1], who[1], again, seed)
    except PlethoraError as error:
        why_not = str(error)
    # seeds differ: the people of two corpora are drawn independently
    weights = [metrics.draw_weights(len(set(w)), seed=seed + i) for i, w in enumerate(who)]
    drawn: dict[str, Drawn] = {}
    for where, said in predicted.items():
        k = 0 if where == "inside" else 1
        drawn[where] = {n: asked[k].drawn(p, said["mean"], who[k], weights[k]) for n, p in said.items()}
    labels = row_labels(entrants, (), bool(names), task)
    results = {
        "task": task.model_dump() | {"main": task.main, "classes": names},
        "level": task.level,
        **table(labels, encoders, drawn["there"], task.main, notes),
        "counts": {"fit": here.counts(names), "test": there.counts(names)},
        "overlap": {"fit": here.overlap(), "test": there.overlap()},
        "warnings": [f"{h.source.manifest['name']}: {line}" for h in (here, there) for line in h.warnings()],
        "refused": {"fit": here.windows.refused, "test": there.windows.refused},
        "adapted": {"fit": here.said, "test": there.said},
        "protocol": {"folds": len(outer), "seed": seed, "draws": metrics.DRAWS, "not_refitted": why_not},
    }
    for row in results["rows"]:
        _beside(row, drawn, task.main)
    return results, _predictions(there, predicted["there"], names)


def _part(rows: dict[str, Row], which: slice) -> dict[str, Row]:
    return {n: Row(row.x[which], row.subsets, row.nearest) for n, row in rows.items()}


def _predicted(
    rows: dict[str, Row], asked: Any, who: np.ndarray, folds: Folds, seed: int
) -> dict[str, np.ndarray]:
    return {n: p.predicted for n, p in probed(rows, asked, who, folds, seed).items()}


def _same_classes(here: Held, there: Held) -> list[str]:
    names, theirs = (class_names(h.labels, h.task) for h in (here, there))
    if names != theirs:
        raise PlethoraError(
            f"task {here.task.name} has the classes {', '.join(names)} in {here.source.uri} and "
            f"{', '.join(theirs)} in {there.source.uri}: a probe cannot be carried over"
        )
    return names


def _demographics(here: Held, there: Held) -> np.ndarray:
    """(n, d) in both corpora, one below the other, of what both know of their people; d = 0 where nothing."""

    def known(of: Held, names: Sequence[str]) -> np.ndarray:
        return demographics(of.labels, of.windows.record.tolist(), names)[0]

    named = here.task.demographics
    shared = [n for n in named if known(here, [n]).shape[1] and known(there, [n]).shape[1]]
    tables, records = [], []
    for mark, of in enumerate((here, there)):  # records of two corpora may have one name
        own = of.labels["record"].to_pylist()
        at = of.labels.column_names.index("record")
        tables.append(of.labels.set_column(at, "record", pa.array([f"{mark}/{r}" for r in own])))
        records += [f"{mark}/{r}" for r in of.windows.record]
    return demographics(pa.concat_tables(tables, promote_options="permissive"), records, shared)[0]


def _beside(row: dict[str, Any], drawn: dict[str, Drawn], main: str) -> None:
    """What a row of the table, whose metrics are those on the second corpus, is held against."""
    name = row["name"]
    for where in ("inside", "refitted"):
        found = drawn.get(where, {}).get(name, {})
        row[where] = {m: asdict(metrics.interval(v)) for m, v in found.items()}
        if found:
            key = {"inside": "loss", "refitted": "fitting_there"}[where]
            row[key] = asdict(metrics.difference(drawn["there"][name][main], found[main]))


def _predictions(there: Held, predicted: dict[str, np.ndarray], names: Sequence[str]) -> pa.Table:
    """Every prediction on the second corpus, as `evaluate.predictions` has them."""
    windows = there.windows
    columns: dict[str, Any] = {
        "task": [there.task.name] * len(windows.target), "subject": windows.subject.tolist(),
        "record": windows.record.tolist(), "start_s": windows.start_s, "target": windows.target,
    }  # fmt: skip
    for row, found in predicted.items():
        if found.ndim == 1 or found.shape[1] == 1:
            columns[row] = np.ravel(found)
        else:
            columns |= {f"{row}: {name}": found[:, k] for k, name in enumerate(names)}
    return pa.table(columns)


def _write(results: dict[str, Any], tables: Sequence[pa.Table], out: str) -> None:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        whole = pa.concat_tables(tables, promote_options="default")
        pq.write_table(whole, here / "predictions.parquet", compression="zstd")
        shift_report.draw(results, here / "shift.png")
        (here / "shift.md").write_text(shift_report.markdown(results), encoding="utf-8")
        (here / "results.json").write_bytes(storage.json_bytes(results))
        print(shift_report.terminal(results), flush=True)
        storage.upload(here, out)
        print(f"\ntables, predictions and picture: {storage.normalise(out)}")
