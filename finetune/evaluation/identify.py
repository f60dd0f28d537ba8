"""How often a vector finds its subject among N: enrolled on one part of a recording, probed on another.

No galleries are drawn: from the rank of the true subject among all, the share of galleries of N in which it
comes first is a hypergeometric probability, so accuracy against N is exact for these recordings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.evaluation.results import Result
from finetune.metrics import Interval, draw_weights, interval, mean_interval

ATTACKS = ("one window", "nearest window", "all windows")
LABELS = {
    "encoder": "This encoder",
    "untrained": "Same, untrained",
    "handcrafted": "Handcrafted",
    "raw": "Raw waveform",
}
TIE = 1e-12  # cosines nearer to each other than this count as equal; chance decides their order
EER_POINTS = 2001
CURVE = 48  # gallery sizes in the picture


@dataclass(frozen=True)
class Sides:
    """Which windows enrol a subject and which probe it: `enrol` and `probe`, (n,) bool, never both.

    gap_s: of subjects with one record, the seconds between the end of the last enrolled window and the start
    of the first probe. apart: subjects who are probed on other records than those that enrol them; the time
    between these is not known. left_out: subjects whose record is too short to leave a gap.
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
    """`values`: (probes, subjects) similarity; `true_column`: (probes,) the column of the true subject."""

    values: np.ndarray
    true_column: np.ndarray


@dataclass(frozen=True)
class SearchRow(Result):
    """One kind of vector: rank-1 and rank-5 at each gallery size, and the equal error rate."""

    name: str
    label: str
    rank1: tuple[Interval, ...]
    rank5: tuple[Interval, ...]
    eer: Interval


@dataclass(frozen=True)
class RankByGap(Result):
    """Rank-1 of the subjects whose probes lie on the record that enrolled them, or on another one."""

    subjects: int
    rank1: float


@dataclass(frozen=True)
class Identification(Result):
    """`sizes`: N of the galleries; at the largest of them: `attacks` of the encoder's vectors, `by_gap`,
    `differences` encoder − row, `per_subject` rank-1. `notes`: {row: why it is missing}.
    """

    sizes: tuple[int, ...]
    rows: tuple[SearchRow, ...]
    attacks: Mapping[str, Interval]
    by_gap: Mapping[str, RankByGap]
    differences: Mapping[str, Interval]
    per_subject: Mapping[str, float]
    notes: Mapping[str, str]


def identification(
    vectors: Mapping[str, np.ndarray],
    subject_n: np.ndarray,
    split: Sides,
    sizes: Sequence[int],
    seed: int,
    notes: Mapping[str, str],
) -> tuple[Identification, dict[str, np.ndarray]]:
    """The figures of `vectors`, {name: (n, d)} with names of LABELS, and the curves of their picture:
    {name: (points, 4)} gallery size, rank-1, low, high. `sizes` in ascending order.
    """
    people = len(split.names)
    weights = draw_weights(people, seed=seed)
    dense = sorted({*np.geomspace(2, people, CURVE).round().astype(int).tolist(), *sizes})
    at = [dense.index(n) for n in sizes]
    rows, curves, largest = [], {}, {}
    for name in (name for name in LABELS if name in vectors):
        scored = scores(vectors[name], subject_n, split)
        first = hits(scored, dense)
        rank1 = _means(first, weights)
        largest[name] = first[:, at[-1]]
        curves[name] = np.array([[n, i.value, i.low, i.high] for n, i in zip(dense, rank1, strict=True)])
        row = SearchRow(
            name,
            LABELS[name],
            rank1=tuple(rank1[i] for i in at),
            rank5=_means(hits(scored, sizes, 5), weights),
            eer=equal_error_rate(scored, weights),
        )
        rows.append(row)
    attacks = {}
    for attack in ATTACKS:
        tried = hits(scores(vectors["encoder"], subject_n, split, attack), sizes[-1:])
        (attacks[attack],) = _means(tried, weights)
    encoder = largest["encoder"]
    found = Identification(
        tuple(sizes),
        tuple(rows),
        attacks,
        by_gap=_by_gap(encoder, split),
        differences={n: mean_interval(encoder - x, weights) for n, x in largest.items() if n != "encoder"},
        per_subject=dict(zip(split.names, encoder.tolist(), strict=True)),
        notes=notes,
    )
    return found, curves


