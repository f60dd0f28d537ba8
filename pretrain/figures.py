"""Figures of the methods' behaviour, drawn at validation; matplotlib is imported only then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

_SHOWN = 4  # windows, or patches, in a figure


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def masks(
    x_bct: Tensor,
    prior_bn: Tensor,
    mask_bn: Tensor,
    hit_bn: Tensor,
    logits_bn: Tensor,
    patch: int,
    rate: float,
) -> Figure:
    """The first windows: the signal with hidden patches shaded (green: predicted correctly, red: not), the
    prior, and the probability of being drawn first."""
    from matplotlib.figure import Figure

    n = min(_SHOWN, len(x_bct))
    figure = Figure(figsize=(12, 2.2 * n), layout="constrained")
    axes = figure.subplots(n, 1, squeeze=False)[:, 0]
    x, prior, hit = _array(x_bct[:n, 0]), _array(prior_bn[:n]), _array(hit_bn[:n])
    mask, p = mask_bn[:n].cpu().numpy(), _array(logits_bn[:n].softmax(dim=1))
    seconds = patch / rate
    middle = (np.arange(prior.shape[1]) + 0.5) * seconds
    for i, axis in enumerate(axes):
        low, span = x[i].min(), max(float(np.ptp(x[i])), 1e-12)
        axis.plot(np.arange(x.shape[1]) / rate, (x[i] - low) / span, lw=0.5, color="0.3")
        for j in np.flatnonzero(mask[i]):
            colour = "tab:green" if hit[i, j] else "tab:red"
            axis.axvspan(j * seconds, (j + 1) * seconds, color=colour, alpha=0.25, lw=0)
        axis.plot(middle, prior[i], color="tab:blue", lw=1, label="prior")
        axis.plot(middle, p[i] / p[i].max(), color="tab:orange", lw=1, label="draw probability / its maximum")
        axis.set(xlim=(0, prior.shape[1] * seconds), ylim=(-0.05, 1.05), ylabel="[0, 1]")
    axes[0].legend(loc="upper right", fontsize=7, ncols=2)
    axes[0].set_title("hidden patches: green = code guessed right, red = wrong", fontsize=9)
    axes[-1].set_xlabel("s")
    return figure


def spectra(x_bct: Tensor, amplitude_bnp: Tensor, guess_bnp: Tensor, patch: int, rate: float) -> Figure:
    """Patches of the first windows: the waveform, and the standardised spectrum with the decoder's."""
    from matplotlib.figure import Figure

    n = min(_SHOWN, len(x_bct))
    figure = Figure(figsize=(12, 2.2 * n), layout="constrained")
    axes = figure.subplots(n, 2, squeeze=False)
    x, true, guess = _array(x_bct[:n, 0]), _array(amplitude_bnp[:n]), _array(guess_bnp[:n])
    half = patch // 2  # the other half mirrors it
    frequency = np.arange(half) * rate / patch
    for i in range(n):
        j = (i + 1) * true.shape[1] // (n + 1)
        axes[i, 0].plot(np.arange(patch) / rate, x[i, j * patch : (j + 1) * patch], lw=1, color="0.3")
        axes[i, 1].plot(frequency, true[i, j, :half], lw=1, color="0.3", label="signal")
        axes[i, 1].plot(frequency, guess[i, j, :half], lw=1, color="tab:orange", label="from its code")
        axes[i, 0].set_ylabel(f"window {i}, patch {j}", fontsize=7)
    axes[0, 1].legend(fontsize=7)
    axes[0, 0].set_title("band-passed signal", fontsize=9)
    axes[0, 1].set_title("FFT amplitude, standardised", fontsize=9)
    axes[-1, 0].set_xlabel("s")
    axes[-1, 1].set_xlabel("Hz")
    return figure


def reconstruction(
    clean: Mapping[str, Tensor],
    out: Mapping[str, Mapping[str, Tensor]],
    hidden: Mapping[str, Tensor],
    has: Mapping[str, Tensor],
    rate: float,
) -> Figure:
    """The first windows with all modalities (any windows, if none has all): each signal (B, N, P) with hidden
    patches shaded, its reconstruction from the visible patches of both, and from the other signal alone."""
    from matplotlib.figure import Figure

    both = torch.stack(list(has.values())).all(dim=0)
    rows = (both if both.any() else torch.ones_like(both)).nonzero()[:_SHOWN, 0].tolist()
    figure = Figure(figsize=(7 * len(clean), 2.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(clean), squeeze=False, sharex=True)
    for column, (name, x) in enumerate(clean.items()):
        seconds = x.shape[2] / rate
        time = np.arange(x.shape[1] * x.shape[2]) / rate
        for axis, row in zip(axes[:, column], rows, strict=True):
            axis.plot(time, _array(x[row]).ravel(), lw=0.8, color="0.3", label="true")
            for key, label in (("joint", "from what is shown of both"), ("cross", "from the other alone")):
                axis.plot(time, _array(out[key][name][row]).ravel(), lw=0.8, label=label)
            for j in np.flatnonzero(hidden[name][row].cpu().numpy()):
                axis.axvspan(j * seconds, (j + 1) * seconds, color="0.85", lw=0)
        axes[0, column].set_title(f"{name.upper()} (shaded: hidden)", fontsize=9)
        axes[-1, column].set_xlabel("s")
    axes[0, 0].legend(fontsize=7, loc="upper right", ncols=3)
    return figure


def retrieval(a_nd: Tensor, b_nd: Tensor, names: tuple[str, str], size: int) -> Figure:
    """Cosines of the first ``size`` unit rows of two sides: the matrix of all a and b, and histograms for
    pairs and for other combinations."""
    from matplotlib.figure import Figure

    cosine = _array(a_nd[:size] @ b_nd[:size].T)
    paired = np.eye(len(cosine), dtype=bool)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = left.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1)
    left.set(xlabel=f"{names[1]}, window", ylabel=f"{names[0]}, window", title="cosine")
    figure.colorbar(shown, ax=left)
    bins = np.linspace(-1, 1, 41)
    for part, label in ((cosine[~paired], "other windows"), (cosine[paired], "pairs")):
        if len(part):
            right.hist(part, bins, density=True, alpha=0.6, label=label)
    right.set(xlabel="cosine", ylabel="density")
    right.legend()
    return figure
