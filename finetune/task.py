"""A task is a TOML file in finetune/tasks: which label, over which window, aggregated how."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.config import Config, load
from cluster.errors import PlethoraError

FOLDER = Path(__file__).parent / "tasks"


class Aggregate(Config):
    """How label values inside a window become its one target."""

    how: Literal["median", "mean"] = "median"
    coverage: float = Field(default=0.5, gt=0, le=1)  # share of the window under valid labels
    valid: tuple[float, float]  # plausible range, in the task's unit; values outside count as no label


class Task(Config):
    """One downstream question. Seconds for windows, `unit` for the target and its errors."""

    name: str
    title: str
    kind: Literal["regression"]
    label: str
    unit: str
    modality: str
    window_s: float = Field(gt=0)
    hop_s: float = Field(gt=0)
    metrics: tuple[Literal["mae", "rmse", "r2", "pearson"], ...]
    demographics: tuple[str, ...] = ()
    aggregate: Aggregate


def load_task(name: str) -> Task:
    """The task called `name`, or the one in the TOML file that `name` is the path of."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.exists():
        known = sorted(p.stem for p in FOLDER.glob("*.toml"))
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise PlethoraError(f"no task {name!r}: did you mean {near[0]!r}? known tasks: {', '.join(known)}")
    return load(path, Task)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    values, share = values[order], np.cumsum(weights[order]) / weights.sum()
    at = int(np.searchsorted(share, 0.5 - 1e-9))
    if at + 1 < len(values) and abs(share[at] - 0.5) < 1e-9:
        return float((values[at] + values[at + 1]) / 2)
    return float(values[at])


def window_targets(
    labels: pa.Table, record_n: Sequence[str], start_n: Sequence[float], task: Task
) -> tuple[np.ndarray, np.ndarray]:
    """Target (n,) float64 in the task's unit and refusal (n,) str of each window; refused ones are NaN.

    A label counts by the seconds that it shares with the window; one without times covers its whole record.
    Refusals: "" (fine), "no label", "label coverage" (valid labels over too little of the window),
    "implausible label" (there are labels, none of them in the plausible range).
    Raises PlethoraError when the corpus has no such label or has it in another unit.
    """
    named = labels.filter(pa.compute.equal(labels["name"], task.label))
    if named.num_rows == 0:
        there = sorted(set(labels["name"].to_pylist()))
        raise PlethoraError(
            f"the corpus has no label {task.label!r}, which task {task.name} needs; "
            f"of the labels asked for it has {', '.join(there) or 'none'}"
        )
    units = {u for u in named["unit"].unique().to_pylist() if u}
    if units - {task.unit}:
        raise PlethoraError(
            f"label {task.label!r} is in {', '.join(sorted(units))}, task {task.name} expects {task.unit}: "
            f"convert it at ingest"
        )
    label_record = np.asarray(named["record"].to_pylist(), object)
    start = named["start_s"].to_numpy(zero_copy_only=False).astype(float)
    end = named["end_s"].to_numpy(zero_copy_only=False).astype(float)
    start, end = np.where(np.isnan(start), -np.inf, start), np.where(np.isnan(end), np.inf, end)
    value = named["value"].to_numpy(zero_copy_only=False).astype(float)
    rows = {r: np.flatnonzero(label_record == r) for r in set(record_n) & set(label_record)}
    target, refusal = np.full(len(record_n), np.nan), np.full(len(record_n), "", object)
    low, high = task.aggregate.valid
    for i, (record, window_start) in enumerate(zip(record_n, start_n, strict=True)):
        at = rows.get(record, np.array([], int))
        shared = np.minimum(end[at], window_start + task.window_s) - np.maximum(start[at], window_start)
        at, shared = at[shared > 1e-9], shared[shared > 1e-9]
        good = np.isfinite(value[at]) & (value[at] >= low) & (value[at] <= high)
        if not np.isfinite(value[at]).any():
            refusal[i] = "no label"
        elif not good.any():
            refusal[i] = "implausible label"
        elif shared[good].sum() < task.aggregate.coverage * task.window_s - 1e-6:
            refusal[i] = "label coverage"
        elif task.aggregate.how == "median":
            target[i] = _weighted_median(value[at][good], shared[good])
        else:
            target[i] = np.average(value[at][good], weights=shared[good])
    return target, refusal


def demographics(
    labels: pa.Table, record_n: Sequence[str], names: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """(n, d) float64 and its d column names from whole-record labels; numbers as they are, text as 0/1
    columns.

    What a record lacks is NaN (a number) or 0 in all its columns (a text), and a column "<name> unknown"
    says so. d = 0 when the corpus has none of the names.
    """
    columns: dict[str, np.ndarray] = {}
    for name in names:
        named = labels.filter(pa.compute.equal(labels["name"], name))
        number = dict(zip(named["record"].to_pylist(), named["value"].to_pylist(), strict=True))
        text = dict(zip(named["record"].to_pylist(), named["text"].to_pylist(), strict=True))
        numbers = np.array([v if (v := number.get(r)) is not None else np.nan for r in record_n], float)
        texts = [text.get(r) or "" for r in record_n]
        if np.isfinite(numbers).any():
            columns[name] = numbers
            missing = ~np.isfinite(numbers)
        elif any(texts):
            for kind in sorted(set(texts) - {""})[1:] or sorted(set(texts) - {""}):
                columns[f"{name} = {kind}"] = np.array([float(t == kind) for t in texts])
            missing = np.array([not t for t in texts])
        else:
            continue
        if missing.any():
            columns[f"{name} unknown"] = missing.astype(float)
    if not columns:
        return np.zeros((len(record_n), 0)), []
    return np.stack(list(columns.values()), axis=1), list(columns)
