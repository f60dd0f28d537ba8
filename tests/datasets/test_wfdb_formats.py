"""Other people's WFDB records: formats 8 to 524, segments, skews, no lengths; and what befalls a header."""

from pathlib import Path

import numpy as np
import pytest
import wfdb

from datasets.readers import wfdb as reader
from datasets.readers.base import RecordFile, Refused
from datasets.readers.wfdb_layout import Layout, read_layout
from tests.datasets import recordings
from tests.datasets.recordings import waves

HEAD = recordings.DESCRIPTOR.split("[subject]")[0].replace(r"r(?P<n>\d+)", "a")
ECG = '[signals.ecg]\nchannels = ["II"]\nunit = "mV"\nunits = { mV = 1, V = 1000, uV = 0.001 }\nrate = 100\n'
ABP = '[signals.abp]\nchannels = ["ABP"]\nunit = "mmHg"\nunits = { mmHg = 1 }\n'
PPG = '[signals.ppg]\nchannels = ["PLETH"]\nunit = "au"\nunits = { NU = 1, adu = 1 }\nmissing = [77]\n'


@pytest.fixture
def formats(data: Path) -> Path:
    return data / "formats" / "wfdb"


def read(folder: Path, name: str) -> tuple[Layout, dict[tuple[int, int], np.ndarray]]:
    """Samples of every channel by (piece's first frame, channel): physical values, NaN where missing."""
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    layout = read_layout(name, lambda _: folder, sizes)
    if layout.broken:
        raise layout.broken
    found = {}
    for piece in layout.pieces:
        lines = piece.header.signals
        channels = reader._read(folder, layout, piece, list(range(len(lines))))
        for i, (line, channel) in enumerate(zip(lines, channels, strict=True)):
            x = (np.asarray(channel.x, float) - line.baseline) / line.gain
            found[piece.start, i] = np.where(channel.missing, np.nan, x)
    return layout, found


UNREAD = {  # published without their signal files, or parts of others
    "missing_file": "1003 12726 drive02 drive02-no-len n16 n8_evoked_raw_95_F1_R9 wave_4 "
    "p000878-2137-10-26-16-57 s00001-2896-10-10-00-31 3975656_0009 3975656_0010 3975656_0011",
    "unsupported": "3269321_layout 3248903_layout 3975656_layout 3234460_layout",
}


def test_every_real_record_is_read_as_wfdb_reads_it_or_refused_in_one_line(formats: Path) -> None:
    refused: dict[str, list[str]] = {}
    count = 0
    for path in sorted(formats.rglob("*.hea")):
        try:
            layout, found = read(formats, str(path.relative_to(formats)))
        except Refused as why:
            assert "\n" not in why.detail and len(why.detail) < 200
            refused.setdefault(why.reason, []).append(path.stem)
            continue
        for piece in layout.pieces:
            theirs = wfdb.rdrecord(str(formats / piece.stem), smooth_frames=False)
            for i in range(len(piece.header.signals)):
                np.testing.assert_array_equal(found[piece.start, i], theirs.e_p_signal[i], str(path))
                count += 1
    assert {reason: sorted(names) for reason, names in refused.items()} == {
        reason: sorted(names.split()) for reason, names in UNREAD.items()
    }
    assert count > 200


def test_a_skew_takes_the_first_samples_away_and_leaves_as_many_missing(formats: Path) -> None:
    for skewed, plain, channel, skew in (
        ("100skew.hea", "100.hea", 1, 3),
        ("test01_00s_skew.hea", "test01_00s.hea", 1, 3),
        ("test01_00s_skewframe.hea", "test01_00s_frame.hea", 0, 3),
    ):
        moved, there = read(formats, skewed)[1], read(formats, plain)[1]
        np.testing.assert_array_equal(moved[0, channel][:-skew], there[0, channel][skew:])
        assert np.isnan(moved[0, channel][-skew:]).all()
        np.testing.assert_array_equal(moved[0, 1 - channel], there[0, 1 - channel])


