"""The table reader: every format gives the numbers that were written, and bad cells are refused by name."""

from fractions import Fraction

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from cluster.errors import PlethoraError
from datasets import ingest, jobs
from datasets.readers import table
from datasets.readers.base import Refused
from datasets.schema import open_corpus, waveform
from tests.datasets.tables import DESCRIPTOR, ECG, one, scan


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def x():
    rng = np.random.default_rng(5)
    return rng.integers(-2000, 2000, 500), np.round(rng.normal(0, 300, 500), 4)


def physical(samples, channel=0):
    return samples.x_tc[:, channel] * samples.scale + samples.offset


def write_csv(path, columns, delimiter=",", decimal="."):
    rows = [delimiter.join(columns)]
    rows += [
        delimiter.join(str(v).replace(".", decimal) for v in row)
        for row in zip(*columns.values(), strict=True)
    ]
    path.write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "npz", "h5"])
def test_every_format_gives_the_numbers_that_were_written(folder, x, suffix):
    ppg, ecg = x
    path = folder / f"rec1.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"ppg": ppg, "ecg": ecg, "note": ["x"] * 500}), path)
    elif suffix == "npz":
        np.savez(path, ppg=ppg, ecg=ecg)
    elif suffix == "h5":
        with h5py.File(path, "w") as file:
            file["ppg"], file["ecg"] = ppg, ecg
    else:
        write_csv(path, {"ppg": ppg, "ecg": ecg}, "\t" if suffix == "tsv" else ",")
    source, recording = one(folder, DESCRIPTOR + ECG)
    assert source.seconds == {"ppg": Fraction(5), "ecg": Fraction(5)}
    assert recording.signals["ppg"].x_tc.dtype == np.int64
    assert np.array_equal(physical(recording.signals["ppg"]), ppg)
    assert np.allclose(physical(recording.signals["ecg"]), ecg / 1000, rtol=1e-12)
    assert (recording.signals["ecg"].unit, recording.signals["ecg"].rate) == ("mV", Fraction(100))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), st.floats(-1e9, 1e9), st.integers(-(10**6), 10**6)), min_size=1, max_size=40
    )
)
def test_text_is_read_as_python_reads_it_with_empty_cells_missing(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("drawn")
    words = ["" if c is None else repr(c) for c in cells]
    (folder / "rec1.csv").write_text("other, ppg\n" + "".join(f"a,{w}\n" for w in words))
    source, recording = one(folder)
    ppg = recording.signals["ppg"]
    assert source.seconds["ppg"] == Fraction(len(cells), 100)
    assert np.array_equal(ppg.missing, [c is None for c in cells])
    assert [float(v) for v in physical(ppg)[~ppg.missing]] == [float(c) for c in cells if c is not None]


def test_one_line_of_numbers_is_one_channel(folder):
    (folder / "rec1.txt").write_text("1967\t1927.0\t1943\t")
    layout = '\n[table]\nlayout = "row"\nheader = 0\n'
    _, recording = one(folder, DESCRIPTOR + layout)
    assert recording.signals["ppg"].x_tc[:, 0].tolist() == [1967, 1927, 1943]


def test_lines_without_names_are_numbered_columns_after_the_skipped_ones(folder):
    (folder / "rec1.csv").write_text("1495437325.0\n64.0\n-0.5\n\n2.25\n")
    _, recording = one(folder, DESCRIPTOR + "\n[table]\nheader = 0\nskip = 2\n")
    ppg = recording.signals["ppg"]
    assert ppg.missing.tolist() == [False, True, False]
    assert physical(ppg)[[0, 2]].tolist() == [-0.5, 2.25]


def test_a_decimal_comma_is_refused_by_name_and_read_when_the_descriptor_says_so(folder):
    write_csv(folder / "rec1.csv", {"ppg": [1.5, 2.5, -3.25]}, ";", ",")
    semicolon = DESCRIPTOR + '\n[table]\ndelimiter = ";"\n'
    with pytest.raises(Refused) as why:
        one(folder, semicolon)
    assert why.value.reason == "decimal_comma"
    assert all(word in why.value.detail for word in ("rec1.csv", "'1,5'", 'decimal = ","'))
    _, recording = one(folder, semicolon + 'decimal = ","\n')
    assert physical(recording.signals["ppg"]).tolist() == [1.5, 2.5, -3.25]


def test_a_line_of_decimal_commas_is_refused_with_its_hours(folder):
    (folder / "rec1.txt").write_text("1,5\t2,5\t3,5\t4,5\t")
    _, (source,) = scan(folder, DESCRIPTOR + '\n[table]\nlayout = "row"\nheader = 0\n')
    assert source.broken and source.broken[0] == "decimal_comma" and "rec1.txt" in source.broken[1]
    assert source.seconds == {"ppg": Fraction(4, 100)}


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("ppg\n1\nx7\n", "corrupt", "row 2: 'x7' is not a number"),
        ("t,ppg\n1,2\n1,2,3\n", "corrupt", "3"),
        ("ppg,ppg\n1,2\n", "corrupt", "two columns"),
        ("", "corrupt", "ends before line 1"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(folder, text, reason, said):
    (folder / "rec1.csv").write_text(text)
    known, (source,) = scan(folder)
    if source.broken is None:
        with pytest.raises(Refused) as why:
            table.load(source, folder, known)
        assert source.seconds["ppg"] == Fraction(2, 100)
        broken = (why.value.reason, why.value.detail)
    else:
        broken = source.broken
    assert broken[0] == reason and said in broken[1] and "rec1.csv" in broken[1]


def test_a_missing_column_refuses_its_modality_with_the_hours_of_the_others(folder):
    write_csv(folder / "rec1.csv", {"ecg": [1.0] * 300})
    _, (source,) = scan(folder, DESCRIPTOR + ECG)
    assert source.refused == {"ppg": "missing_channel"}
    assert source.seconds == {"ppg": Fraction(3), "ecg": Fraction(3)}


def test_objects_in_a_npz_file_are_never_unpickled(folder):
    np.savez(folder / "rec1.npz", ppg=np.array([{"a": 1}], dtype=object))
    _, (source,) = scan(folder)
    assert source.broken and source.broken[0] == "unsupported"


@pytest.mark.parametrize("suffix", ["npz", "h5", "parquet"])
def test_a_file_that_is_not_what_its_name_says_is_corrupt(folder, suffix):
    (folder / f"rec1.{suffix}").write_bytes(b"PK\x03\x04 no such thing")
    _, (source,) = scan(folder)
    assert source.broken and source.broken[0] == "corrupt" and f"rec1.{suffix}" in source.broken[1]


TIMED = DESCRIPTOR + '\n[table]\ntime = "t"\ntime_unit_s = 1e-3\n'


def test_gaps_in_the_times_are_missing_samples(folder):
    at = np.array([0, 1, 2, 7, 8, 9])
    write_csv(folder / "rec1.csv", {"t": 40_000 + at * 10, "ppg": at})
    source, recording = one(folder, TIMED)
    ppg = recording.signals["ppg"]
    assert source.seconds["ppg"] == Fraction(1, 10)
    assert np.flatnonzero(~ppg.missing).tolist() == at.tolist()
    assert ppg.x_tc[at, 0].tolist() == at.tolist()


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ([0, 10, 5, 20], "bad_time"),
        ([0, 10, 10, 20], "bad_time"),
        ([0, 10, "", 20], "bad_time"),
        ([0, 10, 20, 1e9], "bad_time"),
    ],
)
def test_times_that_do_not_rise_are_refused_with_their_hours(folder, times, reason):
    write_csv(folder / "rec1.csv", {"t": times, "ppg": [1, 2, 3, 4]})
    _, (source,) = scan(folder, TIMED)
    assert source.broken and source.broken[0] == reason
    assert source.seconds == {"ppg": Fraction(4, 100)}


