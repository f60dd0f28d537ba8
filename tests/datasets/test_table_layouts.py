"""Tables in the layouts that people have, and files that are no tables: called what they are."""

import gzip
from fractions import Fraction

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.readers import arrays, clock, moments, sheets, table
from datasets.readers.base import Refused
from tests.datasets.tables import DESCRIPTOR, ECG, scan
from tests.datasets.test_columns import ppg, refusal


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.mark.parametrize(
    "text",
    [
        "t;ppg\n0;1.5;\n1;-2;\n",
        "t;ppg;\n0;1.5;\n1;-2;\n",
        "t;ppg;\n0;1.5\n1;-2\n",
        "t;ppg\n0;1.5;;\n1;-2;;\n",
    ],
)
def test_a_delimiter_at_the_line_ends_makes_no_column(folder, text):
    (folder / "rec1.csv").write_text(text)
    assert ppg(folder, DESCRIPTOR + '\n[table]\ndelimiter = ";"\n') == [1.5, -2]


def test_a_cell_beyond_the_names_is_refused(folder):
    (folder / "rec1.csv").write_text("t;ppg\n0;1.5;\n1;-2;9\n")
    assert refusal(folder, DESCRIPTOR + '\n[table]\ndelimiter = ";"\n')[0] == "corrupt"


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t"), ("txt", "\t")])
def test_a_compressed_text_is_read_as_the_text(folder, suffix, mark):
    with gzip.open(folder / f"rec1.{suffix}.gz", "wt") as file:
        file.write(f"t{mark}ppg\n0{mark}1.5\n1{mark}-2\n")
    assert ppg(folder, DESCRIPTOR.replace(r"\.\w+'", r"\.\w+\.gz'")) == [1.5, -2]
    whole = (folder / f"rec1.{suffix}.gz").read_bytes()
    (folder / f"rec1.{suffix}.gz").write_bytes(whole[:-9])
    reason, _, source = refusal(folder, DESCRIPTOR.replace(r"\.\w+'", r"\.\w+\.gz'"))
    assert reason == "corrupt" and source.seconds["ppg"] <= Fraction(2, 100)


def test_a_numpy_array_is_channel_1_and_a_table_of_records_has_the_names_of_its_fields(folder):
    np.save(folder / "rec1.npy", np.array([1.5, -2]))
    assert ppg(folder) == [1.5, -2]
    records = np.zeros(2, [("ppg", "<f4"), ("ecg", "<i2")])
    records["ppg"], records["ecg"] = [1.5, -2], [7, 8]
    np.save(folder / "rec1.npy", records)
    assert ppg(folder) == [1.5, -2]
    np.save(folder / "rec1.npy", np.array([[1.5, 0], [-2, 0]]))
    arrays = '\n[[arrays]]\nvariable = "array"\nchannels = ["ppg", "ecg"]\naxis = 1\n'
    assert ppg(folder, DESCRIPTOR + arrays) == [1.5, -2]
    detail = refusal(folder, DESCRIPTOR.replace('"ppg", "1"', '"array"'))[1]
    assert "array is 2 x 2" in detail and 'variable = "array"' in detail


IDS = DESCRIPTOR + '\n[table]\nids = "id"\n'


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_words_name_the_records_of_a_file(folder, kind):
    x = np.arange(300.0).reshape(3, 100)
    if kind == "npz":
        np.savez(folder / "rec1.npz", id=np.array(["s1a", "s1b", "é 3"]), ppg=x)
    else:
        with h5py.File(folder / "rec1.h5", "w") as file:
            file["id"], file["ppg"] = ["s1a", "s1b", "é 3"], x
    known, sources = scan(folder, IDS)
    assert [s.record for s in sources] == ["rec1_s1a", "rec1_s1b", "rec1_é 3"]
    for i, source in enumerate(sources):
        got = table.load(source, folder, known).signals["ppg"]
        assert got.x_tc[:, 0].tolist() == x[i].tolist()


@pytest.mark.parametrize(
    "ids", [["a", "a"], ["a", "b\x1b[31m"], ["a", "../b"], ["a", " "], ["a", "b\nc"], [1.0, 1.5]]
)
def test_ids_that_cannot_name_records_are_refused_in_one_clean_line(folder, ids):
    np.savez(folder / "rec1.npz", id=np.array(ids), ppg=np.zeros((2, 100)))
    reason, detail, _ = refusal(folder, IDS)
    assert reason == "corrupt" and "id " in detail and detail.isprintable()


def test_rows_beyond_the_ids_are_not_lost_in_silence(folder):
    np.savez(folder / "rec1.npz", id=np.arange(2), ppg=np.zeros((3, 100)))
    _, sources = scan(folder, IDS)
    assert all(s.broken and "records of `ids`" in s.broken[1] for s in sources)


# ---------------------------------------------------------------- what a file is


def binary(folder, kind):
    path = folder / "made"
    if kind == "NumPy":
        np.save(folder / "made.npy", np.arange(900.0))
        path = folder / "made.npy"
    elif kind == "HDF5":
        h5py.File(path, "w").close()
    elif kind == "Parquet":
        pq.write_table(pa.table({"ppg": [1]}), path)
    elif kind == "gzip":
        path.write_bytes(gzip.compress(b"ppg\n1\n"))
    else:
        starts = {
            "pickle": b"\x80\x04\x95",
            "PDF": b"%PDF-1.7\n",
            "EDF": b"0       X X",
            "Office": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            "UTF-16": "\ufeffppg\n1\n".encode("utf-16-le"),
            "binary": b"\x01\x00\x02\x1b[2J\x00",
        }
        path.write_bytes(starts[kind])
    return path.read_bytes()


