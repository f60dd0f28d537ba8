"""Several labels a window (diagnoses): which there are, a probe a label on shared folds, AUROC of each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.errors import PlethoraError
from finetune import metrics, probe
from finetune.evaluation import chapters, classes, heads
from finetune.evaluation.results import Chance, Chapter, LabelScore
from finetune.probe import Columns, Folds, Probed
from finetune.task import Task, excluded, named_labels

NONE = "none"  # the text of a label that says: asked, and nothing was found
ABOVE = (0.7, 0.8)
CHOOSING = 12  # labels that choose for all
CODE = re.compile(r"[A-Z0-9]{1,7}")  # of ICD-9 and ICD-10 and their modifications, without the dot
LETTER_CODE = re.compile(r"[A-Z]\d[A-Z0-9]{0,5}")  # ICD-10
MARKS = "-+*!†"  # may follow a code: of a group (I10.-), of cause and manifestation


def window_codes(
    labels: pa.Table, record_n: Sequence[str], start_n: Sequence[float], task: Task
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the labels, (n, labels) 0 or 1, and the refusal (n,) of each window; refused ones are NaN.

    A label holds where it covers `aggregate.coverage` of the window or more (one without times covers its
    whole record). A window under no label at all is "no label": nobody has asked. The text "none" says that
    somebody has. Names are codes without the dot, in capitals, cut to `digits` characters. PlethoraError: a
    text that is not one code (`code_of`).
    """
    named = named_labels(labels, task.label, task)
    refusal = excluded(labels, record_n, task)
    spans: dict[str, list[tuple[float, float, str]]] = {}
    columns = (named[c].to_pylist() for c in ("record", "start_s", "end_s", "text"))
    for record, start, end, text in zip(*columns, strict=True):
        if text:
            code = code_of(text, record, task)
            whole = (-np.inf if start is None else start, np.inf if end is None else end)
            spans.setdefault(record, []).append((*whole, code))
    names = sorted({code for found in spans.values() for *_, code in found} - {NONE})
    if not names:
        raise PlethoraError(f"label {task.label!r} of the corpus names nothing: task {task.name} needs texts")
    place = {name: i for i, name in enumerate(names)}
    hot = np.full((len(record_n), len(names)), np.nan)
    for i, (record, start) in enumerate(zip(record_n, start_n, strict=True)):
        if refusal[i]:
            continue
        if record not in spans:
            refusal[i] = "no label"
            continue
        shared = np.zeros(len(names))
        asked = False
        for low, high, code in spans[record]:
            seconds = min(high, start + task.window_s) - max(low, start)
            if seconds > 1e-9:
                asked = True
                if code != NONE:
                    shared[place[code]] = max(shared[place[code]], seconds)
        if not asked:
            refusal[i] = "no label"
            continue
        hot[i] = shared >= task.aggregate.coverage * task.window_s - 1e-6
    return names, hot, refusal


def code_of(text: str, record: str, task: Task) -> str:
    """The code that a label's text is, as the table names it; NONE as itself. Without `digits` a text may be
    a name, too, and stays as it is. PlethoraError: it is not one code; none is cut out of several.
    """
    word = text.strip()
    if word.lower() == NONE:
        return NONE
    marked = chapters.VERSION.fullmatch(word)
    parsed = chapters.parsed(word.rstrip(MARKS))
    code = parsed.characters
    if task.digits is not None and CODE.fullmatch(code):
        return chapters.label_name(parsed, task.digits)
    if marked and CODE.fullmatch(code):
        return chapters.label_name(parsed, len(code))
    if task.digits is None and not _several(word):
        return code if LETTER_CODE.fullmatch(code) else word
    other = "" if task.digits is None else f", or, if it is one name, leave `digits` out of task {task.name}"
    raise PlethoraError(
        f"label {task.label!r} of record {record} is {word[:80]!r}, which is not one code: name in `split` "
        "of its column in the descriptor ([tables.columns] or [[fields]]) what stands between the codes, and "
        f"ingest again{other}"
    )


def _several(word: str) -> bool:
    """Whether a text looks like a list: marks of one, or codes beside each other."""
    if re.search(r"[;|{}\[\]\n\t]|['\"]\s*[:,]", word):
        return True
    parts = [p.strip() for p in word.split(",")] if "," in word else word.split()
    short = "," in word  # "AFIB, LVH" are two codes, "HEART FAILURE" is one name
    return len(parts) > 1 and all(
        re.fullmatch(r"[A-Za-z]{0,3}\d[\w.]*", p) or (short and len(p) <= 6 and p.isupper()) for p in parts
    )


def common(hot_nk: np.ndarray, subject_n: np.ndarray, names: Sequence[str], task: Task) -> np.ndarray:
    """Columns with enough subjects that have the label and enough that do not. PlethoraError: none has."""
    least = task.min_positives
    kept = [
        k
        for k in range(len(names))
        if len(set(subject_n[hot_nk[:, k] == 1])) >= least and len(set(subject_n[hot_nk[:, k] == 0])) >= least
    ]
    if not kept:
        most = max(len(set(subject_n[hot_nk[:, k] == 1])) for k in range(len(names)))
        raise PlethoraError(
            f"none of the {len(names)} labels of task {task.name} has {least} subjects with it and {least} "
            f"without (the commonest has {most}): use a larger corpus, or lower min_positives"
        )
    return np.array(kept)


