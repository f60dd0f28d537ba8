"""ISHNE Holter ECG (Badilini, Ann Noninvasive Electrocardiol 3:263, 1998): int16 samples, kept unchanged.

A channel is named by its number (1, 2, …) or by its lead. Its unit is mV, from the stated resolution.
"""

import binascii
import hashlib
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np

from datasets.descriptor import Descriptor
from datasets.readers import base, fields, kinds, tracks
from datasets.readers.base import Draft, RecordFile, Recording, Refused, Root
from datasets.readers.tracks import Track

MAGIC = b"ISHNE1.0"
FIXED = 522  # bytes of the fixed header, before its variable block
LEADS = (
    "unknown",
    "generic",
    "X",
    "Y",
    "Z",
    "I",
    "II",
    "III",
    "aVR",
    "aVL",
    "aVF",
    "V1",
    "V2",
    "V3",
    "V4",
    "V5",
    "V6",
    "ES",
    "AS",
    "AI",
)


@dataclass(frozen=True)
class Header:
    """`length`: samples per lead, from byte `start`; `begins`: date and time, s since 1970 as if UTC."""

    leads: list[Track]
    length: int
    start: int
    begins: float | None
    digest: str
    missing: int  # bytes that the header promises and the file lacks
    notes: list[str] = field(default_factory=list)


def scan(root: Root, descriptor: Descriptor) -> list[RecordFile]:
    """Every record under `root` that the descriptor names, from headers only."""
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> None:
    path = draft.fetch([draft.name]) / draft.name
    header = read_header(path, draft.size(draft.name))
    draft.digest = header.digest
    draft.whole = Fraction(header.length) / (header.leads[0].rate or 1)
    tracks.promise(draft, descriptor, header.leads, lambda lead: header.length)
    if header.missing:
        raise Refused("truncated", f"{path.name} lacks {header.missing:,} bytes that its header counts")


def read_header(path: Path, size: int) -> Header:
    """The header of the ISHNE file of `size` bytes. Refused: it is not one, or is inconsistent."""
    with open(path, "rb") as file:
        head = file.read(FIXED)
        if len(head) < FIXED or head[:8] != MAGIC:
            kind = kinds.kind_of(path)
            what = f"it is not an ISHNE Holter ECG but {kind}" if kind else "it is not an ISHNE Holter ECG"
            raise Refused("unsupported" if kind and kind.reader != "ishne" else "corrupt", what)
        (checksum,) = struct.unpack_from("<H", head, 8)
        _, counted, _, start = struct.unpack_from("<4i", head, 10)
        count, *leads = struct.unpack_from("<13h", head, 156)
        resolutions = struct.unpack_from("<12h", head, 206)
        (rate,) = struct.unpack_from("<h", head, 272)
        if not (1 <= count <= 12 and rate > 0 and counted >= 0 and FIXED <= start <= size):
            stated = f"{count} leads, {rate} Hz, {counted} samples from byte {start} on"
            raise Refused("corrupt", f"unreadable ISHNE header: {stated}")
        head += file.read(start - FIXED)
    notes = []
    if checksum != binascii.crc_hqx(head[10:], 0xFFFF):
        notes.append("its checksum does not match the header, which was edited: check leads and rate")
    have = (size - start) // (2 * count)
    each = counted if size - start != 2 * counted else counted // count  # writers count one lead or all
    if each < have:
        notes.append(f"the header counts {each:,} samples a lead, the file holds {have:,}: all are read")
        each = have
    named = [
        Track(
            str(i + 1),
            LEADS[leads[i]] if 0 <= leads[i] < len(LEADS) else "unknown",
            "mV",
            Fraction(rate),
            resolutions[i] * 1e-6,
            0.0,
            "" if resolutions[i] > 0 else f"its header gives a resolution of {resolutions[i]} nV",
        )
        for i in range(count)
    ]
    lacking = max(0, 2 * count * each - (size - start))
    return Header(named, each, start, _begins(head), hashlib.sha256(head).hexdigest(), lacking, notes)


def _begins(head: bytes) -> float | None:
    day, month, year = struct.unpack_from("<3h", head, 138)
    try:
        hour, minute, second = struct.unpack_from("<3h", head, 150)
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):  # invalid date or time
        return None


def load(source: RecordFile, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples (integers of the file) and labels of one record. Raises Refused if the file is broken."""
    path = folder / source.files[0][0]
    header = read_header(path, source.files[0][1])
    shape = (header.length, len(header.leads))
    raw = np.memmap(path, "<i2", "r", header.start, shape) if header.length else np.zeros(shape, "<i2")
    labels, problems = fields.read(source, folder, descriptor.fields)

    def samples(lead: Track) -> tuple[np.ndarray, np.ndarray]:
        return np.array(raw[:, int(lead.name) - 1]), np.zeros(header.length, bool)

    signals, named = tracks.load(source, descriptor, header.leads, samples)
    return Recording(signals, labels + named, header.notes + problems, header.begins)
