"""The .vital reader against the vitaldb package's own arrays, and files that the package would half read."""

import gzip
from fractions import Fraction

import numpy as np
import pytest
import vitaldb
from vitaldb.utils import TYPE_STR, TYPE_WAV, Track

from datasets.readers import vitaldb as reader
from datasets.readers.base import Refused
from datasets.segment import segment
from tests.datasets import recordings
from tests.datasets.recordings import waves

TEXT = """
name = "theatre"
source = "made in a test"
licence = "none"
terms = "none"
citation = "none"
access = "open"
reader = "vitaldb"
records = '(?P<record>\\d+)\\.vital'
id_space = "theatre"
subjects_published = true
annotations = "event"

[signals.ppg]
channels = ["SNUADC/PLETH"]
rate = 500
unit = "au"
source_unit = "au"
units = { au = 1 }
required = true

[signals.ecg]
channels = ["SNUADC/ECG_II", "Solar8000/ECG"]
unit = "mV"
units = { mV = 1 }

[numerics.channels]
"Solar8000/HR" = { name = "hr", unit = "bpm" }
"""
USE = recordings.Use(reader, TEXT)
read, load, path = USE.one, USE.load, recordings.path_of("1.vital")
START = 1_700_000_000.0


def packets(x, rate, start=START, gaps=(), jitter=0.0):
    """Records of one second; `gaps`: (second, seconds) to wait before it."""
    rng = np.random.default_rng(0)
    late = {second: wait for second, wait in gaps}
    found, shift = [], 0.0
    for second in range(len(x) // rate):
        shift += late.get(second, 0)
        at = start + second + shift + rng.uniform(-jitter, jitter) * (second > 0)
        found.append({"dt": at, "val": x[second * rate : (second + 1) * rate]})
    return found


def write(path, gaps=(), packed=False, jitter=0.0, ecg_start=START + 2.5):
    """PLETH 20 s of float32, ECG_II 10 s of int16 that begins later, HR every 2 s, two events."""
    file = vitaldb.VitalFile(None)
    file.dtstart, file.dtend = START, START + 40
    pleth = waves(20, 500, 1).astype(np.float32) / 100
    ecg = waves(10, 250, 2).astype(np.int16)
    file.add_track("SNUADC/PLETH", packets(pleth, 500, gaps=gaps, jitter=jitter), srate=500)
    recs = packets(ecg, 250, ecg_start)
    gain = {"gain": 0.005, "offset": -1.25}
    file.trks["SNUADC/ECG_II"] = Track(
        "ECG_II", TYPE_WAV, fmt=5, srate=250, unit="mV", dname="SNUADC", recs=recs, **gain
    )
    beats = [{"dt": START + 2 * i - 3, "val": 70.0 + i} for i in range(8)]
    file.add_track("Solar8000/HR", beats)
    words = [{"dt": START + 4.0, "val": "incision"}, {"dt": START + 9.5, "val": "closure"}]
    file.trks["EVENT"] = Track("EVENT", TYPE_STR, recs=words)
    file.to_vital(str(path), packed=packed)
    return pleth, ecg


@pytest.mark.parametrize("packed", [False, True])
def test_waveforms_keep_their_rate_their_values_and_their_place(tmp_path, path, packed):
    pleth, ecg = write(path, packed=packed, gaps=[(8, 3)])
    known, root, source = read(tmp_path)
    assert source.seconds == {"ppg": Fraction(23), "ecg": Fraction(25, 2)}
    got = load(known, root, source).signals
    assert (got["ppg"].rate, got["ecg"].rate) == (500, 250)
    truth = vitaldb.VitalFile(str(path))
    for m, track, rate in (("ppg", "SNUADC/PLETH", 500), ("ecg", "SNUADC/ECG_II", 250)):
        begin = round((START - truth.dtstart) * rate)  # its clock begins with the numbers
        expected = truth.get_track_samples(track, 1 / rate)[begin:]
        x = np.where(got[m].missing, np.nan, got[m].x_tc[:, 0] * got[m].scale + got[m].offset)
        assert np.allclose(x, expected[: len(x)], equal_nan=True, rtol=1e-5, atol=1e-4)
        assert np.isnan(expected[len(x) :]).all()
    there = ~got["ecg"].missing
    assert np.array_equal(got["ecg"].x_tc[there, 0], ecg) and np.flatnonzero(there)[0] == 625
    assert np.array_equal(got["ppg"].x_tc[~got["ppg"].missing, 0], pleth)
    cut = segment("1", got, known.limits, 3600)
    assert cut.refused["ppg"] == {"nan": 3} and cut.refused["ecg"] == {"nan": Fraction(5, 2)}


def test_clocks_that_tremble_make_no_gaps(tmp_path, path):
    pleth, _ = write(path, jitter=0.04)
    ppg = load(*read(tmp_path)).signals["ppg"]
    assert not ppg.missing.any() and np.array_equal(ppg.x_tc[:, 0], pleth)


def test_numbers_hold_until_the_next_and_events_are_words(tmp_path, path):
    write(path)
    labels = {label.name: label for label in load(*read(tmp_path)).labels}
    hr = labels["hr"]
    assert hr.values.tolist() == [71, 72, 73, 74, 75, 76, 77]  # the first one ends before the waveforms begin
    assert hr.start_s.tolist() == [0, 1, 3, 5, 7, 9, 11] and hr.end_s.tolist() == [1, 3, 5, 7, 9, 11, 13]
    assert labels["event"].values == ["incision", "closure"]
    assert labels["event"].start_s.tolist() == [4, 9.5]
    assert labels["ecg_channel"].values == ["SNUADC/ECG_II"]


def test_a_record_that_runs_back_in_time_is_refused(tmp_path, path):
    write(path, gaps=[(8, -3)])
    source = read(tmp_path)[2]
    assert source.refused == {"ppg": "bad_time"} and source.seconds == {"ppg": 20, "ecg": 10}
    assert source.words["ppg"].startswith("SNUADC/PLETH: time runs back by 3 s at 5.0 s")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda d: d[: len(d) // 2], "truncated"),
        (lambda d: gzip.compress(gzip.decompress(d)[:-7]), "truncated"),
        (lambda d: b"", "corrupt"),
        (lambda d: b"time,ppg\n0,1\n" * 50, "corrupt"),
        (lambda d: gzip.compress(b"NOPE" + gzip.decompress(d)[4:]), "corrupt"),
        (lambda d: d[:200] + bytes([d[200] ^ 255]) + d[201:], "corrupt"),
    ],
)
def test_a_cut_off_or_foreign_file_is_refused_though_the_package_reads_half_of_it(
    tmp_path, path, harm, reason
):
    write(path)
    path.write_bytes(harm(path.read_bytes()))
    source = read(tmp_path)[2]
    assert source.broken and source.broken[0] in (reason, "corrupt")
    assert "1.vital" in source.broken[1] and "\n" not in source.broken[1]


