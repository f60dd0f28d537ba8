"""Multi-segment and compressed WFDB records, and roots that are neither folders nor buckets."""

from fractions import Fraction

import fsspec
import numpy as np
import pytest
import wfdb

from cluster.errors import PlethoraError
from datasets.ingest import ingest, read_descriptor
from datasets.readers import wfdb as reader
from datasets.readers.base import Refused, Root
from datasets.segment import segment
from tests.datasets import recordings
from tests.datasets.recordings import DESCRIPTOR, waves

RATE = 125
MIMIC = (
    DESCRIPTOR.split("[subject]")[0].replace(
        "'(?P<record>r(?P<n>\\d+))\\.hea'",
        "'p\\d\\d/(?P<subject>p\\d{6})/(?P<record>p\\d{6}-[-\\d]{16})\\.hea'",
    )
    + """
[subject]
pattern = '^(p\\d+)'

[signals.ppg]
channels = ["PLETH"]
rate = 125
unit = "au"
units = { NU = 1 }

[signals.ecg]
channels = ["II", "V"]
rate = 125
unit = "mV"
units = { mV = 1, uV = 1e-3 }
"""
)
NAME = "p000020-2183-04-28-17-47"


def piece(home, title, x, units, gain=None, fmt="80"):
    gain = gain or {}
    wfdb.wrsamp(
        title,
        fs=RATE,
        units=[units[name] for name in x],
        sig_name=list(x),
        d_signal=np.stack(list(x.values()), axis=1),
        fmt=[fmt] * len(x),
        adc_gain=[gain.get(name, 50.0) for name in x],
        baseline=[3] * len(x),
        write_dir=str(home),
    )


def small(seconds, seed):
    return np.rint(waves(seconds, RATE, seed) / 40).astype(np.int64)


UNITS = {"PLETH": "NU", "II": "mV", "V": "mV"}


def mimic(root, gain=None, fmt="80"):
    """PLETH and II, then nothing, then PLETH and V, then PLETH alone: 20 + 6 + 30 + 10 s."""
    home = root / "p00" / "p000020"
    home.mkdir(parents=True)
    piece(home, "3544749_0001", {"PLETH": small(20, 1), "II": small(20, 2)}, UNITS, fmt=fmt)
    piece(home, "3544749_0002", {"V": small(30, 3), "PLETH": small(30, 4)}, UNITS, gain, fmt)
    piece(home, "3544749_0003", {"PLETH": small(10, 5)}, UNITS, fmt=fmt)
    layout = [f"~ 0 50/{UNITS[name]} 8 0 0 0 0 {name}" for name in ("II", "V", "PLETH")]
    (home / "3544749_layout.hea").write_text("\n".join(["3544749_layout 3 125 0", *layout]) + "\n")
    lines = [f"{NAME}/5 3 125 {66 * RATE} 17:47:00 28/04/2183", "3544749_layout 0"]
    lines += [f"3544749_0001 {20 * RATE}", f"~ {6 * RATE}"]
    lines += [f"3544749_0002 {30 * RATE}", f"3544749_0003 {10 * RATE}"]
    (home / f"{NAME}.hea").write_text("\n".join(lines) + "\n")
    return home


USE = recordings.Use(reader, MIMIC)
read, load = USE.one, USE.load


def physical(samples):
    return np.where(samples.missing, np.nan, samples.x_tc[:, 0] * samples.scale + samples.offset)


@pytest.mark.parametrize("gain", [None, {"PLETH": 80.0}])
def test_segments_lie_at_their_place_and_null_ones_are_missing(tmp_path, gain):
    home = mimic(tmp_path / "root", gain)
    known, root, source = read(tmp_path)
    assert (source.record, source.subject, source.broken) == (NAME, "p000020", None)
    assert source.seconds == {"ppg": Fraction(66), "ecg": Fraction(66)}
    got = load(known, root, source)
    truth = wfdb.rdrecord(str(home / NAME))
    for m, channel in (("ppg", "PLETH"), ("ecg", "V")):  # V covers more of the record than II
        expected = truth.p_signal[:, truth.sig_name.index(channel)]
        assert np.allclose(physical(got.signals[m]), expected, equal_nan=True, rtol=1e-12, atol=1e-12)
    assert np.issubdtype(got.signals["ppg"].x_tc.dtype, np.integer) == (gain is None)
    assert {label.name: label.values for label in got.labels} == {
        "ppg_channel": ["PLETH"],
        "ecg_channel": ["V"],
    }


