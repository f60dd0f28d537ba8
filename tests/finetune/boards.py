"""Folders that `compare` would write of outcomes that nobody ran, for tests of leaderboards."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune import metrics
from finetune.evaluation.kinds import answer_of
from finetune.evaluation.leaderboard import Board, leaderboard
from finetune.evaluation.naming import table_rows
from finetune.evaluation.results import Counts, EncoderInfo
from finetune.evaluation.table import Outcome, paired_differences
from finetune.evaluation.written import read_folder
from finetune.reports import comparison
from finetune.reports.sheet import write
from tests.finetune import made


def folder(path: Path, *outcomes: Outcome, infos: dict[str, EncoderInfo] | None = None) -> str:
    """What `compare` would write of these outcomes, as it would write it."""
    sheet = comparison.of_several(outcomes, infos or made.INFO, str(path))
    write(replace(sheet, pictures=()))
    return str(path)


def called(outcome: Outcome, **names: str) -> Outcome:
    """The outcome with its encoders called something else."""
    text = {old: new for old, new in names.items()}

    def new(row: str) -> str:
        first, comma, rest = row.partition(", ")
        return text.get(first, first) + comma + rest

    found = outcome.result
    rows = tuple(replace(row, name=new(row.name), label=new(row.label)) for row in found.rows)
    apart = {new(a): {new(b): d for b, d in of.items()} for a, of in found.differences.items()}
    predicted = {new(row): p for row, p in outcome.predicted.items()}
    return replace(outcome, result=replace(found, rows=rows, differences=apart), predicted=predicted)


def board_of(*folders: str) -> Board:
    return leaderboard([table for uri in folders for table in read_folder(uri)])


def others(*names: str) -> dict[str, EncoderInfo]:
    return {name: EncoderInfo(f"/runs/{name}/bundle", "ppg", 6) for name in names}


def scored(outcome: Outcome, encoders: tuple[str, ...]) -> Outcome:
    """Figures of a regression from its predictions."""
    w, how = outcome.windows, outcome.result.protocol
    weights = metrics.draw_weights(len(set(w.subject)), how.draws, how.seed)
    drawn = {
        row: metrics.drawn(metrics.subject_sums(w.target, p, w.subject), weights)
        for row, p in outcome.predicted.items()
    }
    labels = outcome.result.labels
    notes = {row.name: row.note for row in outcome.result.rows if row.note}
    result = replace(
        outcome.result,
        rows=table_rows(labels, drawn, notes),
        differences=paired_differences(labels, encoders, drawn, "mae"),
    )
    return replace(outcome, result=result)


def several(kind: str) -> Outcome:
    """Three classes ("multi-class") or labels ("multi-label") of the people of `made.numbers`, records in
    another order.
    """
    outcome = made.numbers()
    w, rng = outcome.windows, np.random.default_rng(8)
    hot = np.eye(3)[np.arange(72) % 3] if kind == "multi-class" else rng.integers(0, 2, (72, 3)).astype(float)
    names = ("x", "y", "z") if kind == "multi-class" else ("I10", "E11", "N18")
    target = np.argmax(hot, axis=1).astype(float) if kind == "multi-class" else hot
    predicted = {row: np.clip(0.3 + 0.2 * hot + rng.normal(0, 0.1, (72, 3)), 0.01, 0.99) for row in made.ROWS}
    predicted["mean"] = np.full((72, 3), 1 / 3)
    del predicted["demographics"]
    title = "Rhythm" if kind == "multi-class" else "Diagnoses"
    task = made.SBP.model_copy(
        update={
            "name": title.lower(),
            "title": title,
            "kind": kind,
            "unit": "",
            "metrics": ("auroc", "auprc"),
        }
    )
    answer, weights = answer_of(task, target, names), metrics.draw_weights(12, 60)
    drawn = {row: answer.drawn(p, predicted["mean"], w.subject, weights) for row, p in predicted.items()}
    result = replace(
        outcome.result,
        task=task,
        classes=names if kind == "multi-class" else (),
        counts=Counts(72, subjects=12, records=12, labels=3),
        rows=table_rows(made.ROWS, drawn, {}),
        differences=paired_differences(made.ROWS, made.ENCODERS, drawn, "auroc"),
        per_label={row: () for row in predicted},
        above={row: {"0.7": 0, "0.8": 0} for row in predicted},
    )
    windows = replace(w, target=target, names=list(names))
    return shuffled(replace(outcome, result=result, windows=windows, predicted=predicted))


def shuffled(outcome: Outcome) -> Outcome:
    """The same with its windows in another order."""
    order = np.random.default_rng(9).permutation(len(outcome.windows.subject))
    predicted = {row: p[order] for row, p in outcome.predicted.items()}
    return replace(outcome, windows=outcome.windows.at(order), predicted=predicted, fold=outcome.fold[order])


def two_folders(tmp_path: Path) -> tuple[str, str]:
    """Encoders a and b in one folder, c and d in the other, on the same windows in another order: c predicts
    what a does.
    """
    second = called(made.numbers(), a="c", b="d")
    rng = np.random.default_rng(3)
    moved = second.predicted["d"] + rng.normal(0, 9, len(second.windows.target))
    second = shuffled(replace(second, predicted=second.predicted | {"d": moved}))
    return (
        folder(tmp_path / "first", scored(made.numbers(), ("a", "b"))),
        folder(tmp_path / "second", scored(second, ("c", "d")), infos=others("c", "d")),
    )
