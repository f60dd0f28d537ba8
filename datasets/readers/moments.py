"""Times in various notations, as seconds: numbers, ISO 8601, times of day, and Arrow's and NumPy's types.

float64 seconds resolve times of this century to 0.3 µs, finer than any signal here needs.
"""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.readers import text
from datasets.readers.base import Refused

DAY_S = 86_400
EPOCH_S = 1e8  # seconds: larger numbers count from 1970, since no device runs for three years
NOTHING = ["", "NA", "N/A", "NaN", "nan", "NaT", "null", "None", "-"]  # cells for a missing time
_TIME = r"(?P<h>\d{1,2}):?(?P<m>[0-5]\d)(?::?(?P<s>[0-6]\d(?:[.,]\d*)?))?"
_ZONE = r"\s*(?P<z>[Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?"
_ISO = rf"^(?P<y>\d{{4}})[-/.]?(?P<mo>\d{{2}})[-/.]?(?P<d>\d{{2}})(?:[T ]\s*{_TIME}{_ZONE})?$"
_WFDB = r"^\[(?P<h>\d{1,2}):(?P<m>[0-5]\d):(?P<s>[0-6]\d(?:\.\d*)?) (?P<d>\d\d)/(?P<mo>\d\d)/(?P<y>\d{4})\]$"
# minutes and seconds alone need a fraction: 12:30 may as well be a time of day without seconds
_CLOCK = r"^(?:(?P<h>\d+):(?P<m>[0-5]?\d):(?P<s>[0-6]?\d(?:[.,]\d*)?)|(?P<m2>\d+):(?P<s2>[0-5]\d[.,]\d+))$"

Kind = Literal["number", "date", "clock"]


@dataclass(frozen=True)
class Moments:
    """Times (n,). `s`: float64 seconds, NaN for empty cells: as the numbers count (`number`), since 1970 in
    UTC, or as if in UTC if no zone is stated (`date`), or hours, minutes and seconds (`clock`: of a day, or
    elapsed). `zone_s` (n,): the stated zone's offset from UTC; None: not stated.
    """

    s: np.ndarray
    kind: Kind
    zone_s: np.ndarray | None = None

    @property
    def basis(self) -> str:
        """What the times count from: times of two bases cannot be compared."""
        if self.kind == "number":
            return "UTC" if len(self.s) and self.s[0] >= EPOCH_S else "numbers of the device's own"
        if self.kind == "clock":
            return "times of day"
        return "dates without a zone" if self.zone_s is None else "UTC"

    def rising(self) -> np.ndarray:
        """`s`, with times of day continued past midnight."""
        if self.kind != "clock":
            return self.s
        return self.s + DAY_S * np.r_[0, np.cumsum(np.diff(self.s) < -DAY_S / 2)] if len(self.s) else self.s


def read(column: np.ndarray | pa.Array | pa.ChunkedArray, unit_s: float = 1.0, decimal: str = ".") -> Moments:
    """A column of times. Numbers count in `unit_s` seconds. Refused (bad_time) names the first row that is
    not a time."""
    if isinstance(column, np.ndarray):
        return _numpy(column, unit_s, decimal)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_dictionary(kind):
        return read(column.dictionary_decode(), unit_s, decimal)
    if pa.types.is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            return _words(column.cast(pa.string()), unit_s, decimal)
        except pa.ArrowInvalid as broken:
            raise Refused("bad_time", "a column of times that is not UTF-8: save it as UTF-8") from broken
    if pa.types.is_timestamp(kind):
        zone = None
        if kind.tz:
            wall = pc.local_timestamp(column).cast(pa.timestamp(kind.unit))
            zone = _counts(wall, kind.unit) - _counts(column, kind.unit)
        return Moments(_counts(column, kind.unit), "date", zone)
    if pa.types.is_duration(kind):
        return Moments(_counts(column, kind.unit), "number")
    if pa.types.is_time(kind):
        return Moments(_counts(column.cast(pa.time64("us")), "us"), "clock")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Moments(_floats(column.cast(pa.float64(), safe=False)) * unit_s, "number")
    raise Refused("bad_time", f"a column of {kind} holds no times")


def stated(path: Path, line: int, delimiter: str) -> Moments:
    """The time in the first cell of a text file's line (from 1). Refused: bad_time."""
    with text.open_text(path) as file:
        words = next(itertools.islice(file, line - 1, None), "").strip().split(delimiter)
    found = read(pa.array([words[0]], pa.string()))
    if not np.isfinite(found.s).all():
        raise Refused("bad_time", f"line {line} states no time or rate: correct `start_line` or `rate_line`")
    return found


def _floats(column: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(column, float("nan")).to_numpy(zero_copy_only=False), np.float64)


def _counts(column: pa.Array, unit: str) -> np.ndarray:
    """Arrow's integers of `unit` as seconds."""
    per_s = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
    return _floats(column.cast(pa.int64()).cast(pa.float64(), safe=False)) / per_s


