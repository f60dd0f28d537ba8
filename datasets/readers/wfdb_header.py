"""WFDB header files, read as header(5) of WFDB 10.7 describes them.

A line consists of words separated by blanks. A unit is any word; a description is the rest of its line.
Neither need be ASCII.
"""

import datetime
import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from datasets.readers.base import Refused, fraction

UNCALIBRATED = "adu"  # the unit of a signal whose gain is 0 or missing: the converter's counts
DAY_S = 86_400

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BLANK = re.compile(r"[ \t]+")
_RATE = re.compile(rf"({_NUMBER})(?:/|$)")
_SCALE = re.compile(rf"(?P<gain>{_NUMBER})?(?:\((?P<baseline>[-+]?\d{{1,18}})\))?(?:/(?P<unit>.*))?")
_MODIFIER = re.compile(r"([x:+])(\d{1,18})")
_COUNT = r"[ \t]+(?P<{}>[-+]?\d{{1,18}})(?![^ \t])"
_SIGNAL = re.compile(
    r"(?P<file>[^ \t]+)[ \t]+(?P<fmt>\d+)(?P<modifiers>[^ \t]*)(?:[ \t]+(?P<scale>[^ \t]+)"
    + "".join("(?:" + _COUNT.format(name) for name in ("bits", "zero", "initial", "checksum", "block"))
    + ")?" * 6
    + r"(?P<name>.*)"
)


@dataclass(frozen=True)
class Line:
    """One signal of a header. `name`: its description, "signal 0" if it has none.

    `per_frame`: samples in a frame. `skew`: samples of the file before the record's first. `offset`: bytes
    of the file before them (compressed files: samples). physical = (sample - baseline) / gain in `unit`;
    `gain` 0: uncalibrated; `bad_scale`: the words of a gain that cannot be read. `initial`: where differences
    start. `checksum`: None: not stated.
    """

    file: str
    fmt: str
    name: str
    per_frame: int = 1
    skew: int = 0
    offset: int = 0
    gain: float = 0.0
    baseline: int = 0
    unit: str = "mV"
    initial: int = 0
    checksum: int | None = None
    bad_scale: str = ""


@dataclass
class Header:
    """`rate`: frames per second (None: not stated), `frames`: how many (0: not stated).

    `date` and `time_s`, seconds since midnight: of frame 0, None if not stated or invalid.
    `segments`: (name, frames) of each; None: it has none. `fault`: the error below the first line.
    """

    rate: Fraction | None
    frames: int
    date: datetime.date | None = None
    time_s: float | None = None
    comments: list[str] = field(default_factory=list)
    signals: list[Line] = field(default_factory=list)
    segments: list[tuple[str, int]] | None = None
    text: str = ""
    fault: Refused | None = None

    @property
    def origin(self) -> float | None:
        """Seconds from 1970 to frame 0, as if the record's clock were in UTC; None: no date and time."""
        if self.date is None or self.time_s is None:
            return None
        return (self.date - datetime.date(1970, 1, 1)).days * DAY_S + self.time_s

    def after(self, other: "Header") -> float:
        """Seconds from the other's frame 0 to this one's, by their clocks; 0 if either has none.

        If a date is missing, they are assumed to begin less than 12 hours apart.
        """
        if self.time_s is None or other.time_s is None:
            return 0.0
        if self.origin is not None and other.origin is not None:
            return self.origin - other.origin
        return (self.time_s - other.time_s + DAY_S / 2) % DAY_S - DAY_S / 2


