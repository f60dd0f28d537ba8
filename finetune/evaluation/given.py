"""Reads user-supplied files: a predefined split of the subjects, and predictions of other models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError
from datasets.schema import Corpus
from finetune.evaluation.choose import Windows
from finetune.evaluation.kinds import Answer, Classes
from finetune.probe import Folds
from finetune.task import SEVERAL, Task, whole_record

NEAR_S = 1e-3  # windows of one record whose starts differ by less than this are the same window


def read_split(path: str) -> dict[str, str]:
    """{subject or record: "train" or "test"} from a JSON file {"train": [...], "test": [...]}. A "val" list
    is added to "train", as probes do not use it. Raises PlethoraError for a missing file, another layout, or
    a name on both sides.
    """
    if not Path(path).is_file():
        raise PlethoraError(f"--split {path}: no such file")
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as broken:
        raise PlethoraError(f"--split {path}: not JSON ({broken})") from None
    parts = ("train", "val", "test")
    shaped = isinstance(lists, dict) and all(
        isinstance(lists.get(p, []), list) and all(isinstance(n, str) for n in lists.get(p, []))
        for p in parts
    )
    if not shaped or not lists.get("train") or not lists.get("test"):
        raise PlethoraError(
            f'--split {path}: must be {{"train": [...], "test": [...]}}, lists of subjects or of records'
        )
    sides: dict[str, str] = {}
    for part in parts:
        for name in lists.get(part, []):
            side = "test" if part == "test" else "train"
            if sides.setdefault(name, side) != side:
                raise PlethoraError(f"--split {path}: {name} is in both train and test")
    return sides


def sides_of(asked: str, source: Corpus) -> dict[str, str]:
    """{subject or record: "train" or "test"} of a file (`read_split`), or of LABEL=VALUE[,VALUE]: records
    whose label of the whole record has one of these values are the test side, others with the label the
    training side. Raises PlethoraError also where no record has the label, or one of the values.
    """
    label, equals, values = asked.partition("=")
    if not equals or asked.endswith(".json") or Path(asked).exists():
        return read_split(asked)
    known = {r: v for r, v in whole_record(source.labels([label]), label).items() if v != SEVERAL}
    if not known:
        raise PlethoraError(f"--split {asked}: no record of {source.uri} has one value of a label {label!r}")
    wanted = {word: {r for r, v in known.items() if _means(word, v)} for word in values.split(",")}
    for word, records in wanted.items():
        if not records:
            there = ", ".join(sorted({f"{v:g}" if isinstance(v, float) else v for v in known.values()})[:10])
            raise PlethoraError(f"--split {asked}: no record has {label} {word!r}: it has {there}")
    tested = set().union(*wanted.values())
    return {record: "test" if record in tested else "train" for record in known}


def _means(word: str, value: float | str) -> bool:
    """Whether a user who writes `word` means this value."""
    if isinstance(value, str):
        return word == value
    try:
        return float(word) == value
    except ValueError:
        return False


def split_windows(windows: Windows, sides: Mapping[str, str], path: str) -> tuple[Windows, np.ndarray]:
    """Windows named by the split (others count as refused), and (n,) bool: whether each is a test window.

    Raises PlethoraError when a subject is on both sides, or a side is empty.
    """
    side = np.array(
        [sides.get(s) or sides.get(r) or "" for s, r in zip(windows.subject, windows.record, strict=True)],
        object,
    )
    both = set(windows.subject[side == "train"]) & set(windows.subject[side == "test"])
    if both:
        raise PlethoraError(
            f"--split {path}: records of subject {min(both)} are in both train and test ({len(both)} such "
            "subjects): figures would be of people that the probe knows"
        )
    for name in ("train", "test"):
        if not (side == name).any():
            raise PlethoraError(
                f"--split {path}: no window left to evaluate is of a {name} subject or record"
            )
    named = side != ""
    refused = dict(windows.refused)
    if not named.all():
        refused["not in the split"] = int((~named).sum())
    return replace(windows.at(np.flatnonzero(named)), refused=refused), side[named] == "test"


def given_folds(answer: Answer, subject_n: np.ndarray, test_n: np.ndarray, path: str) -> Folds:
    """The split as one fold. Raises PlethoraError for fewer than two training subjects, or a class missing on
    a side.
    """
    train, test = np.flatnonzero(~test_n), np.flatnonzero(test_n)
    if len(set(subject_n[train])) < 2:
        raise PlethoraError(f"--split {path}: train has one subject with labels: inner folds need two")
    if isinstance(answer, Classes):
        for k, name in enumerate(answer.names):
            people = len(set(subject_n[train][answer.y[train] == k]))
            if people < 2 or not (answer.y[test] == k).any():
                raise PlethoraError(
                    f"--split {path}: class {name!r} has {people} subjects in train and "
                    f"{len(set(subject_n[test][answer.y[test] == k]))} in test: needed are 2 and 1"
                )
    return [(train, test)]


def read_predictions(path: str, task: Task, names: list[str], windows: Windows) -> np.ndarray:
    """A model's predictions for these windows, (n,) or (n, columns of `classes.one_hot`), NaN where the file
    has none.

    The file is Parquet with columns record, start_s and <task> (numbers in the task's unit, or the positive
    class's probability); for several classes or labels, one column "<task>: <class>" each. The user must make
    sure that the predictions are out of sample.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = (
        [task.name] if len(names) < 3 and task.kind != "multi-label" else [f"{task.name}: {n}" for n in names]
    )
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(path)))
    except (pa.ArrowException, OSError) as broken:
        raise PlethoraError(f"--predictions {path}: cannot be read as Parquet ({broken})") from None
    missing = [c for c in ("record", "start_s", *columns) if c not in table.column_names]
    if missing:
        raise PlethoraError(
            f"--predictions {path}: no column {missing[0]!r} (it has {', '.join(table.column_names)})"
        )
    values = np.stack([np.asarray(table[c].to_numpy(), np.float64) for c in columns], axis=1)
    if task.kind != "regression":
        known = values[np.isfinite(values)]
        if known.size and (known.min() < 0 or known.max() > 1):
            raise PlethoraError(f"--predictions {path}: {columns[0]!r} must be probabilities, from 0 to 1")
    places = _places(table["record"].to_pylist(), table["start_s"].to_pylist(), path)
    found = np.full((len(windows.record), len(columns)), np.nan)
    for i, (record, start) in enumerate(zip(windows.record, windows.start_s, strict=True)):
        cell = round(start / NEAR_S)
        at = next((places[record, c] for c in (cell, cell - 1, cell + 1) if (record, c) in places), None)
        if at is not None:
            found[i] = values[at]
    return found[:, 0] if task.kind == "regression" else found


def _places(records: list[Any], starts: list[Any], path: str) -> dict[tuple[str, int], int]:
    places: dict[tuple[str, int], int] = {}
    for i, (record, start) in enumerate(zip(records, starts, strict=True)):
        if places.setdefault((record, round(start / NEAR_S)), i) != i:
            raise PlethoraError(f"--predictions {path}: two predictions of {record} at {start:g} s")
    return places


def named(predictions: Sequence[str]) -> dict[str, str]:
    """{row: file} of given predictions: named after the file, and its folder where two files have one name.

    PlethoraError: that does not tell them apart either.
    """
    parts = [path.rstrip("/").split("/") for path in predictions]
    stems = [each[-1].rpartition(".")[0] or each[-1] for each in parts]
    rows = [
        stem if stems.count(stem) == 1 else " ".join([*each[-2:-1], stem])
        for stem, each in zip(stems, parts, strict=True)
    ]
    twice = next((path for row, path in zip(rows, predictions, strict=True) if rows.count(row) > 1), None)
    if twice is not None:
        raise PlethoraError(f"--predictions {twice}: another file has the same name: rename one of them")
    return dict(zip(rows, predictions, strict=True))
