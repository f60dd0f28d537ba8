"""Pictures of the report page: small panels that a page lays out beside each other, one below the other on a
phone. Rows keep their colour in all of them.
"""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy.stats import norm

from finetune.evaluation import chapters, classes, maps
from finetune.evaluation.results import TaskResult
from finetune.evaluation.table import Outcome
from finetune.metrics import bland_altman
from finetune.pagekit.parts import Group, Panel
from finetune.pagekit.svg import BOTH, HANDCRAFTED, INK, MID, PEOPLE, RULE, SERIES, inline, panel
from finetune.reports import plots
from finetune.reports.figures import direction, main_title, number

RASTER = 400  # dots above which a cloud is a picture inside the picture
BINS = 10
BASELINES = {"handcrafted": HANDCRAFTED, "demographics": PEOPLE, "demographics + handcrafted": BOTH}


READ = {  # below the heading of each group of pictures
    "calibration": "One dot a prediction, one colour a subject. Joined dots: the mean truth of each tenth of "
    "the predictions; on the diagonal, a prediction can be taken at its word.",
    "reliability": "On the diagonal, a probability can be taken at its word. ROC: how windows are ranked.",
    "agreement": "One dot a prediction, one colour a subject. Solid: bias; dashed: 95 % limits of agreement.",
    "reference": "What a small mean error hides: high pressures read too low and low ones too high.",
    "labels": "One dot a label, larger where more subjects have it. To the right: ranked better; upwards: "
    "further from what shuffled labels reach. Filled: above what the best of all labels reaches by chance.",
    "map": "First two principal components of the standardised vectors. Where subjects, not targets, lie "
    "together, the vectors tell who it is.",
}


def groups(outcome: Outcome) -> list[Group]:
    """Every group of pictures that a task has."""
    result = outcome.result
    found = []
    curve = few_shot(result)
    if curve is not None:
        found.append(Group("Few labelled subjects", "", [curve], "wide"))
    if result.task.kind == "regression":
        found.append(Group("Calibration", READ["calibration"], [*truth(outcome)]))
        found.append(Group("Bland–Altman", READ["agreement"], [*agreement(outcome)]))
        errors = [*pressure_errors(outcome)]
        found.append(Group("Error against the reference", READ["reference"], errors))
    elif result.task.kind in ("binary", "multi-class"):
        found.append(Group("Calibration and ranking", READ["reliability"], [*reliability(outcome)]))
    elif result.task.kind == "multi-label":
        found.append(Group("Labels and chance", READ["labels"], [*labels(outcome)]))
    found.append(Group("Embedding map", READ["map"], [*embedding(outcome)], "pairs"))
    return [group for group in found if group.panels]


def row_colours(result: TaskResult) -> dict[str, str]:
    """{row: colour} of encoders and of the baselines that say something."""
    encoders = {name: SERIES[i % len(SERIES)] for i, name in enumerate(result.encoders)}
    return encoders | {name: colour for name, colour in BASELINES.items() if name in result.labels}


def _cloud(axis: Any, x: np.ndarray, y: np.ndarray, colours: Any, size: float = 9, **more: Any) -> Any:
    return axis.scatter(x, y, s=size, c=colours, alpha=0.75, lw=0, rasterized=len(x) > RASTER, **more)


# ---------------------------------------------------------------- labels


