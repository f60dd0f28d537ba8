"""Folders that `compare` would write of outcomes that nobody ran, for tests of leaderboards."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune import metrics
from finetune.evaluation.leaderboard import Board, leaderboard
from finetune.evaluation.results import EncoderInfo
from finetune.evaluation.table import Outcome, paired_differences, table_rows
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


def two_folders(tmp_path: Path) -> tuple[str, str]:
    """Encoders a and b in one folder, c and d in the other, on the same windows: c predicts what a does."""
    second = called(made.numbers(), a="c", b="d")
    rng = np.random.default_rng(3)
    moved = second.predicted["d"] + rng.normal(0, 9, len(second.windows.target))
    second = scored(replace(second, predicted=second.predicted | {"d": moved}), ("c", "d"))
    first = scored(made.numbers(), ("a", "b"))
    return (
        folder(tmp_path / "first", first),
        folder(tmp_path / "second", second, infos=others("c", "d")),
    )
