"""The layout of a WFDB record: which stretch of it lies in which signal files.

A single-segment record is one piece; a multi-segment record (fixed or variable layout) is many, with gaps
where its header names the null segment `~`. Everything is checked against file sizes before a sample is read.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePosixPath

from wfdb.io._signal import BYTES_PER_SAMPLE

from datasets.descriptor import Signal
from datasets.readers.base import Refused, check_span
from datasets.readers.wfdb_header import Header, Line, read_header

NULL = "~"  # instead of a segment's name or a signal's file: no samples
EXACT = {fmt: Fraction(width).limit_denominator(3) for fmt, width in BYTES_PER_SAMPLE.items()}  # bytes


@dataclass(frozen=True)
class Piece:
    """`frames` frames from frame `start` of the record on, in the files of `header`, the record at `stem`."""

    header: Header
    stem: str
    start: int
    frames: int

    def path(self, line: Line) -> str:
        """The signal's file, below the root."""
        return str(PurePosixPath(self.stem).parent / line.file)

    @cached_property
    def known(self) -> dict[str, int]:
        """Its channels' places among the signals, by name; of two with the same name, the first."""
        signals = list(enumerate(self.header.signals))
        return {line.name: i for i, line in reversed(signals) if line.file != NULL}

    def find(self, choice: tuple[str, ...]) -> list[int] | None:
        """The places of `choice`'s channels among its signals; None unless all are there."""
        return [self.known[name] for name in choice] if all(name in self.known for name in choice) else None


@dataclass
class Layout:
    """`rate`: frames per second (None: not stated). `files`: all files to read. `digest`: of all headers.

    `faults`: errors of signal files, known from their sizes; `broken`: error of the headers.
    """

    header: Header
    rate: Fraction | None
    frames: int
    pieces: list[Piece] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    digest: str = ""
    faults: dict[str, Refused] = field(default_factory=dict)
    broken: Refused | None = None

    @property
    def names(self) -> list[str]:
        """The names of all its channels, without duplicates."""
        lines = (line for piece in self.pieces for line in piece.header.signals)
        return list(dict.fromkeys(line.name for line in lines if line.file != NULL))

    def pick(self, signal: Signal) -> tuple[str, ...] | None:
        """The channels to use: of the choices that the record has, the first that covers most of it."""
        best, most = None, 0
        for choice in signal.choices:
            covered = sum(piece.frames for piece, _ in self.holding(choice))
            if covered > most:
                best, most = choice, covered
        return best

    def holding(self, choice: tuple[str, ...]) -> list[tuple[Piece, list[int]]]:
        """The pieces that hold all channels of `choice`, with their places in each."""
        found = ((piece, piece.find(choice)) for piece in self.pieces)
        return [(piece, where) for piece, where in found if where is not None]

    def fault(self, choice: tuple[str, ...]) -> Refused | None:
        """The first error of the files that hold `choice`."""
        paths = (p.path(p.header.signals[i]) for p, where in self.holding(choice) for i in where)
        return next((self.faults[path] for path in paths if path in self.faults), None)


def read_layout(name: str, fetch: Callable[[Iterable[str]], Path], sizes: Mapping[str, int]) -> Layout:
    """The layout of the record whose header is `name`; `sizes`: of the existing files.

    Raises Refused if the header's first line cannot be read; other errors go to `broken` and `faults`.
    """
    header = read_header(fetch([name]) / name)
    home = PurePosixPath(name).parent
    layout = Layout(header, header.rate, header.frames, files=[name], broken=header.fault)
    texts = [header.text]
    if header.segments is not None:
        texts += _add_segments(layout, header.segments, home, fetch)
    elif header.signals:
        piece = Piece(header, name.removesuffix(".hea"), 0, header.frames)
        if not header.frames:
            layout.frames = _frames_from_size(piece, sizes)
            piece = Piece(header, piece.stem, 0, layout.frames)
        layout.pieces.append(piece)
    for piece in layout.pieces:
        paths = [piece.path(line) for line in piece.header.signals if line.file != NULL]
        layout.files += [f"{piece.stem}.hea", *paths]
        for path in dict.fromkeys(paths):
            try:
                _check_file(piece, path, sizes)
            except Refused as why:
                layout.faults.setdefault(path, why)
    layout.files = list(dict.fromkeys(layout.files))
    layout.digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return layout


