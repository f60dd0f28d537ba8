"""A frozen vision backbone over images of PPG as an encoder: ``vision:NAME?image=stft&weights=PATH``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from cluster.config import table_of, validate
from cluster.errors import PlethoraError
from finetune.imaging import Imaging, shapes
from finetune.networks.backbone import Backbone, BackboneConfig
from finetune.networks.frozen import frozen

PREFIX = "vision:"
OF_BACKBONE = ("weights", "fit", "options")


class VisionPort:
    """The backbone NAME (timm's, or one of `backbone.NAMES`) behind one image, or the mean over all three.

    Keys of the address: `image` (stft, complex, recurrence, fusion), the constants of `Imaging` (`stride=8`,
    `preset=ppg_bp`), and `weights`, `fit`, `options.KEY` of `BackboneConfig`. Windows may be shorter than
    `window_s`, down to what the image needs. PlethoraError: a key that there is not, weights that cannot be
    had, images that are too large.
    """

    def __init__(self, address: str) -> None:
        import torch

        name, _, keys = address.removeprefix(PREFIX).partition("?")
        table = table_of([f"{key}={value}" for key, value in parse_qsl(keys, keep_blank_values=True)])
        known = ("image", *OF_BACKBONE, *(key for key in Imaging.model_fields if key != "transform"))
        if wrong := [key for key in table if key not in known]:
            raise PlethoraError(f"{address}: unknown key `{wrong[0]}`: known are {', '.join(known)}")
        own: dict[str, Any] = {key: table.pop(key) for key in OF_BACKBONE if key in table}
        self.config = validate(BackboneConfig, {"name": name, **own}, address)
        image = table.pop("image", "stft")
        self.imaging = validate(Imaging, {**table, "transform": image}, address)
        self.name = f"{name}, {image}" + (", random weights" * (self.config.weights == "random"))
        rate, window_s = self.imaging.rate, self.imaging.window_s
        least = self._least()
        entry = {"rate": rate, "window_s": window_s, "min_s": least / rate, "max_s": window_s}
        self.preprocessing = {"ppg": {**entry, "multiple_s": 1 / rate}}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._run = frozen(Backbone(self.config, 0), self.imaging)

    @property
    def files(self) -> tuple[Path, ...]:
        """Its weights, where they are a file."""
        return (Path(self.config.weights),) if self.config.weights not in ("hub", "random") else ()

    def embed(self, x: np.ndarray) -> np.ndarray:
        return self._run(x)

    def untrained(self, seed: int) -> VisionPort:
        """The same backbone with random weights."""
        import torch

        fresh = copy.copy(self)
        fresh.config = self.config.model_copy(update={"weights": "random"})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh._run = frozen(Backbone(fresh.config, seed), self.imaging)
        return fresh

    def _least(self) -> int:
        """Samples of the shortest window that its images can be made of."""
        for samples in range(2, self.imaging.samples):
            try:
                shapes(self.imaging, samples)
            except ValueError:
                continue
            return samples
        return self.imaging.samples