def test_hours_of_null_segments_and_absent_channels_are_refused_as_missing(tmp_path):
    mimic(tmp_path / "root")
    known, root, source = read(tmp_path)
    cut = segment(source.record, load(known, root, source).signals, known.limits, 3600)
    assert cut.seconds_in == {"ppg": 66, "ecg": 66}
    assert cut.refused == {"ppg": {"nan": 6}, "ecg": {"nan": 36}}
    assert ("ppg", 20, 6, "nan") in cut.rejects


def test_a_fixed_layout_record_is_its_segments_one_after_another(tmp_path):
    home = tmp_path / "root" / "p00" / "p000020"
    home.mkdir(parents=True)
    for n in (1, 2):
        piece(home, f"s{n}", {"PLETH": small(10, n), "II": small(10, 5 + n)}, UNITS)
    (home / f"{NAME}.hea").write_text(f"{NAME}/2 2 125 {20 * RATE}\ns1 {10 * RATE}\ns2 {10 * RATE}\n")
    known, root, source = read(tmp_path)
    got = load(known, root, source)
    truth = wfdb.rdrecord(str(home / NAME))
    assert np.allclose(physical(got.signals["ppg"]), truth.p_signal[:, 0])
    assert np.allclose(physical(got.signals["ecg"]), truth.p_signal[:, 1])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda home: (home / "3544749_0002.dat").write_bytes(b"12"), "truncated"),
        (lambda home: (home / "3544749_0002.dat").unlink(), "missing_file"),
        (lambda home: (home / "3544749_0003.hea").unlink(), "missing_file"),
        (lambda home: edit(home / f"{NAME}.hea", f"~ {6 * RATE}", "~ 999999999999"), "corrupt"),
        (lambda home: edit(home / f"{NAME}.hea", f"_0003 {10 * RATE}", "_0003 7"), "corrupt"),
        (lambda home: edit(home / "3544749_0002.hea", " 125 ", " 250 "), "corrupt"),
    ],
)
def test_a_broken_segment_refuses_the_record_with_the_hours_that_it_promised(tmp_path, harm, reason):
    harm(mimic(tmp_path / "root"))
    source = read(tmp_path)[2]
    assert source.broken and source.broken[0] == reason
    assert source.seconds["ppg"] >= 66


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_segments_of_other_units_refuse_the_modality(tmp_path):
    home = mimic(tmp_path / "root")
    edit(home / "3544749_0003.hea", "/NU", "/V")
    known, root, source = read(tmp_path)
    assert source.refused == {"ppg": "unit_mismatch"}
    assert set(load(known, root, source).signals) == {"ecg"}


@pytest.mark.parametrize("fmt", ["508", "516", "524"])
def test_flac_signals_are_the_integers_that_went_in(tmp_path, fmt):
    x = small(20, 1) * (300 if fmt == "524" else 1)
    home = tmp_path / "root" / "p00" / "p000020"
    home.mkdir(parents=True)
    piece(home, NAME, {"PLETH": x, "II": small(20, 2)}, UNITS, fmt=fmt)
    known, root, source = read(tmp_path)
    assert np.array_equal(load(known, root, source).signals["ppg"].x_tc[:, 0], x)
    edit(home / f"{NAME}.hea", f" {20 * RATE}\n", f" {30 * RATE}\n")
    known, root, source = read(tmp_path)
    assert source.seconds["ppg"] == 30
    with pytest.raises(Refused, match=r"truncated: .* 2,500 samples, the header promises 3,750"):
        load(known, root, source)


