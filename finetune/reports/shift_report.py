"""Results of a shift between corpora → table, picture, and a sentence where a claim of generality fails."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from pathlib import Path
from typing import Any

import numpy as np

from finetune.reports.plots import BASELINE_ROWS, BLUE, GREY, LINES, ORANGE, STYLE
from finetune.reports.report import (
    SPOKEN,
    aligned,
    main_of,
    metric_cell,
    metric_name,
    number,
    p_text,
    side,
    signed,
    table_md,
    with_interval,
)


def verdicts(table: dict[str, Any], where: str) -> list[str]:
    """One sentence an encoder. Its claim of generality fails where a baseline (or its untrained self) is
    better on the second corpus with the whole interval, or where the whole interval of the loss is bad.
    """
    rows, task = {row["name"]: row for row in table["rows"]}, table["task"]
    main, title, lower = main_of(task)
    bare = "predicting the prevalence" if task.get("classes") else SPOKEN["mean"]
    said = []
    for name, differences in table["differences"].items():
        own, spoken = rows[name], {**SPOKEN, "mean": bare, f"{name}, untrained": "its untrained self"}
        figure = number(own["metrics"][main]["value"])
        against = {n: d for n, d in differences.items() if n in (*BASELINE_ROWS, f"{name}, untrained")}
        worse = [
            f"worse than {spoken[n]} "
            f"({figure} against {number(rows[n]['metrics'][main]['value'])}, difference {signed(d)}, "
            f"{p_text(d['p'])})"
            for n, d in against.items()
            if side(d, lower) == "worse"
        ]
        better = [spoken[n] for n, d in against.items() if side(d, lower) == "better"]
        why = list(worse)
        if side(own["loss"], lower) == "worse":
            mean = rows["mean"]["loss"]["value"]
            why.append(
                f"it loses {signed(own['loss'])} against its figure where it was fitted ({bare} loses "
                f"{mean:+.2f})"
            )
        if why:
            said.append(
                f"{own['label']}: a claim of generality FAILS on {where} ({title}): {'; '.join(why)}."
            )
        else:
            beaten = f"beats {'; '.join(better)}" if better else "beats no baseline"
            said.append(
                f"{own['label']}: no failure of generality shown on {where}: {title} {figure}, loss "
                f"{signed(own['loss'])}; there it {beaten}."
            )
    return said


def _cells(table: dict[str, Any], results: dict[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    task = table["task"]
    main, title, _ = main_of(task)
    here, there = results["fit"]["name"], results["test"]["name"]
    rest = [m for m in task["metrics"] if m != main]
    header = [
        f"{title}:", f"in {here}", f"on {there}", "shift loss", "refitted there",
        *(f"{metric_name(m, task)} there" for m in rest),
    ]  # fmt: skip
    body, notes = [], []
    for row in table["rows"]:
        parts = [with_interval(row[k].get(main)) for k in ("inside", "metrics")]
        loss = signed(row["loss"]) if "loss" in row else ""
        again = with_interval(row["refitted"].get(main))
        body.append([row["label"], *parts, loss, again, *(metric_cell(m, row["metrics"]) for m in rest)])
        if row["note"]:
            notes.append(f"{row['label']}: {row['note']}")
    return header, body, notes


def _facts(table: dict[str, Any], results: dict[str, Any]) -> list[str]:
    task, protocol, between = table["task"], table["protocol"], table["between"]
    lines = []
    for key, verb in (("fit", "Fitted on"), ("test", "Tested on")):
        counts, corpus = table["counts"][key], results[key]
        lines.append(
            f"{verb} {corpus['name']} ({corpus['uri']}): {counts['subjects']} subjects, "
            f"{counts['records']} records, {counts['windows']} windows of {task['window_s']:g} s; "
            + _targets(counts, task)
        )
        refused = ", ".join(f"{reason} {count}" for reason, count in table["refused"][key].items())
        lines.append(f"Windows refused there: {refused or 'none'}")
        lines += table["adapted"][key]
        overlap = table["overlap"][key]
        left = overlap["left_out"]
        line = f"Overlap of pretraining with it: {overlap['kind'].upper()} ({'; '.join(overlap['why'])})"
        if left["subjects"]:
            line += f"; left out as seen: {left['subjects']} subjects, {left['windows']} windows"
        lines.append(line)
    shared = "none" if between["kind"] == "none" else between["kind"].upper()
    lines.append(f"People in both corpora: {shared} ({between['why']})")
    lines.append(
        f"In {results['fit']['name']}: {protocol['folds']} subject-disjoint folds; on "
        f"{results['test']['name']}: probes of all its subjects, nothing fitted or chosen there"
    )
    if protocol["not_refitted"]:
        lines.append(f"Not refitted on {results['test']['name']}: {protocol['not_refitted']}")
    lines.append(
        f"Intervals: 95 %, {protocol['draws']:,} draws of whole subjects; shift loss: figure there − figure "
        "where fitted, subjects of both corpora drawn independently"
    )
    return lines


def _targets(counts: dict[str, Any], task: dict[str, Any]) -> str:
    if "classes" in counts:
        return ", ".join(f"{n} {name}" for name, n in counts["classes"].items())
    return f"{counts['target']['mean']:.1f} ± {counts['target']['sd']:.1f} {task['unit']}"


def terminal(results: dict[str, Any]) -> str:
    parts = []
    for table in results["tasks"]:
        header, body, notes = _cells(table, results)
        title = f"{table['task']['title']}: from {results['fit']['name']} to {results['test']['name']}"
        warned = [f"WARNING: {line}" for line in table["warnings"]]
        lines = [
            title,
            *warned,
            *aligned(header, body),
            *notes,
            *_facts(table, results),
            "",
            *table["verdict"],
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown(results: dict[str, Any]) -> str:
    """shift.md: a section a task."""
    parts = [
        f"# Shift: fitted on {results['fit']['name']}, tested on {results['test']['name']}",
        "\n".join(
            f"- **{name}**: `{e['uri']}`, mode `{e['mode']}`, vectors of {e['dim']}"
            for name, e in results["encoders"].items()
        ),
        "![Main metric of each row in both corpora](shift.png)",
    ]
    for table in results["tasks"]:
        header, body, notes = _cells(table, results)
        parts += [
            f"## {table['task']['title']}",
            *(f"**WARNING: {line}**" for line in table["warnings"]),
            table_md(header, body),
            "\n".join(f"- {line}" for line in [*notes, *table["verdict"]]),
            "How it was done:",
            "\n".join(f"- {line}" for line in _facts(table, results)),
        ]
    return "\n\n".join(parts) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel a task: each row's main metric where it was fitted (hollow) and on the other corpus (full)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tables = results["tasks"]
    columns, lines = min(3, len(tables)), -(-len(tables) // 3)
    with plt.rc_context(STYLE):
        tall = 1.4 + 0.34 * max(len(t["rows"]) for t in tables)
        figure, axes = plt.subplots(
            lines, columns, figsize=(2.6 + 3.6 * columns, tall * lines), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axis, table in zip(axes.flat, tables, strict=False):
            _panel(axis, table, results)
        for axis in axes.flat[len(tables) :]:
            axis.axis("off")
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def _panel(axis: Any, table: dict[str, Any], results: dict[str, Any]) -> None:
    main, title, lower = main_of(table["task"])
    marks = {}
    for y, row in enumerate(table["rows"]):
        own = row["name"] in table["differences"]
        colour = BLUE if own else ORANGE if row["name"] in BASELINE_ROWS else LINES["untrained"]
        for where, shift, fill in (("inside", -0.16, "white"), ("metrics", 0.16, colour)):
            found = row[where].get(main)
            if found and np.isfinite(found["value"]):
                axis.plot([found["low"], found["high"]], [y + shift] * 2, color=colour, lw=1.6, zorder=1)
                (marks[where],) = axis.plot(found["value"], y + shift, "o", mec=colour, mfc=fill, ms=5.5)
    labels = [row["label"] for row in table["rows"]]
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    for y in range(1, len(labels)):
        axis.axhline(y - 0.5, color=GREY, lw=0.3, zorder=0)
    axis.set(title=table["task"]["title"], xlabel=f"{title} ({'lower' if lower else 'higher'} is better)")
    names = {
        "inside": f"in {results['fit']['name']}",
        "metrics": f"on {results['test']['name']}, not refitted",
    }
    axis.legend(
        list(marks.values()), [names[k] for k in marks], frameon=False, fontsize=8, loc="lower left",
        bbox_to_anchor=(0, 1.08), ncols=2,
    )  # fmt: skip
