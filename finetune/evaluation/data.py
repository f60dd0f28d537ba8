"""A task's windows in one corpus with the vectors of every row: what every table starts from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import PlethoraError
from datasets.schema import LABELS, Corpus
from finetune.encoders.base import Run
from finetune.evaluation.choose import (
    Places,
    Windows,
    choose_windows,
    place,
)
from finetune.evaluation.entrant import Entrant
from finetune.evaluation.groups import pool, several_values
from finetune.evaluation.lengths import fit, run_fitted
from finetune.evaluation.options import Options
from finetune.evaluation.people import SeenSubjects, seen_by, seen_by_any
from finetune.evaluation.results import Counts, Overlap, Target
from finetune.evaluation.vectors import VectorSource, cache_folder, cached_vectors
from finetune.task import Task
from finetune.task import classes as class_names


@dataclass
class TaskData:
    """`adapted`: how the task was fitted to the corpus; `seen`: by any of the encoders; `notes`: why a row
    has no vectors; `seen_by`: {encoder: whom it saw itself}.
    """

    source: Corpus
    task: Task
    adapted: list[str]
    seen: SeenSubjects
    places: Places
    labels: pa.Table
    windows: Windows
    vectors: dict[str, np.ndarray]
    notes: dict[str, str]
    seen_by: dict[str, SeenSubjects] = field(default_factory=dict)

    def pooled(self) -> "TaskData":
        """Windows as readings, records or subjects, where the task is about those."""
        if self.task.level == "window":
            return self
        windows, vectors, _ = pool(self.windows, self.vectors, self.task)
        return replace(self, windows=windows, vectors=vectors)

    def counts(self, names: Sequence[str]) -> Counts:
        """Subjects, records, windows, and classes or mean and SD of the target."""
        w = self.windows
        found = Counts(len(w.target), subjects=len(set(w.subject)), records=len(set(w.record)))
        if names:
            return replace(found, classes={name: int(np.sum(w.target == k)) for k, name in enumerate(names)})
        return replace(found, target=Target(float(w.target.mean()), float(w.target.std())))

    def overlap(self) -> Overlap:
        """With pretraining."""
        return self.seen.overlap(self.windows.left_out)

    def warnings(self) -> list[str]:
        """A line where people whom pretraining saw, or may have seen, are in the figures; a line where people
        have several values.
        """
        names = class_names(self.labels, self.task)
        return self.seen.warnings() + several_values(self.windows, self.task, names)


def task_data(
    entrants: Sequence[Entrant],
    source: Corpus,
    tasks: Sequence[tuple[Task, list[str]]],
    options: Options,
) -> list[TaskData]:
    """Every adapted task's windows and vectors, in order. Windows of one placement are embedded once."""
    each = {e.name: seen_by([e.encoder], source, options.allow_overlap) for e in entrants}
    seen = replace(seen_by_any(each.values()), kept=options.allow_overlap)
    who = ", ".join(dict.fromkeys(e.encoder.uri for e in entrants))
    cache = options.cache or cache_folder()
    placements: dict[tuple, list[tuple[Task, list[str]]]] = {}
    for task, lines in tasks:
        placements.setdefault((task.window_s, task.hop_s, task.until_s), []).append((task, lines))
    found: dict[str, TaskData] = {}
    for group in placements.values():
        first = group[0][0]
        places = place(source, {e.name: e.encoder for e in entrants}, first, storage.join(cache, "index"))
        labels = {t.name: source.labels(t.labels) if t.labels else LABELS.empty_table() for t, _ in group}
        chosen = {t.name: choose_windows(places, t, labels[t.name], seen, who) for t, _ in group}
        rows = np.unique(np.concatenate([w.rows for w in chosen.values()]))
        vectors, notes = _embedded(entrants, places, rows, first, cache)
        for task, lines in group:
            windows = chosen[task.name]
            at = np.searchsorted(rows, windows.rows)
            mine = {name: x[at] for name, x in vectors.items()}
            found[task.name] = TaskData(
                source, task, lines, seen, places, labels[task.name], windows, mine, dict(notes), each
            )
    return [found[task.name] for task, _ in tasks]


def _embedded(
    entrants: Sequence[Entrant], places: Places, rows: np.ndarray, task: Task, cache: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """{row: (n, d)} of these rows of the index, and why a row has none."""
    sources, notes = [], {}
    for e in entrants:
        encoder, how = e.encoder, fit(e.encoder, task.window_s)
        trained = VectorSource(e.name, e.name, encoder.uri, encoder.mode, encoder.hash, how)
        sources.append(trained)
        try:
            encoder.untrained(encoder.seed)  # raises where it cannot be built
            sources.append(replace(trained, row=e.twin, untrained=True, seed=encoder.seed))
        except (PlethoraError, KeyError) as error:
            notes[e.twin] = f"cannot be built: {error}"
    if places.pulses is not None:
        sources.append(VectorSource("handcrafted"))
    return cached_vectors(places, rows, sources, cache), notes


def runs(data: TaskData, entrants: Sequence[Entrant]) -> dict[str, dict[str, Run]]:
    """{encoder: {row: what turns its prepared windows into vectors}} of the rows that there are."""
    found: dict[str, dict[str, Run]] = {}
    for e in entrants:
        how = fit(e.encoder, data.task.window_s)
        found[e.name] = {e.name: partial(run_fitted, e.encoder, fit=how)}
        if e.twin in data.vectors:
            found[e.name][e.twin] = partial(run_fitted, e.encoder.untrained(e.encoder.seed), fit=how)
    return found
