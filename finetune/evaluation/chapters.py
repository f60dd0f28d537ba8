"""Diagnosis codes by chapter, and how many labels would score high by chance.

A code is ICD-10 or ICD-9 (and their clinical modifications). A corpus may say which: `icd9:428.0`,
`icd10:I50`; otherwise a code that begins with a digit is ICD-9, and one that begins with a letter is ICD-10,
whose letters ICD-9's supplements (E, V) share: name the version of those.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from finetune import metrics
from finetune.evaluation.results import Chance, Chapter, Interval, LabelScore

VERSION = re.compile(r"icd[-_ ]?(9|10)(?:[-_ ]?cm)?:\s*(.*)", re.IGNORECASE)
OLD = "icd9:"
# First and last three characters of each chapter (WHO, ICD-10 version 2019; ICD-9 1977 with its supplements).
CHAPTERS_10 = (
    ("A00", "B99", "Infections"),
    ("C00", "D49", "Neoplasms"),
    ("D50", "D89", "Blood and immunity"),
    ("E00", "E90", "Endocrine, nutritional, metabolic"),
    ("F00", "F99", "Mental and behavioural"),
    ("G00", "G99", "Nervous system"),
    ("H00", "H59", "Eye"),
    ("H60", "H95", "Ear"),
    ("I00", "I99", "Circulatory"),
    ("J00", "J99", "Respiratory"),
    ("K00", "K95", "Digestive"),
    ("L00", "L99", "Skin"),
    ("M00", "M99", "Musculoskeletal"),
    ("N00", "N99", "Genitourinary"),
    ("O00", "O9A", "Pregnancy and childbirth"),
    ("P00", "P96", "Perinatal"),
    ("Q00", "Q99", "Congenital"),
    ("R00", "R99", "Symptoms and findings"),
    ("S00", "T98", "Injury and poisoning"),
    ("U00", "U99", "Special purposes"),
    ("V00", "Y99", "External causes"),
    ("Z00", "Z99", "Factors influencing health"),
)
CHAPTERS_9 = (
    ("001", "139", "Infections"),
    ("140", "239", "Neoplasms"),
    ("240", "279", "Endocrine, nutritional, metabolic"),
    ("280", "289", "Blood and immunity"),
    ("290", "319", "Mental and behavioural"),
    ("320", "359", "Nervous system"),
    ("360", "379", "Eye"),
    ("380", "389", "Ear"),
    ("390", "459", "Circulatory"),
    ("460", "519", "Respiratory"),
    ("520", "579", "Digestive"),
    ("580", "629", "Genitourinary"),
    ("630", "679", "Pregnancy and childbirth"),
    ("680", "709", "Skin"),
    ("710", "739", "Musculoskeletal"),
    ("740", "759", "Congenital"),
    ("760", "779", "Perinatal"),
    ("780", "799", "Symptoms and findings"),
    ("800", "999", "Injury and poisoning"),
    ("E00", "E99", "External causes"),
    ("V01", "V91", "Factors influencing health"),
)
SHAPE = {"9": re.compile(r"(?:\d|E\d|V)\d\d.*"), "10": re.compile(r"[A-Z]\d[0-9A-Z].*")}
OTHER = "Other"  # of a name that is no code, or a code of no chapter
SHUFFLES = 200
STRENGTH = 0.1  # of the ridge regression, a training row


@dataclass(frozen=True)
class Code:
    """One code: "9" or "10", and its characters without the dot, in capitals."""

    version: str
    characters: str


def parsed(text: str) -> Code:
    """`text` with or without its version; whether it is a code at all is the caller's to check."""
    marked = VERSION.fullmatch(text.strip())
    word = (marked[2] if marked else text).strip().replace(".", "").upper()
    return Code(marked[1] if marked else ("9" if word[:1].isdigit() else "10"), word)


def label_name(code: Code, digits: int) -> str:
    """The label that a code belongs to: its first `digits` characters (one more for ICD-9's E codes, whose
    categories have four); of ICD-9's supplements, whose letters ICD-10 has too, with `OLD` before it."""
    shared = code.version == "9" and not code.characters[:1].isdigit()
    cut = digits + (shared and code.characters.startswith("E"))
    return (OLD if shared else "") + code.characters[:cut]


def chapter_of(label: str) -> str:
    """The chapter of a label's code; OTHER if it has none."""
    code = parsed(label)
    if not SHAPE[code.version].fullmatch(code.characters):
        return OTHER
    first = code.characters[:3]
    chapters = CHAPTERS_9 if code.version == "9" else CHAPTERS_10
    return next((name for low, high, name in chapters if low <= first <= high), OTHER)


