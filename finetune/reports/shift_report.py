"""Results of a shift between corpora → a table and a picture a task, and a sentence where a claim of
generality fails.
"""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from finetune.evaluation import predictions
from finetune.evaluation.results import Counts, EncoderInfo, to_json
from finetune.evaluation.shift import Shifted, ShiftResult, ShiftRow, Side
from finetune.pagekit.parts import Table
from finetune.reports.comparison import described
from finetune.reports.figures import (
    lower_is_better,
    main_title,
    metric_cell,
    metric_name,
    number,
    p_text,
    reasons,
    side,
    signed,
    sizes,
    with_interval,
)
from finetune.reports.plots import BASELINE_ROWS, GREY, drawing, label_rows, row_colour, row_grid
from finetune.reports.sheet import Picture, Section, Sheet
from finetune.reports.task_section import SPOKEN, overlap_lines
from finetune.task import Task


def sheet(found: Sequence[Shifted], encoders: Mapping[str, EncoderInfo], out: str | None) -> Sheet:
    """shift.md, report.html, results.json, predictions.parquet, shift.png."""
    results = [replace(each.result, verdict=verdicts(each.result)) for each in found]
    fit, test = results[0].fit.corpus, results[0].test.corpus
    corpora = {"fit": to_json(fit), "test": to_json(test)}
    caption = "Main metric of each row in both corpora"
    return Sheet(
        name="shift",
        title=f"Shift: fitted on {fit.name}, tested on {test.name}",
        lead=(),
        sections=tuple(_section(result) for result in results),
        results={"encoders": to_json(encoders), **corpora, "tasks": to_json(results)},
        subjects=described(encoders),
        pictures=(Picture("shift.png", caption, drawing(partial(_draw, results=results))),),
        files={"predictions.parquet": partial(predictions.write, [each.predictions for each in found])},
        out=out,
    )


def _section(result: ShiftResult) -> Section:
    return Section(
        title=f"{result.task.title}: from {result.fit.corpus.name} to {result.test.corpus.name}",
        key=result.task.name,
        warnings=result.warnings,
        tables=(_table(result),),
        verdict=result.verdict,
        facts=tuple(_facts(result)),
        own=tuple(result.row(name).label for name in result.differences),
    )


def _table(result: ShiftResult) -> Table:
    task, main = result.task, result.task.main
    rest = [m for m in task.metrics if m != main]
    header = [f"{main_title(task)}:", f"in {result.fit.corpus.name}", f"on {result.test.corpus.name}"]
    header += ["shift loss", "refitted there", *(f"{metric_name(m, task)} there" for m in rest)]
    body = []
    for row in result.rows:
        inside, there, refitted = (
            with_interval(found.get(main)) for found in (row.inside, row.metrics, row.refitted)
        )
        others = [metric_cell(m, row.metrics) for m in rest]
        body.append([row.label, inside, there, _loss(row), refitted, *others])
    return Table("", header, body, tuple(f"{row.label}: {row.note}" for row in result.rows if row.note))


def _loss(row: ShiftRow) -> str:
    return signed(row.loss) if row.loss else ""


# ---------------------------------------------------------------- verdict


def verdicts(result: ShiftResult) -> tuple[str, ...]:
    """One sentence an encoder. Its claim of generality fails where a baseline (or its untrained self) is
    better on the second corpus with the whole interval, or where the whole interval of the loss is bad.
    """
    return tuple(_verdict(result, encoder) for encoder in result.differences)


