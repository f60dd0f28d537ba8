"""The header of an EDF or BDF file, as the standard defines it and as recorders really write it."""

import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from datasets.readers import base, kinds
from datasets.readers.base import Refused
from datasets.readers.tracks import Track

FIELDS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)  # widths of the header's columns, per signal
# onset, duration, texts: a time-stamped annotation list (EDF+ 2.2.2)
TAL = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14((?:[^\x14\x00]*\x14)*)\x00")
_ANNOTATIONS = re.compile(r"(EDF|BDF) Annotations?", re.I)
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # 1,000 may mean one or a thousand
_DATE = re.compile(r"(\d\d?)[.:-](\d\d?)[.:-](\d\d)")
_LONG_DATE = re.compile(r"Startdate (\d\d?)-([A-Z]{3})-(\d{4})\b", re.I)
_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]


@dataclass(frozen=True)
class Column(Track):
    """A signal, and its bytes in a data record, from `at`.

    Several with the same label are named label-0, label-1, …
    """

    at: int
    size: int
    samples: int


@dataclass(frozen=True)
class Header:
    """`start`: bytes of the header; `width`: bytes of a data record; `depth`: bytes of a sample;
    `begins`: date and time (s since 1970 as if UTC); `notes`: messages for the user."""

    columns: list[Column]  # without annotations
    annotations: list[Column]
    records: int
    record_s: float
    start: int
    width: int
    depth: int
    broken_up: bool  # EDF+D, BDF+D
    begins: float | None
    digest: str
    notes: list[str] = field(default_factory=list)


def read_header(path: Path, size: int) -> Header:
    """The header of the EDF or BDF file of `size` bytes. Refused: it is not one, or is inconsistent."""
    with open(path, "rb") as file:
        first = file.read(256)
        depth = 3 if first[:8] == b"\xffBIOSEMI" else 2
        if len(first) < 256 or (depth == 2 and first[:8].strip(b" \0") != b"0"):
            kind = kinds.kind_of(path)
            known = kind is not None and kind.reader != "edf"
            what = f"it is not an EDF or BDF file but {kind}" if known else "it is not an EDF or BDF file"
            raise Refused("unsupported" if known else "corrupt", what)
        try:
            count = _whole(_text(first[252:256]))
            if count < 1:
                raise ValueError(f"{count} signals")
            more = file.read(256 * count)
            if len(more) < 256 * count:
                raise ValueError(f"it ends before the last of its {count} signals")
            record_s, columns = _columns(_text(first[244:252]), more, count, depth)
            stated = _text(first[236:244]) or "-1"
            records = _whole(stated)
            width = depth * sum(c.samples for c in columns)
            start = _start(_text(first[184:192]), 256 * (count + 1), size, width * records)
        except ValueError as error:
            raise Refused("corrupt", f"unreadable EDF header: {error}") from error
    there = max(0, size - start) // width if width else 0
    annotations = [c for c in columns if _ANNOTATIONS.fullmatch(c.label)]
    records, notes = _counted(path, annotations, records, there, start, width)
    if (rest := size - start - records * width) > 0:
        notes.append(f"{rest:,} bytes after the last data record are ignored")
    reserved = _text(first[192:236])
    digest = hashlib.sha256(first + more).hexdigest()
    begins = _begins(_text(first[168:176]), _text(first[176:184]), _text(first[88:168]))
    broken_up = reserved[:5] in ("EDF+D", "BDF+D")
    columns = [c for c in columns if c not in annotations]
    return Header(
        columns, annotations, records, record_s, start, width, depth, broken_up, begins, digest, notes
    )


def _counted(
    path: Path, annotations: list[Column], stated: int, there: int, start: int, width: int
) -> tuple[int, list[str]]:
    """Data records to read, and a note if the header counts fewer than the file holds.

    All are read, since an interrupted recorder leaves them. If annotations must state the start of each, only
    those up to the last that does so count.
    """
    if stated >= there:
        return stated, []
    found = there
    for column in annotations[:1]:
        data = np.memmap(path, np.uint8, "r", start, (there, width))[:, column.at : column.at + column.size]
        while found > max(stated, 0) and onset(data[found - 1]) is None:
            found -= 1
    if found == stated:
        return stated, []
    counted = f"counts {stated:,} data records" if stated >= 0 else "does not count its data records"
    return found, [f"the header {counted}, the file holds {found:,}: all {found:,} are read"]


def onset(record: np.ndarray) -> float | None:
    """The start of a data record (s), from its annotation bytes: the first has no text (EDF+ 2.2.4)."""
    found = TAL.match(np.ascontiguousarray(record).tobytes())
    return float(found.group(1)) if found and found.group(3)[:1] in (b"", b"\x14") else None