def _numpy(column: np.ndarray, unit_s: float, decimal: str) -> Moments:
    kind = column.dtype.kind
    if kind in "iuf":
        return Moments(column.astype(np.float64) * unit_s, "number")
    if kind in "mM":
        counts = column.astype("M8[us]" if kind == "M" else "m8[us]").astype(np.int64) / 1e6
        return Moments(np.where(np.isnat(column), np.nan, counts), "date" if kind == "M" else "number")
    if kind in "USO":
        words = [w.decode(errors="replace") if isinstance(w, bytes) else w for w in column.tolist()]
        if all(isinstance(w, str) for w in words):
            return _words(pa.array(words, pa.string()), unit_s, decimal)
    raise Refused("bad_time", f"a column of {column.dtype} holds no times")


def _words(words: pa.StringArray, unit_s: float, decimal: str) -> Moments:
    words = pc.utf8_trim(words.fill_null(""), characters=" \t'\"")
    empty = pc.is_in(words, value_set=pa.array(NOTHING))
    words = pc.if_else(empty, None, words)
    numbers = pc.replace_substring(words, ",", ".") if decimal == "," else words
    try:
        return Moments(_floats(numbers.cast(pa.float64())) * unit_s, "number")
    except pa.ArrowInvalid:
        pass
    first = words.drop_null()[0].as_py()
    for pattern in (_ISO, _WFDB, _CLOCK):
        if re.match(pattern, first):
            parts = pc.extract_regex(words, pattern)
            odd = pc.and_(pc.is_null(parts), pc.is_valid(words)).to_numpy(zero_copy_only=False)
            _refuse(words, odd)
            return _clock(parts) if pattern == _CLOCK else _date(parts, words)
    _refuse(words, np.array([not text.is_number(word) for word in numbers.to_pylist()]))
    raise AssertionError("a column of words that is neither numbers nor refused")


def _refuse(words: pa.StringArray, odd: np.ndarray) -> None:
    if odd.any():
        row = int(np.argmax(odd))
        word = str(words[row].as_py())[:40]
        raise Refused(
            "bad_time",
            f"row {row + 1}: {word!r} is not a time like the others: write numbers (in `time_unit_s` or "
            "`unit_s`), or ISO 8601 such as 2024-05-01 09:30:00.125",
        )


def _part(parts: pa.StructArray, name: str) -> np.ndarray:
    """A group of the pattern as numbers; 0 if it is empty, NaN if the cell is."""
    words = pc.replace_substring(pc.struct_field(parts, name), ",", ".")
    return _floats(pc.if_else(pc.equal(words, ""), "0", words).cast(pa.float64()))


def _clock(parts: pa.StructArray) -> Moments:
    h, m, s, m2, s2 = (_part(parts, name) for name in ("h", "m", "s", "m2", "s2"))
    return Moments(h * 3600 + (m + m2) * 60 + s + s2, "clock")


def _date(parts: pa.StructArray, words: pa.StringArray) -> Moments:
    names = {field.name for field in parts.type}
    day = pc.binary_join_element_wise(*(pc.struct_field(parts, n) for n in ("y", "mo", "d")), "-")
    days = _by_word(day, _midnight)
    known = pc.is_valid(words).to_numpy(zero_copy_only=False)
    _refuse(words, known & np.isnan(days))
    h, m, s = (_part(parts, name) for name in ("h", "m", "s"))
    _refuse(words, h > 23)
    wall = days + h * 3600 + m * 60 + s
    if "z" not in names:
        return Moments(wall, "date")
    zone = pc.struct_field(parts, "z")
    stated = pc.fill_null(pc.not_equal(zone, ""), False).to_numpy(zero_copy_only=False)
    if not stated.any():
        return Moments(wall, "date")
    _refuse(words, known & ~stated)
    ahead = _by_word(zone, _ahead)
    return Moments(wall - ahead, "date", ahead)


def _by_word(words: pa.StringArray, value: Callable[[str], float]) -> np.ndarray:
    """`value` of each distinct word; NaN if there is none."""
    coded = words.dictionary_encode()
    table = np.array([*map(value, coded.dictionary.to_pylist()), np.nan])
    return table[pc.fill_null(coded.indices, len(table) - 1).to_numpy()]


def _midnight(day: str) -> float:
    """Seconds from 1970 to the date yyyy-mm-dd; NaN if the date is invalid."""
    try:
        return float((date.fromisoformat(day) - date(1970, 1, 1)).days * DAY_S)
    except ValueError:
        return math.nan


def _ahead(zone: str) -> float:
    """The offset from UTC of an ISO 8601 zone, s."""
    found = re.fullmatch(r"([+-])(\d{2}):?(\d{2})?", zone)
    if found is None:
        return 0.0
    return float(found[1] + "1") * (int(found[2]) * 3600 + int(found[3] or 0) * 60)
