"""Columns as people have them: decimal commas, marks of missing samples, stated rates, other layouts."""

from fractions import Fraction

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import PlethoraError
from datasets.readers import sheets, table
from datasets.readers.base import Refused
from tests.datasets.tables import DESCRIPTOR, ECG, one, scan

BARE = DESCRIPTOR + "\n[table]\nheader = 0\n"
TWO = DESCRIPTOR.replace('"ppg", "1"', '"2"') + "\n[table]\nheader = 0\n"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "root"
    made.mkdir()
    return made


def refusal(folder, text=DESCRIPTOR):
    """Why the only record is refused, when it is scanned or read, and the source."""
    known, (source,) = scan(folder, text)
    if source.broken:
        return *source.broken, source
    if source.refused:
        return source.refused["ppg"], source.words.get("ppg", ""), source
    with pytest.raises(Refused) as caught:
        table.load(source, folder, known)
    return caught.value.reason, caught.value.detail, source


def ppg(folder, text=DESCRIPTOR):
    _, recording = one(folder, text)
    got = recording.signals["ppg"]
    x = got.x_tc[:, 0] * got.scale + got.offset
    return np.where(got.missing, np.nan, x).tolist()


# ---------------------------------------------------------------- decimal commas


@pytest.mark.parametrize(
    "lines",
    [
        "0,870\n0,912\n0,034\n",  # a leading zero proves it
        "-0,5\n1,2\n",
        "12,5\n13,1\n11,9\n",  # may as well be two numbers
        "1,25e-3\n4,5e1\n",
        "0,5,1,25\n0,75,2,5\n",  # two channels of them
        "12,5,\n13,1,\n",  # a delimiter at the line's end
        "12,5\n13\n11,9\n",
        "13\n12,5\n",
        "0,870;\n-0,140;\n",  # semicolons at the lines' ends
        "0,870 \n-0,140\t\n",
        "  0,870\n -0,140\n",
        "0,0,870\n1,-0,140\n",  # a counter beside them
        "0,870,0\n-0,140,1\n",
    ],
)
def test_decimal_commas_without_a_header_are_never_read_as_two_columns(folder, lines):
    (folder / "rec1.csv").write_text(lines)
    for text in (BARE, BARE + 'delimiter = ","\n'):
        reason, detail, source = refusal(folder, text)
        assert reason in ("decimal_comma", "corrupt") and "rec1.csv" in detail and "decimal comma" in detail
        assert source.seconds == {"ppg": Fraction(lines.count("\n"), 100)}


def test_decimal_commas_alone_on_a_line_are_read_when_the_descriptor_says_so(folder):
    (folder / "rec1.csv").write_text("0,870\n-1,5\n\n2\n")
    assert np.array_equal(ppg(folder, BARE + 'decimal = ","\n'), [0.87, -1.5, np.nan, 2], equal_nan=True)


def test_two_columns_of_whole_numbers_are_read_where_that_is_what_they_must_be(folder):
    (folder / "rec1.csv").write_text("512,498\n513,501\n")
    assert ppg(folder, TWO) == [498, 501]  # with decimal commas there would be no column 2
    assert ppg(folder, BARE + 'decimal = "."\n') == [512, 513]
    (folder / "rec1.csv").write_text("512,498\n513,-501\n")
    assert ppg(folder, BARE) == [512, 513]  # no number has a sign behind its comma
    (folder / "rec1.csv").write_text("1,2,3\n4,5,6\n")
    assert ppg(folder, BARE) == [1, 4]
    (folder / "rec1.csv").write_text("1.5,2\n4.5,5\n")
    assert ppg(folder, BARE) == [1.5, 4.5]
    (folder / "rec1.csv").write_text("512, 498\n513, 501\n")
    assert ppg(folder, BARE) == [512, 513]  # no number has a blank behind its comma


def test_a_column_of_another_file_says_nothing_of_a_file_with_decimal_commas(folder):
    (folder / "rec1.csv").write_text("12,5\n13,1\n")
    (folder / "acc.csv").write_text("1,2,3\n4,5,6\n")
    acc = (
        '\n[signals.acc]\nchannels = [["1", "2", "3"]]\nrate = 100\nunit = "g"\nsource_unit = "g"\n'
        'units = { g = 1 }\n[table]\nheader = 0\nfiles = { acc = "acc.csv" }\n'
    )
    assert refusal(folder, DESCRIPTOR + acc)[0] == "decimal_comma"


