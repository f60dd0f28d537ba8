"""Classification metrics under a subject bootstrap: all draws at once, from sorted scores.

Windows are ranked for class k by the score s = logit(p) − logit(prevalence of k in the fold's training
windows). Prevalence differs between folds, so ranking raw probabilities would compare folds, and predicting
the prevalence would not score at chance. A window is assigned to the class with the highest score; with one
column (two classes) it is positive where s > 0.
"""

import numpy as np

from finetune.metrics import with_point

AT_ONCE = 2**18  # weights (draws x windows) held at a time: 1 MiB, so that each pass over them stays in cache
EXACT = 2**24  # counts up to here are exact in float32


def evidence(probability_nk: np.ndarray, prevalence_nk: np.ndarray) -> np.ndarray:
    """(n, K) scores of out-of-fold probabilities, given the training prevalence of each window's fold."""

    def logit(p: np.ndarray) -> np.ndarray:
        p = np.clip(p, 1e-12, 1 - 1e-12)
        return np.log(p) - np.log1p(-p)

    return logit(probability_nk) - logit(prevalence_nk)


def one_hot(code_n: np.ndarray, classes: int) -> np.ndarray:
    """(n, K) bool: for two classes one column ("is class 1"), else one column per class."""
    code = np.asarray(code_n).astype(int)
    return code[:, None] == (np.array([1]) if classes == 2 else np.arange(classes))


def drawn(
    hot_nk: np.ndarray, score_nk: np.ndarray, subject_n: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """AUROC, AUPRC (average precision), balanced accuracy and F1, (1 + draws,) each: the estimate, then the
    bootstrap draws. With several columns, the mean of one-versus-rest values.

    weights: (draws, subjects) counts, subjects in sorted order. NaN where a draw lacks a class.
    """
    auroc, auprc = ranked(hot_nk, score_nk, subject_n, weights)
    _, group = np.unique(subject_n, return_inverse=True)
    return {"auroc": auroc.mean(0), "auprc": auprc.mean(0)} | _decided(
        hot_nk, score_nk, group, with_point(weights)
    )


def ranked(
    hot_nk: np.ndarray, score_nk: np.ndarray, subject_n: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of each column, (K, 1 + draws) each; see `drawn`."""
    _, group = np.unique(subject_n, return_inverse=True)
    counts = with_point(weights)
    found = [_ranked(h, s, group, counts) for h, s in zip(hot_nk.T, score_nk.T, strict=True)]
    return np.stack([f[0] for f in found]), np.stack([f[1] for f in found])


def _ranked(
    hot_n: np.ndarray, score_n: np.ndarray, group_n: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(draws,) AUROC and average precision of one column; windows of equal score count as one step."""
    order = np.argsort(-score_n, kind="stable")
    first = np.flatnonzero(np.diff(score_n[order], prepend=np.inf))
    group, hot = group_n[order], np.asarray(hot_n, bool)[order]
    steps = np.repeat(np.arange(len(first)), np.diff(first, append=len(order)))
    there, at = np.unique(steps[hot], return_inverse=True)  # steps that hold a positive: others add nothing
    largest = counts.max(initial=1) * len(order)
    kind = np.float32 if largest < EXACT else np.float64
    weight, group_of_positive = counts.astype(kind), group[hot]
    auroc, auprc = np.empty(len(counts)), np.empty(len(counts))
    rows = max(1, AT_ONCE // len(order))
    last = np.append(first[1:], len(order))[there] - 1
    before = first[there] - 1
    starts = np.flatnonzero(np.diff(at, prepend=-1))
    for low in range(0, len(counts), rows):
        part = weight[low : low + rows]
        running = np.cumsum(part[:, group], axis=1)  # of all windows, highest score first
        positive: np.ndarray = part[:, :0]
        if len(starts):
            positive = np.add.reduceat(part[:, group_of_positive], starts, axis=1)
        true = np.cumsum(positive, axis=1)
        p = true[:, -1].astype(float) if len(starts) else np.zeros(len(part))
        every = running[:, last].astype(float)
        above = np.where(before >= 0, running[:, before], 0).astype(float)
        # negatives above a step's positives, and half of those within it
        false = (above - (true - positive)) + (every - above - positive) / 2
        n = running[:, -1] - p
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc[low : low + rows] = 1 - (positive * false).sum(1) / (p * n)
            precision = np.where(positive > 0, true / every, 0.0)
            auprc[low : low + rows] = (positive * precision).sum(1) / np.where(n > 0, p, np.nan)
    return auroc, auprc


def _decided(
    hot_nk: np.ndarray, score_nk: np.ndarray, group_n: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Balanced accuracy (mean recall of the classes) and F1 (macro where there are several)."""
    if hot_nk.shape[1] == 1:
        chosen = score_nk > 0
    else:
        chosen = np.argmax(score_nk, axis=1)[:, None] == np.arange(score_nk.shape[1])

    def total(chosen_nk: np.ndarray) -> np.ndarray:
        each = [np.bincount(group_n, column, counts.shape[1]) for column in chosen_nk.T]
        return counts @ np.stack(each, axis=1)

    tp, fp, fn, tn = (
        total(c) for c in (hot_nk & chosen, ~hot_nk & chosen, hot_nk & ~chosen, ~hot_nk & ~chosen)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, other = tp / (tp + fn), tn / (tn + fp)
        f1 = np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
    balanced = (recall + other) / 2 if hot_nk.shape[1] == 1 else recall
    return {"balanced_accuracy": balanced.mean(1), "f1": f1.mean(1)}
