"""MATLAB files, v5 and v7.3: a file is a record, or holds many (`elements`).

A channel is a variable of one row or column, or one row (column) of a matrix that `arrays` names. The format
states no unit, and a rate only in a variable: the descriptor gives both, or names that variable.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from cluster.errors import PlethoraError
from datasets.descriptor import Array, Descriptor, Signal, Trace
from datasets.readers import base, fields, marks, rates
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
from datasets.readers.mat_file import MatFile, size
from datasets.readers.mat_open import opened


def scan(root: Root, descriptor: Descriptor) -> list[RecordFile]:
    """Every record under `root` that the descriptor names, from the shapes of its variables.

    Raises PlethoraError if the descriptor lacks what the files cannot state.
    """
    for modality, signal in descriptor.signals.items():
        if signal.rate is None or signal.source_unit is None:
            lacking = "rate" if signal.rate is None else "source_unit"
            raise PlethoraError(
                f"{descriptor.name}: [signals.{modality}] needs `{lacking}`: a .mat file states neither "
                "(`rate` may be the name of a variable that does)"
            )
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> Sequence[Draft] | None:
    path = draft.fetch([draft.name]) / draft.name
    if not draft.size(draft.name):
        raise Refused("corrupt", f"{path.name} is empty")
    with open(path, "rb") as file:
        draft.digest = hashlib.file_digest(file, "sha256").hexdigest()
    if descriptor.elements is None:
        with opened(path) as mat:
            _promise(draft, mat, descriptor)
        return None
    found = []
    with opened(path, descriptor.elements, axis=descriptor.elements_axis) as mat:
        for element in range(_count(draft, mat, descriptor)):
            record = f"{draft.record}-{element}"
            one = dataclasses.replace(
                draft, record=record, element=element, seconds={}, refused={}, words={}, files=[*draft.files]
            )
            mat.element = element
            try:
                _promise(one, mat, descriptor)
            except Refused as why:  # of this record only
                for modality in one.seconds:
                    one.refuse(modality, why.reason, why.detail)
            found.append(one)
    if not found:
        raise Refused("corrupt", f"{path.name} holds no element of {descriptor.elements}")
    return found


def _count(draft: Draft, mat: MatFile, descriptor: Descriptor) -> int:
    """Number of records in the file; if unknown, all its numbers count as hours."""
    try:
        return mat.count()
    except Refused:
        for modality, signal in descriptor.signals.items():
            if rate := base.fraction(signal.hz):
                total = max((mat.total(name) for choice in signal.choices for name in choice), default=0)
                draft.seconds[modality] = Fraction(total) / rate
        raise


def _promise(draft: Draft, mat: MatFile, descriptor: Descriptor) -> None:
    """The file's content for each modality. Refused is raised last, so that the other hours are counted."""
    unread: dict[str, Refused] = {}
    picked: dict[str, tuple[tuple[str, ...], int]] = {}
    for modality, signal in descriptor.signals.items():
        try:
            found = _pick(mat, signal, descriptor.arrays)
        except Refused as why:
            rate = base.fraction(signal.hz)
            draft.seconds[modality] = (
                Fraction(_longest(mat, signal, descriptor.arrays)) / rate if rate else Fraction(0)
            )
            unread[modality] = why
            continue
        if found:
            picked[modality] = found
    stated = {m: _rate(mat, m, descriptor, picked) for m in picked}
    for modality, (_, length) in picked.items():
        if rate := stated[modality][0]:
            draft.whole = max(draft.whole, Fraction(length) / rate)
    for modality, signal in descriptor.signals.items():
        if modality in draft.seconds:
            continue
        if modality not in picked:
            _absent(draft, mat, modality, signal)
            continue
        choice, length = picked[modality]
        rate, odd = stated[modality]
        if odd:
            draft.seconds[modality] = Fraction(length) / rate if rate else Fraction(0)
            draft.refuse(modality, "bad_rate", odd)
        else:
            draft.promise(modality, signal, Promise(length, rate, signal.source_unit or "", len(choice)))
    if not picked or any(descriptor.signals[m].required for m in unread):
        for last in list(unread.values())[-1:]:
            raise last
    for modality, trouble in unread.items():  # the others are usable without it
        draft.refuse(modality, trouble.reason, trouble.detail)


