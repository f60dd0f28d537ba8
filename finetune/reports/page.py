"""Results of a comparison → report.html: one file that needs nothing else, for a screen, a phone or paper."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from finetune.reports import comparison, panels, parts
from finetune.reports.panels import Panel
from finetune.reports.report import main_of, rows_explained, warnings, with_interval
from finetune.study import Outcome

TEMPLATES = Path(__file__).parent / "templates"
READ = {  # below the heading of each group of pictures
    "calibration": "One dot a prediction, one colour a subject. Joined dots: the mean truth of each tenth of "
    "the predictions; on the diagonal, a prediction can be taken at its word.",
    "reliability": "On the diagonal, a probability can be taken at its word. ROC: how windows are ranked.",
    "agreement": "One dot a prediction, one colour a subject. Solid: bias; dashed: 95 % limits of agreement.",
    "reference": "What a small mean error hides: high pressures read too low and low ones too high.",
    "map": "First two principal components of the standardised vectors. Where subjects, not targets, lie "
    "together, the vectors tell who it is.",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Pictures under one heading."""

    title: str
    text: str
    panels: list[Panel]
    layout: str = "many"  # or "wide", "pairs"


@dataclass(frozen=True)
class Section:
    """One task, ready to be laid out."""

    key: str
    title: str
    about: str
    warnings: list[str]
    encoders: list[str]  # labels of their rows
    verdict: list[str]
    tables: list[parts.Table]  # the main one first
    forests: list[parts.Forest]
    groups: list[Group] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)


def render(results: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The page. `outcomes` as the tasks of `results`, in their order."""
    sections = [_section(t, o) for t, o in zip(results["tasks"], outcomes, strict=True)]
    return filled(
        "report.html",
        corpus=results["corpus"],
        encoders=results["encoders"],
        overview=_overview(results) if len(sections) > 1 else None,
        warned=list(dict.fromkeys(w for s in sections for w in s.warnings)),
        sections=sections,
    )


def filled(template: str, folder: Path | None = None, styles: Sequence[str] = (), **given: Any) -> str:
    """A template, of `folder` or of ours, with what it is given, our style sheet and those `styles` of
    `folder`: a page that needs nothing else.
    """
    import jinja2

    folders = [*([folder] if folder else []), TEMPLATES]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    sheets = [TEMPLATES / "report.css", *((folder or TEMPLATES) / name for name in styles)]
    style = Markup("\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets))
    return environment.get_template(template).render(style=style, minus=_minus, **given)


def _minus(text: str) -> str:
    """Hyphens before digits as the minus signs that they stand for."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def _overview(results: dict[str, Any]) -> parts.Table:
    """Rows × tasks: the main metric of each with its interval."""
    tables = results["tasks"]
    labels = {row["name"]: row["label"] for table in reversed(tables) for row in table["rows"]}
    heads = [f"{t['task']['title']}: {main_of(t['task'])[1]}" for t in tables]
    found = [{row["name"]: row["metrics"].get(main_of(t["task"])[0]) for row in t["rows"]} for t in tables]
    order = dict.fromkeys(row["name"] for table in tables for row in table["rows"])
    body = [[labels[name], *(with_interval(rows.get(name)) for rows in found)] for name in order]
    return parts.Table("", ["", *heads], body)


def _section(table: dict[str, Any], outcome: Outcome) -> Section:
    header, body, notes = comparison.cells(table)
    explained = [re.sub("[*`]", "", line.removeprefix("- ")) for line in rows_explained(table).split("\n")]
    return Section(
        table["task"]["name"],
        table["task"]["title"],
        _about(table),
        [w.removeprefix("WARNING: ") for w in warnings(table)],
        [row["label"] for row in table["rows"] if row["name"] in table["differences"]],
        table["verdict"],
        [parts.Table(table["task"]["title"], header, body, tuple(notes)), *parts.extras(table)],
        parts.forests(table, {e: comparison.rivals(table, e) for e in table["differences"]}),
        [g for g in _groups(table, outcome) if g.panels],
        [*comparison.facts_of(table), *explained],
    )


def _about(table: dict[str, Any]) -> str:
    task, counts = table["task"], table["counts"]
    level = table.get("level", "window")
    values = f"{counts['windows']} windows of {task['window_s']:g} s"
    if level != "window":
        values += f", pooled to one value a {level}"
    what = f"{task['kind'].capitalize()} of {task['label'] or 'subjects'}"
    return f"{what}: {counts['subjects']} subjects, {values}"


def _groups(table: dict[str, Any], outcome: Outcome) -> list[Group]:
    target, subject = outcome.windows.target, outcome.windows.subject
    predicted = outcome.predicted
    found = []
    curve = panels.few_shot(table)
    if curve is not None:
        found.append(Group("Few labelled subjects", "", [curve], "wide"))
    if table["task"]["kind"] == "regression":
        given = (table, target, subject, predicted)
        found.append(Group("Calibration", READ["calibration"], [*panels.truth(*given)]))
        found.append(Group("Bland–Altman", READ["agreement"], [*panels.agreement(*given)]))
        if "blood_pressure" in table:
            errors = [*panels.pressure_errors(*given)]
            found.append(Group("Error against the reference", READ["reference"], errors))
    elif table["task"]["kind"] in ("binary", "multi-class"):
        shown = [*panels.reliability(table, target, predicted)]
        found.append(Group("Calibration and ranking", READ["reliability"], shown))
    vectors = getattr(outcome, "vectors", None) or {}
    maps = [*panels.embedding(table, target, subject, vectors)]
    return [*found, Group("Embedding map", READ["map"], maps, "pairs")]
