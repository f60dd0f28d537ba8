"""A predefined split and other models' predictions, from files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import PlethoraError
from datasets.schema import LABELS
from finetune.evaluation import given
from finetune.evaluation.given import named
from finetune.evaluation.options import Options
from finetune.evaluation.table import outcome
from finetune.task import load_task
from tests.finetune.test_tasks import answers, corpus_of, entrant, knowing, windows_of

RNG = np.random.default_rng(0)
TASK = load_task("sbp")
VALUES = answers(TASK, RNG)
TABLE, PLACED = corpus_of(TASK, VALUES, RNG)
WINDOWS = windows_of(TASK, TABLE, PLACED)
VECTORS = knowing(VALUES, WINDOWS, RNG)
PEOPLE = sorted(set(WINDOWS.subject))


def told(**options: Any) -> Any:
    return outcome(
        [entrant()], TASK, TABLE, WINDOWS, {"a": VECTORS}, {}, Options(few_shot=False, folds=3, **options)
    )


def split_file(folder: Path, **parts: list[str]) -> str:
    path = folder / "split.json"
    path.write_text(json.dumps(parts))
    return str(path)


def test_a_given_split_trains_and_tests_on_whom_it_names_and_counts_the_others(tmp_path: Path) -> None:
    path = split_file(tmp_path, train=PEOPLE[:20], val=PEOPLE[20:24], test=PEOPLE[24:36])
    found = told(split=path)
    assert sorted(found.windows.subject) == PEOPLE[24:36]
    assert found.result.refused == {"not in the split": 4 * 4}
    assert found.result.protocol.folds == 1
    level = {s: float(VALUES[int(s[1:])]) for s in PEOPLE}
    expected = np.mean([level[s] for s in PEOPLE[:24]])
    assert found.predicted["mean"] == pytest.approx(np.full(12, expected))
    assert found.result.to_json()["rows"][0]["metrics"]["mae"]["value"] < 5


def test_records_may_be_named_too_but_a_subject_on_both_sides_is_a_leak(tmp_path: Path) -> None:
    names = [f"{s}_{k}" for s in PEOPLE for k in (1, 2)]
    assert len(told(split=split_file(tmp_path, train=names[:40], test=names[40:])).windows.subject) == 20
    with pytest.raises(PlethoraError, match=r"records of subject s20 are in both train and test \(1 such"):
        told(split=split_file(tmp_path, train=names[:41], test=names[41:]))


def test_a_label_of_whole_records_may_be_the_split() -> None:
    rows = [
        {"record": r, "subject": r[:1], "name": "fold", "value": v, "text": None, "unit": None}
        for r, v in (("a1", 1.0), ("a2", 1.0), ("b1", 10.0), ("c1", 9.0), ("c1", 10.0))
    ]
    table = pa.Table.from_pylist(rows, schema=LABELS)
    source: Any = SimpleNamespace(
        uri="made up", labels=lambda names: table.filter(pa.compute.is_in(table["name"], pa.array(names)))
    )
    assert given.sides_of("fold=10", source) == {"a1": "train", "a2": "train", "b1": "test"}
    assert set(given.sides_of("fold=1.0,10", source).values()) == {"test"}
    for asked, said in (
        ("group=1", "no record of made up has one value of a label 'group'"),
        ("fold=10,8", "no record has fold '8': it has 1, 10"),
        ("folds=1/none.json", "no such file"),
    ):
        with pytest.raises(PlethoraError, match=said):
            given.sides_of(asked, source)
    with pytest.raises(PlethoraError, match="no such file"):
        given.sides_of("none.json", source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"train": ["s00"]}', "must be"),
        ('{"train": "s00", "test": ["s01"]}', "must be"),
        ('{"train": ["s00"], "test": ["s00"]}', "s00 is in both train and test"),
        ('{"train": ["s00"], "test": ["nobody"]}', "is of a test subject"),
        ('{"train": ["s00"], "test": ["s01"]}', "train has one subject with labels"),
    ],
)
def test_a_split_that_cannot_be_used_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(PlethoraError, match=said):
        told(split=str(path))
    with pytest.raises(PlethoraError, match="no such file"):
        given.read_split(str(tmp_path / "none.json"))


def predictions(folder: Path, values: np.ndarray, rows: np.ndarray, column: str = "sbp") -> str:
    path = folder / "vision.parquet"
    parts = {"record": WINDOWS.record[rows].tolist(), "start_s": WINDOWS.start_s[rows], column: values[rows]}
    pq.write_table(pa.table(parts), path)
    return str(path)


def test_given_predictions_are_a_row_of_the_same_people_averaged_like_the_others(tmp_path: Path) -> None:
    values = WINDOWS.target + RNG.normal(0, 3, len(WINDOWS.target))
    found = told(predictions=(predictions(tmp_path, values, np.arange(len(values))),))
    rows = {row["name"]: row["metrics"] for row in found.result.to_json()["rows"]}
    each = [values[WINDOWS.subject == s].mean() - WINDOWS.target[WINDOWS.subject == s][0] for s in PEOPLE]
    assert rows["vision"]["mae"]["value"] == pytest.approx(np.abs(each).mean())
    assert found.result.to_json()["differences"]["a"]["vision"]["value"] == pytest.approx(
        rows["a"]["mae"]["value"] - rows["vision"]["mae"]["value"]
    )


def test_people_without_a_given_prediction_are_left_out_of_every_row_and_counted(tmp_path: Path) -> None:
    some = np.flatnonzero(np.isin(WINDOWS.subject, PEOPLE[5:]))
    found = told(predictions=(predictions(tmp_path, WINDOWS.target, some),))
    assert sorted(found.windows.subject) == PEOPLE[5:]
    assert found.result.refused == {"without a given prediction": 5}
    for row in found.predicted.values():
        assert len(row) == 35


def test_predictions_that_do_not_fit_are_one_clear_line(tmp_path: Path) -> None:
    everyone = np.arange(len(WINDOWS.target))
    with pytest.raises(PlethoraError, match=r"no column 'sbp' \(it has record, start_s, dbp\)"):
        told(predictions=(predictions(tmp_path, WINDOWS.target, everyone, "dbp"),))
    elsewhere = WINDOWS.start_s.copy()
    WINDOWS.start_s[:] += 5000
    try:
        path = predictions(tmp_path, WINDOWS.target, everyone)
    finally:
        WINDOWS.start_s[:] = elsewhere
    with pytest.raises(PlethoraError, match="predicts none of the windows"):
        told(predictions=(path,))
    binary = load_task("hypertension")
    with pytest.raises(PlethoraError, match="must be probabilities"):
        given.read_predictions(
            predictions(tmp_path, WINDOWS.target, everyone, "hypertension"), binary, ["a", "b"], WINDOWS
        )
    twice = predictions(tmp_path, WINDOWS.target, np.repeat(everyone[:2], 2))
    with pytest.raises(PlethoraError, match="two predictions of s00_1 at 0 s"):
        told(predictions=(twice,))


def test_files_of_one_name_are_rows_of_their_own(tmp_path: Path) -> None:
    assert named(["a/one.parquet", "two.parquet"]) == {"one": "a/one.parquet", "two": "two.parquet"}
    files = [str(tmp_path / run / "predictions.parquet") for run in ("stft", "fusion")]
    assert named(files) == {"stft predictions": files[0], "fusion predictions": files[1]}
    with pytest.raises(PlethoraError, match="another file has the same name"):
        named(["x/a/p.parquet", "y/a/p.parquet"])
