"""Every prediction of a table as columns, for predictions.parquet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from finetune.evaluation.choose import Windows
from finetune.evaluation.table import Outcome
from finetune.task import Task


def of_outcome(outcome: Outcome) -> pa.Table:
    """`of_task`, with the fold of each row."""
    result = outcome.result
    return of_task(result.task, outcome.windows, outcome.predicted, result.classes, outcome.fold)


def of_task(
    task: Task,
    windows: Windows,
    predicted: Mapping[str, np.ndarray],
    classes: Sequence[str],
    fold: np.ndarray | None = None,
) -> pa.Table:
    """Task, subject, record, start_s, fold, target, and a column a row of the table; of more than two classes
    a probability a class; of several labels a column each, and of the target, too.
    """
    columns: dict[str, Any] = {
        "task": [task.name] * len(windows.subject),
        "subject": windows.subject.tolist(),
        "record": windows.record.tolist(),
        "start_s": windows.start_s,
    }
    columns |= {} if fold is None else {"fold": fold}
    names = classes or windows.names
    if windows.target.ndim == 1:
        columns["target"] = windows.target
    else:
        columns |= {f"target: {name}": windows.target[:, k] for k, name in enumerate(names)}
    if classes:
        columns["class"] = [names[int(k)] for k in windows.target]
    for row, found in predicted.items():
        if found.ndim == 1 or (found.shape[1] == 1 and windows.target.ndim == 1):
            columns[row] = np.ravel(found)
        else:
            columns |= {f"{row}: {name}": found[:, k] for k, name in enumerate(names)}
    return pa.table(columns)


def write(tables: Sequence[pa.Table], path: Path) -> None:
    """All tables, one below the other; a column that some lack is null there."""
    import pyarrow.parquet as pq

    pq.write_table(pa.concat_tables(tables, promote_options="default"), path, compression="zstd")
