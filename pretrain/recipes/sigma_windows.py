"""Settings shared by both stages of SIGMA: windows, patches, and the published encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from cluster.config import Config
from datasets.windows import Signal, WindowSpec
from pretrain import published
from pretrain.recipe import Encoder


class Windows(Config):
    """Settings that must be equal in both stages."""

    window_s: float = Field(240.0, gt=0)  # paper; no overlap
    hop_s: float | None = None  # none: window_s
    rate: float = 50.0  # paper, Hz
    band: tuple[float, float] = (0.5, 8.0)  # code, Hz: Butterworth, zero-phase, at the native rate
    order: int = 2  # code
    patch: int = 100  # paper: 2 s; samples
    input_range: tuple[float, float] = (0.0, 1.0)  # of the scaled window; code's first release: (-1, 1)
    min_quality: float = 0.0  # ours: lowest periodicity of a window; 0 = no gate, as in the paper

    @model_validator(mode="after")
    def _rising(self) -> Windows:
        low, high = self.input_range
        if not low < high:
            raise ValueError(f"input_range = [{low:g}, {high:g}]: the second number must be the higher")
        return self

    @property
    def samples(self) -> int:
        """Samples of a window at ``rate``."""
        return round(self.window_s * self.rate)

    @property
    def patches(self) -> int:
        """Whole patches in a window."""
        return self.samples // self.patch

    def spec(self) -> WindowSpec:
        """The windows to stream; the network normalises them."""
        signal = Signal(modality="ppg", rate=self.rate, band=self.band, order=self.order)
        return WindowSpec(
            signals=(signal,), window_s=self.window_s, hop_s=self.hop_s, min_quality=self.min_quality
        )

    def encoder(
        self, module: nn.Module, dim: int, patches: int, kind: Literal["encoder", "tokenizer"], least: int = 1
    ) -> Encoder:
        """The published encoder around ``module``, (B, 1, T) -> (B, dim) for ``least`` to ``patches``
        patches. The network does the min-max scaling, onto ``input_range``, which config.json names."""
        spec = self.spec()
        mode = published.mode(
            spec,
            module,
            dim,
            min_samples=least * self.patch,
            step_samples=self.patch,
            max_samples=patches * self.patch,
        )
        found = published.encoder(spec, {"ppg": mode}, kind)
        return replace(found, about={"input_range": list(self.input_range)})
