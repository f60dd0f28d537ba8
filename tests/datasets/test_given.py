"""Labels and subjects beside the recordings: sheets, annotation files, and what is wrong with them."""

import dataclasses
import gzip
from fractions import Fraction

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wfdb

from cluster.errors import PlethoraError
from datasets import ingest
from datasets.readers import given, sheets
from datasets.readers.base import RecordFile, Recording, Refused, Root
from datasets.readers.fields import read as fields
from datasets.readers.fields import split_words
from tests.datasets.tables import DESCRIPTOR, described


def record(name="rec1", **groups):
    return RecordFile(name, "ann", {"record": name, **groups}, ((f"{name}.csv", 1),), {"ppg": Fraction(1)})


def labels_of(folder, text, source=None):
    """The labels by name and the problems that `text` (appended to the descriptor) gives for a record."""
    recording = Recording({}, [])
    given.add(recording, source or record(), folder, folder, described(folder, DESCRIPTOR + text))
    return {label.name: label for label in recording.labels}, recording.problems


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "root"
    made.mkdir()
    return made


ROWS = [["id", "sbp", "note"], ["rec1", 120, "calm"], ["rec2", 131.5, None]]


@pytest.mark.parametrize("name", ["s.csv", "s.tsv", "s.xlsx", "s.parquet"])
def test_sheets_of_every_kind_say_the_same(folder, name):
    if name.endswith("xlsx"):
        book = openpyxl.Workbook()
        for row in ROWS:
            book.active.append(row)
        book.save(folder / name)
    elif name.endswith("parquet"):
        columns = dict(zip(ROWS[0], zip(*ROWS[1:], strict=True), strict=True))
        pq.write_table(
            pa.table({k: pa.array(v, pa.float64() if k == "sbp" else None) for k, v in columns.items()}),
            folder / name,
        )
    else:
        mark = "\t" if name.endswith("tsv") else ","
        (folder / name).write_text(
            "\n".join(mark.join("" if c is None else str(c) for c in row) for row in ROWS)
        )
    sheet = sheets.read(folder / name)
    assert sheet.columns == {"id": ("rec1", "rec2"), "sbp": ("120", "131.5"), "note": ("calm", "")}


@pytest.mark.parametrize("word", ["NULL", "n/a", "-", "--", "#N/A", "None"])
def test_a_word_that_means_nothing_makes_no_number_and_stays_a_word_where_words_are_kept(folder, word):
    (folder / "s.csv").write_text(f"id,sbp,note\nrec1,{word},{word}\n")
    table = TABLE.replace("} }", '}, note = { name = "note", text = true } }')
    labels, problems = labels_of(folder, table)
    assert "sbp" not in labels and problems == [] and labels["note"].values == [word]


def test_a_compressed_sheet_is_read_as_the_sheet(folder):
    with gzip.open(folder / "s.tsv.gz", "wt") as file:
        file.write("id\tsbp\nrec1\t120\n")
    assert sheets.read(folder / "s.tsv.gz").columns == {"id": ("rec1",), "sbp": ("120",)}


def test_formulas_in_a_workbook_are_not_run(folder):
    book = openpyxl.Workbook()
    book.active.append(["id", "sbp"])
    book.active.append(["rec1", '=WEBSERVICE("x")'])
    book.save(folder / "s.xlsx")
    assert sheets.read(folder / "s.xlsx").columns["sbp"] == ("",)


TABLE = '\n[[tables]]\nfile = "s.csv"\nkey = "id"\ncolumns = { sbp = { name = "sbp", unit = "mmHg" } }\n'


def test_a_row_labels_its_record(folder):
    (folder / "s.csv").write_text("id,sbp\nrec2,1\nrec1,120.5\n")
    labels, problems = labels_of(folder, TABLE)
    assert labels["sbp"].values.tolist() == [120.5] and labels["sbp"].start_s is None and problems == []


def test_several_rows_of_a_record_give_its_texts_and_the_number_that_all_say(folder):
    (folder / "s.csv").write_text(
        "id,code,age,sbp\nrec1,I10,61,120\nrec1,E11,61,140\nrec2,G20,1,1\nrec1,I10,61,\n"
    )
    text = '\n[[tables]]\nfile = "s.csv"\nkey = "id"\n[tables.columns]\n'
    text += 'code = { name = "dx", text = true }\nage = { name = "age" }\nsbp = { name = "sbp" }\n'
    labels, problems = labels_of(folder, text)
    assert labels["dx"].values == ["I10", "E11"] and labels["dx"].start_s is None
    assert labels["age"].values.tolist() == [61] and set(labels) == {"dx", "age"}
    assert problems == ["label sbp of s.csv: two_rows (3 rows for rec1 give 120, 140, without times)"]


