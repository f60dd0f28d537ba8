"""Mutated headers and signal files: no crash, no hang, no absurd allocation, and every hour in the ledger.

60 mutations a format by default; `-m slow` runs 1,000 of WFDB and 300 of each other format.
"""

import functools
import gzip
import shutil
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from cluster.errors import PlethoraError
from datasets import ingest
from datasets.ingest import read_descriptor
from datasets.readers import READERS
from datasets.readers.base import Root
from tests.datasets import (
    edf_files,
    recordings,
    test_mat,
    test_vitaldb,
    test_wfdb_segments,
)
from tests.datasets.recordings import waves, write_record

SPO2 = edf_files.signal("SpO2", 1, "0", "100", "0", "1000", unit="%")
NIGHT = (
    edf_files.TEXT
    + '\n[signals.ppg]\nchannels = ["Pleth"]\nunit = "au"\nunits = { au = 1 }\nsource_unit = "au"\n'
    + '\n[numerics.channels]\nSpO2 = { name = "spo2", unit = "%" }\n'
)
MOST_BYTES = 256 * 2**20  # no source below is larger than 200 kB


def single(folder):
    write_record(folder, 1, "ann", {"PLETH": waves(10, 100, 1), "ABP": waves(10, 100, 2)})
    return recordings.DESCRIPTOR


def segments(folder):
    test_wfdb_segments.mimic(folder)
    return test_wfdb_segments.MIMIC


def flac(folder):
    test_wfdb_segments.mimic(folder, fmt="516")
    return test_wfdb_segments.MIMIC


def edf(folder):
    night(folder, "EDF+C", [0, 1, 2, 3, 4])
    return NIGHT


def edf_d(folder):
    night(folder, "EDF+D", [0, 1, 2, 7, 8])
    return NIGHT


def night(folder, reserved, onsets):
    """Five data records that begin at `onsets`, with an annotation in the second."""
    tals = [b"+%d\x14\x14\0" % onset + (b"+1\x152\x14N2\x14\0" if onset == 1 else b"") for onset in onsets]
    signals = [edf_files.signal("Pleth", 128, "-10", "30", unit=""), edf_files.signal(rate=256), SPO2]
    edf_files.write(folder / "n1.edf", signals, 5, tals=tals, reserved=reserved)


def mat5(folder):
    savemat(folder / "m1.mat", test_mat.content())
    return test_mat.TEXT


def mat73(folder):
    test_mat.hdf5(folder / "m1.mat", test_mat.content())
    return test_mat.TEXT


def vital(folder):
    test_vitaldb.write(folder / "1.vital")
    return test_vitaldb.TEXT


@functools.cache
def template(make):
    """A sound source of one record, and its descriptor; made once."""
    place = Path(tempfile.mkdtemp(prefix="plethora-fuzz-"))
    (place / "root").mkdir()
    text = make(place / "root")
    return read_descriptor(recordings.descriptor(place, text)), place / "root"


@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    for make in (single, segments, flac, edf, edf_d, mat5, mat73, vital):
        shutil.rmtree(template(make)[1].parent, ignore_errors=True)
    template.cache_clear()


# ---------------------------------------------------------------- mutations

WORDS = [
    "0",
    "-1",
    "1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e-400",
    "999999999999",
    "2147483648",
    "",
    "~",
    "../x",
]
WORDS += ["16x3", "16:5", "16+99999999999", "212", "310", "80", "8", "516", "1e-9(7)/mmHg", "r1/9", "é", "\0"]
index = st.integers(0, 2**20)
mutation = st.one_of(
    st.tuples(st.just("word"), index, st.one_of(st.sampled_from(WORDS), st.text(max_size=8))),
    st.tuples(st.just("number"), index, st.integers(-(10**13), 10**13).map(str)),
    st.tuples(st.just("flip"), index, st.integers(1, 255)),
    st.tuples(st.just("cut"), index, st.just(0)),
    st.tuples(st.just("drop"), index, st.integers(1, 400)),
    st.tuples(st.just("repeat"), index, st.integers(1, 400)),
    st.tuples(st.just("line"), index, st.integers(0, 1)),
    st.tuples(st.just("gone"), index, st.just(0)),
)
mutations = st.lists(st.tuples(index, mutation), min_size=1, max_size=3)


