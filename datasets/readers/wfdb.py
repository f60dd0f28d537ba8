"""WFDB records (PhysioNet): text headers, signal files of packed integers, FLAC, or MATLAB v4 (`16+24`).

Single-segment and multi-segment records alike (`wfdb_layout`). Samples are the integers in the files, never
through floats, so that they go into the corpus unchanged; floats only where gains change between segments.
"""

import copy
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from wfdb.io._signal import INVALID_SAMPLE_VALUE, _rd_segment

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
from datasets.readers.wfdb_layout import Layout, Piece, first_line, names, read_layout, signal_files

INVALID = INVALID_SAMPLE_VALUE | {"508": -(2**7)}


def scan(root: Root, descriptor: Descriptor) -> list[Source]:
    """Every record under `root` that the descriptor names, from headers and text files alone."""
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> None:
    layout = read_layout(draft.name, draft.fetch, draft.root.sizes)
    draft.files += layout.files
    draft.digest = layout.digest
    if layout.rate:
        draft.whole = Fraction(layout.frames) / layout.rate
    for modality, signal in descriptor.signals.items():
        draft.promise(modality, signal, _promise(layout, signal))
    if descriptor.numerics and descriptor.numerics.record:
        name = _numerics_header(draft.name, descriptor.numerics.record.format(**draft.groups))
        draft.files += _numerics_files(draft, name)
    if layout.broken:
        raise layout.broken


def _promise(layout: Layout, signal: Signal) -> Promise | None:
    choice = layout.pick(signal)
    if choice is None:
        return None
    held = [(piece.header, i) for piece, where in layout.holding(choice) for i in where]
    per_frame = {header.samps_per_frame[i] for header, i in held}
    units = {header.units[i] for header, i in held}
    unit = min(units - set(signal.units) or units, key=str)
    sound = all(base.usable(header.adc_gain[i] or 0, header.baseline[i] or 0) for header, i in held)
    width = max(per_frame)
    rate = layout.rate * width if layout.rate and len(per_frame) == 1 else None
    return Promise(layout.frames * width, rate, unit, len(choice), sound)


def _numerics_header(header: str, stem: str) -> str:
    return f"{header.rpartition('/')[0]}/{stem}.hea".lstrip("/")


def _numerics_files(draft: Draft, name: str) -> list[str]:
    if name not in draft.root.sizes:
        return []
    try:
        layout = read_layout(name, draft.fetch, draft.root.sizes)
    except Refused:
        return [name]  # load says what is wrong with it, beside the waveforms
    return [each for each in layout.files if each in draft.root.sizes]


