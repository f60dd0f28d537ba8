"""ResNet1D (Hong, github.com/hsd1503/resnet1d): the residual network inside PaPaGei and Pulse-PPG.

Imports torch alone. B windows, C channels, T samples, F filters. Both releases halve the time axis at every
second block and double the filters at every fourth.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.layers import halved
from pretrain.net1d import Norm, SameConv
from pretrain.sync_bn import BatchNorm

HALVES, DOUBLES = 2, 4  # every second block halves the time axis, every fourth doubles the filters
EPS = 1e-5  # of torch's InstanceNorm1d


class Block(nn.Module):
    """Two convolutions, each after batch norm, ReLU and dropout; added to the input, which is max-pooled and
    zero-padded in channels where the shape changes.

    first  the network's first block: its input is already normalised, so it has no norm before its first
           convolution.
    """

    def __init__(
        self, inputs: int, filters: int, kernel: int, stride: int, dropout: float, norm: Norm, first: bool
    ) -> None:
        super().__init__()
        self.stride, self.extra = stride, filters - inputs
        self.norm1 = None if first else norm(inputs)
        self.conv1 = SameConv(inputs, filters, kernel, stride, 1, bias=False)  # batch norm follows
        self.norm2 = norm(filters)
        self.conv2 = SameConv(filters, filters, kernel, 1, 1, bias=True)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_bct: Tensor) -> Tensor:
        y = x_bct if self.norm1 is None else self.drop(F.relu(self.norm1(x_bct)))
        y = self.conv2(self.drop(F.relu(self.norm2(self.conv1(y)))))
        if self.stride == 2:
            x_bct = halved(x_bct)
        if self.extra:
            x_bct = F.pad(x_bct, (0, 0, self.extra // 2, self.extra - self.extra // 2))
        return y + x_bct


class ResNet1D(nn.Module):
    """(B, C, T) -> (B, F, T / 2 ** (blocks // 2)), each halving rounded up; any T >= 1.

    filters  of the stem and the first blocks; the last block has ``dim``.
    """

    def __init__(
        self,
        channels: int = 1,
        filters: int = 32,
        kernel: int = 3,
        blocks: int = 18,
        dropout: float = 0.5,
        norm: Norm = BatchNorm,
    ) -> None:
        super().__init__()
        self.stem = SameConv(channels, filters, kernel, 1, 1, bias=False)
        self.norm = norm(filters)
        self.blocks = nn.ModuleList()
        self.dim = filters
        for number in range(blocks):
            grown = self.dim * 2 if number and number % DOUBLES == 0 else self.dim
            stride = 2 if number % HALVES == 1 else 1
            self.blocks.append(Block(self.dim, grown, kernel, stride, dropout, norm, first=number == 0))
            self.dim = grown

    def forward(self, x_bct: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x_bct)))
        for block in self.blocks:
            x = block(x)
        return x


class PaPaGei(nn.Module):
    """(B, C, T) z-scored -> (B, dim): batch norm, ReLU, the mean over time and one linear layer."""

    def __init__(self, trunk: ResNet1D, dim: int, norm: Norm = BatchNorm) -> None:
        super().__init__()
        self.trunk, self.dim = trunk, dim
        self.norm = norm(trunk.dim)
        self.head = nn.Linear(trunk.dim, dim)

    def forward(self, x_bct: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.trunk(x_bct))).mean(dim=-1))


class PulsePPG(nn.Module):
    """(B, C, T) in any unit -> (B, dim): instance norm, the network, and the maximum over time."""

    def __init__(self, trunk: ResNet1D) -> None:
        super().__init__()
        self.trunk, self.dim = trunk, trunk.dim

    def forward(self, x_bct: Tensor) -> Tensor:
        centred = x_bct - x_bct.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + EPS).sqrt()
        return self.trunk(scaled).amax(dim=-1)
