"""SIGMA's priors and masks in two classes of windows → a sheet, its picture, and patches as Parquet."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from finetune.evaluation.choose import Windows
from finetune.evaluation.priors import Patches, Priors, Summary
from finetune.metrics import DRAWS, Difference, Interval
from finetune.pagekit.parts import Table
from finetune.reports.figures import number, p_cell, p_text, reasons, signed, with_interval
from finetune.reports.plots import BLUE, GREY, INK, ORANGE, STYLE, pyplot
from finetune.reports.sheet import Picture, Section, Sheet

COLOURS = (BLUE, ORANGE)  # of the two classes
SPOKEN = {"prior": "the prior-weighted mask", "trained": "the mask as trained"}
OFTEN = ("more often than", "less often than", "as often as (they cannot be told apart)")
HIGH = ("is higher", "is lower", "cannot be told apart")
LEFT_OUT = ("chosen_random", "apart_random")  # rows that are zero but for chance
GROUPED = ("prior_event", "hidden_prior", "hidden_trained")


def sheet(found: Priors, patches: Patches, windows: Windows, event: np.ndarray, out: str) -> Sheet:
    """priors.md, report.html, results.json, patches.parquet and priors.png in the folder `out`."""
    title = f"SIGMA's priors and masks, {found.task.title.lower()}: {found.bundle.uri}"
    verdict = verdicts(found.summary, found.classes)
    picture = Picture(
        "priors.png",
        "Priors and what the masks hide",
        partial(_draw, found, patches, windows.target.astype(int), event),
    )
    section = Section(
        title=title,
        tables=(_table(found), *_groups(found)),
        verdict=tuple(verdict),
        facts=tuple(_facts(found)),
        pictures=(picture,),
    )
    return Sheet(
        name="priors",
        title=title,
        lead=(),
        sections=(section,),
        results=found.to_json() | {"verdict": verdict},
        files={"patches.parquet": partial(_write_patches, found, patches, windows, event)},
        out=out,
    )


def _write_patches(found: Priors, patches: Patches, windows: Windows, event: np.ndarray, path: Path) -> None:
    import pyarrow.parquet as pq

    n, total = patches.prior.shape
    columns: dict[str, Any] = {
        "record": np.repeat(windows.record, total).tolist(),
        "class": np.repeat([found.classes[int(k)] for k in windows.target], total).tolist(),
        "start_s": np.repeat(windows.start_s, total) + np.tile(np.arange(total) * found.patch_s, n),
        "event": np.tile(event, n),
        "prior": patches.prior.ravel(),
    }
    columns |= {f"hidden_{name}": hidden.ravel() for name, hidden in patches.hidden.items()}
    pq.write_table(pa.table(columns), path, compression="zstd")


# ---------------------------------------------------------------- words


def verdicts(found: Summary, classes: tuple[str, ...]) -> list[str]:
    """What the masks do with the event, a sentence each; a claim only where the whole interval says so."""
    rows = {row.name: row for row in found.table}
    first, second = classes
    lines = []
    for name, spoken in SPOKEN.items():
        row = rows.get(f"hidden_{name}")
        if row is None:
            continue
        (a, b), d = row.classes, row.difference
        chance = rows["hidden_random"].classes[1]
        within = rows[f"apart_{name}"].classes[1]
        lines.append(
            f"Where {second}, {spoken} hides the event's patches {number(b.value)} % of the time, "
            f"{_claim(d, OFTEN)} where {first} ({number(a.value)} %; difference {signed(d)}, "
            f"{p_text(d.p)}); a random mask {number(chance.value)} %."
        )
        lines.append(
            f"Where {second}, {spoken} hides the event's patches {_claim(within, OFTEN)} those before it "
            f"({signed(within)} points)."
        )
    row = rows["prior_event"]
    (a, b), d = row.classes, row.difference
    lines.append(
        f"The prior of these patches {_claim(d, HIGH)} where {second} ({number(b.value)} against "
        f"{number(a.value)}; difference {signed(d)}, {p_text(d.p)})."
    )
    return lines


def _claim(found: Interval | Difference, words: tuple[str, str, str]) -> str:
    """Above zero, below, or neither: by the whole interval."""
    above, below, neither = words
    if found.low > 0 or found.high < 0:
        return above if found.value > 0 else below
    return neither


def _table(found: Priors) -> Table:
    counts = found.summary.counts
    header = ["", *(f"{name} ({counts[name]})" for name in found.classes), "difference", "p"]
    body = [
        [row.title, *map(with_interval, row.classes), signed(row.difference), p_cell(row.difference.p)]
        for row in found.summary.table
        if row.name not in LEFT_OUT
    ]
    return Table("", header, body)


def _groups(found: Priors) -> list[Table]:
    """One line a group: the prior, and what each weighted mask hides, where both classes are there."""
    if found.by is None:
        return []
    titles = {row.name: row.title for row in found.summary.table}
    header = ["", "windows", *(f"{titles[name]}: difference" for name in GROUPED if name in titles)]
    body = []
    for group in found.by.groups:
        counts = group.summary.counts.values()
        known = [row for name in GROUPED if (row := group.summary.get(name)) is not None]
        cells = [signed(row.difference) if all(counts) else "–" for row in known]
        body.append([group.name, " + ".join(map(str, counts)), *cells])
    return [Table(f"By {found.by.label}", header, body)]


def _facts(found: Priors) -> list[str]:
    quantiles = "; ".join(
        f"{name}: {', '.join(map(number, values))}" for name, values in found.summary.quantiles.items()
    )
    counts = ", ".join(f"{count} {name}" for name, count in found.summary.counts.items())
    partial_event = found.event_patches * found.patch_s < found.window_s - 1e-6
    event = f", of which the last {found.event_patches} are the event" if partial_event else ""
    return [
        f"{counts}: windows of {found.window_s:g} s, patches of {found.patch_s:g} s{event}, from "
        f"{found.corpus.name} ({found.corpus.uri})",
        f"Windows refused: {reasons(found.refused)}",
        f"5, 25, 50, 75, 95 % of the event's priors, {quantiles}",
        f"Masks drawn {found.draws} times a window with α = {found.alpha:g}, edited as in training; "
        f"intervals: 95 %, {DRAWS:,} draws of whole subjects",
        "Subjects that pretraining saw count, too: nothing is predicted here",
    ]


# ---------------------------------------------------------------- picture


def _draw(found: Priors, patches: Patches, y: np.ndarray, event: np.ndarray, path: Path) -> None:
    """Distribution of the prior over the event's patches; of the hidden ones; what is hidden, over time."""
    plt, seconds = pyplot(), found.patch_s
    mask = "trained" if "trained" in patches.hidden else "prior"
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
        for k, (name, colour) in enumerate(zip(found.classes, COLOURS, strict=True)):
            mine = y == k
            if not mine.any():
                continue
            inside = patches.prior[mine][:, event]
            _steps(axes[0], inside.ravel(), None, colour, "-", name)
            if not event.all():
                _steps(axes[0], patches.prior[mine][:, ~event].ravel(), None, colour, ":", f"{name}, before")
            every = patches.prior[mine].ravel()
            for other, dash in (("prior", "-"), ("random", ":")):
                weight = patches.hidden[other][mine].ravel()
                _steps(axes[1], every, weight, colour, dash, f"{name}, {other} mask")
            at = (np.arange(len(event)) - len(event) + 0.5) * seconds
            axes[2].plot(at, 100 * patches.hidden["prior"][mine].mean(0), color=colour, lw=1.8, label=name)
            if mask == "trained":
                hidden = 100 * patches.hidden[mask][mine].mean(0)
                axes[2].plot(at, hidden, color=colour, lw=1, ls="--", label=f"{name}, with teacher")
        axes[2].axhline(100 * patches.hidden["random"].mean(), color=INK, lw=1, ls=":", label="random mask")
        if not event.all():
            axes[2].axvspan(-event.sum() * seconds, 0, color=GREY, alpha=0.25, lw=0)
        titles = ("Prior of the event's patches", "Prior of the patches that are hidden", "Hidden, by time")
        marks = (
            ("prior", "share of patches"),
            ("prior", "share of hidden patches"),
            ("s before the event's end", "% of draws"),
        )
        for axis, title, (x, label) in zip(axes, titles, marks, strict=True):
            axis.set(title=title, xlabel=x, ylabel=label)
            axis.legend(frameon=False, fontsize=8)
        axes[0].set(xlim=(0, 1), ylim=(0, 1))
        axes[1].set(xlim=(0, 1), ylim=(0, 1))
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def _steps(
    axis: Any, values: np.ndarray, weights: np.ndarray | None, colour: str, dash: str, label: str
) -> None:
    """A weighted distribution function."""
    order = np.argsort(values, kind="stable")
    weight = np.ones(len(values)) if weights is None else weights[order]
    axis.plot(values[order], np.cumsum(weight) / weight.sum(), color=colour, ls=dash, lw=1.6, label=label)