def _rate(
    mat: MatFile, modality: str, descriptor: Descriptor, picked: Mapping[str, tuple[tuple[str, ...], int]]
) -> tuple[Fraction | None, str | None]:
    """The rate of a modality, and the reason if it must be refused (`rates.rate_of`)."""
    held = {channel: array.variable for array in descriptor.arrays for channel in array.channels}
    paths = [held.get(name, name) for name in picked[modality][0]]
    present = {m: descriptor.signals[m] for m in picked}
    return rates.rate_of(mat, modality, descriptor.signals[modality], paths, present)


def _absent(draft: Draft, mat: MatFile, modality: str, signal: Signal) -> None:
    """Record that a signal is missing, or what has its name instead."""
    names = [name for choice in signal.choices for name in choice]
    name, kind = next(((name, kind) for name in names if (kind := mat.what(name))), ("", ""))
    if not kind or not signal.required:
        draft.promise(modality, signal, None, has=mat.names())
        return
    how = "save it as plain numbers"
    if kind == "a struct":
        how = f"name a field of it ({', '.join(n for n in mat.names() if n.startswith(f'{name}.'))})"
    elif "array" in kind:
        how = f'set elements = "{name}" if each part of it is a record'
    rate = base.fraction(signal.hz)
    draft.seconds[modality] = max(draft.whole, Fraction(mat.total(name)) / rate if rate else Fraction(0))
    draft.refuse(modality, "missing_channel", f"{name} is {kind}: {how}, or name another channel")


def _longest(mat: MatFile, signal: Signal, arrays: Sequence[Array]) -> int:
    """Length of an unusable signal: the longer side of its longest array."""
    held = {channel: array.variable for array in arrays for channel in array.channels}
    names = {held.get(name, name) for choice in signal.choices for name in choice}
    try:
        return max((max(mat.shape(name) or (0,)) for name in names), default=0)
    except Refused:
        return 0


def _pick(mat: MatFile, signal: Signal, arrays: Sequence[Array]) -> tuple[tuple[str, ...], int] | None:
    """The first choice of which the file has all channels, and their common length."""
    for choice in signal.choices:
        lengths = {_length(mat, name, arrays) for name in choice}
        if None in lengths:
            continue
        if len(lengths) > 1:
            raise Refused("corrupt", f"{'+'.join(choice)} differ in length")
        return choice, lengths.pop() or 0
    return None


def _length(mat: MatFile, name: str, arrays: Sequence[Array]) -> int | None:
    """Samples of a channel; None if the file has none of that name."""
    for array in arrays:
        if name not in array.channels:
            continue
        shape = mat.shape(array.variable)
        if shape is None:
            continue
        if len(shape) != 2 or shape[array.axis] != len(array.channels):
            raise Refused(
                "corrupt",
                f"{array.variable} is {size(shape)}, the descriptor names {len(array.channels)} channels "
                f"along axis {array.axis}: correct `channels` or `axis` in [[arrays]]",
            )
        return shape[1 - array.axis]
    shape = mat.shape(name)
    if shape is None:
        return None
    if sum(n != 1 for n in shape) > 1:
        raise Refused(
            "unsupported",
            f"{name} is {size(shape)}, not one channel: name its channels in [[arrays]], or, if each row "
            f'(column) is a separate record, set elements = "{name}" and elements_axis = 0 (1)',
        )
    return int(np.prod(shape))


def _channel(mat: MatFile, name: str, arrays: Sequence[Array]) -> np.ndarray:
    for array in arrays:
        if name in array.channels and (found := mat.get(array.variable)) is not None:
            return np.take(found, array.channels.index(name), axis=array.axis)
    found = mat.get(name)
    if found is None:
        raise Refused("corrupt", f"{name} cannot be read")
    return found.reshape(-1, order="F")