def decoded(data: bytes) -> str:
    """A text file's content: UTF-8, else Windows' Western encoding; line ends are newlines."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_header(path: Path) -> Header:
    """The header at `path`. Raises Refused if it is missing or its first line cannot be read."""
    try:
        return parse(decoded(path.read_bytes()))
    except FileNotFoundError as error:
        raise Refused("missing_file", f"{path.name} does not exist") from error
    except OSError as error:
        raise Refused("corrupt", f"unreadable header ({error.strerror})") from error


def parse(text: str) -> Header:
    """The header in `text`. Raises Refused if its first line cannot be read."""
    lines, comments = [], []
    for line in (each.strip() for each in text.split("\n")):
        if line.startswith("#"):
            comments.append(line.strip(" \t#"))
        elif line:
            lines.append(line)
    if not lines:
        raise Refused("corrupt", "an empty header")
    first = _BLANK.split(lines[0])
    if len(first) < 2 or not re.fullmatch(r"\d{1,6}", first[1]):
        raise Refused("corrupt", f"no record line: {lines[0][:60]!r}")
    if len(first) > 3 and not re.fullmatch(r"\d{1,18}", first[3]):
        raise Refused("corrupt", f"a number of samples of {first[3][:40]!r} in the record line")
    stated = _RATE.match(first[2]) if len(first) > 2 else None
    header = Header(
        fraction(float(stated.group(1))) if stated else None,
        int(first[3]) if len(first) > 3 else 0,
        _date(first[5]) if len(first) > 5 else None,
        _time(first[4]) if len(first) > 4 else None,
        comments,
        text=text,
    )
    segments = re.fullmatch(r".*/0*([1-9]\d{0,8})", first[0])
    count, what = (int(segments[1]), "segments") if segments else (int(first[1]), "signals")
    header.segments = [] if segments else None
    try:
        for i, line in enumerate(lines[1 : count + 1]):
            if header.segments is not None:
                header.segments.append(_segment(line))
            else:
                header.signals.append(_signal(line, i))
        if len(lines) - 1 < count:
            raise Refused("corrupt", f"{count} {what} announced, {len(lines) - 1} described")
        if not count:
            raise Refused("corrupt", "a header without signals")
    except Refused as why:
        header.fault = why
    return header


def _segment(line: str) -> tuple[str, int]:
    words = _BLANK.split(line)
    if len(words) < 2 or not re.fullmatch(r"\d{1,18}", words[1]):
        raise Refused("corrupt", f"a segment without a length: {line[:60]!r}")
    return _inside(words[0]), int(words[1])


def _inside(name: str) -> str:
    """A file's or segment's name, refused if it leads out of the record's folder."""
    if name.startswith("/") or ".." in name.split("/"):
        raise Refused("corrupt", f"{name[:60]!r} lies outside the record's folder")
    return name


def _signal(line: str, i: int) -> Line:
    found = _SIGNAL.fullmatch(line)
    modifiers = dict(_MODIFIER.findall(found["modifiers"])) if found else {}
    if not found or "".join(f"{k}{v}" for k, v in modifiers.items()) != found["modifiers"]:
        raise Refused("corrupt", f"a signal line that cannot be read: {line[:60]!r}")
    per_frame = int(modifiers.get("x", 1))
    if not 0 < per_frame < 10**9:
        raise Refused("corrupt", f"{per_frame} samples a frame")
    word, zero = found["scale"] or "", int(found["zero"] or 0)
    scale = _SCALE.fullmatch(word)
    return Line(
        _inside(found["file"]),
        found["fmt"],
        found["name"].strip() or f"signal {i}",
        per_frame,
        int(modifiers.get(":", 0)),
        int(modifiers.get("+", 0)),
        float(scale["gain"] or 0) if scale else 0.0,
        int(scale["baseline"]) if scale and scale["baseline"] else zero,
        (scale["unit"] if scale else None) or "mV",
        int(found["initial"] or zero),
        int(found["checksum"]) if found["checksum"] else None,
        "" if scale else word,
    )


def _time(word: str) -> float | None:
    """Seconds since midnight of `H:M:S`, `M:S` or `S`; None if it is not a time."""
    parts = word.strip("[]").split(":")
    if len(parts) > 3 or not all(re.fullmatch(r"\d{1,6}(\.\d*)?", part) for part in parts):
        return None
    seconds = sum(float(part) * 60**i for i, part in enumerate(reversed(parts)))
    return seconds if seconds < DAY_S else None


def _date(word: str) -> datetime.date | None:
    """The day of `DD/MM/YYYY`; None if it is not a date."""
    found = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})\]?", word)
    try:
        return datetime.date(*(int(n) for n in reversed(found.groups()))) if found else None
    except ValueError:
        return None
