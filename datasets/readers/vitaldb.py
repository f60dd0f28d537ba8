"""VitalDB `.vital` files: waveforms at their native rate, numeric tracks as labels.

The vitaldb package silently skips what it cannot read, so the file is checked first: the gzip checksum,
complete packets, and the number of records that the package then returns. A recording begins with the first
sample of its wanted waveforms. Packets carry their arrival time (see `packets`), in seconds UTC; the header's
time zone changes nothing.
"""

import gzip
import hashlib
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from datasets.descriptor import Descriptor, Named, Signal
from datasets.readers import base, fields, packets
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
)

WAVE, NUMBER = 1, 2  # track types
INFO, RECORD = 0, 1  # packet types
NOTHING = 4e9  # from this value on the package, too, treats a number as missing
_printing = threading.Lock()


@dataclass(frozen=True)
class Track:
    """A placed waveform: raw samples from `start` of the file's clock (s), and a missing mask."""

    x: np.ndarray
    missing: np.ndarray
    rate: Fraction
    start: float
    scale: float
    offset: float
    unit: str


@dataclass
class Case:
    """The wanted waveforms of a file, by modality: track names, placed tracks, and why some are refused.

    `origin`: the file's clock at time 0, in s since 1970, UTC.
    """

    picked: dict[str, tuple[str, ...]]
    tracks: dict[str, list[Track]] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    origin: float | None = None


def scan(root: Root, descriptor: Descriptor) -> list[RecordFile]:
    """Every record under `root` that the descriptor names. Files are read: they have no table of contents."""
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> None:
    path = draft.fetch([draft.name]) / draft.name
    with open(path, "rb") as file:
        draft.digest = hashlib.file_digest(file, "sha256").hexdigest()
    vital, broken = read(path)
    case = Case(_picked(vital, descriptor)) if broken else _case(vital, descriptor)
    origin = case.origin or 0.0
    lengths = {
        m: max(_amount(vital.trks[name]) for name in names) for m, names in case.picked.items() if names
    }
    lengths |= {m: _length(tracks, origin) for m, tracks in case.tracks.items()}
    rates = {m: _rates(vital, names) for m, names in case.picked.items()}
    has = [name for name, track in vital.trks.items() if track.type == WAVE and track.recs]
    known = [Fraction(n) / min(rates[m]) for m, n in lengths.items() if rates[m]]
    known += [Fraction(_amount(vital.trks[n])) / rate for n in has for rate in _rates(vital, (n,))]
    draft.whole = max(known, default=Fraction(0))
    for modality, signal in descriptor.signals.items():
        names = case.picked[modality]
        units = {_unit(vital.trks[name].unit, signal) for name in names}
        found = Promise(
            lengths.get(modality, 0),
            min(rates[modality], default=None),
            min(units - set(signal.units) or units, default=""),
            len(names),
            all(base.usable(*_scale(vital.trks[name])) for name in names),
        )
        draft.promise(modality, signal, found if names else None, has)
        if len(rates[modality]) > 1:
            differ = " and ".join(f"{float(rate):g}" for rate in sorted(rates[modality]))
            draft.refuse(modality, "bad_rate", f"{differ} Hz differ: name other channels in `channels`")
        elif modality in case.refused and modality not in draft.refused:
            why = case.refused[modality]
            draft.refuse(modality, why.reason, why.detail)
    if broken:
        raise broken


def _unit(stated: str, signal: Signal) -> str:
    return signal.listed(stated or signal.source_unit or "")


def _picked(vital: Any, descriptor: Descriptor) -> dict[str, tuple[str, ...]]:
    return {m: _pick(vital, signal) for m, signal in descriptor.signals.items()}


def _pick(vital: Any, signal: Signal) -> tuple[str, ...]:
    for choice in signal.choices:
        tracks = [vital.trks.get(name) for name in choice]
        if all(t is not None and t.type == WAVE and t.recs for t in tracks):
            return choice
    return ()


def _rates(vital: Any, names: tuple[str, ...]) -> set[Fraction]:
    return {rate for name in names if (rate := base.fraction(vital.trks[name].srate))}


def _amount(track: Any) -> int:
    return sum(len(record["val"]) for record in track.recs)


def _scale(track: Any) -> tuple[float, float]:
    return (track.gain, track.offset) if track.fmt > 2 else (1.0, 0.0)


def _case(vital: Any, descriptor: Descriptor) -> Case:
    case = Case(_picked(vital, descriptor))
    streams: dict[str, dict[str, packets.Stream]] = {}
    for m, names in case.picked.items():
        rates = _rates(vital, names)
        if len(rates) == 1:
            with _refusing(case, m):
                streams[m] = {name: _stream(vital.trks[name], float(min(rates))) for name in names}
    # one clock stamps all tracks: tracks that follow it and tracks that do not would drift apart
    follow = not vital.packed and any(s.drifts() for tracks in streams.values() for s in tracks.values())
    for m, of_track in streams.items():
        with _refusing(case, m):
            case.tracks[m] = [
                _place(vital.trks[name], stream, vital.packed, follow) for name, stream in of_track.items()
            ]
            case.notes += [f"{name}: {note}" for name, s in of_track.items() for note in s.notes()]
    starts = [track.start for tracks in case.tracks.values() for track in tracks]
    case.origin = min(starts, default=None)
    for m, tracks in list(case.tracks.items()):
        with _refusing(case, m):
            for track in tracks:
                base.check_span(track.start - min(starts), len(track.x) / float(track.rate))
    case.tracks = {m: tracks for m, tracks in case.tracks.items() if m not in case.refused}
    return case


