"""What all readers share: records found below a root, the recordings in them, and how both are built."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.errors import PlethoraError
from cluster.redact import printable
from datasets.descriptor import Descriptor, Signal
from datasets.readers import marks
from datasets.readers import words as say
from datasets.readers.root import Root

LONGEST_WORDS = 1500  # maximum length of a message, characters
LONGEST_GAP_S = 86_400  # missing time that any record may claim; beyond it, 100 times what is recorded

__all__ = ["Labels", "RecordFile", "Recording", "Refused", "Root", "Samples"]


class Refused(Exception):
    """A record that must not be ingested: a reason from the ledger's vocabulary, and an explanation.

    `detail` becomes one line without control characters, because it may quote the file. `modality`: the only
    broken signal; the record may be ingested without it unless it is required.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.modality: str | None = None
        self.reason, self.detail = reason, printable(detail, LONGEST_WORDS)
        super().__init__(f"{reason}: {self.detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Refused, (self.reason, self.detail), {"modality": self.modality}


@contextmanager
def alone(modality: str) -> Iterator[None]:
    """Attribute any Refused raised in the block to one modality."""
    try:
        yield
    except Refused as why:
        why.modality = modality
        raise


@dataclass
class Samples:
    """One modality of one record, at its native rate.

    `x_tc` (samples, channels): integers or floats, physical = x * scale + offset.
    `missing` (samples,): where the source has no value.
    """

    x_tc: np.ndarray
    missing: np.ndarray
    rate: Fraction
    scale: float
    offset: float
    unit: str


@dataclass
class Labels:
    """Labels of one name. `values` is a float array or a list of strings; times None: of the whole record."""

    name: str
    values: np.ndarray | list[str]
    unit: str | None = None
    start_s: np.ndarray | None = None
    end_s: np.ndarray | None = None


@dataclass(frozen=True)
class RecordFile:
    """A record as its header describes it, before any sample is read.

    `seconds`: what the header promises, per modality. `refused`: modality -> reason known from the header.
    `words`: modality -> the evidence for that reason, and the key to change. `broken`: (reason, detail) if
    the whole record is refused. `files`: paths below the root, with bytes.
    `element`: the index of this record in a file of many. `digest`: of the header, where file sizes say less.
    """

    record: str
    subject: str
    groups: dict[str, str]
    files: tuple[tuple[str, int], ...]
    seconds: dict[str, Fraction]
    samples: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    broken: tuple[str, str] | None = None
    element: int | None = None
    digest: str = ""
    words: dict[str, str] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The first file's path below the root, without its suffix: WFDB's record name."""
        return self.files[0][0].rsplit(".", 1)[0]


@dataclass
class Recording:
    """`problems`: labels that could not be read; the waveforms are still usable.
    `notes`: repairs that are no problem (packets received twice, the largest correction of a clock).

    All signals begin at the record's time 0 (a later signal is missing until it begins) and all labels count
    from there. `origin`: the record's own clock at time 0, in s: its column of times, or the date and time of
    its header, since 1970 as if in UTC; None: not stated. `kind`: what that clock shows (see
    `moments.Moments`), `zone_s`: its zone's offset from UTC if stated. `moved`: modality -> how far (s) its
    clock had drifted where samples were resampled to follow it.
    """

    signals: dict[str, Samples]
    labels: list[Labels]
    problems: list[str] = field(default_factory=list)
    origin: float | None = None
    notes: list[str] = field(default_factory=list)
    kind: Literal["number", "date", "clock"] = "date"
    zone_s: float | None = None
    moved: dict[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------- scanning


@dataclass
class Draft:
    """A record file being built: `look` fills it in, and what is known before Refused is raised is kept.

    `name`: the file that `records` matched; `fetch(names)` returns a local folder that holds them; `whole`:
    the length of the record, counted for expected signals that are absent; `broken`: why one record of many
    is refused.
    """

    root: Root
    name: str
    record: str
    groups: dict[str, str]
    fetch: Callable[[Iterable[str]], Path]
    files: list[str]
    subject: str = ""
    seconds: dict[str, Fraction] = field(default_factory=dict)
    samples: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    element: int | None = None
    digest: str = ""
    whole: Fraction = Fraction(0)
    words: dict[str, str] = field(default_factory=dict)
    broken: tuple[str, str] | None = None

    def size(self, name: str) -> int:
        return self.root.sizes.get(name, -1)

    def promise(
        self, modality: str, signal: Signal, found: "Promise | None", has: Sequence[str] = ()
    ) -> None:
        """Record what the header says of a modality: its hours, or why they are refused. None: not there.

        `has`: the channels that the file has instead.
        """
        if found is None:
            if signal.required:
                self.seconds[modality] = self.whole
                self.refuse(modality, "missing_channel", say.missing(signal, has))
            return
        expected = fraction(signal.hz)
        off = abs(found.rate / expected - 1) if found.rate and expected else 0
        if not found.rate or off > (signal.rate_tolerance or 0):
            self.refuse(modality, "bad_rate", say.other_rate(found.rate, signal))
        elif found.unit not in signal.units:
            self.refuse(modality, "unit_mismatch", say.other_unit(found.unit, signal))
        elif not found.sound:
            self.refuse(modality, "bad_scale", "its gain or offset is not a usable number")
        else:
            self.samples += found.length * found.channels
        rate = found.rate or expected  # without any rate, no hours can be claimed
        self.seconds[modality] = Fraction(found.length) / rate if rate else Fraction(0)

    def refuse(self, modality: str, reason: str, words: str) -> None:
        """Refuse a modality; `words`: what the file has, and in backticks the key of [signals] to change."""
        self.refused[modality] = reason
        where = f" in [signals.{modality}]" if "`" in words else ""
        self.words[modality] = printable(words, LONGEST_WORDS) + where

    def source(self, broken: tuple[str, str] | None = None) -> RecordFile:
        sizes = tuple((name, self.size(name)) for name in dict.fromkeys(self.files))
        return RecordFile(
            self.record,
            self.subject,
            self.groups,
            sizes,
            self.seconds,
            self.samples,
            self.refused,
            broken or self.broken,
            self.element,
            self.digest,
            self.words,
        )


@dataclass(frozen=True)
class Promise:
    """A header's description of one modality: samples per channel, rate (Hz, None: not stated), unit,
    channels; `sound`: its scale is a usable number."""

    length: int
    rate: Fraction | None
    unit: str
    channels: int = 1
    sound: bool = True


def scan(
    root: Root, descriptor: Descriptor, look: Callable[[Draft, Descriptor], Sequence[Draft] | None]
) -> list[RecordFile]:
    """Every record below `root` that the descriptor names. `look` fills in a draft, or splits it into many.

    Raises PlethoraError if no file matches, or if two files claim one record.
    """
    matches = [m for name in root.sizes if (m := re.fullmatch(descriptor.records, name))]
    if not matches:
        raise PlethoraError(
            f"{root.uri} holds no file like {descriptor.records!r}: is it the folder of {descriptor.name}?"
        )

    def one(match: re.Match) -> list[RecordFile]:
        groups = {k: v for k, v in match.groupdict().items() if v is not None}
        with tempfile.TemporaryDirectory() as scratch:
            draft = Draft(
                root,
                match.group(0),
                groups["record"],
                groups,
                lambda names: root.fetch(names, Path(scratch)),
                [match.group(0)],
            )
            broken: tuple[str, str] | None = None
            try:
                _text_files(draft, descriptor)
            except Refused as why:  # the record's length is known even without a subject
                broken = (why.reason, why.detail)
            try:
                return [found.source(broken) for found in look(draft, descriptor) or [draft]]
            except Refused as why:
                count_required(draft, descriptor)
                return [draft.source(broken or (why.reason, why.detail))]

    with ThreadPoolExecutor(1 if root.local else 8) as pool:
        found = [source for sources in pool.map(one, matches) for source in sources]
    first: dict[str, str] = {}
    for source in found:
        path = source.files[0][0]
        if source.record in first:
            raise PlethoraError(
                f"{root.uri} holds the record {source.record} twice, {first[source.record]} and {path}: "
                f"remove one, or let `records` of {descriptor.name} tell them apart"
            )
        first[source.record] = path
    return found


def count_required(draft: Draft, descriptor: Descriptor) -> None:
    """Make a broken record count its length for each expected signal that could not be searched for."""
    for modality, signal in descriptor.signals.items():
        if signal.required:
            draft.seconds.setdefault(modality, draft.whole)


def _text_files(draft: Draft, descriptor: Descriptor) -> None:
    """The subject, and the text files that hold the subject and the labels."""
    rule = descriptor.subject
    text = draft.record
    if rule.file:
        name = rule.file.format(**draft.groups)
        path = draft.fetch([name]) / name
        if not path.is_file():
            raise Refused("no_subject", f"{path.name} is missing, it names the subject")
        text = path.read_text(errors="replace")
    found = re.search(rule.pattern, text, re.M)
    if not found:
        raise Refused("no_subject", f"nothing matches {rule.pattern!r}")
    draft.subject = found.group(1).strip()
    wanted = [rule.file for rule in descriptor.fields] + [trace.file for trace in descriptor.traces]
    names = [name.format(**draft.groups) for name in wanted if name]
    draft.files += [name for name in dict.fromkeys(names) if name in draft.root.sizes]


def check_span(seconds: float, recorded: float) -> None:
    """Refuse a record whose header or times claim far more time than was recorded: ingest would build it."""
    if seconds > 100 * recorded + LONGEST_GAP_S:
        raise Refused("corrupt", f"{seconds:,.0f} s promised, {recorded:,.0f} s recorded")


def fraction(rate: float | None) -> Fraction | None:
    """A rate in Hz as the simple fraction that it stands for; None if it is not a usable rate."""
    known = rate is not None and np.isfinite(rate) and 0 < rate < 1e9
    exact = Fraction(float(rate)).limit_denominator(1000) if known else None  # type: ignore[arg-type]
    return exact or None


# ---------------------------------------------------------------- loading


@dataclass
class Channel:
    """One channel: samples (T,), a missing mask (T,), and physical = x * scale + offset."""

    x: np.ndarray
    missing: np.ndarray
    scale: float = 1.0
    offset: float = 0.0


def together(
    channels: Sequence[Channel], rate: Fraction, unit: str, marked: Sequence[float | str] = ()
) -> Samples:
    """Channels of one length as one modality. Integers stay integers if all share scale and offset.

    Values that are not finite or are in `marked` (numbers as the source stores them) are missing; a sample
    missing in one channel is missing in all. Raises Refused (bad_scale) if a value or a scale is out of
    float32's range.
    """
    first = channels[0]
    missing = np.logical_or.reduce([c.missing for c in channels])
    for channel in channels if marked else ():
        if (where := marks.marked(channel.x, marked)) is not None:
            missing = missing | where
    if any((c.scale, c.offset) != (first.scale, first.offset) for c in channels):
        channels = [Channel(c.x * c.scale + c.offset, c.missing) for c in channels]
        first = channels[0]
    x_tc = np.stack([c.x for c in channels], axis=1)
    if np.issubdtype(x_tc.dtype, np.floating):
        missing = missing | ~np.isfinite(x_tc).all(axis=1)
        x_tc[missing] = 0
    largest = max(-float(x_tc.min()), float(x_tc.max())) if x_tc.size else 0.0
    if not usable(first.scale, first.offset) or largest * abs(first.scale) + abs(first.offset) > 1e30:
        raise Refused("bad_scale", f"scale {first.scale:g}, offset {first.offset:g}, values to {largest:g}")
    return Samples(x_tc, missing, rate, first.scale, first.offset, unit)


def usable(scale: float, offset: float) -> bool:
    """Whether samples can be computed with this scale and offset, also in float32."""
    return bool(np.isfinite([scale, offset]).all() and 1e-30 < abs(scale) < 1e30 and abs(offset) < 1e30)


def checked(recording: Recording, source: RecordFile) -> Recording:
    """The recording if it holds what the header promised; else Refused (corrupt): no hour may be lost."""
    for modality, promised in source.seconds.items():
        if modality in source.refused:
            continue
        samples = recording.signals.get(modality)
        got = Fraction(len(samples.x_tc)) / samples.rate if samples else Fraction(0)
        with alone(modality):
            if got != promised:
                raise Refused(
                    "corrupt", f"{modality}: {float(got):g} s in the file, {float(promised):g} s promised"
                )
    return recording
