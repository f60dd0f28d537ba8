"""Results of damage → a table and a curve a kind of it, and the severity at which an encoder gives way."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune.evaluation.results import to_json
from finetune.evaluation.robustness import CLEAN, Apart, DamagedRow, RobustnessResult
from finetune.metrics import Difference, Interval
from finetune.pagekit.parts import Table
from finetune.reports.comparison import described
from finetune.reports.figures import (
    direction,
    lower_is_better,
    main_title,
    number,
    reasons,
    side,
    signed,
    sizes,
    with_interval,
)
from finetune.reports.plots import BLUE, GREY, INK, LINES, ORANGE, drawing, grid
from finetune.reports.sheet import Picture, Section, Sheet
from finetune.reports.task_section import overlap_lines

ENCODERS = (BLUE, "#8250df", "#0a7ea4", "#bf3989")
COLOURS = {"handcrafted": ORANGE, "demographics": LINES["demographics"], "mean": INK}
FIGURES = ("value", "low", "high")


def sheet(result: RobustnessResult, out: str | None) -> Sheet:
    """robustness.md, report.html, results.json, robustness.csv, curves.png."""
    result = replace(result, verdict=verdicts(result))
    title = f"{result.task.title} under damage, {result.corpus.name}"
    section = Section(
        title=title,
        key=result.task.name,
        warnings=result.warnings,
        tables=tuple(_tables(result)),
        verdict=result.verdict,
        facts=tuple(_facts(result)),
        own=tuple(result.row(name).label for name in result.against),
    )
    curves = drawing(partial(_draw, result=result))
    return Sheet(
        name="robustness",
        title=title,
        lead=(),
        sections=(section,),
        results=to_json(result),
        subjects=described(result.encoders),
        pictures=(Picture("curves.png", "Main metric against severity", curves),),
        files={"robustness.csv": partial(_write_csv, result)},
        out=out,
    )


# ---------------------------------------------------------------- verdict


def verdicts(result: RobustnessResult) -> tuple[str, ...]:
    """For each encoder: of each kind the least severity with a sure loss; where it is worse than handcrafted
    features under the same damage; where it no longer beats the mean though it did on clean windows.
    """
    lower, lines = lower_is_better(result.task), []
    for name, against in result.against.items():
        row = result.row(name)
        losses = [_first_loss(result, row, kind, lower) for kind in row.damaged]
        lines.append(f"{row.label} loses surely: {'; '.join(losses)}.")
        worse = _where(result, against.get("handcrafted", {}), lambda d: side(d, lower) == "worse")
        if worse:
            lines.append(f"{row.label} is worse than handcrafted features under {worse}.")
        mean = against.get("mean", {})
        if mean and side(mean[CLEAN][0], lower) == "better":
            gone = _where(result, mean, lambda d: side(d, lower) != "better")
            if gone:
                lines.append(f"{row.label} no longer beats predicting the mean under {gone}.")
        else:
            lines.append(f"{row.label} does not beat predicting the mean on clean windows either.")
    return tuple(lines)


def _first_loss(result: RobustnessResult, row: DamagedRow, kind: str, lower: bool) -> str:
    name = result.kinds[kind].title.lower()
    lost = next((p for p in row.damaged[kind] if side(p.change, lower) == "worse"), None)
    return f"{name} from {lost.severity:g} ({signed(lost.change)})" if lost else f"{name} no sure loss"


def _where(
    result: RobustnessResult, kinds: Mapping[str, Sequence[Apart]], holds: Callable[[Difference], bool]
) -> str:
    """Kinds of damage and their severities where it holds: ``motion 1, 2; clipping 0.4``."""
    found = []
    for kind, differences in kinds.items():
        at = [f"{d.severity:g}" for d in differences if kind != CLEAN and holds(d)]
        if at:
            found.append(f"{result.kinds[kind].title.lower()} {', '.join(at)}")
    return "; ".join(found)


# ---------------------------------------------------------------- tables


def _tables(result: RobustnessResult) -> list[Table]:
    """Of each kind: the clean figure, then at each severity the figure, then the change at the last."""
    main, made = result.task.main, []
    for kind, about in result.kinds.items():
        severities = [f"{s:g}" for s in about.severities]
        header = [f"{main_title(result.task)}:", CLEAN, *severities, f"change at {severities[-1]}"]
        body = []
        for row in result.rows:
            points = row.damaged.get(kind)
            if points:
                cells = [with_interval(found.get(main)) for found in _figures(row, kind)]
                body.append([row.label, *cells, signed(points[-1].change)])
        made.append(Table(f"{about.title} ({about.unit})", header, body))
    return made


def _figures(row: DamagedRow, kind: str) -> list[Mapping[str, Interval]]:
    """Metrics of clean windows, then at each severity."""
    return [row.metrics, *(point.metrics for point in row.damaged[kind])]


def _facts(result: RobustnessResult) -> list[str]:
    task, protocol = result.task, result.protocol
    return [
        *(f"{row.label}: {row.note}" for row in result.rows if row.note),
        f"{sizes(result.counts, task)}, from {result.corpus.name} ({result.corpus.uri})",
        f"Windows refused: {reasons(result.refused)}",
        *result.adapted,
        f"Probes of clean windows ({protocol.folds} folds, no subject on both sides), tested on damaged "
        "windows of the others; nothing is fitted or chosen on damage, and no quality gate refuses any",
        "Damage is done to the samples as recorded, before the encoder's filters; every signal that an "
        "encoder takes is damaged; every row and severity gets the same draws",
        f"Intervals: 95 %, {protocol.draws:,} draws of whole subjects; changes are paired with the clean "
        "figure",
        *overlap_lines(result.overlap),
    ]


def _write_csv(result: RobustnessResult, path: Path) -> None:
    """Every figure: row, kind, severity, metric, value, low, high, and the main metric's change."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["row", "kind", "severity", "metric", *FIGURES, *(f"change_{f}" for f in FIGURES)])
        for row in result.rows:
            for metric, found in row.metrics.items():
                out.writerow([row.name, CLEAN, 0, metric, *astuple(found), "", "", ""])
            for kind, points in row.damaged.items():
                for point in points:
                    for metric, found in point.metrics.items():
                        change = astuple(point.change)[:3] if metric == result.task.main else ("", "", "")
                        out.writerow([row.name, kind, point.severity, metric, *astuple(found), *change])


