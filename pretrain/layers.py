"""Building blocks shared by the recipes: keyed randomness, global means, patches, transformer blocks.

Imports torch alone, so that it runs on a machine with nothing else installed. Tensor names give shapes:
B windows, C channels, T samples, N patches, P samples a patch, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64 (Steele, Lea, Flood 2014): increment and the two multipliers
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(word: int) -> int:
    """The int64 with the same bits: torch has no unsigned arithmetic, but its int64 wraps."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right (torch's is arithmetic)."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shift(x, 27)) * _signed(_MIX[1])
    return x ^ _shift(x, 31)


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MIX[0]) & _WORD
    x = ((x ^ (x >> 27)) * _MIX[1]) & _WORD
    return x ^ (x >> 31)


def keyed_uniform(ids: Tensor, n: int, *key: int) -> Tensor:
    """(B,) int64 window ids -> (B, n) float32 uniforms in the open interval (0, 1).

    A pure function of (key, id, position): a window draws the same numbers on any rank, in any order and
    after a resume. Resolution 2^-23, never 0 or 1, so that ``log(-log(u))`` is finite.
    """
    state = 0
    for part in key:
        state = _mix_int(((state ^ (part & _WORD)) + _GOLDEN) & _WORD)
    seeds = _mix((ids.to(torch.int64) ^ _signed(state)) + _signed(_GOLDEN))
    steps = torch.arange(1, n + 1, device=ids.device, dtype=torch.int64) * _signed(_GOLDEN)
    words = _mix(seeds[:, None] + steps[None, :])
    return (_shift(words, 41).float() + 0.5) * 2.0**-23