def test_a_nameless_last_column_is_not_taken_for_the_part_behind_a_comma(folder):
    (folder / "rec1.csv").write_text("t,ppg,\n0,12,5\n1,13,25\n")
    assert refusal(folder)[0] == "decimal_comma"
    (folder / "sheet.csv").write_text("id,sbp,\nr1,120,5\nr2,130,25\n")
    with pytest.raises(Refused, match="'120,5' may be one number with a decimal comma"):
        sheets.read(folder / "sheet.csv")


def test_a_row_of_decimal_commas_is_not_read_as_twice_as_many_numbers(folder):
    row = DESCRIPTOR + '\n[table]\nlayout = "row"\nheader = 0\n'
    (folder / "rec1.csv").write_text("1,5,2,5,3,5\n")
    assert refusal(folder, row)[0] == "decimal_comma"
    assert ppg(folder, row + 'decimal = "."\n') == [1, 5, 2, 5, 3, 5]


@pytest.mark.parametrize("cell", ["1.234,5", "1.234"])
def test_points_between_thousands_are_refused_beside_decimal_commas(folder, cell):
    (folder / "rec1.csv").write_text(f"t;ppg\n0;0,5\n1;{cell}\n")
    reason, detail, _ = refusal(folder, DESCRIPTOR + '\n[table]\ndecimal = ","\n')
    assert reason == "decimal_comma" and f"row 2: '{cell}' has a point" in detail


def test_a_comma_cannot_part_numbers_and_columns(folder):
    (folder / "rec1.csv").write_text("ppg\n1\n")
    with pytest.raises(PlethoraError, match="a comma cannot be both"):
        scan(folder, DESCRIPTOR + '\n[table]\ndecimal = ","\ndelimiter = ","\n')


@pytest.mark.parametrize(
    ("word", "why"), [("1_000", "not a number"), (",5", "decimal comma"), ("1.234,5", "not a number")]
)
def test_a_label_that_is_no_plain_number_is_refused(word, why):
    with pytest.raises(ValueError, match=why):
        sheets.number(word)


# ---------------------------------------------------------------- missing samples


@pytest.mark.parametrize(
    "word", ["-", "--", "NULL", "n/a", "#N/A", "none", "?", ".", " NA ", "<NA>", "NaN", "-nan(ind)"]
)
def test_words_that_mean_nothing_are_missing_samples(folder, word):
    (folder / "rec1.csv").write_text(f"t,ppg\n0,1.5\n1,{word}\n2,-2\n")
    assert np.array_equal(ppg(folder), [1.5, np.nan, -2], equal_nan=True)


def test_words_and_numbers_that_the_descriptor_names_are_missing_samples(folder):
    (folder / "rec1.csv").write_text("ppg\n1\nlead off\n-9999\n-9999.0\n5\n")
    assert "'lead off' is not a number" in refusal(folder)[1]
    text = DESCRIPTOR.replace("rate = 100", 'rate = 100\nmissing = [-9999, "Lead Off"]').replace(
        "count = 1", "count = 3"
    )
    assert np.array_equal(ppg(folder, text), [3, np.nan, np.nan, np.nan, 15], equal_nan=True)


def test_a_word_in_a_row_of_numbers_may_be_a_missing_sample(folder):
    (folder / "rec1.csv").write_text("1.5,off,n/a,4.5\n")
    row = DESCRIPTOR.replace("rate = 100", 'rate = 100\nmissing = ["OFF"]')
    got = ppg(folder, row + '\n[table]\nlayout = "row"\nheader = 0\n')
    assert np.array_equal(got, [1.5, np.nan, np.nan, 4.5], equal_nan=True)


X = np.array([5, -999, 7, 9, -999, 6])


@pytest.mark.parametrize("suffix", ["parquet", "npz", "npy", "h5"])
@pytest.mark.parametrize("kind", ["<i2", ">i4", "<f4", "<f8"])
def test_a_number_that_marks_missing_samples_is_none_in_every_format(folder, suffix, kind):
    x, mark = X.astype(kind), -999
    if kind[1] == "f":
        x, mark = np.where(X == -999, -999.9, X + 0.5).astype(kind), -999.9
    path = folder / f"rec1.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"ppg": x.astype(x.dtype.newbyteorder("="))}), path)
    elif suffix == "h5":
        with h5py.File(path, "w") as file:
            file["ppg"] = x
    elif suffix == "npz":
        np.savez(path, ppg=x)
    else:
        np.save(path, x)
    got = np.array(ppg(folder, DESCRIPTOR.replace("rate = 100", f"rate = 100\nmissing = [{mark}]")))
    assert np.flatnonzero(np.isnan(got)).tolist() == [1, 4]
    assert np.array_equal(got[[0, 2, 3, 5]], np.asarray(x[[0, 2, 3, 5]], float))