def test_a_header_without_a_length_gives_what_the_one_with_it_gives(formats: Path) -> None:
    for name in ("100", "a103l"):
        (short, found), (full, expected) = read(formats, f"{name}-no-len.hea"), read(formats, f"{name}.hea")
        assert short.frames == full.frames and found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_annotations_count_at_the_rate_of_the_record_or_their_own(formats: Path, tmp_path: Path) -> None:
    from datasets.descriptor import Events
    from datasets.readers.given import _annotations

    expected = wfdb.rdann(str(formats / "100"), "atr").sample / 360
    for head in ("100 2 3.6e2 650000 0:0:0 0/0/0", "100 2 360 650000 12:00:00 31/02/2020"):
        (tmp_path / "100.hea").write_text(head + "\n100.dat 212 200/µV\n100.dat 212\n")
        (tmp_path / "100.atr").write_bytes((formats / "100.atr").read_bytes())
        at, _ = _annotations(Events(name="beat", file="100.atr"), tmp_path / "100.atr")
        np.testing.assert_allclose(at, expected)
    (tmp_path / "100.hea").unlink()
    with pytest.raises(Refused, match="bad_rate"):
        _annotations(Events(name="beat", file="100.atr"), tmp_path / "100.atr")


# ---------------------------------------------------------------- records made here


def checksum(x: np.ndarray) -> int:
    return int(np.int64(x.sum()).astype(np.int16))


def write(
    folder: Path,
    name: str,
    lines: list[str],
    x: dict[str, np.ndarray],
    rate: str = "100",
    clock: str = "",
    length: str | None = None,
) -> None:
    """A record of format 16, a file a channel; `{c}` in a line: its checksum, `{f}`: its first sample."""
    (folder / "root").mkdir(exist_ok=True)
    for title, values in x.items():
        values.astype("<i2").tofile(folder / "root" / f"{name}_{title}.dat")
    n = len(next(iter(x.values()))) if length is None else length
    filled = [line.format(c=checksum(v), f=v[0]) for line, v in zip(lines, x.values(), strict=True)]
    text = "\n".join([f"{name} {len(lines)} {rate} {n} {clock}", *filled]) + "\n"
    (folder / "root" / f"{name}.hea").write_text(text, encoding="utf-8")


def scan(folder: Path, text: str) -> tuple[RecordFile, reader.Recording | None]:
    use = recordings.Use(reader, HEAD + text)
    known, root, source = use.one(folder)
    return source, None if source.broken else use.load(known, root, source)


def physical(recording: reader.Recording | None, modality: str) -> np.ndarray:
    assert recording is not None
    s = recording.signals[modality]
    return np.where(s.missing, np.nan, s.x_tc[:, 0] * s.scale + s.offset)


X, Y = waves(10, 100, 1), waves(10, 100, 2)


@pytest.mark.parametrize("said", ["µV", "μV", "uV"])
@pytest.mark.parametrize("listed", ["µV", "μV", "uV"])
def test_microvolts_are_microvolts_whatever_sign_is_written(tmp_path: Path, said: str, listed: str) -> None:
    write(tmp_path, "a", [f"a_II.dat 16 2/{said} 16 0 {{f}} {{c}} 0 II"], {"II": X})
    _, got = scan(tmp_path, ECG.replace("uV", f'"{listed}"'))
    np.testing.assert_allclose(physical(got, "ecg"), X / 2 * 0.001)


@pytest.mark.parametrize("unit", ["Ω", "a.u.", "mmHg/s", "°C", "[mV]", "mV²"])
def test_a_unit_that_is_not_listed_is_refused_as_what_it_is(tmp_path: Path, unit: str) -> None:
    write(tmp_path, "a", [f"a_II.dat 16 200/{unit} 16 0 {{f}} {{c}} 0 II"], {"II": X})
    source, _ = scan(tmp_path, ECG)
    assert source.refused == {"ecg": "unit_mismatch"}
    assert f"the file's unit is {unit!r}" in source.words["ecg"]
    assert source.seconds == {"ecg": 10}


@pytest.mark.parametrize("unit", ["a.u.", "n.u.", "mmHg/s", "Ω", "%"])
def test_a_listed_unit_of_any_letters_is_taken(tmp_path: Path, unit: str) -> None:
    write(tmp_path, "a", [f"a_P.dat 16 50(-3)/{unit} 16 0 {{f}} {{c}} 0 PLETH"], {"P": X})
    source, got = scan(tmp_path, PPG.replace("NU", f'"{unit}"'))
    assert source.refused == {}
    np.testing.assert_allclose(physical(got, "ppg"), (X + 3) / 50)


