"""Contrastive objectives over all workers, and their validation metrics.

Imports torch alone. Everything here is float32 (float64 for float64 input) with autocast off.
n rows of this rank, N rows of all ranks (N = n · world), D features. Every rank has the same n.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.layers import full_precision, sum_over_ranks

Negatives = Literal["global", "local"]


class Scale(nn.Module):
    """The learnable factor on cosines, exp(parameter), starting at 1 / ``temperature`` (CLIP, Radford 2021,
    2.5; AnyPPG's code) and bounded to [1, ``largest``]: CLIP's clip at 100 keeps training stable.

    At a bound, a gradient that points outwards is dropped and one that points inwards passes, so that the
    parameter cannot leave the range and can return; clipping alone would keep it at the bound for ever.
    """

    def __init__(self, temperature: float = 0.07, largest: float = 100.0) -> None:
        super().__init__()
        self.limit = math.log(largest)
        self.log = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def forward(self) -> Tensor:
        """(), above 0."""
        with full_precision(self.log):
            return _Bounded.apply(self.log, 0.0, self.limit)[0].exp()


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        outwards = ((x >= high) & (grad < 0)) | ((x <= low) & (grad > 0))  # a step goes against the gradient
        return grad.masked_fill(outwards, 0.0), None, None


def ranks() -> tuple[int, int]:
    """(rank, world size); (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks()[1])]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = sum_over_ranks(grad.clone(memory_format=torch.contiguous_format))
        return total[ranks()[0] * ctx.rows :][: ctx.rows]


def gather(x: Tensor) -> Tensor:
    """(n, …) -> (N, …), in the order of ranks, equal on all. Differentiable: the gradient of a row is the sum
    of the gradients from all ranks' losses."""
    return x if ranks()[1] == 1 else _Gather.apply(x)


def info_nce(
    a_nd: Tensor,
    b_nd: Tensor,
    scale: Tensor | float,
    valid_n: Tensor | None = None,
    subject_n: Tensor | None = None,
    negatives: Negatives = "global",
    within: bool = False,
) -> Tensor:
    """Symmetric InfoNCE between rows a and b, a scalar () (van den Oord 2018; CLIP).

    a_nd, b_nd  one pair per row; their norms do not matter (cosines).
    scale       factor on cosines, above 0 (1 / temperature).
    valid_n     bool: rows that are pairs. Other rows contribute no term and are never negatives. None: all.
    subject_n   int64: if given, other rows of the anchor's subject are excluded from its negatives.
    negatives   "global": rows of all ranks; "local": rows of this rank only (AnyPPG's released code).
    within      also use the other rows of the anchor's side as negatives (NT-Xent, Chen 2020).

    Returns the sum of this rank's terms times world / (valid rows of all ranks), because engines average
    gradients over ranks. Let L_r be rank r's value and z_s(θ) rank s's embeddings. Rank s computes
    (dz_s/dθ)ᵀ Σ_r ∂L_r/∂z_s (``gather`` sums over r), and the engine (1/world) Σ_s of those, which is
    d[(1/world) Σ_r L_r]/dθ; and (1/world) Σ_r L_r is the mean term over all valid rows, as one worker would
    compute it on the whole batch. The same holds for the scale, whose gradient each rank computes directly,
    and for ``local``, where only the candidates differ. A rank without valid rows returns 0 and still takes
    part in every collective; without valid rows on any rank the result is 0.
    """
    rank, world = ranks()
    with full_precision(a_nd):
        a, b = unit(a_nd), unit(b_nd)
        n = len(a)
        valid = torch.ones(n, dtype=torch.bool, device=a.device) if valid_n is None else valid_n
        count = sum_over_ranks(valid.sum().to(a.dtype))
        everywhere = negatives == "global"
        all_a, all_b = (gather(x) if everywhere else x for x in (a, b))
        others = gather(valid.to(torch.uint8)).bool() if everywhere else valid
        subjects = subject_n
        if subjects is not None and everywhere:
            subjects = gather(subjects)
        partner = torch.arange(n, device=a.device) + (rank * n if everywhere else 0)
        blocked = _blocked(partner, others, subject_n, subjects)
        terms = _terms(a, b, all_a, all_b, scale, partner, blocked, within)
        return torch.where(valid, terms, 0.0).sum() * world / count.clamp_min(1.0)


def unit(x_nd: Tensor) -> Tensor:
    """Rows scaled to norm 1, float32 (float64 stays float64); zero rows stay zero."""
    return F.normalize(x_nd if x_nd.dtype == torch.float64 else x_nd.float(), dim=-1)


def _blocked(
    partner_n: Tensor, valid_m: Tensor, subject_n: Tensor | None, subject_m: Tensor | None
) -> Tensor:
    """(n, m) bool: true where column j is not a candidate for row i. A row's partner is never blocked, so
    that its term stays finite."""
    blocked = ~valid_m[None, :].expand(len(partner_n), -1)
    if subject_n is not None and subject_m is not None:
        blocked = blocked | (subject_n[:, None] == subject_m[None, :])
    return blocked.scatter(1, partner_n[:, None], False)


