"""WFDB records (PhysioNet): text headers, signal files of packed integers, FLAC, or MATLAB v4 (`16+24`).

Single-segment and multi-segment records (`wfdb_layout`). Samples are the integers of the files, never
converted to floats, so that they enter the corpus unchanged; floats only where gains change between segments.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from wfdb.io._signal import INVALID_SAMPLE_VALUE, _rd_segment

from datasets.descriptor import Descriptor, Signal
from datasets.readers import base, fields, kinds, marks
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
from datasets.readers.wfdb_header import UNCALIBRATED, Line
from datasets.readers.wfdb_layout import Layout, Piece, read_layout

INVALID = INVALID_SAMPLE_VALUE | {"508": -(2**7)}


def scan(root: Root, descriptor: Descriptor) -> list[RecordFile]:
    """Every record under `root` that the descriptor names, from headers and text files only."""
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> None:
    layout = read_layout(draft.name, draft.fetch, draft.root.sizes)
    draft.files += layout.files
    draft.digest = layout.digest
    if layout.rate:
        draft.whole = Fraction(layout.frames) / layout.rate
    faults: dict[str, Refused] = {}
    for modality, signal in descriptor.signals.items():
        choice = layout.pick(signal)
        if choice is None:
            draft.promise(modality, signal, None, layout.names)
            continue
        lines = [piece.header.signals[i] for piece, where in layout.holding(choice) for i in where]
        trouble = _trouble(layout, lines, signal)
        draft.promise(modality, signal, _promise(layout, choice, lines, signal, not trouble), layout.names)
        if trouble and "bad_" in draft.refused[modality]:
            draft.refuse(modality, *trouble)
            draft.seconds[modality] = draft.whole or draft.seconds[modality]
        elif fault := layout.fault(choice):
            faults[modality] = fault
    if descriptor.numerics and descriptor.numerics.record:
        name = _numerics_header(draft.name, descriptor.numerics.record.format(**draft.groups))
        draft.files += _numerics_files(draft, name)
    if layout.broken:
        raise layout.broken
    for modality, fault in faults.items():
        if set(faults) == set(draft.seconds):  # nothing is left to read
            raise fault
        draft.refused[modality], draft.words[modality] = fault.reason, fault.detail


def _promise(
    layout: Layout, choice: tuple[str, ...], lines: list[Line], signal: Signal, sound: bool
) -> Promise:
    units = dict.fromkeys(signal.listed(line.unit) for line in lines if line.gain)
    unlisted = [unit for unit in units if unit not in signal.units]
    width = max(line.per_frame for line in lines)
    return Promise(
        layout.frames * width,
        layout.rate and layout.rate * width,
        ", ".join(unlisted) or next(iter(signal.units), ""),
        len(choice),
        sound,
    )


def _trouble(layout: Layout, lines: list[Line], signal: Signal) -> tuple[str, str] | None:
    """Why channels with the right rate and unit cannot be read: (reason, words)."""
    rates = sorted({layout.rate * line.per_frame for line in lines}) if layout.rate else []
    if len(rates) > 1:
        stated = " and ".join(f"{float(rate):g}" for rate in rates)
        return "bad_rate", f"{stated} Hz in one record: use channels of one rate"
    unread = next((line.bad_scale for line in lines if line.bad_scale), None)
    if unread is not None:
        return "bad_scale", f"a gain of {unread[:40]!r}: correct the header, or use another channel"
    raw = [not line.gain for line in lines]
    if any(raw) and not all(raw):
        return "bad_scale", "a gain of 0 (uncalibrated) beside others: use other channels"
    if any(raw) and UNCALIBRATED not in signal.units:
        return "bad_scale", f"a gain of 0 (uncalibrated): to use its counts, add {UNCALIBRATED!r} to `units`"
    for line in lines:
        if line.gain and not base.usable(line.gain, line.baseline):
            return (
                "bad_scale",
                f"a gain of {line.gain:g} and a baseline of {line.baseline}: use other channels",
            )
    return None


def _numerics_header(header: str, stem: str) -> str:
    return f"{header.rpartition('/')[0]}/{stem}.hea".lstrip("/")


def _numerics_files(draft: Draft, name: str) -> list[str]:
    if name not in draft.root.sizes:
        return []
    try:
        layout = read_layout(name, draft.fetch, draft.root.sizes)
    except Refused:
        return [name]  # load reports its error, beside the waveforms
    return [each for each in layout.files if each in draft.root.sizes]


def load(source: RecordFile, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples (integers of the files) and labels of one record. Raises Refused if a file is broken."""
    layout = read_layout(source.files[0][0], lambda _: folder, dict(source.files))
    if layout.broken:
        raise layout.broken
    labels, problems = fields.read(source, folder, descriptor.fields, layout.header.comments)
    choices: dict[str, tuple[str, ...]] = {}
    for m, signal in descriptor.signals.items():
        choice = layout.pick(signal) if m in source.seconds and m not in source.refused else None
        if choice is not None:
            choices[m] = choice
    parts: dict[str, list[list[Channel]]] = {m: [] for m in choices}
    for piece in layout.pieces:  # each file is read once, for all its channels
        held = {m: where for m, c in choices.items() if (where := piece.find(c)) is not None}
        wanted = sorted({i for where in held.values() for i in where})
        read = dict(zip(wanted, _read(folder, layout, piece, wanted), strict=True))
        for m, where in held.items():
            parts[m].append([_without(read[i], descriptor.signals[m].missing) for i in where])
    signals = {}
    for m in choices:
        with base.alone(m):
            signals[m] = _samples(layout, choices[m], parts[m], descriptor.signals[m])
    labels += [Labels(f"{m}_channel", ["+".join(choices[m])]) for m in sorted(choices)]
    if descriptor.numerics and descriptor.numerics.record:
        more, trouble = _numerics(source, folder, layout, descriptor)
        labels, problems = labels + more, problems + trouble
    return Recording(signals, labels, problems, layout.header.origin)


