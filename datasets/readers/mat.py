"""MATLAB files, v5 and v7.3: a file is a record, or holds many (`elements`: an array of structs).

A channel is a variable of one row or column, or one row (column) of a matrix that `arrays` names. The format
states neither rate nor unit: the descriptor must.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from cluster.errors import PlethoraError
from datasets.descriptor import Array, Descriptor, Signal, Trace
from datasets.readers import base
from datasets.readers.base import Channel, Draft, Labels, Promise, Recording, Refused, Root, Source
from datasets.readers.mat_file import MatFile, opened


def scan(root: Root, descriptor: Descriptor) -> list[Source]:
    """Every record under `root` that the descriptor names, from the shapes of its variables.

    Raises PlethoraError where the descriptor leaves out what the files cannot say.
    """
    for modality, signal in descriptor.signals.items():
        if signal.rate is None or signal.source_unit is None:
            lacking = "rate" if signal.rate is None else "source_unit"
            raise PlethoraError(
                f"{descriptor.name}: [signals.{modality}] needs `{lacking}`: a .mat file states neither"
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
    with opened(path, descriptor.elements) as mat:
        for element in range(mat.count()):
            record = f"{draft.record}-{element}"
            one = dataclasses.replace(
                draft, record=record, element=element, seconds={}, refused={}, words={}, files=[*draft.files]
            )
            mat.element = element
            try:
                _promise(one, mat, descriptor)
            except Refused as why:  # the other elements are sound
                one.broken = (why.reason, why.detail)
                base.count_required(one, descriptor)
            found.append(one)
    if not found:
        raise Refused("corrupt", f"{path.name} holds no element of {descriptor.elements}")
    return found


def _promise(draft: Draft, mat: MatFile, descriptor: Descriptor) -> None:
    """Raises Refused last, so that the hours of the other modalities count."""
    lengths, broken = {}, None
    for modality, signal in descriptor.signals.items():
        try:
            found = _pick(mat, signal, descriptor.arrays)
        except Refused as why:
            broken = why
            continue
        lengths[modality] = found
        if found:
            draft.whole = max(draft.whole, Fraction(found[1]) / (base.fraction(signal.hz) or 1))
    for modality, found in lengths.items():
        signal, promised = descriptor.signals[modality], None
        if found:
            choice, length = found
            unit = signal.source_unit or ""
            promised = Promise(length, base.fraction(signal.hz), unit, len(choice))
        draft.promise(modality, signal, promised)
    if broken is not None:
        raise broken


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
    """Samples of a channel; None where the file has none of that name."""
    for array in arrays:
        if name not in array.channels:
            continue
        shape = mat.shape(array.variable)
        if shape is None:
            continue
        if len(shape) != 2 or shape[array.axis] != len(array.channels):
            size = " x ".join(map(str, shape))
            raise Refused(
                "corrupt", f"{array.variable} is {size}, the descriptor names {len(array.channels)} channels"
            )
        return shape[1 - array.axis]
    shape = mat.shape(name)
    if shape is None:
        return None
    if sum(n != 1 for n in shape) > 1:
        raise Refused("corrupt", f"{name} is {' x '.join(map(str, shape))}, not one channel")
    return int(np.prod(shape))


def _channel(mat: MatFile, name: str, arrays: Sequence[Array]) -> np.ndarray:
    for array in arrays:
        if name in array.channels and (found := mat.get(array.variable)) is not None:
            return np.take(found, array.channels.index(name), axis=array.axis)
    found = mat.get(name)
    if found is None:
        raise Refused("corrupt", f"{name} cannot be read")
    return found.reshape(-1, order="F")


def load(source: Source, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples and labels of one record. Raises Refused where the file is broken."""
    path = folder / source.files[0][0]
    signals, labels = {}, []
    with opened(path, descriptor.elements, source.element) as mat:
        for m, signal in descriptor.signals.items():
            found = None
            if m in source.seconds and m not in source.refused:
                found = _pick(mat, signal, descriptor.arrays)
            if found is None:
                continue
            factor = signal.units[signal.source_unit or ""]
            channels = []
            for name in found[0]:
                x = _numbers(_channel(mat, name, descriptor.arrays))
                channels.append(Channel(x, np.zeros(len(x), bool), factor))
            rate = base.fraction(signal.hz)
            assert rate is not None
            signals[m] = base.together(channels, rate, signal.unit)
            labels.append(Labels(f"{m}_channel", ["+".join(found[0])]))
        words = {
            rule.variable: word
            for rule in descriptor.fields
            if rule.variable and (word := mat.word(rule.variable)) is not None
        }
    more, problems = base.fields(source, folder, descriptor.fields, variables=words)
    labels += more
    for trace in descriptor.traces:
        try:
            labels += _trace(trace, source, folder, descriptor)
        except Refused as why:
            problems.append(f"label {trace.name}: {why.reason} ({why.detail})")
    return Recording(signals, labels, problems)


def _numbers(x: np.ndarray) -> np.ndarray:
    """Samples that numpy can reckon with: integers as they are where int64 holds them, else float64."""
    if x.dtype.kind not in "biuf":
        raise Refused("corrupt", f"samples of type {x.dtype}")
    if x.dtype.kind == "f" or x.dtype == np.uint64:
        return x.astype(np.float64)
    return x.astype(np.int16) if x.dtype.kind == "b" else x.astype(x.dtype.newbyteorder("="))


def _trace(trace: Trace, source: Source, folder: Path, descriptor: Descriptor) -> list[Labels]:
    path = folder / (trace.file.format(**source.groups) if trace.file else source.files[0][0])
    if not path.is_file():
        raise Refused("missing_file", f"{path.name} is not there")
    own = trace.file is None
    with opened(path, descriptor.elements if own else None, source.element if own else None) as mat:
        found = mat.get(trace.variable)
    if found is None or found.dtype.kind not in "biuf":
        raise Refused("missing_channel", f"no numbers {trace.variable} in {path.name}")
    values = found.reshape(-1, order="F").astype(np.float64)
    there = np.flatnonzero(np.isfinite(values))
    start = there * trace.step_s
    return [Labels(trace.name, values[there], trace.unit, start, start + trace.window_s)]
