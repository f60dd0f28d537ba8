"""One task's windows and vectors → its table: probes, metrics, intervals, paired differences, and what stands
beside them (subgroups, few-shot curves, the published protocol).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cluster.errors import PlethoraError
from finetune import metrics
from finetune.evaluation import classes, delong, features, multilabel, retrieval
from finetune.evaluation.choose import Windows
from finetune.evaluation.fewshot import few_shot
from finetune.evaluation.given import given_folds, read_predictions, read_split, split_windows
from finetune.evaluation.groups import level_of, subgroup_tables
from finetune.evaluation.kinds import Answer, Classes, Labels, Numbers
from finetune.evaluation.lengths import fit
from finetune.evaluation.protocol import published
from finetune.evaluation.rows import probed, rows_of
from finetune.task import Task, demographics
from finetune.task import classes as class_names

if TYPE_CHECKING:
    from finetune.evaluation.held import Entrant

Drawn = dict[str, dict[str, np.ndarray]]  # {row: {metric: (1 + draws,)}}

PEOPLE = "\0demographics"  # no row is called so

BASELINES = {
    "handcrafted": "Handcrafted features",
    "demographics": "Demographics only",
    "demographics + handcrafted": "Demographics + handcrafted",
    "mean": "Predict the mean",
}


@dataclass(frozen=True)
class Options:
    """What a user may choose of an evaluation."""

    subjects: str = "unseen"
    allow_overlap: bool = False
    folds: int = 5
    seed: int = 0
    window_s: float | None = None
    split: str | None = None  # a file: `given.read_split`
    predictions: tuple[str, ...] = ()  # files: `given.read_predictions`
    published_protocol: bool = False
    few_shot: bool = True
    cache: str | None = None  # a URI for indexes and vectors


@dataclass
class Outcome:
    """One task's results as JSON knows them, and what they were computed from: the rows that are scored
    (windows, or records or subjects where those are pooled), predictions by row of the table, (n,) or
    (n, columns of `classes.one_hot`), the fold and the vectors of each.
    """

    results: dict[str, Any]
    windows: Windows
    predicted: dict[str, np.ndarray]
    fold: np.ndarray
    vectors: dict[str, np.ndarray]


def outcome(
    entrants: Sequence["Entrant"],
    task: Task,
    labels: pa.Table,
    windows: Windows,
    vectors: dict[str, np.ndarray],
    notes: dict[str, str],
    options: Options,
) -> Outcome:
    """Probes, metrics, intervals and paired differences of one task."""
    note_handcrafted(vectors, notes)
    names = windows.names or class_names(labels, task)
    labels_of = row_labels(entrants, options.predictions, bool(names), task)
    base: dict[str, Any] = {
        "task": task.model_dump()
        | {
            "pieces": max(fit(e.encoder, task.window_s).pieces for e in entrants),
            "main": task.main,
            "classes": names if task.kind != "multi-label" else [],
        },
        "level": task.level,
        "refused": windows.refused,
        "warnings": _unlabelled(windows, task),
    }
    if task.kind == "retrieval":
        return _identity(entrants, task, windows, vectors, notes, labels_of, base, options)
    test = None
    if options.split:
        whole = windows
        windows, test = split_windows(windows, read_split(options.split), options.split)
        kept = np.isin(whole.rows, windows.rows)
        vectors = {name: x[kept] for name, x in vectors.items()}
        base["refused"] = windows.refused
    people, people_names = demographics(labels, windows.record.tolist(), task.demographics)
    if not people_names:
        wanted = " or ".join(task.demographics)
        notes["demographics"] = f"the corpus has no {wanted}" if wanted else "the task names none"
    given = {
        row: read_predictions(path, task, names, windows) for row, path in named(options.predictions).items()
    }
    level = level_of(windows, vectors | {PEOPLE: people}, task)
    learn, who = level.learn, level.learn.subject
    given = {n: level.scored(level.learnt(p)) for n, p in given.items()}
    answer = answer_of(task, learn, names)
    if test is None:
        outer = answer.folds(who, options.folds, options.seed)
    else:
        outer = given_folds(answer, who, level.learnt(test.astype(float)) > 0.5, str(options.split))
    encoders = [e.name for e in entrants]
    rows = rows_of({n: x for n, x in level.vectors.items() if n != PEOPLE}, level.vectors[PEOPLE], encoders)
    found = probed(rows, answer, who, outer, options.seed)
    predicted = {n: level.scored(found[n].predicted) for n in labels_of if n in found} | given
    tests = level.tests(outer)
    tested, fold = _tested(tests, given, len(level.score.subject))
    if sum(map(len, tests)) > len(tested):
        base["refused"] = base["refused"] | {"without a given prediction": sum(map(len, tests)) - len(tested)}
    scored = level.score.at(tested)
    seen = answer_of(task, scored, names)
    said = {n: predicted[n][tested] for n in labels_of if n in predicted}
    weights = metrics.draw_weights(len(np.unique(scored.subject)), seed=options.seed)
    drawn = {n: seen.drawn(p, said["mean"], scored.subject, weights) for n, p in said.items()}
    results = base | {
        "counts": _counts(windows, level.score, names, task),
        "protocol": _protocol(outer, options, found, people_names, names),
        **table(labels_of, encoders, drawn, task.main, notes),
        **_beside(seen, scored, said, weights),
    }
    results["subgroups"] = subgroup_tables(task, labels, scored, seen, said, weights)
    results["warnings"] += nonlinear(labels_of, encoders, drawn, task)
    if options.few_shot:
        curve = {n: r for n, r in rows.items() if not r.nearest and " + " not in n}
        full = {n: drawn[n][task.main] for n in [*curve, "mean"]}

        def score(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            merged = {n: level.scored(p)[tested] for n, p in given.items()}
            return {
                n: seen.drawn(p, merged["mean"], scored.subject, weights)[task.main]
                for n, p in merged.items()
            }

        results["few_shot"] = few_shot(curve, answer, who, outer, score, full, options.seed)
    if options.published_protocol:
        honest = {n: d for n, d in drawn.items() if n not in given}
        one = answer_of(task, windows, names)
        results["published_protocol"] = published(
            rows_of(vectors, people, encoders), one, windows, honest, options.folds, options.seed
        )
    maps = level_of(windows, vectors, task.model_copy(update={"pool": "vectors"})).vectors
    return Outcome(results, scored, said, fold[tested], {n: x[tested] for n, x in maps.items()})


def answer_of(task: Task, windows: Windows, names: Sequence[str]) -> Answer:
    if task.kind == "multi-label":
        return Labels(windows.target, names)
    return Classes(windows.target, names) if names else Numbers(windows.target)


def named(predictions: Sequence[str]) -> dict[str, str]:
    """{row: file} of given predictions: named after the file, and its folder where two files have one name.

    PlethoraError: that does not tell them apart either.
    """
    parts = [path.rstrip("/").split("/") for path in predictions]
    stems = [each[-1].rpartition(".")[0] or each[-1] for each in parts]
    rows = [
        stem if stems.count(stem) == 1 else " ".join([*each[-2:-1], stem])
        for stem, each in zip(stems, parts, strict=True)
    ]
    twice = next((path for row, path in zip(rows, predictions, strict=True) if rows.count(row) > 1), None)
    if twice is not None:
        raise PlethoraError(f"--predictions {twice}: another file has the same name: rename one of them")
    return dict(zip(rows, predictions, strict=True))


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


def note_handcrafted(vectors: dict[str, np.ndarray], notes: dict[str, str]) -> None:
    """Where the windows hold no PPG there is no such row; where some lack it, the table says how many."""
    if "handcrafted" not in vectors:
        notes["handcrafted"] = "the corpus has no ppg"
        return
    absent = int(np.isnan(vectors["handcrafted"]).all(axis=1).sum())
    if absent == len(vectors["handcrafted"]):
        notes["handcrafted"] = "no window holds ppg"
        del vectors["handcrafted"]
    elif absent:
        notes["handcrafted"] = f"{absent} windows hold no usable ppg; they get the training median"


def _unlabelled(windows: Windows, task: Task) -> list[str]:
    if not windows.unlabelled:
        return []
    total = windows.unlabelled + len(set(windows.subject))
    return [
        f"{windows.unlabelled} of {total} subjects have no usable label {task.label} and are not in the table"
    ]


def row_labels(
    entrants: Sequence["Entrant"], predictions: Sequence[str], classed: bool, task: Task
) -> dict[str, str]:
    """{row: what it is called}, in the order of the table; the baselines last."""
    labels = {e.name: e.label for e in entrants} | {e.twin: e.twin_label for e in entrants}
    if task.kind != "retrieval":
        labels |= {f"{e.name}, k-NN": f"{e.label}, k-NN" for e in entrants}
        labels |= {f"{e.name} + demographics": f"{e.label} + demographics" for e in entrants}
    labels |= {row: f"{row} (given predictions)" for row in named(predictions)}
    labels |= BASELINES
    if task.kind == "retrieval":
        return {n: v for n, v in labels.items() if "demographics" not in n} | {"mean": "A guess"}
    return labels | ({"mean": "Predict the prevalence"} if classed else {})


def table(
    labels: Mapping[str, str], encoders: Sequence[str], drawn: Drawn, main: str, notes: Mapping[str, str]
) -> dict[str, Any]:
    """Rows with intervals; paired differences encoder − row of the main metric (its own probes, encoders,
    untrained twins, baselines); "added": what an encoder's vectors add to demographics.
    """
    optional = [
        n for n in labels if n.endswith((", k-NN", " + demographics")) or n == "demographics + handcrafted"
    ]
    rows = []
    for name, label in labels.items():
        if name not in drawn and name in optional:
            continue
        shown = {m: asdict(metrics.interval(v)) for m, v in drawn[name].items()} if name in drawn else {}
        rows.append({"name": name, "label": label, "metrics": shown, "note": notes.get(name, "")})

    def apart(a: str, b: str) -> dict[str, float]:
        return asdict(metrics.difference(drawn[a][main], drawn[b][main]))

    differences = {}
    for name in encoders:
        foreign = {
            f"{other}{how}" for other in encoders for how in (", k-NN", " + demographics") if other != name
        }
        differences[name] = {
            n: apart(name, n) for n in labels if n in drawn and n != name and n not in foreign
        }
    added = {
        n: apart(f"{n} + demographics", "demographics") for n in encoders if f"{n} + demographics" in drawn
    }
    return {"rows": rows, "differences": differences} | ({"added": added} if added else {})


def _beside(
    seen: Answer, scored: Windows, said: dict[str, np.ndarray], weights: np.ndarray
) -> dict[str, Any]:
    """What only some kinds have: errors of each subject, DeLong's intervals, AUROC of each label."""
    if isinstance(seen, Numbers):
        people = np.unique(scored.subject)
        sums = {n: metrics.subject_sums(seen.y, p, scored.subject) for n, p in said.items()}
        each = {n: dict(zip(people, metrics.per_subject_mae(s), strict=True)) for n, s in sums.items()}
        return {"per_subject_mae": each}
    if isinstance(seen, Labels):
        return multilabel.label_tables(seen.y, seen.names, said, scored.subject, weights)
    if isinstance(seen, Classes) and len(seen.names) == 2:
        hot = seen.hot()[:, 0]
        score = {n: classes.evidence(p, said["mean"])[:, 0] for n, p in said.items()}
        return {"delong": {n: asdict(delong.auroc(hot, s, scored.subject)) for n, s in score.items()}}
    return {}


