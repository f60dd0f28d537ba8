"""A picture sheet: real windows beside the images that a vision backbone sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.config import table_of, validate
from cluster.errors import PlethoraError
from datasets.index import few
from datasets.schema import Corpus, open_corpus
from datasets.windows import Signal, WindowSpec, empty, extract, grid, lasts, verdicts
from finetune.imaging import Images, Imaging, images

CHANNELS = {
    "stft": ("log-power",),
    "complex": ("log|X|", "cos φ", "sin φ"),
    "recurrence": ("x", "Δx", "Δ²x"),
}
SHOWN_S = 8.0  # of a recurrence: beats in all of a long one are too small to see


def sheet(
    uri: str,
    out: str,
    sets: Sequence[str] = (),
    windows: int = 3,
    band: tuple[float, float] | None = (0.5, 8.0),
    seed: int = 0,
) -> dict[str, Any]:
    """Draws `windows` windows of the corpus, each of another subject where there are so many, and all their
    images, into the PNG `out`. sets: ``preset=ppg_bp`` and other keys of `Imaging`. PlethoraError: no PPG, no
    window long enough.
    """
    if Path(out).suffix.lower() != ".png":
        raise PlethoraError(f"--out {out}: give a file name that ends in .png")
    c = validate(Imaging, {**table_of(sets), "transform": "fusion"}, "--set")
    signal = Signal(modality="ppg", rate=c.rate, band=band)
    corpus = open_corpus(uri)
    found = _windows(corpus, WindowSpec(signals=(signal,), window_s=c.window_s), windows, seed)
    if not found:
        raise PlethoraError(f"{corpus.uri} has no sound PPG window of {c.window_s:g} s: set window_s")
    x = np.stack([samples for samples, _ in found])
    made = dict(zip(c.transforms, images(torch.from_numpy(x), c), strict=True))
    _draw(x, [name for _, name in found], made, c, corpus.manifest["name"], Path(out))
    shown = ", ".join(f"{n} {i.pixels.shape[2]}x{i.pixels.shape[3]}" for n, i in made.items())
    print(f"{len(x)} windows of {c.window_s:g} s at {c.rate:g} Hz: {shown}")
    print(f"written: {out}")
    return {"windows": len(x), "out": out, "sizes": {n: list(i.pixels.shape[2:]) for n, i in made.items()}}


def _windows(corpus: Corpus, spec: WindowSpec, wanted: int, seed: int) -> list[tuple[np.ndarray, str]]:
    """Up to `wanted` sound windows [(T,) float32, their name], of different subjects first, one a row of
    the corpus at most."""
    if "ppg" not in corpus.modalities:
        raise PlethoraError(f"{corpus.uri} holds {', '.join(corpus.modalities)}, and no PPG")
    draw = np.random.default_rng(seed)
    places = [(s, g) for s, shard in enumerate(corpus.shards) for g in range(len(shard["row_groups"]))]
    first: dict[str, tuple[np.ndarray, str]] = {}
    more: list[tuple[np.ndarray, str]] = []
    for place in draw.permutation(len(places)).tolist():
        table = few(corpus, *places[place], spec)
        seconds = lasts(table, spec)
        for row in draw.permutation(table.num_rows).tolist():
            offsets = grid(seconds[row], spec)
            if not len(offsets):
                continue
            offset = draw.choice(offsets, 1)
            room, at = empty(1, spec), np.zeros(1, int)
            extract(table, np.array([row]), offset, spec, room, at)
            if verdicts(room["ppg"], spec.signals[0], spec)[1][0] != "ok":
                continue
            about = table.slice(row, 1).select(["subject", "record", "start_s"]).to_pylist()[0]
            start = about["start_s"] + float(offset[0])
            window = room["ppg"][0, 0], f"subject {about['subject'][:8]}…\n{about['record']} at {start:g} s"
            if about["subject"] in first:
                more.append(window)
            else:
                first[about["subject"]] = window
            if len(first) >= wanted:
                return list(first.values())
    return [*first.values(), *more][:wanted]


def _draw(
    x: np.ndarray, names: list[str], made: dict[Any, Images], c: Imaging, title: str, out: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from finetune.reports.plots import BLUE, STYLE

    with plt.rc_context({**STYLE, "font.size": 8, "axes.titlesize": 9}):
        cut = c.window_s > SHOWN_S
        columns = 1 + sum(len(channels) for channels in CHANNELS.values())
        figure, axes = plt.subplots(
            len(x), columns, figsize=(2.35 * columns, 2.35 * len(x) + 0.7), layout="constrained",
            squeeze=False, width_ratios=[1.6, *[1.0] * (columns - 1)],
        )  # fmt: skip
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
        sizes = " · ".join(f"{n} {i.pixels.shape[2]}x{i.pixels.shape[3]}" for n, i in made.items())
        figure.suptitle(
            f"{title}: {c.window_s:g} s at {c.rate:g} Hz, constants “{c.preset}” · {sizes} · "
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
        plane, origin="lower" if spectral else "upper", extent=extent, aspect="auto",
        cmap="viridis" if transform == "stft" or not spectral else "cividis", vmin=-3, vmax=3,
        interpolation="nearest",
    )  # fmt: skip
    axis.set_ylabel("Hz" if transform == "stft" else "")