# ---------------------------------------------------------------- picture


def _draw(plt: Any, result: RobustnessResult) -> Any:
    """A panel a kind: the main metric against severity, clean at 0; bands are 95 % intervals."""
    figure, axes = grid(plt, len(result.kinds), panel=(4.2, 3.2), margin=(0.8, 0.9))
    for axis, (kind, about) in zip(axes.flat, result.kinds.items(), strict=False):
        for row in result.rows:
            if kind in row.damaged:
                _curve(axis, result, row, kind)
        axis.set(title=about.title, xlabel=about.unit)
        axis.set_xticks([0, *about.severities], [CLEAN, *(f"{s:g}" for s in about.severities)])
        axis.grid(axis="y", color=GREY, lw=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"{main_title(result.task)}\n({direction(result.task)})")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)), frameon=False)
    return figure


def _curve(axis: Any, result: RobustnessResult, row: DamagedRow, kind: str) -> None:
    encoders, is_encoder = list(result.against), row.name in result.against
    of = next((i for i, e in enumerate(encoders) if row.name in (e, f"{e}, untrained")), 0)
    colour = COLOURS.get(row.name) or ENCODERS[of % len(ENCODERS)]
    x = [0.0, *(point.severity for point in row.damaged[kind])]
    found = [metrics[result.task.main] for metrics in _figures(row, kind)]
    dash = "-" if is_encoder or row.name == "handcrafted" else "--"
    width, mark = (2.0, "o") if is_encoder else (1.3, "")
    label = f"{row.label} ({number(found[0].value)} clean)"
    axis.plot(x, [f.value for f in found], dash, color=colour, lw=width, marker=mark, ms=4, label=label)
    if is_encoder:
        low, high = [f.low for f in found], [f.high for f in found]
        axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
