"""Channels that a file's header describes: which of them a descriptor names, and what they hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np

from datasets.descriptor import Descriptor, Signal
from datasets.readers import base
from datasets.readers.base import Channel, Draft, Labels, Promise, RecordFile, Refused, Samples


@dataclass(frozen=True)
class Track:
    """One channel: physical = raw * scale + offset, in `unit`.

    `name` is unique in the file; `label` is the file's own, which several may share.
    `rate`: Hz, None if the file states none. `flaw`: why there is no scale.
    """

    name: str
    label: str
    unit: str
    rate: Fraction | None
    scale: float
    offset: float
    flaw: str

    @property
    def shown(self) -> str:
        return self.name if self.name == self.label else f"{self.name} ({self.label})"


T = TypeVar("T", bound=Track)


def find(tracks: Sequence[T], name: str) -> T | None:
    """The track with this name or label. Refused (missing_channel): several have it."""
    found = [t for t in tracks if t.name == name] or [t for t in tracks if t.label == name]
    if len(found) > 1:
        names = " or ".join(t.name for t in found)
        raise Refused("missing_channel", f"{len(found)} channels are named {name}: put {names} in `channels`")
    return found[0] if found else None


def pick(tracks: Sequence[T], signal: Signal) -> list[T] | None:
    """The tracks of the first choice that is present in full. Refused (missing_channel) as in `find`."""
    for choice in signal.choices:
        found = [t for name in choice if (t := find(tracks, name)) is not None]
        if len(found) == len(choice):
            return found
    return None


def promise(draft: Draft, descriptor: Descriptor, tracks: Sequence[T], length: Callable[[T], int]) -> None:
    """Record what the header says of every modality, or why it is refused; `length`: samples of a track."""
    for modality, signal in descriptor.signals.items():
        try:
            found = pick(tracks, signal)
            if found and len({t.rate for t in found}) > 1:
                stated = ", ".join(f"{t.name} has {float(t.rate or 0):g} Hz" for t in found)
                raise Refused("bad_rate", f"{stated}: name channels of one rate in `channels`")
        except Refused as why:
            draft.seconds[modality] = draft.whole
            draft.refuse(modality, why.reason, why.detail)
            continue
        if not found:
            draft.promise(modality, signal, None, [t.shown for t in tracks])
            continue
        units = {unit_of(t, signal) for t in found}
        unit = min(units - set(signal.units) or units)
        flawed = next((t for t in found if t.flaw or not base.usable(t.scale, t.offset)), None)
        promise = Promise(length(found[0]), found[0].rate, unit, len(found), not flawed)
        draft.promise(modality, signal, promise, [t.shown for t in tracks])
        reason = draft.refused.get(modality)
        if reason == "bad_scale" and flawed and flawed.flaw:
            draft.refuse(modality, reason, f"{flawed.name}: {flawed.flaw}: change `channels`")
        elif reason == "unit_mismatch" and not unit:
            draft.refuse(modality, reason, "the file states no unit: add `source_unit`")


def unit_of(track: Track, signal: Signal) -> str:
    """The track's unit as written in the descriptor, if listed there."""
    stated = track.unit or signal.source_unit or ""
    return signal.listed(stated)


def samples(
    tracks: Sequence[T], signal: Signal, read: Callable[[T], tuple[np.ndarray, np.ndarray]]
) -> Samples:
    """The modality of some tracks; `read`: a track's raw samples (T,), and a missing mask.

    Numbers among the signal's `missing` are missing too.
    """
    rate = tracks[0].rate
    assert rate is not None
    channels = []
    for track in tracks:
        factor = signal.units[unit_of(track, signal)]
        x, missing = read(track)
        channels.append(Channel(x, missing, factor * track.scale, factor * track.offset))
    return base.together(channels, rate, signal.unit, signal.missing)


def load(
    source: RecordFile,
    descriptor: Descriptor,
    tracks: Sequence[T],
    read: Callable[[T], tuple[np.ndarray, np.ndarray]],
    called: Callable[[T], str] = lambda track: track.label,
) -> tuple[dict[str, Samples], list[Labels]]:
    """The signals of one record that its header promises, with a label of each for the file's channel names;
    `read` as in `samples`."""
    signals, labels = {}, []
    for modality, signal in descriptor.signals.items():
        wanted = modality in source.seconds and modality not in source.refused
        found = pick(tracks, signal) if wanted else None
        if found:
            with base.alone(modality):
                signals[modality] = samples(found, signal, read)
            labels.append(Labels(f"{modality}_channel", ["+".join(called(t) for t in found)]))
    return signals, labels
