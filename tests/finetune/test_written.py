"""What a leaderboard refuses: folders that are not of `compare`, are damaged or contradict each other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import PlethoraError
from finetune import metrics
from finetune.commands.leaderboard import Leaderboard, run
from finetune.evaluation.written import read_folder
from tests.finetune import made
from tests.finetune.boards import board_of, called, folder, others, several, two_folders

Edit = Callable[[dict[str, Any]], Any]


def edited(uri: str, edit: Edit) -> None:
    path = Path(uri, "results.json")
    told = json.loads(path.read_text())
    edit(told)
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda r: r.pop("encoders"), "not of `compare` or `evaluate`"),
        (lambda r: r["tasks"][0]["task"].update(kind="ordinal"), r"task sbp: task.kind: .*it is 'ordinal'"),
        (lambda r: r["tasks"][0]["counts"].update(windows=71), "72 predictions, results.json says 71"),
        (lambda r: r["tasks"][0]["rows"][0]["metrics"]["mae"].update(value=1.0), "row a gives mae .*says 1:"),
        (lambda r: r["tasks"][0].pop("corpus"), "lacks its corpus or overlap"),
        (lambda r: r["tasks"].append(r["tasks"][0]), "two tasks are called sbp"),
        (lambda r: r["tasks"][0].pop("protocol"), "protocol: field required"),
    ],
)
def test_a_folder_that_cannot_be_trusted_is_one_clear_line(tmp_path: Path, edit: Edit, said: str) -> None:
    uri = folder(tmp_path / "one", made.numbers())
    edited(uri, edit)
    with pytest.raises(PlethoraError, match=said) as error:
        run(Leaderboard([uri], str(tmp_path / "out")))
    assert uri in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("results.json", None, "no results.json: name a folder"),
        ("results.json", b"{", "not JSON"),
        ("results.json", b"[]", "holds no results"),
        ("predictions.parquet", None, "no such file"),
        ("predictions.parquet", b"PAR1 and no more", "damaged"),
    ],
)
def test_a_missing_or_damaged_file_is_one_clear_line(
    tmp_path: Path, file: str, data: bytes | None, said: str
) -> None:
    uri = folder(tmp_path / "one", made.numbers())
    Path(uri, file).unlink()
    if data is not None:
        Path(uri, file).write_bytes(data)
    with pytest.raises(PlethoraError, match=said) as error:
        run(Leaderboard([uri], str(tmp_path / "out")))
    assert uri in str(error.value) and "\n" not in str(error.value)


def test_an_encoder_that_changed_between_two_folders_is_refused(tmp_path: Path) -> None:
    changed = folder(tmp_path / "changed", called(made.numbers(), a="c", b="d"), infos=others("c", "d"))
    with pytest.raises(PlethoraError, match=r"encoder /runs/d/bundle .*has other predictions in"):
        board_of(*two_folders(tmp_path), changed)


def test_a_folder_is_named_once_and_is_not_written_over(tmp_path: Path) -> None:
    uri = folder(tmp_path / "one", made.numbers())
    with pytest.raises(PlethoraError, match="named twice"):
        run(Leaderboard([uri, f"{uri}/"], str(tmp_path / "out")))
    with pytest.raises(PlethoraError, match="is one of the folders that are read"):
        run(Leaderboard([uri], uri))


def test_probabilities_of_classes_and_of_labels_are_read_back_as_they_were_scored(tmp_path: Path) -> None:
    """Of one file that holds both tasks, in another order than that of records."""
    uri = folder(tmp_path / "one", several("multi-class"), several("multi-label"))
    classes, labels = read_folder(uri)
    assert classes.scored.names == ("x", "y", "z") and labels.scored.names == ("I10", "E11", "N18")
    assert classes.scored.target.shape == (72,) and labels.scored.target.shape == (72, 3)
    for table in (classes, labels):
        weights = metrics.draw_weights(12, 60)
        for row in ("a", "b", "handcrafted", "mean"):
            told = table.figure(row)
            assert table.scored.predicted[row].shape == (72, 3)
            again = metrics.interval(table.drawn(row, weights))
            assert np.allclose([again.value, again.low, again.high], [told.value, told.low, told.high])
    assert [column.title for column in board_of(uri).columns] == ["Rhythm, c", "Diagnoses, c"]
