"""Results of damage → a table a kind of it, curves, and the severity at which an encoder gives way."""

import csv
import io
from pathlib import Path
from typing import Any

from finetune.reports.plots import BLUE, GREY, INK, LINES, ORANGE, STYLE
from finetune.reports.report import aligned, main_of, number, side, signed, table_md, with_interval

ENCODERS = (BLUE, "#8250df", "#0a7ea4", "#bf3989")
COLOURS = {"handcrafted": ORANGE, "demographics": LINES["demographics"], "mean": INK}


def verdicts(results: dict[str, Any]) -> list[str]:
    """For each encoder: of each kind the least severity with a sure loss; where it is worse than handcrafted
    features under the same damage; where it no longer beats the mean though it did on clean windows.
    """
    rows, lower = {row["name"]: row for row in results["rows"]}, main_of(results["task"])[2]
    said = []
    for name, against in results["against"].items():
        row, parts = rows[name], []
        for kind, points in row["damaged"].items():
            lost = next((p for p in points if side(p["change"], lower) == "worse"), None)
            at = f"from {lost['severity']:g} ({signed(lost['change'])})" if lost else "no sure loss"
            parts.append(f"{results['kinds'][kind]['title'].lower()} {at}")
        said.append(f"{row['label']} loses surely: {'; '.join(parts)}.")
        worse = _where(results, against.get("handcrafted", {}), lambda p: side(p, lower) == "worse")
        if worse:
            said.append(f"{row['label']} is worse than handcrafted features under {worse}.")
        mean = against.get("mean", {})
        if mean and side(mean["clean"][0], lower) == "better":
            gone = _where(results, mean, lambda p: side(p, lower) != "better")
            if gone:
                said.append(f"{row['label']} no longer beats predicting the mean under {gone}.")
        else:
            said.append(f"{row['label']} does not beat predicting the mean on clean windows either.")
    return said


def _where(results: dict[str, Any], kinds: dict[str, Any], holds: Any) -> str:
    found = []
    for kind, points in kinds.items():
        at = [f"{p['severity']:g}" for p in points if kind != "clean" and holds(p)]
        if at:
            found.append(f"{results['kinds'][kind]['title'].lower()} {', '.join(at)}")
    return "; ".join(found)


def tables(results: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, body) of each kind: clean figure, then at each severity the figure and its change."""
    main, title, _ = main_of(results["task"])
    made = []
    for kind, about in results["kinds"].items():
        header = [f"{title}:", "clean", *(f"{s:g}" for s in about["severities"])]
        header += [f"change at {about['severities'][-1]:g}"]
        body = []
        for row in results["rows"]:
            points = row["damaged"].get(kind)
            if points:
                cells = [with_interval(p["metrics"][main]) for p in points]
                clean = with_interval(row["metrics"][main])
                body.append([row["label"], clean, *cells, signed(points[-1]["change"])])
        made.append((f"{about['title']} ({about['unit']})", header, body))
    return made


def csv_text(results: dict[str, Any]) -> str:
    """Every figure: row, kind, severity, metric, value, low, high, and the main metric's change."""
    main, sink = results["task"]["main"], io.StringIO()
    out = csv.writer(sink, lineterminator="\n")
    figures = ("value", "low", "high")
    out.writerow(["row", "kind", "severity", "metric", *figures, *(f"change_{f}" for f in figures)])
    for row in results["rows"]:
        for metric, found in row["metrics"].items():
            out.writerow([row["name"], "clean", 0, metric, *(found[f] for f in figures), "", "", ""])
        for kind, points in row["damaged"].items():
            for p in points:
                for metric, found in p["metrics"].items():
                    change = [p["change"][f] if metric == main else "" for f in figures]
                    out.writerow(
                        [row["name"], kind, p["severity"], metric, *(found[f] for f in figures), *change]
                    )
    return sink.getvalue()


