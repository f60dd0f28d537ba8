"""Net1D (Hong et al., the encoder of AnyPPG and of its ECG teacher): a residual convolutional network.

Imports torch alone. B windows, C channels, T samples, F filters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.importing.names import Filling, Names
from pretrain.layers import halved
from pretrain.sync_bn import BatchNorm

Norm = Callable[[int], BatchNorm]


def zscore(x_bct: Tensor) -> Tensor:
    """Z-score per window and channel, float32 (float64 stays float64); the authors add 1e-5. A constant
    window becomes zeros."""
    x_bct = x_bct if x_bct.dtype == torch.float64 else x_bct.float()
    centred = x_bct - x_bct.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True).sqrt() + 1e-5)


def zscore_all(x_bct: Tensor) -> Tensor:
    """Z-score per window, over all of its channels together, as ECGFounder's code does; it adds 1e-8."""
    x_bct = x_bct if x_bct.dtype == torch.float64 else x_bct.float()
    centred = x_bct - x_bct.mean(dim=(1, 2), keepdim=True)
    return centred / (centred.square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-8)


class SameConv(nn.Conv1d):
    """Convolution of stride 1 or 2 over zero-padded samples: (B, C, T) -> (B, F, ceil(T / stride)).

    It pads as few zeros as possible, an odd one at the end. With a stride of 2, even and odd T therefore use
    different samples, as in the authors' code; their weights require it.
    """

    def __init__(self, inputs: int, filters: int, kernel: int, stride: int, groups: int, bias: bool) -> None:
        if kernel < stride:
            raise ValueError(f"kernel {kernel} is shorter than the stride {stride}")
        super().__init__(inputs, filters, kernel, stride=stride, groups=groups, bias=bias)

    def padded(self, x_bct: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        odd = x_bct.shape[-1] % 2 if stride == 2 else 0
        zeros = kernel - stride + odd
        return F.pad(x_bct, (zeros // 2, zeros - zeros // 2))

    def forward(self, x_bct: Tensor) -> Tensor:
        return super().forward(self.padded(x_bct))


class Block(nn.Module):
    """Three convolutions (1, kernel, 1), each after batch norm, Swish and dropout; squeeze-and-excitation
    (ratio 2); added to the input, which is max-pooled and zero-padded in channels where the shape changes.

    norm   None: no batch norm.
    first  the network's first block: its input is already normalised, so it has neither norm nor Swish before
           its first convolution.
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        kernel: int,
        stride: int,
        width: int,
        dropout: float,
        norm: Norm | None,
        first: bool,
    ) -> None:
        super().__init__()
        self.stride, self.extra = stride, filters - inputs
        bias = norm is None  # before batch norm it would have no effect
        self.norm1 = None if first else _norm(norm, inputs)
        self.conv1 = SameConv(inputs, filters, 1, 1, 1, bias)
        self.norm2 = _norm(norm, filters)
        self.conv2 = SameConv(filters, filters, kernel, stride, filters // width, bias)
        self.norm3 = _norm(norm, filters)
        self.conv3 = SameConv(filters, filters, 1, 1, 1, bias=True)
        self.squeeze = nn.Linear(filters, filters // 2)
        self.excite = nn.Linear(filters // 2, filters)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_bct: Tensor) -> Tensor:
        y = x_bct if self.norm1 is None else self.drop(F.silu(self.norm1(x_bct)))
        y = self.conv1(y)
        y = self.conv2(self.drop(F.silu(self.norm2(y))))
        y = self.conv3(self.drop(F.silu(self.norm3(y))))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean(dim=-1)))))
        y = y * gate[..., None]
        if self.stride == 2:
            x_bct = halved(x_bct)
        if self.extra:
            x_bct = F.pad(x_bct, (0, 0, self.extra // 2, self.extra - self.extra // 2))
        return y + x_bct


def _norm(norm: Norm | None, filters: int) -> nn.Module:
    return nn.Identity() if norm is None else norm(filters)


class Net1D(nn.Module):
    """(B, C, T) in any unit, T >= 1 -> (B, filters of the last stage); the network normalises its input.

    filters, blocks  per stage; the first block of each stage halves the time axis, as the stem does.
    width            channels per group of the grouped convolutions.
    norm             None: no batch norm, and biases in its place.
    scale            how the input is normalised.
    Defaults: AnyPPG's published table (arXiv 2511.01747; code: PKUDigitalHealth/AnyPPG), 4.04 M parameters.
    """

    def __init__(
        self,
        channels: int = 1,
        filters: Sequence[int] = (64, 160, 160, 400, 400, 512),
        blocks: Sequence[int] = (2, 2, 2, 3, 3, 1),
        kernel: int = 3,
        width: int = 16,
        stem: int = 64,
        dropout: float = 0.5,
        norm: Norm | None = BatchNorm,
        scale: Callable[[Tensor], Tensor] = zscore,
    ) -> None:
        super().__init__()
        if len(filters) != len(blocks) or min(filters, default=0) < max(width, 2):
            raise ValueError(
                f"filters {list(filters)} and blocks {list(blocks)} are no stages: give one each"
            )
        if wrong := [f for f in filters if f % width]:
            raise ValueError(f"filters {wrong} do not divide by the group width {width}")
        if falls := [b for a, b in pairwise((stem, *filters)) if b < a]:
            raise ValueError(f"filters may not fall from stage to stage: {falls}")
        self.dim, self.scale = filters[-1], scale
        self.stem = SameConv(channels, stem, kernel, 2, 1, bias=norm is None)
        self.norm = _norm(norm, stem)
        self.blocks = nn.ModuleList()
        inputs = stem
        for filters_, count in zip(filters, blocks, strict=True):
            for number in range(count):
                stride, first = 2 if number == 0 else 1, not self.blocks
                self.blocks.append(Block(inputs, filters_, kernel, stride, width, dropout, norm, first))
                inputs = filters_

    def forward(self, x_bct: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(self.scale(x_bct))))
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=-1)


class Projector(nn.Sequential):
    """Linear, batch norm, GELU, Linear: (B, inputs) -> (B, outputs). AnyPPG's code."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        hidden = nn.Linear(inputs, inputs, bias=False)  # batch norm would cancel a bias
        super().__init__(hidden, norm(inputs), nn.GELU(), nn.Linear(inputs, outputs))


def from_authors(state: Mapping[str, Tensor]) -> tuple[Net1D, list[str]]:
    """Build the network from a state dict of the authors' Net1D (AnyPPG's encoder, ECGFounder). Returns
    (network with its weights, without dropout; unused names). Errors: ValueError that names everything that
    does not fit.
    """
    names = Names({name.removeprefix("module."): value for name, value in state.items()})
    net = authors_net(names)
    names.finish("a Net1D")
    return net, names.unused


def authors_net(names: Names, prefix: str = "", bare: bool = False) -> Net1D:
    """Build a Net1D without dropout from the tensors under ``prefix``, which are taken from ``names``.

    Stages, kernel and group width follow from the shapes. A bias before batch norm is subtracted from the
    running mean, which gives the same function. Unused are the first block's first norm, which the authors'
    code never calls, and heads (``dense``). ``bare``: the code calls no norm at all (ECGFounder's, whose
    windows are z-scored over all leads together), so all are unused. Errors: ValueError when there is no such
    network; ``names.finish`` reports the rest.
    """
    first, stages = f"{prefix}first_conv.conv.weight", f"{prefix}stage_list."
    blocks = [names.count(f"{stages}{stage}.block_list.") for stage in range(names.count(stages))]
    if first not in names.left or not blocks:
        raise ValueError(f"no {first} or {stages}* in it: not the state of a Net1D")
    stem, channels, kernel = names.shape(first)
    shapes = [names.shape(f"{stages}{n}.block_list.0.conv2.conv.weight") for n in range(len(blocks))]
    filters = [shape[0] for shape in shapes]
    norm, scale = (None, zscore_all) if bare else (BatchNorm, zscore)
    net = Net1D(channels, filters, blocks, kernel, shapes[0][1], stem, 0.0, norm, scale)
    names.drop(f"{stages}0.block_list.0.bn1.", f"{prefix}dense.")

    fill = Filling(net, names)

    def before_norm(ours: str, theirs: str, norm: str, bn: str) -> None:
        """Map a convolution and the norm after it."""
        if bare:
            fill.move(ours, theirs)
            names.drop(f"{bn}.")
            return
        fill.move(ours, theirs, ["weight"])
        fill.norm(norm, bn, f"{theirs}.bias")

    before_norm("stem", f"{prefix}first_conv.conv", "norm", f"{prefix}first_bn")
    places = [(stage, block) for stage, count in enumerate(blocks) for block in range(count)]
    for number, (stage, block) in enumerate(places):
        ours, theirs = f"blocks.{number}", f"{stages}{stage}.block_list.{block}"
        if number and bare:
            names.drop(f"{theirs}.bn1.")
        elif number:
            fill.norm(f"{ours}.norm1", f"{theirs}.bn1")
        for a, b in ((1, 2), (2, 3)):
            before_norm(f"{ours}.conv{a}", f"{theirs}.conv{a}.conv", f"{ours}.norm{b}", f"{theirs}.bn{b}")
        fill.move(f"{ours}.conv3", f"{theirs}.conv3.conv")
        fill.move(f"{ours}.squeeze", f"{theirs}.se_fc1")
        fill.move(f"{ours}.excite", f"{theirs}.se_fc2")
    fill.load()
    return net


def table(net: Net1D) -> dict[str, Any]:
    """The sizes of a network: filters and blocks by stage, kernel, stem, and width of the groups."""
    stem, _, kernel = net.stem.weight.shape
    convs = [(block.stride, block.conv2.weight.shape) for block in net.blocks if isinstance(block, Block)]
    starts = [number for number, (stride, _) in enumerate(convs) if stride == 2]
    return {
        "filters": [convs[number][1][0] for number in starts],
        "blocks": [b - a for a, b in pairwise([*starts, len(convs)])],
        "kernel": kernel,
        "stem": stem,
        "width": convs[0][1][1],
    }
