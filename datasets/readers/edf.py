"""EDF, EDF+C and EDF+D (Kemp, Olivan, Clin Neurophysiol 114:1755, 2003): int16 samples, kept as they are.

Read here, since pyedflib opens no EDF+D and no file that bends the header's rules; the tests compare with it.
In EDF+D each data record says when it begins: what lies between two is missing, and counted.
"""

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from datasets.descriptor import Descriptor, Signal
from datasets.readers import base
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
)

ANNOTATIONS = "EDF Annotations"
FIELDS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)  # widths of the header's columns, a signal
# onset, duration, texts: a time-stamped annotation list (EDF+ 2.2.2)
_TAL = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14((?:[^\x14\x00]*\x14)*)\x00")


@dataclass(frozen=True)
class Column:
    """A signal: where it lies in a data record, its length there, and physical = raw * scale + offset."""

    name: str
    unit: str
    scale: float
    offset: float
    at: int
    samples: int


@dataclass(frozen=True)
class Header:
    columns: list[Column]
    records: int
    record_s: float
    start: int  # bytes of the header
    width: int  # int16 words a data record
    broken_up: bool  # EDF+D
    digest: str

    def rate(self, column: Column) -> Fraction | None:
        return base.fraction(column.samples / self.record_s) if self.record_s > 0 else None

    def find(self, name: str) -> Column | None:
        return next((c for c in self.columns if c.name == name and name != ANNOTATIONS), None)

    def pick(self, signal: Signal) -> list[Column] | None:
        for choice in signal.choices:
            found = [c for name in choice if (c := self.find(name)) is not None]
            if len(found) == len(choice):
                return found
        return None


def scan(root: Root, descriptor: Descriptor) -> list[Source]:
    """Every record under `root` that the descriptor names; of EDF+D, the times of its data records, too."""
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> None:
    path = draft.fetch([draft.name]) / draft.name
    size = draft.size(draft.name)
    header = read_header(path, size)
    draft.digest = header.digest
    draft.whole = Fraction(header.records) * (base.fraction(header.record_s) or 0)
    have = size - header.start
    truncated = have < 2 * header.width * header.records
    onsets = None if truncated or not header.broken_up else _onsets(path, header)
    for modality, signal in descriptor.signals.items():
        columns = header.pick(signal)
        promised = None
        if columns:
            rates = {header.rate(c) for c in columns}
            rate = rates.pop() if len(rates) == 1 else None
            length = header.records * columns[0].samples
            if rate and onsets is not None:
                length = _places(onsets, columns[0].samples, rate)[1]
            units = {_unit(c, signal) for c in columns}
            unit = min(units - set(signal.units) or units)
            sound = all(base.usable(c.scale, c.offset) for c in columns)
            promised = Promise(length, rate, unit, len(columns), sound)
        draft.promise(modality, signal, promised)
    if truncated:
        promise = 2 * header.width * header.records
        raise Refused("truncated", f"{path.name} holds {have:,} bytes of {promise:,}")


def _unit(column: Column, signal: Signal) -> str:
    return column.unit or signal.source_unit or ""


def read_header(path: Path, size: int) -> Header:
    """The header of an EDF file of `size` bytes. Refused: it is none, or BDF, or says what cannot be."""
    with open(path, "rb") as file:
        first = file.read(256)
        if len(first) < 256 or first[:8].strip() != b"0":
            bdf = first[:1] == b"\xff"
            raise Refused("unsupported", "BDF") if bdf else Refused("corrupt", "not an EDF file")
        try:
            count, records = int(first[252:256]), int(first[236:244])
            record_s, start = float(first[244:252]), int(first[184:192])
            if not (count > 0 and start == 256 * (count + 1) and 0 <= record_s < 1e9):
                raise ValueError("counts that do not fit each other")
            more = file.read(256 * count)
            columns = _columns(more, count)
        except ValueError as error:
            raise Refused("corrupt", f"unreadable EDF header ({error})") from error
    width = sum(c.samples for c in columns)
    if records < 0:  # a recorder that was cut off leaves -1: what is there counts
        records = max(0, size - start) // (2 * width)
    reserved = first[192:236].decode("latin-1")
    digest = hashlib.sha256(first + more).hexdigest()
    return Header(columns, records, record_s, start, width, reserved.startswith("EDF+D"), digest)


def _columns(text: bytes, count: int) -> list[Column]:
    if len(text) < 256 * count:
        raise ValueError("it ends early")
    table: list[list[str]] = []
    at = 0
    for width in FIELDS:
        cells = [text[at + i * width : at + (i + 1) * width] for i in range(count)]
        table.append([cell.decode("latin-1").strip() for cell in cells])
        at += width * count
    columns, place = [], 0
    for name, unit, low, high, least, most, samples in zip(
        table[0], table[2], table[3], table[4], table[5], table[6], table[8], strict=True
    ):
        n = int(samples)
        if n < 1:
            raise ValueError(f"{n} samples of {name} a data record")
        scale = offset = float("nan")
        if name != ANNOTATIONS and int(most) != int(least):
            scale = (float(high) - float(low)) / (int(most) - int(least))
            offset = float(low) - int(least) * scale
        columns.append(Column(name, unit, scale, offset, place, n))
        place += n
    return columns