def probe_each(
    x_nd: np.ndarray,
    hot_nk: np.ndarray,
    subject_n: np.ndarray,
    folds: Folds,
    seed: int,
    subsets: Sequence[Columns] | None = None,
) -> Probed:
    """(n, labels) out-of-fold probabilities: a logistic probe a label. Where a fold's training part holds too
    few subjects with or without the label to learn from, its prevalence.

    C and the columns are chosen once a fold, for all labels, by the inner log loss of the CHOOSING commonest:
    a choice a label costs a thousand codes hours, and rare labels choose by few people.
    """
    found = prevalence(hot_nk, folds).predicted
    x, subsets, chosen = np.asarray(x_nd, np.float64), list(subsets or [slice(None)]), []
    with probe.few_threads(len(x)):
        for train, test in folds:
            labels = _learnable(hot_nk[train], subject_n[train])
            if not len(labels):
                continue
            rarest = np.minimum(hot_nk[train].mean(0), 1 - hot_nk[train].mean(0))[labels]
            loss = np.zeros((len(subsets), len(probe.STRENGTHS)))
            for k in labels[np.argsort(-rarest, kind="stable")][:CHOOSING]:
                code = hot_nk[train, k].astype(int)
                inner = probe.class_inner_folds(code, subject_n[train], probe.inner_count(folds), seed)
                loss = loss + probe.inner_losses(x[train], code, inner, subsets)
            columns, strength = probe.least(loss, subsets)
            chosen.append(strength)
            for k in labels:
                code = hot_nk[train, k].astype(int)
                p = probe.logistic_probabilities(x[train], code, x[test], (strength,), columns)[0]
                found[test, k] = p[:, 1]
    return Probed(found, tuple(chosen))


def probe_together(
    head: heads.Head, x_nd: np.ndarray, hot_nk: np.ndarray, subject_n: np.ndarray, folds: Folds, seed: int
) -> Probed:
    """The same of a head, which learns all labels at once."""
    found = prevalence(hot_nk, folds).predicted
    chosen: list[float] = []
    for train, test in folds:
        labels = _learnable(hot_nk[train], subject_n[train])
        if len(labels):
            one = heads.head_probe(head, "labels", x_nd, hot_nk[:, labels], subject_n, [(train, test)], seed)
            found[np.ix_(test, labels)] = one.predicted[test]
            chosen += one.alphas
    return Probed(found, tuple(chosen))


def _learnable(hot_nk: np.ndarray, subject_n: np.ndarray) -> np.ndarray:
    """Labels that two subjects or more have, and two or more have not."""
    both = [[len(set(subject_n[column == v])) for v in (0, 1)] for column in hot_nk.T]
    return np.flatnonzero(np.min(both, axis=1) >= 2)


def prevalence(hot_nk: np.ndarray, folds: Folds) -> Probed:
    """How common each label is among the training windows."""
    found = np.full(hot_nk.shape, np.nan)
    for train, test in folds:
        found[test] = hot_nk[train].mean(0)
    return Probed(found, ())


def drawn_each(
    hot_nk: np.ndarray, predicted: np.ndarray, base: np.ndarray, subject_n: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """{"auroc", "auprc"}: (labels, 1 + draws); NaN where a draw lacks a side."""
    scores = classes.evidence(predicted, base)
    auroc, auprc = classes.ranked(hot_nk == 1, scores, subject_n, weights)
    return {"auroc": auroc, "auprc": auprc}


@dataclass(frozen=True)
class LabelTables:
    """What stands beside the table of a multi-label task, by row."""

    per_label: dict[str, tuple[LabelScore, ...]]
    above: dict[str, dict[str, int]]  # how many labels score above "0.7" and "0.8"
    chapters: tuple[Chapter, ...]  # () where no label is a code
    chance: dict[str, Chance]


def label_tables(
    hot_nk: np.ndarray,
    names: Sequence[str],
    predicted: Mapping[str, np.ndarray],
    subject_n: np.ndarray,
    weights: np.ndarray,
    chance: Mapping[str, tuple[Chance, np.ndarray]],
) -> LabelTables:
    """AUROC of every label, by chapter, and beside `chance`, {row: as `chapters.by_chance` gives it}."""
    positives = [len(set(subject_n[hot_nk[:, k] == 1])) for k in range(len(names))]
    auroc = {
        row: drawn_each(hot_nk, p, predicted["mean"], subject_n, weights)["auroc"]
        for row, p in predicted.items()
    }
    band = {row: limits for row, (_, limits) in chance.items()}
    per_label = {
        row: tuple(
            LabelScore(name, positives[k], metrics.interval(values[k]), _pair(band, row, k))
            for k, name in enumerate(names)
        )
        for row, values in auroc.items()
    }
    above = {
        row: {f"{level:g}": int(np.sum(values[:, 0] > level)) for level in ABOVE}
        for row, values in auroc.items()
    }
    coded = any(chapters.chapter_of(name) != chapters.OTHER for name in names)
    lines = chapters.table(names, {r: v for r, v in auroc.items() if r != "mean"}, ABOVE) if coded else ()
    return LabelTables(per_label, above, lines, {row: of for row, (of, _) in chance.items()})


def _pair(band: Mapping[str, np.ndarray], row: str, label: int) -> tuple[float, float] | None:
    return (float(band[row][0, label]), float(band[row][1, label])) if row in band else None
