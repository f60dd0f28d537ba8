"""A task's windows in one corpus with the vectors of every row: what every table starts from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import PlethoraError
from datasets.schema import LABELS, Corpus
from finetune.encoder import BundleEncoder, Run, untrained
from finetune.evaluation.choose import (
    Places,
    Seen,
    Windows,
    choose_windows,
    place,
    policy,
    seen_by_any,
    seen_by_pretraining,
)
from finetune.evaluation.groups import pool, several_values
from finetune.evaluation.kinds import Answer
from finetune.evaluation.lengths import fit, run_fitted
from finetune.evaluation.table import Options, answer_of
from finetune.evaluation.vectors import Source, cache_folder, cached_vectors
from finetune.task import Task
from finetune.task import classes as class_names


@dataclass(frozen=True)
class Entrant:
    """An encoder, and what its row and that of its untrained twin are called."""

    encoder: BundleEncoder
    name: str
    label: str
    twin: str
    twin_label: str


@dataclass
class Held:
    """`said`: how the task was adapted to the corpus; `subjects`: whether people whom pretraining saw are
    left out ("unseen") or not ("all"); `notes`: why a row has no vectors.
    """

    source: Corpus
    task: Task
    said: list[str]
    seen: Seen
    subjects: str
    places: Places
    labels: pa.Table
    windows: Windows
    vectors: dict[str, np.ndarray]
    notes: dict[str, str]

    def pooled(self) -> "Held":
        """Windows as readings, records or subjects, where the task is about those."""
        if self.task.level == "window":
            return self
        windows, vectors, _ = pool(self.windows, self.vectors, self.task)
        return replace(self, windows=windows, vectors=vectors)

    def answer(self, target: np.ndarray, names: Sequence[str]) -> Answer:
        """As `answer_of`, of these targets."""
        return answer_of(self.task, replace(self.windows, target=target), names)

    def counts(self, names: Sequence[str]) -> dict[str, Any]:
        """Subjects, records, windows, and classes or mean and SD of the target."""
        w = self.windows
        found: dict[str, Any] = {
            "subjects": len(set(w.subject)), "records": len(set(w.record)), "windows": len(w.target)
        }  # fmt: skip
        if names:
            return found | {"classes": {name: int(np.sum(w.target == k)) for k, name in enumerate(names)}}
        return found | {"target": {"mean": float(w.target.mean()), "sd": float(w.target.std())}}

    def overlap(self) -> dict[str, Any]:
        """With pretraining, as results have it."""
        return {
            "kind": self.seen.kind, "why": list(self.seen.why), "policy": self.subjects,
            "shared_subjects": len(self.seen.subjects), "left_out": self.windows.left_out,
        }  # fmt: skip

    def warnings(self) -> list[str]:
        """A line where people whom pretraining saw, or may have seen, are in the figures; a line where people
        have several values.
        """
        names = class_names(self.labels, self.task)
        return self._seen() + several_values(self.windows, self.task, names)

    def _seen(self) -> list[str]:
        if self.subjects != "all" or (self.seen.kind == "none" and not self.seen.subjects):
            return []
        known = len(self.seen.subjects)
        return [f"subjects that pretraining saw are NOT left out ({known} known): figures may flatter"]


def held_by(
    entrants: Sequence[Entrant],
    source: Corpus,
    tasks: Sequence[tuple[Task, list[str]]],
    options: Options,
) -> list[Held]:
    """Every adapted task's windows and vectors, in order. Windows of one placement are embedded once."""
    bundles = {e.encoder.bundle.uri: e.encoder.bundle for e in entrants}
    seen, who = seen_by_any([seen_by_pretraining(b, source) for b in bundles.values()]), ", ".join(bundles)
    subjects = policy(seen, options.subjects, options.allow_overlap, source, who)
    cache = options.cache or cache_folder()
    placements: dict[tuple, list[tuple[Task, list[str]]]] = {}
    for task, said in tasks:
        placements.setdefault((task.window_s, task.hop_s, task.until_s), []).append((task, said))
    found: dict[str, Held] = {}
    for group in placements.values():
        first = group[0][0]
        places = place(source, {e.name: e.encoder for e in entrants}, first, storage.join(cache, "index"))
        labels = {t.name: source.labels(t.labels) if t.labels else LABELS.empty_table() for t, _ in group}
        chosen = {t.name: choose_windows(places, t, labels[t.name], seen, subjects, who) for t, _ in group}
        rows = np.unique(np.concatenate([w.rows for w in chosen.values()]))
        vectors, notes = _embedded(entrants, places, rows, first, cache)
        for task, said in group:
            windows = chosen[task.name]
            at = np.searchsorted(rows, windows.rows)
            mine = {name: x[at] for name, x in vectors.items()}
            found[task.name] = Held(
                source, task, said, seen, subjects, places, labels[task.name], windows, mine, dict(notes)
            )
    return [found[task.name] for task, _ in tasks]


def suits(entrants: Sequence[Entrant], task: Task) -> None:
    """PlethoraError when an encoder cannot answer the question at all."""
    for entrant in entrants:
        encoder = entrant.encoder
        if task.modality is not None and task.modality not in encoder.modalities:
            raise PlethoraError(
                f"task {task.name} is about {task.modality} itself, mode {encoder.mode!r} of "
                f"{encoder.bundle.uri} takes {encoder.modality}: choose another mode"
            )
        fit(encoder, task.window_s)  # refuses windows under its minimum


def _embedded(
    entrants: Sequence[Entrant], places: Places, rows: np.ndarray, task: Task, cache: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """{row: (n, d)} of these rows of the index, and why a row has none."""
    sources, notes = [], {}
    for e in entrants:
        bundle, how = e.encoder.bundle, fit(e.encoder, task.window_s)
        trained = Source(e.name, e.name, bundle.uri, e.encoder.mode, bundle.hash, how)
        sources.append(trained)
        try:
            seed = _fresh(e)[1]
            sources.append(replace(trained, row=e.twin, untrained=True, seed=seed))
        except (PlethoraError, KeyError) as error:
            notes[e.twin] = f"cannot be rebuilt from config.json: {error}"
    if places.pulses is not None:
        sources.append(Source("handcrafted"))
    return cached_vectors(places, rows, sources, cache), notes


def _fresh(e: Entrant) -> tuple[Run, int]:
    """The encoder before its training, and the seed of its weights."""
    seed = int(e.encoder.bundle.config["run"].get("seed", 0))
    return untrained(e.encoder.bundle.config, e.encoder.mode, seed), seed


def runs(held: Held, entrants: Sequence[Entrant]) -> dict[str, dict[str, Run]]:
    """{encoder: {row: what turns its prepared windows into vectors}} of the rows that there are."""
    found: dict[str, dict[str, Run]] = {}
    for e in entrants:
        how = fit(e.encoder, held.task.window_s)
        found[e.name] = {e.name: partial(run_fitted, e.encoder, fit=how)}
        if e.twin in held.vectors:
            found[e.name][e.twin] = partial(run_fitted, _fresh(e)[0], fit=how)
    return found
