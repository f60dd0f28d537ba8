"""WFDB headers as one picture: which stretch of a record lies in which signal files.

A single-segment record is one piece; a multi-segment record (fixed or variable layout) is many, with gaps
where its header names the null segment `~`. All is checked against file sizes before a sample is read.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import wfdb
from wfdb.io import _header as rules
from wfdb.io._signal import BYTES_PER_SAMPLE
from wfdb.io.header import HeaderSyntaxError, parse_header_content, rx_signal

from datasets.descriptor import Signal
from datasets.readers.base import Refused, check_span, fraction

# (field of a signal line, its type, what it is where it is left out), of wfdb's own table
_TYPES = {rules.int_types: int, rules.float_types: float}
_FIELDS = [
    (spec.Index, _TYPES.get(spec.allowed_types, str), spec.read_default)
    for spec in rules.SIGNAL_SPECS.itertuples()
]
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Piece:
    """`frames` frames from frame `start` of the record on, in the files of `header`, the record at `stem`."""

    header: Any
    stem: str
    start: int
    frames: int


@dataclass
class Layout:
    """`rate`: frames a second (None: not stated). `files`: all that reading needs. `digest`: of all headers.

    `broken`: what its files lack, known from their sizes.
    """

    rate: Fraction | None
    frames: int
    comments: list[str]
    pieces: list[Piece] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    digest: str = ""
    broken: Refused | None = None

    def pick(self, signal: Signal) -> tuple[str, ...] | None:
        """The channels to take: of the choices that the record has, the first that covers most of it."""
        best, most = None, 0
        for choice in signal.choices:
            covered = sum(p.frames for p in self.pieces if all(name in names(p.header) for name in choice))
            if covered > most:
                best, most = choice, covered
        return best

    def holding(self, choice: tuple[str, ...]) -> list[tuple[Piece, list[int]]]:
        """The pieces that hold all channels of `choice`, with where they are in each."""
        found = []
        for piece in self.pieces:
            known = names(piece.header)
            if all(name in known for name in choice):
                found.append((piece, [known.index(name) for name in choice]))
        return found


def names(header: Any) -> list[str]:
    return [(name or "").strip() for name in header.sig_name]


def read_layout(name: str, fetch: Callable[[Iterable[str]], Path], sizes: Mapping[str, int]) -> Layout:
    """The layout of the record whose header is `name`; `sizes` of the files that are there.

    Raises Refused for a header that cannot be read; what is wrong with the files behind it is in `broken`.
    """
    header, text = _header(fetch([name]) / name)
    home = PurePosixPath(name).parent
    layout = Layout(_stated_rate(text), 0, header.comments, files=[name])
    texts = [text]
    if isinstance(header, wfdb.MultiRecord):
        texts += _add_segments(layout, header, home, fetch)
    else:
        layout.frames = header.sig_len or _frames_from_size(header, home, sizes)
        layout.pieces.append(Piece(header, name.removesuffix(".hea"), 0, layout.frames))
    for piece in layout.pieces:
        layout.files += [f"{piece.stem}.hea", *signal_files(piece)]
    layout.files = list(dict.fromkeys(layout.files))
    layout.digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    try:
        for piece in layout.pieces:
            _check_sizes(piece, sizes)
        for each in texts if isinstance(header, wfdb.Record) else texts[1:]:
            _check_gains(each)
    except Refused as why:
        layout.broken = layout.broken or why
    return layout


def signal_files(piece: Piece) -> list[str]:
    """Paths of a piece's signal files, each once."""
    folder = PurePosixPath(piece.stem).parent
    return [str(folder / name) for name in dict.fromkeys(piece.header.file_name)]


def first_line(error: Exception) -> str:
    """What a library's exception says, short enough for one line."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _header(path: Path) -> tuple[Any, str]:
    try:
        text = path.read_text(errors="replace")
        header = rdheader(path)
    except FileNotFoundError as error:
        raise Refused("missing_file", f"{path.name} is not there") from error
    except Exception as error:  # wfdb raises whatever its parsing runs into
        raise Refused("corrupt", f"unreadable header ({first_line(error)})") from error
    if isinstance(header, wfdb.MultiRecord):
        return header, text
    if not getattr(header, "file_name", None):
        raise Refused("corrupt", "a header without signals")
    if header.n_sig != len(header.file_name):
        raise Refused("corrupt", f"{header.n_sig} signals announced, {len(header.file_name)} described")
    if min(header.samps_per_frame) < 1 or any((n or 0) < 0 for n in (*header.byte_offset, header.sig_len)):
        raise Refused("corrupt", "the header counts less than nothing")
    return header, text


def rdheader(path: Path) -> Any:
    """What `wfdb.rdheader` makes of a header. Its rules and its table, but that table is looked into once and
    not, cell by cell of a data frame, for each channel: that took longer than to read what the header
    describes.
    """
    lines, comments = parse_header_content(path.read_bytes().decode("ascii", "ignore"))
    about = rules._parse_record_line(lines[0])
    if about.pop("n_seg") is not None:
        return wfdb.rdheader(str(path.with_suffix("")))
    record: Any = wfdb.Record()
    for name, value in (about | (_signals(lines[1:]) if lines[1:] else {})).items():
        setattr(record, name, value)
    record.comments = [comment.strip(" \t#") for comment in comments]
    return record


def _signals(lines: list[str]) -> dict[str, list]:
    """{field: its value for each channel} of a header's signal lines."""
    found: dict[str, list] = {name: [] for name, _, _ in _FIELDS}
    for line in lines:
        match = rx_signal.match(line)
        if match is None:
            raise HeaderSyntaxError("invalid syntax in signal line")
        said = match.groupdict()
        said["baseline"] = said["baseline"] or said["adc_zero"]
        for name, kind, default in _FIELDS:
            found[name].append(kind(said[name]) if said[name] else default)
        found["adc_gain"][-1] = found["adc_gain"][-1] or 200.0  # what a gain of 0 stands for
    return found


