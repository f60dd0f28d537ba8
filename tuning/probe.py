"""A probe as an objective: it judges a trial's bundle on held-out subjects, "val" to compare trials, "test"
once, for the trial that was chosen.

    [objective]
    task = "heart_rate"                            # of finetune/tasks, or a TOML file
    metric = "mae"
    mode = "min"
    damage = { motion = 1.0, dropouts = 0.2 }      # as in finetune/evaluation/corrupt.py; without: clean

The linear probe of `python -m finetune evaluate` is trained on clean windows of the run's training subjects
and predicts windows of the held-out ones; with several kinds of damage the objective is their mean.
Arrhythmia is a task: "alarm_truth", or a task file with `where`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError

if TYPE_CHECKING:
    from datasets.schema import Corpus
    from finetune.encoders.bundle import BundleEncoder
    from finetune.evaluation.choose import Places, Windows
    from finetune.task import Task
    from pretrain.config import RunConfig
    from tuning.config import Objective


def probe(objective: Objective, run: RunConfig, bundle: str, part: str) -> float:
    """The objective's metric on the windows of the run's `part` ("val", "test"), the mean over those of its
    corpora that have the task's label. Needs Ray for windows that are not yet indexed.

    PlethoraError: an adapter, an unknown task or metric, or too few subjects with labels.
    """
    from datasets.schema import open_corpus

    task, damage = check(objective)
    encoder = opened(bundle, task)
    corpora = [open_corpus(uri) for uri in run.corpora]
    labelled = [c for c in corpora if task.label in set(c.labels([task.label])["name"].to_pylist())]
    if not labelled:
        raise PlethoraError(
            f"objective: no corpus of the run has the label {task.label!r} of task {task.name}: choose "
            "another task, or a validation figure"
        )
    values = []
    for corpus in labelled:
        data = ProbeData.of(encoder, corpus, task, run, part)
        values += [data.value(objective.metric, kind, severity) for kind, severity in damage.items()]
    return float(np.mean(values))


def check(objective: Objective) -> tuple[Task, dict[str, float]]:
    """The task and the damage of a probe. PlethoraError: what is wrong with it, before any trial."""
    from finetune.task import load_task

    task = load_task(objective.task)
    if objective.metric not in task.metrics:
        raise PlethoraError(
            f"objective: task {task.name} has no metric {objective.metric!r}, "
            f"it has {', '.join(task.metrics)}"
        )
    return task, severities(objective.damage)


def severities(damage: Mapping[str, Any]) -> dict[str, float]:
    """{kind: severity} of an objective's `damage`; without damage {"": 0}: clean windows."""
    from finetune.evaluation.corrupt import KINDS

    for kind, severity in damage.items():
        if kind not in KINDS:
            raise PlethoraError(f"objective.damage: unknown damage {kind!r}; there are {', '.join(KINDS)}")
        if isinstance(severity, bool) or not isinstance(severity, int | float) or severity <= 0:
            usual = ", ".join(f"{s:g}" for s in KINDS[kind].severities)
            raise PlethoraError(
                f"objective.damage.{kind} = {severity!r}: give a severity above 0 "
                f"({KINDS[kind].unit}; {usual})"
            )
    return dict(damage) or {"": 0.0}


def opened(bundle: str, task: Task) -> BundleEncoder:
    """The bundle's encoder; if it has several modes, that of the task's signal, else PPG."""
    from cluster import bundle as bundles
    from finetune.encoders.bundle import BundleEncoder

    modes = bundles.open(bundle).config.get("modes", {})
    if not modes:
        raise PlethoraError(
            f"objective: {bundle} is an adapter, which predicts only the tasks it was trained on: give a "
            'validation figure as the metric (such as "mae/heart_rate"), without task'
        )
    asked = task.modality or "ppg"
    return BundleEncoder(bundle, asked if len(modes) > 1 and asked in modes else None, threads=1)


