"""A task is a TOML file in finetune/tasks: which label, of which records, over which window."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from cluster.config import Config, load
from cluster.errors import PlethoraError

FOLDER = Path(__file__).parent / "tasks"


Kind = Literal["regression", "binary", "multi-class", "multi-label", "retrieval"]
CLASSES = ("binary", "multi-class")  # every window has exactly one class
SEVERAL = "several values"  # the group of a record whose labels of the whole record differ
SEVERAL_LABELS = "several values of the label"  # why its windows have no target
SAME_S = 1e-3  # times that differ by less are the same
METRICS = {  # of each kind, the main one first
    "regression": ("mae", "rmse", "r2", "pearson"),
    "binary": ("auroc", "auprc", "balanced_accuracy", "f1"),
    "multi-class": ("auroc", "auprc", "balanced_accuracy", "f1"),
    "multi-label": ("auroc", "auprc"),  # means over the labels
    "retrieval": ("rank1", "rank5"),
}


class Aggregate(Config):
    """How label values inside a window become its one target. A class is always the one that covers the most
    seconds.
    """

    how: Literal["median", "mean"] = "median"
    coverage: float = Field(default=0.5, gt=0, le=1)  # share of the window under valid labels
    valid: tuple[float, float] | None = None  # plausible range, in the task's unit; others count as no label


class Where(Config):
    """A condition on a whole-record label."""

    label: str
    equals: float | str


class Subgroup(Config):
    """People told apart by a whole-record label: each text is a group; numbers are cut at `edges` (an edge
    belongs to the group above it).
    """

    label: str
    edges: tuple[float, ...] = ()


class Task(Config):
    """One downstream question. Seconds for windows, `unit` for the target of a regression and its errors."""

    name: str
    title: str
    kind: Kind
    label: str = ""  # a retrieval has none: it asks who it is
    unit: str = ""
    positive: float | str | tuple[float | str, ...] | None = None  # of binary: this (or these) or not
    values: tuple[float | str, ...] = ()  # of classes: other values count as no label; (): all count
    digits: int | None = Field(default=None, gt=0)  # of multi-label: codes are cut to so many characters
    min_positives: int = Field(default=10, gt=0)  # of multi-label: rarer labels (in subjects) are left out
    where: tuple[Where, ...] = ()  # records that the question is about
    modality: str | None = None  # the signal that it is about, which windows then hold; None: any encoder's
    window_s: float = Field(gt=0)
    short_s: float | None = Field(
        default=None, gt=0
    )  # the window where no stretch of a corpus holds window_s
    hop_s: float | None = Field(default=None, gt=0)  # a grid of windows, or ...
    until_s: float | None = Field(default=None, gt=0)  # ... one a record, which ends at this second of it
    # what one row of the table stands for: predictions of its windows are averaged, their labels never
    level: Literal["window", "reading", "record", "subject"] = "window"
    pool: Literal["predictions", "vectors"] = "predictions"  # what is averaged there
    metrics: tuple[str, ...]
    demographics: tuple[str, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    aggregate: Aggregate = Aggregate()

    @model_validator(mode="after")
    def _check(self) -> "Task":
        if (self.hop_s is None) == (self.until_s is None):
            raise ValueError("a task has either hop_s (a grid of windows) or until_s (one window a record)")
        if self.until_s is not None and self.until_s < self.window_s:
            raise ValueError(f"until_s = {self.until_s:g} leaves no room for window_s = {self.window_s:g}")
        if (self.kind == "binary") != (self.positive is not None):
            raise ValueError('positive is for kind = "binary", which needs it')
        if self.values and self.kind not in CLASSES:
            raise ValueError('values is for kind = "binary" and "multi-class"')
        if self.values and not set(self.positives) < set(self.values):
            raise ValueError("values holds all of positive, and others")
        if (self.kind == "retrieval") != (not self.label):
            raise ValueError('a task has a label, unless kind = "retrieval"')
        if self.short_s is not None and (self.until_s is not None or self.short_s > self.window_s):
            raise ValueError("short_s is for a grid (hop_s) of windows, and at most window_s")
        strange = [m for m in self.metrics if m not in METRICS[self.kind]]
        if strange or self.main not in self.metrics:
            raise ValueError(
                f"metrics of a {self.kind} are {self.main} and any of {', '.join(METRICS[self.kind][1:])}"
            )
        return self

    @property
    def main(self) -> str:
        """The metric that differences and verdicts are about."""
        return METRICS[self.kind][0]

    @property
    def labels(self) -> list[str]:
        """Names of all labels that it reads."""
        named = [self.label, *(w.label for w in self.where), *self.demographics]
        return list(dict.fromkeys(n for n in [*named, *(g.label for g in self.subgroups)] if n))

    @property
    def positives(self) -> tuple[float | str, ...]:
        """The values that count as "it"; () for other kinds than binary."""
        if self.positive is None:
            return ()
        return self.positive if isinstance(self.positive, tuple) else (self.positive,)


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


def _weighted_mode(values: np.ndarray, weights: np.ndarray) -> float:
    found, group = np.unique(values, return_inverse=True)
    return float(found[int(np.argmax(np.bincount(group, weights)))])


def named_labels(labels: pa.Table, name: str, task: Task) -> pa.Table:
    """The labels called `name`; PlethoraError when there are none."""
    named = labels.filter(pa.compute.equal(labels["name"], name))
    if named.num_rows == 0:
        there = sorted(set(labels["name"].to_pylist()))
        raise PlethoraError(
            f"the corpus has no label {name!r}, which task {task.name} needs; "
            f"of the labels asked for it has {', '.join(there) or 'none'}"
        )
    return named


def _plain(labels: pa.Table) -> list[float | str | None]:
    """Each label's number or text; None where it has neither."""
    pairs = zip(labels["value"].to_pylist(), labels["text"].to_pylist(), strict=True)
    found = [text if value is None else value for value, text in pairs]
    return [None if v != v else v for v in found]


