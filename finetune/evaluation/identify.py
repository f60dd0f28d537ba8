"""How often a vector finds its own subject among N: enrolled on one part of a recording, probed on another.

Nothing is drawn to make galleries: with the rank of the true subject among all, the share of galleries of N
in which it comes first is a hypergeometric probability, so accuracy against N is exact for these recordings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.metrics import Interval

ATTACKS = ("one window", "nearest window", "all windows")
TIE = 1e-12  # cosines nearer to each other than this are equal: the order among them is a coin's
EER_POINTS = 2001


@dataclass(frozen=True)
class Sides:
    """Who is enrolled on what. `enrol` and `probe` are (n,) bool over the windows, never both.

    gap_s: of subjects with one record, the seconds between the end of the last enrolled window and the start
    of the first probe. apart: subjects probed on other records than those they are enrolled on; the time
    between those is not known. left_out: subjects whose record is too short to leave a gap.
    """

    enrol: np.ndarray
    probe: np.ndarray
    gap_s: dict[str, float]
    apart: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return sorted([*self.gap_s, *self.apart])


def sides(subject_n: np.ndarray, record_n: np.ndarray, start_s: np.ndarray, window_s: float) -> Sides:
    """Enrol on the first half of a subject's records and probe on the others; with one record, enrol on the
    windows inside its first third and probe on those inside its last: the middle third is the gap.
    """
    enrol, probe = np.zeros(len(subject_n), bool), np.zeros(len(subject_n), bool)
    gaps, apart, left_out = {}, [], []
    for name in np.unique(subject_n):
        mine = np.flatnonzero(subject_n == name)
        records = np.unique(record_n[mine])
        if len(records) > 1:
            first = np.isin(record_n[mine], records[: len(records) // 2])
            enrol[mine[first]], probe[mine[~first]] = True, True
            apart.append(str(name))
            continue
        start, end = start_s[mine], start_s[mine] + window_s
        third = (end.max() - start.min()) / 3
        early, late = end <= start.min() + third + 1e-6, start >= end.max() - third - 1e-6
        if not early.any() or not late.any():
            left_out.append(str(name))
            continue
        enrol[mine[early]], probe[mine[late]] = True, True
        gaps[str(name)] = float(start[late].min() - end[early].max())
    return Sides(enrol, probe, gaps, tuple(apart), tuple(left_out))


@dataclass(frozen=True)
class Scores:
    """(probes, subjects) similarity, and which column is each probe's own subject."""

    values: np.ndarray
    own: np.ndarray