def test_a_western_encoding_and_names_of_any_letters_are_read(tmp_path: Path) -> None:
    write(tmp_path, "a", ["a_II.dat 16 2/µV 16 0 {f} {c} 0 Brustwand größer"], {"II": X})
    header = tmp_path / "root" / "a.hea"
    header.write_bytes(header.read_text(encoding="utf-8").encode("cp1252"))
    _, got = scan(tmp_path, ECG.replace('"II"', '"Brustwand größer"'))
    np.testing.assert_allclose(physical(got, "ecg"), X / 2 * 0.001)


@pytest.mark.parametrize("scale", ["0/mmHg", "0", "", "0(12)/mmHg"])
def test_counts_of_an_uncalibrated_signal_are_no_pressure(tmp_path: Path, scale: str) -> None:
    line = f"a_ABP.dat 16 {scale} 16 0 {{f}} {{c}} 0 ABP" if scale else "a_ABP.dat 16"
    text = ABP if scale else ABP.replace('"ABP"', '"signal 0"')
    write(tmp_path, "a", [line], {"ABP": X})
    source, got = scan(tmp_path, text)
    assert source.refused == {"abp": "bad_scale"} and source.seconds == {"abp": 10}
    assert "uncalibrated" in source.words["abp"] and "'adu'" in source.words["abp"]
    assert got is not None and not got.signals


def test_counts_are_taken_where_the_descriptor_lists_them(tmp_path: Path) -> None:
    write(tmp_path, "a", ["a_P.dat 16 0(12)/NU 16 5 {f} {c} 0 PLETH"], {"P": X})
    _, got = scan(tmp_path, PPG.replace("[77]", f"[{X[77]}]"))
    np.testing.assert_array_equal(physical(got, "ppg"), np.where(X[77] == X, np.nan, X))


def test_an_uncalibrated_number_is_no_label_and_a_problem(tmp_path: Path) -> None:
    write(tmp_path, "a", ["a_II.dat 16 200/mV 16 0 {f} {c} 0 II"], {"II": X})
    write(tmp_path, "n", ["n_HR.dat 16 0/bpm 16 0 {f} {c} 0 HR"], {"HR": X[:10]}, rate="1")
    text = ECG + NUMERICS
    got = scan(tmp_path, text)[1]
    assert got is not None and "hr" not in {label.name for label in got.labels}
    assert got.problems == ["numerics n: HR has a gain of 0"]


NUMERICS = '[numerics]\nrecord = "n"\nchannels = { HR = { name = "hr", unit = "bpm" } }\n'


@pytest.mark.parametrize("word", ["ECG", "1e400/mV", "2,5/mV"])
def test_a_gain_that_cannot_be_read_refuses_its_channel_alone(tmp_path: Path, word: str) -> None:
    lines = [f"a_II.dat 16 {word} 16 0 {{f}} {{c}} 0 II", "a_A.dat 16 10/mmHg 16 0 {f} {c} 0 ABP"]
    write(tmp_path, "a", lines, {"II": X, "A": Y})
    source, got = scan(tmp_path, ECG + ABP)
    stated = "inf" if word.startswith("1e400") else repr(word)
    assert source.refused == {"ecg": "bad_scale"} and f"a gain of {stated}" in source.words["ecg"]
    np.testing.assert_allclose(physical(got, "abp"), Y / 10)


def test_a_skewed_channel_of_several_samples_a_frame_moves_by_its_own_samples(tmp_path: Path) -> None:
    x, y = waves(10, 400, 3), waves(10, 100, 4)
    frames = np.concatenate([x.reshape(-1, 4), y[:, None]], axis=1).ravel()
    write(tmp_path, "a", ["a_F.dat 16"], {"F": frames}, length="1000")
    (tmp_path / "root" / "a.hea").write_text(
        f"a 2 100 1000\na_F.dat 16x4:8 10/mV 16 0 0 {checksum(x)} 0 II\n"
        f"a_F.dat 16:5 10/mmHg 16 0 0 {checksum(y)} 0 ABP\n"
    )
    _, got = scan(tmp_path, ECG.replace("rate = 100", "rate = 400") + ABP)
    for modality, values, skew in (("ecg", x, 8), ("abp", y, 5)):
        found = physical(got, modality)
        np.testing.assert_allclose(found[:-skew], values[skew:] / 10)
        assert np.isnan(found[-skew:]).all() and len(found) == len(values)


