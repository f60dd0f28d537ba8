"""Several codes a record: all of them count, none is cut out of a list."""

import csv
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import PlethoraError
from datasets.readers import given
from datasets.readers.base import RecordFile, Recording
from datasets.schema import LABELS
from datasets.write import label_table
from finetune.evaluation import multilabel
from finetune.task import load_task
from tests.datasets.tables import DESCRIPTOR, described

DIAGNOSIS = load_task("diagnosis")
NAMES = DIAGNOSIS.model_copy(update={"digits": None})
HEART = {"p1": ["I50.1", "N18.3", "G20"], "p2": ["N18.3"], "p3": ["i50.9 ", "I50.1"], "p4": ["none"]}
TABLE = """
[[tables]]
file = "dx.csv"
key = "id"
[tables.columns]
code = { name = "diagnosis", text = true%s }
"""


def read(tmp_path: Path, sheet: str, more: str = "") -> pa.Table:
    """The labels of p1 to p4 that a sheet gives."""
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    (folder / "dx.csv").write_text(sheet)
    known, tables = described(folder, DESCRIPTOR + TABLE % more), []
    for record in HEART:
        source = RecordFile(record, record, {"record": record}, ((f"{record}.csv", 1),), {"ppg": Fraction(1)})
        recording = Recording({}, [])
        given.add(recording, source, folder, folder, known)
        assert recording.problems == []
        tables.append(label_table(record, record, recording.labels))
    return pa.concat_tables(tables)


def asked(labels: pa.Table) -> dict[str, list[str]]:
    names, hot, refusal = multilabel.window_codes(labels, list(HEART), [0.0] * len(HEART), DIAGNOSIS)
    assert set(refusal.tolist()) == {""}
    return {
        r: [n for n, x in zip(names, row, strict=True) if x == 1] for r, row in zip(HEART, hot, strict=True)
    }


RIGHT = {"p1": ["G20", "I50", "N18"], "p2": ["N18"], "p3": ["I50"], "p4": []}


def test_a_row_a_code_gives_every_code_once(tmp_path: Path) -> None:
    rows = [f"{person},{code}" for person, codes in HEART.items() for code in [*codes, codes[0]]]
    labels = read(tmp_path, "\n".join(["id,code", *rows]) + "\n")
    assert asked(labels) == RIGHT
    of = labels["record"].to_pylist()
    assert [of.count(r) for r in HEART] == [3, 1, 2, 1]  # a repeated row counts once


CELLS: dict[str, tuple[str, Callable[[list[str]], str]]] = {
    "semicolons": (";", ";".join),
    "bars and spaces": ("|", " | ".join),
    "spaces": (" ", " ".join),
    "a Python list": (",", str),
    "JSON": (",", json.dumps),
    "codes with their likelihood": (",", lambda codes: str(dict.fromkeys(codes, 100.0))),
}


@pytest.mark.parametrize("how", CELLS)
def test_a_cell_of_several_codes_gives_every_code(tmp_path: Path, how: str) -> None:
    mark, cell = CELLS[how]
    with (tmp_path / "cells.csv").open("w", newline="") as file:
        rows = [[p, cell([c.strip() for c in codes])] for p, codes in HEART.items()]
        csv.writer(file).writerows([["id", "code"], *rows])
    sheet = (tmp_path / "cells.csv").read_text()
    assert asked(read(tmp_path, sheet, f", split = '{mark}'")) == RIGHT


def test_words_and_missing_are_looked_up_for_each_code_of_a_cell(tmp_path: Path) -> None:
    more = ", split = ';', words = { hf = 'I50.1', '' = 'none' }, missing = ['?']"
    labels = read(tmp_path, "id,code\np1,hf; ?;G20\np2,\np3,?\np4,hf;hf\n", more)
    found = zip(labels["record"].to_pylist(), labels["text"].to_pylist(), strict=True)
    assert list(found) == [("p1", "I50.1"), ("p1", "G20"), ("p2", "none"), ("p4", "I50.1")]


@pytest.mark.parametrize(
    "cell", ["I50.1;N18.3;G20", "I50.1|N18", "I50.1 N18.3", "I501N183", "['I50.1', 'N18.3']"]
)
def test_a_cell_of_several_codes_is_refused_where_nothing_says_how_to_split_it(
    tmp_path: Path, cell: str
) -> None:
    sheet = "id,code\n" + "".join(f'{p},"{cell if p == "p3" else "I10"}"\n' for p in HEART)
    with pytest.raises(PlethoraError, match=r"'diagnosis' of record p3 is .*not one code: name in `split`"):
        asked(read(tmp_path, sheet))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("I50.1", "I50"),
        ("i501", "I50"),
        (" I50.1 ", "I50"),
        ("I10.-", "I10"),
        ("E10.3†", "E10"),
        ("4280", "428"),
        ("428.0", "428"),
        ("V58.61", "V58"),
        ("I5", "I5"),
        ("None", "none"),
        ("S72.001A", "S72"),
    ],
)
def test_codes_are_grouped_by_their_first_characters_however_they_are_written(text: str, code: str) -> None:
    assert multilabel.code_of(text, "r", DIAGNOSIS) == code


@pytest.mark.parametrize(
    "text",
    [
        "heart failure",
        "I50.1,N18.3",
        "I50.1, N18.3",
        "I50/N18",
        "{'NORM': 100.0, 'LVOL': 0.0}",
        "38341003",
        "I50-I52",
    ],
)
def test_a_text_that_is_not_one_code_is_never_cut(text: str) -> None:
    with pytest.raises(PlethoraError, match=r"not one code.*leave `digits` out"):
        multilabel.code_of(text, "r", DIAGNOSIS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("atrial fibrillation", "atrial fibrillation"),
        ("8.5", "8.5"),
        ("401.1", "401.1"),
        ("i50.1", "I501"),
        ("Disorder, unspecified", "Disorder, unspecified"),
        ("HEART FAILURE", "HEART FAILURE"),
        ("38341003", "38341003"),
        ("1st degree AV block", "1st degree AV block"),
    ],
)
def test_without_digits_a_name_stays_as_it_is(text: str, name: str) -> None:
    assert multilabel.code_of(text, "r", NAMES) == name


@pytest.mark.parametrize(
    "text",
    ["426177001,164934002", "AFIB, LVH", "['NORM', 'LVOL']", "{'NORM': 100.0}", "a;b", "a|b", "401.1 250.2"],
)
def test_without_digits_a_list_is_refused(text: str) -> None:
    with pytest.raises(PlethoraError, match="not one code"):
        multilabel.code_of(text, "r", NAMES)


def test_a_code_that_two_rows_write_differently_is_one_label() -> None:
    rows = [
        {"subject": "s", "record": "r", "name": "diagnosis", "text": t} for t in ("I50.1", "i50.9", "NONE")
    ]
    names, hot, _ = multilabel.window_codes(
        pa.Table.from_pylist(rows, schema=LABELS), ["r"], [0.0], DIAGNOSIS
    )
    assert names == ["I50"] and np.array_equal(hot, [[1.0]])