def load(source: Source, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples (integers of the files) and labels of one record. Raises Refused where a file is broken."""
    layout = read_layout(source.files[0][0], lambda _: folder, dict(source.files))
    if layout.broken:
        raise layout.broken
    labels, problems = base.fields(source, folder, descriptor.fields, layout.comments)
    choices: dict[str, tuple[str, ...]] = {}
    for m, signal in descriptor.signals.items():
        choice = layout.pick(signal) if m in source.seconds and m not in source.refused else None
        if choice is not None:
            choices[m] = choice
    parts: dict[str, list[tuple[Piece, list[np.ndarray]]]] = {m: [] for m in choices}
    for piece in layout.pieces:  # each file is read once, whatever takes channels out of it
        held = {m: where for m, c in choices.items() for p, where in layout.holding(c) if p is piece}
        wanted = sorted({i for where in held.values() for i in where})
        record: Any = _read(folder, piece, wanted) if wanted else None
        for m, where in held.items():
            parts[m].append((piece, [np.asarray(record.e_d_signal[wanted.index(i)]) for i in where]))
    signals = {m: _samples(layout, choices[m], parts[m], descriptor.signals[m]) for m in choices}
    labels += [Labels(f"{m}_channel", ["+".join(choices[m])]) for m in sorted(choices)]
    if descriptor.numerics and descriptor.numerics.record:
        more, trouble = _numerics(source, folder, descriptor)
        labels, problems = labels + more, problems + trouble
    return Recording(signals, labels, problems)


def _read(folder: Path, piece: Piece, channels: Sequence[int]) -> Any:
    """The piece's raw samples, their checksums checked."""
    compressed = {"508", "516", "524"}.intersection(piece.header.fmt)
    try:
        for name in signal_files(piece) if compressed else ():
            _check_flac(folder / name, piece)
        record = _samples_of(folder, piece, list(channels))
        sums = record.calc_checksum(expanded=True)
    except Refused:
        raise
    except Exception as error:  # wfdb raises whatever its unpacking runs into
        raise Refused("corrupt", f"unreadable signal file ({first_line(error)})") from error
    for name, computed, stated in zip(record.sig_name, sums, record.checksum, strict=True):
        if stated is not None and (computed - stated) % 65536:
            raise Refused("corrupt", f"the checksum of channel {name} does not hold")
    return record


def _samples_of(folder: Path, piece: Piece, channels: list[int]) -> Any:
    """What `wfdb.rdrecord` makes of raw channels, without reading the header a second time: parsing it takes
    as long as unpacking 8 minutes of four signals.
    """
    record = copy.deepcopy(piece.header)
    if record.sig_len is None:
        record.sig_len = piece.frames
    record.check_read_inputs(0, record.sig_len, channels, False, False, 64)
    names = ("file_name", "fmt", "n_sig", "sig_len", "byte_offset", "samps_per_frame", "skew", "init_value")
    record.e_d_signal = _rd_segment(
        **{name: getattr(record, name) for name in names},
        dir_name=str((folder / piece.stem).parent),
        pn_dir=None,
        sampfrom=0,
        sampto=record.sig_len,
        channels=channels,
        ignore_skew=False,
        no_file=False,
        sig_data=None,
        return_res=64,
    )
    record._arrange_fields(channels=channels, sampfrom=0, smooth_frames=False)
    return record


def _check_flac(path: Path, piece: Piece) -> None:
    """Compare the FLAC stream's own length with the header's: wfdb would allocate what the header says."""
    import soundfile

    inside = [i for i, name in enumerate(piece.header.file_name) if name == path.name]
    need = piece.frames * max(piece.header.samps_per_frame[i] for i in inside)
    have = soundfile.info(str(path)).frames - (piece.header.byte_offset[inside[0]] or 0)
    if have < need:
        raise Refused("truncated", f"{path.name} has {have:,} samples, the header promises {need:,}")


def _samples(
    layout: Layout, choice: tuple[str, ...], parts: list[tuple[Piece, list[np.ndarray]]], signal: Signal
) -> Samples:
    """The stretches of one modality at their places; all else is missing."""
    channels = []
    for nth in range(len(choice)):
        pieces = [(piece, where[nth]) for piece, where in layout.holding(choice)]
        raws = [raw[nth] for _, raw in parts]
        per_frame = pieces[0][0].header.samps_per_frame[pieces[0][1]]
        scales = [_scale(piece.header, i, signal) for piece, i in pieces]
        alike = len(set(scales)) == 1
        kind = np.result_type(*raws) if alike else np.float64
        x = np.zeros(layout.frames * per_frame, kind)
        missing = np.ones(len(x), bool)
        for (piece, i), raw, (scale, offset) in zip(pieces, raws, scales, strict=True):
            at = slice(piece.start * per_frame, (piece.start + piece.frames) * per_frame)
            invalid = INVALID.get(piece.header.fmt[i])
            x[at] = raw if alike else raw * scale + offset
            missing[at] = raw == invalid if invalid is not None else False
        channels.append(Channel(x, missing, *(scales[0] if alike else (1.0, 0.0))))
    assert layout.rate is not None
    return base.together(channels, layout.rate * per_frame, signal.unit, signal.missing)


def _scale(header: Any, channel: int, signal: Signal) -> tuple[float, float]:
    """(scale, offset) such that value in the corpus' unit = raw * scale + offset."""
    gain, baseline = header.adc_gain[channel], header.baseline[channel]
    factor = signal.units[header.units[channel]]
    return factor / gain, 0.0 - factor * baseline / gain


def _numerics(source: Source, folder: Path, descriptor: Descriptor) -> tuple[list[Labels], list[str]]:
    assert descriptor.numerics and descriptor.numerics.record
    stem = descriptor.numerics.record.format(**source.groups)
    name = _numerics_header(source.files[0][0], stem)
    sizes = dict(source.files)
    if name not in sizes:
        return [], [f"numerics {stem} are not there"]
    try:
        layout = read_layout(name, lambda _: folder, sizes)
        if layout.broken:
            raise layout.broken
        records = [
            (piece, _read(folder, piece, range(len(piece.header.sig_name)))) for piece in layout.pieces
        ]
    except Refused as why:
        return [], [f"numerics {stem} are {why.reason}: {why.detail}"]
    if not layout.rate:
        return [], [f"numerics {stem} state no rate"]
    problems: list[str] = []
    found: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for piece, record in records:
        for channel, title in enumerate(names(record)):
            gain, baseline = record.adc_gain[channel], record.baseline[channel]
            if title not in descriptor.numerics.channels:
                continue
            if not base.usable(gain or 0, baseline or 0):
                problems.append(f"numerics {stem}: {title} has a gain of {gain}")
                continue
            raw = np.asarray(record.e_d_signal[channel])
            there = np.flatnonzero(raw != INVALID.get(record.fmt[channel]))
            per_frame = record.samps_per_frame[channel]
            step = float(1 / (layout.rate * per_frame))
            place = there + piece.start * per_frame
            values = (raw[there] - float(baseline)) / gain
            found.setdefault(title, []).append((values, place * step, (place + 1) * step))
    labels: list[Labels] = []
    for title, pieces in found.items():
        known = descriptor.numerics.channels[title]
        values, start, end = (np.concatenate(part) for part in zip(*pieces, strict=True))
        labels.append(Labels(known.name, values, known.unit, start, end))
    return labels, problems
