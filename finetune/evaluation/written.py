"""Reads back what `compare` and `evaluate` wrote: results.json and predictions.parquet of a folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic

from cluster import storage
from cluster.errors import PlethoraError
from finetune.evaluation.kinds import answer_of
from finetune.evaluation.results import CorpusInfo, EncoderInfo, TaskResult
from finetune.metrics import Interval

COMPARE = frozenset({"encoders", "corpus", "tasks"})
EVALUATE = frozenset({"bundle", "corpus", "differences", "protocol", "rows", "task"})
FIGURES = ("value", "low", "high", "p")  # null in JSON where they do not exist
OF_TASK = ("classes", "pieces")  # fields of a TaskResult that its JSON keeps in the task
NEAR = 1e-6  # relative: figures that are computed again agree to so much
RESULTS, PREDICTIONS = "results.json", "predictions.parquet"

_RESULT = pydantic.TypeAdapter(TaskResult)
_INFO = pydantic.TypeAdapter(EncoderInfo)


@dataclass(frozen=True)
class Seat:
    """An encoder in a folder: its row there, that of its untrained twin, and what it is called."""

    row: str
    twin: str
    called: str
    info: EncoderInfo

    @property
    def identity(self) -> tuple[str, str]:
        return self.info.uri, self.info.mode


@dataclass(frozen=True)
class Predictions:
    """What is scored, by record and start: subject, record, start_s, fold (n,), target (n,), or (n, labels)
    for several `names`; `predicted`: {row: (n,) or (n, columns)}, none for a retrieval.
    """

    subject: np.ndarray
    record: np.ndarray
    start_s: np.ndarray
    fold: np.ndarray
    target: np.ndarray
    names: tuple[str, ...]
    predicted: Mapping[str, np.ndarray]

    @property
    def digest(self) -> str:
        """Of the windows with their people, folds and targets."""
        texts = (self.subject.astype(str), self.record.astype(str))
        numbers = (self.start_s, self.fold.astype(float), self.target)
        parts = [json.dumps(t.tolist()).encode() for t in texts]
        parts += [np.ascontiguousarray(x, np.float64).tobytes() for x in numbers]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


@dataclass(frozen=True)
class TaskTable:
    """A task's table of one folder."""

    folder: str
    seats: tuple[Seat, ...]
    result: TaskResult
    scored: Predictions

    @property
    def corpus(self) -> CorpusInfo:
        assert self.result.corpus is not None  # `read_folder` asks for it
        return self.result.corpus

    @property
    def people(self) -> np.ndarray:
        """Subjects who are scored, sorted, which is the order of a draw's weights."""
        return np.unique(self.scored.subject)

    def figure(self, row: str) -> Interval:
        """The main metric of a row, as results.json has it."""
        return self.result.row(row).metrics[self.result.task.main]

    def drawn(self, row: str, weights: np.ndarray) -> np.ndarray:
        """The main metric of a row, (1 + draws,): of everyone, then of each draw. `weights`: (draws,
        subjects), subjects in sorted order.
        """
        p = self.scored.predicted
        answer = answer_of(self.result.task, self.scored.target, self.scored.names)
        return answer.drawn(p[row], p["mean"], self.scored.subject, weights)[self.result.task.main]

    def agrees(self, row: str, other: "TaskTable", its: str) -> bool:
        """Whether two rows of one column are the same model: their predictions are, or, where there are none,
        their figures.
        """
        mine, theirs = self.scored.predicted, other.scored.predicted
        if mine and theirs:
            return np.allclose(mine[row], theirs[its], rtol=NEAR, atol=NEAR)
        return bool(np.isclose(self.figure(row).value, other.figure(its).value, rtol=NEAR, atol=NEAR))


def read_folder(uri: str) -> tuple[TaskTable, ...]:
    """Every task's table of a folder or a prefix of a bucket.

    PlethoraError: `compare` or `evaluate` did not write it, a file is damaged, or predictions do not give
    the figures of results.json.
    """
    where = storage.join(uri, RESULTS)
    if not storage.exists(where):
        raise PlethoraError(f"{uri}: no {RESULTS}: name a folder that `compare` or `evaluate` wrote (--out)")
    flat = _json(where)
    if flat.keys() >= COMPARE:
        raw = flat["tasks"]
        seats = tuple(
            Seat(row, f"{row}, untrained", row, _checked(_INFO, info, where))
            for row, info in flat["encoders"].items()
        )
    elif flat.keys() >= EVALUATE:
        info = _checked(_INFO, flat["bundle"], where)
        seats = (Seat("encoder", "untrained", _called(info), info),)
        raw = [flat | {"differences": {"encoder": flat["differences"]}}]
    else:
        keys = ", ".join(sorted(flat)[:6])
        raise PlethoraError(f"{where}: not of `compare` or `evaluate` (it holds {keys}, …): leave it out")
    results = [_result(one, where) for one in raw]
    names = [result.task.name for result in results]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise PlethoraError(f"{where}: two tasks are called {twice}: compare them into two folders")
    table = _parquet(storage.join(uri, PREDICTIONS))
    return tuple(_task_table(storage.normalise(uri), seats, result, table) for result in results)


def _called(info: EncoderInfo) -> str:
    """`evaluate` keeps no name: the last part of the address that says something, and the mode."""
    parts = [part for part in info.uri.split("/") if part]
    return f"{parts[-2] if parts[-1] == 'bundle' and len(parts) > 1 else parts[-1]} ({info.mode})"


# ---------------------------------------------------------------- results.json