KINDS = ["NumPy", "HDF5", "Parquet", "gzip", "pickle", "PDF", "EDF", "Office", "UTF-16", "binary"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["csv", "dat"])
def test_a_binary_file_is_called_what_it_is_and_none_of_it_is_quoted(folder, tmp_path, kind, suffix):
    (folder / f"rec1.{suffix}").write_bytes(binary(tmp_path, kind))
    reason, detail, _ = refusal(folder)
    assert reason == "unsupported" and kind in detail and "comma" not in detail and detail.isprintable()
    with pytest.raises(Refused, match=kind):
        sheets.read(folder / f"rec1.{suffix}")


def test_bytes_of_a_broken_text_do_not_reach_the_terminal(folder):
    (folder / "rec1.csv").write_text("t,ppg\n0,1\n0,1,\x1b[2J\x07\n")
    assert refusal(folder)[1].isprintable()


def test_what_cannot_be_taken_counts_the_hours_that_its_shape_tells(folder):
    pq.write_table(pa.table({"ppg": [1.0] * 300, "t": ["x"] * 300}), folder / "rec1.parquet")
    timed = DESCRIPTOR + '\n[table]\ntime = "t"\n'
    assert refusal(folder, timed)[2].seconds == {"ppg": 3}
    (folder / "rec1.parquet").unlink()
    np.savez(folder / "rec1.npz", ppg=np.zeros((2, 700)))
    assert refusal(folder)[2].seconds == {"ppg": 7}


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_a_rate_a_record_in_a_file_of_many_is_that_of_each(folder, kind):
    x = np.arange(400.0).reshape(2, 200)
    if kind == "npz":
        np.savez(folder / "rec1.npz", id=np.array(["a", "b"]), ppg=x, fs=[100, 250])
    else:
        with h5py.File(folder / "rec1.h5", "w") as file:
            file["id"], file["ppg"], file["fs"] = ["a", "b"], x, [100, 250]
    known, sources = scan(folder, IDS.replace("rate = 100", 'rate = "fs"'))
    assert [s.seconds["ppg"] for s in sources] == [2, Fraction(4, 5)]
    assert [table.load(s, folder, known).signals["ppg"].rate for s in sources] == [100, 250]
    _, (a, b) = scan(folder, IDS)
    assert not a.refused and b.refused == {"ppg": "bad_rate"} and b.seconds["ppg"] == Fraction(4, 5)
    assert "says 250 Hz, not 100" in b.words["ppg"]


def test_an_array_that_names_no_channel_counts_its_hours(folder):
    np.save(folder / "rec1.npy", np.zeros((3000, 2)))
    _, (source,) = scan(folder)
    assert source.refused == {"ppg": "missing_channel"} and source.seconds["ppg"] == 30


@pytest.mark.parametrize("ecg", [np.zeros((4, 9)), np.array(["words"])])
@pytest.mark.parametrize("first", [True, False])
def test_an_optional_signal_that_cannot_be_read_does_not_take_the_required_one_with_it(folder, ecg, first):
    x = np.arange(100.0)
    np.savez(folder / "rec1.npz", **({"ecg": ecg, "ppg": x} if first else {"ppg": x, "ecg": ecg}))
    known, (source,) = scan(folder, DESCRIPTOR + ECG)
    assert source.broken is None and source.refused == {"ecg": "corrupt"} and "ecg" in source.words["ecg"]
    assert set(table.load(source, folder, known).signals) == {"ppg"}


def test_the_variables_of_many_records_are_unpacked_once_for_all_of_them(folder):
    draw = np.random.default_rng(0)
    x = {name: draw.normal(size=(20, 1000)).astype("f4") for name in ("ppg", "ecg", "abp")}
    np.savez(folder / "rec1.npz", ids=np.arange(20), **x)
    text = DESCRIPTOR + ECG + ECG.replace("ecg", "abp") + '\n[table]\nids = "ids"\n'
    known, sources = scan(folder, text)
    before = arrays._member.cache_info().misses
    for i, source in enumerate(sources):
        got = table.load(source, folder, known).signals
        assert all(np.array_equal(got[name].x_tc[:, 0], x[name][i]) for name in x)
    assert arrays._member.cache_info().misses - before <= 3


def test_a_column_of_times_is_read_once_for_all_signals_of_its_file(folder, monkeypatch):
    rows = "".join(f"{i / 100},{i % 7},{i % 5}\n" for i in range(3000))
    (folder / "rec1.csv").write_text("t,ppg,ecg\n" + rows)
    reads, read, measure = [], moments.read, clock.measured
    monkeypatch.setattr(moments, "read", lambda *a: reads.append("times") or read(*a))
    monkeypatch.setattr(clock, "measured", lambda *a: reads.append("clock") or measure(*a))
    known, (source,) = scan(folder, DESCRIPTOR + ECG + '\n[table]\ntime = "t"\n')
    assert reads == ["times", "clock"] and not source.refused
    got = table.load(source, folder, known).signals
    assert [len(got[m].x_tc) for m in ("ppg", "ecg")] == [3000, 3000] and len(reads) == 4
