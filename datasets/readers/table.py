"""Tables: CSV, tab-separated text, Parquet, NPZ, HDF5. Rates and units are the descriptor's."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from cluster.errors import PlethoraError
from datasets.descriptor import Descriptor, Signal
from datasets.readers import base, marks, rates, text
from datasets.readers import columns as files
from datasets.readers.base import (
    Channel,
    Draft,
    Labels,
    Promise,
    Recording,
    Refused,
    Root,
    Samples,
    Source,
    together,
)
from datasets.readers.columns import Columns, opened

JITTER = 0.001  # share by which a clock may differ from the promised rate
JITTER_S = 0.1  # and by how much in all, on short records
LONGEST = 100  # a record that is mostly gap: more likely times in another unit


def scan(root: Root, descriptor: Descriptor) -> list[Source]:
    """Every record below `root` that the descriptor names. Text has no header: it is read whole."""
    for modality, signal in descriptor.signals.items():
        if signal.rate is None or signal.source_unit is None:
            raise PlethoraError(
                f"{descriptor.name}: signals.{modality} needs `rate` and `source_unit`: tables state neither"
            )
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> Sequence[Draft] | None:
    names = {m: _file(m, descriptor, draft.name, draft.groups) for m in descriptor.signals}
    draft.files += [name for name in names.values() if name in draft.root.sizes]
    folder = draft.fetch(draft.files)
    if descriptor.table.ids is None:
        _promises(draft, descriptor, folder, names)
        return None
    _promises(draft, descriptor, folder, names)  # all records of a file are rows of the same arrays
    found = []
    for i, name in enumerate(files.ids_of(folder / draft.name, descriptor.table.ids)):
        record = f"{draft.record}_{name}"
        groups = {**draft.groups, "record": record, "id": name}
        one = dataclasses.replace(draft, record=record, groups=groups, element=i)
        if descriptor.subject.file is None:
            subject = re.search(descriptor.subject.pattern, record)
            one.subject = subject.group(1).strip() if subject else ""
        found.append(one)
    return found


def _file(modality: str, descriptor: Descriptor, own: str, groups: dict[str, str]) -> str:
    """The file that holds a modality."""
    given = descriptor.table.files.get(modality)
    return own if given is None else given.format(**groups, stem=own.rsplit(".", 1)[0])


def _promises(draft: Draft, descriptor: Descriptor, folder: Path, names: dict[str, str]) -> None:
    """What the files hold of each modality. Refused is raised last, so that the hours of the others count."""
    broken: Refused | None = None
    first = None if descriptor.table.ids is None else 0
    for modality, signal in descriptor.signals.items():
        if modality in descriptor.table.files and names[modality] not in draft.root.sizes:
            draft.promise(modality, signal, None)
            continue
        assert signal.source_unit
        rate, odd, path = base.fraction(signal.hz), None, folder / names[modality]
        wanted = _wanted(descriptor, modality)
        try:
            with opened(path, descriptor.table, descriptor.arrays, first, wanted) as columns:
                choice, has = _pick(columns, signal), columns.names
                if choice:
                    rate, odd = _rate(columns, descriptor, modality, choice)
                length = _length(columns, descriptor, choice or has[:1], None if odd else rate)
        except Refused as why:
            if why.reason == "bad_rate":
                draft.seconds[modality], draft.refused[modality] = Fraction(0), why.reason
            else:
                broken = why
                draft.seconds[modality] = Fraction(_lines(path, descriptor)) / rate if rate else Fraction(0)
            continue
        if rate:
            draft.whole = max(draft.whole, Fraction(length) / rate)
        if odd:
            draft.seconds[modality] = Fraction(length) / rate if rate else Fraction(0)
            draft.refuse(modality, signal, "bad_rate", odd)
            continue
        channels = len(choice) if choice else 1
        found = Promise(length, rate, signal.source_unit, channels) if choice else None
        draft.promise(modality, signal, found, has=has)
    if broken is not None:
        raise broken


def _wanted(descriptor: Descriptor, modality: str) -> list[text.Choices]:
    """The channels that are read from the file of a modality, time included."""
    apart = descriptor.table.files
    same = [modality] if modality in apart else [m for m in descriptor.signals if m not in apart]
    time = descriptor.table.time
    return [*(descriptor.signals[m].choices for m in same), *([((time,),)] if time else [])]


def _lines(path: Path, descriptor: Descriptor) -> int:
    """How many samples a file that cannot be taken would hold, as far as its lines or shapes tell; else 0."""
    names = [name for signal in descriptor.signals.values() for choice in signal.choices for name in choice]
    return files.rows(path, descriptor.table, names, descriptor.arrays)


def _pick(columns: Columns, signal: Signal) -> tuple[str, ...] | None:
    there = set(columns.names)
    return next((choice for choice in signal.choices if there.issuperset(choice)), None)


def _rate(
    columns: Columns, descriptor: Descriptor, modality: str, choice: Sequence[str]
) -> tuple[Fraction | None, str | None]:
    """The rate of a modality, and in words why it must be refused (`rates.rate_of`). A column of times tells
    more than a rate that the file states beside it."""
    signal = descriptor.signals[modality]
    if descriptor.table.time is not None and not isinstance(signal.rate, str):
        return base.fraction(signal.hz), None
    present = {m: s for m, s in descriptor.signals.items() if _pick(columns, s)}
    return rates.rate_of(columns, modality, signal, [columns.path(name) for name in choice], present)


def _length(columns: Columns, descriptor: Descriptor, names: Iterable[str], rate: Fraction | None) -> int:
    at = _places(columns, descriptor, rate) if rate else None
    if at is not None:
        return int(at[-1]) + 1 if len(at) else 0
    return min((columns.length(name) for name in names), default=0)


def _places(columns: Columns, descriptor: Descriptor, rate: Fraction) -> np.ndarray | None:
    """Where on the grid of `rate` each row lies, by the column of times; None where there is no such column.

    Raises Refused: bad_time (not rising, or not keeping the rate), bad_rate (another one).
    """
    spec = descriptor.table
    if spec.time is None:
        return None
    if spec.time not in columns.names:
        raise Refused("bad_time", f"no column {spec.time!r}, which holds the times")
    t = columns.read(spec.time).astype(np.float64) * spec.time_unit_s
    step = np.diff(t)
    wrong = np.flatnonzero(~(step > 0))
    if len(wrong) or not np.isfinite(t).all():
        row = int(wrong[0]) + 2 if len(wrong) else 1
        raise Refused("bad_time", f"times do not rise at row {row}")
    if not len(step):
        return np.zeros(len(t), np.int64)
    usual = float(np.median(step)) * float(rate)
    if not 0.9 < usual < 1.1:
        raise Refused("bad_rate", f"rows are {usual:.3g} / {float(rate):g} Hz apart")
    apart = np.where(step * float(rate) > 1.5, np.rint(step * float(rate)), 1.0)
    at = np.concatenate(([0.0], np.cumsum(apart)))
    elapsed = (t - t[0]) * float(rate)
    off = float(np.abs(at - elapsed).max())
    if off > max(JITTER_S * float(rate), JITTER * elapsed[-1]):
        raise Refused("bad_time", f"times stray {off / float(rate):.2f} s from {float(rate):g} Hz")
    if at[-1] > LONGEST * len(t):
        raise Refused(
            "bad_time", f"{len(t):,} rows span {t[-1] - t[0]:,.0f} s: are the times in another unit?"
        )
    return at.astype(np.int64)


def load(source: Source, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples and labels of one record. Raises Refused where a file is broken."""
    own = source.files[0][0]
    signals: dict[str, Samples] = {}
    labels: list[Labels] = []
    notes: list[str] = []
    for modality, signal in descriptor.signals.items():
        if modality not in source.seconds or modality in source.refused:
            continue
        path = folder / _file(modality, descriptor, own, source.groups)
        assert signal.source_unit
        wanted = _wanted(descriptor, modality)
        with opened(path, descriptor.table, descriptor.arrays, source.element, wanted) as columns:
            choice = _pick(columns, signal)
            rate, _ = _rate(columns, descriptor, modality, choice) if choice else (None, None)
            if choice is None or rate is None:
                raise Refused("corrupt", f"{path.name} has changed since it was scanned")
            at = _places(columns, descriptor, rate)
            values = [columns.read(name, signal.missing) for name in choice]
            found = [_channel(x, at, signal.units[signal.source_unit]) for x in values]
        if len({len(c.x) for c in found}) > 1:
            raise Refused("corrupt", f"{path.name}: the channels of {modality} differ in length")
        notes += [note for c in found[:1] if (note := marks.note(modality, c.x, c.missing))]
        signals[modality] = together(found, rate, signal.unit)
        labels.append(Labels(f"{modality}_channel", [" ".join(choice)]))
    more, problems = base.fields(source, folder, descriptor.fields)
    problems += notes
    recording = Recording(signals, [*more, *sorted(labels, key=lambda label: label.name)], problems)
    _traces(recording, folder / own, source, descriptor)
    return recording