def test_times_of_another_rate_are_refused(folder):
    write_csv(folder / "rec1.csv", {"t": np.arange(50) * 20, "ppg": range(50)})
    _, (source,) = scan(folder, TIMED)
    assert source.refused == {"ppg": "bad_rate"}


def test_a_clock_that_jitters_keeps_its_samples_in_order(folder):
    rng = np.random.default_rng(2)
    t = np.arange(2000) * 10 + rng.uniform(-2, 2, 2000)
    write_csv(folder / "rec1.csv", {"t": t, "ppg": range(2000)})
    _, recording = one(folder, TIMED)
    ppg = recording.signals["ppg"]
    assert np.array_equal(ppg.x_tc[~ppg.missing, 0], np.arange(2000)) and not ppg.missing.any()


def test_a_descriptor_without_a_unit_is_one_clear_line(folder):
    (folder / "rec1.csv").write_text("ppg\n1\n")
    with pytest.raises(PlethoraError, match=r"signals\.ppg needs `source_unit`"):
        scan(folder, DESCRIPTOR.replace('source_unit = "count"\n', ""))


def test_a_record_that_nothing_states_the_rate_of_is_refused_with_the_key_to_set(folder):
    (folder / "rec1.csv").write_text("ppg\n1\n")
    _, (source,) = scan(folder, DESCRIPTOR.replace("rate = 100\n", ""))
    assert source.refused == {"ppg": "bad_rate"} and "`rate`" in source.words["ppg"]


