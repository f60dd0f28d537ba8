"""Pictures of an evaluation: of numbers predicted against true, Bland–Altman, error of each subject; of
classes ROC curves; of a comparison intervals side by side.
"""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluation import classes
from finetune.metrics import bland_altman
from finetune.reports import report

INK, GREY, BLUE, ORANGE = "#1b1f24", "#9aa4b0", "#1f6feb", "#d9730d"
LINES = {"encoder": BLUE, "untrained": "#7fb0f5", "handcrafted": ORANGE, "demographics": "#4c9a52"}
BASELINE_ROWS = ("handcrafted", "demographics", "mean")
STYLE: Any = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "axes.labelcolor": INK, "text.color": INK, "axes.titlesize": 11, "axes.titlelocation": "left",
}  # fmt: skip


def draw_all(
    results: dict[str, Any],
    target: np.ndarray,
    subject: np.ndarray,
    predicted: dict[str, np.ndarray],
    folder: Path,
) -> None:
    """Write roc.png, or predicted.png, bland_altman.png and subjects.png, into `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        if results["task"]["kind"] != "regression":
            _save(plt, _roc(plt, results, target, predicted), folder / "roc.png")
            return
        _save(plt, _predicted(plt, results, target, subject, predicted), folder / "predicted.png")
        _save(
            plt,
            _bland_altman(plt, results, target, subject, predicted["encoder"]),
            folder / "bland_altman.png",
        )
        _save(plt, _subjects(plt, results), folder / "subjects.png")


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def draw_intervals(tables: list[dict[str, Any]], path: Path) -> None:
    """One panel a task: each row's main metric with its 95 % interval; encoders in blue, their untrained
    twins pale, baselines in orange.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        columns, rows = min(3, len(tables)), -(-len(tables) // 3)
        tall = 1.1 + 0.27 * max(len(t["rows"]) for t in tables)
        figure, axes = plt.subplots(
            rows, columns, figsize=(2.2 + 3.3 * columns, tall * rows), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axis, table in zip(axes.flat, tables, strict=False):
            _intervals(axis, table)
        for axis in axes.flat[len(tables) :]:
            axis.axis("off")
        _save(plt, figure, path)


def _intervals(axis: Any, table: dict[str, Any]) -> None:
    main, title, lower = report.main_of(table["task"])
    labels = [row["label"] for row in table["rows"]]
    for y, row in enumerate(table["rows"]):
        found = row["metrics"].get(main)
        if found and np.isfinite(found["value"]):
            own = row["name"] in table["differences"]
            colour = BLUE if own else ORANGE if row["name"] in BASELINE_ROWS else LINES["untrained"]
            axis.plot([found["low"], found["high"]], [y, y], color=colour, lw=2)
            axis.plot(found["value"], y, "o", color=colour, ms=5)
    for row in table["rows"]:
        if row["name"] == "mean" and main in row["metrics"]:
            axis.axvline(row["metrics"][main]["value"], color=GREY, lw=0.8, ls="--", zorder=0)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set(title=table["task"]["title"], xlabel=f"{title} ({'lower' if lower else 'higher'} is better)")


def _roc(plt: Any, results: dict[str, Any], target: np.ndarray, predicted: dict[str, np.ndarray]) -> Any:
    """A panel a class (one for two classes): out-of-fold ROC of each row that ranks."""
    names, columns = results["task"]["classes"], predicted["mean"].shape[1]
    hot = classes.one_hot(target, len(names))
    figure, axes = plt.subplots(
        1, columns, figsize=(0.6 + 4.6 * columns, 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for k, axis in enumerate(axes[0]):
        positive = names[1] if columns == 1 else names[k]
        axis.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", zorder=0)
        for row in _shown(results):
            name = row["name"]
            score = classes.evidence(predicted[name], predicted["mean"])[:, k]
            false, true = roc_points(hot[:, k], score)
            found = row["metrics"]["auroc"]
            text = f"{row['label']}" + (f": {report.with_interval(found)}" if columns == 1 else "")
            axis.plot(
                false, true, color=LINES.get(name, INK), lw=2.2 if name == "encoder" else 1.4, label=text
            )
        count = int(hot[:, k].sum())
        axis.set(
            xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel="false positive rate",
            title=f"{positive}: {count} of {len(target)} windows",
        )  # fmt: skip
        axis.legend(frameon=False, loc="lower right", fontsize=8, title="AUROC" if columns == 1 else None)
    axes[0, 0].set_ylabel("true positive rate, out of fold")
    figure.suptitle(results["task"]["title"], fontsize=11)
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
    margin, colours = 0.05 * (high - low), subject_colours(subject)
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
    axis.scatter(mean, predicted - target, s=12, c=subject_colours(subject), alpha=0.75, lw=0)
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