def table(
    names: Sequence[str], auroc: Mapping[str, np.ndarray], levels: Sequence[float]
) -> tuple[Chapter, ...]:
    """A line a chapter, the largest first, then one of all labels if there are several chapters.

    `auroc`: {row: (labels, 1 + draws)}. A chapter's figure is the mean over its labels that a draw can score.
    """
    places: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        places.setdefault(chapter_of(name), []).append(k)
    ordered = sorted(places.items(), key=lambda item: (item[0] == OTHER, -len(item[1]), item[0]))
    if len(ordered) > 1:
        ordered.append(("All", list(range(len(names)))))
    return tuple(
        Chapter(
            chapter,
            len(which),
            {row: metrics.interval(mean_known(values[which])) for row, values in auroc.items()},
            {row: counts_above(values[which], levels) for row, values in auroc.items()},
        )
        for chapter, which in ordered
    )


def mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the labels (first axis) that a draw can score."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(0) / known.sum(0))


def counts_above(auroc: np.ndarray, levels: Sequence[float]) -> dict[str, Interval]:
    """{level: how many of the labels (labels, 1 + draws) score above it, with the interval over draws}."""
    with np.errstate(invalid="ignore"):
        return {f"{level:g}": metrics.interval((auroc > level).sum(0).astype(float)) for level in levels}


def by_chance(
    hot_nk: np.ndarray,
    x_nd: np.ndarray,
    subject_n: np.ndarray,
    fold_n: np.ndarray,
    levels: Sequence[float],
    seed: int,
    shuffles: int = SHUFFLES,
) -> tuple[Chance, np.ndarray]:
    """What a linear probe of `x_nd` reaches on others' labels, and (2, labels): each label's 95 % band.

    Each shuffle gives every subject all labels of another one, so that comorbidity and prevalence stay as
    they are (a subject with more rows than the other repeats the other's), and the probe learns anew in every
    fold: fixed out-of-fold predictions would give a band that is too narrow by the square root of 2, because
    what two people say about each other counts in both of their folds. The probe is a ridge regression of one
    strength, for which all labels are one product. `fold_n`: the fold that tests a row, −1: it only trains.
    `bound` is what the best of all labels stays below in 95 of 100 shuffles (Westfall and Young's max
    statistic).
    """
    people, who = np.unique(subject_n, return_inverse=True)
    rows_of = [np.flatnonzero(who == k) for k in range(len(people))]
    turn = np.zeros(len(who), int)
    for rows in rows_of:
        turn[rows] = np.arange(len(rows))
    first, count = np.cumsum([0, *map(len, rows_of)]), np.array([len(rows) for rows in rows_of])
    together, tested = np.concatenate(rows_of), np.flatnonzero(fold_n >= 0)
    fits = [_ridge(x_nd, fold_n, fold) for fold in np.unique(fold_n[tested])]
    rng = np.random.default_rng([seed, 0x5FF1])
    null = np.empty((shuffles, hot_nk.shape[1]))
    score = np.empty(hot_nk.shape)
    for s in range(shuffles):
        other = rng.permutation(len(people))[who]
        hot = hot_nk[together[first[other] + turn % count[other]]]
        for test, train, x_test, solve in fits:
            score[test] = x_test @ (solve @ (hot[train] - hot[train].mean(0)))
        null[s] = _auroc(hot[tested] == 1, score[tested])
    counts = {}
    for level in levels:
        n = (null > level).sum(1).astype(float)
        counts[f"{level:g}"] = Interval(float(n.mean()), *(float(q) for q in np.percentile(n, [2.5, 97.5])))
    best = np.max(np.where(np.isfinite(null), null, -np.inf), axis=1)
    return Chance(shuffles, counts, float(np.percentile(best, 95))), np.nanpercentile(
        null, [2.5, 97.5], axis=0
    )


def _ridge(x_nd: np.ndarray, fold_n: np.ndarray, fold: int) -> tuple[np.ndarray, ...]:
    """Rows that test and train, standardised vectors of the former, and what turns labels to weights."""
    test, train = np.flatnonzero(fold_n == fold), np.flatnonzero(fold_n != fold)
    known = np.isfinite(x_nd)  # an unknown age counts as the mean
    mean = np.where(known, x_nd, 0)[train].sum(0) / np.maximum(known[train].sum(0), 1)
    filled = np.where(known, x_nd, mean).astype(np.float64)
    sd = filled[train].std(0)
    scaled = (filled - mean) / np.where(sd > 0, sd, 1)
    strength = STRENGTH * len(train)
    solve = np.linalg.solve(
        scaled[train].T @ scaled[train] + strength * np.eye(x_nd.shape[1]), scaled[train].T
    )
    return test, train, scaled[test], solve


def _auroc(hot_nk: np.ndarray, score_nk: np.ndarray) -> np.ndarray:
    """(labels,); NaN where a label has one side only."""
    positive = hot_nk.sum(0)
    pairs = positive * (len(hot_nk) - positive)
    above = np.where(hot_nk, rankdata(score_nk, axis=0), 0).sum(0) - positive * (positive + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)


def found(scores: Sequence[LabelScore], chance: Chance) -> list[str]:
    """Labels above what the best of all reaches by chance."""
    return [score.label for score in scores if score.auroc.value > chance.bound]