def labels(outcome: Outcome) -> Iterator[Panel]:
    """Of each encoder: AUROC of every label against −log10 of its p, from the normal curve through the band
    that shuffled labels reach.
    """
    result = outcome.result
    for name in result.encoders:
        chance = result.chance.get(name)
        scores = [s for s in (result.per_label or {}).get(name, ()) if s.chance and s.chance[1] > s.chance[0]]
        if chance is None or not scores:
            continue
        found = set(chapters.found(scores, chance))
        x = np.array([s.auroc.value for s in scores])
        low, high = np.array([s.chance for s in scores]).T
        y = -norm.logsf((x - (low + high) / 2) / ((high - low) / (2 * norm.ppf(0.975)))) / np.log(10)
        size = 6 + 40 * np.sqrt([s.positives for s in scores]) / max(
            1, np.sqrt(max(s.positives for s in scores))
        )
        colour = row_colours(result)[name]
        with panel() as (figure, axis):
            inside = np.array([s.label in found for s in scores])
            axis.scatter(x[~inside], y[~inside], s=size[~inside], facecolors="none", edgecolors=MID, lw=0.8)
            axis.scatter(x[inside], y[inside], s=size[inside], c=colour, lw=0, alpha=0.85)
            axis.axvline(0.5, color=RULE, lw=0.8, zorder=0)
            axis.axvline(chance.bound, color=INK, lw=0.8, ls="--", zorder=0)
            for k in apart(x, y, [k for k in np.argsort(-y) if inside[k]]):
                style = {"xytext": (-5, -2.5), "textcoords": "offset points", "ha": "right", "fontsize": 7}
                axis.annotate(scores[k].label, (x[k], y[k]), **style)
            axis.set(xlabel="AUROC", ylabel="−log10 p")
            picture = inline(figure, f"Labels and chance of {result.task.name}, {result.labels[name]}")
        note = f"{len(found)} of {len(scores)} labels beyond the dashed line, {number(chance.bound)}."
        yield Panel(result.labels[name], picture, note)


def apart(x: np.ndarray, y: np.ndarray, order: Sequence[int]) -> list[int]:
    """Of the dots in `order` those whose names do not meet that of one before: 4 % of the height apart, or
    12 % of the width.
    """
    wide, tall = 0.12 * max(float(np.ptp(x)), 1e-9), 0.04 * max(float(np.ptp(y)), 1e-9)
    named: list[int] = []
    for k in order:
        if all(abs(x[k] - x[j]) > wide or abs(y[k] - y[j]) > tall for j in named):
            named.append(k)
    return named


# ---------------------------------------------------------------- numbers


def agreement(outcome: Outcome) -> Iterator[Panel]:
    """Of each encoder: Bland–Altman, with bias and limits of agreement."""
    result, target, predicted = outcome.result, outcome.windows.target, outcome.predicted
    unit, colours = result.task.unit, plots.subject_colours(outcome.windows.subject)
    for name in result.encoders:
        label, error = result.labels[name], predicted[name] - target
        bias, low, high = bland_altman(target, predicted[name])
        with panel() as (figure, axis):
            _cloud(axis, (target + predicted[name]) / 2, error, colours)
            axis.axhline(0, color=RULE, lw=0.8, zorder=0)
            for value, dash in ((bias, "-"), (low, "--"), (high, "--")):
                axis.axhline(value, color=INK, lw=1, ls=dash)
                axis.annotate(
                    f"{value:+.1f}".replace("-", "−"),
                    (1, value),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize=8,
                    xytext=(0, 1.5),
                    textcoords="offset points",
                )
            axis.set(xlabel=f"mean of true and predicted, {unit}", ylabel=f"predicted − true, {unit}")
            picture = inline(figure, f"Bland–Altman of {result.task.name}, {label}")
        note = f"Bias {bias:+.2f}, 95 % limits of agreement {low:+.1f} to {high:+.1f} {unit}."
        yield Panel(label, picture, note)


def truth(outcome: Outcome) -> Iterator[Panel]:
    """Of each encoder, handcrafted features and the tracker: predicted against true, and the mean truth of
    each tenth of the predictions: on the diagonal where predictions are calibrated.
    """
    result, target, predicted = outcome.result, outcome.windows.target, outcome.predicted
    unit, colours, labels = result.task.unit, plots.subject_colours(outcome.windows.subject), result.labels
    shown = [n for n in (*result.encoders, "handcrafted", "tracker") if n in predicted]
    values = np.concatenate([target, *(predicted[n] for n in shown)])
    low, high = np.percentile(values, [0.2, 99.8])
    low, high = min(low, target.min()), max(high, target.max())
    margin = 0.04 * (high - low)
    for name in shown:
        y = predicted[name]
        outside = int(np.sum((y < low - margin) | (y > high + margin)))
        with panel() as (figure, axis):
            axis.plot([low, high], [low, high], color=RULE, lw=1, zorder=0)
            _cloud(axis, y, target, colours)
            axis.plot(*_binned(y, target), "o-", color=INK, ms=4, lw=1.2)
            axis.set(
                xlim=(low - margin, high + margin),
                ylim=(low - margin, high + margin),
                aspect="equal",
                xlabel=f"predicted, out of fold, {unit}",
                ylabel=f"true, {unit}",
            )
            picture = inline(figure, f"True against predicted {result.task.name}, {labels[name]}")
        caption = f"MAE {number(float(np.abs(y - target).mean()))} {unit}."
        yield Panel(labels[name], picture, caption + (f" {outside} outside the picture." if outside else ""))


