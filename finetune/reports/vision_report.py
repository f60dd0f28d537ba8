"""An adapter's figures → a sheet: a section for each corpus, in it a table for each task."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster import storage
from finetune.evaluation.assess import Assessed, Assessment, TaskFigures
from finetune.evaluation.predictions import write as write_predictions
from finetune.metrics import DRAWS
from finetune.pagekit.parts import Table
from finetune.reports.figures import (
    NAMES,
    lower_is_better,
    main_title,
    metric_name,
    p_text,
    reasons,
    side,
    signed,
    with_interval,
)
from finetune.reports.sheet import Section, Sheet, Writer

CLAIMS = {"better": "beats", "worse": "is worse than", "level": "cannot be told apart from"}


def sheet(assessed: Sequence[Assessed], out: str | None, run: Mapping[str, Any] | None = None) -> Sheet:
    """report.md, report.html and results.json; predictions.parquet and split.json, for `compare`. Of several
    corpora the last three lie in a folder for each, by number, and results.json holds all. `run`: what else
    the JSON line holds, of an adapter that has just been trained.
    """
    found = [each.result.to_json() for each in assessed]
    alone, bundle = len(assessed) == 1, assessed[0].result.bundle
    files: dict[str, Writer] = {}
    for number, each in enumerate(assessed):
        folder = "" if alone else f"{number}/"
        files[f"{folder}predictions.parquet"] = partial(write_predictions, [each.predictions])
        files[f"{folder}split.json"] = _json(each.split)
        if not alone:
            files[f"{folder}results.json"] = _json(found[number])
    return Sheet(
        name="report",
        title=_title(assessed[0].result) if alone else f"{bundle.uri} on {len(assessed)} corpora",
        lead=(),
        sections=tuple(_section(each.result, number) for number, each in enumerate(assessed)),
        results=found[0] if alone else {"corpora": found},
        line=None if run is None else {**run, "held_out": found},
        files=files,
        out=out,
        bundle=bundle.uri,
    )


def merged(bundle: str, columns: list[str | list[str]]) -> Sheet:
    """What a merged bundle's vector holds."""
    title = "An adapter merged with its base"
    section = Section(title, facts=(f"written: {bundle}", f"its vector is {columns}"))
    return Sheet("merged", title, (), (section,), {"bundle": bundle, "columns": columns})


def _json(value: Any) -> Writer:
    def write(path: Path) -> None:
        path.write_bytes(storage.json_bytes(value))

    return write


def _title(result: Assessment) -> str:
    return f"{result.bundle.uri} on {result.corpus.uri}"


def _section(result: Assessment, number: int) -> Section:
    base = result.bundle.base
    unlabelled = [
        f"{task.task.title}: {task.note} ({reasons(task.refused)})" for task in result.tasks if not task.rows
    ]
    return Section(
        title=_title(result),
        key=f"corpus-{number}",
        tables=tuple(_table(task) for task in result.tasks if task.rows),
        verdict=tuple(_verdict(task) for task in result.tasks if task.rows),
        facts=(
            *unlabelled,
            f"Base {base.name}; weights {base.source}",
            "Subjects that neither the run nor its base trained on",
            f"Intervals: 95 %, {DRAWS:,} bootstrap draws of whole subjects",
            *result.notes,
        ),
    )


def _table(figures: TaskFigures) -> Table:
    task, counts = figures.task, figures.counts
    shown = [metric for metric in task.metrics if metric in figures.rows[0].metrics]
    names = [main_title(task) if metric == task.main else metric_name(metric, task) for metric in shown]
    body = [[row.label, *(with_interval(row.metrics[metric]) for metric in shown)] for row in figures.rows]
    note = f"{counts.subjects} subjects, {counts.windows} windows, a row a {figures.level}"
    note += f"; windows left out: {reasons(figures.refused)}" if figures.refused else ""
    return Table(task.title, ["", *names], body, (note,))


def _verdict(figures: TaskFigures) -> str:
    """A claim only where the whole interval of the difference is on one side."""
    task, found = figures.task, figures.difference
    assert found is not None  # there are rows
    unit = f" {task.unit}" if task.unit and lower_is_better(task) else ""
    rival = "predicting the prevalence" if figures.classes else "predicting the mean"
    return (
        f"{task.title}: this model {CLAIMS[side(found, lower_is_better(task))]} {rival} ({NAMES[task.main]}, "
        f"model − mean: {signed(found)}{unit}, {p_text(found.p)})."
    )