def _read(folder: Path, layout: Layout, piece: Piece, channels: list[int]) -> list[Channel]:
    """The channels' raw samples, checksums verified, from the record's first frame on."""
    if not channels:
        return []
    lines = [piece.header.signals[i] for i in channels]
    for path in dict.fromkeys(piece.path(line) for line in lines):
        if path in layout.faults:
            raise layout.faults[path]
    try:
        for line in {line.file: line for line in lines if line.fmt in ("508", "516", "524")}.values():
            _check_flac(folder / piece.path(line), piece, line)
        raws = _integers(folder, piece, channels)
    except Refused:
        raise
    except Exception as error:  # wfdb raises any error of its unpacking
        raise Refused("corrupt", f"unreadable signal file ({kinds.message_of(error)})") from error
    for line, raw in zip(lines, raws, strict=True):
        # a header without the record's length holds no checksum of it
        if piece.header.frames and line.checksum is not None and (int(raw.sum()) - line.checksum) % 65536:
            raise Refused("corrupt", f"the checksum of channel {line.name} does not match")
    return [_from_the_start(line, raw) for line, raw in zip(lines, raws, strict=True)]


def _integers(folder: Path, piece: Piece, channels: list[int]) -> list[np.ndarray]:
    """The channels' samples as stored in the files, (frames * per_frame,) each."""
    signals = piece.header.signals
    raws: list[np.ndarray] = _rd_segment(
        file_name=[line.file for line in signals],
        dir_name=str((folder / piece.stem).parent),
        pn_dir=None,
        fmt=[line.fmt for line in signals],
        n_sig=len(signals),
        sig_len=piece.frames,
        byte_offset=[line.offset for line in signals],
        samps_per_frame=[line.per_frame for line in signals],
        skew=[0] * len(signals),
        init_value=[line.initial for line in signals],
        sampfrom=0,
        sampto=piece.frames,
        channels=channels,
        ignore_skew=True,
    )
    return raws


def _from_the_start(line: Line, raw: np.ndarray) -> Channel:
    """A channel without the samples before the record's first; as many are missing at its end."""
    invalid = INVALID.get(line.fmt)
    missing = raw == invalid if invalid is not None else np.zeros(len(raw), bool)
    if line.skew:
        raw, missing = np.roll(raw, -line.skew), np.roll(missing, -line.skew)
        missing[-line.skew :] = True
    return Channel(raw, missing)


def _without(channel: Channel, missing: Sequence[float | str]) -> Channel:
    """The channel, with its samples in `missing` marked as missing."""
    where = marks.marked(channel.x, missing)
    return channel if where is None else Channel(channel.x, channel.missing | where)