def test_rates_units_and_tracks_are_as_promised_or_refused(tmp_path, path):
    write(path)
    assert read(tmp_path, TEXT.replace("rate = 500", "rate = 250"))[2].refused == {"ppg": "bad_rate"}
    assert read(tmp_path, TEXT.replace('source_unit = "au"', ""))[2].refused == {"ppg": "unit_mismatch"}
    absent = read(tmp_path, TEXT.replace("SNUADC/PLETH", "PLETH"))[2]
    assert absent.refused == {"ppg": "missing_channel"} and absent.seconds["ppg"] == 20
    assert "the file has 'SNUADC/PLETH', 'SNUADC/ECG_II', not PLETH" in absent.words["ppg"]


def test_a_record_lost_by_the_package_is_noticed(tmp_path, path):
    write(path)
    data = bytearray(gzip.decompress(path.read_bytes()))
    at = _last_wave(data)
    data[at : at + 4] = (10**6).to_bytes(4, "little")  # it claims more samples than its packet holds
    path.write_bytes(gzip.compress(bytes(data)))
    source = read(tmp_path)[2]
    assert source.broken == ("corrupt", "1.vital: 1 of 38 records cannot be read")
    assert source.seconds == {"ppg": 20, "ecg": 9}
    with pytest.raises(Refused):
        load(*read(tmp_path))


def _last_wave(data):
    """Where the sample count of the last ECG record is."""
    at, found = 10 + int.from_bytes(data[8:10], "little"), 0
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 5], "little")
        if data[at] == 1 and size == 2 + 10 + 4 + 500:
            found = at + 5 + 12
        at += 5 + size
    return found
