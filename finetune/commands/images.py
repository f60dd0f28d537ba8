"""A picture of real windows of a corpus beside the images that a vision backbone sees of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cluster.config import table_of, validate
from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from datasets.windows import Signal, WindowSpec
from finetune.evaluation.sample import sound_windows
from finetune.imaging import Imaging, images
from finetune.reports import image_sheet
from finetune.reports.sheet import Sheet

BAND = (0.5, 8.0)  # Hz


@dataclass(frozen=True)
class ImagesOf:
    """`out`: a PNG; `sets`: ``preset=ppg_bp`` and other keys of `Imaging`; `windows`: how many."""

    corpus: str
    out: str
    sets: Sequence[str] = ()
    windows: int = 3
    seed: int = 0


def run(options: ImagesOf) -> Sheet:
    """Windows are of different subjects where there are so many. PlethoraError: the corpus has no PPG, or no
    window that is long enough.
    """
    if Path(options.out).suffix.lower() != ".png":
        raise PlethoraError(f"--out {options.out}: give a file name that ends in .png")
    c = validate(Imaging, {**table_of(options.sets), "transform": "fusion"}, "--set")
    corpus = open_corpus(options.corpus)
    spec = WindowSpec(signals=(Signal(modality="ppg", rate=c.rate, band=BAND),), window_s=c.window_s)
    found = sound_windows(corpus, spec, options.windows, options.seed)
    if not found:
        raise PlethoraError(f"{corpus.uri} has no sound PPG window of {c.window_s:g} s: set window_s")
    x = np.stack([samples for samples, _ in found])
    made = dict(zip(c.transforms, images(torch.from_numpy(x), c), strict=True))
    names = [name for _, name in found]
    image_sheet.draw(x, names, made, c, corpus.manifest["name"], Path(options.out))
    return image_sheet.sheet(len(x), made, c, options.out)
