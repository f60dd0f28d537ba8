"""One clock a record: signals of several files, label tables and events lie where their times say."""

import datetime as dt
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.readers import given, table
from datasets.readers.base import Refused, Root, checked
from tests.datasets.tables import DESCRIPTOR, described

FORMATS = Path(os.environ.get("PLETHORA_DATA", "../shared/data")) / "formats"
EMPATICA = Path(__file__).resolve().parents[2] / "datasets" / "corpora" / "empatica_e4.toml"
ACC = """
[signals.acc]
channels = ["x"]
rate = 50
unit = "g"
source_unit = "g"
units = { g = 1 }
"""
TWO = DESCRIPTOR.replace(r"(?P<record>[a-z]+\\d+)\\.\\w+", r"(?P<record>rec\\d)\\.csv") + ACC
TIMES = '\n[table]\ntime = "t"\nfiles = { acc = "{record}_acc.csv" }\n'
HR = """
[[tables]]
columns = { hr = { name = "hr", unit = "bpm" } }
file = "hr.csv"
start = "from"
end = "to"
"""


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "root"
    made.mkdir()
    return made


def read(folder, text):
    """Every record below `folder`, labels and all, as ingest reads it."""
    known = described(folder, text) if isinstance(text, str) else text
    root = Root(str(folder))
    (source,) = given.complete(table.scan(root, known), root, known)
    if source.broken:
        raise Refused(*source.broken)
    recording = checked(table.load(source, folder, known), source)
    given.add(recording, source, folder, folder, known)
    return source, recording, {label.name: label for label in recording.labels}


def write(folder, name, columns):
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    (folder / name).write_text("\n".join(rows) + "\n")


def a_tap(folder, begin, word=lambda t: f"{t:.3f}"):
    """PPG from `begin`, acceleration from 3 s later, and a tap 10 s after `begin` in both."""
    for name, column, rate, start in (("rec1", "ppg", 100, begin), ("rec1_acc", "x", 50, begin + 3)):
        t = start + np.arange(30 * rate) / rate
        x = np.zeros(len(t))
        x[np.argmin(np.abs(t - begin - 10))] = 9
        write(folder, f"{name}.csv", {"t": [word(v) for v in t], column: x})


def iso(zone=""):
    return lambda t: (
        dt.datetime.fromtimestamp(t, dt.UTC).replace(tzinfo=None).isoformat(" ", "milliseconds") + zone
    )


@pytest.mark.parametrize(
    ("begin", "word", "cells"),
    [
        (100.0, lambda t: f"{t:.3f}", ("110", "120")),
        (1714554000.0, lambda t: f"{t:.3f}", ("1714554010", "1714554020")),
        (1714554000.0, lambda t: f"{t:.3f}", ("10", "20")),
        (1714554000.0, iso(), ("2024-05-01 09:00:10", "2024-05-01T09:00:20.0")),
        (1714554000.0, iso("+02:00"), ("2024-05-01 09:00:10", "2024-05-01 09:00:20")),
        (1714554000.0, iso("+02:00"), ("2024-05-01 07:00:10Z", "2024-05-01 07:00:20Z")),
        (1714554000.0, iso(), ("09:00:10", "9:00:20.0")),
    ],
)
def test_all_files_tables_and_labels_of_a_record_lie_on_its_one_clock(folder, begin, word, cells):
    a_tap(folder, begin, word)
    write(folder, "hr.csv", {"from": cells[:1], "to": cells[1:], "hr": [72]})
    source, got, labels = read(folder, TWO + TIMES + HR)
    for m, rate in (("ppg", 100), ("acc", 50)):
        samples = got.signals[m]
        assert int(np.argmax(samples.x_tc[:, 0])) == 10 * rate
    assert got.signals["acc"].missing[:150].all() and not got.signals["acc"].missing[150:].any()
    assert source.seconds == {"ppg": 30, "acc": 33}
    assert (labels["hr"].start_s.tolist(), labels["hr"].end_s.tolist()) == ([10.0], [20.0])
    assert got.problems == []


