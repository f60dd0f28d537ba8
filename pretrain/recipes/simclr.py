"""SimCLR (Chen et al., arXiv 2002.05709) on PPG with AnyPPG's encoder: the reference in every comparison.

In comments, "code" is the baseline in AnyPPG's release (PKUDigitalHealth/AnyPPG); the rest is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cluster.config import Config
from datasets.windows import Signal, WindowSpec
from pretrain import figures, published
from pretrain.contrastive import held_out, info_nce, unit
from pretrain.layers import keyed_normal, keyed_uniform, seeded
from pretrain.net1d import Net1D, Projector, zscore
from pretrain.recipe import Encoder, StepResult
from pretrain.sync_bn import BatchNorm

_CUT, _NOISE, _VALIDATION = 1, 2, -1


class SimCLRConfig(Config):
    window_s: float = Field(10.0, gt=0)  # code
    hop_s: float | None = None
    rate: float = 125.0  # code, Hz
    band: tuple[float, float] = (0.5, 8.0)  # code, Hz
    order: int = 3  # code
    min_quality: float = 0.0
    filters: tuple[int, ...] = (64, 160, 160, 400, 400, 512)  # code
    blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 1)  # code
    stem: int = 64  # code
    width: int = 16  # code
    dropout: float = Field(0.5, ge=0, lt=1)  # code
    sync_bn: bool = True
    bn_momentum: float = Field(0.1, gt=0, le=1)
    projection: int = 128  # code
    temperature: float = Field(0.07, gt=0)  # code
    gallery: int = Field(64, ge=2)  # held-out windows per retrieval gallery
    crop: float = Field(
        0.8, gt=0, le=1
    )  # shortest crop, as a share of the window, which is stretched; code: 0.9
    noise: float = 0.02  # code: of the z-scored signal
    drift: float = 0.5  # largest amplitude of a slow sine
    blank: float = Field(0.04, ge=0, lt=1)  # code: 50 of 1,250 samples set to zero
    min_s: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> SimCLRConfig:
        if self.min_s > self.window_s:
            raise ValueError(f"min_s = {self.min_s:g} is longer than window_s = {self.window_s:g}")
        return self

    def signal(self) -> Signal:
        return Signal(modality="ppg", rate=self.rate, band=self.band, order=self.order)


class Views(nn.Module):
    """(2B, 1, T) views -> (2B, projection)."""

    def __init__(self, c: SimCLRConfig) -> None:
        super().__init__()
        norm = partial(BatchNorm, sync=c.sync_bn, momentum=c.bn_momentum)
        self.net = Net1D(1, c.filters, c.blocks, 3, c.width, c.stem, c.dropout, norm)
        self.head = Projector(self.net.dim, c.projection, norm)

    def forward(self, x_bct: Tensor) -> Tensor:
        return self.head(self.net(x_bct))


def view(x_bct: Tensor, ids_b: Tensor, c: SimCLRConfig, *key: int) -> Tensor:
    """One augmented view, (B, 1, T): a crop stretched to the full length, drift, noise, a blanked span."""
    t = x_bct.shape[-1]
    u = keyed_uniform(ids_b, 6, *key, _CUT)[:, :, None]
    length = c.crop + (1 - c.crop) * u[:, 0]
    at = torch.linspace(0, 1, t, device=x_bct.device)
    where = (1 - length) * u[:, 1] + length * at  # (B, T) in [0, 1] of the window
    grid = torch.stack([2 * where - 1, torch.zeros_like(where)], dim=-1)[:, None]
    x = F.grid_sample(zscore(x_bct)[:, :, None], grid, align_corners=True)[:, :, 0]
    x = x + (c.drift * u[:, 2] * torch.sin(2 * torch.pi * (u[:, 3] * at + u[:, 4])))[:, None]
    x = x + c.noise * keyed_normal(ids_b, t, *key, _NOISE)[:, None]
    start = (1 - c.blank) * u[:, 5]
    return x.masked_fill(((at >= start) & (at < start + c.blank))[:, None], 0.0)


class SimCLR:
    Config = SimCLRConfig

    def __init__(self, config: SimCLRConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def windows(self) -> WindowSpec:
        c = self.config
        return WindowSpec(
            signals=(c.signal(),), window_s=c.window_s, hop_s=c.hop_s, min_quality=c.min_quality
        )

    def modules(self) -> dict[str, nn.Module]:
        with seeded(self.seed):
            return {"views": Views(self.config)}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        c, x, ids = self.config, batch["ppg"], batch["window"]
        training = torch.is_grad_enabled()
        at = step if training else _VALIDATION
        pair = torch.cat([view(x, ids, c, self.seed, at, side) for side in (0, 1)])
        a, b = modules["views"](pair).chunk(2)
        if training:
            return StepResult(losses={"views": info_nce(a, b, 1 / c.temperature, within=True)})
        loss, found = held_out(a, b, 1 / c.temperature, batch["subject"], c.gallery, within=True)
        names = ("one view", "the other")
        drawn = {"retrieval": lambda: figures.retrieval(unit(a), unit(b), names, c.gallery)}
        return StepResult(losses={"views": loss}, log={**found}, figures=drawn)

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        c, views = self.config, modules["views"]
        assert isinstance(views, Views)
        spec = self.windows()
        mode = published.mode(spec, views.net, views.net.dim, min_samples=round(c.min_s * c.rate))
        return published.encoder(spec, {"ppg": mode})