MANY = """
[signals.ecg]
channels = [["I", "II"]]
rate = 400
unit = "mV"
source_unit = "mV"
units = { mV = 1 }

[[arrays]]
variable = "tracings"
channels = ["I", "II"]
axis = 1

[table]
ids = "exam_id"
"""


def test_many_records_of_one_hdf5_file_are_ingested_each_with_its_subject(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")
    run = jobs.run
    monkeypatch.setattr(jobs, "run", lambda work, tasks, label, n: run(work, tasks, label, n, True))
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (3, 800, 2)).astype(np.float32)
    with h5py.File(folder / "exams0.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = x, np.array([77, 5, 1234])
    (folder / "exams.csv").write_text("exam_id,patient_id,AF\n77,9,False\n5,8,True\n1234,9,False\n")
    head, _, _ = DESCRIPTOR.partition("[signals.ppg]")
    text = (
        head.replace(r"\.\w+'", r"\.hdf5'")
        + MANY
        + (
            '\n[subject.table]\nfile = "exams.csv"\nkey = "exam_id"\nmatch = "{id}"\ncolumn = "patient_id"\n'
            '\n[[tables]]\nfile = "exams.csv"\nkey = "exam_id"\nmatch = "{id}"\n'
            'columns = { AF = { name = "af", values = { True = 1, False = 0 } } }\n'
        )
    )
    (tmp_path / "many.toml").write_text(text)
    made = ingest.ingest(tmp_path / "many.toml", str(folder), str(tmp_path / "out"))
    corpus = open_corpus(str(tmp_path / "out"))
    assert (made["counts"]["records"], made["counts"]["subjects"]) == (3, 2)
    rows = {r["record"]: r for r in corpus.read_row_group(0, 0).to_pylist()}
    for i, exam in enumerate((77, 5, 1234)):
        row = rows[f"exams0_{exam}"]
        got = waveform(row["ecg"], row["ecg_scale"], row["ecg_offset"], 2)
        assert np.abs(got - x[i].T).max() < 1e-4 * np.ptp(x[i])
    assert rows["exams0_77"]["subject"] == rows["exams0_1234"]["subject"] != rows["exams0_5"]["subject"]
    assert dict(zip(*[corpus.labels(["af"])[c].to_pylist() for c in ("record", "value")], strict=True)) == {
        "exams0_77": 0.0,
        "exams0_5": 1.0,
        "exams0_1234": 0.0,
    }


def test_a_modality_may_have_a_file_of_its_own(folder):
    deep = folder / "s1"
    deep.mkdir()
    (deep / "BVP1.csv").write_text("0\n64\n1.5\n2.5\n")
    (deep / "ACC.csv").write_text("0,0,0\n32,32,32\n1,2,3\n")
    acc = (
        '\n[signals.acc]\nchannels = [["1", "2", "3"]]\nrate = 50\nunit = "g"\nsource_unit = "1/64 g"\n'
        'units = { "1/64 g" = 0.015625 }\n[table]\nheader = 0\nskip = 2\n'
        'files = { acc = "{folder}/ACC.csv" }\n'
    )
    text = DESCRIPTOR.replace("'(?P<record>[a-z]+", "'(?P<folder>s1)/(?P<record>[A-Z]+")
    source, recording = one(folder, text + acc)
    assert physical(recording.signals["acc"], 2).tolist() == [3 / 64]
    assert [name for name, _ in source.files] == ["s1/BVP1.csv", "s1/ACC.csv"]


def test_a_bucket_of_tables_and_a_sheet_gives_what_the_folder_gives(folder, tmp_path, monkeypatch, moto):
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")
    run = jobs.run
    monkeypatch.setattr(jobs, "run", lambda work, tasks, label, n: run(work, tasks, label, n, True))
    for n in (1, 2):
        write_csv(folder / f"rec{n}.csv", {"ppg": np.random.default_rng(n).integers(0, 999, 1000)})
    (folder / "who.csv").write_text("id,person,sbp\nrec1,ann,120\nrec2,ann,130\n")
    table = '[[tables]]\nfile = "who.csv"\nkey = "id"\ncolumns = { sbp = { name = "sbp", unit = "mmHg" } }\n'
    subject = '[subject.table]\nfile = "who.csv"\nkey = "id"\ncolumn = "person"\n'
    (tmp_path / "known.toml").write_text(f"{DESCRIPTOR}\n{subject}\n{table}")
    storage.upload(folder, "s3://plethora/tables")
    here = ingest.ingest(tmp_path / "known.toml", str(folder), str(tmp_path / "out"))
    there = ingest.ingest(tmp_path / "known.toml", "s3://plethora/tables", "s3://plethora/corpora/tables")
    assert there["counts"] == here["counts"] and there["counts"]["subjects"] == 1
    assert there["labels"] == here["labels"] and there["labels"]["sbp"] == 2
    assert there["hash"] == here["hash"]
