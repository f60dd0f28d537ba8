"""Tables: CSV, tab-separated text, Parquet, NPZ, HDF5. Units come from the descriptor; rates too, or from the
file, stated or measured from its column of times. All files of a record share the clock of those times.
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from cluster.errors import PlethoraError
from datasets.descriptor import Descriptor, Signal, Table
from datasets.readers import base, clock, fields, marks, moments, text
from datasets.readers import columns as files
from datasets.readers.base import (
    Channel,
    Draft,
    Labels,
    Promise,
    RecordFile,
    Recording,
    Refused,
    Root,
    Samples,
    together,
)
from datasets.readers.clock import Clock, Grid
from datasets.readers.columns import Columns, opened
from datasets.readers.moments import Moments
from datasets.readers.rates import rate_of
from datasets.readers.text import delimiter_of

SLOWEST, FASTEST = 1, 100_000  # Hz: limits of a rate that is measured from a column of times


def scan(root: Root, descriptor: Descriptor) -> list[RecordFile]:
    """Every record below `root` that the descriptor names. Text has no header, so it is read whole."""
    for modality, signal in descriptor.signals.items():
        if signal.source_unit is None:
            raise PlethoraError(
                f"{descriptor.name}: signals.{modality} needs `source_unit`: tables state no units"
            )
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> Sequence[Draft] | None:
    names = _files(descriptor, draft.name, draft.groups)
    draft.files += [name for name in names.values() if name in draft.root.sizes]
    folder = draft.fetch(draft.files)
    if descriptor.table.ids is None:
        _promises(draft, descriptor, folder, names)
        return None
    named = {s.rate for s in descriptor.signals.values() if isinstance(s.rate, str)}
    each = descriptor.table.time is not None or files.rates_vary(folder / draft.name, named)
    if not each:
        _promises(draft, descriptor, folder, names, 0)  # all records of a file are rows of the same arrays
    found = []
    for i, name in enumerate(files.ids_of(folder / draft.name, descriptor.table.ids)):
        record = f"{draft.record}_{name}"
        groups = {**draft.groups, "record": record, "id": name}
        one = dataclasses.replace(draft, record=record, groups=groups, element=i)
        if each:
            one = dataclasses.replace(one, seconds={}, refused={}, words={}, samples=0)
            _promise_element(one, descriptor, folder, names, i)
        if descriptor.subject.file is None:
            subject = re.search(descriptor.subject.pattern, record)
            one.subject = subject.group(1).strip() if subject else ""
        found.append(one)
    return found


def _promise_element(
    draft: Draft, descriptor: Descriptor, folder: Path, names: dict[str, str], element: int
) -> None:
    try:
        _promises(draft, descriptor, folder, names, element)
    except Refused as why:  # of one record of the file, not of all
        for m in draft.seconds:
            draft.refuse(m, why.reason, why.detail)


def _files(descriptor: Descriptor, main: str, groups: dict[str, str]) -> dict[str, str]:
    """Modality -> the file that holds it."""
    stem = main.rsplit(".", 1)[0]
    given = descriptor.table.files
    return {m: given[m].format(**groups, stem=stem) if m in given else main for m in descriptor.signals}


# ---------------------------------------------------------------- one modality of a file


@dataclass(frozen=True)
class _Part:
    """A file's content for one modality: `choice` of its channels (empty: the file `has` others), `length`
    samples at `rate`, or `words`, why it is refused; `clock` and `times` if the file states them; `x`: the
    samples.
    """

    has: list[str]
    choice: tuple[str, ...] = ()
    length: int = 0
    rate: Fraction | None = None
    words: str | None = None
    clock: Clock | None = None
    times: Moments | None = None
    x: Sequence[np.ndarray] = ()


class _Times:
    """A file's column of times, read once for all of its modalities."""

    def __init__(self, columns: Columns, spec: Table) -> None:
        self._columns, self._spec = columns, spec
        self._clocks: dict[tuple[Fraction | None, float | None], Clock] = {}

    @cached_property
    def moments(self) -> Moments:
        """Refused (bad_time): the column is missing or holds no times."""
        name, column = self._spec.time, self._columns.raw(self._spec.time or "")
        if column is None:
            there = ", ".join(self._columns.names[:20])
            raise Refused(
                "bad_time", f"no column {name!r}, which holds the times (`time` in [table]); it has {there}"
            )
        return moments.read(column, self._spec.time_unit_s, self._spec.decimal)

    def clock(self, promised: Fraction | None, tolerance: float | None) -> Clock:
        """See `clock.measured`."""
        if (promised, tolerance) not in self._clocks:
            made = clock.measured(self.moments.rising(), promised, tolerance)
            self._clocks[promised, tolerance] = made
        return self._clocks[promised, tolerance]