def _terms(
    a_nd: Tensor,
    b_nd: Tensor,
    a_md: Tensor,
    b_md: Tensor,
    scale: Tensor | float,
    partner_n: Tensor,
    blocked_nm: Tensor,
    within: bool,
) -> Tensor:
    """-> (n,): mean of the cross-entropies of a_nd over candidates b_md and of b_nd over a_md."""
    out = []
    for anchor, other, same in ((a_nd, b_md, a_md), (b_nd, a_md, b_md)):
        logits = (scale * (anchor @ other.T)).masked_fill(blocked_nm, -torch.inf)
        if within:
            self_too = blocked_nm.scatter(1, partner_n[:, None], True)
            logits = torch.cat([logits, (scale * (anchor @ same.T)).masked_fill(self_too, -torch.inf)], dim=1)
        out.append(F.cross_entropy(logits, partner_n, reduction="none"))
    return (out[0] + out[1]) / 2


def held_out(
    a_nd: Tensor,
    b_nd: Tensor,
    scale: Tensor | float,
    subject_n: Tensor,
    size: int,
    valid_n: Tensor | None = None,
    within: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics of held-out pairs -> (loss (), {name: ()}), without collectives.

    Rows are compared in consecutive galleries of ``size`` rows, so that metrics depend neither on the number
    of workers nor on the micro-batch. Each subject counts once per gallery, with its first valid row. The
    last gallery may be smaller; ``chance`` is the recall@1 of guessing in the same galleries. All values are
    means over galleries weighted by rows (a gallery of one row is uninformative: loss 0, recall 1, chance 1).

    recall1_ab  share of a whose most similar b is their partner; recall5_ab: among the top five; _ba: from b.
    alignment   mean squared distance of unit pairs; uniformity: log mean exp(-2 d²) over pairs of different
                rows, mean of both sides (Wang and Isola 2020). Lower is better for both.
    """
    with full_precision(a_nd):
        a, b = unit(a_nd), unit(b_nd)
        valid = torch.ones(len(a), dtype=torch.bool, device=a.device) if valid_n is None else valid_n
        loss, weight = a.new_zeros(()), 0
        found: dict[str, Tensor] = {}
        for low in range(0, len(a), size):
            rows = slice(low, low + size)
            kept = _first(subject_n[rows], valid[rows])
            if not kept.any():
                continue
            x, y = a[rows][kept], b[rows][kept]
            partner = torch.arange(len(x), device=a.device)
            blocked = torch.zeros(len(x), len(x), dtype=torch.bool, device=a.device)
            terms = _terms(x, y, x, y, scale, partner, blocked, within)
            share = len(a[rows])
            weight += share
            loss = loss + share * terms.mean()
            for name, value in metrics(x, y).items():
                found[name] = found.get(name, loss.new_zeros(())) + share * value
        if not found:
            return loss, {name: loss for name in metrics(a[:0], b[:0])}
        return loss / weight, {name: value / weight for name, value in found.items()}


def _first(subject_n: Tensor, valid_n: Tensor) -> Tensor:
    """(n,) bool: the first valid row of each subject."""
    same = (subject_n[:, None] == subject_n[None, :]) & valid_n[:, None] & valid_n[None, :]
    return valid_n & ~same.tril(-1).any(dim=1)


@torch.no_grad()
def metrics(a_nd: Tensor, b_nd: Tensor) -> dict[str, Tensor]:
    """Retrieval in both directions, chance, alignment and uniformity of unit rows; see ``held_out``. A tie
    with the partner counts as a miss, so that constant embeddings score 0."""
    n = len(a_nd)
    cosine = a_nd @ b_nd.T
    found: dict[str, Tensor] = {}
    for name, logits in (("ab", cosine), ("ba", cosine.T)):
        ahead = (~(logits < logits.diagonal()[:, None])).sum(dim=1) - 1  # NaN is a miss, too
        found |= {f"recall{k}_{name}": (ahead < k).to(a_nd.dtype).sum() / max(n, 1) for k in (1, 5)}
    found["chance"] = a_nd.new_full((), 1.0 / max(n, 1))
    found["alignment"] = (a_nd - b_nd).square().sum(dim=1).sum() / max(n, 1)
    found["uniformity"] = (uniformity(a_nd) + uniformity(b_nd)) / 2
    return found


def uniformity(x_nd: Tensor) -> Tensor:
    """Log of the mean of exp(-2 d²) over pairs of different unit rows, (); 0 for fewer than two rows."""
    if len(x_nd) < 2:
        return x_nd.new_zeros(())
    return F.pdist(x_nd).square().mul(-2).exp().mean().log()


@torch.no_grad()
def spread(a_nd: Tensor, b_nd: Tensor, valid_n: Tensor) -> dict[str, Tensor]:
    """Alignment and uniformity as in ``metrics`` over the valid unit rows, without a host synchronisation to
    count them."""
    first, second = torch.triu_indices(len(a_nd), len(a_nd), 1, device=a_nd.device)
    pair = valid_n[first] & valid_n[second]
    apart = []
    for x in (a_nd, b_nd):
        near = torch.where(pair, F.pdist(x).square().mul(-2).exp(), 0.0).sum() / pair.sum()
        apart.append(torch.where(pair.any(), near, 1.0).log())
    gap = torch.where(valid_n, (a_nd - b_nd).square().sum(dim=1), 0.0).sum()
    return {"alignment": gap / valid_n.sum().clamp_min(1), "uniformity": (apart[0] + apart[1]) / 2}