def _lines(text: str) -> list[list[str]]:
    """The words of each line that is no comment."""
    return [line.split() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def _stated_rate(text: str) -> Fraction | None:
    """The rate of the record line; wfdb fills in 250 Hz for what it cannot read, and we refuse to guess."""
    words = _lines(text)[0]
    stated = re.match(rf"({_NUMBER})(?:/|$)", words[2]) if len(words) > 2 else None
    return fraction(float(stated.group(1))) if stated else None


def _check_gains(text: str) -> None:
    """Refuse a gain that is no number: wfdb takes it for the channel's name, and 200 for the gain."""
    for words in _lines(text)[1:]:
        if len(words) > 2 and not re.fullmatch(rf"{_NUMBER}(\(-?\d+\))?(/\S*)?", words[2]):
            raise Refused("bad_scale", f"a gain of {words[2][:40]!r}")


def _frames_from_size(header: Any, home: PurePosixPath, sizes: Mapping[str, int]) -> int:
    """Frames in the first signal file, for a header that does not say how long the record is."""
    first = [i for i, name in enumerate(header.file_name) if name == header.file_name[0]]
    width = sum(header.samps_per_frame[i] for i in first) * BYTES_PER_SAMPLE.get(header.fmt[0], 0)
    size = sizes.get(str(home / header.file_name[0]), 0) - (header.byte_offset[0] or 0)
    if width <= 0 or size < width:
        raise Refused("corrupt", "neither the header nor the signal file says how long the record is")
    return int(size // width)


def _add_segments(
    layout: Layout, header: Any, home: PurePosixPath, fetch: Callable[[Iterable[str]], Path]
) -> list[str]:
    """Put a multi-segment header's segments into `layout`; returns the texts of their headers."""
    lengths, titles = header.seg_len or [], header.seg_name or []
    layout.frames = max(header.sig_len or 0, sum(max(0, n) for n in lengths))
    if header.n_seg != len(titles) or min(lengths, default=-1) < 0 or sum(lengths) != layout.frames:
        layout.broken = Refused("corrupt", "the segments do not add up to what the record line says")
    described = {title: str(home / f"{title}.hea") for title in titles if title != "~"}
    if header.layout == "variable" and titles:
        layout.files += [described[titles[0]]] if titles[0] in described else []
    folder = fetch(described.values())
    texts, start = [], 0
    for title, frames in zip(titles, lengths, strict=True):
        if title != "~" and frames > 0:
            try:
                segment, text = _header(folder / described[title])
                if isinstance(segment, wfdb.MultiRecord):
                    raise Refused("unsupported", f"segment {title} has segments of its own")
                if segment.sig_len not in (None, frames) or _stated_rate(text) != layout.rate:
                    raise Refused("corrupt", f"segment {title} is not as long or as fast as the record says")
                layout.pieces.append(Piece(segment, described[title].removesuffix(".hea"), start, frames))
                texts.append(text)
            except Refused as why:
                layout.broken = layout.broken or why
        start += max(0, frames)
    recorded = sum(piece.frames for piece in layout.pieces)
    rate = layout.rate or 1
    try:
        check_span(float(layout.frames / rate), float(recorded / rate))
    except Refused as why:
        layout.broken = layout.broken or why
    return texts


def _check_sizes(piece: Piece, sizes: Mapping[str, int]) -> None:
    """Raise Refused unless the files are as large as the header promises: nothing is read before that."""
    header = piece.header
    if any(not 0 <= (skew or 0) < piece.frames for skew in header.skew):
        raise Refused("corrupt", "a skew beyond the record")
    folder = PurePosixPath(piece.stem).parent
    for name in dict.fromkeys(header.file_name):
        inside = [i for i, other in enumerate(header.file_name) if other == name]
        have = sizes.get(str(folder / name), -1)
        if have < 0:
            raise Refused("missing_file", f"{name} is not there")
        if len({header.fmt[i] for i in inside}) > 1 or header.fmt[inside[0]] not in BYTES_PER_SAMPLE:
            raise Refused("unsupported", f"{name} in format {header.fmt[inside[0]]}")
        width = BYTES_PER_SAMPLE[header.fmt[inside[0]]]
        offset = header.byte_offset[inside[0]] or 0
        samples = piece.frames * sum(header.samps_per_frame[i] for i in inside)
        if not width:  # compressed: even silence takes some bytes a block of 65,535 samples
            need = (samples + offset) // 65_536
        else:
            need = offset + int(samples * Fraction(width).limit_denominator(3))
        if have < need:
            raise Refused("truncated", f"{name} has {have:,} bytes, the header promises {need:,}")