def test_keys_say_whose_the_times_of_labels_are(folder):
    a_tap(folder, 100.0)
    write(folder, "hr.csv", {"from": [0], "to": [5], "hr": [72]})
    _, got, labels = read(folder, TWO + TIMES + HR)
    assert labels["hr"].start_s.tolist() == [-100.0] and "outside the record" in got.problems[0]
    _, got, labels = read(folder, TWO + TIMES + HR + 'clock = "start"\noffset_s = 2.5\n')
    assert labels["hr"].start_s.tolist() == [2.5] and got.problems == []


def test_labels_on_a_clock_that_the_record_does_not_state_are_a_problem_and_not_a_guess(folder):
    write(folder, "rec1.csv", {"ppg": range(1000)})
    write(folder, "hr.csv", {"from": ["2024-05-01 09:00:00"], "to": ["2024-05-01 09:00:05"], "hr": [72]})
    one = TWO.replace(ACC, "")
    _, got, labels = read(folder, one + HR)
    assert "hr" not in labels and "states no time to which" in got.problems[0]
    write(folder, "hr.csv", {"from": [1], "to": [2], "hr": [72]})
    _, got, labels = read(folder, one + HR)
    assert labels["hr"].start_s.tolist() == [1.0] and got.origin is None


def test_files_without_a_common_clock_are_refused(folder):
    a_tap(folder, 1714554000.0)
    t = np.arange(100) / 50
    write(folder, "rec1_acc.csv", {"t": t, "x": t})
    with pytest.raises(Refused, match="no common clock"):
        read(folder, TWO + TIMES)


def test_a_file_without_the_column_of_times_is_refused_with_the_key(folder):
    a_tap(folder, 0.0)
    write(folder, "rec1_acc.csv", {"time": [1, 2], "x": [1, 2]})
    source, recording, _ = read(folder, TWO + TIMES)
    words = "no column 't', which holds the times (`time` in [table]); it has time, x"
    assert source.refused == {"acc": "bad_time"} and words in source.words["acc"]
    assert set(recording.signals) == {"ppg"}


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_timestamps_of_parquet_place_samples(folder, zone):
    t = pa.array(1714554000_000_000 + np.arange(500) * 10_000).cast(pa.timestamp("us", zone))
    pq.write_table(pa.table({"t": t, "ppg": np.arange(500)}), folder / "rec1.parquet")
    text = TWO.replace(ACC, "").replace(r"\\.csv", r"\\.parquet").replace(r"\.csv", r"\.parquet")
    _, got, _ = read(folder, text + '\n[table]\ntime = "t"\n')
    assert got.origin == 1714554000.0 and got.signals["ppg"].x_tc[:, 0].tolist() == list(range(500))


def test_a_rate_is_measured_where_the_descriptor_leaves_it_out(folder):
    for own, rate in ((54.77, "54.77"), (201.16, "201.16")):
        t = np.arange(int(60 * own)) / own
        write(folder, "rec1.csv", {"t": [f"{v:.6f}" for v in t], "ppg": range(len(t))})
        text = TWO.replace(ACC, "").replace("rate = 100\n", "")
        _, got, _ = read(folder, text + '\n[table]\ntime = "t"\n')
        assert f"{float(got.signals['ppg'].rate):g}" == rate
        assert got.signals["ppg"].x_tc[:, 0].tolist() == list(range(len(t)))


def test_a_refused_rate_says_the_measured_one_and_the_keys(folder):
    t = np.arange(6000) / 54.77
    write(folder, "rec1.csv", {"t": [f"{v:.6f}" for v in t], "ppg": range(6000)})
    known = described(
        folder, TWO.replace(ACC, "").replace("rate = 100", "rate = 55") + '\n[table]\ntime = "t"\n'
    )
    (source,) = table.scan(Root(str(folder)), known)
    assert source.refused == {"ppg": "bad_rate"}
    assert all(
        word in source.words["ppg"] for word in ("54.77 Hz, not 55", "`rate_tolerance`", "leave `rate` out")
    )