def test_three_channels_of_one_modality_travel_together(tmp_path):
    text = DESCRIPTOR + (
        '[signals.acc]\nchannels = [["ACCX", "ACCY", "ACCZ"]]\nunit = "g"\nunits = { g = 1 }\n'
    )
    axes = {f"ACC{axis}": waves(10, 100, seed) for seed, axis in enumerate("XYZ")}
    units = dict.fromkeys(axes, "g")
    recordings.write_record(tmp_path / "root", 1, "ann", {"PLETH": waves(10, 100, 9), **axes}, units=units)
    known, root, source = read(tmp_path, text)
    acc = load(known, root, source).signals["acc"]
    assert np.array_equal(acc.x_tc, np.stack(list(axes.values()), axis=1))
    row = segment("r1", {"acc": acc}, known.limits, 3600).rows[0]
    assert row["acc_channels"] == 3
    assert np.array_equal(np.frombuffer(row["acc"], "<i2").reshape(-1, 3), acc.x_tc)


@pytest.fixture
def memory(tmp_path):
    mimic(tmp_path / "root")
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "root"), "/archive/mimic", recursive=True)
    yield "memory://archive/mimic"
    fs.rm("/archive", recursive=True)


def test_any_fsspec_root_is_read_like_a_folder(tmp_path, memory):
    known = read_descriptor(recordings.descriptor(tmp_path, MIMIC))
    local, far = Root(str(tmp_path / "root")), Root(memory)
    assert far.sizes == local.sizes
    assert reader.scan(far, known) == reader.scan(local, known)


def test_a_corpus_from_an_fsspec_root_is_that_of_the_folder(tmp_path, memory, monkeypatch):
    from datasets import jobs

    run = jobs.run
    monkeypatch.setattr(jobs, "run", lambda work, tasks, label, n: run(work, tasks, label, n, True))
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")
    known = recordings.descriptor(tmp_path, MIMIC)
    made = [
        ingest(known, str(root), str(tmp_path / out))
        for root, out in ((memory, "a"), (tmp_path / "root", "b"))
    ]
    assert made[0]["hash"] == made[1]["hash"]
    assert made[0]["hours_refused"]["ecg"] == pytest.approx(36 / 3600)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("memory://nowhere", "holds no files"),
        ("floppy://a", "fsspec cannot open it"),
        ("https://ann:secret@example.org/x", "must not hold a user"),
    ],
)
def test_a_root_that_cannot_be_read_is_one_line(uri, words):
    with pytest.raises(PlethoraError, match=words) as caught:
        Root(uri)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_web_folder_is_a_root(tmp_path):
    import functools
    import http.server
    import threading

    mimic(tmp_path / "root")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(tmp_path / "root"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        known = read_descriptor(recordings.descriptor(tmp_path, MIMIC))
        far = Root(f"http://127.0.0.1:{server.server_port}")
        assert far.sizes == Root(str(tmp_path / "root")).sizes
        (source,) = reader.scan(far, known)
        folder = far.fetch([name for name, _ in source.files], tmp_path / "copy")
        assert len(reader.load(source, folder, known).signals) == 2
        server.shutdown()
    with pytest.raises(PlethoraError, match="cannot be read"):
        far.read(source.files[0][0])


def test_numerics_in_files_of_another_name_and_in_segments_are_labels_at_their_time(tmp_path):
    home = mimic(tmp_path / "root")
    for part, beats in enumerate(([70, 71], [80, 81, 82])):
        wfdb.wrsamp(
            f"3544749n_{part}",
            fs=1,
            units=["bpm"],
            sig_name=["HR"],
            p_signal=np.array(beats, float)[:, None],
            fmt=["16"],
            write_dir=str(home),
        )
    lines = [f"{NAME}n/3 1 1 9", "3544749n_0 2", "~ 4", "3544749n_1 3"]
    (home / f"{NAME}n.hea").write_text("\n".join(lines) + "\n")
    text = MIMIC + '\n[numerics]\nrecord = "{record}n"\nchannels = { HR = { name = "hr", unit = "bpm" } }\n'
    known, root, source = read(tmp_path, text)
    assert {f"p00/p000020/3544749n_{i}.dat" for i in (0, 1)} <= {name for name, _ in source.files}
    far = Root.reopen(root.uri, [name for name, _ in source.files])
    hr = next(label for label in load(known, far, source).labels if label.name == "hr")
    assert hr.start_s.tolist() == [0, 1, 6, 7, 8] and hr.end_s.tolist() == [1, 2, 7, 8, 9]
    assert np.allclose(hr.values, [70, 71, 80, 81, 82], atol=0.01)
