"""Real .vital files (Intellivue at 62.5, 125, 500 Hz, GE at 100 Hz) against the vitaldb package's arrays."""

import gzip
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import vitaldb

from datasets.descriptor import read_descriptor
from datasets.readers import vitaldb as reader
from datasets.readers.base import Root
from tests.datasets import recordings

TEXT = """
name = "theatre"
source = "real files"
licence = "none"
terms = "none"
citation = "none"
access = "open"
reader = "vitaldb"
records = '(?P<record>[^/]+)\\.vital'
id_space = "theatre"
subjects_published = true

[signals.ppg]
channels = ["Intellivue/PLETH", "GE alt/PLETH"]
unit = "au"
source_unit = "au"
units = { au = 1 }
required = true

[signals.ecg]
channels = ["Intellivue/ECG_II"]
unit = "mV"
units = { mV = 1 }

[signals.abp]
channels = ["Intellivue/ABP", "GE alt/IBP1"]
unit = "mmHg"
units = { mmHg = 1 }

[signals.resp]
channels = ["Intellivue/RESP"]
unit = "ohm"
units = { ohm = 1 }
"""
SECONDS = {
    "test_data_demo": {"ppg": 35.072, "ecg": 35.072, "abp": 35.84, "resp": 35.072},
    "test_intelliue_demo2": {"ppg": 218.112, "ecg": 218.112, "abp": 218.112, "resp": 218.112},
    "test_intellivue_demo1": {"ppg": 25.6, "ecg": 25.6, "abp": 25.6},
    "vital_file": {"ppg": 1786.42, "abp": 1786.42},
}


@pytest.fixture
def folder(data):
    folder = data / "formats" / "vital"
    if not folder.is_dir():
        pytest.skip(f"no .vital files at {folder}")
    return folder


def read(tmp_path, root):
    known = read_descriptor(recordings.descriptor(tmp_path, TEXT))
    sources = reader.scan(Root(str(root)), known)
    return {s.record: (s, reader.load(s, Path(root), known)) for s in sources}


def test_every_sample_of_real_files_lies_where_the_package_puts_it(folder, tmp_path):
    found = read(tmp_path, folder)
    assert set(found) == set(SECONDS)
    for record, (source, got) in found.items():
        assert not source.refused and not source.broken and not got.problems and not got.notes
        truth = vitaldb.VitalFile(str(folder / f"{record}.vital"))
        names = {label.name.removesuffix("_channel"): label.values[0] for label in got.labels}
        for m, samples in got.signals.items():
            there = ~samples.missing
            recorded = there.sum() / float(samples.rate)
            assert recorded == pytest.approx(SECONDS[record][m]), (record, m)
            # the package rounds each packet's place up for itself, so that one sample in some hundred is lost
            # to the next packet or comes one place late
            expected = truth.get_track_samples(names[m], 1 / float(samples.rate))
            where = np.flatnonzero(~np.isnan(expected))
            assert 0.95 * there.sum() <= len(where) <= there.sum()
            x = samples.x_tc[:, 0] * samples.scale + samples.offset
            at = where - round((got.origin - truth.dtstart) * float(samples.rate))
            near = [x[np.clip(at + off, 0, len(x) - 1)] - expected[where] for off in (-1, 0, 1)]
            assert np.abs(near).min(axis=0).max() < 1e-4, (record, m)
        assert set(got.signals) == set(SECONDS[record])


def test_a_real_file_with_late_and_repeated_packets_reads_as_before(folder, tmp_path):
    before = read(tmp_path, folder)["vital_file"][1].signals["ppg"]
    (tmp_path / "harmed").mkdir()
    data = gzip.decompress((folder / "vital_file.vital").read_bytes())
    (tmp_path / "harmed/vital_file.vital").write_bytes(gzip.compress(harmed(data)))
    source, got = read(tmp_path, tmp_path / "harmed")["vital_file"]
    after = got.signals["ppg"]
    assert not source.refused and source.seconds["ppg"] == Fraction(len(before.x_tc)) / 100
    assert np.array_equal(after.x_tc, before.x_tc) and np.array_equal(after.missing, before.missing)
    assert any("received twice" in note for note in got.notes)
    assert any("clock up to 0.3 s off" in note for note in got.notes)


def harmed(data):
    """Every 101st record comes 0.3 s late, every 97th is sent twice."""
    at = 10 + int.from_bytes(data[8:10], "little")
    out, number = [data[:at]], 0
    while at < len(data):
        size = 5 + int.from_bytes(data[at + 1 : at + 5], "little")
        packet = bytearray(data[at : at + size])
        at += size
        if packet[0] == 1:
            number += 1
            if number % 101 == 0:
                (time,) = struct.unpack_from("<d", packet, 7)
                struct.pack_into("<d", packet, 7, time + 0.3)
            if number % 97 == 0:
                out.append(packet)
        out.append(packet)
    return b"".join(out)