def _json(where: str) -> dict[str, Any]:
    def figure(pairs: dict[str, Any]) -> dict[str, Any]:
        return {k: float("nan") if v is None and k in FIGURES else v for k, v in pairs.items()}

    try:
        flat = json.loads(storage.read_bytes(where), object_hook=figure)
    except ValueError as broken:
        raise PlethoraError(f"{where}: not JSON ({broken}): run the command again") from None
    if not isinstance(flat, dict):
        raise PlethoraError(f"{where}: holds no results: run the command again")
    return flat


def _result(raw: Any, where: str) -> TaskResult:
    if not isinstance(raw, dict) or not isinstance(raw.get("task"), dict):
        raise PlethoraError(f"{where}: a task of it has no description: run the command again")
    task = dict(raw["task"])
    moved = {key: task.pop(key, ()) for key in OF_TASK}
    task.pop("main", None)  # follows from the kind
    return _checked(_RESULT, raw | moved | {"task": task}, f"{where}: task {task.get('name')}")


def _checked(kind: pydantic.TypeAdapter[Any], raw: Any, where: str) -> Any:
    try:
        return kind.validate_python(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        given = "" if isinstance(first["input"], dict | list) else f", it is {first['input']!r}"
        said = first["msg"][0].lower() + first["msg"][1:]
        raise PlethoraError(
            f"{where}: {place}: {said}{given}: damaged, or of another version; run the command again"
        ) from None


# ---------------------------------------------------------------- predictions.parquet


def _parquet(where: str) -> pa.Table:
    import pyarrow.parquet as pq

    if not storage.exists(where):
        raise PlethoraError(f"{where}: no such file: it lies beside {RESULTS}; run the command again")
    try:
        return pq.read_table(pa.BufferReader(storage.read_bytes(where)), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as broken:
        said = str(broken).splitlines()[0]
        raise PlethoraError(f"{where}: damaged ({said}): run the command again") from None


def _task_table(folder: str, seats: Sequence[Seat], result: TaskResult, table: pa.Table) -> TaskTable:
    where = f"{folder}/{PREDICTIONS}: task {result.task.name}"
    missing = {"task", "subject", "record", "start_s", "fold"} - set(table.column_names)
    if missing:
        raise PlethoraError(f"{where}: no column {min(missing)}: run the command again")
    part = table.filter(pa.compute.equal(table["task"], result.task.name))
    expected = result.counts.rows or result.counts.windows
    if part.num_rows != expected:
        raise PlethoraError(
            f"{where}: {part.num_rows} predictions, {RESULTS} says {expected}: they are of different runs"
        )
    if result.corpus is None or result.overlap is None:
        raise PlethoraError(
            f"{folder}/{RESULTS}: task {result.task.name} lacks its corpus or overlap: run the command again"
        )
    order = np.lexsort((_plain(part, "start_s", where), _words(part, "record")))
    scored = _predictions(result, part.take(pa.array(order)), where)
    place = {row.name: i for i, row in enumerate(result.rows)}
    mine = [seat for seat in seats if seat.row in result.differences]
    found = TaskTable(folder, tuple(sorted(mine, key=lambda seat: place[seat.row])), result, scored)
    for row in scored.predicted:
        _same_figure(found, row, where)
    return found


def _predictions(result: TaskResult, part: pa.Table, where: str) -> Predictions:
    names = tuple(result.classes)
    if result.task.kind == "multi-label":
        marked = [c for c in part.column_names if c.startswith("target: ")]
        names = tuple(c.removeprefix("target: ") for c in marked if part[c].null_count < part.num_rows)
        target = np.stack([_plain(part, f"target: {name}", where) for name in names], axis=1)
    else:
        target = _plain(part, "target", where)
    predicted = {}
    if result.task.kind != "retrieval":
        rows = [row.name for row in result.rows if row.metrics]
        predicted = {row: _of_row(result, part, row, names, where) for row in rows}
        if "mean" not in predicted:
            raise PlethoraError(f"{where}: no row `mean`: run the command again")
    return Predictions(
        _words(part, "subject"),
        _words(part, "record"),
        _plain(part, "start_s", where),
        _plain(part, "fold", where),
        target,
        names,
        predicted,
    )


def _of_row(result: TaskResult, part: pa.Table, row: str, names: Sequence[str], where: str) -> np.ndarray:
    """(n,) of numbers, (n, columns of `classes.one_hot`) of classes and of several labels."""
    if result.task.kind == "regression":
        return _plain(part, row, where)
    if len(names) == 2 and result.task.kind != "multi-label":
        return _plain(part, row, where)[:, None]
    return np.stack([_plain(part, f"{row}: {name}", where) for name in names], axis=1)


def _words(part: pa.Table, column: str) -> np.ndarray:
    return np.array(part[column].to_pylist(), object)


def _plain(part: pa.Table, column: str, where: str) -> np.ndarray:
    """A column of numbers. PlethoraError: there is none, or a number is missing."""
    if column not in part.column_names:
        raise PlethoraError(f"{where}: no column {column!r}: run the command again")
    try:
        found = part[column].to_numpy().astype(np.float64)
    except (TypeError, ValueError):
        raise PlethoraError(f"{where}: column {column!r} holds no numbers: run the command again") from None
    if not np.isfinite(found).all():
        raise PlethoraError(f"{where}: column {column!r} lacks values: run the command again")
    return found


def _same_figure(table: TaskTable, row: str, where: str) -> None:
    """PlethoraError where predictions do not give the figure of results.json."""
    stated = table.figure(row).value
    found = float(table.drawn(row, np.empty((0, len(table.people))))[0])
    if not np.isclose(found, stated, rtol=NEAR, atol=NEAR, equal_nan=True):
        raise PlethoraError(
            f"{where}: row {row} gives {table.result.task.main} {found:.6g}, {RESULTS} says {stated:.6g}: "
            "the files are damaged or of different runs"
        )
