"""Objectives of the masked methods. Imports torch alone; everything here is float32 with autocast off.

B windows, N patches, P samples per patch, V codes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pretrain.layers import full_precision, global_mean, sum_over_ranks

Distance = Literal["l1", "mse"]


@torch.no_grad()
def spectrum(x_bnp: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of the tokenizer: FFT amplitudes, standardised per window over patches and bins, and phases
    divided by pi, in [-1, 1]; both (B, N, P) float32. A zero window gives zeros."""
    with full_precision(x_bnp):
        f = torch.fft.fft(x_bnp.float(), dim=-1)
        amplitude = f.abs()
        mean = amplitude.mean(dim=(1, 2), keepdim=True)
        std = amplitude.std(dim=(1, 2), keepdim=True)
        return (amplitude - mean) / std.clamp_min(1e-6), f.angle() / torch.pi


def distance(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    """Mean absolute ("l1", the paper) or mean square ("mse", the code) difference, ()."""
    with full_precision(a):
        return F.l1_loss(a.float(), b.float()) if kind == "l1" else F.mse_loss(a.float(), b.float())


def mean_where(x_b: Tensor, kept_b: Tensor, over_ranks: bool) -> Tensor:
    """Mean over the kept windows, (); 0 if there are none. ``over_ranks``: scaled by this rank's share of all
    kept windows, so that the mean over ranks, which engines take of gradients, is the global mean even for
    uneven shares."""
    kept = kept_b.to(x_b.dtype)
    total, world = kept.sum(), 1
    if over_ranks and dist.is_available() and dist.is_initialized():
        total, world = sum_over_ranks(total), dist.get_world_size()
    return torch.where(kept_b, x_b, 0.0).sum() * world / total.clamp_min(1.0)


def masked_cross_entropy(
    logits_mv: Tensor, targets_bn: Tensor, mask_bn: Tensor, at_m: Tensor
) -> tuple[Tensor, Tensor]:
    """-> mean cross-entropy of each window over its hidden patches (B,), 0 without hidden patches, and the
    mean over windows ().

    at_m int64: flat indices among all B * N of the patches that the logits belong to: all hidden ones,
    without repetition, and possibly others, which are ignored. Shapes then do not depend on the mask, so the
    host need not wait for it. A mean of window means does not depend on how the batch is split over ranks; a
    mean over patches would, because windows differ in their number of hidden patches.
    """
    with full_precision(logits_mv):
        each = F.cross_entropy(logits_mv.float(), targets_bn.flatten()[at_m], reduction="none")
        each = torch.where(mask_bn.flatten()[at_m], each, 0.0)
        sums = torch.zeros(len(mask_bn), device=each.device)
        sums = sums.index_add(0, at_m // mask_bn.shape[1], each)
        per_window = sums / mask_bn.sum(dim=1).clamp_min(1)
        return per_window, per_window.mean()


def advantage(per_window: Tensor, leave_one_out: bool, over_ranks: bool = True) -> Tensor:
    """Reward of the teacher: each window's cross-entropy minus the mean over all ranks, (B,), no gradient.

    ``leave_one_out`` scales by n / (n - 1), so that the baseline is the mean of the *other* windows; a
    baseline that includes the window itself shrinks the expected gradient by (n - 1) / n.
    ``over_ranks`` false: the mean over this rank only, for passes in which ranks are not synchronised.
    """
    rewards = per_window.detach()
    n = len(rewards)
    if over_ranks and dist.is_available() and dist.is_initialized():
        n *= dist.get_world_size()
    reward = rewards - (global_mean(rewards) if over_ranks else rewards.mean())
    return reward * (n / (n - 1)) if leave_one_out and n > 1 else reward


def reinforce(log_prob_b: Tensor, advantage_b: Tensor) -> Tensor:
    """Policy loss whose gradient increases the expected reward: mean of -advantage * log pi, ()."""
    return -(advantage_b.detach() * log_prob_b).mean()
