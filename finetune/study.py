"""Encoders + corpus + tasks → for each task one table: every encoder beside the same network untrained, and
the baselines that could embarrass it, on the same windows, the same folds and the same drawn subjects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.cli import progress
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.schema import Corpus
from finetune import classes, features, metrics, probe
from finetune.choose import Seen, Windows, choose_windows, place, seen_by_any, seen_by_pretraining
from finetune.encoder import BundleEncoder, Run, pooled, untrained
from finetune.task import Task, demographics
from finetune.task import classes as class_names
from finetune.vectors import vectors_at

BASELINES = {
    "handcrafted": "Handcrafted features",
    "demographics": "Demographics only",
    "mean": "Predict the mean",
}


@dataclass(frozen=True)
class Entrant:
    """An encoder, and what its row and that of its untrained twin are called."""

    encoder: BundleEncoder
    name: str
    label: str
    twin: str
    twin_label: str


@dataclass
class Outcome:
    """One task's results as JSON knows them, and what they were computed from: out-of-fold predictions by
    row, (n,) or (n, columns of `classes.one_hot`), and each window's fold.
    """

    results: dict[str, Any]
    windows: Windows
    predicted: dict[str, np.ndarray]
    fold: np.ndarray


def study(
    entrants: Sequence[Entrant],
    source: Corpus,
    tasks: Sequence[Task],
    subjects: str = "unseen",
    folds: int = 5,
    seed: int = 0,
) -> list[Outcome]:
    """Every task's outcome, in their order. Windows of one placement are embedded once for all its tasks."""
    for task in tasks:
        _suits(entrants, task)
    by_bundle = {e.encoder.bundle.uri: e.encoder.bundle for e in entrants}
    seen = seen_by_any([seen_by_pretraining(b, source) for b in by_bundle.values()])
    who = ", ".join(by_bundle)
    placements: dict[tuple, list[Task]] = {}
    for task in tasks:
        placements.setdefault((task.window_s, task.hop_s, task.until_s), []).append(task)
    found: dict[str, Outcome] = {}
    with session(actors=2):
        for group in placements.values():
            places = place(source, {e.name: e.encoder for e in entrants}, group[0])
            labels = {t.name: source.labels(t.labels) for t in group}
            chosen = {t.name: choose_windows(places, t, labels[t.name], seen, subjects, who) for t in group}
            rows = np.unique(np.concatenate([w.rows for w in chosen.values()]))
            runs, notes = _runs(entrants, group[0])
            vectors = vectors_at(places, rows, runs)
            for task in group:
                windows = chosen[task.name]
                at = np.searchsorted(rows, windows.rows)
                mine = {name: x[at] for name, x in vectors.items()}
                outcome = _outcome(entrants, task, labels[task.name], windows, mine, dict(notes), folds, seed)
                outcome.results["overlap"] = _overlap(seen, subjects, windows)
                outcome.results["refused_by"] = places.refused_by()
                outcome.results["placed"] = places.index.table.num_rows
                found[task.name] = outcome
    about = {"uri": source.uri, "hash": source.hash, "source": source.manifest["source"],
             "licence": source.manifest.get("licence", "")}  # fmt: skip
    for outcome in found.values():
        outcome.results["corpus"] = about
    return [found[task.name] for task in tasks]


def _suits(entrants: Sequence[Entrant], task: Task) -> None:
    """PlethoraError when an encoder cannot answer the question at all."""
    for entrant in entrants:
        encoder = entrant.encoder
        if task.modality is not None and task.modality not in encoder.modalities:
            raise PlethoraError(
                f"task {task.name} is about {task.modality} itself, mode {encoder.mode!r} of "
                f"{encoder.bundle.uri} takes {encoder.modality}: choose another mode"
            )
        encoder.pieces(task.window_s)  # refuses windows under its minimum


def _overlap(seen: Seen, subjects: str, windows: Windows) -> dict[str, Any]:
    return {"kind": seen.kind, "why": list(seen.why), "shared_subjects": len(seen.subjects),
            "policy": subjects, "left_out": windows.left_out}  # fmt: skip


def _runs(entrants: Sequence[Entrant], task: Task) -> tuple[dict[str, dict[str, Run]], dict[str, str]]:
    """{encoder: {row: what turns its prepared windows into vectors}}, and why a row has none."""
    runs: dict[str, dict[str, Run]] = {}
    notes: dict[str, str] = {}
    for entrant in entrants:
        encoder = entrant.encoder
        pieces = encoder.pieces(task.window_s)
        runs[entrant.name] = {entrant.name: _pooled(encoder, pieces, encoder.samples_step)}
        try:
            seed = int(encoder.bundle.config["run"].get("seed", 0))
            fresh = untrained(encoder.bundle.config, encoder.mode, seed)
            runs[entrant.name][entrant.twin] = _pooled(fresh, pieces, encoder.samples_step)
        except (PlethoraError, KeyError) as error:
            notes[entrant.twin] = f"cannot be rebuilt from config.json: {error}"
    return runs, notes


def _pooled(run: Run, pieces: int, step: int) -> Run:
    return lambda x: pooled(run, x, pieces, step)