def nonlinear(labels: Mapping[str, str], encoders: Sequence[str], drawn: Drawn, task: Task) -> list[str]:
    """A line where neighbours find in an encoder's vectors what its linear probe does not."""
    lower, said = task.kind == "regression", []

    def beats(a: str, b: str) -> bool:
        apart = metrics.difference(drawn[a][task.main], drawn[b][task.main])
        return apart.high < 0 if lower else apart.low > 0

    for name in encoders:
        near = f"{name}, k-NN"
        if near in drawn and beats(near, "mean") and not beats(name, "mean") and beats(near, name):
            said.append(
                f"{labels[name]}: the linear probe fails where a non-linear one (k-NN) works on the same "
                "vectors: what they know is not linear in them; tune the whole encoder, or read the k-NN row"
            )
    return said


def _counts(every: Windows, scored: Windows, names: Sequence[str], task: Task) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "subjects": len(set(every.subject)), "records": len(set(every.record)), "windows": len(every.subject),
        "rows": len(scored.subject), "unlabelled_subjects": every.unlabelled,
    }  # fmt: skip
    if task.level == "reading":
        each = np.unique(scored.subject, return_counts=True)[1]
        counts["readings"] = {"fewest": int(each.min()), "most": int(each.max())}  # of a subject
    if task.kind == "multi-label":
        counts["labels"] = len(names)
    elif names:
        counts["classes"] = {name: int(np.sum(scored.target == k)) for k, name in enumerate(names)}
    return counts