def test_words_of_a_cell_with_times_keep_its_times(folder):
    (folder / "s.csv").write_text("id,at,code\nrec1,0,a;b\nrec1,60,\nrec1,120,b\n")
    text = TABLE.replace(
        'sbp = { name = "sbp", unit = "mmHg" }', 'code = { name = "dx", text = true, split = ";" }'
    )
    labels, problems = labels_of(folder, text + 'start = "at"\nwindow_s = 60\n')
    dx = labels["dx"]
    assert problems == [] and dx.values == ["a", "b", "b"]
    assert (dx.start_s.tolist(), dx.end_s.tolist()) == ([0, 0, 120], [60, 60, 180])


def test_a_header_line_of_several_codes_is_split_too(folder):
    text = (
        '\n[[fields]]\nname = "dx"\npattern = "Dx: (.*)"\ntext = true\nsplit = ","\nmissing = ["Unknown"]\n'
    )
    rules = described(folder, DESCRIPTOR + text).fields
    (found,), problems = fields(record(), folder, rules, ["Age: 3", "Dx: 426177001, Unknown,164934002"])
    assert found.values == ["426177001", "164934002"] and problems == []
    assert fields(record(), folder, rules, ["Dx: Unknown"]) == ([], [])


def test_split_is_refused_for_numbers(folder):
    text = TABLE.replace('unit = "mmHg"', 'split = ";"')
    with pytest.raises(PlethoraError, match="set text = true"):
        described(folder, DESCRIPTOR + text)


@pytest.mark.parametrize(
    ("people", "match", "told"),
    [
        ({"rec1": "ann", "rec2": "ann", "rec3": "bob"}, "{record}", {"sbp": "record"}),
        ({"rec1": "ann", "rec2": "ann", "rec3": "bob"}, "{who}", {}),  # PPG-BP: a row a person
        ({"rec1": "ann", "rec2": "bob"}, "{record}", {}),
    ],
)
def test_the_corpus_says_whether_records_of_a_person_share_a_row_of_readings(folder, people, match, told):
    known = described(folder, DESCRIPTOR + TABLE + f'match = "{match}"\n')
    sources = [dataclasses.replace(record(r, who=who), subject=who) for r, who in people.items()]
    assert given.readings(sources, known) == told
    timed = described(folder, DESCRIPTOR + TABLE + f'match = "{match}"\nstart = "t"\nwindow_s = 5\n')
    assert given.readings(sources, timed) == {}


def test_rows_that_serve_several_records_of_a_person_who_has_several_rows_share_by_value(folder):
    known = described(folder, DESCRIPTOR + TABLE + 'match = "{visit}"\n')
    visits = {"rec1": "v1", "rec2": "v1", "rec3": "v2"}
    assert given.readings([record(r, visit=v) for r, v in visits.items()], known) == {"sbp": "value"}


def test_keys_that_came_later_leave_the_fingerprint_of_older_descriptors_alone(folder):
    text = TABLE + '\n[[fields]]\nname = "dx"\ntext = true\n'
    told = described(folder, DESCRIPTOR + text).model_dump(mode="json")
    ingest._drop_later(told)
    assert "split" not in told["tables"][0]["columns"]["sbp"] and "split" not in told["fields"][0]
    text = text.replace('unit = "mmHg"', 'text = true, split = ";"')
    told = described(folder, DESCRIPTOR + text).model_dump(mode="json")
    ingest._drop_later(told)
    assert told["tables"][0]["columns"]["sbp"]["split"] == ";"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,sbp\nrec2,1\n", "nothing for rec1"),
        ("id,sbp\nrec1,1\nrec1,2\n", "2 rows for rec1"),
        ("id,dbp\nrec1,1\n", "no column 'sbp'"),
        ("id,sbp\nrec1,high\n", "'high' is not a number"),
        ('id,sbp\nrec1,"120,5"\n', "decimal comma"),
        ("id,sbp\nrec1,1,2,3\n", "more cells"),
        ("id,sbp,sbp\nrec1,1,2\n", "two columns"),
        ("", "0 lines"),
        (None, "does not exist"),
    ],
)
def test_what_is_wrong_with_a_sheet_is_said_and_costs_only_its_label(folder, text, said):
    if text is not None:
        (folder / "s.csv").write_text(text)
    labels, problems = labels_of(folder, TABLE)
    assert labels == {} and len(problems) == 1
    assert said in problems[0] and "s.csv" in problems[0]


