"""Encoders + corpus + tasks → for each task one table: every encoder beside the same network untrained, and
the baselines that could embarrass it, on the same windows, the same folds and the same drawn subjects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.schema import LABELS, Corpus
from finetune.adapt import adapted
from finetune.choose import (
    Places,
    Seen,
    Windows,
    choose_windows,
    place,
    policy,
    seen_by_any,
    seen_by_pretraining,
)
from finetune.encoder import BundleEncoder, Run, untrained
from finetune.lengths import fit, run_fitted
from finetune.table import BASELINES, Options, Outcome, _note_handcrafted, outcome
from finetune.task import Task
from finetune.vectors import Source, cache_folder, cached_vectors

__all__ = ["BASELINES", "Entrant", "Options", "Outcome", "_note_handcrafted", "study"]


@dataclass(frozen=True)
class Entrant:
    """An encoder, and what its row and that of its untrained twin are called."""

    encoder: BundleEncoder
    name: str
    label: str
    twin: str
    twin_label: str


def study(
    entrants: Sequence[Entrant], source: Corpus, tasks: Sequence[Task], options: Options
) -> list[Outcome]:
    """Every task's outcome, in their order. Windows of one placement are embedded once for all its tasks."""
    fitted = [adapted(task, source, options.window_s) for task in tasks]
    for task, _ in fitted:
        _suits(entrants, task)
    by_bundle = {e.encoder.bundle.uri: e.encoder.bundle for e in entrants}
    seen = seen_by_any([seen_by_pretraining(b, source) for b in by_bundle.values()])
    who = ", ".join(by_bundle)
    subjects = policy(seen, options.subjects, options.allow_overlap, source, who)
    placements: dict[tuple, list[tuple[Task, list[str]]]] = {}
    for task, said in fitted:
        placements.setdefault((task.window_s, task.hop_s, task.until_s), []).append((task, said))
    found: dict[str, Outcome] = {}
    cache = options.cache or cache_folder()
    with session(actors=2) as ray:
        for group in placements.values():
            first = group[0][0]
            places = place(source, {e.name: e.encoder for e in entrants}, first, storage.join(cache, "index"))
            labels = {t.name: source.labels(t.labels) if t.labels else LABELS.empty_table() for t, _ in group}
            chosen = {
                t.name: choose_windows(places, t, labels[t.name], seen, subjects, who) for t, _ in group
            }
            rows = np.unique(np.concatenate([w.rows for w in chosen.values()]))
            vectors, notes = _embedded(entrants, places, rows, first, cache, ray)
            for task, said in group:
                windows = chosen[task.name]
                at = np.searchsorted(rows, windows.rows)
                mine = {name: x[at] for name, x in vectors.items()}
                one = outcome(entrants, task, labels[task.name], windows, mine, dict(notes), options)
                one.results["overlap"] = _overlap(seen, subjects, windows)
                one.results["refused_by"] = places.refused_by()
                one.results["placed"] = places.index.table.num_rows
                one.results["adapted"] = [*said, *_lengths(entrants, task)]
                one.results["warnings"] = [
                    *_overlap_warning(seen, subjects), *one.results["warnings"],
                ]  # fmt: skip
                found[task.name] = one
    about = {"uri": source.uri, "hash": source.hash, "source": source.manifest["source"],
             "licence": source.manifest.get("licence", "")}  # fmt: skip
    for one in found.values():
        one.results["corpus"] = about
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
        fit(encoder, task.window_s)  # refuses windows under its minimum


def _row_labels(entrants: Sequence[Entrant], names: Sequence[str]) -> dict[str, str]:
    """{row: what it is called} of encoders, twins and baselines, in the order of a table."""
    labels = {e.name: e.label for e in entrants} | {e.twin: e.twin_label for e in entrants}
    labels |= {n: label for n, label in BASELINES.items() if "+" not in n}
    return labels | ({"mean": "Predict the prevalence"} if names else {})


def _lengths(entrants: Sequence[Entrant], task: Task) -> list[str]:
    """A line for each encoder that does not take the windows whole."""
    said = [(e.label, fit(e.encoder, task.window_s).said()) for e in entrants]
    return [f"{label}: {how}" for label, how in said if how]


def _overlap(seen: Seen, subjects: str, windows: Windows) -> dict[str, Any]:
    return {"kind": seen.kind, "why": list(seen.why), "shared_subjects": len(seen.subjects),
            "policy": subjects, "left_out": windows.left_out}  # fmt: skip


def _overlap_warning(seen: Seen, subjects: str) -> list[str]:
    if subjects != "all" or (seen.kind == "none" and not seen.subjects):
        return []
    return [
        f"subjects that pretraining saw are NOT left out ({len(seen.subjects)} known): figures may flatter"
    ]


def _embedded(
    entrants: Sequence[Entrant], places: Places, rows: np.ndarray, task: Task, cache: str, ray: Any
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """{row: (n, d)} of these rows of the index, and why a row has none."""
    sources, notes = [], {}
    for e in entrants:
        bundle, how = e.encoder.bundle, fit(e.encoder, task.window_s)
        trained = Source(e.name, e.name, bundle.uri, e.encoder.mode, bundle.hash, how)
        sources.append(trained)
        try:
            seed = int(bundle.config["run"].get("seed", 0))
            untrained(bundle.config, e.encoder.mode, seed)
            sources.append(
                Source(
                    e.twin, e.name, bundle.uri, e.encoder.mode, bundle.hash, how, untrained=True, seed=seed
                )
            )
        except (PlethoraError, KeyError) as error:
            notes[e.twin] = f"cannot be rebuilt from config.json: {error}"
    if places.pulses is not None:
        sources.append(Source("handcrafted"))
    return cached_vectors(places, rows, sources, cache, ray), notes


def _runs(entrants: Sequence[Entrant], task: Task) -> tuple[dict[str, dict[str, Run]], dict[str, str]]:
    """{encoder: {row: what turns its prepared windows into vectors}}, and why a row has none."""
    runs: dict[str, dict[str, Run]] = {}
    notes: dict[str, str] = {}
    for e in entrants:
        how = fit(e.encoder, task.window_s)
        runs[e.name] = {e.name: partial(run_fitted, e.encoder, fit=how)}
        try:
            seed = int(e.encoder.bundle.config["run"].get("seed", 0))
            fresh = untrained(e.encoder.bundle.config, e.encoder.mode, seed)
            runs[e.name][e.twin] = partial(run_fitted, fresh, fit=how)
        except (PlethoraError, KeyError) as error:
            notes[e.twin] = f"cannot be rebuilt from config.json: {error}"
    return runs, notes