def _means(hits_sk: np.ndarray, weights: np.ndarray) -> tuple[Interval, ...]:
    return tuple(mean_interval(column, weights) for column in hits_sk.T)


def _by_gap(rank1_s: np.ndarray, split: Sides) -> dict[str, RankByGap]:
    other = np.isin(split.names, split.apart)
    parts = {"same record": ~other, "other record": other}
    return {k: RankByGap(int(m.sum()), float(rank1_s[m].mean())) for k, m in parts.items() if m.any()}


# ---------------------------------------------------------------- similarity


def _scaled(x_nd: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Standardised by (3, d) sums (count, Σx, Σx²) of other subjects, rows of unit length. Missing values
    become the mean; a row that does not deviate becomes zeros.
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

    Vectors are standardised by the enrolled windows of all subjects except the probe's: nothing of the person
    who is searched for tunes the search. `attack`: "one window" compares a probe with the centroid of a
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
    values, columns = [], []
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
        columns.append(np.full(len(found), i))
    return Scores(np.concatenate(values), np.concatenate(columns))


def _moments(x_nd: np.ndarray) -> np.ndarray:
    known = np.isfinite(x_nd)
    filled = np.where(known, x_nd, 0.0)
    return np.stack([known.sum(0), filled.sum(0), (filled**2).sum(0)])


# ---------------------------------------------------------------- rank


def probability(
    better_n: np.ndarray, tied_n: np.ndarray, others: int, gallery: int, rank: int = 1
) -> np.ndarray:
    """(n,) chance that the true subject is among the first `rank` of a gallery: itself and `gallery` - 1
    drawn from the `others`, of whom `better` score higher and `tied` the same (then chance decides).

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
    probes = np.arange(len(found.true_column))
    true = found.values[probes, found.true_column][:, None]
    better = (found.values > true + TIE).sum(1)
    tied = (np.abs(found.values - true) <= TIE).sum(1) - 1
    others = found.values.shape[1] - 1
    each = np.stack([probability(better, tied, others, size, rank) for size in sizes], axis=1)
    group = found.true_column
    sums = np.stack([np.bincount(group, weights=column) for column in each.T], axis=1)
    return np.asarray(sums / np.bincount(group)[:, None])


# ---------------------------------------------------------------- verification


def equal_error_rate(found: Scores, weights: np.ndarray) -> Interval:
    """Error rate of "same person?" by a threshold on similarity where false accepts equal false rejects.

    Every subject's genuine comparisons weigh the same, and so do its comparisons with others.
    """
    genuine = np.zeros(found.values.shape, bool)
    genuine[np.arange(len(found.true_column)), found.true_column] = True
    levels = np.unique(found.values)
    if len(levels) > EER_POINTS:
        parts = (found.values[genuine], found.values[~genuine])
        levels = np.unique(np.concatenate([np.quantile(p, np.linspace(0, 1, EER_POINTS)) for p in parts]))
    rejected = np.zeros((weights.shape[1], len(levels) + 1))
    accepted = np.zeros_like(rejected)
    for i in range(weights.shape[1]):
        mine = found.true_column == i
        same, other = (np.sort(found.values[mine][part]) for part in (genuine[mine], ~genuine[mine]))
        rejected[i, :-1] = np.searchsorted(same, levels, side="left") / len(same)
        accepted[i, :-1] = 1 - np.searchsorted(other, levels, side="left") / len(other)
        rejected[i, -1] = 1.0
    point = _crossing(accepted.mean(0, keepdims=True), rejected.mean(0, keepdims=True))
    total = weights.sum(1, keepdims=True)
    drawn = _crossing(weights @ accepted / total, weights @ rejected / total)
    return interval(np.concatenate([point, drawn]))


def _crossing(falling: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """(n,) height at which two curves over the same (n, levels) cross, linear between levels."""
    gap = falling - rising
    at = np.argmax(gap <= 0, axis=1)
    before = np.maximum(at - 1, 0)
    rows = np.arange(len(gap))
    step = gap[rows, before] - gap[rows, at]
    share = np.where(step > 0, gap[rows, before] / np.where(step > 0, step, 1), 0.0)
    return falling[rows, before] + share * (falling[rows, at] - falling[rows, before])