def harm(data, kind, at, how):
    """`data` with one mutation; None: the file is gone."""
    if kind == "gone":
        return None
    if kind in ("word", "number"):
        text = data[:4096].decode("latin-1")
        words = [(i, w) for i, w in enumerate(text.replace("\n", " \n ").split(" ")) if w.strip()]
        if not words:
            return data
        place, word = words[at % len(words)]
        parts = text.replace("\n", " \n ").split(" ")
        # binary headers have fixed columns: keep the length there
        binary = b"\0" in data or len(data) > 5000
        parts[place] = how[: len(word)].ljust(len(word)) if binary else how
        code = "latin-1" if binary else "utf-8"
        return " ".join(parts).replace(" \n ", "\n").encode(code, "replace")[:8192] + data[4096:]
    at %= len(data) + 1
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ how]) + data[at + 1 :] if at < len(data) else data
    if kind == "cut":
        return data[:at]
    if kind == "drop":
        return data[:at] + data[at + how :]
    if kind == "repeat":
        return data[:at] + data[at : at + how] + data[at:]
    lines = data.split(b"\n")
    one = lines.pop(at % len(lines))
    return b"\n".join([*lines, one] if how else lines)


def mutated(path, kind, at, how):
    """The file's bytes with one mutation; a compressed file's, every other time, below its checksum."""
    if not path.exists():
        return None
    data = path.read_bytes()
    if path.suffix != ".vital" or at % 4 == 0 or data[:2] != b"\x1f\x8b":
        return harm(data, kind, at // 4, how)
    try:
        data = harm(gzip.decompress(data), kind, at // 4, how)
    except (OSError, EOFError, zlib.error):
        return data
    return None if data is None else gzip.compress(data, 1)


def survives(make, harms):
    """Mutate the template, ingest it in this process, and account for every second that was promised."""
    known, sound = template(make)
    with tempfile.TemporaryDirectory() as place:
        root, out = Path(place) / "root", Path(place) / "out"
        shutil.copytree(sound, root)
        names = sorted(p for p in root.rglob("*") if p.is_file())
        for which, (kind, at, how) in harms:
            path = names[which % len(names)]
            data = mutated(path, kind, at, how)
            if data is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(data)
        tracemalloc.start()
        try:
            sources = READERS[known.reader].scan(Root(str(root)), known)
        except PlethoraError as clear:  # the one header is gone: there is nothing to ingest
            assert "\n" not in str(clear)
            return
        else:
            task = ingest.Task(0, tuple((source, "ann") for source in sources))
            report = ingest._work(str(root), str(out), known, task, lambda: None)
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        finally:
            tracemalloc.stop()
        assert report.records_in == len(sources) == 1
        for m in {m for source in sources for m in source.seconds}:
            promised = sum(float(source.seconds[m]) for source in sources)
            refused = sum(report.refused.get(m, {}).values())
            assert np.isfinite(promised) and promised >= 0
            assert report.seconds_in[m] == pytest.approx(promised, rel=1e-12)
            assert report.kept.get(m, 0) + refused == pytest.approx(promised, rel=1e-9, abs=1e-9)
        broken = [source for source in sources if source.broken]
        assert len(report.problems) >= len(broken)
        assert not any("\n" in problem["detail"] for problem in report.problems)


def fuzzed(count, **more):
    calm = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=20_000, suppress_health_check=calm, database=None, **more)


FORMATS = [single, segments, flac, edf, edf_d, mat5, mat73, vital]


@pytest.mark.parametrize("make", FORMATS)
@fuzzed(12, derandomize=True)
@given(harms=mutations)
def test_a_mutated_source_is_kept_or_refused_to_the_second(make, harms):
    survives(make, harms)


@pytest.mark.slow
@pytest.mark.parametrize("make", [single, segments])
@fuzzed(1000)
@given(harms=mutations)
def test_a_thousand_mutated_wfdb_sources(make, harms):
    survives(make, harms)


@pytest.mark.slow
@pytest.mark.parametrize("make", FORMATS[2:])
@fuzzed(300)
@given(harms=mutations)
def test_hundreds_of_mutated_sources(make, harms):
    survives(make, harms)


@pytest.mark.parametrize("make", FORMATS)
def test_the_templates_themselves_are_sound(make):
    known, root = template(make)
    (source,) = READERS[known.reader].scan(Root(str(root)), known)
    assert source.broken is None and not source.refused and len(source.seconds) >= 2
    survives(make, [])
