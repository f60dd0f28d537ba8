"""DICOM waveforms that pydicom writes, and the ECG that it ships."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import recordings
from tests.datasets.edf_files import TEXT
from tests.datasets.recordings import waves

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
reader = pytest.importorskip("datasets.readers.dicom")
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402

ABP = '\n[signals.abp]\nchannels = ["Arterial"]\nunit = "mmHg"\nunits = { mmHg = 1 }\n'
DESCRIPTOR = TEXT.replace('"edf"', '"dicom"').replace("[eb]df", "dcm").replace('["ECG"]', '["II"]')


def channel(code, scheme="MDC", meaning="a lead", unit="uV", **more):
    source, units, found = Dataset(), Dataset(), Dataset()
    source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = code, scheme, meaning
    units.CodeValue, units.CodingSchemeDesignator = unit, "UCUM"
    found.ChannelSourceSequence = [source]
    found.ChannelSensitivity, found.ChannelSensitivityUnitsSequence = "2.5", [units]
    for name, value in more.items():
        setattr(found, name, value)
    return found


def group(x, rate, channels, kind=(16, "SS"), **more):
    found = Dataset()
    found.SamplingFrequency = str(rate)
    found.NumberOfWaveformSamples, found.NumberOfWaveformChannels = x.shape
    found.WaveformBitsAllocated, found.WaveformSampleInterpretation = kind
    found.ChannelDefinitionSequence = channels
    found.WaveformData = x.tobytes()
    for name, value in more.items():
        setattr(found, name, value)
    return found


def save(path, groups, syntax=pydicom.uid.ExplicitVRLittleEndian, **more):
    data = FileDataset(str(path), {}, file_meta=FileMetaDataset(), preamble=bytes(128))
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.9.1.1", "1.2.3"
    data.AcquisitionDateTime = "20210302221530.250000+0100"
    data.PatientSex = "F"
    if groups:
        data.WaveformSequence = groups
    for name, value in more.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def ecg(seconds=10, rate=500, dtype="<i2"):
    return np.stack([waves(seconds, rate, n) for n in (1, 2)], axis=1).astype(dtype)


USE = recordings.Use(reader, DESCRIPTOR)
scan, load, path = USE.one, USE.sound, recordings.path_of("n1.dcm")
LEADS = [channel("2:1"), channel("2:2", ChannelSensitivityCorrectionFactor="1.02", ChannelBaseline="30")]


@pytest.mark.parametrize(
    "syntax",
    [
        pydicom.uid.ExplicitVRLittleEndian,
        pydicom.uid.ImplicitVRLittleEndian,
        pydicom.uid.DeflatedExplicitVRLittleEndian,
    ],
)
def test_samples_keep_their_sensitivity_correction_and_baseline(tmp_path, path, syntax):
    x = ecg()
    save(path, [group(x, 500, LEADS)], syntax)
    fields = '\n[[fields]]\nname = "sex"\nvariable = "PatientSex"\ntext = true\n'
    got = load(tmp_path, DESCRIPTOR + fields)
    found = got.signals["ecg"]
    assert np.array_equal(found.x_tc[:, 0], x[:, 1]) and found.rate == 500
    assert np.allclose(found.x_tc[:, 0] * found.scale + found.offset, (x[:, 1] * 2.5 * 1.02 + 30) / 1000)
    assert got.origin == datetime(2021, 3, 2, 22, 15, 30, 250000, tzinfo=UTC).timestamp()
    assert {label.name: label.values for label in got.labels} == {"ecg_channel": ["II"], "sex": ["F"]}


def test_leads_are_known_by_either_code(tmp_path, path):
    leads = [channel("5.6.3-9-63", "SCPECG"), channel("5.6.3-9-8", "SCPECG")]
    save(path, [group(ecg(), 500, leads)])
    assert "the file has '1.1 (aVL)', '1.2 (V6)'" in scan(tmp_path)[2].words["ecg"]


def test_groups_of_other_rates_and_starts_lie_on_one_clock(tmp_path, path):
    x, y = ecg(), waves(10, 125, 5)[:, None].astype("<i2")
    pressure = [channel("109016", "SCPECG", "Arterial", "mm[Hg]")]
    save(
        path,
        [
            group(x, 500, LEADS, MultiplexGroupTimeOffset="2000"),
            group(y, 125, pressure, MultiplexGroupTimeOffset="1500"),
        ],
    )
    got = load(tmp_path, DESCRIPTOR + ABP)
    found, abp = got.signals["ecg"], got.signals["abp"]
    assert np.flatnonzero(found.missing).tolist() == list(range(250)) and not abp.missing.any()
    assert np.array_equal(found.x_tc[250:, 0], x[:, 1]) and np.array_equal(abp.x_tc, y)
    assert got.origin == datetime(2021, 3, 2, 22, 15, 31, 750000, tzinfo=UTC).timestamp()


def test_median_beats_do_not_stand_in_for_the_rhythm(tmp_path, path):
    x = ecg()
    beats = group(ecg(1), 500, LEADS, WaveformOriginality="DERIVED", MultiplexGroupLabel="MEDIAN BEAT")
    save(path, [group(x, 500, LEADS, WaveformOriginality="ORIGINAL"), beats])
    assert np.array_equal(load(tmp_path).signals["ecg"].x_tc[:, 0], x[:, 1])
    named = load(tmp_path, DESCRIPTOR.replace('["II"]', '["MEDIAN BEAT II"]'))
    assert len(named.signals["ecg"].x_tc) == 500


@pytest.mark.parametrize(("kind", "dtype"), [((16, "SS"), "<i2"), ((16, "US"), "<u2"), ((8, "UB"), "<u1")])
def test_the_padding_value_is_missing(tmp_path, path, kind, dtype):
    x = np.abs(ecg()).astype(dtype)
    pad = x[7, 1:2]
    save(path, [group(x, 500, LEADS, kind, WaveformPaddingValue=pad.tobytes().ljust(2, b"\0"))])
    found = load(tmp_path).signals["ecg"]
    assert np.array_equal(found.missing, x[:, 1] == pad[0]) and found.missing.any()


def test_what_cannot_be_read_is_named(tmp_path, path):
    save(path, [group(np.abs(ecg()).astype("<u1"), 500, LEADS, (8, "MB"))])
    assert scan(tmp_path)[2].broken[0] == "unsupported" and "MB" in scan(tmp_path)[2].broken[1]
    save(path, [group(ecg(), 500, LEADS, NumberOfWaveformSamples=6000)])
    source = scan(tmp_path)[2]
    assert source.broken[0] == "truncated" and source.seconds["ecg"] == 12
    save(path, [], Modality="MR")
    assert "without a waveform" in scan(tmp_path)[2].broken[1]
    save(path, [group(ecg(), 500, [channel("2:1"), channel("2:2", ChannelSampleSkew="3")])])
    assert "lags" in scan(tmp_path)[2].words["ecg"]
    leads = [channel("2:1"), channel("2:2")]
    del leads[1].ChannelSensitivity
    save(path, [group(ecg(), 500, leads)])
    assert scan(tmp_path)[2].refused == {"ecg": "bad_scale"}
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert scan(tmp_path)[2].broken[0] in ("corrupt", "truncated")
    path.write_bytes(b"\x93NUMPY" + bytes(300))
    assert "NumPy array" in scan(tmp_path)[2].broken[1]


def test_the_ecg_that_pydicom_ships_has_its_values(tmp_path, path):
    file = Path(pydicom.__file__).parent / "data" / "test_files" / "waveform_ecg.dcm"
    if not file.is_file():
        pytest.skip("pydicom ships no ECG")
    shutil.copy(file, path)
    truth = pydicom.dcmread(file).waveform_array(0)  # in the file's unit, µV
    got = load(tmp_path, DESCRIPTOR.replace('["II"]', '[["I", "II", "V6"]]'))
    found = got.signals["ecg"]
    assert np.allclose(found.x_tc * found.scale + found.offset, truth[:, [0, 1, 11]] / 1000)
    assert found.rate == 1000 and got.origin == datetime(2013, 1, 25, 10, 59, 19, tzinfo=UTC).timestamp()
