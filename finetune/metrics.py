"""Regression metrics and subject-cluster bootstrap, both from sums that are kept per subject.

Windows of one person are not independent, so what is drawn again is the subject with all its windows. Each
metric here depends on a subject's windows through seven sums only (count, Σy, Σp, Σy², Σp², Σyp, Σ|p−y|): a
draw is a weighted sum over subjects, and 2,000 draws over any number of windows are one matrix product.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

METRICS = ("mae", "rmse", "r2", "pearson")
DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95 % bootstrap interval, in the metric's own unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Paired difference a − b of one metric: estimate, 95 % interval, two-sided bootstrap p."""

    value: float
    low: float
    high: float
    p: float


def subject_sums(target_n: np.ndarray, predicted_n: np.ndarray, subject_n: np.ndarray) -> np.ndarray:
    """(subjects, 7) float64: count, Σy, Σp, Σy², Σp², Σyp, Σ|p−y|, subjects in sorted order.

    y and p are taken about the mean target first: R² and Pearson don't change, and the squares keep their
    digits.
    """
    centre = float(np.mean(target_n))
    y, p = np.asarray(target_n, np.float64) - centre, np.asarray(predicted_n, np.float64) - centre
    _, group = np.unique(subject_n, return_inverse=True)
    columns = (np.ones_like(y), y, p, y * y, p * p, y * p, np.abs(p - y))
    return np.stack([np.bincount(group, weights=column) for column in columns], axis=1)


def metrics_of(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of (..., 7) sums, shaped like the leading axes.

    MAE and RMSE have the target's unit. R² = 1 − SSE/SST. Pearson is NaN where the prediction does not vary
    (predict-the-mean within one fold), R² where the target does not.
    """
    n, sy, sp, syy, spp, syp, sabs = np.moveaxis(sums, -1, 0)
    sse = np.maximum(spp - 2 * syp + syy, 0)
    tiny = 1e-9 * np.maximum(syy, 1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold nobody of a subgroup
        vy, vp, cov = syy - sy**2 / n, spp - sp**2 / n, syp - sy * sp / n
        mae, rmse = sabs / n, np.sqrt(sse / n)
        r2 = np.where(vy > tiny, 1 - sse / vy, np.nan)
        pearson = np.where((vy > tiny) & (vp > tiny), cov / np.sqrt(vy * vp), np.nan)
    return {"mae": mae, "rmse": rmse, "r2": r2, "pearson": np.clip(pearson, -1, 1)}


def draw_weights(subjects: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(draws, subjects) counts: how often each subject is in each bootstrap sample (with replacement)."""
    rng = np.random.default_rng([seed, 0xB007])
    picked = rng.integers(0, subjects, size=(draws, subjects))
    flat = picked + subjects * np.arange(draws)[:, None]
    return np.bincount(flat.ravel(), minlength=draws * subjects).reshape(draws, subjects).astype(np.float64)


def _limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def with_point(weights: np.ndarray) -> np.ndarray:
    """(1 + draws, subjects): everyone once, which gives the point estimate, then the draws."""
    return np.concatenate([np.ones((1, weights.shape[1])), weights])


def drawn(sums: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric, (1 + draws,): its point estimate and its draws. `sums` is (subjects, 7)."""
    return metrics_of(with_point(weights) @ sums)


def interval(values: np.ndarray) -> Interval:
    """(1 + draws,) of one metric → the estimate and its percentile interval. Draws without a value (of one
    class only) do not count.
    """
    return Interval(float(values[0]), *_limits(values[1:]))


def mean_interval(per_subject: np.ndarray, weights: np.ndarray) -> Interval:
    """Mean over subjects with its interval; every subject counts the same."""
    return interval(np.append(per_subject.mean(), weights @ per_subject / weights.sum(1)))


def each_interval(drawn: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """`interval` of every metric."""
    return {name: interval(values) for name, values in drawn.items()}


def difference(values_a: np.ndarray, values_b: np.ndarray) -> Difference:
    """a − b of one metric, (1 + draws,) each, over the *same* drawn subjects, so what makes a subject hard
    cancels out.

    p counts the draws on the far side of zero, both sides, with one added to numerator and denominator
    (Davison & Hinkley 1997, section 4.2): it is never 0, at least 2/(draws + 1).
    """
    apart = values_a - values_b
    known = apart[1:][np.isfinite(apart[1:])]
    tail = min(int(np.sum(known <= 0)), int(np.sum(known >= 0)))
    p = min(1.0, 2 * (1 + tail) / (len(known) + 1))
    return Difference(float(apart[0]), *_limits(known), p)


def intervals(sums: np.ndarray, weights: np.ndarray) -> dict[str, Interval]:
    """Every metric with its percentile interval over the drawn subjects. `sums` is (subjects, 7)."""
    return each_interval(drawn(sums, weights))


def paired(sums_a: np.ndarray, sums_b: np.ndarray, weights: np.ndarray, metric: str = "mae") -> Difference:
    """`difference` of one metric of two predictions of the same targets."""
    return difference(drawn(sums_a, weights)[metric], drawn(sums_b, weights)[metric])


def per_subject_mae(sums: np.ndarray) -> np.ndarray:
    """(subjects,) mean absolute error of each subject's windows, in the order of `subject_sums`."""
    return np.asarray(sums[:, 6] / sums[:, 0])


def bland_altman(target_n: np.ndarray, predicted_n: np.ndarray) -> tuple[float, float, float]:
    """Bias and 95 % limits of agreement (bias ± 1.96 SD of predicted − target), in the target's unit."""
    difference = np.asarray(predicted_n, np.float64) - np.asarray(target_n, np.float64)
    bias, sd = float(difference.mean()), float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return bias, bias - 1.96 * sd, bias + 1.96 * sd
