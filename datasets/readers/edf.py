"""EDF, BDF, and their + forms (Kemp, Olivan, Clin Neurophysiol 114:1755, 2003): integers, kept unchanged.

Read by our own code, since pyedflib opens no EDF+D and no file that bends the header's rules; the tests
compare with it. In EDF+D each data record states its start: what lies between two is missing, and counted.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np

from datasets.descriptor import Descriptor
from datasets.readers import base, fields, tracks
from datasets.readers.base import Draft, Labels, RecordFile, Recording, Refused, Root
from datasets.readers.edf_header import TAL, Column, Header, onset, read_header


def scan(root: Root, descriptor: Descriptor) -> list[RecordFile]:
    """Every record under `root` that the descriptor names; for EDF+D, with the times of its data records."""
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> None:
    path = draft.fetch([draft.name]) / draft.name
    size = draft.size(draft.name)
    header = read_header(path, size)
    draft.digest = header.digest
    draft.whole = Fraction(header.records) * (base.fraction(header.record_s) or 0)
    have, promised = size - header.start, header.width * header.records
    truncated = have < promised
    onsets = None if truncated else _onsets(path, header)
    tracks.promise(draft, descriptor, header.columns, lambda column: _length(column, header, onsets))
    if truncated:
        raise Refused("truncated", f"{path.name} holds {have:,} bytes of {promised:,}")


def _length(column: Column, header: Header, onsets: np.ndarray | None) -> int:
    if column.rate and onsets is not None:
        return _places(onsets, column.samples, column.rate)[1]
    return header.records * column.samples


def _open(path: Path, header: Header) -> np.ndarray:
    """Bytes (data records, bytes of each) of the file, read on use."""
    shape = (header.records, header.width)
    if not header.records:
        return np.zeros(shape, np.uint8)
    return np.memmap(path, np.uint8, "r", header.start, shape)


def _bytes(raw: np.ndarray, column: Column) -> np.ndarray:
    return raw[:, column.at : column.at + column.size]


def _first_onset(raw: np.ndarray, header: Header) -> float:
    """The start of the first data record, in s after the header's date and time: a fraction of a second."""
    if not header.annotations or not len(raw):
        return 0.0
    return onset(_bytes(raw[:1], header.annotations[0])) or 0.0


def _onsets(path: Path, header: Header) -> np.ndarray | None:
    """The start of each data record (s), from its first annotation; None: they are contiguous.

    An EDF+C whose last data record starts later than it would without a gap has gaps too. Refused if time
    runs back, or is not stated.
    """
    if not header.annotations:
        if header.broken_up:
            raise Refused("corrupt", "EDF+D without annotations of when its data records begin")
        return None
    raw = _bytes(_open(path, header), header.annotations[0])
    if not header.broken_up:
        first, last = (onset(raw[i]) if len(raw) else None for i in (0, -1))
        if first is None or last is None or not 0 < len(raw) * header.record_s <= last - first:
            return None
    found = [onset(record) for record in raw]
    onsets = np.array([at for at in found if at is not None])
    if len(onsets) < len(found):
        raise Refused("corrupt", "a data record does not state when it begins")
    if (np.diff(onsets) < 0.999 * header.record_s).any():
        raise Refused("bad_time", "a data record begins before the previous one ends")
    if len(onsets):
        check = float(onsets[-1] - onsets[0]) + header.record_s
        base.check_span(check, header.records * header.record_s)
    return onsets


def _places(onsets: np.ndarray, samples: int, rate: Fraction) -> tuple[np.ndarray, int]:
    """The first sample of each data record, and the number of samples in all."""
    starts = np.rint((onsets - onsets[0]) * float(rate)).astype(np.int64) if len(onsets) else onsets
    floor = np.arange(len(starts)) * samples  # records short by a fraction of a sample must not overlap
    starts = np.maximum.accumulate(starts - floor) + floor
    return starts, int(starts[-1]) + samples if len(starts) else 0


def load(source: RecordFile, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples (integers of the file) and labels of one record. Raises Refused if the file is broken."""
    path = folder / source.files[0][0]
    header = read_header(path, source.files[0][1])
    onsets = _onsets(path, header)
    raw = _open(path, header)
    labels, problems = fields.read(source, folder, descriptor.fields)
    signals, named = tracks.load(
        source, descriptor, header.columns, lambda c: _stretch(raw, header, c, onsets), lambda c: c.name
    )
    labels += named
    for name, known in descriptor.numerics.channels.items() if descriptor.numerics else ():
        try:
            column = tracks.find(header.columns, name)
            if column and column.flaw:
                raise Refused("bad_scale", column.flaw)
        except Refused as why:
            problems.append(f"label {known.name}: {why.detail}")
            continue
        if column and column.rate:
            x, missing = _stretch(raw, header, column, onsets)
            there = np.flatnonzero(~missing & np.isfinite(x * column.scale))
            values = x[there] * column.scale + column.offset
            step = 1 / float(column.rate)
            labels.append(Labels(known.name, values, known.unit, there * step, (there + 1) * step))
    first = _first_onset(raw, header)
    if descriptor.annotations:
        labels += _annotations(raw, header, descriptor.annotations, first)
    origin = None if header.begins is None else header.begins + first
    return Recording(signals, labels, header.notes + problems, origin)


def _stretch(
    raw: np.ndarray, header: Header, column: Column, onsets: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """One column's samples (T,) in time, and a missing mask."""
    blocks = _integers(np.ascontiguousarray(_bytes(raw, column)), header.depth)
    if onsets is None or not column.rate:
        return blocks, np.zeros(blocks.size, bool)
    starts, length = _places(onsets, column.samples, column.rate)
    at = (starts[:, None] + np.arange(column.samples)).reshape(-1)
    x, missing = np.zeros(length, blocks.dtype), np.ones(length, bool)
    x[at], missing[at] = blocks, False
    return x, missing


def _integers(data: np.ndarray, depth: int) -> np.ndarray:
    """Bytes as int16 (EDF) or, for 24 bits, as int32 (BDF), (T,)."""
    if depth == 2:
        return data.reshape(-1).view("<i2")
    wide = np.zeros((data.size // depth, 4), np.uint8)
    wide[:, 1:] = data.reshape(-1, depth)
    return (wide.view("<i4") >> 8).reshape(-1)  # the top byte's sign bit is extended


def _annotations(raw: np.ndarray, header: Header, name: str, first: float) -> list[Labels]:
    """The file's annotations; time 0 is the start of the first data record, as for the samples."""
    starts, ends, texts = [], [], []
    for column in header.annotations:
        for row in _bytes(raw, column):
            for found in TAL.finditer(np.ascontiguousarray(row).tobytes()):
                at, duration = float(found.group(1)) - first, float(found.group(2) or 0)
                for text in found.group(3).decode("utf-8", "replace").split("\x14"):
                    if text.strip():
                        starts.append(at)
                        ends.append(at + duration)
                        texts.append(text.strip())
    if not texts:
        return []
    order = np.argsort(starts, kind="stable")
    words = [texts[i] for i in order]
    return [Labels(name, words, None, np.array(starts)[order], np.array(ends)[order])]