@dataclass(frozen=True)
class ProbeData:
    """Labelled windows of one corpus with their vectors (n, d): those the probe is trained on, and those it
    is judged on (`judged`, (n,) bool)."""

    encoder: BundleEncoder
    task: Task
    places: Places
    windows: Windows
    names: list[str]
    vectors: np.ndarray
    judged: np.ndarray
    part: str

    @staticmethod
    def of(encoder: BundleEncoder, corpus: Corpus, asked: Task, run: RunConfig, part: str) -> ProbeData:
        from cluster.session import session
        from datasets.schema import LABELS
        from datasets.split import assign
        from finetune.evaluation.adapt import adapted
        from finetune.evaluation.choose import choose_windows, place
        from finetune.task import classes

        task, _ = adapted(asked, corpus)
        labels = corpus.labels(task.labels) if task.labels else LABELS.empty_table()
        with session(actors=1):
            cache = storage.join(run.storage, "index")
            places = replace(place(corpus, {"encoder": encoder}, task, cache), pulses=None)
        # the probe may be trained on subjects of the trial's training set; it is judged on none of them
        whole = choose_windows(places, task, labels)
        split = run.split.model_copy(update={"train": 1.0})  # the same training subjects in every trial
        side = {subject: assign(subject, split) for subject in set(whole.subject)}
        sides = np.array([side[subject] for subject in whole.subject])
        windows = whole.at(np.flatnonzero((sides == "train") | (sides == part)))
        judged = np.array([side[subject] == part for subject in windows.subject], bool)
        train = len(set(windows.subject[~judged]))
        if not judged.any() or train < 2:
            raise PlethoraError(
                f"objective: task {task.name} has labelled windows of {train} training subjects and "
                f"{len(set(windows.subject[judged]))} subjects of {part} in {corpus.uri}: change "
                f"split.{part}, or choose another task"
            )
        names = classes(labels, task)
        found = ProbeData(encoder, task, places, windows, names, np.empty(0), judged, part)
        return replace(found, vectors=found.embed(places, windows.rows))

    def embed(self, places: Places, rows: np.ndarray) -> np.ndarray:
        """(n, d)"""
        from finetune.evaluation.lengths import fit, run_fitted
        from finetune.evaluation.vectors import vectors_at

        run = partial(run_fitted, self.encoder, fit=fit(self.encoder, self.task.window_s))
        return vectors_at(places, rows, {"encoder": {"encoder": run}})["encoder"]

    def value(self, metric: str, kind: str, severity: float) -> float:
        """The metric on the judged windows with one kind of damage ("": without)."""
        from finetune import metrics
        from finetune.evaluation import corrupt
        from finetune.evaluation.groups import pool
        from finetune.evaluation.kinds import answer_of

        x, windows, judged = self.vectors, self.windows, self.judged
        if kind:
            places = corrupt.damaged(self.places, corrupt.recorded(self.places), kind, severity, seed=0)
            x = x.copy()
            x[judged] = self.embed(places, windows.rows[judged])
        if self.task.level != "window":
            windows, pooled, _ = pool(windows, {"x": x, "judged": judged[:, None].astype(float)}, self.task)
            x, judged = pooled["x"], pooled["judged"][:, 0] > 0.5
        answer = answer_of(self.task, windows.target, self.names or windows.names)
        folds = [(np.flatnonzero(~judged), np.flatnonzero(judged))]
        if not answer.at(folds[0][0]).can_be_scored() or not answer.at(folds[0][1]).can_be_scored():
            raise PlethoraError(
                f"objective: the subjects of train or of {self.part} have windows of only one class of task "
                f"{self.task.name}: change split.seed, or raise split.{self.part}"
            )
        predicted = answer.linear(x, windows.subject, folds, 0).predicted[judged]
        base = answer.baseline(folds).predicted[judged]
        who = windows.subject[judged]
        weights = metrics.draw_weights(len(set(who)), draws=1)
        return float(answer.at(folds[0][1]).drawn(predicted, base, who, weights)[metric][0])
