"""Headers say what header(5) of WFDB says they say, in any letters."""

import datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import wfdb

from datasets.readers.base import Refused
from datasets.readers.wfdb_header import Header, Line, decoded, parse, read_header

UNITS = ["mV", "a.u.", "n.u.", "mmHg/s", "µV", "μV", "Ω", "%", "degC", "°C", "m/s²", "[1]", "1/min", "cm-H2O"]
NAMES = ["II", "ECG lead II", "Fingerpuls (links)", "Pléth", "Ω-EMG", "12-lead V1", "a 0 b", "Druck/µ"]
NUMBERS = ["200", "1000.0", "1.052e+04", "-19.3447902992", "0.833333", ".5", "3.6E2"]


def test_real_headers_say_what_wfdb_reads_in_them(data: Path) -> None:
    seen = 0
    for path in sorted(data.rglob("*.hea")):
        theirs, ours = wfdb.rdheader(str(path.with_suffix(""))), read_header(path)
        assert ours.fault is None
        assert float(ours.rate or 0) == pytest.approx(theirs.fs, rel=1e-6)
        assert ours.frames == (theirs.sig_len or 0)
        assert ours.comments == theirs.comments
        assert ours.date == theirs.base_date
        if theirs.base_time:
            assert ours.time_s == pytest.approx(
                theirs.base_time.hour * 3600
                + theirs.base_time.minute * 60
                + theirs.base_time.second
                + theirs.base_time.microsecond / 1e6
            )
        if isinstance(theirs, wfdb.MultiRecord):
            assert ours.segments == list(zip(theirs.seg_name, theirs.seg_len, strict=True))
            continue
        for i, line in enumerate(ours.signals):
            said = {name: getattr(theirs, name)[i] for name in ("file_name", "fmt", "adc_gain", "baseline")}
            assert said == {
                "file_name": line.file,
                "fmt": line.fmt,
                "adc_gain": line.gain,
                "baseline": line.baseline,
            }
            assert line.checksum == theirs.checksum[i]
            assert line.unit in (theirs.units[i], "°")  # which wfdb reads as mV
            assert line.per_frame == theirs.samps_per_frame[i]
            assert (line.skew, line.offset) == (theirs.skew[i] or 0, theirs.byte_offset[i] or 0)
            assert line.name == ((theirs.sig_name[i] or "").strip() or f"signal {i}")
            seen += 1
    assert seen > 500


def drawn(rng: np.random.Generator, i: int) -> tuple[str, Line]:
    """A signal line that ends after any of its optional fields, and what it says."""

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high))

    blank = [" ", "\t", "  "][number(0, 3)]
    known: dict = {"file": f"rec_{i}.part.dat", "fmt": "16", "name": f"signal {i}"}
    line = known["file"] + blank + "16"
    for mark, key in (("x", "per_frame"), (":", "skew"), ("+", "offset")):
        if rng.random() < 0.3:
            known[key] = number(1, 9)
            line += f"{mark}{known[key]}"
    if rng.random() < 0.1:
        return line, Line(**known)
    word = str(rng.choice(NUMBERS))
    known["gain"], line = float(word), line + blank + word
    stated = rng.random() < 0.5
    if stated:
        known["baseline"] = number(-3000, 3000)
        line += f"({known['baseline']})"
    if rng.random() < 0.8:
        known["unit"] = str(rng.choice(UNITS))
        line += f"/{known['unit']}"
    last = number(0, 7)
    zero, first = number(-2000, 2000), number(-500, 500)
    words = ["12", str(zero), str(first), str(number(-32768, 32768)), "0", str(rng.choice(NAMES))]
    if last > 1:
        known["initial"] = zero
        if not stated:
            known["baseline"] = zero
    if last > 2:
        known["initial"] = first
    if last > 3:
        known["checksum"] = int(words[3])
    if last > 5:
        known["name"] = words[5]
    return blank.join([line, *words[:last]]), Line(**known)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_drawn_headers_are_read_back_as_they_were_written(encoding: str) -> None:
    rng = np.random.default_rng(len(encoding))
    for _ in range(150):
        lines, signals = zip(*(drawn(rng, i) for i in range(rng.integers(1, 5))), strict=True)
        rate, frames = str(rng.choice(["125", "62.4725", "3.6e2", "250."])), int(rng.integers(0, 9999))
        head = f"rec {len(lines)} {rate}" + str(rng.choice(["", "/24000", "/99.5(-7)"])) + f" {frames}"
        written = ["#wfdb 10.7", "", "# before", head + "\t7:05:09.5  2/11/2026"]
        written += [each for line in lines for each in ("# <age>: 60", "  ", f" {line} ")]
        data = str(rng.choice(["\n", "\r\n"])).join(written).encode(encoding, "replace")
        if encoding == "cp1252" and b"?" in data:
            continue  # not a letter of that encoding
        header = parse(decoded(data))
        assert header.fault is None
        assert (header.rate, header.frames) == (
            Fraction(rate.rstrip(".")).limit_denominator(1000),
            frames,
        )
        assert header.signals == list(signals)
        assert header.comments == ["wfdb 10.7", "before", *["<age>: 60"] * len(lines)]
        assert (header.date, header.time_s) == (datetime.date(2026, 11, 2), 7 * 3600 + 5 * 60 + 9.5)


