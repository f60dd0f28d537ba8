"""Linear probes on frozen vectors: subject-disjoint folds outside and inside, StandardScaler → Ridge for a
number, StandardScaler → LogisticRegression for a class.

Every choice (imputation, scaling, α or C) is made on training subjects only; what is reported is out-of-fold.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from cluster.errors import PlethoraError

ALPHAS = (0.1, 1.0, 10.0, 100.0)
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of LogisticRegression
MIN_SUBJECTS = 3
FEW_ROWS = 2000

Folds = list[tuple[np.ndarray, np.ndarray]]
Columns = slice | np.ndarray  # a range of columns, or a weight for each: 0 leaves it out, less is shrunk more


@dataclass(frozen=True)
class Probed:
    """Out-of-fold predictions, (n,) in the target's unit or (n, columns of `classes.one_hot`) probabilities,
    and the α (or C) that each fold chose on its own subjects.
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


def scaled(
    train_nd: np.ndarray, test_md: np.ndarray, columns: Columns = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides imputed and standardised by the training rows, then cut to (and weighed by) `columns`."""
    weight = np.ones(1) if isinstance(columns, slice) else columns[columns != 0]
    kept = columns if isinstance(columns, slice) else np.flatnonzero(columns)
    scaler = Scaler(train_nd[:, kept])
    return scaler(train_nd[:, kept]) * weight, scaler(test_md[:, kept]) * weight


def ridge_predictions(
    train_nd: np.ndarray,
    target_n: np.ndarray,
    test_md: np.ndarray,
    alphas: tuple[float, ...] = ALPHAS,
    columns: Columns = slice(None),
) -> np.ndarray:
    """(alphas, m) predictions of StandardScaler → Ridge(α), solved in columns or in rows, whichever are
    fewer.
    """
    from scipy.linalg import solve

    x, test = scaled(train_nd, test_md, columns)
    offset = float(target_n.mean())
    y = target_n - offset
    wide = x.shape[1] > x.shape[0]
    gram, right = (x @ x.T, y) if wide else (x.T @ x, x.T @ y)
    if wide:
        test = test @ x.T
    eye = np.eye(len(gram))
    return np.stack([test @ solve(gram + a * eye, right, assume_a="pos") + offset for a in alphas])


def choose(
    x_nd: np.ndarray,
    target_n: np.ndarray,
    subject_n: np.ndarray,
    folds: int,
    seed: int,
    subsets: Sequence[Columns],
) -> tuple[Columns, float]:
    """The columns and the α with the lowest mean absolute error over inner subject-disjoint folds."""
    error = np.zeros((len(subsets), len(ALPHAS)))
    for train, test in inner_folds(subject_n, folds, seed):
        for i, columns in enumerate(subsets):
            predicted = ridge_predictions(x_nd[train], target_n[train], x_nd[test], columns=columns)
            error[i] += np.abs(predicted - target_n[test]).sum(1)
    best, alpha = divmod(int(np.argmin(error)), len(ALPHAS))
    return subsets[best], ALPHAS[alpha]


def inner_count(folds: Folds) -> int:
    """As many folds inside as outside; five inside a single given split."""
    return len(folds) if len(folds) > 1 else 5


def ridge_probe(
    x_nd: np.ndarray,
    target_n: np.ndarray,
    subject_n: np.ndarray,
    folds: Folds,
    seed: int,
    subsets: Sequence[Columns] | None = None,
) -> Probed:
    """Out-of-fold predictions of the ridge probe on (n, d) vectors; missing values are NaN.

    `subsets`: columns among which the inner folds choose, too (default: all).
    """
    from threadpoolctl import threadpool_limits

    x, subsets = np.asarray(x_nd, np.float64), list(subsets or [slice(None)])
    predicted, chosen = np.full(len(target_n), np.nan), []
    with threadpool_limits(1 if len(x) < FEW_ROWS else None, user_api="blas"):
        for train, test in folds:
            columns, alpha = choose(
                x[train], target_n[train], subject_n[train], inner_count(folds), seed, subsets
            )
            predicted[test] = ridge_predictions(x[train], target_n[train], x[test], (alpha,), columns)[0]
            chosen.append(alpha)
    return Probed(predicted, tuple(chosen))


def mean_probe(target_n: np.ndarray, folds: Folds) -> Probed:
    """Predicts the mean target of the training subjects' windows: what a probe must beat to have learnt."""
    predicted = np.full(len(target_n), np.nan)
    for train, test in folds:
        predicted[test] = target_n[train].mean()
    return Probed(predicted, ())


def class_folds(
    code_n: np.ndarray, subject_n: np.ndarray, names: Sequence[str], folds: int, seed: int
) -> Folds:
    """Row indices (train, test) of folds that share out the classes evenly; a subject is never on both sides.

    Fewer subjects in the rarest class lower the count. PlethoraError: fewer than two classes, or a class
    with so few subjects that the folds inside would have none to learn from or to choose by.
    """
    per_class = {name: len(np.unique(subject_n[code_n == k])) for k, name in enumerate(names)}
    there = [name for name, count in per_class.items() if count]
    if len(there) < 2:
        raise PlethoraError(
            f"all {len(code_n)} windows left to evaluate are of one class ({there[0]}): "
            "use a corpus with both"
        )
    rarest = min(per_class, key=lambda name: per_class[name])
    if per_class[rarest] < MIN_SUBJECTS:
        raise PlethoraError(
            f"class {rarest!r} has {per_class[rarest]} subject{'s' * (per_class[rarest] != 1)} left to "
            f"evaluate: subject-disjoint folds need at least {MIN_SUBJECTS} of each class"
        )
    found = _stratified(code_n, subject_n, min(folds, per_class[rarest]), seed)
    if any(len(np.unique(code_n[train])) < len(names) for train, _ in found):
        raise PlethoraError(
            f"class {rarest!r} is in too few subjects to be in the training part of every fold: "
            "use a corpus with more of them"
        )
    return found


def _stratified(code_n: np.ndarray, subject_n: np.ndarray, folds: int, seed: int) -> Folds:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(code_n)), code_n.astype(int), subject_n))


