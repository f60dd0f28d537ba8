"""What one row of a table stands for: a reading (one measurement of the reference), a record or a person.

Predictions of its windows are averaged. Targets are not: nobody measured the mean of two readings.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from finetune.task import Task

# manifest["readings"], as `datasets.readers.given.readings` writes it
BY_RECORD, BY_VALUE = "record", "value"


def units(
    level: str,
    target: np.ndarray,
    subject_n: np.ndarray,
    record_n: np.ndarray,
    reading_n: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) the first window of each row of the table, and (n,) the row of each window, rows in order of
    their names. Windows with different targets, (n,) or (n, labels), are never one row.

    `level`: "reading" (`reading_n` names them), "record" or "subject".
    """
    names = {"subject": subject_n, "record": record_n}.get(level, reading_n)
    assert names is not None
    _, name = np.unique(names, return_inverse=True)
    _, value = np.unique(target, axis=0, return_inverse=True)
    both = np.stack([name.ravel(), value.ravel()], axis=1)
    _, first, group = np.unique(both, axis=0, return_index=True, return_inverse=True)
    return first, group.ravel()


def reading_names(
    labels: pa.Table,
    record_n: np.ndarray,
    subject_n: np.ndarray,
    start_n: np.ndarray,
    target_n: np.ndarray,
    task: Task,
    manifest: Mapping[str, Any],
) -> np.ndarray:
    """(n,) str: the reading that each window's target (n,) is.

    A label with times is a reading; so is one of a whole record, but where several records of a person share
    it. The corpus's manifest says which do: BY_RECORD: none; BY_VALUE: those with one value; where it says
    nothing: all records of a person whose values are all equal.
    """
    named = labels.filter(pa.compute.equal(labels["name"], task.label))
    start, end, value = (
        named[c].to_numpy(zero_copy_only=False).astype(float) for c in ("start_s", "end_s", "value")
    )
    of_record: dict[str, list[int]] = {}
    for row, record in enumerate(named["record"].to_pylist()):
        of_record.setdefault(record, []).append(row)
    rows = {record: np.array(at) for record, at in of_record.items()}
    found = np.array([""] * len(record_n), object)
    whole = np.zeros(len(record_n), bool)
    for i, (record, at_s, target) in enumerate(zip(record_n, start_n, target_n, strict=True)):
        at = rows[record]
        if np.isnan(start[at]).any():
            whole[i] = True
            continue
        shared = np.minimum(end[at], at_s + task.window_s) - np.maximum(start[at], at_s)
        if task.kind == "regression":  # the reading that gave the target, not one at the window's edge
            shared = np.where(value[at] == target, shared, -np.inf)
        best = int(np.argmax(shared))
        # where no label alone gave the target, the window is a row of its own
        found[i] = f"{record}\0{at[best]}" if shared[best] > 0 else f"{record}\0at {at_s:g}"
    known = manifest.get("readings", {}).get(task.label)
    for subject in np.unique(subject_n[whole]):
        mine = np.flatnonzero(whole & (subject_n == subject))
        if known == BY_VALUE or (known is None and len(set(target_n[mine].tolist())) == 1):
            found[mine] = f"\0{subject}"  # `units` keeps different values apart
        else:
            found[mine] = record_n[mine]
    return found.astype(str)
