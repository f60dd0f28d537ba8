"""Adapts a task to a corpus: label, window length and pooling level. Every difference from the task's file is
reported.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cluster.errors import PlethoraError
from datasets.schema import DERIVED, Corpus
from finetune.task import Task


def adapted(task: Task, corpus: Corpus, window_s: float | None = None) -> tuple[Task, list[str]]:
    """The task for this corpus, and a line for each change.

    - Where the corpus lacks the label but has `<label>_derived`, that one is used.
    - `window_s` (the user's) replaces the task's; otherwise `short_s` does where no segment of the corpus
      is as long as a window. The fraction by which windows overlap stays the same.
    - `level` applies to labels of whole records: where the label changes within records, each window is a
      row. A reading may also span a segment, if that is long enough for two windows.
    """
    changes: dict[str, object] = {}
    lines = []
    names = _label_names(corpus)
    if task.label and task.label not in names and task.label + DERIVED in names:
        changes["label"] = task.label + DERIVED
        lines.append(f"Label {task.label + DERIVED}: computed from the waveforms at ingest")
    wanted = window_s
    if wanted is None and task.short_s is not None and not holds(corpus, task.window_s):
        wanted = task.short_s
        lines.append(
            f"Windows of {wanted:g} s, not {task.window_s:g} s: no segment of the corpus is long enough"
        )
    if wanted is not None and wanted != task.window_s:
        changes["window_s"] = wanted
        if task.until_s is not None and task.until_s < wanted:
            raise PlethoraError(
                f"--window-s {wanted:g}: windows of task {task.name} end at {task.until_s:g} s"
            )
        if task.hop_s is not None:
            changes["hop_s"] = wanted * task.hop_s / task.window_s
    if (
        task.level != "window"
        and task.label
        and _changes_in_time(corpus, str(changes.get("label", task.label)))
    ):
        label = str(changes.get("label", task.label))
        seconds = _stretch_s(corpus, label)
        two_s = float(str(changes.get("window_s", task.window_s))) + float(
            str(changes.get("hop_s", task.hop_s or 0))
        )
        if task.level == "reading" and seconds >= two_s and not label.endswith(DERIVED):
            lines.append(
                f"One row per segment with one value of label {label} "
                f"(half of them last {seconds:g} s or more)"
            )
        else:
            changes["level"] = "window"
            lines.append(f"Each window is a row: label {label} changes within records")
    return task.model_copy(update=changes), lines


def _label_names(corpus: Corpus) -> set[str]:
    rows_by_name = corpus.manifest.get("labels", {}).get("rows")
    return set(corpus.labels()["name"].to_pylist() if rows_by_name is None else rows_by_name)


def _changes_in_time(corpus: Corpus, label: str) -> bool:
    named = corpus.labels([label])
    return named["start_s"].null_count < named.num_rows


def _stretch_s(corpus: Corpus, label: str) -> float:
    """Median duration in s of the labels of this name that have times."""
    named = corpus.labels([label])
    seconds = pa.compute.subtract(named["end_s"], named["start_s"]).drop_null().to_numpy()
    return float(np.median(seconds))


def holds(corpus: Corpus, window_s: float) -> bool:
    """Whether some segment of a record, joined across consecutive rows, lasts at least `window_s` s."""
    record, end, run = None, 0.0, 0.0
    for shard, entry in enumerate(corpus.shards):
        for group in range(len(entry["row_groups"])):
            rows: pa.Table = corpus.read_row_group(shard, group, ["record", "start_s", "duration_s"])
            for name, start, seconds in zip(*(c.to_pylist() for c in rows.columns), strict=True):
                follows = name == record and abs(start - end) < 2e-3
                run = run + seconds if follows else seconds
                record, end = name, start + seconds
                if run >= window_s - 1e-3:
                    return True
    return False
