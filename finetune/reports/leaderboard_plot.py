"""The picture of a board: mean ranks, then the main metric of every row in every column."""

from functools import partial
from math import isfinite
from textwrap import fill, wrap
from typing import Any

from finetune.evaluation.leaderboard import Board, Column
from finetune.metrics import Interval
from finetune.reports.figures import NAMES, lower_is_better
from finetune.reports.plots import BLUE, GREY, INK, drawing
from finetune.reports.sheet import Picture

WIDE = 4  # panels side by side at most
PALE = "#e3b48a"  # baselines
WIDTH, ROW, MARGIN = 10.0, 0.23, 1.25  # inches: of the picture, of a row, above and below the rows of a panel
TITLE, NAME = 18, 32  # letters in a line of a title, of a row's name: longer ones run into their neighbours


def board_picture(found: Board) -> Picture:
    """leaderboard.png: encoders in blue, in the order of their mean rank; baselines below, pale."""
    caption = "Mean rank of each encoder, and its main metric in each column; baselines pale"
    return Picture("leaderboard.png", caption, drawing(partial(_draw, found=found)))


def _draw(plt: Any, found: Board) -> Any:
    names = (*found.encoders, *found.baselines.values())
    labels = ["\n".join(wrap(name, NAME, max_lines=2, placeholder="…")) for name in names]
    panels: list[Column | None] = [None] if found.overall.columns else []
    panels += found.columns
    lines = -(-len(panels) // WIDE)
    columns = -(-len(panels) // lines)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(WIDTH, lines * (MARGIN + ROW * len(labels))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, column in zip(axes.flat, panels, strict=False):
        _overall(axis, found) if column is None else _column(axis, found, column)
        axis.tick_params(labelsize=8, length=0)
        axis.set_title(axis.get_title(loc="left"), fontsize=9)
        axis.xaxis.label.set_size(8)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="y", color="#eef1f4", lw=0.8)
        axis.axhline(len(found.encoders) - 0.5, color=GREY, lw=0.6)
    axes[0, 0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    for axis in axes[:, 0]:
        for text in axis.get_yticklabels()[len(found.encoders) :]:
            text.set_color("#8a6a4a")
    return figure


def _overall(axis: Any, found: Board) -> None:
    for y, name in enumerate(found.encoders):
        _bar(axis, y, found.overall.mean_rank[name], INK)
    count = len(found.encoders)
    axis.locator_params(axis="x", integer=True)
    axis.set(title="Mean rank", xlabel=f"1 is the best of {count}", xlim=(0.8, max(count, 2) + 0.2))


def _column(axis: Any, found: Board, column: Column) -> None:
    rows = column.rows
    for y, row in enumerate([*found.encoders, *found.baselines]):
        if row in rows:
            _bar(axis, y, rows[row].figure, BLUE if row in found.encoders else PALE)
    if "mean" in rows:
        axis.axvline(rows["mean"].figure.value, color=PALE, lw=0.8, ls="--", zorder=0)
    task = column.task
    unit = f", {task.unit}" if lower_is_better(task) else ""
    arrow = "lower" if lower_is_better(task) else "higher"
    axis.set(
        title="\n".join(fill(part, TITLE) for part in column.title.split(", ", 1)),
        xlabel=f"{NAMES[task.main]}{unit}\n({arrow} is better)",
    )


def _bar(axis: Any, y: float, found: Interval, colour: str) -> None:
    if isfinite(found.value):
        axis.plot([found.low, found.high], [y, y], color=colour, lw=2, solid_capstyle="round")
        axis.plot(found.value, y, "o", color=colour, ms=4.5)