def _parts(
    folder: Path, descriptor: Descriptor, names: Mapping[str, str], element: int | None, samples: bool
) -> tuple[dict[str, _Part], dict[str, Refused]]:
    """The content of the files for each modality in `names`, with or without `samples`; and the errors that
    break them."""
    spec = descriptor.table
    found: dict[str, _Part] = {}
    broken: dict[str, Refused] = {}
    for file in dict.fromkeys(names.values()):
        path = folder / file
        mine = [m for m, name in names.items() if name == file]
        try:
            with opened(path, spec, descriptor.arrays, element, _wanted(descriptor, mine)) as columns:
                there = set(columns.names)
                for m in mine:
                    choices = descriptor.signals[m].choices
                    choice = next((c for c in choices if there.issuperset(c)), None)
                    found[m] = _Part(columns.names, choice or ())
                present = {m: descriptor.signals[m] for m in mine if found[m].choice}
                times = _Times(columns, spec)
                rows = (
                    0
                    if present
                    else _rows(columns) or files.rows(path, spec, columns.names, descriptor.arrays)
                )
                found |= {m: dataclasses.replace(found[m], length=rows) for m in mine if not present}
                for m in present:
                    try:
                        found[m] = _part(columns, path, descriptor, m, found[m], present, times)
                        if samples:
                            signal = descriptor.signals[m]
                            x = [columns.read(name, signal.missing) for name in found[m].choice]
                            found[m] = dataclasses.replace(found[m], x=x)
                    except Refused as why:
                        broken[m] = Refused(why.reason, f"{path.name}: {why.detail}")
        except Refused as why:
            broken |= dict.fromkeys(mine, why)
    return {m: part for m, part in found.items() if m not in broken}, broken


def _wanted(descriptor: Descriptor, modalities: Sequence[str]) -> list[text.Choices]:
    """The channels to read from the file for these modalities, time included."""
    time = descriptor.table.time
    return [*(descriptor.signals[m].choices for m in modalities), *([((time,),)] if time else [])]


def _rows(columns: Columns) -> int:
    """The length of a file that holds none of the wanted channels."""
    longest = 0
    for name in columns.names:
        with contextlib.suppress(Refused):  # text, or an array with several axes
            longest = max(longest, columns.length(name))
    return longest


def _part(
    columns: Columns,
    path: Path,
    descriptor: Descriptor,
    modality: str,
    part: _Part,
    present: Mapping[str, Signal],
    column: _Times,
) -> _Part:
    """The length, rate and clock of a modality. Refused: bad_time, and any error of reading."""
    spec, signal = descriptor.table, descriptor.signals[modality]
    length = max(columns.length(name) for name in part.choice)
    rate, words = base.fraction(signal.hz), None
    if spec.time is None or isinstance(signal.rate, str):  # a column of times says more than a stated rate
        paths = [columns.path(name) for name in part.choice]
        rate, words = rate_of(columns, modality, signal, paths, present)
    delimiter = delimiter_of(path.name, spec.delimiter, spec.decimal)
    if spec.rate_line is not None:
        rate, words = _stated(path, spec.rate_line, delimiter, signal)
    part = dataclasses.replace(part, length=length, rate=rate, words=words)
    if spec.start_line is not None and rate:
        times = moments.stated(path, spec.start_line, delimiter)
        return dataclasses.replace(part, times=times, clock=clock.regular(length, rate, float(times.s[0])))
    if spec.time is None:
        return part
    times = column.moments
    if len(times.s) != length:
        raise Refused("bad_time", f"{len(times.s):,} times of {length:,} samples in {spec.time!r}")
    made = column.clock(rate, signal.rate_tolerance)
    return dataclasses.replace(
        part, rate=made.rate, words=words or _unlike(made, rate, signal), times=times, clock=made
    )


