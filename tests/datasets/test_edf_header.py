"""EDF headers as recorders write them: right values, or a refusal that says why."""

from datetime import UTC, datetime
from fractions import Fraction

import numpy as np
import pytest

from tests.datasets import recordings
from tests.datasets.edf_files import TEXT, load, scan, signal, write

path = recordings.path_of("n1.edf")


def values(recording, modality="ecg"):
    found = recording.signals[modality]
    return found.x_tc[:, 0] * found.scale + found.offset


@pytest.mark.parametrize(
    ("low", "high", "least", "most", "record_s", "scale"),
    [
        ("-3276,8", "3276,7", "-32768", "32767", "1", 0.1),
        ("-0,5", "0,5", "-32768", "32767", "0,5", 1 / 65535),
        ("-1,000", "1,5", "-32768", "32767", "1", 2.5 / 65535),
        ("-5", "5", "-32768.0", "32767,0", "1", 10 / 65535),
        ("-2.5E0", "2.5e+0", "-2048", "2047", "0.25", 5 / 4095),
        ("5", "-5", "-32768", "32767", "1", -10 / 65535),
    ],
)
def test_numbers_with_commas_points_or_exponents_are_what_they_stand_for(
    tmp_path, path, low, high, least, most, record_s, scale
):
    (x,) = write(path, [signal(low=low, high=high, least=least, most=most)], record_s=record_s)
    got = load(tmp_path)
    ecg = got.signals["ecg"]
    assert np.array_equal(ecg.x_tc[:, 0], x) and ecg.rate == 100 and not ecg.missing.any()
    first, bottom = float(least.replace(",", ".")), float(low.replace(",", "."))
    assert np.allclose(values(got), (x - first) * scale + bottom, rtol=1e-9)


BAD = [
    ("", "", "-32768", "32767"),
    ("-5", "5", "", ""),
    ("0", "0", "-32768", "32767"),
    ("-5", "5", "100", "100"),
    ("-5", "5", "0", "65535"),
    ("-5", "5", "-2047.5", "2047.5"),
    ("low", "high", "-32768", "32767"),
    ("-1_0", "1_0", "-32768", "32767"),
    ("-1,000", "1,000", "-32768", "32767"),
    ("nan", "inf", "-32768", "32767"),
]


@pytest.mark.parametrize("limits", BAD)
def test_limits_that_mean_nothing_cost_their_own_channel_alone(tmp_path, path, limits):
    x = write(path, [signal("Junk", 10, *limits), signal(), signal("Position", 1, *limits)])
    got = load(tmp_path)
    assert np.array_equal(got.signals["ecg"].x_tc[:, 0], x[1])


@pytest.mark.parametrize("limits", BAD)
def test_a_wanted_channel_of_such_limits_is_refused_with_them(tmp_path, path, limits):
    write(path, [signal("ECG", 100, *limits)])
    source = scan(tmp_path)[2]
    assert source.refused == {"ecg": "bad_scale"} and source.seconds["ecg"] == 10
    assert all(repr(limit) in source.words["ecg"] for limit in limits)
    assert ("decimals or thousands" in source.words["ecg"]) == ("," in limits[0])


def test_a_slow_channel_of_such_limits_makes_no_label_and_a_line_says_so(tmp_path, path):
    write(path, [signal(), signal("SpO2", 1, "0", "0", unit="%")])
    text = TEXT + '\n[numerics.channels]\nSpO2 = { name = "spo2", unit = "%" }\n'
    got = load(tmp_path, text)
    assert not [label for label in got.labels if label.name == "spo2"]
    assert any("spo2" in problem and "'0' to '0'" in problem for problem in got.problems)


