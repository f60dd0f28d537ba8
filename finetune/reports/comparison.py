"""Outcomes of tasks → the sheet of `evaluate` (one encoder, one task) and of `compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cluster import storage
from finetune.evaluation import predictions
from finetune.evaluation.results import EncoderInfo, TaskResult, to_json
from finetune.evaluation.table import Outcome
from finetune.pagekit.parts import Table
from finetune.reports import longform, plots, task_section
from finetune.reports.figures import main_title, with_interval
from finetune.reports.sheet import Sheet, Writer

ALIKE = (
    "All rows of a table have the same windows, folds and drawn subjects; brackets are 95 % intervals, "
    "differences encoder − row."  # noqa: RUF001
)


def of_several(outcomes: Sequence[Outcome], encoders: Mapping[str, EncoderInfo], out: str | None) -> Sheet:
    """compare.md, report.html, results.json, tables.csv, metrics.json, predictions.parquet, intervals.png."""
    outcomes = [_judged(outcome) for outcome in outcomes]
    found = [outcome.result for outcome in outcomes]
    corpus = found[0].corpus
    assert corpus is not None
    return Sheet(
        name="compare",
        title="Encoders compared",
        lead=(f"On {corpus.source} (`{corpus.uri}`{_licence(corpus.licence)}). {ALIKE}",),
        sections=tuple(task_section.section(outcome) for outcome in outcomes),
        results={"encoders": to_json(encoders), "corpus": to_json(corpus), "tasks": to_json(found)},
        subjects=described(encoders),
        overview=_overview(found) if len(found) > 1 else None,
        pictures=(plots.intervals_picture(found),),
        files=_files(outcomes, encoders),
        out=out,
    )


def of_one(outcome: Outcome, encoder: EncoderInfo, out: str | None, bundle: str | None) -> Sheet:
    """report.md, and the files of `of_several` with pictures of the predictions."""
    outcome = _judged(outcome)
    result = outcome.result
    assert result.corpus is not None
    flat = result.to_json()
    differences = flat["differences"][result.encoders[0]]
    return Sheet(
        name="report",
        title=f"{result.task.title}: {encoder.uri} (mode {encoder.mode})",
        lead=(f"On {result.corpus.source} (`{result.corpus.uri}`). {ALIKE}",),
        sections=(task_section.section(outcome, plots.task_pictures(outcome)),),
        results={"bundle": to_json(encoder)} | flat | {"differences": differences},
        subjects=described({"This encoder": encoder}),
        files=_files([outcome], {"encoder": encoder}),
        out=out,
        bundle=bundle,
    )


def _judged(outcome: Outcome) -> Outcome:
    result = outcome.result
    return replace(outcome, result=replace(result, verdict=task_section.verdicts(result)))


def described(encoders: Mapping[str, EncoderInfo]) -> dict[str, str]:
    return {name: f"`{e.uri}`, mode `{e.mode}`, vectors of {e.dim}" for name, e in encoders.items()}


def _licence(licence: str | None) -> str:
    return f", {licence}" if licence else ""


def _files(outcomes: Sequence[Outcome], encoders: Mapping[str, EncoderInfo]) -> dict[str, Writer]:
    results = [outcome.result for outcome in outcomes]
    corpus = results[0].corpus
    assert corpus is not None

    def csv_to(path: Path) -> None:
        path.write_text(longform.as_csv(results), encoding="utf-8")

    def json_to(path: Path) -> None:
        path.write_bytes(storage.json_bytes(longform.as_json(results, corpus, encoders)))

    tables = [predictions.of_outcome(outcome) for outcome in outcomes]
    return {
        "tables.csv": csv_to,
        "metrics.json": json_to,
        "predictions.parquet": partial(predictions.write, tables),
    }


def _overview(results: Sequence[TaskResult]) -> Table:
    """Rows × tasks: the main metric of each with its interval."""
    labels: dict[str, str] = {}
    for result in reversed(results):
        labels |= result.labels
    heads = [f"{result.task.title}: {main_title(result.task)}" for result in results]
    order = dict.fromkeys(row.name for result in results for row in result.rows)
    found = [{row.name: row.metrics.get(result.task.main) for row in result.rows} for result in results]
    body = [[labels[name], *(with_interval(rows.get(name)) for rows in found)] for name in order]
    return Table("", ["", *heads], body)
