"""k-NN on frozen vectors: what they know that no straight line reads. The same folds, scaling and imputation
as the linear probe; k is chosen by the inner folds.
"""

import numpy as np

from finetune.probe import (
    Folds,
    Probed,
    as_columns,
    class_inner_folds,
    inner_count,
    inner_folds,
    scaled,
)

NEIGHBOURS = (3, 5, 10, 20, 50, 100)


def nearest(train_nd: np.ndarray, test_md: np.ndarray, most: int) -> np.ndarray:
    """(m, k) training rows nearest to each test row, nearest first, k at most `most`: Euclidean distance of
    standardised columns.
    """
    from sklearn.neighbors import NearestNeighbors

    train, test = scaled(np.asarray(train_nd, np.float64), np.asarray(test_md, np.float64))
    found = NearestNeighbors(n_neighbors=min(most, len(train)), algorithm="brute").fit(train)
    return found.kneighbors(test, return_distance=False)


def number_predictions(
    train_nd: np.ndarray, target_n: np.ndarray, test_md: np.ndarray, counts: tuple[int, ...] = NEIGHBOURS
) -> np.ndarray:
    """(counts, m): the mean target of the k nearest; fewer training rows than k are all of them."""
    near = target_n[nearest(train_nd, test_md, max(counts))]
    mean = np.cumsum(near, axis=1) / np.arange(1, near.shape[1] + 1)
    return np.stack([mean[:, min(k, near.shape[1]) - 1] for k in counts])


def class_probabilities(
    train_nd: np.ndarray, code_n: np.ndarray, test_md: np.ndarray, counts: tuple[int, ...] = NEIGHBOURS
) -> np.ndarray:
    """(counts, m, classes): shares among the k nearest, with one more neighbour that stands for the
    prevalence, so that no share is 0.
    """
    code = np.asarray(code_n).astype(int)
    prevalence = np.bincount(code) / len(code)
    hot = (code[:, None] == np.arange(len(prevalence)))[nearest(train_nd, test_md, max(counts))]
    total = np.cumsum(hot, axis=1)
    parts = []
    for k in counts:
        k = min(k, hot.shape[1])
        parts.append((total[:, k - 1] + prevalence) / (k + 1))
    return np.stack(parts)


def number_neighbours(
    x_nd: np.ndarray, target_n: np.ndarray, subject_n: np.ndarray, folds: Folds, seed: int
) -> Probed:
    """Out-of-fold predictions; k has the lowest mean absolute error over the inner folds."""
    predicted, chosen = np.full(len(target_n), np.nan), []
    for train, test in folds:
        error = np.zeros(len(NEIGHBOURS))
        for a, b in inner_folds(subject_n[train], inner_count(folds), seed):
            found = number_predictions(x_nd[train[a]], target_n[train[a]], x_nd[train[b]])
            error += np.abs(found - target_n[train[b]]).sum(1)
        k = NEIGHBOURS[int(np.argmin(error))]
        predicted[test] = number_predictions(x_nd[train], target_n[train], x_nd[test], (k,))[0]
        chosen.append(float(k))
    return Probed(predicted, tuple(chosen))


def class_neighbours(
    x_nd: np.ndarray, code_n: np.ndarray, subject_n: np.ndarray, folds: Folds, seed: int
) -> Probed:
    """Out-of-fold probabilities; k has the lowest log loss over the inner folds."""
    code = np.asarray(code_n).astype(int)
    found, chosen = np.full((len(code), int(code.max()) + 1), np.nan), []
    for train, test in folds:
        loss = np.zeros(len(NEIGHBOURS))
        for a, b in class_inner_folds(code[train], subject_n[train], inner_count(folds), seed):
            p = class_probabilities(x_nd[train[a]], code[train[a]], x_nd[train[b]])
            loss -= np.log(p[:, np.arange(len(b)), code[train[b]]]).sum(1)
        k = NEIGHBOURS[int(np.argmin(loss))]
        found[test] = class_probabilities(x_nd[train], code[train], x_nd[test], (k,))[0]
        chosen.append(float(k))
    return Probed(as_columns(found), tuple(chosen))
