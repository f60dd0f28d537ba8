"""Peak memory of training on one worker, by ZeRO stage.

In units of P, the bytes of the trainable parameters in float32 (4 each, also under autocast), for N workers:

    stage   kept between steps                  in the backward pass, besides      in the update, besides
    DDP     weights 1, Adam 2, gradients 1      -                                  scratch 1
    ZeRO-1  weights 1, (master 1, Adam 2) / N   gradients 1 where accumulated      gradients 1, scratch 2 / N
    ZeRO-2  weights 1, (master 1, Adam 2) / N   gradients 1 / N where accumulated  gradients, scratch 3 / N
    ZeRO-3  (weights, master, gradients 1, Adam 2) / N   gathered weights 1,       scratch 3 / N
                                                         N > 1: all-gather 1, bucket 1

plus the micro-batch's activations in the backward pass (`Cost.held`). Derived from DeepSpeed 0.19's
stage_1_and_2.py and stage3.py, torch's AdamW (foreach: one scratch copy) and its Reducer; checked against the
resident memory of real ranks by `python -m tests.benchmarks.plan --memory`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.engine import BUCKET
from pretrain.planning.probe import Cost

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Peak:
    """Bytes on one worker. kept: all the time; held: a micro-batch's activations; scratch: gathered weights,
    gradients and buckets of the backward pass; update: scratch of the optimizer. The last three do not all
    occur at once: `total` takes the larger of backward pass and update.
    """

    kept: float
    held: float
    scratch: float
    update: float

    @property
    def total(self) -> float:
        return self.kept + max(self.held + self.scratch, self.update)


def peak(
    cost: Cost,
    stage: int,
    workers: int,
    micro: int,
    accumulation: int,
    offload: bool = False,
    laid: bool = True,
) -> Peak:
    """The peak of one of `workers` workers at ZeRO `stage`.

    offload: optimizer state in host memory. laid: whether allocated but unwritten buckets count (they do on
    an accelerator; a CPU's pages become resident only when written).
    """
    p, n = 4.0 * cost.parameters, workers
    gradients, state = 0.0, 3 * p / n  # master copy and Adam's two moments
    laid_out = [4.0 * min(BUCKET, count) for count in cost.trained.values()] if laid else [0.0]
    bucket = max(laid_out)  # a module's bucket is freed before the next is allocated
    if stage == 0:
        kept, update, state = 2 * p, p, 2 * p  # gradients are views of the buckets
        bucket = 0.0
    elif stage == 1:
        kept, update, gradients = p, p + 2 * p / n, p
    elif stage == 2:
        kept, update, gradients = p, 3 * p / n, p / n
    else:
        kept, update = 2 * p / n, 3 * p / n
        gradients = p * (2 if n > 1 else 1)  # gathered weights, and the all-gather's buffer
        bucket = sum(laid_out) or p * (n > 1)  # one per module, kept; on a CPU, what is written
    if not offload:
        kept += state
    elif stage:
        update -= p / n  # the scratch of the update is in host memory
    grown = gradients if accumulation > 1 or stage == 3 else 0.0
    return Peak(kept + cost.frozen, cost.held_at(micro), grown + bucket, update)


def largest_micro(
    cost: Cost,
    stage: int,
    workers: int,
    share: int,
    room: float,
    fragments: float = 1.0,
    offload: bool = False,
    laid: bool = True,
) -> int:
    """The largest micro-batch that divides a worker's `share` of the batch and fits in `room` bytes; 0 if
    none does."""
    for micro in sorted((d for d in range(1, share + 1) if share % d == 0), reverse=True):
        found = peak(cost, stage, workers, micro, share // micro, offload, laid)
        if found.total * fragments <= room:
            return micro
    return 0