def _facts(results: dict[str, Any]) -> list[str]:
    counts, task, protocol = results["counts"], results["task"], results["protocol"]
    refused = ", ".join(f"{reason} {count}" for reason, count in results["refused"].items())
    overlap = results["overlap"]
    left = overlap["left_out"]
    told = f"Overlap with pretraining: {overlap['kind'].upper()} ({'; '.join(overlap['why'])})"
    if left["subjects"]:
        told += f"; left out as seen: {left['subjects']} subjects, {left['windows']} windows"
    return [
        f"{counts['subjects']} subjects, {counts['records']} records, {counts['windows']} windows of "
        f"{task['window_s']:g} s, from {results['corpus']['name']} ({results['corpus']['uri']})",
        f"Windows refused: {refused or 'none'}",
        *results["adapted"],
        f"Probes of clean windows ({protocol['folds']} folds, no subject on both sides), tested on damaged "
        "windows of the others; nothing is fitted or chosen on damage, and no quality gate refuses any",
        "Damage is done to the samples as recorded, before the encoder's filters; every signal that an "
        "encoder takes is damaged; every row and severity gets the same draws",
        f"Intervals: 95 %, {protocol['draws']:,} draws of whole subjects; changes are paired with the clean "
        "figure",
        told,
    ]


def _notes(results: dict[str, Any]) -> list[str]:
    return [f"{row['label']}: {row['note']}" for row in results["rows"] if row["note"]]


def terminal(results: dict[str, Any]) -> str:
    lines = [f"{results['task']['title']} under damage, {results['corpus']['name']}"]
    lines += [f"WARNING: {line}" for line in results["warnings"]]
    for title, header, body in tables(results):
        lines += ["", title, *aligned(header, body)]
    return "\n".join([*lines, *_notes(results), *_facts(results), "", *results["verdict"]])


def markdown(results: dict[str, Any]) -> str:
    """robustness.md."""
    parts = [
        f"# {results['task']['title']} under damage",
        "\n".join(
            f"- **{name}**: `{e['uri']}`, mode `{e['mode']}`" for name, e in results["encoders"].items()
        ),
        *(f"**WARNING: {line}**" for line in results["warnings"]),
        "![Main metric against severity](curves.png)",
        "\n".join(f"- {line}" for line in results["verdict"]),
    ]
    for title, header, body in tables(results):
        parts += [f"## {title}", table_md(header, body)]
    parts += ["## How it was done", "\n".join(f"- {line}" for line in [*_notes(results), *_facts(results)])]
    return "\n\n".join(parts) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel a kind: the main metric against severity, clean at 0; bands are 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    main, title, lower = main_of(results["task"])
    kinds = list(results["kinds"])
    columns = min(3, len(kinds))
    lines = -(-len(kinds) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            lines, columns, figsize=(0.8 + 4.2 * columns, 0.9 + 3.2 * lines), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axis, kind in zip(axes.flat, kinds, strict=False):
            for row in results["rows"]:
                if kind in row["damaged"]:
                    _curve(axis, results, row, kind, main)
            about = results["kinds"][kind]
            axis.set(title=about["title"], xlabel=about["unit"])
            axis.set_xticks([0, *about["severities"]], ["clean", *(f"{s:g}" for s in about["severities"])])
            axis.grid(axis="y", color=GREY, lw=0.3)
        for axis in axes.flat[len(kinds) :]:
            axis.axis("off")
        for line in axes[:, 0]:
            line.set_ylabel(f"{title}\n({'lower' if lower else 'higher'} is better)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)), frameon=False)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def _curve(axis: Any, results: dict[str, Any], row: dict[str, Any], kind: str, main: str) -> None:
    names = list(results["against"])
    name = row["name"]
    of = next((e for e in names if name in (e, f"{e}, untrained")), None)
    colour = COLOURS.get(name) or ENCODERS[names.index(of) % len(ENCODERS) if of else 0]
    points = row["damaged"][kind]
    x = [0.0, *(p["severity"] for p in points)]
    found = [row["metrics"][main], *(p["metrics"][main] for p in points)]
    own = name in names
    dash = "-" if own or name == "handcrafted" else "--"
    label = f"{row['label']} ({number(found[0]['value'])} clean)"
    width, mark = (2.0, "o") if own else (1.3, "")
    axis.plot(x, [f["value"] for f in found], dash, color=colour, lw=width, marker=mark, ms=4, label=label)
    if own:
        axis.fill_between(
            x, [f["low"] for f in found], [f["high"] for f in found], color=colour, alpha=0.15, lw=0
        )