@pytest.mark.parametrize(
    ("length", "sums", "whole"),
    [("", "0", True), ("0", "0", True), ("0", "{c}", True), ("0", "7", True), ("1000", "7", False)],
)
def test_a_checksum_is_compared_where_the_length_is_stated(
    tmp_path: Path, length: str, sums: str, whole: bool
) -> None:
    write(tmp_path, "a", [f"a_II.dat 16 200/mV 16 0 {{f}} {sums} 0 II"], {"II": X}, length=length)
    if whole:
        assert len(physical(scan(tmp_path, ECG)[1], "ecg")) == 1000
    else:
        with pytest.raises(Refused, match="corrupt: the checksum of channel II"):
            scan(tmp_path, ECG)


def test_differences_begin_at_the_adc_zero_where_no_first_value_is_stated(tmp_path: Path) -> None:
    steps = np.clip(np.diff(X, prepend=X[0]) // 8, -127, 127)
    write(tmp_path, "a", ["a_II.dat 8 10/mV 12 1024"], {"II": X})
    steps.astype("i1").tofile(tmp_path / "root" / "a_II.dat")
    _, got = scan(tmp_path, ECG.replace('"II"', '"signal 0"'))
    np.testing.assert_allclose(physical(got, "ecg"), np.cumsum(steps) / 10)


def test_a_missing_file_refuses_only_what_is_in_it(tmp_path: Path) -> None:
    lines = ["a_II.dat 16 200/mV 16 0 {f} {c} 0 II", "a_A.dat 16 10/mmHg 16 0 {f} {c} 0 ABP"]
    lines.append("a_X.dat 16 10/mmHg 16 0 {f} {c} 0 CVP")
    write(tmp_path, "a", lines, {"II": X, "A": Y, "X": Y})
    (tmp_path / "root" / "a_X.dat").unlink()
    source, got = scan(tmp_path, ECG + ABP)
    assert not source.refused and got is not None and set(got.signals) == {"ecg", "abp"}
    (tmp_path / "root" / "a_A.dat").write_bytes(b"12")
    source, got = scan(tmp_path, ECG + ABP)
    assert source.refused == {"abp": "truncated"} and source.seconds == {"ecg": 10, "abp": 10}
    assert "a_A.dat has 2 bytes" in source.words["abp"]
    assert got is not None and set(got.signals) == {"ecg"}


def test_a_header_that_breaks_off_counts_the_hours_that_it_states(tmp_path: Path) -> None:
    write(tmp_path, "a", ["a_II.dat 16 200/mV 16 0 {f} {c} 0 II"], {"II": X})
    header = tmp_path / "root" / "a.hea"
    header.write_text(header.read_text().replace("a 1 100", "a 2 100"))
    source, _ = scan(tmp_path, ECG)
    assert source.broken == ("corrupt", "2 signals announced, 1 described")
    assert source.seconds == {"ecg": 10}


def test_what_a_record_lacks_is_said_beside_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, "a", ["a_II.dat 16 200/mV 16 0 {f} {c} 0 Ableitung 2"], {"II": X})
    source, _ = scan(tmp_path, ECG + "required = true\n")
    assert source.refused == {"ecg": "missing_channel"}
    assert "the file has 'Ableitung 2'" in source.words["ecg"]


def test_units_that_differ_between_segments_are_all_named(tmp_path: Path) -> None:
    for name, unit in (("s1", "mV"), ("s2", "kV"), ("s3", "MV")):
        write(tmp_path, name, [f"{name}_II.dat 16 200/{unit} 16 0 {{f}} {{c}} 0 II"], {"II": X})
    (tmp_path / "root" / "a.hea").write_text("a/4 1 100 3000\ns1 1000\ns2 1000\ns9 0\ns3 1000\n")
    source, _ = scan(tmp_path, ECG)
    assert source.refused == {"ecg": "unit_mismatch"} and "'kV, MV'" in source.words["ecg"]