def keyed_normal(ids: Tensor, n: int, *key: int) -> Tensor:
    """(B,) int64 window ids -> (B, n) float32 standard normals, keyed as ``keyed_uniform`` (|z| < 5.4)."""
    return math.sqrt(2.0) * torch.erfinv(2.0 * keyed_uniform(ids, n, *key) - 1.0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's global generator for the block and restore its state afterwards. The weights of networks
    built in the block are a pure function of the seed, and no other draw changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniforms in (0, 1), any shape."""
    return -torch.log(-torch.log(uniform))


class Stepped(nn.Module):
    """A module part whose state is updated without gradients (a codebook, a running mean). In training, its
    forward passes only collect data. The loop updates it once per optimizer step, from the whole batch, so
    that the result depends neither on micro-batches nor on ranks."""

    waits = False  # whether a forward pass needs a whole batch before it can work

    def start(self) -> None:
        """Initialise once, from a whole batch that forward passes have just collected; the step is then
        repeated."""

    def move(self) -> None:
        """Update from what forward passes have collected since the last call; before the optimizer steps."""


def stepped(module: nn.Module) -> list[Stepped]:
    """The ``Stepped`` parts of a module, wrapped or not."""
    return [part for part in module.modules() if isinstance(part, Stepped)]


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sums in place over all ranks where torch.distributed runs; returns x."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x


def global_mean(x: Tensor) -> Tensor:
    """Mean over all elements of x on all ranks, without gradient: a () float32 tensor."""
    x = x.detach().float()
    total = sum_over_ranks(torch.stack([x.sum(), x.new_full((), x.numel())]))
    return total[0] / total[1]


def full_precision(x: Tensor) -> torch.autocast:
    """Context that turns autocast off on x's device, for computations that must stay float32."""
    return torch.autocast(device_type=x.device.type, enabled=False)


def count(module: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def minmax(x_bct: Tensor, onto: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Min-max scaling of (B, C, T) onto a range per window and channel (SIGMA's code preset). A constant
    window becomes zeros, so it cannot produce NaN."""
    x_bct = x_bct.float()
    low = x_bct.amin(dim=-1, keepdim=True)
    span = x_bct.amax(dim=-1, keepdim=True) - low
    flat = span <= 1e-12
    y = (x_bct - low) / torch.where(flat, 1.0, span)
    if onto != (0.0, 1.0):
        y = y * (onto[1] - onto[0]) + onto[0]
    return torch.where(flat, torch.zeros_like(x_bct), y)


def patches(x_bct: Tensor, size: int) -> Tensor:
    """(B, 1, T) -> (B, N, size) with N = T // size; remaining samples are dropped."""
    n = x_bct.shape[-1] // size
    return x_bct[:, 0, : n * size].reshape(x_bct.shape[0], n, size)


def halved(x_bct: Tensor) -> Tensor:
    """Max pooling over pairs of samples, (B, C, T) -> (B, C, ceil(T / 2)); an odd last one is paired with a
    zero."""
    # Not exactly zero: onnxruntime moves a padding by 0 into the pooling, where it pads by -inf
    # (findings/onnxruntime_pad_before_maxpool.sh); no float32 above 1e-30 feels the difference.
    return F.max_pool1d(F.pad(x_bct, (0, x_bct.shape[-1] % 2), value=1e-37), 2)


class DropPath(nn.Module):
    """Drops a residual branch for a whole sample with probability p (stochastic depth, Huang 2016)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x_bnd: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x_bnd
        keep = torch.rand(x_bnd.shape[0], 1, 1, device=x_bnd.device) >= self.p
        return x_bnd * keep.to(x_bnd.dtype) / (1.0 - self.p)


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, D), fused kernel; optional LayerNorm on queries and keys.

    With ``bias``, queries and values have a bias and keys have none (BEiT), because softmax ignores a shift
    of all keys; the keys' LayerNorm has no bias for the same reason.
    """

    def __init__(self, dim: int, heads: int, bias: bool, qk_norm: bool, drop: float, attn_drop: float):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide by heads {heads}")
        self.heads = heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        # on the module that adds them, not inside qkv: ZeRO-3 gathers only a module's direct parameters
        self.q_bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.q_norm = nn.LayerNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=1e-6, bias=False) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x_bnd: Tensor, keys_bn: Tensor | None = None) -> Tensor:
        """keys_bn: true = may be attended to (None: all); each row needs at least one."""
        b, n, d = x_bnd.shape
        q, k, v = self.qkv(x_bnd).chunk(3, dim=-1)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias.to(q.dtype), v + self.v_bias.to(v.dtype)
        q, k, v = (t.reshape(b, n, self.heads, d // self.heads).transpose(1, 2) for t in (q, k, v))
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        allowed = None if keys_bn is None else keys_bn[:, None, None]
        drop = self.attn_drop if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=drop)
        return self.drop(self.proj(y.transpose(1, 2).reshape(b, n, d)))


class Block(nn.Module):
    """Pre-norm transformer block, LayerScale (Touvron 2021; 0 = none), drop path: (B, N, D) -> same."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        bias: bool = False,
        qk_norm: bool = False,
        layer_scale: float = 0.0,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, bias, qk_norm, drop, attn_drop)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path)
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None

    def forward(self, x_bnd: Tensor, keys_bn: Tensor | None = None) -> Tensor:
        y = self.attn(self.norm1(x_bnd), keys_bn)
        x_bnd = x_bnd + self.drop_path(y if self.gamma1 is None else self.gamma1 * y)
        y = self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x_bnd)))))
        return x_bnd + self.drop_path(y if self.gamma2 is None else self.gamma2 * y)


class TemporalConv(nn.Module):
    """(B, N, P) patches -> (B, N, dim): three convolutions inside each patch (k15 s8, k3, k3; GroupNorm 4;
    GELU), then a linear layer (SIGMA-PPG's code preset).

    As in that code, GroupNorm computes its statistics over all patches of a window. This keeps the patches'
    relative amplitudes, and passes a few numbers per layer between patches, also from masked ones.
    """

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        width = (patch + 14 - 15) // 8 + 1
        layers: list[nn.Module] = []
        for i, (kernel, stride) in enumerate(((15, 8), (3, 1), (3, 1))):
            layers += [
                nn.Conv2d(1 if i == 0 else channels, channels, (1, kernel), (1, stride), (0, kernel // 2)),
                nn.GroupNorm(4, channels),
                nn.GELU(),
            ]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Linear(width * channels, dim)

    def forward(self, x_bnp: Tensor) -> Tensor:
        return self.proj(self.conv(x_bnp[:, None]).permute(0, 2, 3, 1).flatten(2))


class PatchTransformer(nn.Module):
    """Embedded patches -> contextual patches: (B, N, inner) -> (B, N, dim), N from 1 to ``max_patches``.

    ``embed`` maps the input to (B, N, dim). A class token is added and dropped at the end. A learned vector
    replaces each masked patch before positions are added.
    """

    def __init__(
        self,
        embed: nn.Module,
        dim: int,
        depth: int,
        max_patches: int,
        block: Callable[[float], Block],
        drop: float = 0.0,
        drop_path: float = 0.0,
        maskable: bool = False,
        near: int = 0,
    ) -> None:
        """near: width in patches (odd; 0 for none) of a depthwise convolution over neighbouring patches that
        is added to the positions (wav2vec 2.0, Baevski 2020)."""
        super().__init__()
        self.max_patches = max_patches
        self.near = nn.Conv1d(dim, dim, near, padding=near // 2, groups=dim) if near else None
        self.embed = embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if maskable else None
        self.positions = nn.Parameter(torch.zeros(1, max_patches, dim))
        self.drop = nn.Dropout(drop)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList([block(rate) for rate in rates])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.apply(initialise)
        for token in (self.cls_token, self.mask_token, self.positions):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for i, layer in enumerate(self.blocks, start=1):  # BEiT: later residual branches start smaller
            assert isinstance(layer, Block)
            for linear in (layer.attn.proj, layer.fc2):
                linear.weight.data.div_(math.sqrt(2.0 * i))

    def forward(
        self,
        x_bni: Tensor,
        mask_bn: Tensor | None = None,
        start_b: Tensor | None = None,
        blocks: int | None = None,
    ) -> Tensor:
        """mask_bn: true = hidden. start_b (B,) int64: position of each window's first patch (None: 0).
        blocks: stop after this many blocks, before the last norm (None: all blocks and the norm)."""
        x = self.embed(x_bni)
        if mask_bn is not None:
            assert self.mask_token is not None, "built with maskable=False"
            x = torch.where(mask_bn[..., None], self.mask_token.to(x.dtype), x)
        if start_b is None:
            x = x + self.positions[:, : x.shape[1]]
        else:
            x = x + self.positions[0, start_b[:, None] + torch.arange(x.shape[1], device=x.device)]
        if self.near is not None:
            x = x + F.gelu(self.near(x.transpose(1, 2))).transpose(1, 2)
        x = self.drop(torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1))
        for block in self.blocks[:blocks]:
            x = block(x)
        return (x if blocks is not None else self.norm(x))[:, 1:]


def initialise(module: nn.Module) -> None:
    """For ``net.apply``: small normal weights, zero biases (BEiT; the authors' code). Zero biases matter
    before a cosine codebook: random ones point all features in one direction, and codes never separate."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
