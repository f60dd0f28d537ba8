"""A published bundle as an encoder: its ONNX model on the CPU, and its network with untrained weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster import bundle as bundles
from cluster.errors import PlethoraError
from finetune.encoders.base import BATCH, Encoder, Run, Samples, finite
from finetune.graph import Graph

if TYPE_CHECKING:
    from torch import nn

    from pretrain.recipe import Mode


class BundleEncoder(Encoder):
    """One mode of a bundle, run by onnxruntime; files are verified against the bundle's checksums.

    The snippet on the bundle's card gives the same vectors (a test compares the two).
    """

    def __init__(self, uri: str, mode: str | None = None, threads: int = 0) -> None:
        self.bundle = bundles.open(uri)
        modes = self.bundle.described.modes
        if not mode and len(modes) != 1:
            raise PlethoraError(
                f"{uri} has {len(modes)} modes ({', '.join(modes)}): choose one as BUNDLE#MODE, with "
                "--mode, or in a run with method.input"
            )
        mode = mode or next(iter(modes))
        if mode not in modes:
            raise PlethoraError(f"{uri} has no mode {mode!r}: it has {', '.join(modes)}")
        entry = modes[mode]
        super().__init__(self.bundle.uri, mode, entry.inputs, self.bundle.preprocessing, entry.dim)
        # bundles from before 12/2026 may quantise int8 inputs per batch: run each window alone
        alone = self.bundle.config.get("quantised", {}).get("how") == "dynamic"
        self.batch = 1 if alone else BATCH
        self._graph = Graph(self.bundle.path(entry.file), f"{uri}/{entry.file}", threads)

    @property
    def name(self) -> str:
        run = self.bundle.config.get("run", {})
        return f"{run.get('name') or self.uri.rstrip('/').rpartition('/')[2]} ({self.mode})"

    @property
    def hash(self) -> str:
        return self.bundle.hash

    @property
    def lineage(self) -> Mapping[str, Any]:
        return self.bundle.lineage

    @property
    def published(self) -> str:
        return self.uri

    @property
    def seed(self) -> int:
        return int(self.bundle.config.get("run", {}).get("seed", 0))

    def run(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._graph({i.name: given[i.modality] for i in self.inputs})

    def untrained(self, seed: int) -> Run:
        """The recipe that config.json names rebuilds the network from the run's configuration."""
        return untrained(self.bundle.config, self.mode, seed)

    def network(self, seed: int | None = None) -> "nn.Module":
        from pretrain.trained import open_trained

        if seed is not None:
            return untrained_mode(self.bundle.config, self.mode, seed).module.eval()
        return open_trained(self.bundle.uri)[1].modes[self.mode].module


def opened_bundle(address: str, mode: str | None = None, threads: int = 0) -> BundleEncoder:
    """The encoder of BUNDLE or BUNDLE#MODE."""
    uri, mark, own = address.rpartition("#")
    return BundleEncoder(uri, own, threads) if mark else BundleEncoder(address, mode, threads)


def untrained_mode(config: Mapping[str, Any], mode: str, seed: int) -> "Mode":
    """A bundle's mode with the weights that its recipe draws from `seed`. Errors: as for `untrained`."""
    import torch

    from pretrain.trained import encoder_of, fresh

    where = "config.json of the bundle"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recipe, modules = fresh(config, where, seed)
        return encoder_of(recipe, modules, config, where).modes[mode]


def untrained(config: Mapping[str, Any], mode: str, seed: int) -> Run:
    """A bundle's network before training.

    Returns a function from prepared (n, C, T) float32 (a dict by modality for several inputs) to (n, dim)
    float32. Raises PlethoraError when the recipe cannot be loaded here.
    """
    import torch

    found = untrained_mode(config, mode, seed)
    module, order = found.module.eval(), [str(given["modality"]) for given in found.inputs]

    def run_module(prepared: Samples) -> np.ndarray:
        given = prepared if isinstance(prepared, Mapping) else {order[0]: prepared}
        inputs = [torch.from_numpy(np.ascontiguousarray(given[m])) for m in order]
        with torch.inference_mode():
            parts = [
                module(*(x[i : i + BATCH] for x in inputs)).float().numpy()
                for i in range(0, len(inputs[0]), BATCH)
            ]
        return finite(np.concatenate([np.zeros((0, found.dim), np.float32), *parts]), "untrained encoder")

    return run_module