def test_rates_that_differ_between_segments_are_both_named(tmp_path: Path) -> None:
    write(tmp_path, "s1", ["s1_II.dat 16 200/mV 16 0 {f} {c} 0 II"], {"II": X})
    write(tmp_path, "s2", ["s2_II.dat 16x2 200/mV 16 0 {f} {c} 0 II"], {"II": X}, length="500")
    (tmp_path / "root" / "a.hea").write_text("a/2 1 100 1500\ns1 1000\ns2 500\n")
    source, _ = scan(tmp_path, ECG)
    assert source.refused == {"ecg": "bad_rate"} and "100 and 200 Hz" in source.words["ecg"]
    assert source.seconds == {"ecg": 15}


def test_signals_of_one_file_that_do_not_stand_together_are_refused(tmp_path: Path) -> None:
    pressure = f"a_A.dat 16 10/mmHg 16 0 0 {checksum(Y[:500])} 0 ABP"
    lines = ["a_F.dat 16 200/mV 16 0 0 0 0 II", pressure, "a_F.dat 16"]
    write(tmp_path, "a", lines, {"F": X, "A": Y, "B": Y}, length="500")
    source, _ = scan(tmp_path, ECG + ABP)
    assert source.refused == {"ecg": "corrupt"} and "are not contiguous" in source.words["ecg"]


def test_the_record_says_when_it_began(tmp_path: Path) -> None:
    write(tmp_path, "a", ["a_II.dat 16 200/mV"], {"II": X}, clock="00:00:30.25 02/01/1970")
    _, got = scan(tmp_path, ECG.replace('"II"', '"signal 0"'))
    assert got is not None and got.origin == 86430.25


@pytest.mark.parametrize(
    ("waves_at", "numbers_at", "starts"),
    [
        ("10:00:00 01/02/2020", "10:00:04 01/02/2020", [4, 5, 6]),
        ("23:59:58 01/02/2020", "0:00:01.5 02/02/2020", [3.5, 4.5, 5.5]),
        ("10:00:02 01/02/2020", "10:00:00 01/02/2020", [0]),
        ("10:00:02", "10:00:01.5 01/02/2020", [-0.5, 0.5, 1.5]),
        ("", "10:00:04 01/02/2020", [0, 1, 2]),
        ("10:00:00 01/02/2020", "10:00:00 31/02/2020", [0, 1, 2]),
    ],
)
def test_numbers_lie_where_their_own_clock_says(
    tmp_path: Path, waves_at: str, numbers_at: str, starts: list[float]
) -> None:
    write(tmp_path, "a", ["a_II.dat 16 200/mV"], {"II": X}, clock=waves_at)
    beats = np.array([70, 71, 72])
    write(tmp_path, "n", ["n_HR.dat 16 1/bpm 16 0 70 {c} 0 HR"], {"HR": beats}, "1", numbers_at)
    got = scan(tmp_path, ECG.replace('"II"', '"signal 0"') + NUMERICS)[1]
    assert got is not None
    hr = next(label for label in got.labels if label.name == "hr")
    assert hr.start_s is not None and hr.end_s is not None
    np.testing.assert_allclose(hr.start_s, starts)
    np.testing.assert_allclose(hr.end_s - hr.start_s, 1)
    assert list(hr.values) == list(beats[len(beats) - len(starts) :])


def test_numbers_of_another_time_are_a_problem(tmp_path: Path) -> None:
    write(tmp_path, "a", ["a_II.dat 16 200/mV"], {"II": X}, clock="10:00:00 01/02/2020")
    line = "n_HR.dat 16 1/bpm 16 0 70 {c} 0 HR"
    write(tmp_path, "n", [line], {"HR": X[:3]}, "1", "10:00:00 02/02/2020")
    got = scan(tmp_path, ECG.replace('"II"', '"signal 0"') + NUMERICS)[1]
    assert got is not None and got.problems == ["numerics n: by their clock, HR lies outside the waveforms"]