def test_cells_filled_up_with_nul_are_read(tmp_path, path):
    cells = {"label": b"ECG\0\0old", "unit": b"mV\0\0", "low": b"-5\0\0\0", "high": b"5\0"}
    (x,) = write(path, [signal(**cells)], version=b"0" + bytes(7), clock=b"1.2.03\0\0")
    got = load(tmp_path)
    assert np.array_equal(got.signals["ecg"].x_tc[:, 0], x) and got.origin == clock(2021, 3, 2, 1, 2, 3)


@pytest.mark.parametrize("unit", ["uV", "µV", "\u03bcV", "µV".encode("latin-1")])
@pytest.mark.parametrize("listed", ["uV", "µV", "\u03bcV"])
def test_every_way_to_write_microvolts_is_the_same_unit(tmp_path, path, unit, listed):
    (x,) = write(path, [signal(low="-5000", high="5000", unit=unit)])
    got = load(tmp_path, TEXT.replace("uV = 1e-3, mV = 1", f'"{listed}" = 1e-3, V = 1000'))
    assert np.allclose(values(got), (x + 32768) * (10 / 65535) - 5)


@pytest.mark.parametrize(("count", "words"), [(4, "counts 4 data"), (0, "counts 0"), (-1, "does not count")])
def test_data_records_that_the_header_does_not_count_are_read_and_a_line_says_so(
    tmp_path, path, count, words
):
    (x,) = write(path, [signal()], count=count, tail=b"rest")
    got = load(tmp_path)
    assert np.array_equal(got.signals["ecg"].x_tc[:, 0], x)
    assert words in got.problems[0] and "all 10 are read" in got.problems[0]
    assert got.problems[1].startswith("4 bytes")


def test_a_tail_that_does_not_say_when_it_begins_is_no_data_record(tmp_path, path):
    tals = [b"+%d\x14\x14\0" % i for i in range(10)]
    (x,) = write(path, [signal()], count=6, tals=tals, reserved="EDF+C", tail=b"\0" * 700)
    got = load(tmp_path)
    assert np.array_equal(got.signals["ecg"].x_tc[:, 0], x)
    assert "all 10 are read" in got.problems[0] and got.problems[1].startswith("700 bytes")


def test_a_header_longer_or_shorter_than_it_says_is_read_where_the_bytes_agree(tmp_path, path):
    (x,) = write(path, [signal()], start=256)
    assert np.array_equal(load(tmp_path).signals["ecg"].x_tc[:, 0], x)
    (x,) = write(path, [signal()], start=1024, padding=b" " * 512)
    assert np.array_equal(load(tmp_path).signals["ecg"].x_tc[:, 0], x)
    write(path, [signal()], start=1024, padding=b" " * 300)
    assert "states a length of 1,024 bytes, its signals take 512" in scan(tmp_path)[2].broken[1]


def test_two_signals_of_one_label_are_told_apart_by_number(tmp_path, path):
    x = write(path, [signal(seed=1), signal("Pleth", 50), signal(seed=2, rate=50)])
    source = scan(tmp_path)[2]
    assert source.refused == {"ecg": "missing_channel"} and "ECG-0 or ECG-1" in source.words["ecg"]
    got = load(tmp_path, TEXT.replace('["ECG"]', '["ECG-1"]'))
    assert np.array_equal(got.signals["ecg"].x_tc[:, 0], x[2])


def test_a_channel_without_samples_costs_no_other(tmp_path, path):
    x = write(path, [signal("None", 0), signal()])
    assert np.array_equal(load(tmp_path).signals["ecg"].x_tc[:, 0], x[1])


def clock(*words):
    return datetime(*words, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({}, clock(2021, 3, 2, 22, 15, 30)),
        ({"date": "02.03.85"}, clock(1985, 3, 2, 22, 15, 30)),
        ({"date": "02.03.yy", "recording": "Startdate 02-MAR-2091 X X X"}, clock(2091, 3, 2, 22, 15, 30)),
        ({"date": "2-3-21", "clock": "2:05:00"}, clock(2021, 3, 2, 2, 5)),
        ({"date": "02.03.ü"}, None),
        ({"date": "31.02.21"}, None),
        ({"date": "03/02/21"}, None),  # day or month first: who knows
        ({"clock": "25.00.00"}, None),
        ({"date": "", "clock": ""}, None),
    ],
)
def test_the_records_clock_is_the_headers_date_and_time(tmp_path, path, cells, expected):
    write(path, [signal()], **cells)
    assert load(tmp_path).origin == expected


