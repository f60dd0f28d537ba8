"""One task's windows and vectors → its table: probes, metrics, intervals, paired differences, and what stands
beside them (subgroups, few-shot curves, the published protocol).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cluster.errors import PlethoraError
from finetune import metrics
from finetune.evaluation import chapters, classes, delong, features, multilabel, retrieval
from finetune.evaluation.choose import Windows
from finetune.evaluation.entrant import Entrant
from finetune.evaluation.fewshot import few_shot
from finetune.evaluation.given import given_folds, named, read_predictions, read_split, split_windows
from finetune.evaluation.groups import level_of, subgroup_tables
from finetune.evaluation.heads import Head
from finetune.evaluation.kinds import Answer, Classes, Labels, Numbers, answer_of
from finetune.evaluation.lengths import fit
from finetune.evaluation.naming import BENT, OWN_ONLY, Drawn, Notes, note_handcrafted, row_labels, table_rows
from finetune.evaluation.options import Options
from finetune.evaluation.protocol import published
from finetune.evaluation.results import Chance, Counts, Protocol, Readings, TaskResult
from finetune.evaluation.rows import Row as Inputs
from finetune.evaluation.rows import probed, rows_of
from finetune.evaluation.tracked import Direct
from finetune.probe import Folds, Probed
from finetune.task import Task, demographics
from finetune.task import classes as class_names

PEOPLE, NUMBER = "\0demographics", "\0number"  # no row is called so


@dataclass
class Outcome:
    """One task's result, and what it was computed from: the rows that are scored (windows, or records or
    subjects where those are pooled), predictions by row of the table, (n,) or (n, columns of
    `classes.one_hot`), the fold and the vectors of each.
    """

    result: TaskResult
    windows: Windows
    predicted: dict[str, np.ndarray]
    fold: np.ndarray
    vectors: dict[str, np.ndarray]


def outcome(
    entrants: Sequence[Entrant],
    task: Task,
    labels: pa.Table,
    windows: Windows,
    vectors: dict[str, np.ndarray],
    notes: dict[str, str],
    options: Options,
    direct: Direct | None = None,
    trained: Mapping[str, Head] | None = None,
    sides: Mapping[str, str] | None = None,
) -> Outcome:
    """Probes, metrics, intervals and paired differences of one task. `direct`: the tracker's answers, if
    it has any; `trained`: {row: a head that learns from the windows themselves, whose x are their numbers};
    `sides`: {subject or record: "train" or "test"} of `options.split`, a file's by default.
    """
    note_handcrafted(vectors, notes)
    names = windows.names or class_names(labels, task)
    heads = options.vector_heads
    more = (*heads, *options.network_heads)
    labels_of = row_labels(entrants, options.predictions, bool(names), task, more)
    warnings = _unlabelled(windows, task)
    pieces = max(fit(e.encoder, task.window_s).pieces for e in entrants)
    if task.kind == "retrieval":
        return _identity(entrants, task, windows, vectors, notes, labels_of, pieces, options)
    test, number = None, np.arange(len(windows.rows))
    if options.split:
        whole = windows
        windows, test = split_windows(
            windows, read_split(options.split) if sides is None else sides, options.split
        )
        kept = np.isin(whole.rows, windows.rows)
        vectors, number = {name: x[kept] for name, x in vectors.items()}, number[kept]
        direct = direct and direct.at(kept)
    refused = dict(windows.refused)
    people, people_names = demographics(labels, windows.record.tolist(), task.demographics)
    if not people_names:
        wanted = " or ".join(task.demographics)
        notes["demographics"] = f"the corpus has no {wanted}" if wanted else "the task names none"
    given = {
        row: read_predictions(path, task, names, windows) for row, path in named(options.predictions).items()
    }
    level = level_of(windows, vectors | {PEOPLE: people, NUMBER: number[:, None]}, task)
    learn, who = level.learn, level.learn.subject
    given = {n: level.scored(level.learnt(p)) for n, p in given.items()}
    answer = answer_of(task, learn.target, names)
    if test is None:
        outer = answer.folds(who, options.folds, options.seed)
    else:
        outer = given_folds(answer, who, level.learnt(test.astype(float)) > 0.5, str(options.split))
    encoders = [e.name for e in entrants]
    own = {n: x for n, x in level.vectors.items() if n not in (PEOPLE, NUMBER)}
    rows = rows_of(own, level.vectors[PEOPLE], encoders, heads)
    rows |= {n: Inputs(level.vectors[NUMBER], head=head) for n, head in (trained or {}).items()}
    found = probed(rows, answer, who, outer, options.seed)
    predicted = {n: level.scored(found[n].predicted) for n in labels_of if n in found} | given
    if direct is not None:
        labels_of, notes["tracker"] = labels_of | {"tracker": direct.label}, direct.note
        rate = level.scored(level.learnt(direct.predicted))
        predicted["tracker"] = np.where(np.isfinite(rate), rate, predicted["mean"])
    tests = level.tests(outer)
    tested, fold = _tested(tests, given, len(level.score.subject))
    if sum(map(len, tests)) > len(tested):
        refused["without a given prediction"] = sum(map(len, tests)) - len(tested)
    scored = level.score.at(tested)
    truth = answer_of(task, scored.target, names)
    shown = {n: predicted[n][tested] for n in labels_of if n in predicted}
    weights = metrics.draw_weights(len(np.unique(scored.subject)), seed=options.seed)
    drawn = {n: truth.drawn(p, shown["mean"], scored.subject, weights) for n, p in shown.items()}
    curve = None
    if options.few_shot:
        plain = {n: r for n, r in rows.items() if r.head == "linear" and " + " not in n}
        full = {n: drawn[n][task.main] for n in [*plain, "mean"]}

        def score(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            merged = {n: level.scored(p)[tested] for n, p in given.items()}
            return {
                n: truth.drawn(p, merged["mean"], scored.subject, weights)[task.main]
                for n, p in merged.items()
            }

        curve = few_shot(plain, answer, who, outer, score, full, options.seed)
    leaking = None
    if options.published_protocol:
        honest = {n: d for n, d in drawn.items() if n not in given}
        one = answer_of(task, windows.target, names)
        leaking = published(
            rows_of(vectors, people, encoders, heads), one, windows, honest, options.folds, options.seed
        )
    result = TaskResult(
        task=task,
        classes=tuple(names) if task.kind != "multi-label" else (),
        pieces=pieces,
        refused=refused,
        warnings=(*warnings, *nonlinear(labels_of, encoders, drawn, task)),
        counts=_counts(windows, level.score, names, task),
        protocol=_protocol(outer, options, found, people_names, names),
        rows=table_rows(labels_of, drawn, notes),
        differences=paired_differences(labels_of, encoders, drawn, task.main),
        added=added_to_demographics(encoders, drawn, task.main),
        subgroups=subgroup_tables(task, labels, scored, truth, shown, weights),
        few_shot=curve,
        published_protocol=leaking,
    )
    pooled = task.model_copy(update={"pool": "vectors"})
    maps = level_of(windows, vectors | {PEOPLE: people}, pooled).vectors
    chance = {}
    if task.kind == "multi-label":
        by_row = {("demographics" if n == PEOPLE else n): x for n, x in maps.items()}
        chance = {
            n: chapters.by_chance(
                level.score.target, x, level.score.subject, fold, multilabel.ABOVE, options.seed
            )
            for n, x in by_row.items()
            if n in shown
        }
    mapped = {n: x[tested] for n, x in maps.items() if n != PEOPLE}
    result = _with_kind(result, truth, scored, shown, weights, chance)
    return Outcome(result, scored, shown, fold[tested], mapped)


def _tested(
    tests: Sequence[np.ndarray], given: Mapping[str, np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that every row of the table predicts, and the fold of each of all rows (−1: none)."""
    fold = np.full(count, -1, np.int32)
    for number, test in enumerate(tests):
        fold[test] = number
    there = fold >= 0
    for name, p in given.items():
        there &= np.isfinite(p).reshape(count, -1).all(axis=1)
        if not there.any():
            raise PlethoraError(
                f"--predictions {name}: predicts none of the windows that are evaluated (record and start_s "
                "must be theirs)"
            )
    return np.flatnonzero(there), fold