def _asked(named: pa.Table, task: Task) -> list[float | str | None]:
    """As `_plain`; None also for a value that the task does not ask about."""
    return [v if not task.values or v in task.values else None for v in _plain(named)]


def classes(labels: pa.Table, task: Task) -> list[str]:
    """Names of the classes 0, 1, … that `window_targets` gives; two are "not it" and "it"; [] of other kinds.

    PlethoraError when no label has a value that the task calls positive.
    """
    if task.kind not in CLASSES:
        return []
    known = {v for v in _asked(named_labels(labels, task.label, task), task) if v is not None}
    names = [_shown(v) for v in sorted(known, key=_order)]
    if task.positive is None:
        return names
    if not known & set(task.positives):
        raise PlethoraError(
            f"no label {task.label!r} of the corpus is {' or '.join(map(_shown, task.positives))}, which "
            f"task {task.name} asks for: it has {', '.join(names) or 'no value'}"
        )
    if isinstance(task.positive, tuple):
        return [f"not {task.label}", task.label]
    it = _shown(task.positive)
    return (
        [f"not {it}", it]
        if isinstance(task.positive, str)
        else [f"{task.label} is {n}{it}" for n in ("not ", "")]
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _order(value: float | str) -> tuple[bool, float, str]:
    return (True, 0.0, value) if isinstance(value, str) else (False, value, "")


def _numbers(named: pa.Table, labels: pa.Table, task: Task) -> np.ndarray:
    """Label values (n,) float64, NaN where there is none: the number itself, or that of its class."""
    plain = _asked(named, task)
    if task.kind == "regression":
        return np.array([v if isinstance(v, float) else np.nan for v in plain])
    if task.positive is not None:
        return np.array([np.nan if v is None else float(v in task.positives) for v in plain])
    names = classes(labels, task)
    return np.array([np.nan if v is None else float(names.index(_shown(v))) for v in plain])


def whole_record(labels: pa.Table, name: str) -> dict[str, float | str]:
    """{record: value} of the labels called `name` that are of whole records; SEVERAL where a record has more
    than one value.
    """
    named = labels.filter(pa.compute.equal(labels["name"], name))
    found = _values(named.filter(named["start_s"].is_null()))
    return {record: values[0] if len(values) == 1 else SEVERAL for record, values in found.items()}


def _values(named: pa.Table) -> dict[str, list[float | str]]:
    """{record: its different values, in order}."""
    found: dict[str, dict[float | str, None]] = {}
    for record, value in zip(named["record"].to_pylist(), _plain(named), strict=True):
        if value is not None:
            found.setdefault(record, {})[value] = None
    return {record: list(values) for record, values in found.items()}


def excluded(labels: pa.Table, record_n: Sequence[str], task: Task) -> np.ndarray:
    """(n,) str: why a record is not what the task is about; "" where it is. PlethoraError when the corpus
    lacks a label of `where`, or has it for stretches instead of whole records.
    """
    why = np.full(len(record_n), "", object)
    for condition in reversed(task.where):
        named = named_labels(labels, condition.label, task)
        if named["start_s"].null_count < named.num_rows:
            raise PlethoraError(
                f"label {condition.label!r} is about stretches of records, task {task.name} asks in `where` "
                "for whole records"
            )
        known = _values(named)
        for i, record in enumerate(record_n):
            if record not in known:
                why[i] = f"no label {condition.label}"
            elif condition.equals not in known[record]:
                why[i] = f"{condition.label} is not {_shown(condition.equals)}"
    return why


def window_targets(
    labels: pa.Table, record_n: Sequence[str], start_n: Sequence[float], task: Task
) -> tuple[np.ndarray, np.ndarray]:
    """Target (n,) float64 (in the task's unit, or the number of a class) and refusal (n,) str of each window;
    refused ones are NaN.

    A label counts by the seconds that it shares with the window; one without times covers its whole record.
    Where labels have the window's own times, they alone count.
    Refusals: "" (fine), those of `excluded`, "no label", "label without a value" (NaN), "label coverage"
    (valid labels over too little of the window), "implausible label" (there are labels, none of them in the
    plausible range), "several values of the label" (labels of the whole record that contradict each other).
    Raises PlethoraError when the corpus has no such label or has it in another unit.
    """
    named = named_labels(labels, task.label, task)
    units = {u for u in named["unit"].unique().to_pylist() if u}
    if task.kind == "regression" and units - {task.unit}:
        raise PlethoraError(
            f"label {task.label!r} is in {', '.join(sorted(units))}, task {task.name} expects {task.unit}: "
            f"convert it at ingest"
        )
    label_record = np.asarray(named["record"].to_pylist(), object)
    start = named["start_s"].to_numpy(zero_copy_only=False).astype(float)
    end = named["end_s"].to_numpy(zero_copy_only=False).astype(float)
    whole = np.isnan(start)
    start, end = np.where(np.isnan(start), -np.inf, start), np.where(np.isnan(end), np.inf, end)
    value = _numbers(named, labels, task)
    rows = {r: np.flatnonzero(label_record == r) for r in set(record_n) & set(label_record)}
    target, refusal = np.full(len(record_n), np.nan), excluded(labels, record_n, task)
    low, high = task.aggregate.valid or (-np.inf, np.inf)
    for i, (record, window_start) in enumerate(zip(record_n, start_n, strict=True)):
        if refusal[i]:
            continue
        at = rows.get(record, np.array([], int))
        shared = np.minimum(end[at], window_start + task.window_s) - np.maximum(start[at], window_start)
        at, shared = at[shared > 1e-9], shared[shared > 1e-9]
        same = np.abs(start[at] - window_start) + np.abs(end[at] - window_start - task.window_s) < SAME_S
        if same.any():  # of labels that overlap each other, as of a grid of 2 s
            at, shared = at[same], shared[same]
        good = np.isfinite(value[at]) & (value[at] >= low) & (value[at] <= high)
        if not len(at):
            refusal[i] = "no label"
        elif not np.isfinite(value[at]).any():
            refusal[i] = "label without a value"
        elif not good.any():
            refusal[i] = "implausible label"
        elif shared[good].sum() < task.aggregate.coverage * task.window_s - 1e-6:
            refusal[i] = "label coverage"
        elif len(set(value[at][good & whole[at]].tolist())) > 1:
            refusal[i] = SEVERAL_LABELS
        elif task.kind in CLASSES:
            target[i] = _weighted_mode(value[at][good], shared[good])
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
    says so. A record with several texts has a 1 for each; one with several numbers counts as lacking it.
    d = 0 when the corpus has none of the names.
    """
    columns: dict[str, np.ndarray] = {}
    for name in names:
        named = labels.filter(pa.compute.equal(labels["name"], name))
        number = dict(zip(named["record"].to_pylist(), named["value"].to_pylist(), strict=True))
        known = _values(named.filter(named["start_s"].is_null()))
        number |= {r: np.nan for r, values in known.items() if len(values) > 1}
        numbers = np.array([v if (v := number.get(r)) is not None else np.nan for r in record_n], float)
        text = _values(named.filter(named["text"].is_valid()))
        texts = [[t for t in text.get(r, []) if t] for r in record_n]
        if np.isfinite(numbers).any():
            columns[name] = numbers
            missing = ~np.isfinite(numbers)
        elif any(texts):
            kinds = sorted({str(t) for each in texts for t in each})
            if max(map(len, texts)) == 1:  # one follows from the others
                kinds = kinds[1:] or kinds
            for kind in kinds:
                columns[f"{name} = {kind}"] = np.array([float(kind in each) for each in texts])
            missing = np.array([not t for t in texts])
        else:
            continue
        if missing.any():
            columns[f"{name} unknown"] = missing.astype(float)
    if not columns:
        return np.zeros((len(record_n), 0)), []
    return np.stack(list(columns.values()), axis=1), list(columns)
