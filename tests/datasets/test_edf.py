"""The EDF reader against pyedflib, and EDF+D, which pyedflib does not open."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.readers import edf as reader
from datasets.segment import segment
from tests.datasets import recordings
from tests.datasets.recordings import waves

pyedflib = pytest.importorskip("pyedflib", reason="pyedflib has no wheel for this Python")

TEXT = """
name = "sleep"
source = "made in a test"
licence = "none"
terms = "none"
citation = "none"
access = "open"
reader = "edf"
records = '(?P<record>n\\d+)\\.edf'
id_space = "sleep"
subjects_published = true
annotations = "stage"

[signals.ppg]
channels = ["Pleth"]
rate = 128
unit = "au"
units = { au = 1 }
source_unit = "au"
required = true

[signals.ecg]
channels = ["ECG"]
unit = "mV"
units = { uV = 1e-3, mV = 1 }

[signals.acc]
channels = [["X", "Y"]]
unit = "g"
units = { g = 1 }

[numerics.channels]
SpO2 = { name = "spo2", unit = "%" }
"""
USE = recordings.Use(reader, TEXT)
read, load, path = USE.one, USE.load, recordings.path_of("n1.edf")


def header(label, rate, unit, low, high, dmin=-32768, dmax=32767):
    known = {"label": label, "dimension": unit, "sample_frequency": rate, "transducer": "", "prefilter": ""}
    return known | {
        "physical_min": low,
        "physical_max": high,
        "digital_min": dmin,
        "digital_max": dmax,
    }


def write(path, seconds=20, kind=pyedflib.FILETYPE_EDFPLUS, annotations=()):
    """Pleth and ECG (no unit, µV), X and Y of other scales, SpO2 at 1 Hz; returns the integers."""
    heads = [
        header("Pleth", 128, "", -10, 30),
        header("ECG", 256, "uV", -3000, 3100, -2048, 2047),
        header("X", 50, "g", -2, 2),
        header("Y", 50, "g", -4, 4),
        header("SpO2", 1, "%", 0, 100, 0, 1000),
    ]
    x = [waves(seconds, h["sample_frequency"], n).astype(np.int32) for n, h in enumerate(heads)]
    x[1] //= 4
    x[4] = (900 + np.arange(seconds) % 90).astype(np.int32)
    with pyedflib.EdfWriter(str(path), len(heads), kind) as file:
        file.setSignalHeaders(heads)
        file.writeSamples(x, digital=True)
        for at, long, text in annotations:
            file.writeAnnotation(at, long, text)
    return x


@pytest.mark.parametrize("kind", [pyedflib.FILETYPE_EDF, pyedflib.FILETYPE_EDFPLUS])
def test_samples_are_the_integers_and_values_those_of_pyedflib(tmp_path, path, kind):
    x = write(path, kind=kind)
    known, root, source = read(tmp_path)
    assert source.seconds == {"ppg": 20, "ecg": 20, "acc": 20} and not source.refused
    got = load(known, root, source).signals
    assert np.array_equal(got["ppg"].x_tc[:, 0], x[0])
    assert np.array_equal(got["ecg"].x_tc[:, 0], x[1])
    assert got["ecg"].rate == Fraction(256)
    with pyedflib.EdfReader(str(path)) as truth:
        for m, channels, factor in (("ppg", [0], 1), ("ecg", [1], 1e-3), ("acc", [2, 3], 1)):
            expected = np.stack([truth.readSignal(c) for c in channels], axis=1) * factor
            value = got[m].x_tc * got[m].scale + got[m].offset
            assert np.allclose(value, expected, rtol=1e-9, atol=1e-12)


def test_slow_channels_and_annotations_are_labels(tmp_path, path):
    notes = [(0.5, -1, "lights off"), (3, 30, "N2"), (12.25, 2, "arousal ü")]
    x = write(path, annotations=notes)
    known, root, source = read(tmp_path)
    labels = {label.name: label for label in load(known, root, source).labels}
    assert np.allclose(labels["spo2"].values, x[4] / 10)
    assert labels["spo2"].end_s.tolist() == list(range(1, 21))
    stage = labels["stage"]
    with pyedflib.EdfReader(str(path)) as truth:
        start, duration, text = truth.readAnnotations()
    assert stage.values == list(text)
    assert np.allclose(stage.start_s, start)
    assert np.allclose(stage.end_s - stage.start_s, np.maximum(duration, 0))


def broken_up(path, onsets):
    """Turn the EDF+C at `path` into EDF+D whose data record i begins at onsets[i]."""
    data = bytearray(path.read_bytes())
    head = reader.read_header(path, len(data))
    data[192:197] = b"EDF+D"
    notes = head.annotations[0]
    for i, onset in enumerate(onsets):
        at = head.start + i * head.width + notes.at
        tal = f"+{onset}\x14\x14".encode() + b"\0"
        data[at : at + notes.size] = tal.ljust(notes.size, b"\0")
    path.write_bytes(bytes(data))


def test_gaps_of_edf_d_are_missing_samples_at_their_place(tmp_path, path):
    x = write(path, seconds=20)
    broken_up(path, [i if i < 8 else i + 5.5 for i in range(20)])
    known, root, source = read(tmp_path)
    assert source.seconds["ppg"] == Fraction(51, 2)
    got = load(known, root, source)
    ppg = got.signals["ppg"]
    assert np.array_equal(np.flatnonzero(ppg.missing), np.arange(8 * 128, 13.5 * 128))
    assert np.array_equal(ppg.x_tc[~ppg.missing, 0], x[0])
    cut = segment("n1", got.signals, known.limits, 3600)
    assert cut.refused["ppg"] == {"nan": Fraction(11, 2)}
    spo2 = next(label for label in got.labels if label.name == "spo2")
    assert len(spo2.values) == 20 and np.allclose(spo2.values, x[4] / 10)


@given(st.lists(st.floats(0, 3, width=16), min_size=3, max_size=12))
def test_data_records_never_overlap_and_keep_their_order(gaps):
    onsets = np.arange(len(gaps)) + np.cumsum(gaps)
    for samples in (1, 50, 128):
        starts, length = reader._places(onsets, samples, Fraction(samples))
        assert (np.diff(starts) >= samples).all() and length == starts[-1] + samples
        assert (np.abs(starts - (onsets - onsets[0]) * samples) <= len(gaps)).all()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda d: d[:-100], "truncated"),
        (lambda d: b"", "corrupt"),
        (lambda d: b"not an EDF file" * 100, "corrupt"),
        (lambda d: d[:252] + b"9999" + d[256:], "corrupt"),
        (lambda d: d[:236] + b"99999999" + d[244:], "truncated"),
        (lambda d: b"\xffBIOSEMI" + d[8:], "truncated"),
    ],
)
def test_a_file_that_is_not_whole_or_not_one_is_refused(tmp_path, path, harm, reason):
    write(path)
    path.write_bytes(harm(path.read_bytes()))
    source = read(tmp_path)[2]
    assert source.broken and source.broken[0] == reason
    if reason == "truncated":
        assert source.seconds["ppg"] >= 20


@pytest.mark.parametrize(
    ("onsets", "reason"), [([0, 1, 0.5], "bad_time"), ([0, 1, 1e9], "corrupt"), ([0, 1, "x"], "corrupt")]
)
def test_times_that_run_back_or_far_away_are_refused(tmp_path, path, onsets, reason):
    write(path, seconds=3)
    broken_up(path, onsets)
    assert read(tmp_path)[2].broken[0] == reason


def test_a_missing_channel_another_rate_and_an_unlisted_unit_are_refused(tmp_path, path):
    write(path)
    assert read(tmp_path, TEXT.replace('["Pleth"]', '["SaO2"]'))[2].refused == {"ppg": "missing_channel"}
    assert read(tmp_path, TEXT.replace("rate = 128", "rate = 64"))[2].refused == {"ppg": "bad_rate"}
    unstated = TEXT.replace('source_unit = "au"', "")
    assert read(tmp_path, unstated)[2].refused == {"ppg": "unit_mismatch"}


def test_a_scale_of_nothing_is_refused_and_the_rest_goes_in(tmp_path, path):
    write(path)
    data = path.read_bytes()
    at = 256 + 6 * (16 + 80 + 8)  # the first signal's physical minimum, of five and the annotations
    path.write_bytes(data[:at] + data[at + 48 : at + 56] + data[at + 8 :])
    known, root, source = read(tmp_path)
    assert source.refused == {"ppg": "bad_scale"} and source.seconds["ppg"] == 20
    assert set(load(known, root, source).signals) == {"ecg", "acc"}