def _protocol(
    outer: Any, options: Options, found: Mapping[str, Any], people_names: list[str], names: Sequence[str]
) -> dict[str, Any]:
    return {
        "folds": len(outer), "folds_asked": 1 if options.split else options.folds, "seed": options.seed,
        "draws": metrics.DRAWS, "split": options.split,
        "strengths" if names else "alphas": {n: list(p.alphas) for n, p in found.items()},
        "demographics": people_names, "handcrafted": list(features.NAMES),
    }  # fmt: skip


def _identity(
    entrants: Sequence["Entrant"],
    task: Task,
    windows: Windows,
    vectors: dict[str, np.ndarray],
    notes: dict[str, str],
    labels: Mapping[str, str],
    base: dict[str, Any],
    options: Options,
) -> Outcome:
    sides = retrieval.enrolled(windows, task.window_s)
    weights = metrics.draw_weights(len(sides.names), seed=options.seed)
    drawn = retrieval.drawn(vectors, windows, sides, weights)
    results = base | {
        "counts": _counts(windows, windows, [], task)
        | {"gallery": len(sides.names), "left_out": len(sides.left_out)},
        "protocol": _protocol([], options, {}, [], []) | {"gap_s": min(sides.gap_s.values(), default=None)},
        **table(labels, [e.name for e in entrants], drawn, task.main, notes),
    }
    return Outcome(results, windows, {}, np.zeros(len(windows.subject), np.int32), vectors)
