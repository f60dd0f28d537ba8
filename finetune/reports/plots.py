"""Pictures of an evaluation: of numbers predicted against true, Bland–Altman, error of each subject; of
classes ROC curves; of a comparison intervals side by side.
"""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluation import classes
from finetune.evaluation.results import Row, TaskResult
from finetune.evaluation.table import Outcome
from finetune.metrics import bland_altman
from finetune.reports.figures import direction, main_title, with_interval
from finetune.reports.sheet import Picture
from finetune.task import Task

INK, GREY, BLUE, ORANGE = "#1b1f24", "#9aa4b0", "#1f6feb", "#d9730d"
LINES = {"encoder": BLUE, "untrained": "#7fb0f5", "handcrafted": ORANGE, "demographics": "#4c9a52"}
BASELINE_ROWS = ("handcrafted", "tracker", "demographics", "mean")
LETTER = 0.075  # inches of a letter of a row's name
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


def task_pictures(outcome: Outcome) -> tuple[Picture, ...]:
    """roc.png, or predicted.png, bland_altman.png and subjects.png in plots/, of one encoder."""
    kind = outcome.result.task.kind
    if kind in ("multi-label", "retrieval"):
        return ()
    drawn: dict[str, tuple[str, Callable[..., Any]]] = {"roc": ("ROC curves", _roc)}
    if kind == "regression":
        drawn = {
            "predicted": ("Predicted against true", _predicted),
            "bland_altman": ("Bland–Altman", _bland_altman),
            "subjects": ("Error of each subject", _subjects),
        }
    return tuple(
        Picture(f"plots/{name}.png", caption, drawing(partial(draw, outcome=outcome)))
        for name, (caption, draw) in drawn.items()
    )