def _unlabelled(windows: Windows, task: Task) -> list[str]:
    if not windows.unlabelled:
        return []
    total = windows.unlabelled + len(set(windows.subject))
    return [
        f"{windows.unlabelled} of {total} subjects have no usable label {task.label} and are not in the table"
    ]


def paired_differences(
    labels: Mapping[str, str], encoders: Sequence[str], drawn: Drawn, main: str
) -> dict[str, dict[str, metrics.Difference]]:
    """{encoder: {row: encoder − row}} of the main metric; rows are its own probes, other encoders, untrained
    twins and baselines, not other encoders' heads and demographics.
    """
    found = {}
    for name in encoders:
        foreign = {f"{other}{how}" for other in encoders for how in OWN_ONLY if other != name}
        found[name] = {
            n: metrics.difference(drawn[name][main], drawn[n][main])
            for n in labels
            if n in drawn and n != name and n not in foreign
        }
    return found


def added_to_demographics(encoders: Sequence[str], drawn: Drawn, main: str) -> dict[str, metrics.Difference]:
    """What each encoder's vectors add to demographics."""
    return {
        n: metrics.difference(drawn[f"{n} + demographics"][main], drawn["demographics"][main])
        for n in encoders
        if f"{n} + demographics" in drawn
    }


def _with_kind(
    result: TaskResult,
    truth: Answer,
    scored: Windows,
    shown: Mapping[str, np.ndarray],
    weights: np.ndarray,
    chance: Mapping[str, tuple[Chance, np.ndarray]],
) -> TaskResult:
    """With what only some kinds have: errors of each subject, DeLong's intervals, AUROC of each label."""
    if isinstance(truth, Numbers):
        people = np.unique(scored.subject)
        sums = {n: metrics.subject_sums(truth.y, p, scored.subject) for n, p in shown.items()}
        errors = {n: dict(zip(people, metrics.per_subject_mae(s), strict=True)) for n, s in sums.items()}
        return replace(result, per_subject_mae=errors)
    if isinstance(truth, Labels):
        beside = multilabel.label_tables(truth.y, truth.names, shown, scored.subject, weights, chance)
        return replace(result, **vars(beside))
    if isinstance(truth, Classes) and len(truth.names) == 2:
        hot = truth.hot()[:, 0]
        evidence = {n: classes.evidence(p, shown["mean"])[:, 0] for n, p in shown.items()}
        return replace(result, delong={n: delong.auroc(hot, s, scored.subject) for n, s in evidence.items()})
    return result