def _verdict(result: ShiftResult, encoder: str) -> str:
    task, row, where = result.task, result.row(encoder), result.test.corpus.name
    lower, figure = lower_is_better(task), number(row.metrics[task.main].value)
    mean = "predicting the prevalence" if result.classes else SPOKEN["mean"]
    called = {**SPOKEN, "mean": mean, f"{encoder}, untrained": "its untrained self"}
    failures, beaten = [], []
    for other, difference in result.differences[encoder].items():
        if other not in (*BASELINE_ROWS, f"{encoder}, untrained"):
            continue
        how = side(difference, lower)
        if how == "worse":
            theirs = number(result.row(other).metrics[task.main].value)
            failures.append(
                f"worse than {called[other]} ({figure} against {theirs}, difference {signed(difference)}, "
                f"{p_text(difference.p)})"
            )
        elif how == "better":
            beaten.append(called[other])
    if row.loss and side(row.loss, lower) == "worse":
        line = f"it loses {_loss(row)} against its figure where it was fitted"
        baseline = result.row("mean").loss
        failures.append(line + (f" ({mean} loses {baseline.value:+.2f})" if baseline else ""))
    if failures:
        why = "; ".join(failures)
        return f"{row.label}: a claim of generality FAILS on {where} ({main_title(task)}): {why}."
    beats = f"beats {'; '.join(beaten)}" if beaten else "beats no baseline"
    return (
        f"{row.label}: no failure of generality shown on {where}: {main_title(task)} {figure}, loss "
        f"{_loss(row)}; there it {beats}."
    )


# ---------------------------------------------------------------- how it was made


def _facts(result: ShiftResult) -> list[str]:
    task, protocol, between = result.task, result.protocol, result.between
    fit, test = result.fit.corpus.name, result.test.corpus.name
    lines = [*_side(result.fit, "Fitted on", task), *_side(result.test, "Tested on", task)]
    shared = "none" if between.kind == "none" else between.kind.upper()
    lines += [
        f"People in both corpora: {shared} ({between.why})",
        f"In {fit}: {protocol.folds} subject-disjoint folds; on {test}: probes fitted on all subjects of the "
        "first corpus, nothing fitted or chosen there",
    ]
    if protocol.not_refitted:
        lines.append(f"Not refitted on {test}: {protocol.not_refitted}")
    lines.append(
        f"Intervals: 95 %, {protocol.draws:,} draws of whole subjects; shift loss: figure there − figure "
        "where fitted, subjects of both corpora drawn independently"
    )
    return lines


def _side(of: Side, verb: str, task: Task) -> list[str]:
    about = f"{of.corpus.name} ({of.corpus.uri})"
    return [
        f"{verb} {about}: {sizes(of.counts, task)}; {_targets(of.counts, task)}",
        f"Windows refused there: {reasons(of.refused)}",
        *of.adapted,
        *overlap_lines(of.overlap, "Overlap of pretraining with it"),
    ]


def _targets(counts: Counts, task: Task) -> str:
    if counts.target:
        return f"{counts.target.mean:.1f} ± {counts.target.sd:.1f} {task.unit}"
    return ", ".join(f"{n} {name}" for name, n in (counts.classes or {}).items())


# ---------------------------------------------------------------- picture


def _draw(plt: Any, results: Sequence[ShiftResult]) -> Any:
    """A panel a task: each row's main metric where it was fitted (hollow) and on the other corpus (full)."""
    figure, axes = row_grid(plt, [result.rows for result in results], (3.6, 2.6), (0.34, 1.4))
    for axis, result in zip(axes.flat, results, strict=False):
        _panel(axis, result)
    return figure


def _panel(axis: Any, result: ShiftResult) -> None:
    main, encoders, marks = result.task.main, list(result.differences), {}
    inside, there = f"in {result.fit.corpus.name}", f"on {result.test.corpus.name}, not refitted"
    for y, row in enumerate(result.rows):
        colour = row_colour(row, encoders)
        for name, found, shift, fill in (
            (inside, row.inside.get(main), -0.16, "white"),
            (there, row.metrics.get(main), 0.16, colour),
        ):
            if found and np.isfinite(found.value):
                axis.plot([found.low, found.high], [y + shift] * 2, color=colour, lw=1.6, zorder=1)
                (marks[name],) = axis.plot(found.value, y + shift, "o", mec=colour, mfc=fill, ms=5.5)
    label_rows(axis, result.task, result.rows)
    for y in range(1, len(result.rows)):
        axis.axhline(y - 0.5, color=GREY, lw=0.3, zorder=0)
    corner = (0, 1.08)
    axis.legend(
        marks.values(), marks, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=corner, ncols=2
    )
