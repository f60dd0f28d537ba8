"""Real .vital files (Intellivue at 62.5, 125, 500 Hz, GE at 100 Hz) packet by packet."""

import gzip
import math
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import vitaldb

from datasets.ingest import read_descriptor
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


LETTERS = {5: "h", 6: "H"}  # struct's letter of each sample format in these files


def decoded(path):
    """The waveforms of a .vital file, packet by packet: {track: (rate, gain, offset, [(time, integers)])}."""
    data = gzip.decompress(path.read_bytes())

    def text(at):
        (size,) = struct.unpack_from("<I", data, at)
        return data[at + 4 : at + 4 + size].decode(), at + 4 + size

    at = 10 + struct.unpack_from("<H", data, 8)[0]
    devices, tracks, found = {}, {}, {}
    while at < len(data):
        kind, size = struct.unpack_from("<BI", data, at)
        body = at + 5
        at = body + size
        if kind == 9:  # a device: number, type, name
            devices[struct.unpack_from("<I", data, body)[0]] = text(text(body + 4)[1])[0]
        elif kind == 0 and data[body + 2] == 1:  # a track that is a waveform
            number, _, form = struct.unpack_from("<HBB", data, body)
            name, after = text(body + 4)
            _, after = text(after)  # its unit
            _, _, _, rate, gain, offset, _, device = struct.unpack_from("<ffIfddBI", data, after)
            tracks[number] = name = f"{devices[device]}/{name}"
            found[name] = (rate, gain, offset, form, [])
        elif kind == 1 and (number := struct.unpack_from("<H", data, body + 10)[0]) in tracks:
            *_, form, packets = found[tracks[number]]
            (time,) = struct.unpack_from("<d", data, body + 2)
            (count,) = struct.unpack_from("<I", data, body + 12)
            packets.append((time, struct.unpack_from(f"<{count}{LETTERS[form]}", data, body + 16)))
    return {name: (rate, gain, offset, packets) for name, (rate, gain, offset, _, packets) in found.items()}


def nearest(time, start, rate):
    return math.floor((time - start) * rate + 0.5)


def channels(recording):
    return {label.name.removesuffix("_channel"): label.values[0] for label in recording.labels}


@pytest.mark.parametrize("lost", [0, 7, 40])
def test_every_sample_of_real_files_lies_where_its_own_packet_says(folder, tmp_path, lost):
    (tmp_path / "in").mkdir()
    for file in folder.glob("*.vital"):
        data = gzip.decompress(file.read_bytes())
        (tmp_path / "in" / file.name).write_bytes(gzip.compress(thinned(data, lost) if lost else data))
    found = read(tmp_path, tmp_path / "in")
    assert set(found) == set(SECONDS)
    for record, (source, got) in found.items():
        assert not source.refused and not source.broken and not got.problems and not got.notes
        assert set(got.signals) == set(SECONDS[record])
        truth, names = decoded(tmp_path / "in" / f"{record}.vital"), channels(got)
        start = min(truth[name][3][0][0] for name in names.values())
        assert got.origin == pytest.approx(start, abs=1e-6, rel=0)
        for m, samples in got.signals.items():
            rate, gain, offset, packets = truth[names[m]]
            expected = {}
            for time, integers in packets:
                for i, x in enumerate(integers, nearest(time, start, rate)):
                    assert i not in expected  # packets are regular: none claims another one's time
                    expected[i] = x
            assert lost or len(expected) == round(SECONDS[record][m] * rate)
            there = np.array(sorted(expected))
            assert np.array_equal(np.flatnonzero(~samples.missing), there), (record, m)
            assert len(samples.x_tc) == there[-1] + 1
            assert samples.x_tc[there, 0].tolist() == [expected[i] for i in there.tolist()], (record, m)
            assert (float(samples.rate), samples.scale, samples.offset) == (rate, gain, offset)


def test_every_packet_that_the_package_puts_on_its_nearest_place_has_the_packages_values(folder, tmp_path):
    compared = {}
    for record, (_, got) in read(tmp_path, folder).items():
        truth = vitaldb.VitalFile(str(folder / f"{record}.vital"))
        for m, samples in got.signals.items():
            name, rate = channels(got)[m], float(samples.rate)
            expected = truth.get_track_samples(name, 1 / rate)
            x = np.where(samples.missing, np.nan, samples.x_tc[:, 0] * samples.scale + samples.offset)
            right = []
            for packet in truth.trks[name].recs:
                place = (packet["dt"] - truth.dtstart) * rate
                # the package rounds up: a clock that is a hair above a place puts its packet one place late
                right.append(math.ceil(place) == math.floor(place + 0.5))
                if right[-1]:
                    theirs, n = math.ceil(place), len(packet["val"])
                    ours = nearest(packet["dt"], got.origin, rate)
                    assert np.allclose(x[ours : ours + n], expected[theirs : theirs + n], rtol=0, atol=1e-4)
            compared[rate] = min(compared.get(rate, 1), np.mean(right))
    assert set(compared) == {62.5, 100, 125, 500}
    assert min(compared.values()) >= 0.5 and compared[100] > 0.999


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


def records(data):
    """The file's bytes up to its first packet, then each packet: (its bytes, which record it is or None)."""
    at = 10 + int.from_bytes(data[8:10], "little")
    yield bytearray(data[:at]), None
    number = 0
    while at < len(data):
        size = 5 + int.from_bytes(data[at + 1 : at + 5], "little")
        number += data[at] == 1
        yield bytearray(data[at : at + size]), number if data[at] == 1 else None
        at += size


def thinned(data, every):
    """Without every `every`th record."""
    return b"".join(packet for packet, number in records(data) if number is None or number % every)


def harmed(data):
    """Every 101st record comes 0.3 s late, every 97th is sent twice."""
    out = []
    for packet, number in records(data):
        if number and number % 101 == 0:
            (time,) = struct.unpack_from("<d", packet, 7)
            struct.pack_into("<d", packet, 7, time + 0.3)
        out += [packet] * (2 if number and number % 97 == 0 else 1)
    return b"".join(out)
