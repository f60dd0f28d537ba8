"""MOMENT (Goswami et al., arXiv 2402.03885): patches of one channel, a T5 encoder, the mean over patches.

Imports torch alone. B windows, C channels, T samples, N patches, P samples a patch, D features.

MOMENT reads 512 samples. Shorter input is padded at the left and masked: padding counts neither in the
statistics, nor as a key, nor in the mean, and a patch that is padded in part is masked as a whole. So a
shorter input here is just its whole patches at the last positions, which gives the same vectors.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES = 512  # seq_len of all releases: the longest input
EPS = 1e-5  # code, layers/revin.py: added to the standard deviation
FAR = 128  # T5: relative_attention_max_distance, in patches


class Block(nn.Module):
    """T5's encoder block: attention with a bias on its scores, then a gated MLP; (B, N, D) -> same.

    T5 scales no scores by the width of a head; its initialisation of the queries does.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.RMSNorm(dim, eps=1e-6)
        self.q, self.k, self.v = (nn.Linear(dim, heads * head_dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(heads * head_dim, dim, bias=False)
        self.norm2 = nn.RMSNorm(dim, eps=1e-6)
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.drop = nn.Dropout(dropout)
        for layer in (self.q, self.k, self.v, self.proj, self.gate, self.up, self.down):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.q.weight.data.mul_(head_dim**-0.5)

    def forward(self, x_bnd: Tensor, bias_1hnn: Tensor) -> Tensor:
        b, n, _ = x_bnd.shape
        y = self.norm1(x_bnd)
        q, k, v = (f(y).reshape(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        drop = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias_1hnn.to(q.dtype), dropout_p=drop, scale=1.0
        )
        x_bnd = x_bnd + self.drop(self.proj(y.transpose(1, 2).reshape(b, n, -1)))
        y = self.norm2(x_bnd)
        y = self.drop(F.gelu(self.gate(y), approximate="tanh") * self.up(y))
        return x_bnd + self.drop(self.down(y))


class Moment(nn.Module):
    """(B, 1, T) in any unit -> (B, dim), T from one patch to 512 samples; samples before the first whole
    patch, counted from the end, enter the statistics only.

    buckets  rows of the table of biases (see ``bucket``).
    """

    positions: Tensor
    bucket_of: Tensor

    def __init__(
        self,
        dim: int = 512,
        depth: int = 8,
        heads: int = 6,
        head_dim: int = 64,
        hidden: int = 1024,
        patch: int = 8,
        buckets: int = 32,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim, self.patch = dim, patch
        self.embed = nn.Linear(patch, dim, bias=False)
        nn.init.orthogonal_(self.embed.weight, gain=1.41)
        most = SAMPLES // patch
        self.register_buffer("positions", sinusoids(most, dim))
        self.register_buffer("bucket_of", torch.tensor([bucket(d, buckets) for d in range(1 - most, most)]))
        # no nn.Embedding: the exporter names its result "embedding", as the output of every bundle is named
        self.biases = nn.Parameter(torch.empty(buckets, heads).normal_(std=dim**-0.5))
        self.blocks = nn.ModuleList([Block(dim, heads, head_dim, hidden, dropout) for _ in range(depth)])
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_bct: Tensor) -> Tensor:
        x = x_bct[:, 0].float()
        x = x - x.mean(dim=-1, keepdim=True)
        x = x / (x.square().mean(dim=-1, keepdim=True).sqrt() + EPS)
        n = x.shape[-1] // self.patch
        ends = x.flip(-1)[:, : n * self.patch].reshape(len(x), n, self.patch).flip(1, 2)
        place = torch.arange(n, device=x.device)
        first = len(self.positions) - n
        x = self.drop(self.embed(ends) + self.positions[place + first])
        away = place[None] - place[:, None] + len(self.positions) - 1
        bias = self.biases[self.bucket_of[away]].permute(2, 0, 1)[None]
        for block in self.blocks:
            x = block(x, bias)
        return self.drop(self.norm(x)).mean(dim=1)


def sinusoids(count: int, dim: int) -> Tensor:
    """(count, dim): sine and cosine of each position in turn (Vaswani 2017)."""
    angles = torch.arange(count)[:, None] * torch.exp(torch.arange(0, dim, 2) * -(math.log(1e4) / dim))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


def bucket(distance: int, buckets: int) -> int:
    """The row of T5's table for a key `distance` patches after the query (negative: before it). Half of the
    rows are for each direction; half of those for one distance each, the others for ranges that grow by equal
    factors up to ``FAR``."""
    half = buckets // 2
    exact, far = half // 2, abs(distance)
    start = half if distance > 0 else 0
    if far < exact:
        return start + far
    # float32 as in T5: at a range's border, another rounding would give another row
    share = torch.log(torch.tensor(far / exact, dtype=torch.float32, device="cpu")) / math.log(FAR / exact)
    return start + min(exact + int(share * (half - exact)), half - 1)