def test_windows_have_times_from_columns_or_steps(folder):
    (folder / "rec1_hr.csv").write_text("from,to,hr\n0,1000,70\n1000,3000,\n3000,4000,72\n")
    text = '\n[[tables]]\nfile = "{record}_hr.csv"\ncolumns = { hr = { name = "hr" } }\n'
    labels, _ = labels_of(folder, text + 'start = "from"\nend = "to"\nunit_s = 1e-3\n')
    hr = labels["hr"]
    assert (hr.values.tolist(), hr.start_s.tolist(), hr.end_s.tolist()) == ([70, 72], [0, 3], [1, 4])
    labels, _ = labels_of(folder, text + "step_s = 2\nwindow_s = 8\n")
    assert labels["hr"].start_s.tolist() == [0, 4] and labels["hr"].end_s.tolist() == [8, 12]


def test_events_are_moments_with_a_word(folder):
    (folder / "b.csv").write_text("one [sample],two\n125,10\n250,\n")
    text = '\n[[events]]\nname = "breath"\nfile = "b.csv"\ncolumn = "{}"\ntext = "{}"\nrate = 125\n'
    labels, problems = labels_of(folder, text.format("one [sample]", "x"))
    breath = labels["breath"]
    assert breath.start_s.tolist() == breath.end_s.tolist() == [1.0, 2.0] and breath.values == ["x", "x"]
    labels, _ = labels_of(folder, text.format("two", "y"))
    assert labels["breath"].start_s.tolist() == [0.08] and problems == []


def test_annotation_files_are_read_as_wfdb_wrote_them(folder):
    wfdb.wrann(
        "rec1",
        "atr",
        np.array([10, 250, 400]),
        ["N", "+", "V"],
        aux_note=["", "(AFIB", ""],
        fs=250,
        write_dir=str(folder),
    )
    text = '\n[[events]]\nname = "beat"\nfile = "{stem}.atr"\n'
    labels, problems = labels_of(folder, text)
    assert labels["beat"].values == ["N", "(AFIB", "V"] and problems == []
    assert np.allclose(labels["beat"].start_s, [0.04, 1.0, 1.6])
    labels, _ = labels_of(folder, text + 'symbols = ["V"]\n')
    assert labels["beat"].start_s.tolist() == [1.6]
    _, problems = labels_of(folder, text.replace("atr", "qrs"))
    assert "rec1.qrs" in problems[0]


def test_the_subject_may_be_looked_up_or_be_part_of_the_path(folder):
    for name in ("rec1.csv", "rec2.csv"):
        (folder / name).write_text("ppg\n1\n")
    (folder / "who.csv").write_text("id,person\nrec1,ann\nrec1,ann\n")
    text = DESCRIPTOR + '\n[subject.table]\nfile = "who.csv"\nkey = "id"\ncolumn = "person"\n'
    known = described(folder, text)
    first, second = given.complete([record("rec1"), record("rec2")], Root(str(folder)), known)
    assert first.subject == "ann" and first.broken is None
    assert second.broken == ("no_subject", "who.csv names 0 subjects for rec2") and second.subject == ""
    assert ("who.csv", (folder / "who.csv").stat().st_size) in first.files
    grouped = described(
        folder, DESCRIPTOR.replace("(?P<record>", "(?P<who>x)?(?P<record>") + '\n[subject]\ngroup = "who"\n'
    )
    one, other = given.complete([record("rec1", who="x"), record("rec2")], Root(str(folder)), grouped)
    assert one.subject == "x" and other.broken == ("no_subject", "its path has no who")


def test_mistakes_in_the_descriptor_are_one_clear_line(folder):
    (folder / "s.csv").write_text("id\n1\n")
    wrong = {
        TABLE.replace('"s.csv"', '"{nope}.csv"'): "nope",
        TABLE.replace('name = "sbp"', 'name = "sbp_derived"'): "_derived",
        TABLE + 'start = "t"\n': "times need",
        '\n[derive]\nhr = "ecg"\n': "lacks",
        '\n[derive]\nrr = "breath"\n': "breath",
        '\n[subject]\ngroup = "nope"\n': "no such group",
    }
    for text, said in wrong.items():
        with pytest.raises(PlethoraError, match=said):
            given.complete([record()], Root(str(folder)), described(folder, DESCRIPTOR + text))


def test_a_workbook_that_is_none_is_corrupt(folder):
    (folder / "s.xlsx").write_bytes(b"no zip")
    with pytest.raises(Refused, match=r"corrupt: s\.xlsx"):
        sheets.read(folder / "s.xlsx")


@pytest.mark.parametrize("separator", [";", "|", "/"])
def test_a_list_that_another_separator_parts_is_never_cut_to_its_first_word(separator):
    whole = "{'I50.1': 100.0, 'N18.3': 50}"
    assert "N18.3" in "".join(split_words(whole, separator))
    assert split_words(whole, ",") == ["I50.1", "N18.3"]
