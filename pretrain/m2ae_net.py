"""The network of M2AE (arXiv 2605.09578): an encoder and a decoder per modality, and a shared bottleneck.

Imports torch alone. B windows, T samples, P samples per patch, N = T // P patches, D features. Inputs are
filtered and resampled signals; the network z-scores each window first, so the z-score is part of the ONNX
file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pretrain.layers import Block, PatchTransformer, initialise, patches
from pretrain.net1d import zscore


def scaled(x_bct: Tensor, patch: int) -> Tensor:
    """(B, 1, T) → (B, N, P), z-scored over the N patches; samples beyond whole patches are dropped first."""
    return patches(zscore(x_bct[..., : x_bct.shape[-1] // patch * patch]), patch)


class Bottleneck(nn.Module):
    """Transformer blocks over the joined tokens of one or more modalities: each (B, N, D) → same.

    ``names``: the known modalities, in order; a learned vector per modality marks its tokens.
    """

    def __init__(self, names: Sequence[str], dim: int, depth: int, heads: int, drop: float) -> None:
        super().__init__()
        self.names = tuple(names)
        self.kinds = nn.Parameter(torch.zeros(len(names), dim))
        self.blocks = nn.ModuleList([Block(dim, heads, bias=True, drop=drop) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.apply(initialise)
        nn.init.trunc_normal_(self.kinds, std=0.02)

    def forward(
        self, tokens: Mapping[str, Tensor], has: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """has (B,) bool by modality: tokens of an absent modality are masked in attention (None: all
        present)."""
        x = torch.cat([t + self.kinds[self.names.index(m)] for m, t in tokens.items()], dim=1)
        keys = None
        if has is not None:
            keys = torch.cat([has[m][:, None].expand(t.shape[:2]) for m, t in tokens.items()], dim=1)
            keys = keys | ~keys.any(
                dim=1, keepdim=True
            )  # a window with no modality attends to all: avoids NaN
        for block in self.blocks:
            x = block(x, keys)
        parts = self.norm(x).split([t.shape[1] for t in tokens.values()], dim=1)
        return dict(zip(tokens, parts, strict=True))


class M2AENet(nn.Module):
    """The complete trainable network. ``forward`` is for training; ``Fingerprint`` and ``Translate`` below
    are published."""

    def __init__(
        self,
        names: Sequence[str],
        patch: int,
        max_patches: int,
        dim: int,
        encoder_depth: int,
        bottleneck_depth: int,
        decoder_depth: int,
        heads: int,
        projection: int,
        drop: float,
        near: int,
    ) -> None:
        super().__init__()
        self.names, self.patch, self.dim = tuple(names), patch, dim
        block = partial(_block, dim, heads, drop)
        net = partial(PatchTransformer, dim=dim, max_patches=max_patches, block=block, near=near)
        self.encoders = nn.ModuleDict()
        self.decoders = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.projectors = nn.ModuleDict()
        for name in names:
            embed = nn.Sequential(nn.Linear(patch, dim), nn.GELU(), nn.Linear(dim, dim))
            self.encoders[name] = net(embed, depth=encoder_depth, maskable=True)
            self.decoders[name] = net(nn.Linear(dim, dim), depth=decoder_depth)
            self.heads[name] = nn.Linear(dim, patch).apply(initialise)
            self.projectors[name] = nn.Sequential(
                nn.Linear(dim, dim), nn.LayerNorm(dim), nn.GELU(), nn.Linear(dim, projection, bias=False)
            )
        self.bottleneck = Bottleneck(names, dim, bottleneck_depth, heads, drop)

    def decode(self, name: str, fused_bnd: Tensor) -> Tensor:
        """Fused tokens (B, N, D) → patches (B, N, P) of modality ``name``, float32."""
        return self.heads[name](self.decoders[name](fused_bnd)).float()

    def forward(
        self,
        clean: Mapping[str, Tensor],
        view: Mapping[str, Tensor],
        hidden: Mapping[str, Tensor],
        has: Mapping[str, Tensor] | None,
    ) -> dict[str, dict[str, Tensor]]:
        """Inputs by modality: patches (B, N, P) of the clean window and of its augmented view, ``hidden``
        (B, N) patches of that view, ``has`` (B,) (None: all present; attention then needs no mask). Outputs
        by modality:

        print, print_view    (B, projection): projected fingerprints of the modality alone, from the clean
                             window and from the view with hidden patches.
        joint, intra, cross  (B, N, P): the modality reconstructed from the views of all present modalities,
                             from its view alone, and from the other modality's clean window.

        Each part runs once: the clean window and its view form one batch.
        """
        nothing = {m: torch.zeros_like(h) for m, h in hidden.items()}
        tokens = {
            m: self.encoders[m](torch.cat([clean[m], view[m]]), torch.cat([nothing[m], hidden[m]]))
            for m in self.names
        }
        alone = {m: self.bottleneck({m: t})[m] for m, t in tokens.items()}
        whole = {m: z.chunk(2)[0] for m, z in alone.items()}
        viewed = {m: z.chunk(2)[1] for m, z in alone.items()}
        together = self.bottleneck({m: t.chunk(2)[1] for m, t in tokens.items()}, has)
        joint = fuse(together, has)
        out: dict[str, dict[str, Tensor]] = {
            key: {} for key in ("print", "print_view", "joint", "intra", "cross")
        }
        for m in self.names:
            (other,) = (n for n in self.names if n != m)
            prints = self.projectors[m](alone[m].mean(dim=1)).chunk(2)
            out["print"][m], out["print_view"][m] = prints
            rebuilt = self.decode(m, torch.cat([joint, viewed[m], whole[other]])).chunk(3)
            out["joint"][m], out["intra"][m], out["cross"][m] = rebuilt
        return out


def fuse(tokens: Mapping[str, Tensor], has: Mapping[str, Tensor] | None) -> Tensor:
    """Mean over the present modalities (None: all), token by token: (B, N, D)."""
    if has is None:
        return torch.stack(list(tokens.values())).mean(dim=0)
    weights = {m: has[m].to(t.dtype)[:, None, None] for m, t in tokens.items()}
    total = torch.stack([weights[m] * t for m, t in tokens.items()]).sum(dim=0)
    return total / torch.stack(list(weights.values())).sum(dim=0).clamp_min(1.0)


def _block(dim: int, heads: int, drop: float, drop_path: float) -> Block:
    return Block(dim, heads, bias=True, drop=drop, drop_path=drop_path)


class Fingerprint(nn.Module):
    """The published encoder for a set of modalities: each (B, 1, T) → (B, D), the mean bottleneck token."""

    def __init__(self, net: M2AENet, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, tuple(names)

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        net = self.net
        signals = [first] if second is None else [first, second]
        tokens = {m: net.encoders[m](scaled(x, net.patch)) for m, x in zip(self.names, signals, strict=True)}
        return torch.cat(list(net.bottleneck(tokens).values()), dim=1).mean(dim=1).float()


class Translate(nn.Module):
    """The published translation from one modality to another: (B, 1, T) → (B, 1, N · P), z-scored."""

    def __init__(self, net: M2AENet, source: str, target: str) -> None:
        super().__init__()
        self.net, self.source, self.target = net, source, target

    def forward(self, x_bct: Tensor) -> Tensor:
        net = self.net
        tokens = net.encoders[self.source](scaled(x_bct, net.patch))
        rebuilt = net.decode(self.target, net.bottleneck({self.source: tokens})[self.source])
        return rebuilt.flatten(1)[:, None]
