"""The rate that a file states in a variable, an attribute or a constant column, and whether it agrees with
the descriptor's."""

import re
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

import numpy as np

from datasets.descriptor import Signal
from datasets.readers.base import fraction

ROUNDING = 1e-5  # relative rounding error of a rate written with few digits
KNOWN = (
    "samplingfrequency",
    "samplefrequency",
    "samplingfreq",
    "samplefreq",
    "samplingrate",
    "samplerate",
    "sampfreq",
    "samprate",
    "sfreq",
    "srate",
    "fsamp",
    "fs",
)
ALONE = ("sr", "freq", "frequency", "hz")  # rates by themselves; beside other words perhaps a pulse rate
# as the last part of a name these are sampling rates only beside a signal's samples (else: heart rate)
BESIDE = ("rate", "freq", "frequency", "hz")


class Facts:
    """A file that may state rates: `facts` are dotted names, `fact` returns the value of one."""

    def facts(self) -> Collection[str]:
        """Names that may state a rate: `Fs`, `ppg.fs` (in a struct or group, or an attribute of `ppg`)."""
        return ()

    def fact(self, name: str) -> object:
        """The value that the file holds under a name, None if there is none."""
        return None

    def stated_rate(self, name: str, paths: Sequence[str] = ()) -> float | None:
        """The rate in Hz stated under `name`, first beside the variables `paths`; or None."""
        for prefix in _prefixes(paths):
            found = number(self.fact(f"{prefix}{name}"))
            if found is not None:
                return found
        return None

    def stated_rates(self) -> dict[str, float]:
        """Every rate stated under a usual name: name -> Hz."""
        found = {name: number(self.fact(name)) for name in self.facts() if _rest(name) is not None}
        return {name: hz for name, hz in found.items() if hz is not None}


def rate_of(
    file: Facts, modality: str, signal: Signal, paths: Sequence[str], present: Mapping[str, Signal]
) -> tuple[Fraction | None, str | None]:
    """The rate of a signal that `file` holds in the variables `paths`, and the reason if it must be refused.

    A rate given by name is read from the file. A rate given as a number must agree with what the file states,
    if the file clearly means this signal: within `rate_tolerance` (then the file's rate is used), else up to
    rounding. `present`: the signals that the file holds.
    """
    if isinstance(signal.rate, str):
        hz = file.stated_rate(signal.rate, paths)
        if hz is None:
            return None, (
                f"the file states no rate in {signal.rate!r}: name the variable, attribute or column that "
                "does in `rate`, or give the number"
            )
        return fraction(hz), None
    found = _stated(file.stated_rates(), modality, signal, paths, present)
    if signal.hz is None or found is None:
        return fraction(signal.hz if found is None else found[1]), None
    name, hz = found
    off = abs(hz / signal.hz - 1)
    if off <= ROUNDING:
        return fraction(signal.hz), None
    if off <= (signal.rate_tolerance or 0):
        return fraction(hz), None
    return fraction(hz), (
        f"{name!r} in the file says {hz:g} Hz, not {signal.hz:g}: correct `rate`, or set rate = {name!r}"
    )


def _stated(
    rates: Mapping[str, float],
    modality: str,
    signal: Signal,
    paths: Sequence[str],
    present: Mapping[str, Signal],
) -> tuple[str, float] | None:
    """(name, Hz) of the rate that a file clearly states for this signal, None if it may mean another."""
    mine = {_plain(word) for word in (modality, *paths, *(part for p in paths for part in p.split(".")))}
    stated = [(n, hz) for n, hz in rates.items() if _rest(n) in mine or _parent(n) in paths]
    if not stated:
        # names that mention no signal: beside this one, nearest first, or the only rate in the file
        stated = [(n, hz) for n, hz in rates.items() if len(rates) == 1 and _rest(n) == ""]
        for prefix in _prefixes(paths):
            near = [(n, hz) for n, hz in rates.items() if f"{_parent(n)}." == (prefix or ".")]
            if near:
                stated = near if all(_rest(n) == "" for n, _ in near) else []
                break
        if stated and any(_agree(s.hz, stated[0][1]) for s in present.values() if s.hz != signal.hz):
            return None
    return stated[0] if stated and len({hz for _, hz in stated}) == 1 else None


def _agree(hz: float | None, other: float) -> bool:
    return hz is not None and abs(other / hz - 1) <= ROUNDING


def _prefixes(paths: Sequence[str]) -> list[str]:
    """`a.b.`, `a.` and `` for a variable a.b: the prefixes to search for its attributes, nearest first."""
    found = [""]
    for path in paths[:1]:
        parts = path.split(".")
        found = [".".join(parts[:n]) + "." for n in range(len(parts), 0, -1)] + [""]
    return found


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _plain(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.casefold())


def _rest(name: str) -> str | None:
    """The rest of a rate's name: `` for Fs, ppg for fs_ppg and for fs.ppg; None: it names no rate."""
    *parents, leaf = name.split(".")
    words = [w.casefold() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", leaf)]
    words = [w for w in words if w not in ("hz", "in")] or words
    if "".join(words) in (ALONE if not parents else (*ALONE, *BESIDE)):
        return ""
    for first in range(len(words)):
        for last in range(first + 1, len(words) + 1):
            if "".join(words[first:last]) in KNOWN:
                return "".join(words[:first] + words[last:])
    return _plain(leaf) if parents and _rest(parents[-1]) == "" else None


def is_rate(name: str) -> bool:
    """Whether a variable of this name states a sampling rate."""
    return _rest(name) is not None


def number(value: object) -> float | None:
    """A rate as a file may write it: a number, an array of one repeated value, `125`, `125 Hz`."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*(?:[hH][zZ])?\s*", value)
        value = float(found.group(1)) if found else None
    if value is None:
        return None
    x = np.asarray(value)
    if x.dtype.kind in "SU" and x.size == 1:
        return number(x.reshape(-1)[0].item())
    if x.dtype.kind not in "iuf" or not x.size or not (x == x.reshape(-1)[0]).all():
        return None
    hz = float(x.reshape(-1)[0])
    return hz if np.isfinite(hz) and 0 < hz < 1e9 else None