def load(source: RecordFile, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples and labels of one record. Raises Refused if the file is broken."""
    path = folder / source.files[0][0]
    signals, labels, notes, unread = {}, [], [], []
    with opened(path, descriptor.elements, source.element, descriptor.elements_axis) as mat:
        wanted = {
            m: s for m, s in descriptor.signals.items() if m in source.seconds and m not in source.refused
        }
        every = {
            m: f
            for m, s in descriptor.signals.items()
            if (f := _found(mat, s, descriptor.arrays, m in wanted))
        }
        for m in wanted:
            if m not in every:
                continue
            with base.alone(m):
                signals[m], note = _samples(mat, m, descriptor, every)
            notes += [note] if note else []
            labels.append(Labels(f"{m}_channel", ["+".join(every[m][0])]))
        words = {}
        for rule in descriptor.fields:
            if rule.variable and (word := mat.word(rule.variable)) is not None:
                words[rule.variable] = word
            elif rule.variable and (kind := mat.what(rule.variable)):
                unread.append(
                    f"label {rule.name}: {rule.variable} is {kind}: save it as a number or char array"
                )
    more, problems = fields.read(source, folder, descriptor.fields, variables=words)
    labels += more
    problems += unread
    for trace in descriptor.traces:
        try:
            labels += _trace(trace, source, folder, descriptor)
        except Refused as why:
            problems.append(f"label {trace.name}: {why.reason} ({why.detail})")
    return Recording(signals, labels, problems, notes=notes)


def _samples(
    mat: MatFile, modality: str, descriptor: Descriptor, every: Mapping[str, tuple[tuple[str, ...], int]]
) -> tuple[Samples, str | None]:
    """A modality's samples, and messages for the user."""
    signal = descriptor.signals[modality]
    factor = signal.units[signal.source_unit or ""]
    channels = []
    for name in every[modality][0]:
        x = _channel(mat, name, descriptor.arrays)
        lost = marks.marked(x, signal.missing)
        channels.append(Channel(_numbers(name, x), np.zeros(len(x), bool) if lost is None else lost, factor))
    rate, odd = _rate(mat, modality, descriptor, every)
    if rate is None or odd:
        raise Refused("bad_rate", odd or "no rate is stated")
    note = marks.note(modality, channels[0].x, channels[0].missing)
    return base.together(channels, rate, signal.unit), note


def _found(
    mat: MatFile, signal: Signal, arrays: Sequence[Array], wanted: bool
) -> tuple[tuple[str, ...], int] | None:
    """`_pick`, which may only fail for a signal that is `wanted`."""
    try:
        return _pick(mat, signal, arrays)
    except Refused:
        if wanted:
            raise
        return None


def _numbers(name: str, x: np.ndarray) -> np.ndarray:
    """Samples as a numeric type: integers unchanged if int64 holds them, else float64."""
    if x.dtype.kind not in "biuf":
        kind = "words" if x.dtype.kind in "SUO" else f"of type {x.dtype}"
        raise Refused("corrupt", f"{name} is {kind}, not numbers: change `channels`")
    if x.dtype.kind == "f" or x.dtype == np.uint64:
        return x.astype(np.float64)
    return x.astype(np.int16) if x.dtype.kind == "b" else x.astype(x.dtype.newbyteorder("="))


def _trace(trace: Trace, source: RecordFile, folder: Path, descriptor: Descriptor) -> list[Labels]:
    path = folder / (trace.file.format(**source.groups) if trace.file else source.files[0][0])
    if not path.is_file():
        raise Refused("missing_file", f"{path.name} does not exist")
    own = trace.file is None
    axis = descriptor.elements_axis
    with opened(path, descriptor.elements if own else None, source.element if own else None, axis) as mat:
        found = mat.get(trace.variable)
    if found is None or found.dtype.kind not in "biuf":
        raise Refused("missing_channel", f"no numbers {trace.variable} in {path.name}")
    values = found.reshape(-1, order="F").astype(np.float64)
    return [fields.of_trace(trace, values)]