@pytest.mark.parametrize(
    ("clock", "date", "time_s"),
    [
        ("", None, None),
        ("31:25.894", None, 1885.894),
        ("0:0:0 0/0/0", None, 0.0),
        ("12:00:00 31/02/2024", None, 43200.0),
        ("12:00:00 2024-02-01", None, 43200.0),
        ("99:99:99 01/02/2024", datetime.date(2024, 2, 1), None),
        ("[10:44:18.529 04/05/2704]", datetime.date(2704, 5, 4), 38658.529),
        ("yesterday", None, None),
    ],
)
def test_a_clock_that_cannot_be_read_is_none_and_refuses_nothing(clock, date, time_s) -> None:
    header = parse(f"rec 1 125 10 {clock}\nrec.dat 16 200\n")
    assert header.fault is None and header.frames == 10
    assert header.date == date
    assert header.time_s == (None if time_s is None else pytest.approx(time_s))


def clock(words: str) -> Header:
    return parse(f"rec 1 125 10 {words}\nrec.dat 16\n")


@pytest.mark.parametrize(
    ("one", "other", "seconds"),
    [
        ("8:00:30 02/01/2020", "8:00:00 02/01/2020", 30),
        ("0:00:10 03/01/2020", "23:59:50 02/01/2020", 20),
        ("0:00:10 05/01/2020", "0:00:00 02/01/2020", 3 * 86400 + 10),
        ("0:00:10", "23:59:50 02/01/2020", 20),
        ("23:59:50", "0:00:10", -20),
        ("", "8:00:00", 0),
        ("8:00:00 02/01/2020", "", 0),
    ],
)
def test_two_clocks_say_how_much_later_one_record_begins(one: str, other: str, seconds: float) -> None:
    assert clock(one).after(clock(other)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "\x00\x01 not a header", "rec", "rec two 125 10\n", "rec 1 125 12:30:01\n", "#only a comment\n"],
)
def test_without_a_record_line_a_header_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="corrupt"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rec 2 125 10\nrec.dat 16\n", "2 signals announced, 1 described"),
        ("rec 0 125 10\n", "without signals"),
        ("rec 1 125 10\nrec.dat sixteen\n", "cannot be read"),
        ("rec 1 125 10\nrec.dat 16x0\n", "0 samples a frame"),
        ("rec 1 125 10\nrec.dat 16y4\n", "cannot be read"),
        ("rec 1 125 10\n../rec.dat 16\n", "outside the record's folder"),
        ("rec 1 125 10\n/etc/rec.dat 16\n", "outside the record's folder"),
        ("rec/2 1 125 10\na 5\n", "2 segments announced, 1 described"),
        ("rec/1 1 125 10\na five\n", "without a length"),
        ("rec/1 1 125 10\n../a 10\n", "outside the record's folder"),
    ],
)
def test_what_is_wrong_below_the_record_line_leaves_rate_and_length_known(text: str, words: str) -> None:
    header = parse(text)
    assert (header.rate, header.frames) == (125, 10)
    assert header.fault is not None and words in header.fault.detail


def test_lines_beyond_the_promised_ones_are_not_read() -> None:
    assert len(parse("rec 1 125 10\nrec.dat 16\nanything else\n").signals) == 1
    assert parse("rec/1 1 125 10\na 10\nb 20\n").segments == [("a", 10)]


@pytest.mark.parametrize("word", ["ECG", "12,5/mV", "200(1.5)/mV", "nan/mV"])
def test_a_gain_that_is_no_number_is_kept_in_its_words(word: str) -> None:
    (line,) = parse(f"rec 1 125 10\nrec.dat 16 {word} 12\n").signals
    assert line.bad_scale == word


def test_a_gain_that_is_left_out_or_zero_is_none_and_its_unit_is_millivolt_by_default() -> None:
    for word in ("", "0", "0/mV", "/mV", "0.0(5)"):
        (line,) = parse(f"rec 1 125 10\nrec.dat 16 {word}\n").signals
        assert (line.gain, line.unit, line.bad_scale) == (0.0, "mV", "")
