"""Every figure of a comparison for machines: tables.csv, a figure a line, and metrics.json, nested."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

from finetune.evaluation.results import CorpusInfo, EncoderInfo, TaskResult, to_json
from finetune.metrics import Difference, Interval

COLUMNS = (
    "task",
    "table",
    "row",
    "against",
    "group",
    "metric",
    "unit",
    "subjects",
    "windows",
    "value",
    "low",
    "high",
    "p",
    "warnings",
)
IN_UNIT = ("mae", "rmse", "me", "sd")  # metrics that have the target's unit
PRESSURE = ("mae", "me", "sd", "sd_subjects", "slope", "aami", "aami_2", "bhs", "ieee")
PARTS = (
    "level",
    "warnings",
    "verdict",
    "per_subject_mae",
    "few_shot",
    "subgroups",
    "delong",
    "per_label",
    "chapters",
    "chance",
    "above",
    "published_protocol",
    "blood_pressure",
)


@dataclass(frozen=True)
class Line:
    """A line of tables.csv, but for what it shares with all of its task."""

    table: str
    metric: str
    row: str
    against: str | None = None
    group: str | None = None
    subjects: float | None = None
    windows: int | None = None
    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def of(self, found: Interval | Difference) -> "Line":
        p = found.p if isinstance(found, Difference) else None
        return replace(self, value=found.value, low=found.low, high=found.high, p=p)


def as_csv(results: Sequence[TaskResult]) -> str:
    """tables.csv: long form, COLUMNS, UTF-8; every line carries the warnings of its task."""
    out = StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for result in results:
        shared = {"task": result.task.name, "warnings": "; ".join(result.warnings)}
        for line in _lines(result):
            unit = result.task.unit if line.metric in IN_UNIT else ""
            # a figure that does not exist leaves its cell empty
            known = {k: v for k, v in vars(line).items() if v is not None and v == v}
            writer.writerow(shared | {"unit": unit} | known)
    return out.getvalue()


def _lines(result: TaskResult) -> Iterator[Line]:
    main, size = result.task.main, (result.counts.subjects, result.counts.windows)

    def whole(table: str, metric: str, row: str, against: str | None = None) -> Line:
        return Line(table, metric, row, against, None, *size)

    for row in result.rows:
        for metric, found in row.metrics.items():
            yield whole("main", metric, row.name).of(found)
    for encoder, others in result.differences.items():
        for other, difference in others.items():
            yield whole("difference", main, encoder, other).of(difference)
    for point in result.few_shot or ():
        for name, found in point.rows.items():
            group = f"{point.share:g}"
            yield Line("few_shot", main, name, group=group, subjects=point.subjects).of(found)
    yield from _subgroups(result)
    for name, found in (result.delong or {}).items():
        yield whole("delong", "auroc", name).of(found)
    for name, scores in (result.per_label or {}).items():
        for score in scores:
            yield Line("label", "auroc", name, group=score.label).of(score.auroc)
    for name, limits in (result.above or {}).items():
        for limit, count in limits.items():
            yield Line("labels above", "auroc", name, group=limit, value=count)
    for chapter in result.chapters:
        for name, found in chapter.auroc.items():
            yield Line("chapter", "auroc", name, group=chapter.name).of(found)
    for name, chance in result.chance.items():
        for limit, found in chance.above.items():
            yield Line("labels above by chance", "auroc", name, group=limit).of(found)
    if result.published_protocol:
        windows = result.published_protocol.windows
        for name, metrics in result.published_protocol.rows.items():
            for metric, found in metrics.items():
                yield Line("published protocol (leaks)", metric, name, windows=windows).of(found)
    yield from _pressures(result)


def _subgroups(result: TaskResult) -> Iterator[Line]:
    for column in result.subgroups:
        for group in column.groups:
            called, size = f"{column.column}: {group.name}", (group.subjects, group.windows)
            for row, metrics in group.metrics.items():
                for metric, found in metrics.items():
                    yield Line("subgroup", metric, row, None, called, *size).of(found)
        for row, gap in column.gap.items():
            yield Line("subgroup gap", result.task.main, row, group=column.column).of(gap)


def _pressures(result: TaskResult) -> Iterator[Line]:
    for row, card in (result.blood_pressure or {}).items():
        parts = {
            "no calibration": card.free,
            "calibrated": card.calibrated.calibrated,
            "same values, not calibrated": card.calibrated.same_uncalibrated,
        } | {f"stage: {stage.name}": stage for stage in card.stages}
        for group, found in parts.items():
            if found is None:
                continue
            values = {metric: getattr(found, metric) for metric in PRESSURE}
            values |= {f"% within {limit} mmHg": share for limit, share in found.within.items()}
            line = Line("blood pressure", "", row, None, group, found.subjects, found.values)
            for metric, value in values.items():
                yield replace(line, metric=metric, value=value)


def as_json(
    results: Sequence[TaskResult], corpus: CorpusInfo, encoders: Mapping[str, EncoderInfo]
) -> dict[str, Any]:
    """metrics.json: {tasks: {task: {rows: {row: {metric: {value, low, high}}}, differences, …}}}, by name."""
    tasks = {result.task.name: _task_json(result) for result in results}
    return {"version": 1, "corpus": to_json(corpus), "encoders": to_json(encoders), "tasks": tasks}


def _task_json(result: TaskResult) -> dict[str, Any]:
    whole, task = result.to_json(), result.task
    return {
        "title": task.title,
        "kind": task.kind,
        "unit": task.unit,
        "main": task.main,
        "counts": whole["counts"],
        "overlap": result.overlap.kind if result.overlap else None,
        "rows": {row.name: to_json(row.metrics) for row in result.rows if row.metrics},
        "missing": {row.name: row.note for row in result.rows if not row.metrics},
        "differences": whole["differences"],
    } | {part: whole[part] for part in PARTS if whole.get(part)}