def _text(cell: bytes) -> str:
    """A cell's text: UTF-8 if valid, else Latin-1; trailing spaces and NULs are padding."""
    cell = cell.lstrip(b" \0").partition(b"\0")[0]
    try:
        return cell.decode("utf-8").strip()
    except UnicodeDecodeError:
        return cell.decode("latin-1").strip()


def _number(word: str, commas: bool = False) -> float:
    """`commas`: another number of the header proves decimal commas. Raises ValueError."""
    if not _NUMBER.fullmatch(word) or (_THOUSANDS.fullmatch(word) and not commas):
        raise ValueError(f"{word!r} is not a number" + " without doubt" * ("," in word))
    return float(word.replace(",", "."))


def _whole(word: str) -> int:
    number = _number(word)
    if not (math.isfinite(number) and number == int(number)):
        raise ValueError(f"{word!r} is not a whole number")
    return int(number)


def _start(word: str, usual: int, size: int, data: int) -> int:
    """Where the data begin: 256 bytes for the file and for each signal, or as the header states."""
    stated = _whole(word) if word else usual
    if stated == usual or (data > 0 and size - usual == data):
        return usual
    if data > 0 and stated > usual and size - stated == data:
        return stated
    raise ValueError(f"it states a length of {stated:,} bytes, its signals take {usual:,}")


def _columns(record_s: str, text: bytes, count: int, depth: int) -> tuple[float, list[Column]]:
    """Seconds per data record and the signals in it. Raises ValueError if these are unknown."""
    table: list[list[str]] = []
    at = 0
    for width in FIELDS:
        table.append([_text(text[at + i * width : at + (i + 1) * width]) for i in range(count)])
        at += width * count
    numbers = [record_s, *table[3], *table[4]]
    commas = any("," in n and _NUMBER.fullmatch(n) and not _THOUSANDS.fullmatch(n) for n in numbers)
    seconds = _number(record_s, commas)
    if not 0 <= seconds < 1e9:
        raise ValueError(f"data records of {record_s} s")
    columns: list[Column] = []
    place = 0
    for label, _, unit, low, high, least, most, _, samples, _ in zip(*table, strict=True):
        n = _whole(samples)
        if n < 0:
            raise ValueError(f"{n} samples of {label!r} a data record")
        scale, offset, flaw = _scale(low, high, least, most, commas, depth)
        if not n:
            flaw = "it has no sample in a data record"
        rate = base.fraction(n / seconds) if seconds > 0 else None
        columns.append(Column(label, label, unit, rate, scale, offset, flaw, place, depth * n, n))
        place += depth * n
    several = Counter(c.label for c in columns)
    seen: Counter[str] = Counter()
    for i, column in enumerate(columns):
        if several[column.label] > 1:
            columns[i] = replace(column, name=f"{column.label}-{seen[column.label]}")
            seen[column.label] += 1
    return seconds, columns


def _scale(low: str, high: str, least: str, most: str, commas: bool, depth: int) -> tuple[float, float, str]:
    """Scale and offset from a signal's physical and digital limits; or why there are none."""
    span = 2 ** (8 * depth - 1)
    try:
        first, last = _whole(least), _whole(most)
        bottom, top = _number(low, commas), _number(high, commas)
        if first == last or bottom == top or min(first, last) < -span or max(first, last) > span - 1:
            raise ValueError
    except ValueError:
        nan = float("nan")
        unsure = any(_THOUSANDS.fullmatch(word) for word in (low, high)) and not commas
        doubt = ", where the comma may mark decimals or thousands" if unsure else ""
        return nan, nan, f"its header gives the limits {low!r} to {high!r} for {least!r} to {most!r}{doubt}"
    scale = (top - bottom) / (last - first)
    return scale, bottom - first * scale, ""


def _begins(date: str, clock: str, recording: str) -> float | None:
    """Date and time in s since 1970 as if in UTC; EDF+ states the full year in the recording field."""
    long, short, time = _LONG_DATE.search(recording), _DATE.fullmatch(date), _DATE.fullmatch(clock)
    if not time:
        return None
    try:
        if long:
            year, month, day = int(long[3]), _MONTHS.index(long[2].upper()) + 1, int(long[1])
        elif short:
            day, month, year = (int(part) for part in short.groups())
            year += 1900 if year >= 85 else 2000
        else:
            return None
        hour, minute, second = (int(part) for part in time.groups())
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:  # invalid date or time
        return None
