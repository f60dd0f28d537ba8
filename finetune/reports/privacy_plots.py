"""Pictures of a privacy card: rank-1 against N, and waveforms beside what a decoder made of their vectors."""

from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluation.inversion import pearson
from finetune.reports.plots import BLUE, GREY, INK, ORANGE

COLOURS = {"encoder": BLUE, "untrained": GREY, "handcrafted": ORANGE, "raw": "#2da44e"}
SHOWN = ((100, "best subject"), (67, "upper third"), (33, "lower third"), (0, "worst subject"))
STYLE: dict[str, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "axes.labelcolor": INK, "text.color": INK, "axes.titlesize": 10, "axes.titlelocation": "left",
}  # fmt: skip


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def rank(results: dict[str, Any], curves: dict[str, np.ndarray], path: Path) -> None:
    """Rank-1 against N, a line a kind of vector, with the encoder's interval and the chance line."""
    plt = _pyplot()
    labels = {row["name"]: row["label"] for row in results["identification"]["rows"]}
    who = "subjects" if results["corpus"]["subjects_published"] else "records"
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8.6, 4.6), layout="constrained")
        for name, (n, value, low, high) in ((name, curve.T) for name, curve in curves.items()):
            main = name == "encoder"
            axis.fill_between(
                n, 100 * low, 100 * high, color=COLOURS[name], alpha=0.22 if main else 0.08, lw=0
            )
            width, order = (2.4, 3) if main else (1.4, 2)
            axis.plot(n, 100 * value, color=COLOURS[name], lw=width, label=labels[name], zorder=order)
        n = curves["encoder"][:, 0]
        axis.plot(n, 100 / n, color=INK, lw=1, ls="--", label="chance, 1/N")
        axis.set_xscale("log")
        ticks = [t for t in results["identification"]["sizes"] if t <= n[-1]]
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.set(
            xlabel=f"N, {who} in the gallery", ylabel="rank-1, % of probes", ylim=(0, 102),
            title=f"Whose vector is it? Windows of {results['protocol']['window_s']:g} s; bands: 95 %",
        )  # fmt: skip
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def typical(r_n: np.ndarray, subject_n: np.ndarray) -> list[tuple[str, int]]:
    """(caption, window) of four subjects, by their mean r from best to worst: of each the window whose r is
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


def inversion(parts: dict[str, dict[str, Any]], subject_n: np.ndarray, modality: str, path: Path) -> None:
    """Waveform and spectrum of four held-out subjects beside what the decoders made of their vectors."""
    plt = _pyplot()
    wave = parts["waveform"]
    best = max(wave["found"].decoded, key=lambda name: wave["table"]["rows"][name]["r"]["value"])
    rows = typical(pearson(wave["truth"], wave["found"].decoded[best]), subject_n)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows), 2, figsize=(11, 2.1 * len(rows) + 0.8), squeeze=False, layout="constrained",
            width_ratios=(1.7, 1), sharex="col",
        )  # fmt: skip
        for line, (caption, window) in zip(axes, rows, strict=True):
            for axis, name in zip(line, ("waveform", "spectrum"), strict=True):
                part = parts[name]
                axis.plot(part["axis"], part["truth"][window], color=INK, lw=1.3, label="true")
                for kind, colour in (("ridge", ORANGE), ("network", BLUE)):
                    axis.plot(
                        part["axis"], part["found"].decoded[kind][window], color=colour, lw=1.3, label=kind
                    )
                axis.plot(
                    part["axis"],
                    part["found"].mean[window],
                    color=GREY,
                    lw=1,
                    ls="--",
                    label="mean of training",
                )
                values = ", ".join(
                    f"{kind} {pearson(part['truth'][[window]], found[[window]])[0]:.2f}"
                    for kind, found in part["found"].decoded.items()
                )
                axis.set_title(f"{caption + ': ' if name == 'waveform' else ''}r = {values}")
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside upper right"
        )
        axes[-1, 0].set_xlabel("s")
        axes[-1, 1].set_xlabel("Hz")
        figure.supylabel(f"{modality.upper()}, SDs of the window  |  log10 amplitude", fontsize=9)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)