def _open(path: Path, header: Header) -> np.ndarray:
    """Raw samples (data records, words) of the file, not read until used."""
    shape = (header.records, header.width)
    if not header.records:
        return np.zeros(shape, "<i2")
    return np.memmap(path, "<i2", "r", header.start, shape)


def _onsets(path: Path, header: Header) -> np.ndarray:
    """When each data record begins (s), from the first annotation of each; Refused where time runs back."""
    column = next((c for c in header.columns if c.name == ANNOTATIONS), None)
    if column is None:
        raise Refused("corrupt", "EDF+D without the annotations that say when its data records begin")
    raw = _open(path, header)[:, column.at : column.at + column.samples]
    found = [_TAL.match(np.ascontiguousarray(row).tobytes()) for row in raw]
    if not all(found):
        raise Refused("corrupt", "a data record that does not say when it begins")
    onsets = np.array([float(m.group(1)) for m in found if m])
    if (np.diff(onsets) < 0.999 * header.record_s).any():
        raise Refused("bad_time", "a data record begins before the one before it ends")
    if len(onsets):
        check = float(onsets[-1] - onsets[0]) + header.record_s
        base.check_span(check, header.records * header.record_s)
    return onsets


def _places(onsets: np.ndarray, samples: int, rate: Fraction) -> tuple[np.ndarray, int]:
    """The sample at which each data record begins, and how many there are in all."""
    starts = np.rint((onsets - onsets[0]) * float(rate)).astype(np.int64) if len(onsets) else onsets
    floor = np.arange(len(starts)) * samples  # records of less than a sample too few must not overlap
    starts = np.maximum.accumulate(starts - floor) + floor
    return starts, int(starts[-1]) + samples if len(starts) else 0


def load(source: Source, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples (integers of the file) and labels of one record. Raises Refused where the file is broken."""
    path = folder / source.files[0][0]
    header = read_header(path, source.files[0][1])
    onsets = _onsets(path, header) if header.broken_up else None
    raw = _open(path, header)
    labels, problems = base.fields(source, folder, descriptor.fields)
    signals = {}
    for m, signal in descriptor.signals.items():
        columns = header.pick(signal) if m in source.seconds and m not in source.refused else None
        if columns:
            signals[m] = _samples(raw, header, columns, onsets, signal)
            labels.append(Labels(f"{m}_channel", ["+".join(c.name for c in columns)]))
    if descriptor.numerics:
        for name, known in descriptor.numerics.channels.items():
            column = header.find(name)
            if column is not None and (rate := header.rate(column)):
                x, missing = _stretch(raw, column, onsets, rate)
                there = np.flatnonzero(~missing & np.isfinite(x * column.scale))
                values = x[there] * column.scale + column.offset
                step = 1 / float(rate)
                labels.append(Labels(known.name, values, known.unit, there * step, (there + 1) * step))
    if descriptor.annotations:
        labels += _annotations(raw, header, descriptor.annotations)
    return Recording(signals, labels, problems)


def _stretch(
    raw: np.ndarray, column: Column, onsets: np.ndarray | None, rate: Fraction
) -> tuple[np.ndarray, np.ndarray]:
    """One column's samples (T,) in time, and which are missing."""
    blocks = raw[:, column.at : column.at + column.samples]
    if onsets is None:
        return np.asarray(blocks).reshape(-1), np.zeros(blocks.size, bool)
    starts, length = _places(onsets, column.samples, rate)
    at = (starts[:, None] + np.arange(column.samples)).reshape(-1)
    x, missing = np.zeros(length, np.int16), np.ones(length, bool)
    x[at], missing[at] = blocks.reshape(-1), False
    return x, missing


def _samples(
    raw: np.ndarray, header: Header, columns: list[Column], onsets: np.ndarray | None, signal: Signal
) -> Samples:
    rate = header.rate(columns[0])
    assert rate is not None
    channels = []
    for column in columns:
        factor = signal.units[_unit(column, signal)]
        x, missing = _stretch(raw, column, onsets, rate)
        channels.append(Channel(x, missing, factor * column.scale, factor * column.offset))
    return base.together(channels, rate, signal.unit, signal.missing)


def _annotations(raw: np.ndarray, header: Header, name: str) -> list[Labels]:
    """The file's own annotations; time 0 is where the first data record begins, as it is for the samples."""
    origin: float | None = None
    starts, ends, texts = [], [], []
    for column in header.columns:
        if column.name != ANNOTATIONS:
            continue
        for row in raw[:, column.at : column.at + column.samples]:
            for found in _TAL.finditer(np.ascontiguousarray(row).tobytes()):
                onset, duration = float(found.group(1)), float(found.group(2) or 0)
                origin = onset if origin is None else origin
                for text in found.group(3).decode("utf-8", "replace").split("\x14"):
                    if text.strip():
                        starts.append(onset - origin)
                        ends.append(onset - origin + duration)
                        texts.append(text.strip())
    if not texts:
        return []
    order = np.argsort(starts, kind="stable")
    words = [texts[i] for i in order]
    return [Labels(name, words, None, np.array(starts)[order], np.array(ends)[order])]
