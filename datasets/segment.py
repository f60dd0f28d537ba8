"""One record's signals → rows of the corpus contract, and the ledger of what did not make it.

All borders lie on a grid that every modality of the record shares (the greatest common divisor of their
rates), so that a row holds a whole number of samples of each and hours add up exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from datasets import validity
from datasets.readers.base import Samples
from datasets.validity import KEPT, Limits

INT16 = np.iinfo(np.int16)
COARSEST_S = 1  # a grid coarser than this would throw seconds away at every border


@dataclass
class Segments:
    """Rows (dicts of `row_schema` without the subject), rejects (modality, start_s, duration_s, reason),
    and exact seconds: in, kept and refused by reason, a modality; bridged: (gaps, seconds), a modality."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[tuple[str, Fraction, Fraction, str]] = field(default_factory=list)
    seconds_in: dict[str, Fraction] = field(default_factory=dict)
    kept: dict[str, Fraction] = field(default_factory=dict)
    refused: dict[str, dict[str, Fraction]] = field(default_factory=dict)
    bridged: dict[str, tuple[int, Fraction]] = field(default_factory=dict)

    def refuse(self, modality: str, start: Fraction, seconds: Fraction, reason: str) -> None:
        reasons = self.refused.setdefault(modality, {})
        reasons[reason] = reasons.get(reason, Fraction(0)) + seconds
        self.rejects.append((modality, start, seconds, reason))

    def check(self, record: str) -> None:
        """Raise unless seconds in = kept + refused for every modality."""
        for m, total in self.seconds_in.items():
            kept = self.kept.get(m, Fraction(0))
            refused = sum(self.refused.get(m, {}).values(), Fraction(0))
            if total != kept + refused:
                raise RuntimeError(f"ledger of {record}/{m}: {total} s in, {kept} kept, {refused} refused")


@dataclass
class _Track:
    """A modality on the grid: `x` int16 (samples, channels), `codes` one verdict a grid cell."""

    samples: Samples
    x: np.ndarray
    scale: float
    offset: float
    per_cell: int
    codes: np.ndarray


def encode(samples: Samples) -> tuple[np.ndarray, float, float]:
    """int16 (samples, channels), scale and offset such that physical = int16 * scale + offset.

    Integers that span at most 65,536 values stay exact (shifted where needed); all else is quantised over
    its range in 65,534 steps: error at most 8e-6 of the range. Missing samples become 0.
    """
    x, missing = samples.x_tc, samples.missing
    known = x[~missing] if missing.any() else x
    if not known.size:
        return np.zeros(x.shape, "<i2"), samples.scale, samples.offset
    low, high = known.min(), known.max()
    scale, offset = samples.scale, samples.offset
    if np.issubdtype(x.dtype, np.integer) and int(high) - int(low) <= 65535:
        fits = INT16.min <= low and high <= INT16.max
        shift = 0 if fits else int(low) + 32768
        coded = x.astype(np.int64) - shift if shift or missing.any() else x
        offset += shift * scale
    else:
        step = (float(high) - float(low)) / 65534 or 1.0
        middle = (float(high) + float(low)) / 2
        coded = np.rint((np.where(missing[:, None], middle, x) - middle) / step)
        scale, offset = scale * step, offset + scale * middle
    coded[missing] = 0
    return coded.astype("<i2"), float(scale), float(offset)


def segment(record: str, signals: Mapping[str, Samples], limits: Limits, segment_s: float) -> Segments:
    """Cut one record into rows: maximal stretches with one set of valid modalities, `segment_s` at most."""
    out = Segments()
    usable = _commensurate(signals, out)
    if not usable:
        return out
    grid = _grid(s.rate for s in usable.values())
    tracks = {m: _track(m, s, grid, limits, out) for m, s in usable.items()}
    cells = max(len(t.codes) for t in tracks.values())
    pattern = np.zeros(cells, np.int64)
    for bit, track in enumerate(tracks.values()):
        pattern[: len(track.codes)] |= (track.codes == KEPT).astype(np.int64) << bit
    longest = max(1, math.floor(segment_s * grid))
    for start, stop, mask in zip(*validity.stretches(pattern), strict=True):
        for a in range(start, stop, longest) if mask else ():
            held = {m: t for bit, (m, t) in enumerate(tracks.items()) if mask >> bit & 1}
            out.rows.append(_row(record, held, int(a), int(min(a + longest, stop)), grid, out))
    out.check(record)
    return out


def _grid(rates: Any) -> Fraction:
    """The greatest rate (Hz) of which all `rates` are whole multiples."""
    grid = Fraction(0)
    for rate in rates:
        a, b = grid, rate
        while b:
            a, b = b, a % b
        grid = a
    return grid


def _commensurate(signals: Mapping[str, Samples], out: Segments) -> dict[str, Samples]:
    """The modalities that share a grid of at most a second; the rest is refused (bad_rate)."""
    usable: dict[str, Samples] = {}
    for m, s in signals.items():
        out.seconds_in[m] = Fraction(len(s.x_tc)) / s.rate
        if _grid([s.rate, *(u.rate for u in usable.values())]) * COARSEST_S < 1:
            out.refuse(m, Fraction(0), out.seconds_in[m], "bad_rate")
        elif len(s.x_tc):
            usable[m] = s
    return usable


def _track(m: str, s: Samples, grid: Fraction, limits: Limits, out: Segments) -> _Track:
    rate = float(s.rate)
    x, missing, gaps, filled = validity.bridge(s.x_tc, s.missing, limits.bridge_s * rate)
    out.bridged[m] = (gaps, Fraction(filled) / s.rate)
    codes = validity.verdicts(x, missing, rate, limits)
    per_cell = int(s.rate / grid)
    cells = len(x) // per_cell
    # one verdict a cell: the gravest of its samples (the code order has no meaning beyond kept = 0)
    by_cell = codes[: cells * per_cell].reshape(cells, per_cell).max(axis=1) if cells else codes[:0]
    by_cell = validity.drop_fragments(by_cell, limits.fragment_s * float(grid))
    for start, stop, code in zip(*validity.stretches(by_cell), strict=True):
        if code != KEPT:
            out.refuse(
                m, Fraction(int(start)) / grid, Fraction(int(stop - start)) / grid, validity.REASONS[code]
            )
    tail = len(x) - cells * per_cell
    if tail:
        out.refuse(m, Fraction(cells) / grid, Fraction(tail) / s.rate, "fragment")
    coded, scale, offset = encode(Samples(x, missing, s.rate, s.scale, s.offset, s.unit))
    return _Track(s, coded, scale, offset, per_cell, by_cell)


def _row(
    record: str, held: dict[str, _Track], start: int, stop: int, grid: Fraction, out: Segments
) -> dict[str, Any]:
    seconds = Fraction(stop - start) / grid
    row: dict[str, Any] = {
        "record": record,
        "start_s": float(Fraction(start) / grid),
        "duration_s": float(seconds),
    }
    for m, t in held.items():
        out.kept[m] = out.kept.get(m, Fraction(0)) + seconds
        row |= {
            m: t.x[start * t.per_cell : stop * t.per_cell].tobytes(),
            f"{m}_rate": float(t.samples.rate),
            f"{m}_scale": t.scale,
            f"{m}_offset": t.offset,
            f"{m}_unit": t.samples.unit,
            f"{m}_channels": t.x.shape[1],
        }
    return row
