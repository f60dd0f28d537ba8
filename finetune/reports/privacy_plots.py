"""Pictures of a privacy card: rank-1 against N, and waveforms beside what decoders made of their vectors."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from finetune.evaluation.inversion import Inversion, pearson
from finetune.evaluation.privacy import PrivacyOutcome
from finetune.reports.plots import BLUE, GREY, INK, ORANGE, drawing
from finetune.reports.sheet import Picture

COLOURS = {"encoder": BLUE, "untrained": GREY, "handcrafted": ORANGE, "raw": "#2da44e"}
DECODERS = {"ridge": ORANGE, "network": BLUE}
SHOWN = ((100, "best subject"), (67, "upper third"), (33, "lower third"), (0, "worst subject"))


def rank_picture(outcome: PrivacyOutcome, who: str) -> Picture:
    """Rank-1 against N, a line a kind of vector, with intervals and the chance line. `who`: "subjects" or
    "records".
    """
    draw = partial(_rank, outcome=outcome, who=who)
    return Picture("plots/rank.png", "Rank-1 against N", drawing(draw))


def _rank(plt: Any, outcome: PrivacyOutcome, who: str) -> Any:
    found, curves = outcome.result.identification, outcome.curves
    labels = {row.name: row.label for row in found.rows}
    figure, axis = plt.subplots(figsize=(8.6, 4.6), layout="constrained")
    for name, curve in curves.items():
        (n, value, low, high), colour = curve.T, COLOURS[name]
        shade, width, order = (0.22, 2.4, 3) if name == "encoder" else (0.08, 1.4, 2)
        axis.fill_between(n, 100 * low, 100 * high, color=colour, alpha=shade, lw=0)
        axis.plot(n, 100 * value, color=colour, lw=width, label=labels[name], zorder=order)
    n = curves["encoder"][:, 0]
    axis.plot(n, 100 / n, color=INK, lw=1, ls="--", label="chance, 1/N")
    axis.set_xscale("log")
    axis.set_xticks(found.sizes, [str(size) for size in found.sizes])
    axis.minorticks_off()
    axis.set(xlabel=f"N, {who} in the gallery", ylabel="rank-1, % of probes", ylim=(0, 102))
    axis.set_title(f"Whose vector is it? Windows of {outcome.result.protocol.window_s:g} s; bands: 95 %")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def inversion_picture(outcome: PrivacyOutcome, modality: str) -> Picture:
    """Waveform and spectrum of four held-out subjects beside what the decoders made of their vectors."""
    draw = partial(
        _inversion,
        parts=outcome.inverted[modality],
        subject_n=outcome.subject,
        modality=modality,
    )
    caption = f"{modality.upper()}: true and recovered"
    return Picture(f"plots/inversion_{modality}.png", caption, drawing(draw), private=True)


def _inversion(plt: Any, parts: Mapping[str, Inversion], subject_n: np.ndarray, modality: str) -> Any:
    wave = parts["waveform"]
    rows = typical(pearson(wave.truth, wave.found.decoded[wave.result.best]), subject_n)
    size = (11, 2.1 * len(rows) + 0.8)
    figure, axes = plt.subplots(
        len(rows), 2, figsize=size, squeeze=False, layout="constrained", width_ratios=(1.7, 1), sharex="col"
    )
    for (left, right), (caption, window) in zip(axes, rows, strict=True):
        left.set_title(f"{caption}: {_window(left, parts['waveform'], window)}", fontsize=10)
        right.set_title(_window(right, parts["spectrum"], window), fontsize=10)
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, frameon=False, ncols=4, loc="outside upper right")
    axes[-1, 0].set_xlabel("s")
    axes[-1, 1].set_xlabel("Hz")
    figure.supylabel(f"{modality.upper()}, SDs of the window  |  log10 amplitude", fontsize=9)
    return figure


def _window(axis: Any, part: Inversion, window: int) -> str:
    """Draw one window, true and decoded; its correlations as text."""
    axis.plot(part.axis, part.truth[window], color=INK, lw=1.3, label="true")
    values = []
    for name, colour in DECODERS.items():
        decoded = part.found.decoded[name]
        axis.plot(part.axis, decoded[window], color=colour, lw=1.3, label=name)
        values.append(f"{name} {pearson(part.truth[[window]], decoded[[window]])[0]:.2f}")
    axis.plot(part.axis, part.found.mean[window], color=GREY, lw=1, ls="--", label="mean of training")
    return f"r = {', '.join(values)}"


def typical(r_n: np.ndarray, subject_n: np.ndarray) -> list[tuple[str, int]]:
    """(caption, window) of four subjects, from the best mean r to the worst: of each the window whose r is
    nearest to that mean, so that none is picked for its looks.
    """
    names, group = np.unique(subject_n, return_inverse=True)
    mean = np.bincount(group, weights=r_n) / np.bincount(group)
    order = np.argsort(mean)
    picked, seen = [], set()
    for share, caption in SHOWN:
        which = int(order[round(share / 100 * (len(names) - 1))])
        if which in seen:
            continue
        seen.add(which)
        mine = np.flatnonzero(group == which)
        picked.append((caption, int(mine[np.argmin(np.abs(r_n[mine] - mean[which]))])))
    return picked
