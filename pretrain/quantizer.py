"""The codebook: cosine vector quantisation with k-means start, EMA updates and reset of dead codes.

A thin wrapper of vector-quantize-pytorch that adds what a distributed, resumable run needs: draws keyed by
the window (its own come from each rank's global generator), sums over ranks whether torch.distributed was
started before or after construction, and a reset threshold that scales with batch and codebook.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.layers import full_precision, sum_over_ranks


class _KeyedSampler:
    """Draws rows of all ranks' batch by their keys: the ``num`` rows with the smallest keys, the same ones
    for any split of the batch over ranks. Cycles through them when there are too few."""

    def __init__(self) -> None:
        self.keys = torch.empty(0)

    def __call__(self, rows_1nd: Tensor, num: int) -> Tensor:
        rows, keys = rows_1nd[0], self.keys.flatten()
        take = min(num, len(keys))
        order = torch.argsort(keys, stable=True)[:take]
        rows, keys = rows[order].contiguous(), keys[order].contiguous()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            world = dist.get_world_size()
            all_rows = [torch.empty_like(rows) for _ in range(world)]
            all_keys = [torch.empty_like(keys) for _ in range(world)]
            dist.all_gather(all_rows, rows)
            dist.all_gather(all_keys, keys)
            order = torch.argsort(torch.cat(all_keys), stable=True)[:num]
            rows = torch.cat(all_rows)[order]
        return rows[torch.arange(num, device=rows.device) % len(rows)][None]


class Quantizer(nn.Module):
    """(B, N, D) features -> nearest code on the unit sphere.

    In training mode ``forward`` starts the codebook by k-means at the first batch, moves it by EMA, and
    re-seeds codes whose running count is under ``dead_share`` of the even share (0 = never). In eval mode,
    and in ``codes``, nothing changes. Everything runs in float32 with autocast off.
    """

    def __init__(self, dim: int, size: int, decay: float, kmeans: bool, dead_share: float) -> None:
        from vector_quantize_pytorch import VectorQuantize  # networks without a codebook run without it

        super().__init__()
        self.size = size
        self.dead_share = dead_share
        self.vq = VectorQuantize(
            dim=dim,
            codebook_size=size,
            use_cosine_sim=True,
            decay=decay,
            kmeans_init=kmeans,
            rotation_trick=False,
            threshold_ema_dead_code=1 if dead_share > 0 else 0,
            sync_codebook=False,
        )
        self._sampler = _KeyedSampler()
        book = self.vq._codebook
        book.sample_fn = book.replace_sample_fn = self._sampler
        book.all_reduce_fn = book.kmeans_all_reduce_fn = sum_over_ranks

    @property
    def started(self) -> bool:
        """Whether the codebook holds codes (k-means has run, or was not asked for)."""
        return bool(self.vq._codebook.initted)

    @property
    def codebook(self) -> Tensor:
        """(size, D) unit vectors."""
        return self.vq.codebook

    @property
    def perplexity(self) -> Tensor:
        """exp of the entropy of the codes' running (EMA) shares, (): ``size`` when all are used alike."""
        share = self.vq._codebook.cluster_size[0]
        share = share / share.sum()
        return torch.exp(-torch.xlogy(share, share).sum())

    def codes(self, z_bnd: Tensor) -> Tensor:
        """(B, N, D) -> (B, N) int64 code ids; changes nothing, in any mode."""
        with full_precision(z_bnd), torch.no_grad():
            return (F.normalize(z_bnd.float(), dim=-1) @ self.codebook.T).argmax(dim=-1)

    def forward(self, z_bnd: Tensor, keys_bn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> quantised (B, N, D) with straight-through gradient, ids (B, N) int64, commitment loss (): the
        mean square of code (no gradient) minus unit feature.

        keys_bn (B, N): keyed uniforms, which decide what seeds the codebook and its dead codes.
        """
        with full_precision(z_bnd):
            z = F.normalize(z_bnd.float(), dim=-1)
            if self.training:
                self._prepare(keys_bn)
                codes, ids, _ = self.vq(z.detach())
            else:
                ids = self.codes(z)
                codes = self.codebook[ids]
            return z + (codes - z).detach(), ids, F.mse_loss(z, codes.detach())

    def _prepare(self, keys_bn: Tensor) -> None:
        self._sampler.keys = keys_bn
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        threshold = self.dead_share * keys_bn.numel() * world / self.size
        book = self.vq._codebook
        book.threshold_ema_dead_code = threshold
        book.reset_cluster_size = 2.0 * threshold  # a fresh code gets ln 2 / (1 - decay) steps to find users