def nonlinear(labels: Mapping[str, str], encoders: Sequence[str], drawn: Drawn, task: Task) -> list[str]:
    """A line where another head finds in an encoder's vectors what its linear probe does not."""
    lower, said = task.kind == "regression", []

    def beats(a: str, b: str) -> bool:
        apart = metrics.difference(drawn[a][task.main], drawn[b][task.main])
        return apart.high < 0 if lower else apart.low > 0

    for name in encoders:
        rows = {head: f"{name}, {head}" for head in BENT if f"{name}, {head}" in drawn}
        works = [head for head, row in rows.items() if beats(row, "mean") and beats(row, name)]
        if works and not beats(name, "mean"):
            said.append(
                f"{labels[name]}: the linear probe fails where a non-linear one ({', '.join(works)}) works "
                "on the same vectors: what they know is not linear in them; tune the whole encoder, or read "
                f"the {works[0]} row"
            )
    return said


def _counts(every: Windows, scored: Windows, names: Sequence[str], task: Task) -> Counts:
    readings, named_classes = None, None
    if task.level == "reading":
        each = np.unique(scored.subject, return_counts=True)[1]
        readings = Readings(int(each.min()), int(each.max()))
    if names and task.kind != "multi-label":
        named_classes = {name: int(np.sum(scored.target == k)) for k, name in enumerate(names)}
    return Counts(
        windows=len(every.subject),
        subjects=len(set(every.subject)),
        records=len(set(every.record)),
        rows=len(scored.subject),
        unlabelled_subjects=every.unlabelled,
        readings=readings,
        classes=named_classes,
        labels=len(names) if task.kind == "multi-label" else None,
    )


def _protocol(
    outer: Folds,
    options: Options,
    found: Mapping[str, Probed],
    people_names: Sequence[str],
    names: Sequence[str],
) -> Protocol:
    chosen = {n: list(p.alphas) for n, p in found.items()}
    return Protocol(
        folds=len(outer),
        seed=options.seed,
        draws=metrics.DRAWS,
        folds_asked=1 if options.split else options.folds,
        split=options.split,
        strengths=chosen if names else None,
        alphas=None if names else chosen,
        demographics=tuple(people_names),
        handcrafted=features.NAMES,
    )


def _identity(
    entrants: Sequence[Entrant],
    task: Task,
    windows: Windows,
    vectors: dict[str, np.ndarray],
    notes: Notes,
    labels: Mapping[str, str],
    pieces: int,
    options: Options,
) -> Outcome:
    sides = retrieval.enrolled(windows, task.window_s)
    weights = metrics.draw_weights(len(sides.names), seed=options.seed)
    drawn = retrieval.drawn(vectors, windows, sides, weights)
    counts = replace(
        _counts(windows, windows, [], task), gallery=len(sides.names), left_out=len(sides.left_out)
    )
    protocol = replace(_protocol([], options, {}, [], []), gap_s=min(sides.gap_s.values(), default=None))
    result = TaskResult(
        task=task,
        classes=(),
        pieces=pieces,
        refused=windows.refused,
        warnings=tuple(_unlabelled(windows, task)),
        counts=counts,
        protocol=protocol,
        rows=table_rows(labels, drawn, notes),
        differences=paired_differences(labels, [e.name for e in entrants], drawn, task.main),
    )
    return Outcome(result, windows, {}, np.zeros(len(windows.subject), np.int32), vectors)
