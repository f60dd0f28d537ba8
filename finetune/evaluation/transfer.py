"""Two corpora that probes are carried between: whether they share people, and what both can answer alike."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.errors import PlethoraError
from datasets.schema import Corpus
from datasets.split import corpus_subjects, overlap
from finetune.evaluation.adapt import adapted
from finetune.evaluation.data import TaskData
from finetune.evaluation.results import Result
from finetune.task import Task, demographics
from finetune.task import classes as class_names

Adapted = tuple[Task, list[str]]  # a task as a corpus can answer it, and a line for each change


@dataclass(frozen=True)
class SharedPeople(Result):
    """Whether two corpora share people: `kind` "none" or "unknown"."""

    kind: str
    why: str


def people_in_both(fit: Corpus, test: Corpus) -> SharedPeople:
    """PlethoraError when the two corpora are one, or share people."""
    if fit.hash == test.hash:
        raise PlethoraError(f"--fit and --test are one corpus ({fit.uri}): use compare, or another --test")
    about = fit.manifest
    found = overlap(
        corpus_subjects(fit), about["key_id"], about["id_space"], about["subjects_published"], test
    )
    if found.kind == "shared":
        raise PlethoraError(
            f"{fit.uri} and {test.uri} share {len(found.shared)} subjects: what is fitted on a person must "
            "not be tested on them; choose corpora that share nobody"
        )
    return SharedPeople(found.kind, found.why)


def alike(task: Task, fit: Corpus, test: Corpus, window_s: float | None) -> tuple[Adapted, Adapted]:
    """The task as each corpus can answer it, over windows of one length: the shorter of the two."""
    one, other = adapted(task, fit, window_s), adapted(task, test, window_s)
    shortest = min(one[0].window_s, other[0].window_s)
    if one[0].window_s != other[0].window_s:
        one, other = adapted(task, fit, shortest), adapted(task, test, shortest)
    if one[0].level != other[0].level:  # probes of averaged vectors are not for single ones
        one, other = ((t.model_copy(update={"level": "window"}), lines) for t, lines in (one, other))
    return one, other


def same_classes(fit: TaskData, test: TaskData) -> list[str]:
    """The names of the classes; PlethoraError where the two corpora have different ones."""
    names, others = (class_names(data.labels, data.task) for data in (fit, test))
    if names != others:
        raise PlethoraError(
            f"task {fit.task.name} has the classes {', '.join(names)} in {fit.source.uri} and "
            f"{', '.join(others)} in {test.source.uri}: a probe cannot be carried over"
        )
    return names


def shared_demographics(fit: TaskData, test: TaskData) -> np.ndarray:
    """(n, d) of the windows of both corpora, those of `test` last: the demographics that both corpora have,
    d = 0 where there are none.
    """

    def has(data: TaskData, name: str) -> bool:
        return demographics(data.labels, data.windows.record.tolist(), [name])[0].shape[1] > 0

    shared = [name for name in fit.task.demographics if has(fit, name) and has(test, name)]
    tables, records = [], []
    for mark, data in enumerate((fit, test)):  # a record of each may have the same name
        tables.append(_marked(data.labels, mark))
        records += [f"{mark}/{record}" for record in data.windows.record]
    return demographics(pa.concat_tables(tables, promote_options="permissive"), records, shared)[0]


def _marked(labels: pa.Table, mark: int) -> pa.Table:
    at = labels.column_names.index("record")
    records = [f"{mark}/{record}" for record in labels["record"].to_pylist()]
    return labels.set_column(at, "record", pa.array(records))
