"""WFDB records (PhysioNet): a text header, signal files of packed integers or MATLAB v4 (`16+24`).

Samples are the integers in the file, never through floats, so that they go into the corpus unchanged.
"""

import re
import tempfile
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import wfdb
from wfdb.io._signal import BYTES_PER_SAMPLE, INVALID_SAMPLE_VALUE

from cluster.errors import PlethoraError
from datasets.descriptor import Descriptor, FieldRule, Signal
from datasets.readers.base import Labels, Recording, Refused, Root, Samples, Source


def scan(root: Root, descriptor: Descriptor) -> list[Source]:
    """Every record under `root` that the descriptor names, from headers and text files alone."""
    matches = [m for name in root.sizes if (m := re.fullmatch(descriptor.records, name))]
    if not matches:
        raise PlethoraError(
            f"{root.uri} holds no file like {descriptor.records!r}: is it the folder of {descriptor.name}?"
        )
    texts = {descriptor.subject.file, *(rule.file for rule in descriptor.fields)} - {None}
    with tempfile.TemporaryDirectory() as scratch:
        wanted = [m.group(0) for m in matches]
        wanted += sorted({str(text).format(**m.groupdict()) for m in matches for text in texts})
        folder = root.fetch(wanted, Path(scratch))
        return [_source(m, root, folder, descriptor) for m in matches]


def _source(match: re.Match, root: Root, folder: Path, descriptor: Descriptor) -> Source:
    groups = {k: v for k, v in match.groupdict().items() if v is not None}
    header_name = match.group(0)
    files = [header_name]
    known: dict[str, Any] = {"record": groups["record"], "subject": "", "groups": groups, "seconds": {}}
    try:
        known["subject"] = _subject(folder, groups, descriptor)
        for rule in descriptor.fields:
            if rule.file and (name := rule.file.format(**groups)) in root.sizes and name not in files:
                files.append(name)
        header = _header(folder / header_name)
        home = PurePosixPath(header_name).parent
        files += [str(home / name) for name in dict.fromkeys(header.file_name)]
        if descriptor.numerics:
            files += _numerics_files(descriptor, groups, home, root)
        frames = header.sig_len or _frames_from_size(header, home, root)
        known |= _promised(header, frames, descriptor)
        _check_sizes(header, frames, home, root)
    except Refused as why:
        known["broken"] = (why.reason, why.detail)
    return Source(files=tuple((name, root.sizes.get(name, -1)) for name in files), **known)


