"""ISHNE Holter ECGs, written byte by byte, and a real one."""

import binascii
import struct
from datetime import UTC, datetime

import numpy as np
import pytest

from datasets.readers import ishne as reader
from tests.datasets import recordings
from tests.datasets.edf_files import TEXT
from tests.datasets.recordings import waves

DESCRIPTOR = TEXT.replace('"edf"', '"ishne"').replace("[eb]df", "ecg").replace('["ECG"]', '["II"]')
USE = recordings.Use(reader, DESCRIPTOR)
scan, load, path = USE.one, USE.sound, recordings.path_of("n1.ecg")


def write(path, rate=180, leads=(5, 6), resolution=(2441, 5000), counted="lead", checksum=None, tail=b""):
    """Returns the integers (samples, leads)."""
    x = np.stack([waves(20, rate, n) for n in range(len(leads))], axis=1)
    head = bytearray(522)
    head[:8] = reader.MAGIC
    extra = b"some words"
    size = {"lead": len(x), "all": x.size}.get(counted, counted)
    struct.pack_into("<4i", head, 10, len(extra), size, 522, 522 + len(extra))
    struct.pack_into("<3h", head, 138, 9, 8, 2019)
    struct.pack_into("<3h", head, 150, 10, 5, 7)
    struct.pack_into("<h", head, 156, len(leads))
    struct.pack_into(f"<{len(leads)}h", head, 158, *leads)
    struct.pack_into(f"<{len(leads)}h", head, 206, *resolution)
    struct.pack_into("<h", head, 272, rate)
    body = bytes(head[10:]) + extra
    struct.pack_into("<H", head, 8, binascii.crc_hqx(body, 0xFFFF) if checksum is None else checksum)
    path.write_bytes(bytes(head) + extra + x.astype("<i2").tobytes() + tail)
    return x


@pytest.mark.parametrize("counted", ["lead", "all"])
def test_samples_are_the_files_integers_at_its_resolution_however_it_counts(tmp_path, path, counted):
    x = write(path, counted=counted)
    got = load(tmp_path)
    ecg = got.signals["ecg"]
    assert np.array_equal(ecg.x_tc[:, 0], x[:, 1]) and ecg.x_tc.dtype == np.int16
    assert ecg.scale == pytest.approx(0.005) and (ecg.unit, ecg.rate) == ("mV", 180)
    assert got.origin == datetime(2019, 8, 9, 10, 5, 7, tzinfo=UTC).timestamp() and not got.problems


def test_leads_are_named_by_number_where_several_are_the_same(tmp_path, path):
    x = write(path, leads=(1, 1))
    text = DESCRIPTOR.replace('["II"]', '["generic"]')
    source = scan(tmp_path, text)[2]
    assert source.refused == {"ecg": "missing_channel"} and "1 or 2" in source.words["ecg"]
    assert "'1 (generic)', '2 (generic)'" in scan(tmp_path)[2].words["ecg"]
    ecg = load(tmp_path, DESCRIPTOR.replace('["II"]', '["2"]')).signals["ecg"]
    assert np.array_equal(ecg.x_tc[:, 0], x[:, 1])


def test_a_checksum_that_does_not_hold_and_samples_that_are_not_counted_are_said(tmp_path, path):
    x = write(path, counted=1000, checksum=7)
    got = load(tmp_path)
    assert np.array_equal(got.signals["ecg"].x_tc[:, 0], x[:, 1])
    assert "checksum" in got.problems[0] and "counts 1,000 samples a lead" in got.problems[1]


def test_what_is_cut_off_or_makes_no_sense_is_refused(tmp_path, path):
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[:-500])
    source = scan(tmp_path)[2]
    assert source.broken[0] == "truncated" and source.seconds["ecg"] == 20
    write(path, resolution=(0, 0))
    assert scan(tmp_path)[2].refused == {"ecg": "bad_scale"}
    for wrong in (data[:300], b"", data[:272] + b"\xff\xff" + data[274:], data[:156] + b"\0\0" + data[158:]):
        path.write_bytes(wrong)
        assert scan(tmp_path)[2].broken[0] == "corrupt"
    path.write_bytes(b"0       " + bytes(900))
    reason, words = scan(tmp_path)[2].broken
    assert reason == "unsupported" and 'reader = "edf"' in words


def test_a_real_holter_is_read_whole(tmp_path, path, data):
    file = data / "formats" / "holter" / "holter.ecg"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    content = file.read_bytes()
    path.write_bytes(content)
    got = load(tmp_path, DESCRIPTOR.replace('["II"]', '["3"]'))
    ecg = got.signals["ecg"]
    truth = np.frombuffer(content[522:], "<i2").reshape(-1, 3)[:, 2]
    assert np.array_equal(ecg.x_tc[:, 0], truth) and ecg.scale == pytest.approx(2441e-6)
    assert not got.problems and got.origin == datetime(2019, 8, 9, 10, 5, 0, tzinfo=UTC).timestamp()
