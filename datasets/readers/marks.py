"""Missing-value markers: words in a text, and numbers that a descriptor or the file itself declares."""

from collections.abc import Iterable, Sequence

import numpy as np

# What people and programs write for a missing number, case-insensitive.
NOTHING = frozenset(
    {
        "",
        "na",
        "n/a",
        "n.a.",
        "n.a",
        "#n/a",
        "#na",
        "<na>",
        "nan",
        "-nan",
        "+nan",
        "nan(ind)",
        "-nan(ind)",
        "1.#qnan",
        "1.#ind",
        "-1.#ind",
        "1.#inf",
        "-1.#inf",
        "null",
        "(null)",
        "#null!",
        "nil",
        "none",
        "nat",
        "missing",
        "-",
        "--",
        "---",
        ".",
        "..",
        "...",
        "…",
        "\u2013",
        "\u2014",
        "?",
        "??",
        "#value!",
        "#div/0!",
        "#num!",
    }
)

ISOLATED = 3  # samples with one extreme value from which a note asks whether it marks missing ones


def is_nothing(word: str) -> bool:
    """Whether a word in a column of numbers means a missing value."""
    return word.strip().casefold() in NOTHING


def marked(x: np.ndarray, marks: Iterable[float | str]) -> np.ndarray | None:
    """Mask of the numbers of `x` that are in `marks`, compared in the type of `x`; None: nowhere.

    A float32 sample is compared with the float32 nearest to the mark: -999.9 has no other form there.
    """
    found: np.ndarray | None = None
    for mark in marks:
        if isinstance(mark, str):
            continue
        if x.dtype.kind == "f":
            with np.errstate(over="ignore"):
                same = x == x.dtype.type(mark)
        elif x.dtype.kind in "iu" and float(mark).is_integer() and _fits(mark, x.dtype):
            same = x == int(mark)
        else:
            continue
        if same.any():
            found = same if found is None else found | same
    return found


def _fits(mark: float, kind: np.dtype) -> bool:
    limits = np.iinfo(kind)
    return limits.min <= mark <= limits.max


def without(x: np.ndarray, marks: Sequence[float | str]) -> np.ndarray:
    """`x` with NaN for all of `marks`; `x` itself if there are none."""
    where = marked(x, marks)
    if where is None:
        return x
    held = x.astype(np.float64) if x.dtype.kind in "iu" else x.copy()
    held[where] = np.nan
    return held


def note(modality: str, x: np.ndarray, missing: np.ndarray) -> str | None:
    """A question about a value that looks like a marker: a repeated extreme, farther from all other samples
    than these are from each other. None if there is no such value."""
    sound = x[~missing] if missing.any() else x
    if not sound.size:
        return None
    low, high = sound.min(), sound.max()
    for value in (low, high):
        others = sound[sound != value] if _rare(sound, value, low, high) else sound[:0]
        if not others.size or sound.size - others.size < ISOLATED:
            continue
        near = min(abs(float(others.min()) - float(value)), abs(float(others.max()) - float(value)))
        if near > float(others.max()) - float(others.min()) > 0:
            return (
                f"{modality}: {sound.size - others.size:,} samples are {value:g}, far from all others: if "
                f"that marks missing ones, set missing = [{value:g}] in [signals.{modality}]"
            )
    return None


def _rare(x: np.ndarray, value: float, low: float, high: float) -> bool:
    """A cheap first test: in a subset of `x`, no value lies near `value` without being equal."""
    some = x[:: max(1, len(x) // 1000)].astype(np.float64)
    off = np.abs(some - float(value))
    return bool((off[off > 0] > 0.4 * (float(high) - float(low))).all())
