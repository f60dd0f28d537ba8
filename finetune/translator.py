"""A bundle's decoder from one signal to another, as a function of prepared windows.

A bundle that has decoders (M2AE's) lists them in config.json: `ppg_to_ecg`, `ecg_to_ppg`.
"""

import numpy as np

from cluster import bundle as bundles
from cluster.errors import PlethoraError
from finetune.encoders.base import BATCH, finite
from finetune.encoders.bundle import BundleEncoder
from finetune.graph import Graph


class Translator:
    """A bundle's decoder from `source` to `target`: prepared (n, 1, T) → (n, T') float32, z-scored."""

    def __init__(self, uri: str, source: str, target: str) -> None:
        self.bundle = bundles.open(uri)
        decoders = self.bundle.described.decoders
        name = f"{source}_to_{target}"
        if name not in decoders:
            raise PlethoraError(
                f"{uri} has no decoder from {source} to {target} (it has {', '.join(decoders) or 'none'}): "
                "use a bundle of a method that rebuilds signals, such as M2AE"
            )
        self.source, self.target = BundleEncoder(uri, source), BundleEncoder(uri, target)
        file, self._input = decoders[name].file, decoders[name].inputs[0].name
        self._graph = Graph(self.bundle.path(file), f"{uri}/{file}")
        self.name, self.rate = name, float(decoders[name].output["rate"])

    @property
    def window_s(self) -> float:
        return self.source.window_s

    def __call__(self, prepared: np.ndarray) -> np.ndarray:
        parts = [
            self._graph({self._input: prepared[i : i + BATCH]})[:, 0] for i in range(0, len(prepared), BATCH)
        ]
        return finite(np.concatenate(parts), self.bundle.uri)
