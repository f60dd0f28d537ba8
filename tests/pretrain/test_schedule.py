import math

import pytest

from pretrain.config import Optim
from pretrain.schedule import learning_rate


def test_warm_up_rises_in_optimizer_steps_to_the_peak_and_cosine_falls_to_the_floor() -> None:
    optim = Optim(lr=1.0, min_lr=0.1, warmup_steps=10)
    rates = [learning_rate(optim, step, 100, 5.0, 32) for step in range(101)]
    assert rates[:11] == sorted(rates[:11]) and rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))


def test_warm_up_in_epochs_counts_steps() -> None:
    optim = Optim(lr=1.0, warmup_epochs=2)
    assert learning_rate(optim, 15, 100, 8.0, 1) < 1.0 == learning_rate(optim, 16, 100, 8.0, 1)


def test_sigmas_rule_scales_by_the_root_of_the_batch() -> None:
    optim = Optim(lr=5e-5, lr_reference_batch=128, schedule="constant")
    assert learning_rate(optim, 0, 10, 1.0, 4096) == pytest.approx(5e-5 * math.sqrt(32))
