"""Times in every form that people write give the same seconds; what is no time is refused by its row."""

import datetime as dt
import gzip

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.readers import moments, text
from datasets.readers.base import Refused


def words(*cells):
    return pa.array(cells, pa.string())


@settings(deadline=None)
@given(
    st.lists(st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2100, 1, 1)), min_size=1, max_size=5),
    st.sampled_from(["T", " "]),
    st.sampled_from(
        [None, dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=30)), dt.timezone(-dt.timedelta(hours=8))]
    ),
)
def test_iso_words_are_the_seconds_that_python_makes_of_them(times, between, zone):
    zoned = [time.replace(tzinfo=zone) for time in times]
    found = moments.read(words(*(time.isoformat(between) for time in zoned)))
    expected = [(t if zone else t.replace(tzinfo=dt.UTC)).timestamp() for t in zoned]
    assert found.kind == "date" and np.abs(found.s - expected).max() < 1e-6
    assert (found.zone_s is None) == (zone is None)


@pytest.mark.parametrize(
    "column",
    [
        words("2024-05-01 09:00:00.25", None, "2024-05-01T09:00:01,5"),
        words("20240501T090000.25", "", "20240501T090001.5"),
        words("2024/05/01 09:00:00.25Z", "NaT", "2024-05-01 11:00:01.5 +0200"),
        words("'[09:00:00.250 01/05/2024]'", "", "[09:00:01.500 01/05/2024]"),
        pa.array(
            [dt.datetime(2024, 5, 1, 9, 0, 0, 250_000), None, dt.datetime(2024, 5, 1, 9, 0, 1, 500_000)]
        ),
        np.array(["2024-05-01T09:00:00.250", "NaT", "2024-05-01T09:00:01.500"], "M8[ns]"),
    ],
)
def test_dates_in_every_form_are_one_and_the_same(column):
    found = moments.read(column)
    assert found.kind == "date" and np.isnan(found.s[1])
    assert found.s[[0, 2]].tolist() == [1714554000.25, 1714554001.5]


def test_epoch_numbers_count_in_their_unit():
    for unit_s in (1e-3, 1e-6, 1e-9):
        ticks = np.array([1714554000250, 1714554000270]) * round(1e-3 / unit_s)
        for column in (ticks, words(*map(str, ticks)), pa.array(ticks)):
            found = moments.read(column, unit_s)
            assert found.kind == "number" and np.abs(found.s - [1714554000.25, 1714554000.27]).max() < 1e-6


def test_times_of_day_run_on_past_midnight():
    found = moments.read(words("23:59:59.5", "0:00:00", "0:00:00.5"))
    assert found.kind == "clock" and np.diff(found.rising()).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (("2024-05-01 09:00:00", "soon"), "row 2: 'soon'"),
        (("2024-02-30 09:00:00",), "row 1: '2024-02-30"),
        (("2024-05-01 25:00:00",), "row 1"),
        (("2024-05-01 09:00:00Z", "2024-05-01 09:00:00"), "row 2"),
        (("1.5", "x\x1b[31m"), "row 2: 'x\\\\x1b"),
        (("05/01/2024 9:00 AM",), "row 1"),
    ],
)
def test_what_is_no_time_is_refused_by_its_row(cells, said):
    with pytest.raises(Refused, match=said.replace("[", r"\[").replace("(", r"\(")) as why:
        moments.read(words(*cells))
    assert why.value.reason == "bad_time"


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_line_that_states_nothing_is_answered_with_the_keys_to_correct(tmp_path, name):
    (tmp_path / name).write_bytes((gzip.compress if name.endswith("gz") else bytes)(b"1700000000, 1\n,\n"))
    assert moments.stated(tmp_path / name, 1, ",").s.tolist() == [1_700_000_000]
    for line in (2, 9):
        with pytest.raises(Refused, match=f"line {line} states no time or rate: correct `start_line` or"):
            moments.stated(tmp_path / name, line, ",")


def test_a_compressed_text_is_not_unpacked_without_end_for_its_first_line(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LARGEST", 10_000)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"1" * 10**6))
    with pytest.raises(Refused, match="unpacks to more than"):
        moments.stated(tmp_path / "a.csv.gz", 1, ",")