def _binned(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean prediction and mean truth in each of BINS equally filled bins of the prediction."""
    order = np.argsort(predicted, kind="stable")
    parts = [p for p in np.array_split(order, min(BINS, len(order))) if len(p)]
    return np.array([predicted[p].mean() for p in parts]), np.array([true[p].mean() for p in parts])


def pressure_errors(outcome: Outcome) -> Iterator[Panel]:
    """Of each encoder: error against the reference pressure, with its line of least squares."""
    result, target, predicted = outcome.result, outcome.windows.target, outcome.predicted
    unit, colours = result.task.unit, plots.subject_colours(outcome.windows.subject)
    if not result.blood_pressure:
        return
    for name in result.encoders:
        label, error = result.labels[name], predicted[name] - target
        found = result.blood_pressure[name].free
        with panel() as (figure, axis):
            axis.axhspan(-5, 5, color=RULE, alpha=0.35, lw=0, zorder=0)
            _cloud(axis, target, error, colours)
            ends = np.array([target.min(), target.max()])
            axis.plot(ends, found.me + found.slope * (ends - target.mean()), color=INK, lw=1.4)
            axis.axhline(0, color=RULE, lw=0.8, zorder=0)
            axis.set(xlabel=f"reference, {unit}", ylabel=f"predicted − reference, {unit}")
            picture = inline(figure, f"Error against reference, {result.task.name}, {label}")
        yield Panel(
            label,
            picture,
            f"{found.slope:+.2f} mmHg of error for each mmHg of reference (0: none; −1: a constant). "
            "Band: ±5 mmHg.",
        )


# ---------------------------------------------------------------- classes


def reliability(outcome: Outcome) -> Iterator[Panel]:
    """Of each class (one for two classes): observed share against predicted probability, and ROC curves."""
    from sklearn.calibration import calibration_curve

    result, target, predicted = outcome.result, outcome.windows.target, outcome.predicted
    names, columns = result.classes, predicted["mean"].shape[1]
    hot, colours, labels = classes.one_hot(target, len(names)), row_colours(result), result.labels
    shown = [n for n in colours if n in predicted]
    for k in range(columns):
        positive = names[1] if columns == 1 else names[k]
        with panel(tall=3.4) as (figure, axis):
            axis.plot([0, 1], [0, 1], color=RULE, lw=1, zorder=0)
            for name in shown:
                p = np.clip(predicted[name][:, k], 0, 1)
                seen, said = calibration_curve(hot[:, k], p, n_bins=BINS, strategy="quantile")
                axis.plot(said, seen, "o-", color=colours[name], ms=3.5, lw=1.2, label=labels[name])
            axis.set(
                xlim=(-0.02, 1.02),
                ylim=(-0.02, 1.02),
                aspect="equal",
                xlabel="predicted probability",
                ylabel="share observed",
            )
            figure.legend(loc="outside lower center", ncols=1)
            picture = inline(figure, f"Reliability of {result.task.name}, {positive}")
        yield Panel(f"{positive}: reliability", picture, "Each dot: a tenth of the windows.")
        with panel(tall=3.4) as (figure, axis):
            axis.plot([0, 1], [0, 1], color=RULE, lw=1, zorder=0)
            for name in shown:
                score = classes.evidence(predicted[name], predicted["mean"])[:, k]
                axis.plot(
                    *plots.roc_points(hot[:, k], score), color=colours[name], lw=1.3, label=labels[name]
                )
            axis.set(
                xlim=(-0.02, 1.02),
                ylim=(-0.02, 1.02),
                aspect="equal",
                xlabel="false positive rate",
                ylabel="true positive rate",
            )
            figure.legend(loc="outside lower center", ncols=1)
            picture = inline(figure, f"ROC curves of {result.task.name}, {positive}")
        yield Panel(f"{positive}: ROC", picture, f"{int(hot[:, k].sum())} of {len(target)} are positive.")


# ---------------------------------------------------------------- all tasks


def few_shot(result: TaskResult) -> Panel | None:
    """Main metric against the number of labelled subjects that were given, a line a row."""
    points = result.few_shot
    if not points:
        return None
    colours, labels = row_colours(result) | {"mean": MID}, result.labels
    x = np.array([point.subjects for point in points])
    with panel(wide=5.2, tall=3.2) as (figure, axis):
        for name, colour in colours.items():
            found = [point.rows[name] for point in points if name in point.rows]
            if len(found) < len(points):
                continue
            value, low, high = (np.array([getattr(f, k) for f in found]) for k in ("value", "low", "high"))
            encoder = name in result.encoders
            if encoder:
                axis.fill_between(x, low, high, color=colour, alpha=0.14, lw=0)
            axis.plot(x, value, "o-" if encoder else "o--", color=colour, ms=3.5, label=labels[name])
        axis.set_xscale("log")
        axis.set_xticks(x, [f"{v:g}\n{100 * p.share:g} %" for v, p in zip(x, points, strict=True)])
        axis.minorticks_off()
        axis.set(xlabel="subjects with labels, mean over folds", ylabel=main_title(result.task))
        figure.legend(loc="outside lower center", ncols=2)
        picture = inline(figure, f"Few-shot curves of {result.task.name}")
    note = f"Bands: 95 %, encoders only; {direction(result.task)}."
    return Panel("Few labelled subjects", picture, note)


def embedding(outcome: Outcome) -> Iterator[Panel]:
    """Of each encoder its first two principal components twice: coloured by target, and by subject."""
    import matplotlib

    result, target, vectors = outcome.result, outcome.windows.target, outcome.vectors
    task, subject = result.task, outcome.windows.subject
    people = plots.subject_colours(subject)
    for name in result.encoders:
        found = maps.flat(vectors[name], result.protocol.seed) if name in vectors else None
        if found is None or np.ndim(target) != 1:
            continue
        rows, places, kept = found
        label, (x, y) = result.labels[name], places.T
        note = f"{len(rows)} of {len(target)} windows." if len(rows) < len(target) else ""
        with _map_panel(kept) as (figure, axis):
            if task.kind == "retrieval":
                _cloud(axis, x, y, INK, 8)
            elif result.classes:
                for k, text in enumerate(result.classes):
                    at = places[target[rows] == k]
                    _cloud(axis, at[:, 0], at[:, 1], [SERIES[k % len(SERIES)]] * len(at), 8, label=text)
                figure.legend(loc="outside lower center", ncols=2, markerscale=1.6)
            else:
                shown = _cloud(axis, x, y, target[rows], 8, cmap=matplotlib.colormaps["viridis"])
                bar = figure.colorbar(shown, ax=axis, shrink=0.85, aspect=30, pad=0.02, label=task.unit)
                bar.outline.set_visible(False)
            picture = inline(figure, f"Map of {task.name} by target, {label}")
        yield Panel(f"{label}: {task.title.lower()}", picture, note)
        with _map_panel(kept) as (figure, axis):
            _cloud(axis, x, y, people[rows], 8)
            picture = inline(figure, f"Map of {task.name} by subject, {label}")
        count = len(set(subject[rows].tolist()))
        yield Panel(f"{label}: subject", picture, f"{count} subjects, a colour each.")


@contextmanager
def _map_panel(kept: np.ndarray) -> Iterator[tuple[Any, Any]]:
    with panel() as (figure, axis):
        axis.set(
            xticks=[],
            yticks=[],
            xlabel=f"first component, {100 * kept[0]:.0f} %",
            ylabel=f"second component, {100 * kept[1]:.0f} %",
        )
        yield figure, axis