def drawing(draw: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Writes the figure that `draw` makes with pyplot."""

    def write(path: Path) -> None:
        plt = pyplot()
        with plt.rc_context(STYLE):
            _save(plt, draw(plt), path)

    return write


def pyplot() -> Any:
    """matplotlib.pyplot without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def grid(
    plt: Any, count: int, panel: tuple[float, float], margin: tuple[float, float], share: bool = True
) -> tuple[Any, Any]:
    """A figure of `count` panels, at most three side by side, and its axes (lines, columns), which `share` y.
    `panel`, `margin`: width and height in inches, of each panel and in addition.
    """
    columns = min(3, count)
    lines = -(-count // columns)
    size = (margin[0] + panel[0] * columns, margin[1] + panel[1] * lines)
    figure, axes = plt.subplots(
        lines, columns, figsize=size, sharey=share, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes


def intervals_picture(results: Sequence[TaskResult]) -> Picture:
    """intervals.png, a panel a task: each row's main metric with its 95 % interval; encoders in blue, their
    untrained twins pale, baselines in orange.
    """

    def draw(plt: Any) -> Any:
        figure, axes = row_grid(plt, [result.rows for result in results], (3.3, 2.2), (0.27, 1.1))
        for axis, result in zip(axes.flat, results, strict=False):
            _intervals(axis, result)
        return figure

    return Picture("intervals.png", "Main metric of each row", drawing(draw))


def row_grid(
    plt: Any, tables: Sequence[Sequence[Row]], wide: tuple[float, float], tall: tuple[float, float]
) -> tuple[Any, Any]:
    """`grid` of a panel a table, with a line a row. Panels share the names of the rows only where these are
    the same in all. `wide`: inches of a panel, and of the names (longer ones get more); `tall`: of a row and
    in addition.
    """
    alike = len({tuple(row.label for row in rows) for rows in tables}) == 1
    height = tall[1] + tall[0] * max(map(len, tables))
    names = max(wide[1], LETTER * max(len(row.label) for rows in tables for row in rows))
    panel = (wide[0] if alike else wide[0] + names, height)
    return grid(plt, len(tables), panel, (names if alike else 0, 0), share=alike)


def row_colour(row: Row, encoders: Sequence[str]) -> str:
    return BLUE if row.name in encoders else ORANGE if row.name in BASELINE_ROWS else LINES["untrained"]


def _intervals(axis: Any, result: TaskResult) -> None:
    main = result.task.main
    for y, row in enumerate(result.rows):
        found = row.metrics.get(main)
        if found and np.isfinite(found.value):
            colour = row_colour(row, result.encoders)
            axis.plot([found.low, found.high], [y, y], color=colour, lw=2)
            axis.plot(found.value, y, "o", color=colour, ms=5)
        if found and row.name == "mean":
            axis.axvline(found.value, color=GREY, lw=0.8, ls="--", zorder=0)
    label_rows(axis, result.task, result.rows)


def label_rows(axis: Any, task: Task, rows: Sequence[Row]) -> None:
    """Names of the rows from above downwards, title and direction of the main metric."""
    axis.set_yticks(range(len(rows)), [row.label for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set(title=task.title, xlabel=f"{main_title(task)} ({direction(task)})")


def _roc(plt: Any, outcome: Outcome) -> Any:
    """A panel a class (one for two classes): out-of-fold ROC of each row that ranks."""
    result, target, predicted = outcome.result, outcome.windows.target, outcome.predicted
    names, columns = result.classes, predicted["mean"].shape[1]
    hot = classes.one_hot(target, len(names))
    figure, axes = plt.subplots(
        1, columns, figsize=(0.6 + 4.6 * columns, 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for k, axis in enumerate(axes[0]):
        positive = names[1] if columns == 1 else names[k]
        axis.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", zorder=0)
        for row in _shown(result):
            name = row.name
            score = classes.evidence(predicted[name], predicted["mean"])[:, k]
            false, true = roc_points(hot[:, k], score)
            text = row.label + (f": {with_interval(row.metrics['auroc'])}" if columns == 1 else "")
            width = 2.2 if name in result.encoders else 1.4
            axis.plot(false, true, color=LINES.get(name, INK), lw=width, label=text)
        count = int(hot[:, k].sum())
        axis.set(
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.01),
            aspect="equal",
            xlabel="false positive rate",
            title=f"{positive}: {count} of {len(target)} windows",
        )
        axis.legend(frameon=False, loc="lower right", fontsize=8, title="AUROC" if columns == 1 else None)
    axes[0, 0].set_ylabel("true positive rate, out of fold")
    figure.suptitle(result.task.title, fontsize=11)
    return figure


def roc_points(hot: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates from (0, 0) to (1, 1); windows of equal score are one step."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))
    true, false = np.cumsum(hot[order])[last], np.cumsum(~hot[order])[last]
    return np.append(0, false / max(false[-1], 1)), np.append(0, true / max(true[-1], 1))


def subject_colours(subject: np.ndarray) -> np.ndarray:
    """A colour a subject; neighbours in the sorted list are far apart on the wheel."""
    import matplotlib

    _, group = np.unique(subject, return_inverse=True)
    return np.asarray(matplotlib.colormaps["turbo"](0.1 + 0.82 * ((group * 0.618034) % 1)))


def _shown(result: TaskResult) -> list[Row]:
    return [row for row in result.rows if row.metrics and row.name != "mean"]


def _predicted(plt: Any, outcome: Outcome) -> Any:
    result, target, predicted = outcome.result, outcome.windows.target, outcome.predicted
    rows, unit, subject = _shown(result), result.task.unit, outcome.windows.subject
    columns = 2 if len(rows) > 1 else 1
    figure, axes = plt.subplots(
        -(-len(rows) // columns),
        columns,
        figsize=(4.4 * columns, 4.3 * -(-len(rows) // columns)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    values = np.concatenate([target, *(predicted[row.name] for row in rows)])
    low, high = np.percentile(values, [0.2, 99.8])
    low, high = min(low, target.min()), max(high, target.max())
    margin, colours = 0.05 * (high - low), subject_colours(subject)
    for axis, row in zip(axes.flat, rows, strict=False):
        y = predicted[row.name]
        outside = int(np.sum((y < low - margin) | (y > high + margin)))
        axis.plot([low, high], [low, high], color=GREY, lw=1, zorder=0)
        axis.scatter(target, y, s=11, c=colours, alpha=0.75, lw=0)
        mae = row.metrics["mae"].value
        axis.set_title(f"{row.label}: MAE {mae:.2f} {unit}" + (f", {outside} outside" if outside else ""))
        axis.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    figure.supxlabel(f"true {result.task.title.lower()}, {unit}")
    figure.supylabel(f"predicted, out of fold, {unit}")
    figure.suptitle("One dot a window, one colour a subject", fontsize=10, color=GREY)
    return figure


def _bland_altman(plt: Any, outcome: Outcome) -> Any:
    result, target, subject = outcome.result, outcome.windows.target, outcome.windows.subject
    predicted, unit = outcome.predicted[result.encoders[0]], result.task.unit
    bias, low, high = bland_altman(target, predicted)
    figure, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    mean = (target + predicted) / 2
    axis.scatter(mean, predicted - target, s=12, c=subject_colours(subject), alpha=0.75, lw=0)
    for value, text, dash in (
        (bias, "bias", "-"),
        (low, "−1.96 SD", "--"),
        (high, "+1.96 SD", "--"),
    ):
        axis.axhline(value, color=INK, lw=1, ls=dash)
        axis.annotate(
            f"{text}\n{value:+.2f}",
            (1.01, value),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
        )
    axis.set(
        xlabel=f"mean of true and predicted, {unit}",
        ylabel=f"predicted − true, {unit}",
        title=f"Bland–Altman, this encoder ({result.task.title.lower()})",
    )
    return figure


def _subjects(plt: Any, outcome: Outcome) -> Any:
    """Bars of the encoder's MAE, worst last, with the handcrafted and mean rows as marks."""
    unit, by_subject = outcome.result.task.unit, outcome.result.per_subject_mae or {}
    errors = by_subject[outcome.result.encoders[0]]
    names = sorted(errors, key=lambda s: errors[s])
    x, width = np.arange(len(names)), min(max(6.0, 0.22 * len(names) + 2), 18)
    figure, axis = plt.subplots(figsize=(width, 4.2), layout="constrained")
    axis.bar(x, [errors[n] for n in names], color=BLUE, alpha=0.8, label="this encoder")
    for row, marker, colour in (("handcrafted", "o", ORANGE), ("mean", "_", INK)):
        if row in by_subject:
            label = {"handcrafted": "handcrafted features", "mean": "predict the mean"}[row]
            axis.plot(x, [by_subject[row][n] for n in names], marker, color=colour, ms=5, label=label)
    few = len(names) <= 60
    axis.set_xticks(x if few else [], [n[:6] for n in names] if few else [], rotation=90, fontsize=7)
    axis.set(
        ylabel=f"MAE, {unit}", title=f"Error of each of {len(names)} subjects", xlim=(-0.7, len(names) - 0.3)
    )
    axis.legend(frameon=False, loc="upper left")
    return figure
