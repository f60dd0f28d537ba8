"""The codebook: cosine vector quantisation with k-means initialisation, EMA updates and reset of dead codes.

Imports torch and vector-quantize-pytorch alone; a thin wrapper of the latter. It adds what a distributed,
resumable run needs: draws keyed by the window (the library draws from each rank's global generator), sums
over ranks whether torch.distributed was started before or after construction, one update per optimizer step
(the library updates at each forward pass), and a reset threshold that scales with batch and codebook.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pretrain.layers import Stepped, full_precision, sum_over_ranks


class _KeyedSampler:
    """Draws the ``num`` rows with the smallest keys from all ranks' batch, the same rows for any split of the
    batch over ranks. Cycles through the rows if there are too few."""

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


class Quantizer(Stepped):
    """(B, N, D) features -> nearest code on the unit sphere.

    In training mode, ``forward`` collects features, and ``move`` updates the codebook by EMA and re-seeds
    codes whose running count is below ``dead_share`` of the uniform share (0 = never). A codebook with
    k-means initialisation has no codes before ``start``; until then ``forward`` sets ``waits`` and its output
    is meaningless. In eval mode, and in ``codes``, nothing changes. Everything runs in float32 with autocast
    off.
    """

    def __init__(self, dim: int, size: int, decay: float, kmeans: bool, dead_share: float) -> None:
        from vector_quantize_pytorch import VectorQuantize  # not needed by networks without a codebook

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
        self._seen: list[tuple[Tensor, Tensor]] = []  # features (n, D) and keys (n,), one per forward pass
        self._count = 0

    @property
    def started(self) -> bool:
        """Whether the codebook has codes (k-means has run or is off)."""
        return bool(self.vq._codebook.initted)

    @property
    def codebook(self) -> Tensor:
        """(size, D) unit vectors."""
        return self.vq.codebook

    @property
    def perplexity(self) -> Tensor:
        """exp of the entropy of the codes' running (EMA) shares, (); equals ``size`` for uniform use."""
        share = self.vq._codebook.cluster_size[0]
        share = share / share.sum()
        return torch.exp(-torch.xlogy(share, share).sum())

    def codes(self, z_bnd: Tensor) -> Tensor:
        """(B, N, D) -> (B, N) int64 code ids; changes no state in any mode."""
        with full_precision(z_bnd), torch.no_grad():
            return (F.normalize(z_bnd.float(), dim=-1) @ self.codebook.T).argmax(dim=-1)

    def forward(self, z_bnd: Tensor, keys_bn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> quantised (B, N, D) with straight-through gradient, ids (B, N) int64, and commitment loss ():
        the mean square of code (no gradient) minus unit feature.

        keys_bn (B, N): keyed uniforms that choose the features that seed the codebook and replace dead codes.
        """
        with full_precision(z_bnd):
            z = F.normalize(z_bnd.float(), dim=-1)
            if self.training and self.started:
                self._gather(z.detach(), keys_bn, self.size if self.dead_share > 0 else 0)
                # adds the counts and sums of this pass to those of the step's earlier passes
                codes, ids, _ = self.vq(z.detach(), accum_ema_update=True)
            else:
                if self.training:
                    self._gather(z.detach(), keys_bn, keys_bn.numel())
                    self.waits = True
                ids = self.codes(z)
                codes = self.codebook[ids]
            return z + (codes - z).detach(), ids, F.mse_loss(z, codes.detach())

    def _gather(self, z_bnd: Tensor, keys_bn: Tensor, most: int) -> None:
        """Keep the ``most`` features with the smallest keys; only these can be drawn."""
        keys = keys_bn.flatten()
        order = torch.argsort(keys, stable=True)[:most] if most < len(keys) else slice(None)
        self._seen.append((self.vq._codebook.transform_input(z_bnd).flatten(0, 1)[order], keys[order]))
        self._count += len(keys)

    @torch.no_grad()
    def start(self) -> None:
        """Initialise by k-means over the features of the whole batch of all ranks."""
        book, seen = self.vq._codebook, [z for z, _ in self._seen]
        if len(seen) == 0 or self.started:
            self._forget()
            return
        self._sampler.keys = torch.cat([keys for _, keys in self._seen])
        with full_precision(seen[0]):
            first = self._sampler(torch.cat(seen)[None], self.size)[0]
            means, counts = _kmeans(seen, first, book.kmeans_iters)
            book.embed_avg.copy_((means * counts[:, None])[None])
            book.cluster_size.copy_(counts[None])
            book.update_ema()
        book.initted.fill_(True)
        self._forget()

    @torch.no_grad()
    def move(self) -> None:
        """One EMA update and one reset of dead codes, from the whole batch of all ranks."""
        from vector_quantize_pytorch.vector_quantize_pytorch import ema_inplace

        book = self.vq._codebook
        if not self._seen or book.cluster_size.grad is None:
            self._forget()
            return
        for running in (book.cluster_size, book.embed_avg):
            gathered, running.grad = running.grad, None
            ema_inplace(running, sum_over_ranks(gathered), book.decay)
        book.update_ema()
        if self.dead_share > 0:
            world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
            book.threshold_ema_dead_code = self.dead_share * self._count * world / self.size
            # a re-seeded code has ln 2 / (1 - decay) steps to come into use
            book.reset_cluster_size = 2.0 * book.threshold_ema_dead_code
            self._sampler.keys = torch.cat([keys for _, keys in self._seen])
            book.expire_codes_(torch.cat([z for z, _ in self._seen])[None])
        self._forget()

    def _forget(self) -> None:
        self._seen, self._count, self.waits = [], 0, False
        book = self.vq._codebook
        book.cluster_size.grad = book.embed_avg.grad = None


def _kmeans(parts: list[Tensor], means_vd: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on the unit sphere over all ranks: (V, D) means and (V,) row counts.

    Like the library's, but for rows in parts (n, D), so that the distances of a whole batch to a large
    codebook need not fit in memory at once.
    """
    counts = means_vd.new_zeros(len(means_vd))
    for _ in range(iterations):
        counts, sums = torch.zeros_like(counts), torch.zeros_like(means_vd)
        for rows in parts:
            nearest = (rows @ means_vd.T).argmax(dim=-1)
            counts += torch.zeros_like(counts).scatter_add_(0, nearest, torch.ones_like(rows[:, 0]))
            sums += torch.zeros_like(sums).scatter_add_(0, nearest[:, None].expand_as(rows), rows)
        counts = sum_over_ranks(counts)
        moved = F.normalize(sum_over_ranks(sums / counts.clamp_min(1)[:, None]), dim=-1, eps=1e-6)
        means_vd = torch.where(counts[:, None] == 0, means_vd, moved)
    return means_vd, counts
