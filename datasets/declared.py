"""The declaration of a signal's preprocessing, as `preprocessing.json` of a bundle holds it, and the `Signal`
that it means: the one place that writes it and the one that reads it.

Lengths (`window_s`, `min_s`, …), what happens to shorter input, the unit and the channels lie in the same
entry; they concern whoever cuts windows, not the signal.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from cluster.config import validate
from cluster.errors import PlethoraError
from datasets.signal import LATEST, USUAL, Signal, Step

LENGTHS = ("window_s", "min_s", "max_s", "multiple_s", "short", "unit")
OF_THE_INPUT = ("channels", "required")  # beside a class or an ONNX file; a bundle has them in config.json
# keys whose values are those of the `Signal`, unless they are null
_ALIKE = (
    *("rate", "band", "filter", "attenuation", "taps", "taper", "beta"),
    *("notch", "smooth_s", "smooth_from", "baseline_s", "resample"),
)
# `kind` repeats `filter` for readers of before; nothing here reads it
KEYS = (
    *_ALIKE,
    "kind",
    "order",
    "phase",
    "sequence",
    "normalise",
    "upright",
    "min_rate",
    *LENGTHS,
    *OF_THE_INPUT,
)
IN_THE_MODEL = "in the model"  # the network normalises
_NATIVE = "filter at the native rate"
_WORDS: Mapping[str, Step | None] = {  # of `sequence`: what each means
    "cut": None,
    _NATIVE: "filter",
    "filter at native rate": "filter",
    "filter": "filter",
    "resample": "resample",
    "turn upright": None,
    "normalise": "normalise",
}


def signal_of(modality: str, entry: Mapping[str, Any], where: str, channels: int = 1) -> Signal:
    """The `Signal` of `channels` that `entry`, the part of preprocessing.json about `modality`, declares.

    where: the file, for messages. PlethoraError, one line: a key is unknown, or a value is not one that this
    Plethora can do.
    """
    here = f"{where}, {modality}"
    for key in entry:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            meant = f"did you mean `{near[0]}`? " if near else ""
            raise PlethoraError(f"{here}: unknown key `{key}`: {meant}known are {', '.join(KEYS)}")
    given: dict[str, Any] = {key: entry[key] for key in _ALIKE if entry.get(key) is not None}
    given |= {
        "modality": modality,
        "channels": channels,
        "order": entry.get("order") or 2,
        "phase": _phase(entry.get("phase", "zero"), here),
        "upright": entry.get("upright") or False,
        "min_rate": entry.get("min_rate") or 0.0,
        "sequence": _sequence(entry.get("sequence"), here),
        "normalise": "none" if entry.get("normalise") == IN_THE_MODEL else entry.get("normalise", "none"),
    }
    return validate(Signal, given, here)


def entry_of(signal: Signal) -> dict[str, Any]:
    """What preprocessing.json says about `signal`, without lengths and unit. Keys that mainly concern ECG are
    always present for an ECG, and for other signals only if set; those of version 2 of the contract only if
    they differ from their default.
    """
    delayed, fir = signal.phase == "delayed", signal.filter == "fir"
    entry: dict[str, Any] = {
        "rate": signal.rate,
        "band": None if signal.band is None else list(signal.band),
        "filter": signal.filter,
        "kind": signal.filter,
        "phase": "delayed (lfilter)" if delayed else "zero (filtfilt)" if fir else "zero (sosfiltfilt)",
        "resample": signal.resample,
        "sequence": _words(signal),
        "normalise": IN_THE_MODEL if signal.normalise == "none" else signal.normalise,
    }
    if not fir:
        entry["order"] = signal.order
    few = {"notch": signal.notch, "upright": signal.upright, "min_rate": signal.min_rate}
    entry |= {key: value for key, value in few.items() if value or signal.modality == "ecg"}
    later = {key: getattr(signal, key) for key in LATEST if key not in entry}
    return entry | {key: value for key, value in later.items() if value != LATEST[key]}


def differences(declared: Signal, used: Signal) -> dict[str, tuple[Any, Any]]:
    """{key: (declared, used)} of what preprocessing.json tells apart in two signals."""
    keys = ["rate", "band", "notch", "upright", "min_rate", "normalise", *LATEST]
    if used.band is not None and used.filter != "fir":  # else there is no order
        keys.append("order")
    pairs = {key: (getattr(declared, key), getattr(used, key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def _words(signal: Signal) -> list[str]:
    idle = signal.normalise == "none" and signal.sequence[-1] == "normalise"
    steps = [step for step in signal.sequence if step != "normalise" or not idle]
    native = steps.index("filter") < steps.index("resample")
    words = [_NATIVE if native and step == "filter" else str(step) for step in steps]
    if signal.upright:  # `normalise` is the last step then
        words.insert(2, "turn upright")
    return ["cut", *words]


def _sequence(words: Any, here: str) -> tuple[Step, ...]:
    if words is None:
        return USUAL
    known = ", ".join(_WORDS)
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise PlethoraError(f"{here}: `sequence` must be a list of steps: known are {known}")
    if unknown := [word for word in words if word not in _WORDS]:
        raise PlethoraError(f"{here}: `sequence` has an unknown step {unknown[0]!r}: known are {known}")
    steps = [step for word in words if (step := _WORDS[word]) is not None]
    return (*steps, "normalise") if "normalise" not in steps else tuple(steps)


def _phase(value: Any, here: str) -> str:
    known = ("zero", "delayed")
    first = value.partition(" (")[0] if isinstance(value, str) else value
    if first not in known:
        raise PlethoraError(f"{here}: `phase` is {value!r}: known are {', '.join(known)}")
    return str(first)