@contextmanager
def _refusing(case: Case, modality: str) -> Iterator[None]:
    """A track that cannot be placed refuses its modality, not the record."""
    try:
        yield
    except Refused as why:
        case.refused[modality] = why


def _stream(track: Any, rate: float) -> packets.Stream:
    values = [record["val"] for record in track.recs]
    if values[0].dtype.kind == "f":  # NaN is not below it either
        values = [v if (there := np.abs(v) < NOTHING).all() else np.where(there, v, np.nan) for v in values]
    try:
        return packets.read(np.array([record["dt"] for record in track.recs]), values, rate)
    except Refused as why:
        raise Refused(why.reason, f"{track.dtname}: {why.detail}") from why


def _place(track: Any, stream: packets.Stream, packed: bool, follow: bool) -> Track:
    from vitaldb.utils import FMT_NAN

    x, missing, start = packets.lay(stream, follow)
    if x.dtype.kind == "f":
        missing |= np.isnan(x)
    elif packed:  # packing fills gaps with the format's missing value
        missing |= x == FMT_NAN[track.fmt]
    rate = base.fraction(track.srate)
    assert rate is not None
    return Track(x, missing, rate, start, *_scale(track), track.unit)


def _length(tracks: list[Track], origin: float) -> int:
    return max(_shift(track, origin) + len(track.x) for track in tracks)


def _shift(track: Track, origin: float) -> int:
    return round((track.start - origin) * float(track.rate))


# ---------------------------------------------------------------- the file


def read(path: Path) -> tuple[Any, Refused | None]:
    """The file as the package reads it, and why it is unusable: something was skipped."""
    from vitaldb import VitalFile

    vital, printed = VitalFile(None), StringIO()
    try:
        promised = _walk(path)
    except Refused as why:
        with _printing, redirect_stdout(printed), suppress(Exception):
            vital.load_vital(str(path))  # its readable part determines how many hours are refused
        return vital, why
    with _printing, redirect_stdout(printed):
        try:
            whole = vital.load_vital(str(path))
        except Exception as error:  # a file that ends within its first packets
            return vital, Refused("corrupt", f"{path.name}: {error}")
    got = sum(len(track.recs) for track in vital.trks.values() if track.type in (WAVE, NUMBER))
    if whole and got == promised:
        return vital, None
    words = printed.getvalue().strip().splitlines()
    lost = words[0] if words else f"{promised - got} of {promised} records cannot be read"
    return vital, Refused("corrupt", f"{path.name}: {lost}")


def _walk(path: Path) -> int:
    """Records of waveforms and numbers in the file. Refused: it is not one, or ends within a packet."""
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
    """(type, bytes, first bytes, or None if the file ends within the packet) of each packet."""
    while head := file.read(5):
        kind, size = struct.unpack("<BL", head) if len(head) == 5 else (-1, 0)
        body = file.read(min(size, 64))
        left = size - len(body)
        while left > 0 and (more := file.read(min(left, 2**20))):
            left -= len(more)
        yield kind, size, body if left == 0 and kind >= 0 else None


# ---------------------------------------------------------------- loading


def load(source: RecordFile, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples at their native rate and labels of one record. Raises Refused if the file is broken."""
    vital, broken = read(folder / source.files[0][0])
    if broken:
        raise broken
    case = _case(vital, descriptor)
    origin = case.origin or 0.0
    signals, (labels, problems) = {}, fields.read(source, folder, descriptor.fields)
    for m, tracks in case.tracks.items():
        if m in source.seconds and m not in source.refused:
            with base.alone(m):
                signals[m] = _samples(tracks, origin, descriptor.signals[m])
            labels.append(Labels(f"{m}_channel", ["+".join(case.picked[m])]))
    if descriptor.numerics:
        for name, known in descriptor.numerics.channels.items():
            track = vital.trks.get(name)
            if track is not None and track.type == NUMBER:
                labels += _numbers(track, known, origin, descriptor.numerics.hold_s)
    if descriptor.annotations and (events := vital.trks.get("EVENT")) is not None:
        labels += _words(events, descriptor.annotations, origin)
    return Recording(signals, labels, problems, origin=case.origin, notes=case.notes)


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
    """A number is valid until the next one, at most for `hold_s`."""
    records = sorted(track.recs, key=lambda r: r["dt"])
    factor, offset = _scale(track)
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