def _frames_from_size(piece: Piece, sizes: Mapping[str, int]) -> int:
    """Frames in the first existing signal file, for a header that does not state their number."""
    signals = piece.header.signals
    for first in signals:
        width = EXACT.get(first.fmt, 0) * sum(line.per_frame for line in signals if line.file == first.file)
        size = sizes.get(piece.path(first), 0) - first.offset
        if width and size >= width:
            return int(size // width)
    if all(line.file == NULL for line in signals):
        raise Refused("unsupported", "a layout without signal files: `records` should name another header")
    absent = next((line.file for line in signals if piece.path(line) not in sizes), None)
    if absent is not None:
        raise Refused("missing_file", f"{absent} does not exist")
    raise Refused("corrupt", "neither the header nor the signal file states how long the record is")


def _add_segments(
    layout: Layout,
    segments: list[tuple[str, int]],
    home: PurePosixPath,
    fetch: Callable[[Iterable[str]], Path],
) -> list[str]:
    """Add a multi-segment header's segments to `layout`; returns the texts of their headers."""
    total = sum(frames for _, frames in segments)
    layout.frames = max(layout.frames, total)
    if total != layout.frames:
        layout.broken = layout.broken or Refused(
            "corrupt", f"segments of {total:,} frames, the record line says {layout.frames:,}"
        )
    described = {title: str(home / f"{title}.hea") for title, _ in segments if title != NULL}
    if segments and segments[0][1] == 0:  # it names the signals of the others
        layout.files += [described[title] for title, _ in segments[:1] if title in described]
    folder = fetch(described.values())
    texts, start = [], 0
    for title, frames in segments:
        if title != NULL and frames > 0:
            try:
                segment = read_header(folder / described[title])
                if segment.segments is not None:
                    raise Refused("unsupported", f"segment {title} itself has segments")
                if segment.frames not in (0, frames) or segment.rate != layout.rate:
                    raise Refused("corrupt", f"segment {title} is not as long or as fast as the record says")
                layout.pieces.append(Piece(segment, described[title].removesuffix(".hea"), start, frames))
                texts.append(segment.text)
                layout.broken = layout.broken or segment.fault
            except Refused as why:
                layout.broken = layout.broken or why
        start += frames
    recorded = sum(piece.frames for piece in layout.pieces)
    rate = layout.rate or 1
    try:
        check_span(float(layout.frames / rate), float(recorded / rate))
    except Refused as why:
        layout.broken = layout.broken or why
    return texts


def _check_file(piece: Piece, path: str, sizes: Mapping[str, int]) -> None:
    """Raise Refused unless a signal file is as large as the header promises, before anything is read."""
    at = [i for i, line in enumerate(piece.header.signals) if piece.path(line) == path]
    inside = [piece.header.signals[i] for i in at]
    first, have = inside[0], sizes.get(path, -1)
    if have < 0:
        raise Refused("missing_file", f"{first.file} does not exist")
    if len({line.fmt for line in inside}) > 1 or first.fmt not in EXACT:
        raise Refused("unsupported", f"{first.file} in format {' and '.join({line.fmt for line in inside})}")
    if at != list(range(at[0], at[0] + len(at))):
        raise Refused("corrupt", f"the signals of {first.file} are not contiguous")
    if any(line.skew >= piece.frames * line.per_frame for line in inside):
        raise Refused("corrupt", "a skew beyond the record")
    samples = piece.frames * sum(line.per_frame for line in inside)
    if not EXACT[first.fmt]:  # compressed: even silence takes some bytes per block of 65,535 samples
        need = (samples + first.offset) // 65_536
    else:
        need = first.offset + math.ceil(samples * EXACT[first.fmt])
    if have < need:
        raise Refused("truncated", f"{first.file} has {have:,} bytes, the header promises {need:,}")