def _check_flac(path: Path, piece: Piece, line: Line) -> None:
    """Compare the FLAC stream's length with the header's: wfdb would allocate what the header claims."""
    import soundfile

    widest = max(other.per_frame for other in piece.header.signals if other.file == line.file)
    have, need = soundfile.info(str(path)).frames - line.offset, piece.frames * widest
    if have < need:
        raise Refused("truncated", f"{path.name} has {have:,} samples, the header promises {need:,}")


def _samples(layout: Layout, choice: tuple[str, ...], parts: list[list[Channel]], signal: Signal) -> Samples:
    """The stretches of one modality in place; everything else is missing."""
    channels = []
    for nth in range(len(choice)):
        lines = [(piece, piece.header.signals[where[nth]]) for piece, where in layout.holding(choice)]
        raws = [part[nth] for part in parts]
        per_frame = lines[0][1].per_frame
        scales = [_scale(line, signal) for _, line in lines]
        alike = len(set(scales)) == 1
        kind = np.result_type(*(raw.x for raw in raws)) if alike else np.float64
        x = np.zeros(layout.frames * per_frame, kind)
        missing = np.ones(len(x), bool)
        for (piece, _), raw, (scale, offset) in zip(lines, raws, scales, strict=True):
            at = slice(piece.start * per_frame, (piece.start + piece.frames) * per_frame)
            x[at] = raw.x if alike else raw.x * scale + offset
            missing[at] = raw.missing
        channels.append(Channel(x, missing, *(scales[0] if alike else (1.0, 0.0))))
    assert layout.rate is not None
    return base.together(channels, layout.rate * per_frame, signal.unit)


def _scale(line: Line, signal: Signal) -> tuple[float, float]:
    """(scale, offset) such that value in the corpus's unit = raw * scale + offset."""
    if not line.gain:
        return signal.units[UNCALIBRATED], 0.0
    factor = signal.units[signal.listed(line.unit)]
    return factor / line.gain, 0.0 - factor * line.baseline / line.gain


def _numerics(
    source: RecordFile, folder: Path, waves: Layout, descriptor: Descriptor
) -> tuple[list[Labels], list[str]]:
    """Labels from the companion record, placed by its clock relative to that of the waveforms."""
    assert descriptor.numerics and descriptor.numerics.record
    stem = descriptor.numerics.record.format(**source.groups)
    name = _numerics_header(source.files[0][0], stem)
    sizes = dict(source.files)
    if name not in sizes:
        return [], [f"numerics {stem} do not exist"]
    known = descriptor.numerics.channels
    problems: list[str] = []
    found: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    try:
        layout = read_layout(name, lambda _: folder, sizes)
        if layout.broken:
            raise layout.broken
        if not layout.rate:
            return [], [f"numerics {stem} state no rate"]
        later = layout.header.after(waves.header)
        for piece in layout.pieces:
            wanted = [i for i, line in enumerate(piece.header.signals) if line.name in known]
            for i, channel in zip(wanted, _read(folder, layout, piece, wanted), strict=True):
                line = piece.header.signals[i]
                if line.bad_scale or not base.usable(line.gain, line.baseline):
                    gain = repr(line.bad_scale[:40]) if line.bad_scale else f"{line.gain:g}"
                    problems.append(f"numerics {stem}: {line.name} has a gain of {gain}")
                    continue
                there = np.flatnonzero(~channel.missing)
                step = float(1 / (layout.rate * line.per_frame))
                place = there + piece.start * line.per_frame
                values = (channel.x[there] - float(line.baseline)) / line.gain
                found.setdefault(line.name, []).append(
                    (values, place * step + later, (place + 1) * step + later)
                )
    except Refused as why:
        return [], [f"numerics {stem} are {why.reason}: {why.detail}"]
    labels: list[Labels] = []
    for title, pieces in found.items():
        values, start, end = (np.concatenate(part) for part in zip(*pieces, strict=True))
        kept = end > 0
        if later and not (kept & (start < waves.frames / (waves.rate or 1))).any():
            problems.append(f"numerics {stem}: by their clock, {title} lies outside the waveforms")
        labels.append(Labels(known[title].name, values[kept], known[title].unit, start[kept], end[kept]))
    return labels, problems