def _scaled(x_nd: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Standardised by (3, d) sums (count, Σx, Σx²) of others, rows of unit length. What is missing becomes
    their mean; a row without any deviation becomes zeros.
    """
    count, total, squares = moments
    known = np.maximum(count, 1)
    mean = total / known
    spread = np.sqrt(np.maximum(squares / known - mean**2, 0))
    y = (x_nd - mean) / np.where(spread > 1e-9, spread, 1.0)
    y = np.where(np.isfinite(y), y, 0.0)
    return _unit(y)


def _unit(y_nd: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(y_nd, axis=-1, keepdims=True)
    return np.where(length > 1e-6 * np.sqrt(y_nd.shape[-1]), y_nd / np.maximum(length, 1e-300), 0.0)


def scores(vectors_nd: np.ndarray, subject_n: np.ndarray, split: Sides, attack: str = ATTACKS[0]) -> Scores:
    """Cosine similarity of each probe with each enrolled subject.

    Vectors are standardised by the enrolled windows of all subjects but the probe's own: nothing of the
    person who is looked for tunes the search. `attack`: "one window" compares a probe with the centroid of a
    subject's windows, "nearest window" with its nearest one, "all windows" the mean of all probe windows of a
    person with the centroid. Missing values are NaN.
    """
    names = split.names
    enrolled = [np.flatnonzero(split.enrol & (subject_n == name)) for name in names]
    x = np.asarray(vectors_nd, np.float64)
    with np.errstate(all="ignore"):
        all_rows = x[np.concatenate(enrolled)]
        centre = np.nanmean(np.where(np.isfinite(all_rows).any(0), all_rows, 0.0), axis=0)
        width = np.nanmax(np.abs(np.where(np.isfinite(all_rows), all_rows - centre, 0.0)), axis=0)
    # about the mean and at most 1: the sums keep their digits; a column that only rounds is constant
    constant = width <= 1e-12 * np.maximum(np.abs(centre), 1e-300)
    x = np.where(constant, np.where(np.isfinite(x), 0.0, np.nan), (x - centre) / np.where(constant, 1, width))
    sums = np.stack([_moments(x[rows]) for rows in enrolled])
    everyone = sums.sum(0)
    borders = np.cumsum([0, *(len(rows) for rows in enrolled)])[:-1]
    gallery = x[np.concatenate(enrolled)]
    values, own = [], []
    for i, name in enumerate(names):
        others = everyone - sums[i]
        seen = _scaled(gallery, others)
        probes = _scaled(x[split.probe & (subject_n == name)], others)
        if attack == "nearest window":
            found = np.maximum.reduceat(probes @ seen.T, borders, axis=1)
        else:
            probes = _unit(probes.mean(0, keepdims=True)) if attack == "all windows" else probes
            found = probes @ _unit(np.add.reduceat(seen, borders, axis=0)).T
        values.append(found)
        own.append(np.full(len(found), i))
    return Scores(np.concatenate(values), np.concatenate(own))


def _moments(x_nd: np.ndarray) -> np.ndarray:
    known = np.isfinite(x_nd)
    filled = np.where(known, x_nd, 0.0)
    return np.stack([known.sum(0), filled.sum(0), (filled**2).sum(0)])


# ---------------------------------------------------------------- rank


def probability(
    better_n: np.ndarray, tied_n: np.ndarray, others: int, gallery: int, rank: int = 1
) -> np.ndarray:
    """(n,) chance that the true subject is among the first `rank` of a gallery: itself and `gallery` - 1
    drawn from the `others`, of whom `better` score higher and `tied` the same (then a coin decides).

    With j better and k tied ones drawn (hypergeometric), the true subject takes place j + 1 … j + k + 1 with
    equal chance.
    """
    from scipy.stats import hypergeom

    found = np.zeros(len(better_n))
    drawn = gallery - 1
    for j in range(min(rank, gallery)):
        of_better = hypergeom.pmf(j, others, better_n, drawn)
        plain = tied_n == 0
        found[plain] += of_better[plain]
        for at in np.flatnonzero(~plain & (of_better > 0)):
            k = np.arange(min(int(tied_n[at]), drawn - j) + 1)
            of_tied = hypergeom.pmf(k, others - better_n[at], tied_n[at], drawn - j)
            found[at] += of_better[at] * float(of_tied @ np.minimum(1.0, (rank - j) / (k + 1)))
    return np.minimum(found, 1.0)


def hits(found: Scores, sizes: Sequence[int], rank: int = 1) -> np.ndarray:
    """(subjects, sizes): chance of a hit at each gallery size, mean over a subject's probes."""
    true = found.values[np.arange(len(found.own)), found.own][:, None]
    better = (found.values > true + TIE).sum(1)
    tied = (np.abs(found.values - true) <= TIE).sum(1) - 1
    others = found.values.shape[1] - 1
    each = np.stack([probability(better, tied, others, size, rank) for size in sizes], axis=1)
    return _by_subject(each, found.own)


def _by_subject(values_pk: np.ndarray, own_p: np.ndarray) -> np.ndarray:
    """(subjects, k) means over each subject's probes."""
    count = np.bincount(own_p)[:, None]
    return np.stack([np.bincount(own_p, weights=column) for column in values_pk.T], axis=1) / count


def of_mean(per_subject: np.ndarray, weights: np.ndarray) -> Interval:
    """Mean over subjects with the percentile interval over drawn subjects; every subject counts the same."""
    drawn = weights @ per_subject / weights.sum(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(per_subject.mean()), float(low), float(high))


# ---------------------------------------------------------------- verification


def equal_error_rate(found: Scores, weights: np.ndarray) -> Interval:
    """Error rate of "same person?" by a threshold on similarity where false accepts equal false rejects.

    Every subject's own comparisons weigh the same, and so do its comparisons with others.
    """
    own = np.zeros(found.values.shape, bool)
    own[np.arange(len(found.own)), found.own] = True
    levels = np.unique(found.values)
    if len(levels) > EER_POINTS:
        parts = (found.values[own], found.values[~own])
        levels = np.unique(np.concatenate([np.quantile(p, np.linspace(0, 1, EER_POINTS)) for p in parts]))
    rejected = np.zeros((weights.shape[1], len(levels) + 1))
    accepted = np.zeros_like(rejected)
    for i in range(weights.shape[1]):
        mine = found.own == i
        genuine, impostor = (np.sort(found.values[mine][part]) for part in (own[mine], ~own[mine]))
        rejected[i, :-1] = np.searchsorted(genuine, levels, side="left") / len(genuine)
        accepted[i, :-1] = 1 - np.searchsorted(impostor, levels, side="left") / len(impostor)
        rejected[i, -1] = 1.0
    point = _crossing(accepted.mean(0, keepdims=True), rejected.mean(0, keepdims=True))[0]
    total = weights.sum(1, keepdims=True)
    low, high = np.percentile(_crossing(weights @ accepted / total, weights @ rejected / total), [2.5, 97.5])
    return Interval(float(point), float(low), float(high))


def _crossing(falling: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """(n,) height at which two curves over the same (n, levels) cross, linear between levels."""
    gap = falling - rising
    at = np.argmax(gap <= 0, axis=1)
    before = np.maximum(at - 1, 0)
    rows = np.arange(len(gap))
    step = gap[rows, before] - gap[rows, at]
    share = np.where(step > 0, gap[rows, before] / np.where(step > 0, step, 1), 0.0)
    return falling[rows, before] + share * (falling[rows, at] - falling[rows, before])
