"""VitalDB `.vital` files: waveforms at their native rate, numeric tracks as labels.

The vitaldb package skips what it cannot read and says nothing, so the file is walked through first: the gzip
checksum, whole packets, and as many records as the package then returns. A recording begins with the first
sample of its wanted waveforms.
"""

import gzip
import hashlib
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from datasets.descriptor import Descriptor, Named, Signal
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

WAVE, NUMBER, WORDS = 1, 2, 5  # track types
INFO, RECORD = 0, 1  # packet types
JITTER_S = 0.1  # packets carry the clock of their arrival: closer than this to the one before, they follow it
NOTHING = 4e9  # at and beyond this the package, too, reads a number as missing
_printing = threading.Lock()


@dataclass(frozen=True)
class Track:
    """A waveform as placed: raw samples from `start` of the file's clock on (s), and which are missing."""

    x: np.ndarray
    missing: np.ndarray
    rate: Fraction
    start: float
    scale: float
    offset: float
    unit: str


def scan(root: Root, descriptor: Descriptor) -> list[Source]:
    """Every record under `root` that the descriptor names. Files are read: they hold no table of contents."""
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> None:
    path = draft.fetch([draft.name]) / draft.name
    with open(path, "rb") as file:
        draft.digest = hashlib.file_digest(file, "sha256").hexdigest()
    vital = _read(path)
    picked = {m: _pick(vital, signal) for m, signal in descriptor.signals.items()}
    rates = {m: _rate(vital, names) for m, names in picked.items()}
    placed = {
        m: [_place(vital.trks[name], rates[m], vital.packed) for name in names]
        for m, names in picked.items()
        if rates[m]
    }
    origin = _origin(placed)
    lengths = {m: _length(tracks, origin) for m, tracks in placed.items()}
    draft.whole = max((Fraction(n) / (rates[m] or 1) for m, n in lengths.items()), default=Fraction(0))
    for modality, signal in descriptor.signals.items():
        names = picked[modality]
        tracks = placed.get(modality, [])
        units = {_unit(vital.trks[name].unit, signal) for name in names}
        found = Promise(
            lengths.get(modality, 0),
            rates[modality],
            min(units - set(signal.units) or units, default=""),
            len(names),
            all(base.usable(t.scale, t.offset) for t in tracks),
        )
        draft.promise(modality, signal, found if names else None)


def _unit(stated: str, signal: Signal) -> str:
    return stated or signal.source_unit or ""


def _pick(vital: Any, signal: Signal) -> tuple[str, ...]:
    for choice in signal.choices:
        tracks = [vital.trks.get(name) for name in choice]
        if all(t is not None and t.type == WAVE and t.recs for t in tracks):
            return choice
    return ()


def _rate(vital: Any, names: tuple[str, ...]) -> Fraction | None:
    rates = {base.fraction(vital.trks[name].srate) for name in names}
    return rates.pop() if len(rates) == 1 else None


# ---------------------------------------------------------------- the file


def _read(path: Path) -> Any:
    """The file as the package reads it, once it is sure that nothing of it was skipped."""
    from vitaldb import VitalFile

    promised = _walk(path)
    vital = VitalFile(None)
    with _printing, redirect_stdout(StringIO()) as said:
        try:
            read = vital.load_vital(str(path))
        except Exception as error:  # a file that ends within its first packets
            raise Refused("corrupt", f"{path.name}: {error}") from error
    got = sum(len(track.recs) for track in vital.trks.values() if track.type in (WAVE, NUMBER))
    if not read or got != promised:
        words = said.getvalue().strip().splitlines()
        why = words[0] if words else f"{promised - got} of {promised} records cannot be read"
        raise Refused("corrupt", f"{path.name}: {why}")
    return vital


def _walk(path: Path) -> int:
    """Records of waveforms and numbers in the file. Refused: it is none, or ends within a packet."""
    kinds: dict[int, int] = {}
    count = 0
    try:
        with gzip.open(path) as file:
            start = file.read(10)
            if start[:4] != b"VITA" or len(start) < 10:
                raise Refused("corrupt", f"{path.name} is not a .vital file")
            length = struct.unpack_from("<H", start, 8)[0]
            header = file.read(length)
            packed = len(header) > 26 and header[26] == 1
            for kind, size, body in _packets(file):
                if body is None or (not packed and size > 1_000_000):
                    raise Refused("truncated", f"{path.name} ends within a packet of {size:,} bytes")
                if kind == INFO and size >= 3:
                    kinds[struct.unpack_from("<H", body)[0]] = body[2]
                if kind == RECORD:
                    track = struct.unpack_from("<H", body, 10)[0] if size >= 12 else -1
                    count += kinds.get(track, WAVE) in (WAVE, NUMBER)
    except EOFError as error:
        raise Refused("truncated", f"{path.name} ends early") from error
    except (OSError, zlib.error) as error:
        raise Refused("corrupt", f"{path.name} is not a .vital file ({error})") from error
    return count


def _packets(file: Any) -> Iterator[tuple[int, int, bytes | None]]:
    """(type, bytes, first bytes or None where the file ends before the packet does) of each packet."""
    while head := file.read(5):
        kind, size = struct.unpack("<BL", head) if len(head) == 5 else (-1, 0)
        body = file.read(min(size, 64))
        left = size - len(body)
        while left > 0 and (more := file.read(min(left, 2**20))):
            left -= len(more)
        yield kind, size, body if left == 0 and kind >= 0 else None