def _stated(path: Path, line: int, delimiter: str, signal: Signal) -> tuple[Fraction | None, str | None]:
    """The rate that a line of a text file states, and the reason if it must be refused."""
    hz = float(moments.stated(path, line, delimiter).s[0])
    rate, promised = base.fraction(hz), base.fraction(signal.hz)
    if rate is None:
        return None, f"line {line} says {hz:g} Hz: correct `rate_line` in [table], or `rate`"
    if promised and abs(rate / promised - 1) > (signal.rate_tolerance or 0):
        return rate, f"line {line} says {hz:g} Hz, not {signal.hz:g}: correct `rate`, or omit it"
    return rate, None


def _unlike(made: Clock, promised: Fraction | None, signal: Signal) -> str | None:
    """Why the rate that the times show is refused; None if it is accepted."""
    shown = f"the times show {made.measured_hz:.6g} Hz"
    if promised is None:
        if SLOWEST <= made.measured_hz <= FASTEST:
            return None
        return f"{shown}: is `time_unit_s` in [table] right? Else give `rate`"
    if abs(made.rate / promised - 1) <= (signal.rate_tolerance or 0):
        return None
    return (
        f"{shown}, not {float(promised):g}: change `rate` or `rate_tolerance`, or leave `rate` out (each "
        "record keeps its own)"
    )


def _first(parts: Mapping[str, _Part]) -> tuple[float, Moments] | None:
    """The record's clock at its first sample (s), and that file's times. Refused (bad_time): the files'
    times share no clock."""
    timed = [(m, p.clock, p.times) for m, p in parts.items() if p.clock is not None and p.times is not None]
    if not timed:
        return None
    if len({times.basis for _, _, times in timed}) > 1:
        bases = ", ".join(f"{m} has {times.basis}" for m, _, times in timed)
        raise Refused("bad_time", f"the times share no common clock: {bases}")
    _, first, times = min(timed, key=lambda each: each[1].start_s)
    apart = max(made.start_s for _, made, _ in timed) - first.start_s
    recorded = sum(parts[m].length / float(made.rate) for m, made, _ in timed)
    if apart > 100 * recorded + base.LONGEST_GAP_S:
        raise Refused(
            "bad_time", f"its files begin {apart:,.0f} s apart: are their times of one clock and unit?"
        )
    return first.start_s, times


def _grids(parts: Mapping[str, _Part]) -> dict[str, Grid]:
    """Where each modality's samples lie on the record's common time; empty if no file states times."""
    first = _first(parts)
    return {m: p.clock.on(first[0]) for m, p in parts.items() if p.clock is not None} if first else {}


# ---------------------------------------------------------------- a record


def _promises(
    draft: Draft, descriptor: Descriptor, folder: Path, names: dict[str, str], element: int | None = None
) -> None:
    """The files' content for each modality. Refused is raised last, so that the other hours are counted."""
    signals = descriptor.signals
    there = {m: n for m, n in names.items() if m not in descriptor.table.files or n in draft.root.sizes}
    parts, broken = _parts(folder, descriptor, there, element, samples=False)
    for m in broken:
        rate = base.fraction(signals[m].hz)
        draft.seconds[m] = Fraction(_lines(folder / names[m], descriptor)) / rate if rate else Fraction(0)
    sound = {}
    for m, part in parts.items():
        if not part.choice:
            continue
        unit = signals[m].source_unit or ""
        length = part.clock.on(part.clock.start_s).length if part.clock else part.length
        draft.promise(m, signals[m], Promise(length, part.rate, unit, len(part.choice)))
        if part.words or not part.rate:
            draft.refuse(m, "bad_rate", part.words or "no rate is stated: give `rate`")
        else:
            sound[m] = part
        draft.whole = max(draft.whole, draft.seconds[m])
    for m, signal in signals.items():
        if m not in there:
            draft.promise(m, signal, None)
            if m in draft.refused:
                draft.refuse(m, "missing_channel", f"no file {names[m]} (`files` in [table])")
        elif m in parts and not parts[m].choice:
            draft.whole = draft.whole or Fraction(parts[m].length) / (base.fraction(signal.hz) or 1)
            draft.promise(m, signal, None, parts[m].has)
    try:
        for m, grid in _grids(sound).items():
            draft.seconds[m] = Fraction(grid.length) / grid.rate
    except Refused as why:
        broken[""] = why
    if not sound or "" in broken or any(signals[m].required for m in broken):
        for last in list(broken.values())[-1:]:
            raise last
    for m, trouble in broken.items():  # the others are usable without it
        draft.refuse(m, trouble.reason, trouble.detail)


