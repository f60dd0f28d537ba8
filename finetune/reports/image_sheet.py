"""Windows of PPG beside the images that a vision backbone sees of them: the picture, and its sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.imaging import Images, Imaging
from finetune.reports.plots import BLUE, STYLE, pyplot
from finetune.reports.sheet import Section, Sheet

CHANNELS = {
    "stft": ("log-power",),
    "complex": ("log|X|", "cos φ", "sin φ"),
    "recurrence": ("x", "Δx", "Δ²x"),
}
SHOWN_S = 8.0  # of a recurrence: beats in all of a long one are too small to see


def sheet(windows: int, made: Mapping[Any, Images], c: Imaging, out: str) -> Sheet:
    """How many windows and pixels; `made`: {transform: images}."""
    title = "Images of PPG"
    facts = (
        f"{windows} windows of {c.window_s:g} s at {c.rate:g} Hz: {_sizes(made, ', ')}",
        f"written: {out}",
    )
    sizes = {name: list(image.pixels.shape[2:]) for name, image in made.items()}
    results = {"windows": windows, "out": out, "sizes": sizes}
    return Sheet("images", title, (), (Section(title, facts=facts),), results)


def _sizes(made: Mapping[Any, Images], between: str) -> str:
    return between.join(f"{n} {i.pixels.shape[2]}x{i.pixels.shape[3]}" for n, i in made.items())


def draw(
    x: np.ndarray, names: Sequence[str], made: Mapping[Any, Images], c: Imaging, title: str, out: Path
) -> None:
    """The PNG `out`: a line a window (n, T), its name, and its images."""
    plt = pyplot()
    with plt.rc_context({**STYLE, "font.size": 8, "axes.titlesize": 9}):
        cut = c.window_s > SHOWN_S
        columns = 1 + sum(len(channels) for channels in CHANNELS.values())
        figure, axes = plt.subplots(
            len(x),
            columns,
            figsize=(2.35 * columns, 2.35 * len(x) + 0.7),
            layout="constrained",
            squeeze=False,
            width_ratios=[1.6, *[1.0] * (columns - 1)],
        )
        for row, (samples, name) in enumerate(zip(x, names, strict=True)):
            axes[row][0].plot(np.arange(len(samples)) / c.rate, samples, color=BLUE, lw=0.8)
            axes[row][0].margins(x=0)
            axes[row][0].set_ylabel(name)
            place = 1
            for transform, channels in CHANNELS.items():
                for number, channel in enumerate(channels):
                    axis = axes[row][place]
                    _image(axis, made[transform].pixels[row, number].numpy(), transform, c)
                    if row == 0:
                        part = f", first {SHOWN_S:g} s" if cut and transform == "recurrence" else ""
                        axis.set_title(f"{transform}: {channel}{part}" if number == 0 else channel)
                    if number:
                        axis.set_yticklabels([])
                    place += 1
            if row == 0:
                axes[0][0].set_title("prepared PPG")
            for axis in axes[row]:
                axis.set_xlabel("seconds" if row == len(x) - 1 else "")
        figure.suptitle(
            f"{title}: {c.window_s:g} s at {c.rate:g} Hz, constants “{c.preset}” · {_sizes(made, ' · ')} · "
            "colours: z from -3 to 3",
            weight="bold",
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=110, metadata={"Software": None})
        plt.close(figure)


def _image(axis: Any, plane: np.ndarray, transform: str, c: Imaging) -> None:
    """Time to the right; Hz upwards, or time again from the top as in the image itself."""
    spectral = transform != "recurrence"
    step = (c.hop if spectral else c.stride) / c.rate
    if not spectral:
        plane = plane[: round(SHOWN_S / step), : round(SHOWN_S / step)]
    long = plane.shape[1] * step
    extent = (0, long, 0, c.rate / 2) if spectral else (0, long, long, 0)
    axis.imshow(
        plane,
        origin="lower" if spectral else "upper",
        extent=extent,
        aspect="auto",
        cmap="cividis" if transform == "complex" else "viridis",
        vmin=-3,
        vmax=3,
        interpolation="nearest",
    )
    axis.set_ylabel("Hz" if transform == "stft" else "")