def _place(track: Any, rate: Fraction | None, packed: bool) -> Track:
    """A waveform's records one after another, gaps between them missing. Refused where time runs back."""
    from vitaldb.utils import FMT_NAN

    assert rate is not None
    records = sorted(track.recs, key=lambda r: r["dt"])
    times = np.array([r["dt"] for r in records])
    lengths = [len(r["val"]) for r in records]
    if not np.isfinite(times).all():
        raise Refused("bad_time", f"a record of {track.name} without a time")
    base.check_span(float(times[-1] - times[0]), sum(lengths) / float(rate))
    starts, end = [], 0
    for time, length in zip(times, lengths, strict=True):
        at = round((time - times[0]) * float(rate))
        if abs(at - end) <= JITTER_S * rate:
            at = end
        if at < end:
            raise Refused("bad_time", f"a record of {track.name} begins before the one before it ends")
        starts.append(at)
        end = at + length
    kind = records[0]["val"].dtype
    x, missing = np.zeros(end, kind), np.ones(end, bool)
    for record, at, length in zip(records, starts, lengths, strict=True):
        x[at : at + length], missing[at : at + length] = record["val"], False
    if kind.kind == "f":
        missing |= ~(np.abs(x) < NOTHING)  # NaN is not, either
        return Track(x, missing, rate, float(times[0]), 1.0, 0.0, track.unit)
    if packed:  # packing fills gaps with the format's own missing value
        missing |= x == FMT_NAN[track.fmt]
    return Track(x, missing, rate, float(times[0]), track.gain, track.offset, track.unit)


def _origin(placed: dict[str, list[Track]]) -> float:
    return min((track.start for tracks in placed.values() for track in tracks), default=0.0)


def _length(tracks: list[Track], origin: float) -> int:
    return max(_shift(track, origin) + len(track.x) for track in tracks)


def _shift(track: Track, origin: float) -> int:
    base.check_span(track.start - origin, len(track.x) / float(track.rate))
    return round((track.start - origin) * float(track.rate))


# ---------------------------------------------------------------- loading


def load(source: Source, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples at their native rate and labels of one record. Raises Refused where the file is broken."""
    vital = _read(folder / source.files[0][0])
    picked = {m: _pick(vital, signal) for m, signal in descriptor.signals.items()}
    placed: dict[str, list[Track]] = {}
    for m, names in picked.items():
        if names and (rate := _rate(vital, names)):
            placed[m] = [_place(vital.trks[name], rate, vital.packed) for name in names]
    origin = _origin(placed)
    signals, (labels, problems) = {}, base.fields(source, folder, descriptor.fields)
    for m, tracks in placed.items():
        if m in source.seconds and m not in source.refused:
            signals[m] = _samples(tracks, origin, descriptor.signals[m])
            labels.append(Labels(f"{m}_channel", ["+".join(picked[m])]))
    if descriptor.numerics:
        for name, known in descriptor.numerics.channels.items():
            track = vital.trks.get(name)
            if track is not None and track.type == NUMBER:
                labels += _numbers(track, known, origin, descriptor.numerics.hold_s)
    if descriptor.annotations and (events := vital.trks.get("EVENT")) is not None:
        labels += _words(events, descriptor.annotations, origin)
    return Recording(signals, labels, problems)


def _samples(tracks: list[Track], origin: float, signal: Signal) -> Samples:
    length = _length(tracks, origin)
    channels = []
    for track in tracks:
        x, missing = np.zeros(length, track.x.dtype), np.ones(length, bool)
        at = slice(_shift(track, origin), _shift(track, origin) + len(track.x))
        x[at], missing[at] = track.x, track.missing
        factor = signal.units[_unit(track.unit, signal)]
        channels.append(Channel(x, missing, factor * track.scale, factor * track.offset))
    return base.together(channels, tracks[0].rate, signal.unit, signal.missing)


def _numbers(track: Any, known: Named, origin: float, hold_s: float) -> list[Labels]:
    """A number holds until the next one, `hold_s` at most."""
    records = sorted(track.recs, key=lambda r: r["dt"])
    factor, offset = (track.gain, track.offset) if track.fmt > 2 else (1.0, 0.0)
    start = np.array([r["dt"] for r in records], np.float64) - origin
    values = np.array([r["val"] for r in records], np.float64) * factor + offset
    end = np.minimum(np.append(start[1:], math.inf), start + hold_s)
    there = np.isfinite(start) & np.isfinite(values) & (np.abs(values) < NOTHING) & (end > 0) & (end > start)
    found = Labels(known.name, values[there], known.unit, np.maximum(start[there], 0), end[there])
    return [found] if there.any() else []


def _words(track: Any, name: str, origin: float) -> list[Labels]:
    records = sorted(track.recs, key=lambda r: r["dt"])
    kept = [(r["dt"] - origin, r["val"].strip()) for r in records if isinstance(r["val"], str)]
    kept = [(at, text) for at, text in kept if text and math.isfinite(at) and at >= 0]
    at = np.array([at for at, _ in kept])
    return [Labels(name, [text for _, text in kept], None, at, at)] if kept else []