def _lines(path: Path, descriptor: Descriptor) -> int:
    """How many samples a refused file would hold, as far as its lines or shapes tell; else 0."""
    names = [name for signal in descriptor.signals.values() for choice in signal.choices for name in choice]
    return files.rows(path, descriptor.table, names, descriptor.arrays)


def load(source: RecordFile, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples and labels of one record. Raises Refused if a file is broken."""
    main = source.files[0][0]
    names = _files(descriptor, main, source.groups)
    wanted = {m: n for m, n in names.items() if m in source.seconds and m not in source.refused}
    parts, broken = _parts(folder, descriptor, wanted, source.element, samples=True)
    for m in sorted(broken, key=lambda m: not descriptor.signals[m].required):
        with base.alone(m):
            raise broken[m]
    grids = _grids(parts)
    signals: dict[str, Samples] = {}
    for m, part in parts.items():
        signal = descriptor.signals[m]
        path = folder / names[m]
        if not part.choice or part.rate is None:
            raise Refused("corrupt", f"{path.name} has changed since it was scanned")
        with base.alone(m):
            if len({len(x) for x in part.x}) > 1:
                raise Refused("corrupt", f"{path.name}: the channels of {m} differ in length")
            scale = signal.units[signal.source_unit or ""]
            signals[m] = together([_channel(x, grids.get(m), scale) for x in part.x], part.rate, signal.unit)
    labels = [Labels(f"{m}_channel", [" ".join(part.choice)]) for m, part in sorted(parts.items())]
    more, problems = fields.read(source, folder, descriptor.fields)
    recording = Recording(signals, [*more, *labels], problems)
    noted = (marks.note(m, s.x_tc[:, 0], s.missing) for m, s in signals.items())
    recording.notes = [note for note in noted if note]
    began = 0.0  # of the record's main file, on the record's time
    if (first := _first(parts)) is not None:
        recording.origin, times = first
        recording.kind = times.kind
        recording.zone_s = None if times.zone_s is None else float(times.zone_s[0])
        starts = [p.clock.start_s for m, p in parts.items() if p.clock and names[m] == main]
        began = min(starts, default=recording.origin) - recording.origin
    recording.moved = {m: grid.moved_s for m, grid in grids.items() if grid.moved_s}
    _traces(recording, folder / main, source, descriptor, began)
    return recording


def _channel(values: np.ndarray, grid: Grid | None, scale: float) -> Channel:
    """A column on its grid; places without a row are missing. Whole numbers become exact integers."""
    missing = ~np.isfinite(values)
    x = np.where(missing, 0, values)
    if np.issubdtype(x.dtype, np.floating) and (np.abs(x) < 2**31).all() and (x == np.rint(x)).all():
        x = x.astype(np.int64)
    if grid is not None:
        x, missing = grid.put(x, missing)
    return Channel(x, missing, scale)


def _traces(
    recording: Recording, main: Path, source: RecordFile, descriptor: Descriptor, began: float
) -> None:
    """Window labels from variables of the record's main file, which begins at `began` (s)."""
    for rule in descriptor.traces:
        try:
            with opened(main, descriptor.table, descriptor.arrays, source.element) as columns:
                if rule.file is not None or rule.variable not in columns.names:
                    raise Refused("missing_column", f"{main.name} has no {rule.variable!r}")
                values = columns.read(rule.variable).astype(np.float64)
        except Refused as why:
            recording.problems.append(f"label {rule.name}: {why.reason} ({why.detail})")
            continue
        recording.labels.append(fields.of_trace(rule, values, began))
