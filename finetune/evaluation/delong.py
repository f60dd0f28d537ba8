"""AUROC with its variance by placement values: a closed form that checks the bootstrap's intervals.

DeLong, DeLong and Clarke-Pearson 1988 for independent windows; windows of one person are not, so the sums are
taken a subject, as Obuchowski 1997 does (clustered ROC data). With one window a subject the two are the same
but for the factors n/(n-1).
"""

import numpy as np

from finetune.metrics import Interval

Z = 1.959963984540054


def placements(hot_n: np.ndarray, score_n: np.ndarray) -> np.ndarray:
    """(n,) of a positive the share of negatives that score below it, of a negative the share of positives
    that score above it; ties count half.
    """
    positive, negative = np.sort(score_n[hot_n]), np.sort(score_n[~hot_n])

    def below(values: np.ndarray, among: np.ndarray) -> np.ndarray:
        strictly, at_most = (np.searchsorted(among, values, side) for side in ("left", "right"))
        return (strictly + at_most) / (2 * len(among))

    found = np.empty(len(score_n))
    found[hot_n] = below(score_n[hot_n], negative)
    found[~hot_n] = 1 - below(score_n[~hot_n], positive)
    return found


def auroc(hot_n: np.ndarray, score_n: np.ndarray, subject_n: np.ndarray) -> Interval:
    """AUROC and its 95 % interval, within [0, 1]; NaN limits with fewer than two subjects of a class."""
    hot = np.asarray(hot_n, bool)
    each = placements(hot, np.asarray(score_n, np.float64))
    area = float(each[hot].mean())
    _, group = np.unique(subject_n, return_inverse=True)

    def total(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.bincount(group[chosen], each[chosen] - area, group.max() + 1), np.bincount(
            group[chosen], minlength=group.max() + 1
        )

    (a, m), (b, n) = total(hot), total(~hot)
    with_a, with_b, everyone = (m > 0).sum(), (n > 0).sum(), len(m)
    if min(with_a, with_b) < 2:
        return Interval(area, float("nan"), float("nan"))
    variance = (
        with_a / (with_a - 1) * (a @ a) / m.sum() ** 2
        + with_b / (with_b - 1) * (b @ b) / n.sum() ** 2
        + 2 * everyone / (everyone - 1) * (a @ b) / (m.sum() * n.sum())
    )
    half = Z * float(np.sqrt(max(variance, 0.0)))
    return Interval(area, max(area - half, 0.0), min(area + half, 1.0))