@pytest.mark.parametrize("order", [("note", "ppg"), ("ppg", "note")])
def test_an_optional_signal_that_is_not_there_changes_nothing_in_any_order(folder, order):
    held = {"ppg": np.arange(500), "note": np.array([["a", "b"]])}
    np.savez(folder / "rec1.npz", **{name: held[name] for name in order})
    text = TWO.replace(ACC, "").replace(
        "[signals.ppg]", ACC.replace("rate = 50", "rate = 60") + "\n[signals.ppg]"
    )
    source, got, _ = read(folder, text.replace(r"\.csv", r"\.npz"))
    assert source.seconds == {"ppg": 5} and list(got.signals) == ["ppg"]


def test_a_session_of_the_empatica_e4_is_read_whole_with_hr_ten_seconds_later():
    if not (FORMATS / "empatica_e4").is_dir():
        pytest.skip("no shared data")
    from datasets.ingest import read_descriptor

    known = read_descriptor(EMPATICA)
    root = Root(str((FORMATS / "empatica_e4").parent))
    (source,) = given.complete(table.scan(root, known), root, known)
    recording = checked(table.load(source, Path(root.uri), known), source)
    given.add(recording, source, Path(root.uri), Path(root.uri), known)
    labels = {label.name: label for label in recording.labels}
    assert recording.origin == 1560279825.0
    assert {m: float(s.rate) for m, s in recording.signals.items()} == {"ppg": 64, "acc": 32}
    assert recording.signals["acc"].x_tc[0].tolist() == [-61, 25, 6]
    assert labels["hr"].start_s[0] == 10.0 and labels["hr"].end_s[0] == 11.0 and labels["hr"].values[0] == 93
    assert labels["eda"].start_s[:2].tolist() == [0.0, 0.25]
    assert labels["ibi"].start_s[0] == 83.503822 and len(labels["tag"].values) == 0


def test_presses_of_the_button_are_on_the_clock_of_the_empatica_e4(tmp_path):
    from datasets.ingest import read_descriptor

    home = tmp_path / "p1"
    home.mkdir()
    (home / "BVP.csv").write_text("1560279825.00\n64.000000\n" + "1.5\n" * 6400)
    (home / "ACC.csv").write_text(
        "1560279827.0, 1560279827.0, 1560279827.0\n32.0, 32.0, 32.0\n" + "1,2,64\n" * 100
    )
    (home / "tags.csv").write_text("1560279830.50\n1560279860.00\n")
    known = read_descriptor(EMPATICA)
    root = Root(str(tmp_path))
    (source,) = given.complete(table.scan(root, known), root, known)
    recording = checked(table.load(source, tmp_path, known), source)
    given.add(recording, source, tmp_path, tmp_path, known)
    (tag,) = (label for label in recording.labels if label.name == "tag")
    assert tag.start_s.tolist() == [5.5, 35.0]
    assert np.flatnonzero(~recording.signals["acc"].missing)[0] == 64


def test_sample_numbers_count_from_the_first_sample_whatever_the_clock_says(folder):
    t = 100 + np.arange(1000) / 100
    write(folder, "rec1.csv", {"t": t, "ppg": np.sin(t)})
    write(folder, "rec1_beats.csv", {"sample": [0, 125, 541]})
    events = '\n[[events]]\nname = "beat"\nfile = "{record}_beats.csv"\ncolumn = "sample"\nrate = 125\n'
    text = DESCRIPTOR.replace(r"(?P<record>[a-z]+\\d+)\\.\\w+", r"(?P<record>rec\\d)\\.csv")
    _, recording, labels = read(folder, text + '\n[table]\ntime = "t"\n' + events)
    assert recording.origin == 100
    assert labels["beat"].start_s.tolist() == [0, 1, 541 / 125]