def _channel(values: np.ndarray, at: np.ndarray | None, scale: float) -> Channel:
    """A column on its grid: what has no row is missing. Whole numbers become integers, which stay exact."""
    missing = ~np.isfinite(values)
    x = np.where(missing, 0, values)
    if np.issubdtype(x.dtype, np.floating) and (np.abs(x) < 2**31).all() and (x == np.rint(x)).all():
        x = x.astype(np.int64)
    if at is not None:
        length = int(at[-1]) + 1 if len(at) else 0
        wide, gaps = np.zeros(length, x.dtype), np.ones(length, bool)
        wide[at], gaps[at] = x, missing
        x, missing = wide, gaps
    return Channel(x, missing, scale)


def _traces(recording: Recording, own: Path, source: Source, descriptor: Descriptor) -> None:
    """Labels a window out of variables of the record's own file."""
    for rule in descriptor.traces:
        try:
            with opened(own, descriptor.table, descriptor.arrays, source.element) as columns:
                if rule.file is not None or rule.variable not in columns.names:
                    raise Refused("missing_column", f"{own.name} has no {rule.variable!r}")
                values = columns.read(rule.variable).astype(np.float64)
        except Refused as why:
            recording.problems.append(f"label {rule.name}: {why.reason} ({why.detail})")
            continue
        there = np.flatnonzero(np.isfinite(values))
        start = there * rule.step_s
        recording.labels.append(Labels(rule.name, values[there], rule.unit, start, start + rule.window_s))
