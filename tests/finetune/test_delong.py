"""The closed-form AUROC interval against loops over pairs, and against the bootstrap."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from finetune import metrics
from finetune.evaluation import classes, delong


def pairs(hot: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(positives, negatives): 1, ½ or 0 of each pair."""
    difference = score[hot][:, None] - score[~hot]
    return np.where(difference > 0, 1.0, np.where(difference == 0, 0.5, 0.0))


@pytest.mark.parametrize("seed", range(4))
def test_of_independent_windows_it_is_delongs_variance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hot = rng.random(120) < 0.3
    score = np.round(rng.normal(size=120) + hot, 1)  # ties
    found = delong.auroc(hot, score, np.arange(120))
    matrix = pairs(hot, score)
    assert found.value == pytest.approx(roc_auc_score(hot, score)) == pytest.approx(matrix.mean())
    variance = matrix.mean(1).var(ddof=1) / len(matrix) + matrix.mean(0).var(ddof=1) / matrix.shape[1]
    assert found.high - found.value == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)


def test_of_several_windows_a_subject_it_is_obuchowskis_sum_by_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    who = rng.integers(0, 25, 200)
    hot = rng.random(200) < 0.4
    score = rng.normal(size=200) + hot + rng.normal(size=25)[who]
    found, matrix = delong.auroc(hot, score, who), pairs(hot, score)
    m, n = matrix.shape
    s10 = s01 = s11 = 0.0
    with_m = with_n = 0
    for subject in range(25):
        mine_p, mine_n = who[hot] == subject, who[~hot] == subject
        a = sum(matrix[i].mean() - matrix.mean() for i in np.flatnonzero(mine_p))
        b = sum(matrix[:, j].mean() - matrix.mean() for j in np.flatnonzero(mine_n))
        s10, s01, s11 = s10 + a * a, s01 + b * b, s11 + a * b
        with_m, with_n = with_m + mine_p.any(), with_n + mine_n.any()
    variance = (
        with_m / (with_m - 1) * s10 / m**2 + with_n / (with_n - 1) * s01 / n**2 + 2 * 25 / 24 * s11 / (m * n)
    )
    assert found.value - found.low == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)


def test_the_bootstrap_over_subjects_agrees_with_it() -> None:
    rng = np.random.default_rng(2)
    who = np.repeat(np.arange(150), 4)
    hot = rng.random(600) < 0.3
    score = rng.normal(size=600) + hot + 0.7 * rng.normal(size=150)[who]
    closed = delong.auroc(hot, score, who)
    drawn = classes.drawn(hot[:, None], score[:, None], who, metrics.draw_weights(150))
    boot = metrics.interval(drawn["auroc"])
    assert closed.value == pytest.approx(boot.value)
    assert (closed.low, closed.high) == pytest.approx((boot.low, boot.high), abs=0.012)


def test_a_class_of_one_subject_has_no_interval() -> None:
    found = delong.auroc(np.array([True, False, False]), np.array([2.0, 1.0, 3.0]), np.arange(3))
    assert found.value == 0.5 and np.isnan(found.low) and np.isnan(found.high)
