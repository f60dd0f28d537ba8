"""Learning rate as a pure function of the optimizer step, so that a resumed run needs no scheduler state."""

from math import cos, pi, sqrt

from pretrain.config import Optim


def learning_rate(optim: Optim, step: int, steps: int, steps_per_epoch: float, batch: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then cosine to `min_lr`."""
    peak = optim.lr * (sqrt(batch / optim.lr_reference_batch) if optim.lr_reference_batch else 1.0)
    warmup = optim.warmup_steps if optim.warmup_steps is not None else optim.warmup_epochs * steps_per_epoch
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if optim.schedule == "constant":
        return peak
    done = (step - warmup) / max(steps - warmup, 1)
    return optim.min_lr + (peak - optim.min_lr) * 0.5 * (1 + cos(pi * min(done, 1.0)))