def class_inner_folds(code_n: np.ndarray, subject_n: np.ndarray, folds: int, seed: int) -> Folds:
    """The same within one training side; a split whose training part lacks a class chooses nothing."""
    rarest = min(len(np.unique(subject_n[code_n == k])) for k in np.unique(code_n))
    split = _stratified(code_n, subject_n, min(folds, max(rarest, 2)), seed)
    return [(a, b) for a, b in split if len(np.unique(code_n[a])) == len(np.unique(code_n))]


def logistic_probabilities(
    train_nd: np.ndarray,
    code_n: np.ndarray,
    test_md: np.ndarray,
    strengths: tuple[float, ...] = STRENGTHS,
    columns: Columns = slice(None),
) -> np.ndarray:
    """(strengths, m, classes) of StandardScaler → LogisticRegression(C), classes in order of their code.

    With more columns than rows the fit runs in the span of the rows, where the L2-penalised optimum lies.
    """
    from sklearn.linear_model import LogisticRegression

    x, test = scaled(train_nd, test_md, columns)
    if x.shape[1] > x.shape[0]:
        basis_rd = np.linalg.svd(x, full_matrices=False)[2]
        x, test = x @ basis_rd.T, test @ basis_rd.T
    model = LogisticRegression(solver="newton-cholesky", tol=1e-6, max_iter=200, warm_start=True)
    found = []
    for strength in strengths:
        found.append(model.set_params(C=strength).fit(x, code_n.astype(int)).predict_proba(test))
    return np.stack(found)


def few_threads(rows: int) -> AbstractContextManager[object]:
    """A context in which fits of few rows have one thread: on small matrices threads mostly wait for each
    other, 30 times slower on a busy machine.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1 if rows < FEW_ROWS else None, user_api="blas")


def logistic_probe(
    x_nd: np.ndarray,
    code_n: np.ndarray,
    subject_n: np.ndarray,
    folds: Folds,
    seed: int,
    subsets: Sequence[Columns] | None = None,
) -> Probed:
    """Out-of-fold probabilities of the logistic probe on (n, d) vectors; missing values are NaN.

    C, and the columns among `subsets`, have the lowest log loss over the inner folds.
    """
    x, subsets = np.asarray(x_nd, np.float64), list(subsets or [slice(None)])
    code = np.asarray(code_n).astype(int)
    found, chosen = np.full((len(code), int(code.max()) + 1), np.nan), []
    with few_threads(len(x)):
        for train, test in folds:
            inner = class_inner_folds(code[train], subject_n[train], inner_count(folds), seed)
            columns, strength = _choose_logistic(x[train], code[train], inner, subsets)
            found[test] = logistic_probabilities(x[train], code[train], x[test], (strength,), columns)[0]
            chosen.append(strength)
    return Probed(as_columns(found), tuple(chosen))


def _choose_logistic(
    x_nd: np.ndarray, code_n: np.ndarray, inner: Folds, subsets: Sequence[Columns]
) -> tuple[Columns, float]:
    """The columns and the C with the lowest log loss over the inner folds."""
    return least(inner_losses(x_nd, code_n, inner, subsets), subsets)


def inner_losses(
    x_nd: np.ndarray, code_n: np.ndarray, inner: Folds, subsets: Sequence[Columns]
) -> np.ndarray:
    """(subsets, strengths) log loss, summed over the rows that the inner folds test."""
    loss = np.zeros((len(subsets), len(STRENGTHS)))
    for a, b in inner:
        for i, columns in enumerate(subsets):
            p = logistic_probabilities(x_nd[a], code_n[a], x_nd[b], columns=columns)
            loss[i] -= np.log(p[:, np.arange(len(b)), code_n[b]] + 1e-300).sum(1)
    return loss


def least(loss: np.ndarray, subsets: Sequence[Columns]) -> tuple[Columns, float]:
    """The columns and the C of the lowest of `inner_losses`."""
    best, at = divmod(int(np.argmin(loss)), len(STRENGTHS))
    return subsets[best], STRENGTHS[at]


def prevalence_probe(code_n: np.ndarray, folds: Folds) -> Probed:
    """Predicts how common each class is among the training subjects' windows."""
    code = np.asarray(code_n).astype(int)
    found = np.full((len(code), int(code.max()) + 1), np.nan)
    for train, test in folds:
        found[test] = np.bincount(code[train], minlength=found.shape[1]) / len(train)
    return Probed(as_columns(found), ())


def as_columns(probability_nc: np.ndarray) -> np.ndarray:
    """As in `classes.one_hot`: of two classes, the second."""
    return probability_nc[:, 1:] if probability_nc.shape[1] == 2 else probability_nc
