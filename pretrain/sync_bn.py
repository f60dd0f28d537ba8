"""Batch normalisation with statistics over all workers, on CPU and GPU.

torch's ``SyncBatchNorm`` runs only on GPUs. Imports torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.layers import full_precision, sum_over_ranks


class BatchNorm(nn.BatchNorm1d):
    """(B, C) or (B, C, T) -> same, as ``BatchNorm1d`` on the rows of all ranks together.

    sync      false: statistics of this rank's rows only; the result then depends on the number of workers.
    momentum  weight of a batch in the running statistics. At torch's 0.1, a tenth of the initial value
    remains
              after 20 steps, a large error where variances are small.

    Ranks may have different numbers of rows, even none: a rank without rows takes part in the collectives and
    returns an empty tensor. If no rank has a row, nothing changes. Statistics are float32 (float64 for
    float64 input), also under autocast. Every rank must call it, forward and backward, in the same order.
    State dict names are those of ``BatchNorm1d``.
    """

    def __init__(self, channels: int, sync: bool = True, momentum: float = 0.1) -> None:
        super().__init__(channels, momentum=momentum)
        self.sync = sync

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over_ranks = self.sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not over_ranks and x.numel() > x.shape[1]:  # torch refuses a single value per channel
            return super().forward(x)
        with full_precision(x):
            wide = x if x.dtype == torch.float64 else x.float()
            y, count, mean, m2 = _Normalise.apply(wide, self.weight, self.bias, self.eps, over_ranks)
        self._track(count, mean, m2)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Update running mean and unbiased variance in place; without rows they stay unchanged."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        some = (count > 0).to(mean.dtype)
        weight = self.momentum * some
        variance = m2 / (count - 1).clamp_min(1)
        self.running_mean.add_((weight * (mean - self.running_mean)).to(self.running_mean.dtype))
        self.running_var.add_((weight * (variance - self.running_var)).to(self.running_var.dtype))
        self.num_batches_tracked.add_(some.long())


class _Normalise(torch.autograd.Function):
    """Forward: one all-reduce of counts and sums, and one of squared deviations from the common mean (sums of
    squares would lose precision by cancellation). Backward: one all-reduce, because each row affects every
    rank's statistics. The gradients of weight and bias are this rank's part: the engine reduces them over
    ranks, as for any other parameter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, over_ranks: bool) -> Any:
        dims = [0, 2] if x.ndim == 3 else [0]
        rows = x.numel() // x.shape[1]
        reduce = sum_over_ranks if over_ranks else _same
        total = reduce(torch.cat([x.sum(dims), x.new_full((1,), rows)]))
        count = total[-1]
        mean = total[:-1] / count.clamp_min(1)
        centred = x - _row(mean, x)
        m2 = reduce(centred.square().sum(dims))
        inverse = (m2 / count.clamp_min(1) + eps).rsqrt()
        normal = centred * _row(inverse, x)
        ctx.save_for_backward(normal, inverse, weight, count)
        ctx.dims, ctx.reduce = dims, reduce
        ctx.mark_non_differentiable(count, mean, m2)
        return normal * _row(weight.to(x.dtype), x) + _row(bias.to(x.dtype), x), count, mean, m2

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        normal, inverse, weight, count = ctx.saved_tensors
        shift, slope = grad.sum(ctx.dims), (grad * normal).sum(ctx.dims)
        both = ctx.reduce(torch.stack([shift, slope])) / count.clamp_min(1)
        inner = grad - _row(both[0], grad) - normal * _row(both[1], grad)
        by_x = inner * _row(inverse * weight.to(grad.dtype), grad)
        return by_x, slope.to(weight.dtype), shift.to(weight.dtype), None, None


def _row(c: Tensor, like: Tensor) -> Tensor:
    """(C,) reshaped to broadcast over ``like``."""
    return c[:, None] if like.ndim == 3 else c


def _same(x: Tensor) -> Tensor:
    return x