def _header(path: Path) -> Any:
    """The single-segment header at `path`. wfdb fills in 250 Hz for a missing rate; we refuse to guess."""
    try:
        text = path.read_text(errors="replace")
        header = wfdb.rdheader(str(path.with_suffix("")))
    except Exception as error:  # wfdb raises whatever its parsing runs into
        raise Refused("corrupt", f"unreadable header ({error})") from error
    if not getattr(header, "file_name", None):
        raise Refused("unsupported", "a multi-segment or empty header")
    line = next(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    stated = len(line.split()) > 2 and header.fs > 0
    header.stated_rate = Fraction(header.fs).limit_denominator(1000) if stated else None
    return header


def _subject(folder: Path, groups: dict[str, str], descriptor: Descriptor) -> str:
    rule = descriptor.subject
    text = groups["record"]
    if rule.file:
        path = folder / rule.file.format(**groups)
        if not path.is_file():
            raise Refused("no_subject", f"{path.name} is missing, it names the subject")
        text = path.read_text(errors="replace")
    found = re.search(rule.pattern, text, re.M)
    if not found:
        raise Refused("no_subject", f"nothing matches {rule.pattern!r}")
    return found.group(1).strip()


def _numerics_files(
    descriptor: Descriptor, groups: dict[str, str], home: PurePosixPath, root: Root
) -> list[str]:
    assert descriptor.numerics
    stem = str(home / (descriptor.numerics.record or "").format(**groups))
    return [name for name in (f"{stem}.hea", f"{stem}.dat") if name in root.sizes]


def _frames_from_size(header: Any, home: PurePosixPath, root: Root) -> int:
    """Frames in the first signal file, for a header that does not say how long the record is."""
    first = [i for i, name in enumerate(header.file_name) if name == header.file_name[0]]
    width = sum(header.samps_per_frame[i] for i in first) * BYTES_PER_SAMPLE.get(header.fmt[0], 0)
    size = root.sizes.get(str(home / header.file_name[0]), 0) - (header.byte_offset[0] or 0)
    if width <= 0 or size <= 0:
        raise Refused("corrupt", "neither the header nor the signal file says how long the record is")
    return int(size // width)


def _pick(header: Any, signal: Signal) -> int | None:
    names = [name.strip() for name in header.sig_name]
    return next((names.index(choice[0]) for choice in signal.choices if choice[0] in names), None)


def _promised(header: Any, frames: int, descriptor: Descriptor) -> dict[str, Any]:
    """Seconds a modality, samples in all, and what the header alone tells us to refuse."""
    seconds: dict[str, Fraction] = {}
    refused: dict[str, str] = {}
    samples = 0
    for modality, signal in descriptor.signals.items():
        channel = _pick(header, signal)
        frame_rate = header.stated_rate
        expected = Fraction(signal.rate).limit_denominator(1000) if signal.rate else None
        per_frame = header.samps_per_frame[channel] if channel is not None else 1
        if channel is None and not signal.required:
            continue
        if not frame_rate or (expected and channel is not None and frame_rate * per_frame != expected):
            refused[modality] = "bad_rate"
        if channel is None:
            refused[modality] = "missing_channel"
        elif header.units[channel] not in signal.units:
            refused.setdefault(modality, "unit_mismatch")
        if frame_rate or expected:
            seconds[modality] = Fraction(frames) / (frame_rate or expected or 1)
        else:
            seconds[modality] = Fraction(0)  # no rate anywhere: no hours can be claimed
        samples += frames * per_frame if modality not in refused else 0
    return {"seconds": seconds, "refused": refused, "samples": samples}


def _check_sizes(header: Any, frames: int, home: PurePosixPath, root: Root) -> None:
    for name in dict.fromkeys(header.file_name):
        inside = [i for i, other in enumerate(header.file_name) if other == name]
        if str(home / name) not in root.sizes:
            raise Refused("missing_file", f"{name} is not there")
        width = BYTES_PER_SAMPLE.get(header.fmt[inside[0]], 0)  # 0: compressed, its size says nothing
        samples = frames * sum(header.samps_per_frame[i] for i in inside)
        need = (header.byte_offset[inside[0]] or 0) + int(samples * width)
        have = root.sizes[str(home / name)]
        if have < need:
            raise Refused("truncated", f"{name} has {have:,} bytes, the header promises {need:,}")


def load(source: Source, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples (integers of the file) and labels of one record. Raises Refused where the file is broken."""
    path = folder / source.stem
    header = _header(path.with_suffix(".hea"))
    picked = {
        m: _pick(header, signal)
        for m, signal in descriptor.signals.items()
        if m in source.seconds and m not in source.refused
    }
    channels = sorted({c for c in picked.values() if c is not None})
    record = _read(path, channels)
    signals = {
        m: _samples(record, channels.index(c), descriptor.signals[m], header.stated_rate)
        for m, c in picked.items()
        if c is not None
    }
    labels, problems = _fields(source, folder, header.comments, descriptor.fields)
    for m, c in sorted(picked.items()):
        if c is not None:
            labels.append(Labels(f"{m}_channel", [header.sig_name[c].strip()]))
    if descriptor.numerics:
        more, trouble = _numerics(source, path.parent, descriptor)
        labels, problems = labels + more, problems + trouble
    return Recording(signals, labels, problems)


def _read(path: Path, channels: list[int] | None = None) -> Any:
    try:
        record = wfdb.rdrecord(str(path), channels=channels, physical=False, smooth_frames=False)
        sums = record.calc_checksum(expanded=True)
    except Exception as error:  # wfdb raises whatever its unpacking runs into
        raise Refused("corrupt", f"unreadable signal file ({error})") from error
    for name, computed, stated in zip(record.sig_name, sums, record.checksum, strict=True):
        if stated is not None and (computed - stated) % 65536:
            raise Refused("corrupt", f"the checksum of channel {name} does not hold")
    return record


def _samples(record: Any, channel: int, signal: Signal, frame_rate: Fraction) -> Samples:
    raw = np.asarray(record.e_d_signal[channel])
    invalid = INVALID_SAMPLE_VALUE.get(record.fmt[channel])
    missing = raw == invalid if invalid is not None else np.zeros(len(raw), bool)
    gain, baseline = record.adc_gain[channel], record.baseline[channel]
    factor = signal.units[record.units[channel]]
    rate = frame_rate * record.samps_per_frame[channel]
    return Samples(raw[:, None], missing, rate, factor / gain, 0.0 - factor * baseline / gain, signal.unit)


def _fields(
    source: Source, folder: Path, comments: list[str], rules: tuple[FieldRule, ...]
) -> tuple[list[Labels], list[str]]:
    labels, problems = [], []
    for rule in rules:
        text = "\n".join(comments)
        if rule.file:
            path = folder / rule.file.format(**source.groups)
            text = path.read_text(errors="replace") if path.is_file() else ""
        found = re.search(rule.pattern, text, re.M)
        word = found.group(1).strip() if found else ""
        if not word or word in rule.missing:
            continue
        if rule.text:
            labels.append(Labels(rule.name, [word], rule.unit))
            continue
        try:
            value = rule.values[word] if word in rule.values else float(word)
        except ValueError:
            problems.append(f"label {rule.name}: {word!r} is no number")
        else:
            labels.append(Labels(rule.name, np.array([value]), rule.unit))
    return labels, problems


def _numerics(source: Source, home: Path, descriptor: Descriptor) -> tuple[list[Labels], list[str]]:
    assert descriptor.numerics
    name = (descriptor.numerics.record or "").format(**source.groups)
    if not (home / f"{name}.hea").is_file():
        return [], [f"numerics {name} are not there"]
    try:
        header = _header(home / f"{name}.hea")
        record = _read(home / name)
    except Refused as why:
        return [], [f"numerics {name} are {why.reason}: {why.detail}"]
    if not header.stated_rate:
        return [], [f"numerics {name} state no rate"]
    labels = []
    for channel, title in enumerate(record.sig_name):
        known = descriptor.numerics.channels.get(title.strip())
        if known is None:
            continue
        raw = np.asarray(record.e_d_signal[channel])
        there = np.flatnonzero(raw != INVALID_SAMPLE_VALUE[record.fmt[channel]])
        values = (raw[there] - record.baseline[channel]) / record.adc_gain[channel]
        step = float(1 / (header.stated_rate * record.samps_per_frame[channel]))
        labels.append(Labels(known.name, values, known.unit, there * step, (there + 1) * step))
    return labels, []