def test_parts_of_a_second_belong_to_the_clock_and_not_to_the_annotations(tmp_path, path):
    tals = [b"+%d.25\x14\x14\0" % i for i in range(10)]
    tals[0] += b"-2\x155\x14before\x14\0"
    tals[3] += b"+3.75\x14in it\x14\0"
    write(path, [signal()], tals=tals, reserved="EDF+C")
    got = load(tmp_path)
    assert got.origin == clock(2021, 3, 2, 22, 15, 30) + 0.25
    (notes,) = [label for label in got.labels if label.name == "note"]
    assert notes.values == ["before", "in it"]
    assert notes.start_s.tolist() == [-2.25, 3.5] and notes.end_s.tolist() == [2.75, 3.5]


def test_a_first_annotation_with_words_is_no_start_of_the_clock(tmp_path, path):
    write(path, [signal()], tals=[b"+4\x14cough\x14\0"] + [b""] * 9)
    got = load(tmp_path)
    (notes,) = [label for label in got.labels if label.name == "note"]
    assert notes.start_s.tolist() == [4] and got.origin == clock(2021, 3, 2, 22, 15, 30)


def test_a_gap_in_a_file_that_calls_itself_continuous_is_missing_samples(tmp_path, path):
    tals = [b"+%d\x14\x14\0" % (i + 3 * (i > 4)) for i in range(10)]
    (x,) = write(path, [signal()], tals=tals, reserved="EDF+C")
    ecg = load(tmp_path).signals["ecg"]
    assert len(ecg.x_tc) == 1300 and np.flatnonzero(ecg.missing).tolist() == list(range(500, 800))
    assert np.array_equal(ecg.x_tc[~ecg.missing, 0], x)


def test_numbers_that_the_descriptor_calls_missing_are_missing(tmp_path, path):
    (x,) = write(path, [signal()])
    ecg = load(tmp_path, TEXT + f"missing = [{x[7]}, -32768]").signals["ecg"]
    assert np.array_equal(ecg.missing, x == x[7])


def test_a_refusal_says_what_the_file_has(tmp_path, path):
    write(path, [signal("EKG", 256, unit="kV"), signal("Pleth", 64)])
    assert "the file has 'EKG', 'Pleth', not ECG" in scan(tmp_path)[2].words["ecg"]
    text = TEXT.replace('["ECG"]', '["EKG"]')
    assert "'kV'" in scan(tmp_path, text)[2].words["ecg"]
    assert "256 Hz" in scan(tmp_path, text.replace("unit =", "rate = 250\nunit =", 1))[2].words["ecg"]
    both = TEXT.replace('["ECG"]', '[["EKG", "Pleth"]]')
    assert "EKG has 256 Hz, Pleth has 64 Hz" in scan(tmp_path, both)[2].words["ecg"]
    write(path, [signal(unit="")])
    assert "`source_unit`" in scan(tmp_path)[2].words["ecg"]


def test_another_kind_of_file_is_named(tmp_path, path):
    path.write_bytes(b"ISHNE1.0" + bytes(600))
    reason, words = scan(tmp_path)[2].broken
    assert reason == "unsupported" and 'reader = "ishne"' in words


def test_rates_are_those_of_the_data_record(tmp_path, path):
    x = write(path, [signal(rate=12.5), signal("X", 256)], record_s="2")
    got = load(tmp_path)
    assert got.signals["ecg"].rate == Fraction(25, 2) and len(got.signals["ecg"].x_tc) == len(x[0])