@pytest.mark.parametrize("key", ["_FillValue", "missing_value", "Missing Value Marker"])
def test_the_mark_that_an_hdf5_file_names_itself_is_no_sample(folder, key):
    with h5py.File(folder / "rec1.h5", "w") as file:
        file["ppg"] = X.astype(np.int16)
        file["ppg"].attrs[key] = np.int16(-999)
    assert np.array_equal(ppg(folder), np.where(X == -999, np.nan, X), equal_nan=True)


def test_an_extreme_that_comes_again_and_again_is_asked_about(folder):
    x = np.rint(1000 * np.sin(np.arange(4000) / 9)).astype(np.int16)
    np.savez(folder / "rec1.npz", ppg=x)
    assert one(folder)[1].notes == []
    x[700:740] = -32768
    np.savez(folder / "rec1.npz", ppg=x)
    (note,) = one(folder)[1].notes
    assert "40 samples are -32768" in note and "missing = [-32768] in [signals.ppg]" in note


# ---------------------------------------------------------------- rates


def h5(folder, ppg_hz=None, **about):
    with h5py.File(folder / "rec1.h5", "w") as file:
        file["ppg"], file["ecg"] = np.arange(500), np.arange(500) * 0.5
        for key, value in about.items():
            file.attrs[key] = value
        if ppg_hz is not None:
            file["ppg"].attrs["sampling_rate"] = ppg_hz


@pytest.mark.parametrize(
    "about",
    [{"Fs": 250}, {"sampling_rate": "250 Hz"}, {"fs_ppg": 250, "fs_ecg": 100}, {"ppg_hz": 250, "Fs": 100}],
)
def test_a_rate_that_the_file_contradicts_is_refused_with_the_hours_of_the_file(folder, about):
    h5(folder, **about)
    reason, detail, source = refusal(folder)
    assert reason == "bad_rate" and "250 Hz, not 100" in detail and "rate" in detail
    assert source.seconds["ppg"] == 2


@pytest.mark.parametrize(
    "about",
    [
        {"Fs": 100},
        {"Fs": 100.0000001},
        {"fs_acc": 32, "Fs": 100},
        {"heart_rate": 72},
        {"fs_acc": 32},
        {"Fs": 40, "fs_acc": 32},
    ],
)
def test_a_rate_that_agrees_or_is_of_another_signal_refuses_nothing(folder, about):
    h5(folder, **about)
    source, recording = one(folder)
    assert not source.refused and recording.signals["ppg"].rate == 100


def test_one_rate_of_a_file_is_not_held_against_a_signal_of_another_rate(folder):
    h5(folder, Fs=100)
    source, _ = one(folder, DESCRIPTOR + ECG.replace("rate = 100", "rate = 25"))
    assert not source.refused and source.seconds == {"ppg": 5, "ecg": 20}


def test_a_tolerance_takes_the_rate_of_the_file(folder):
    h5(folder, Fs=100.2)
    text = DESCRIPTOR.replace("rate = 100", "rate = 100\nrate_tolerance = 0.01")
    assert one(folder, text)[1].signals["ppg"].rate == Fraction("100.2")
    assert refusal(folder)[0] == "bad_rate"


def named(name):
    return DESCRIPTOR.replace("rate = 100", f'rate = "{name}"')


def test_a_rate_may_be_the_name_of_what_states_it(folder):
    path = folder / "rec1.npz"
    np.savez(path, ppg=np.arange(500), hz_of_it=125)
    assert one(folder, named("hz_of_it"))[0].seconds["ppg"] == 4
    path.unlink()
    h5(folder, ppg_hz=250)
    assert one(folder, named("sampling_rate"))[1].signals["ppg"].rate == 250
    (folder / "rec1.h5").unlink()
    about = pa.schema([("ppg", pa.int32())], metadata={"device rate": "50 Hz"})
    pq.write_table(pa.table({"ppg": pa.array(range(500), pa.int32())}, schema=about), folder / "rec1.parquet")
    assert one(folder, named("device rate"))[0].seconds["ppg"] == 10
    (folder / "rec1.parquet").unlink()
    (folder / "rec1.csv").write_text("ppg,hz\n" + "7,64\n" * 640)
    assert one(folder, named("hz"))[0].seconds["ppg"] == 10


def test_a_name_that_states_no_rate_is_one_clear_line(folder):
    (folder / "rec1.csv").write_text("ppg,hz\n7,64\n7,65\n")
    for name in ("hz", "nowhere"):
        reason, detail, _ = refusal(folder, named(name))
        assert reason == "bad_rate" and f"states no rate in '{name}'" in detail
