"""Networks of supervised runs: an MLP head on an encoder, and the scaling of its outputs to task units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from finetune.networks import signal_lora
from finetune.targets import Head
from pretrain.recipe import Mode


class Predictor(nn.Module):
    """Prepared signals (B, C, T) -> (B, columns) float32: numbers in the tasks' units, logits of classes."""

    mean: Tensor  # (columns,)
    std: Tensor

    def __init__(self, body: nn.Module, heads: Sequence[Head], standardise: bool) -> None:
        super().__init__()
        self.body = body
        scale = [(h.mean, h.std) if standardise and not h.classes else (0.0, 1.0) for h in heads]
        wide = [pair for h, pair in zip(heads, scale, strict=True) for _ in range(h.columns)]
        self.register_buffer("mean", torch.tensor([m for m, _ in wide]))
        self.register_buffer("std", torch.tensor([s for _, s in wide]))

    # torch.export takes no *signals: an encoder has one or two
    def forward(self, first: Tensor, second: Tensor | None = None, **more: Tensor) -> Tensor:
        signals = (first,) if second is None else (first, second)
        return self.body(*signals, **more).float() * self.std + self.mean


class Tuned(nn.Module):
    """An MLP head on an encoder's mode. A window of `samples` is split into `pieces` for the encoder, whose
    vectors are averaged. Of the encoder train: nothing ("probe"), adapters of `rank` ("lora"), or all
    parameters that affect its vector ("full").
    """

    def __init__(
        self,
        mode: Mode,
        pieces: int,
        samples: int,
        columns: int,
        how: Literal["probe", "lora", "full"],
        rank: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.encode, self.pieces, self.step, self.how = mode.module, pieces, mode.step_samples, how
        self.adapted: list[str] = []  # names of the encoder's layers
        self.head = nn.Sequential(
            nn.LayerNorm(mode.dim),
            nn.Linear(mode.dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, columns),
        )
        self.encode.requires_grad_(how == "full")
        with torch.device("cpu"):  # the driver counts parameters on "meta"
            signals = [torch.randn(2, i["channels"], samples) for i in mode.inputs]
            if how == "full":
                self._freeze_idle(signals)
            elif how == "lora":
                self.adapted = signal_lora.add(self.encode, [self._split(x) for x in signals], rank)

    def _freeze_idle(self, signals: list[Tensor]) -> None:
        """Freezes parameters that do not affect the vector (a mask token, a pretext head): they get no
        gradient, and DDP would wait for one."""
        parameters = list(self.encode.parameters())
        gradients = torch.autograd.grad(self._vector(*signals).sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _split(self, x_bct: Tensor) -> Tensor:
        b, c, t = x_bct.shape
        length = t // self.pieces // self.step * self.step
        parts = x_bct[..., : length * self.pieces].reshape(b, c, self.pieces, length)
        return parts.transpose(1, 2).reshape(b * self.pieces, c, length)

    def _vector(self, *signals: Tensor) -> Tensor:
        found = self.encode(*(self._split(x) for x in signals))
        return found.reshape(len(signals[0]), self.pieces, -1).mean(dim=1)

    def forward(self, *signals: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.how != "probe"):
            vector = self._vector(*signals)
        return self.head(vector)

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        if self.how != "full":
            self.encode.eval()
        return self

    def merge(self) -> None:
        """Adds the adapters to the encoder's weights, in place; the same function in eval mode."""
        if self.how == "lora":
            signal_lora.merge(self.encode)
