"""BDF: 24-bit samples, as int32, against pyedflib and on real files."""

import shutil
from datetime import UTC

import numpy as np
import pytest

from tests.datasets import recordings
from tests.datasets.edf_files import TEXT, load, scan, signal, write

LIMITS = ("-8388608", "8388607")
path = recordings.path_of("n1.bdf")


def test_samples_are_the_integers_of_the_file_up_to_both_ends(tmp_path, path):
    (x,) = write(path, [signal(low="-400", high="400", least=LIMITS[0], most=LIMITS[1])], kind="BDF")
    data = bytearray(path.read_bytes())
    ends = np.array([-(2**23), 2**23 - 1, -1, 0, 1, -256, 255, 65536])
    data[512 : 512 + 24] = ends.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    path.write_bytes(bytes(data))
    x[:8] = ends
    ecg = load(tmp_path).signals["ecg"]
    assert ecg.x_tc.dtype == np.int32 and np.array_equal(ecg.x_tc[:, 0], x)
    assert np.allclose(ecg.x_tc[:, 0] * ecg.scale + ecg.offset, (x + 2**23) * (800 / (2**24 - 1)) - 400)


def test_limits_beyond_16_bits_are_bdfs_alone(tmp_path, path):
    write(path.with_suffix(".edf"), [signal(least=LIMITS[0], most=LIMITS[1])])
    assert scan(tmp_path)[2].refused == {"ecg": "bad_scale"}


def test_gaps_and_annotations_are_those_of_edf(tmp_path, path):
    tals = [b"+%d\x14\x14\0" % (i + 2 * (i > 4)) for i in range(10)]
    tals[2] += b"+2.5\x151\x14\xc3\xa9veil\x14\0"
    status = signal("Status", 100, *LIMITS, *LIMITS, unit="")
    (x, _) = write(
        path, [signal(least="-8388608", most="8388607"), status], kind="BDF", tals=tals, reserved="BDF+D"
    )
    got = load(tmp_path)
    ecg = got.signals["ecg"]
    assert np.flatnonzero(ecg.missing).tolist() == list(range(500, 700))
    assert np.array_equal(ecg.x_tc[~ecg.missing, 0], x)
    (notes,) = [label for label in got.labels if label.name == "note"]
    assert (notes.values, notes.start_s.tolist(), notes.end_s.tolist()) == (["éveil"], [2.5], [3.5])


def test_a_file_cut_off_is_refused_with_its_hours(tmp_path, path):
    write(path, [signal(least=LIMITS[0], most=LIMITS[1])], kind="BDF")
    path.write_bytes(path.read_bytes()[:-1])
    source = scan(tmp_path)[2]
    assert source.broken[0] == "truncated" and source.seconds["ecg"] == 10


@pytest.mark.parametrize("seed", range(3))
def test_drawn_files_of_pyedflib_hold_the_integers_it_wrote(tmp_path, path, seed):
    pyedflib = pytest.importorskip("pyedflib", reason="pyedflib has no wheel for this Python")
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**23), 2**23, 1000).astype(np.int32)
    head = {"label": "ECG", "dimension": "uV", "sample_frequency": 100, "transducer": "", "prefilter": ""}
    head |= {"physical_min": -300, "physical_max": 262}
    head |= {"digital_min": -(2**23), "digital_max": 2**23 - 1}
    with pyedflib.EdfWriter(str(path), 1, pyedflib.FILETYPE_BDFPLUS) as file:
        file.setSignalHeaders([head])
        file.writeSamples([x], digital=True)
    with pyedflib.EdfReader(str(path)) as truth:
        expected = truth.readSignal(0)
    ecg = load(tmp_path).signals["ecg"]
    assert np.array_equal(ecg.x_tc[:, 0], x)
    assert np.allclose(1000 * (ecg.x_tc[:, 0] * ecg.scale + ecg.offset), expected)


@pytest.mark.parametrize(
    "name",
    [
        "test_generator.bdf",
        "test_generator_datarec_generator_0_5.bdf",
        "test_generator_datarec_generator_2.bdf",
        "test_generator.edf",
        "test_subsecond.edf",
        "test_utf8.edf",
    ],
)
def test_real_files_have_the_integers_and_annotations_of_pyedflib(tmp_path, path, data, name):
    pyedflib = pytest.importorskip("pyedflib", reason="pyedflib has no wheel for this Python")
    file = data / "formats" / "edf" / name
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    shutil.copy(file, path)
    with pyedflib.EdfReader(str(file)) as truth:
        labels = truth.getSignalLabels()
        unit = truth.getPhysicalDimension(0)
        for i in (0, len(labels) - 1):
            text = TEXT.replace('["ECG"]', f'["{labels[i]}"]').replace("uV = 1e-3", f"{unit} = 1")
            got = load(tmp_path, text)
            ecg = got.signals["ecg"]
            assert np.array_equal(ecg.x_tc[:, 0], truth.readSignal(i, digital=True))
            assert np.allclose(ecg.x_tc[:, 0] * ecg.scale + ecg.offset, truth.readSignal(i))
            assert ecg.rate == pytest.approx(truth.getSampleFrequency(i))
        starts, _, words = truth.readAnnotations()
        notes = [label for label in got.labels if label.name == "note"]
        assert (notes[0].values if notes else []) == list(words)
        assert np.allclose(notes[0].start_s if notes else [], starts)
        begin = truth.getStartdatetime().replace(microsecond=0, tzinfo=UTC).timestamp()
        # pyedflib: parts of a second in units of 100 ns
        assert got.origin == pytest.approx(begin + truth.starttime_subsecond / 1e7, abs=1e-6)
