"""Choice of the masked patches: statistical priors, the teacher's sampling policy, its log-probability, and
the environment that edits a sample (SIGMA-PPG; constants from DESIGN section 8.1).

Imports torch alone. B windows, N patches, P samples per patch, K drawn patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.layers import full_precision, gumbel


@torch.no_grad()
def priors(x_bnp: Tensor, beta: float = 0.5) -> Tensor:
    """Informativeness prior of each patch: (B, N, P) of a [0, 1] signal -> (B, N) float32.

    ``beta * amp + (1 - beta) * skew`` with s = patch standard deviation (population),
    ``amp = exp(-0.2 z^2) * sigmoid(50 (s - 0.05)) * sigmoid(-5 (s - 2))``, z = 0.6745 (s - median) / MAD over
    the window's patches (0 where MAD < 1e-9), and ``skew = tanh |unbiased skewness|`` (0 for a flat patch).
    float32 with autocast off; no gradient.
    """
    with full_precision(x_bnp):
        x = x_bnp.float()
        n = x.shape[-1]
        centred = x - x.mean(dim=-1, keepdim=True)
        m2 = centred.square().mean(dim=-1)
        m3 = centred.pow(3).mean(dim=-1)
        s = m2.sqrt()
        middle = _median(s)
        mad = _median((s - middle).abs())
        still = mad < 1e-9
        z = torch.where(still, 0.0, 0.6745 * (s - middle) / torch.where(still, 1.0, mad))
        amp = (
            torch.exp(-0.2 * z.square()) * torch.sigmoid(50.0 * (s - 0.05)) * torch.sigmoid(-5.0 * (s - 2.0))
        )
        flat = m2 < 1e-10  # float32 rounding of a constant near 1 leaves this much
        unbias = (n * (n - 1)) ** 0.5 / (n - 2)
        g1 = torch.where(flat, 0.0, m3 / torch.where(flat, 1.0, m2).pow(1.5))
        return beta * amp + (1.0 - beta) * torch.tanh((unbias * g1).abs())


def _median(x_bn: Tensor) -> Tensor:
    """Median over patches, the mean of the middle two for an even count (torch's takes the lower): (B, 1)."""
    ordered = x_bn.sort(dim=-1).values
    n = x_bn.shape[-1]
    return 0.5 * (ordered[:, (n - 1) // 2] + ordered[:, n // 2])[:, None]


def zscore(x_bn: Tensor) -> Tensor:
    """Standardise each window's values by mean and sample standard deviation plus 1e-6 (the authors'
    code)."""
    if x_bn.shape[-1] < 2:
        return torch.zeros_like(x_bn)
    return (x_bn - x_bn.mean(dim=-1, keepdim=True)) / (x_bn.std(dim=-1, keepdim=True) + 1e-6)


@torch.no_grad()
def draw(logits_bn: Tensor, uniform_bn: Tensor, k: int) -> Tensor:
    """Gumbel-top-k: a sample of k patches without replacement, (B, K) int64 ids in the order of drawing;
    distributed as Plackett-Luce over the logits (Kool 2019)."""
    return (logits_bn.float() + gumbel(uniform_bn)).topk(k, dim=-1).indices


def plackett_luce_log_prob(logits_bn: Tensor, order_bk: Tensor) -> Tensor:
    """Log-probability of exactly this ordered sample, (B,) float32, K < N:
    sum over j of logit_j - logsumexp(logits of the patches left before draw j)."""
    with full_precision(logits_bn):
        logits = logits_bn.float()
        drawn = logits.gather(1, order_bk)
        out = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order_bk, True)
        rest = logits.masked_fill(out, float("-inf")).logsumexp(dim=1, keepdim=True)
        tail = drawn.flip(1).logcumsumexp(dim=1).flip(1)
        return (drawn - torch.logaddexp(tail, rest)).sum(dim=1)


def softmax_sum_log_prob(logits_bn: Tensor, order_bk: Tensor) -> Tensor:
    """The authors' code: sum over the drawn patches of log(softmax + 1e-10), (B,) float32. Not the
    log-probability of the sample, so REINFORCE with it is biased; a preset for comparison."""
    with full_precision(logits_bn):
        return (logits_bn.float().softmax(dim=1).gather(1, order_bk) + 1e-10).log().sum(dim=1)


def to_mask(order_bk: Tensor, n: int) -> Tensor:
    """(B, K) ids -> (B, N) bool, true = hidden."""
    empty = torch.zeros(order_bk.shape[0], n, dtype=torch.bool, device=order_bk.device)
    return empty.scatter(1, order_bk, True)


def places(order_bk: Tensor, n: int) -> Tensor:
    """(B, K) ids -> (B * K,) int64: flat indices of the drawn patches among all B * n, ascending."""
    rows = torch.arange(len(order_bk), device=order_bk.device)[:, None]
    return (order_bk.sort(dim=1).values + rows * n).flatten()


def edit(mask_bn: Tensor, uniform_bn: Tensor, unmask: float, max_run: int) -> Tensor:
    """The environment: unmask each hidden patch with probability ``unmask``, then every (max_run + 1)-th
    patch of a longer hidden run. (B, N) bool -> (B, N) bool."""
    mask = mask_bn & (uniform_bn >= unmask)
    at = torch.arange(1, mask.shape[1] + 1, device=mask.device).expand_as(mask)
    last_shown = torch.where(mask, 0, at).cummax(dim=1).values
    return mask & ((at - last_shown) % (max_run + 1) != 0)


def entropy(logits_bn: Tensor) -> Tensor:
    """Entropy in nats of the first draw, (B,) float32: log N for a uniform teacher."""
    with full_precision(logits_bn):
        log_p = logits_bn.float().log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1)
