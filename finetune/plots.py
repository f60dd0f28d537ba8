"""Three pictures of an evaluation: predicted against true, Bland–Altman, error of each subject."""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from pathlib import Path
from typing import Any

import numpy as np

from finetune.metrics import bland_altman

INK, GREY, BLUE, ORANGE = "#1b1f24", "#9aa4b0", "#1f6feb", "#d9730d"


def draw_all(
    results: dict[str, Any],
    target: np.ndarray,
    subject: np.ndarray,
    predicted: dict[str, np.ndarray],
    folder: Path,
) -> None:
    """Write predicted.png, bland_altman.png and subjects.png into `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
        "axes.labelcolor": INK, "text.color": INK, "axes.titlesize": 11, "axes.titlelocation": "left",
    }  # fmt: skip
    with plt.rc_context(style):
        for name, figure in (
            ("predicted", _predicted(plt, results, target, subject, predicted)),
            ("bland_altman", _bland_altman(plt, results, target, subject, predicted["encoder"])),
            ("subjects", _subjects(plt, results)),
        ):
            figure.savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
            plt.close(figure)


def _colours(plt: Any, subject: np.ndarray) -> np.ndarray:
    """A colour a subject; neighbours in the sorted list are far apart on the wheel."""
    _, group = np.unique(subject, return_inverse=True)
    return np.asarray(plt.get_cmap("turbo")(0.05 + 0.9 * ((group * 0.618034) % 1)))


def _shown(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if row["metrics"] and row["name"] != "mean"]


def _predicted(
    plt: Any,
    results: dict[str, Any],
    target: np.ndarray,
    subject: np.ndarray,
    predicted: dict[str, np.ndarray],
) -> Any:
    rows, unit = _shown(results), results["task"]["unit"]
    columns = 2 if len(rows) > 1 else 1
    figure, axes = plt.subplots(
        -(-len(rows) // columns), columns, figsize=(4.4 * columns, 4.3 * -(-len(rows) // columns)),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    values = np.concatenate([target, *(predicted[row["name"]] for row in rows)])
    low, high = np.percentile(values, [0.2, 99.8])
    low, high = min(low, target.min()), max(high, target.max())
    margin, colours = 0.05 * (high - low), _colours(plt, subject)
    for axis, row in zip(axes.flat, rows, strict=False):
        y = predicted[row["name"]]
        outside = int(np.sum((y < low - margin) | (y > high + margin)))
        axis.plot([low, high], [low, high], color=GREY, lw=1, zorder=0)
        axis.scatter(target, y, s=11, c=colours, alpha=0.75, lw=0)
        mae = row["metrics"]["mae"]["value"]
        axis.set_title(f"{row['label']}: MAE {mae:.2f} {unit}" + (f", {outside} outside" if outside else ""))
        axis.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    figure.supxlabel(f"true {results['task']['title'].lower()}, {unit}")
    figure.supylabel(f"predicted, out of fold, {unit}")
    figure.suptitle("One dot a window, one colour a subject", fontsize=10, color=GREY)
    return figure


def _bland_altman(
    plt: Any, results: dict[str, Any], target: np.ndarray, subject: np.ndarray, predicted: np.ndarray
) -> Any:
    unit = results["task"]["unit"]
    bias, low, high = bland_altman(target, predicted)
    figure, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    mean = (target + predicted) / 2
    axis.scatter(mean, predicted - target, s=12, c=_colours(plt, subject), alpha=0.75, lw=0)
    for value, text, dash in (
        (bias, "bias", "-"), (low, "−1.96 SD", "--"), (high, "+1.96 SD", "--"),
    ):  # fmt: skip
        axis.axhline(value, color=INK, lw=1, ls=dash)
        axis.annotate(
            f"{text}\n{value:+.2f}", (1.01, value), xycoords=("axes fraction", "data"),
            va="center", fontsize=9,
        )  # fmt: skip
    axis.set(
        xlabel=f"mean of true and predicted, {unit}",
        ylabel=f"predicted − true, {unit}",
        title=f"Bland–Altman, this encoder ({results['task']['title'].lower()})",
    )
    return figure


def _subjects(plt: Any, results: dict[str, Any]) -> Any:
    """Bars of the encoder's MAE, worst last, with the handcrafted and mean rows as marks."""
    unit, by_subject = results["task"]["unit"], results["per_subject_mae"]
    names = sorted(by_subject["encoder"], key=lambda s: by_subject["encoder"][s])
    x, width = np.arange(len(names)), min(max(6.0, 0.22 * len(names) + 2), 18)
    figure, axis = plt.subplots(figsize=(width, 4.2), layout="constrained")
    axis.bar(x, [by_subject["encoder"][n] for n in names], color=BLUE, alpha=0.8, label="this encoder")
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