def _outcome(
    entrants: Sequence[Entrant],
    task: Task,
    labels: pa.Table,
    windows: Windows,
    vectors: dict[str, np.ndarray],
    notes: dict[str, str],
    folds: int,
    seed: int,
) -> Outcome:
    """Probes, metrics, intervals and paired differences of one task."""
    people, people_names = demographics(labels, windows.record.tolist(), task.demographics)
    if people_names:
        vectors["demographics"] = people
    else:
        wanted = " or ".join(task.demographics)
        notes["demographics"] = f"the corpus has no {wanted}" if wanted else "the task names none"
    _note_handcrafted(vectors, notes)
    names = class_names(labels, task)
    y, who = windows.target, windows.subject
    outer = probe.class_folds(y, who, names, folds, seed) if names else probe.grouped_folds(who, folds, seed)
    fit = probe.logistic_probe if names else probe.ridge_probe
    rows = _row_labels(entrants, names)
    probed = {}
    with progress(len(vectors), f"probe {task.name}", "rows") as bar:
        for name in (n for n in rows if n in vectors):
            subsets = features.SUBSETS if name == "handcrafted" else None
            probed[name] = fit(vectors[name], y, who, outer, seed, subsets)
            bar.update()
    probed["mean"] = probe.prevalence_probe(y, outer) if names else probe.mean_probe(y, outer)
    predicted = {name: p.predicted for name, p in probed.items()}
    fold = np.zeros(len(y), np.int32)
    for number, (_, test) in enumerate(outer):
        fold[test] = number
    widest = max(e.encoder.pieces(task.window_s) for e in entrants)
    counted = {name: int(np.sum(y == k)) for k, name in enumerate(names)}
    results = {
        "task": task.model_dump() | {"pieces": widest, "main": task.main, "classes": names},
        "counts": {"subjects": len(set(who)), "records": len(set(windows.record)), "windows": len(y)}
        | ({"classes": counted} if names else {}),
        "refused": windows.refused,
        "protocol": {"folds": len(outer), "folds_asked": folds, "seed": seed, "draws": metrics.DRAWS,
                     "strengths" if names else "alphas": {n: list(p.alphas) for n, p in probed.items()},
                     "demographics": people_names, "handcrafted": list(features.NAMES)},
        **_table(entrants, task, rows, windows, predicted, notes, seed),
    }  # fmt: skip
    return Outcome(results, windows, predicted, fold)


def _note_handcrafted(vectors: dict[str, np.ndarray], notes: dict[str, str]) -> None:
    """Where the windows hold no PPG there is no such row; where some lack it, the table says how many."""
    if "handcrafted" not in vectors:
        notes["handcrafted"] = "the corpus has no ppg"
        return
    absent = int(np.isnan(vectors["handcrafted"]).all(axis=1).sum())
    if absent == len(vectors["handcrafted"]):
        notes["handcrafted"] = "no window holds ppg"
        del vectors["handcrafted"]
    elif absent:
        notes["handcrafted"] = f"{absent} windows hold no usable ppg; they get the training median"


def _row_labels(entrants: Sequence[Entrant], names: Sequence[str]) -> dict[str, str]:
    """{row: what it is called}, in the order of the table."""
    labels = {e.name: e.label for e in entrants} | {e.twin: e.twin_label for e in entrants} | BASELINES
    return labels | ({"mean": "Predict the prevalence"} if names else {})


def _table(
    entrants: Sequence[Entrant],
    task: Task,
    labels: Mapping[str, str],
    windows: Windows,
    predicted: dict[str, np.ndarray],
    notes: dict[str, str],
    seed: int,
) -> dict[str, Any]:
    """Rows with intervals, and paired differences encoder − row of the main metric."""
    people = np.unique(windows.subject)
    weights = metrics.draw_weights(len(people), seed=seed)
    more: dict[str, Any] = {}
    if task.kind != "regression":
        count = 2 if predicted["mean"].shape[1] == 1 else predicted["mean"].shape[1]
        hot = classes.one_hot(windows.target, count)
        scores = {n: classes.evidence(p, predicted["mean"]) for n, p in predicted.items()}
        drawn = {n: classes.drawn(hot, s, windows.subject, weights) for n, s in scores.items()}
    else:
        sums = {n: metrics.subject_sums(windows.target, p, windows.subject) for n, p in predicted.items()}
        drawn = {n: metrics.drawn(s, weights) for n, s in sums.items()}
        more["per_subject_mae"] = {
            n: dict(zip(people, metrics.per_subject_mae(s), strict=True)) for n, s in sums.items()
        }
    rows = []
    for name, label in labels.items():
        shown = {m: asdict(metrics.interval(v)) for m, v in drawn[name].items()} if name in drawn else {}
        rows.append({"name": name, "label": label, "metrics": shown, "note": notes.get(name, "")})
    differences = {
        e.name: {
            n: asdict(metrics.difference(drawn[e.name][task.main], drawn[n][task.main]))
            for n in labels
            if n in drawn and n != e.name
        }
        for e in entrants
    }
    return {"rows": rows, "differences": differences, **more}
