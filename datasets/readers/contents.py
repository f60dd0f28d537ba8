"""What one file contains, as its reader sees it: channels, rates, units, lengths, clock. For `probe`."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from cluster.redact import printable
from datasets.descriptor import Table
from datasets.readers import (
    clock,
    columns,
    dicom,
    edf_header,
    empatica,
    ishne,
    kinds,
    mat_file,
    mat_open,
    moments,
    text,
    vitaldb,
    wfdb_layout,
)
from datasets.readers.base import Refused
from datasets.readers.tracks import Track

TIMES = r"(?i)t|time.*|.*timestamp.*|date.?time|date|elapsed.*|sec(ond)?s?|ms|(unix|epoch).*"
UNITS_S = ((r"ns|nanosec", 1e-9), (r"us|µs|microsec", 1e-6), (r"ms|millisec", 1e-3))
LOOKED_AT = 60  # first lines of a text that are inspected
WIDE = 200  # more numbers in the only line of a file are samples in a row
SECONDS_1970 = 1e9  # a typical epoch time of these decades, s


@dataclass(frozen=True)
class Channel:
    """`samples` at `rate` Hz (None: neither stated nor measurable), stated in the file under `rate_name`;
    `unit` as written in the file, "" if absent.
    """

    name: str
    samples: int
    rate: float | None = None
    unit: str = ""
    rate_name: str = ""


@dataclass
class Contents:
    """`kind`: the type of file; `reader`: the reader for it (None: none); `start_s`: the file's clock at the
    first sample; `time`: the column of times; `table`: lines of a descriptor's [table]; `words`: further
    messages for the user.
    """

    path: Path
    kind: str
    reader: str | None
    channels: list[Channel] = field(default_factory=list)
    start_s: float | None = None
    time: str = ""
    table: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    preamble: list[str] = field(default_factory=list)  # of a text: lines above its samples

    def above(self, pattern: str) -> str:
        """The first group of what `pattern` matches in the preamble, or ""."""
        return next((m[1] for line in self.preamble if (m := re.match(pattern, line, re.I))), "")


def contents(path: Path) -> Contents:
    """The contents of the file at `path`. Errors are listed in `words`."""
    kind = kinds.kind_of(path)
    found = Contents(path, kind.name if kind else "a table of text", kind.reader if kind else "table")
    if kind and not kind.reader:
        found.words.append(kind.advice)
    try:
        look = LOOKS.get(found.reader or "")
        if look:
            look(path, found)
    except Refused as why:
        found.words.append(f"{why.reason}: {why.detail}")
    if found.reader and not found.channels and not found.words:
        found.words.append("it holds no channels")
    return found


def _channel(track: Track, samples: int) -> Channel:
    return Channel(track.name, samples, float(track.rate) if track.rate else None, track.unit)


def _wfdb(path: Path, found: Contents) -> None:
    sizes = {p.name: p.stat().st_size for p in path.parent.iterdir() if p.is_file()}
    layout = wfdb_layout.read_layout(path.name, lambda _: path.parent, sizes)
    found.start_s = layout.header.origin
    lines = {line.name: line for piece in layout.pieces for line in piece.header.signals}
    for line in lines.values():
        rate = float(layout.rate * line.per_frame) if layout.rate else None
        found.channels.append(Channel(line.name, layout.frames * line.per_frame, rate, line.unit))
    faults = [layout.broken, *layout.faults.values()]
    found.words += [f"{why.reason}: {why.detail}" for why in faults if why]


def _edf(path: Path, found: Contents) -> None:
    header = edf_header.read_header(path, path.stat().st_size)
    found.start_s = header.begins
    found.channels = [_channel(c, header.records * c.samples) for c in header.columns]
    found.words += [f"{c.name}: {c.flaw}" for c in header.columns if c.flaw]
    found.words += header.notes


def _ishne(path: Path, found: Contents) -> None:
    header = ishne.read_header(path, path.stat().st_size)
    found.start_s, found.words = header.begins, list(header.notes)
    found.channels = [_channel(lead, header.length) for lead in header.leads]


def _dicom(path: Path, found: Contents) -> None:
    read = dicom.read(path)
    found.start_s = read.begins
    found.channels = [_channel(lead, lead.samples) for lead in read.leads]


def _empatica(path: Path, found: Contents) -> None:
    session = empatica.read(path)
    found.start_s = session.begins
    found.channels = [_channel(sensor, len(sensor.x)) for sensor in session.sensors]


def _vital(path: Path, found: Contents) -> None:
    case, broken = vitaldb.read(path)
    for name, track in case.trks.items():
        if track.type == vitaldb.WAVE and track.recs:
            samples = sum(len(record["val"]) for record in track.recs)
            found.channels.append(Channel(name, samples, float(track.srate) or None, track.unit))
            first = float(min(record["dt"] for record in track.recs))
            found.start_s = first if found.start_s is None else min(found.start_s, first)
    found.words += [f"{broken.reason}: {broken.detail}"] if broken else []


def _mat(path: Path, found: Contents) -> None:
    with mat_open.opened(path) as mat:
        stated = mat.stated_rates()
        rate_name, rate = next(iter(stated.items())) if len(stated) == 1 else ("", None)
        for name in mat.facts():
            shape = mat.shape(name)
            array = mat.get(name) if shape and math.prod(shape) > 1 else None
            if shape is None or array is None or array.dtype.kind not in "biuf":
                continue
            if sum(n != 1 for n in shape) > 1:
                size = mat_file.size(shape)
                found.words.append(f"{name} is {size}: name its channels in [[arrays]], or its records' axis")
                continue
            found.channels.append(Channel(name, math.prod(shape), rate, "", rate_name))
        if not found.channels:
            found.words.append(f"variables: {', '.join(mat.names())[:500]}")


# ---------------------------------------------------------------- tables


def _table(path: Path, found: Contents) -> None:
    spec = _layout(path, found)
    with columns.opened(path, spec) as file:
        stated = file.stated_rates()
        rate_name, rate = next(iter(stated.items())) if len(stated) == 1 else ("", None)
        rate = rate or float(found.above(r"sampl\w*[ _]?(?:rate|freq\w*)\W+([\d.]+)") or 0) or None
        found.time, shown, spec = _times(file, spec, found)
        if spec.rate_line and spec.start_line:
            delimiter = text.delimiter_of(path.name, spec.delimiter, spec.decimal)
            rate = float(moments.stated(path, spec.rate_line, delimiter).s[0])
            found.start_s = float(moments.stated(path, spec.start_line, delimiter).s[0])
        for name in file.names:
            if name == found.time or name in stated:
                continue
            try:
                x = file.read(name)
            except Refused as why:
                found.words.append(f"{printable(name, 40)}: {why.detail}")
                continue
            unit = found.above(r"units?\W+(\S+)")
            found.channels.append(Channel(name, len(x), shown or rate, unit, "" if shown else rate_name))


def _layout(path: Path, found: Contents) -> Table:
    """The layout of a text, from its first lines; other files need none."""
    if kinds.no_text(path) or path.suffix.lower() in (".parquet", ".npy", ".npz", ".h5", ".hdf5"):
        return Table()
    with text.open_text(path) as file:
        lines = [line.rstrip("\r\n") for line in islice(file, LOOKED_AT)]
    usual = text.delimiter_of(path.name, None)
    counts = {mark: min((line.count(mark) for line in lines if line), default=0) for mark in ",;\t"}
    best = max(counts, key=lambda mark: (counts[mark], mark == usual))
    if best == "," and counts[";"]:
        best = ";"  # commas in a file with semicolons are decimal
    delimiter = best if counts[best] and best != usual else None
    spec: dict[str, str | int | None] = {"delimiter": delimiter}
    cells = [_cells(line, delimiter or usual) for line in lines]
    flat = [cell for row in cells[2:] for cell in row]
    if (delimiter or usual) != "," and any(re.fullmatch(r"[-+]?\d+,\d+", cell) for cell in flat):
        spec["decimal"] = ","
    first = next(
        (i for i in range(len(cells) - 2) if all(all(map(_numeric, c)) for c in cells[i : i + 3])), 0
    )
    if first > 1 and len(cells[0]) != len(cells[first]):  # lines above describe the recording
        named = len(cells[first - 1]) == len(cells[first]) and not all(
            map(_numeric, ["0", *cells[first - 1]])
        )
        spec |= {"header": first if named and any(cells[first - 1]) else 0}
        spec |= {"skip": 0 if spec["header"] else first}
        found.preamble = lines[:first]
    elif len(lines) == 1 and len(cells[0]) > WIDE and all(map(_numeric, cells[0])):
        spec |= {"header": 0, "layout": "row"}
    elif cells and all(map(_numeric, cells[0])):
        spec["header"] = 0
        rate = cells[1][:1] if len(cells) > 2 and len(set(cells[1])) == 1 else []
        if rate and float(cells[0][0]) > SECONDS_1970 / 2 and 0 < float(rate[0]) <= 1000:
            spec |= {"start_line": 1, "rate_line": 2, "skip": 2}
    written = {k: v for k, v in spec.items() if v is not None}
    found.table = [
        f'{k} = "{v}"'.replace("\t", "\\t") if isinstance(v, str) else f"{k} = {v}"
        for k, v in written.items()
    ]
    return Table.model_validate(written)


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.rstrip(delimiter).split(delimiter)]


def _numeric(cell: str) -> bool:
    return bool(re.fullmatch(r"[-+]?(\d+[.,]?\d*|[.,]\d+)([eE][-+]?\d+)?", cell))


def _times(file: columns.Columns, spec: Table, found: Contents) -> tuple[str, float | None, Table]:
    """The column of times, the rate in Hz measured from it, and the layout with its unit; else ("", None)."""
    for name in _candidates(file):
        column = file.raw(name)
        if column is None:
            continue
        for unit in _units(name, column):
            with suppress(Refused):
                moment = moments.read(column, unit, spec.decimal)
                made = clock.measured(moment.rising(), None, None)
                if 1 <= made.measured_hz <= 100_000:
                    found.start_s = made.start_s
                    found.table += [f"time_unit_s = {unit:g}"] if unit != 1 else []
                    return name, made.measured_hz, spec.model_copy(update={"time": name, "time_unit_s": unit})
    return "", None, spec


def _candidates(file: columns.Columns) -> Iterator[str]:
    names = dict.fromkeys([*file.names, *(n for n in ("t", "time", "timestamp") if file.raw(n) is not None)])
    yield from (name for name in names if re.fullmatch(TIMES, name.rsplit("/", 1)[-1].strip()))


def _units(name: str, column: object) -> Sequence[float]:
    """Possible units of the column's numbers in seconds, the likeliest first."""
    low = name.lower()
    named = [unit for pattern, unit in UNITS_S if re.search(rf"(^|[^a-z])({pattern})", low)]
    first = np.nan
    with suppress(ValueError, TypeError, IndexError, KeyError):
        first = abs(float(str(column[0])))  # type: ignore[index]
    epoch = [10.0 ** -(3 * round(math.log10(first / SECONDS_1970) / 3))] if first > SECONDS_1970 / 2 else []
    return list(dict.fromkeys([*epoch, *named, 1.0, 1e-3, 1e-6, 1e-9]))


LOOKS: dict[str, Callable[[Path, Contents], None]] = {
    "wfdb": _wfdb,
    "edf": _edf,
    "ishne": _ishne,
    "dicom": _dicom,
    "empatica": _empatica,
    "vitaldb": _vital,
    "mat": _mat,
    "table": _table,
}
