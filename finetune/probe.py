"""Linear probe on frozen vectors: subject-disjoint folds outside and inside, StandardScaler → Ridge.

Every choice (imputation, scaling, α) is made on training subjects only; what is reported is out-of-fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.errors import PlethoraError

ALPHAS = (0.1, 1.0, 10.0, 100.0)
MIN_SUBJECTS = 3

Folds = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Probed:
    """Out-of-fold predictions (n,) in the target's unit, and the α that each fold chose on its own
    subjects.
    """

    predicted: np.ndarray
    alphas: tuple[float, ...]


def grouped_folds(subject_n: np.ndarray, folds: int, seed: int) -> Folds:
    """Row indices (train, test) of each fold; a subject is never on both sides. Fewer subjects lower the
    count.

    Raises PlethoraError with fewer than three subjects: the inner folds would have one subject to learn from.
    """
    from sklearn.model_selection import GroupKFold

    subjects = len(np.unique(subject_n))
    if subjects < MIN_SUBJECTS:
        raise PlethoraError(
            f"{subjects} subject{'' if subjects == 1 else 's'} left to evaluate: subject-disjoint folds "
            f"need at least {MIN_SUBJECTS}; use a corpus with more labelled subjects that pretraining did "
            "not see"
        )
    splitter = GroupKFold(n_splits=min(folds, subjects), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(subject_n)), groups=subject_n))


def inner_folds(subject_n: np.ndarray, folds: int, seed: int) -> Folds:
    """The same within one training side, where two subjects are enough to hold one out."""
    from sklearn.model_selection import GroupKFold

    count = min(folds, len(np.unique(subject_n)))
    splitter = GroupKFold(n_splits=count, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(subject_n)), groups=subject_n))


class Scaler:
    """Median for what is missing, then zero mean and unit variance, all from the training rows."""

    def __init__(self, train_nd: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            known = np.isfinite(train_nd).any(0)
            median = np.zeros(train_nd.shape[1])
            median[known] = np.nanmedian(np.where(np.isfinite(train_nd), train_nd, np.nan)[:, known], axis=0)
        self.median_d = median
        filled = self._filled(train_nd)
        self.mean_d = filled.mean(0)
        spread = filled.std(0)
        constant = spread <= 10 * np.finfo(np.float64).eps * np.maximum(np.abs(self.mean_d), 1e-300)
        self.spread_d = np.where(constant | (spread == 0), 1.0, spread)

    def _filled(self, x_nd: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(x_nd), x_nd, self.median_d)

    def __call__(self, x_nd: np.ndarray) -> np.ndarray:
        return (self._filled(x_nd) - self.mean_d) / self.spread_d


def ridge_predictions(
    train_nd: np.ndarray, target_n: np.ndarray, test_md: np.ndarray, alphas: tuple[float, ...] = ALPHAS
) -> np.ndarray:
    """(alphas, m) predictions of StandardScaler → Ridge(α); one eigendecomposition serves every α."""
    scaler = Scaler(train_nd)
    x, offset = scaler(train_nd), float(target_n.mean())
    eigen_d, basis_dd = np.linalg.eigh(x.T @ x)
    projected_d = basis_dd.T @ (x.T @ (target_n - offset))
    test = scaler(test_md) @ basis_dd
    return np.stack([test @ (projected_d / (np.maximum(eigen_d, 0) + a)) + offset for a in alphas])


def choose(
    x_nd: np.ndarray, target_n: np.ndarray, subject_n: np.ndarray, folds: int, seed: int, subsets: list[slice]
) -> tuple[slice, float]:
    """The columns and the α with the lowest mean absolute error over inner subject-disjoint folds."""
    error = np.zeros((len(subsets), len(ALPHAS)))
    for train, test in inner_folds(subject_n, folds, seed):
        for i, columns in enumerate(subsets):
            predicted = ridge_predictions(x_nd[train, columns], target_n[train], x_nd[test, columns])
            error[i] += np.abs(predicted - target_n[test]).sum(1)
    best, alpha = np.unravel_index(int(np.argmin(error)), error.shape)
    return subsets[best], ALPHAS[alpha]


def ridge_probe(
    x_nd: np.ndarray,
    target_n: np.ndarray,
    subject_n: np.ndarray,
    folds: Folds,
    seed: int,
    subsets: Sequence[slice] | None = None,
) -> Probed:
    """Out-of-fold predictions of the ridge probe on (n, d) vectors; missing values are NaN.

    `subsets` are column ranges among which the inner folds choose, too (default: all columns).
    """
    x = np.asarray(x_nd, np.float64)
    ranges = list(subsets or [slice(None)])
    predicted, chosen = np.full(len(target_n), np.nan), []
    for train, test in folds:
        columns, alpha = choose(x[train], target_n[train], subject_n[train], len(folds), seed, ranges)
        predicted[test] = ridge_predictions(x[train, columns], target_n[train], x[test, columns], (alpha,))[0]
        chosen.append(alpha)
    return Probed(predicted, tuple(chosen))


def mean_probe(target_n: np.ndarray, folds: Folds) -> Probed:
    """Predicts the mean target of the training subjects' windows: what a probe must beat to have learnt."""
    predicted = np.full(len(target_n), np.nan)
    for train, test in folds:
        predicted[test] = target_n[train].mean()
    return Probed(predicted, ())
