"""Classification metrics under drawn subjects: every bootstrap draw at once, from sorted scores.

A class k of K is ranked by its score s = logit(p) − logit(prevalence of k in the fold's training windows):
the evidence for it. Probabilities of different folds start from different prevalences, so ranking them raw
would compare folds, and predict-the-prevalence would not be at chance. A window is put into the class with
the highest score; with one column (two classes) it is positive where s > 0.
"""

import numpy as np

from finetune.metrics import with_point

AT_ONCE = 2**22  # weights (draws x windows) held at a time: 32 MiB


def evidence(probability_nk: np.ndarray, prevalence_nk: np.ndarray) -> np.ndarray:
    """(n, K) scores of out-of-fold probabilities, given the prevalence that each window's fold trained on."""

    def logit(p: np.ndarray) -> np.ndarray:
        p = np.clip(p, 1e-12, 1 - 1e-12)
        return np.log(p) - np.log1p(-p)

    return logit(probability_nk) - logit(prevalence_nk)


def one_hot(code_n: np.ndarray, classes: int) -> np.ndarray:
    """(n, K) bool: with two classes one column, "is it class 1"; else a column a class."""
    code = np.asarray(code_n).astype(int)
    return code[:, None] == (np.array([1]) if classes == 2 else np.arange(classes))


def drawn(
    hot_nk: np.ndarray, score_nk: np.ndarray, subject_n: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """AUROC, AUPRC (average precision), balanced accuracy and F1, (1 + draws,) each: the estimate and its
    draws. Means over the columns where there are several (one against the rest).

    weights: (draws, subjects) counts, subjects in sorted order. NaN where a draw lacks a class.
    """
    _, group = np.unique(subject_n, return_inverse=True)
    counts = with_point(weights)
    ranked = [_ranked(h, s, group, counts) for h, s in zip(hot_nk.T, score_nk.T, strict=True)]
    auroc, auprc = (np.mean([r[i] for r in ranked], axis=0) for i in (0, 1))
    return {"auroc": auroc, "auprc": auprc} | _decided(hot_nk, score_nk, group, counts)


def _ranked(
    hot_n: np.ndarray, score_n: np.ndarray, group_n: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(draws,) AUROC and average precision of one column; windows of equal score count as one step."""
    order = np.argsort(-score_n, kind="stable")
    first = np.flatnonzero(np.diff(score_n[order], prepend=np.inf))
    group, hot = group_n[order], hot_n[order].astype(np.float64)
    auroc, auprc = np.empty(len(counts)), np.empty(len(counts))
    step = max(1, AT_ONCE // len(score_n))
    for low in range(0, len(counts), step):
        w = counts[low : low + step][:, group]
        positive = np.add.reduceat(w * hot, first, axis=1)  # highest score first
        negative = np.add.reduceat(w, first, axis=1) - positive
        true, false = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
        p, n = true[:, -1], false[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc[low : low + step] = (negative * (true - positive / 2)).sum(1) / (p * n)
            precision = np.where(positive > 0, true / (true + false), 0.0)
            auprc[low : low + step] = (positive * precision).sum(1) / np.where(n > 0, p, np.nan)
    return auroc, auprc


def _decided(
    hot_nk: np.ndarray, score_nk: np.ndarray, group_n: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Balanced accuracy (mean recall of the classes) and F1 (macro where there are several)."""
    if hot_nk.shape[1] == 1:
        said = score_nk > 0
    else:
        said = np.argmax(score_nk, axis=1)[:, None] == np.arange(score_nk.shape[1])

    def total(chosen_nk: np.ndarray) -> np.ndarray:
        each = [np.bincount(group_n, column, counts.shape[1]) for column in chosen_nk.T]
        return counts @ np.stack(each, axis=1)

    tp, fp, fn, tn = (total(c) for c in (hot_nk & said, ~hot_nk & said, hot_nk & ~said, ~hot_nk & ~said))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, other = tp / (tp + fn), tn / (tn + fp)
        f1 = np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
    balanced = (recall + other) / 2 if hot_nk.shape[1] == 1 else recall
    return {"balanced_accuracy": balanced.mean(1), "f1": f1.mean(1)}
