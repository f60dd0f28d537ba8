"""One record's signals → rows of the corpus contract, and the ledger of what was refused.

All boundaries lie on a grid that every modality of the record shares, so that hours add up exactly: the
greatest common divisor of their rates, so that a row holds a whole number of samples of each. If that is
coarser than a second (62.5 and 256 Hz meet every 2 s, 54.77 and 32.02 Hz every 100 s), boundaries lie at
whole seconds, and each modality is cut at its nearest sample: at most half a sample off.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from datasets import validity
from datasets.readers.base import Samples
from datasets.validity import KEPT, Limits

INT16 = np.iinfo(np.int16)
COARSEST_S = 1  # a coarser grid would waste seconds at every boundary
COARSE = 50  # quantisation steps in a second's usual movement; with fewer, rounding adds a hundredth of it
LOOKED_AT = 256  # one-second stretches that are sampled
# share of a row's range by which a stored sample may differ from the source's (the corpus contract)
QUANTISED = 1e-4


@dataclass
class Segments:
    """Rows (dicts of `row_schema` without the subject), rejects (modality, start_s, duration_s, reason), and
    exact seconds per modality: in, kept, refused by reason, and bridged: (gaps, seconds);
    words: explanations for a modality that is refused whole."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[tuple[str, Fraction, Fraction, str]] = field(default_factory=list)
    seconds_in: dict[str, Fraction] = field(default_factory=dict)
    kept: dict[str, Fraction] = field(default_factory=dict)
    refused: dict[str, dict[str, Fraction]] = field(default_factory=dict)
    bridged: dict[str, tuple[int, Fraction]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

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
    """A modality on the grid: `codes`, one verdict per cell; cell k holds samples `edges[k]` to `edges[k +
    1]`.

    `known`: its samples with short gaps bridged; `x`, `scale`, `offset`: the same as int16, see `encode`.
    """

    known: Samples
    x: np.ndarray
    scale: float
    offset: float
    edges: np.ndarray
    codes: np.ndarray

    def encoded(self, start: int, stop: int) -> tuple[np.ndarray, float, float]:
        """The samples of cells start to stop as int16, their scale and offset.

        Rows share the record's scale, so that they can be joined, unless a row is so much quieter than the
        rest of its record that its error would exceed the contract's limit: then it gets its own scale.
        """
        span = slice(int(self.edges[start]), int(self.edges[stop]))
        x = self.x[span]
        if not np.issubdtype(self.known.x_tc.dtype, np.integer) or self.scale != self.known.scale:
            steps = int(x.max()) - int(x.min())
            if steps * QUANTISED < 0.5:  # rounding is off by half a step at most
                own = replace(self.known, x_tc=self.known.x_tc[span], missing=self.known.missing[span])
                return encode(own)
        return x, self.scale, self.offset


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
    usable = _usable(signals, out)
    if not usable:
        return out
    grid = _grid(s.rate for s in usable.values())
    grid = max(grid, Fraction(1, COARSEST_S))
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
    """The highest rate (Hz) of which all `rates` are whole multiples."""
    grid = Fraction(0)
    for rate in rates:
        a, b = grid, rate
        while b:
            a, b = b, a % b
        grid = a
    return grid


def _usable(signals: Mapping[str, Samples], out: Segments) -> dict[str, Samples]:
    """The modalities with samples in every second; slower ones are refused (bad_rate)."""
    usable: dict[str, Samples] = {}
    for m, s in signals.items():
        out.seconds_in[m] = Fraction(len(s.x_tc)) / s.rate
        if s.rate * COARSEST_S < 1:
            out.refuse(m, Fraction(0), out.seconds_in[m], "bad_rate")
            out.words.append(
                f"{m}: bad_rate ({float(s.rate):g} Hz is not a waveform: read it as a label, [numerics])"
            )
        elif len(s.x_tc):
            usable[m] = s
    return usable


def _edges(rate: Fraction, grid: Fraction, cells: int) -> np.ndarray:
    """The first sample of each cell and the end of the last, (cells + 1,): the samples nearest to the
    borders."""
    per_cell = rate / grid
    a, b = per_cell.numerator, per_cell.denominator
    if b == 1:
        return a * np.arange(cells + 1, dtype=np.int64)
    return (2 * a * np.arange(cells + 1, dtype=np.int64) + b) // (2 * b)


def _track(m: str, s: Samples, grid: Fraction, limits: Limits, out: Segments) -> _Track:
    rate = float(s.rate)
    x, missing, gaps, filled = validity.bridge(s.x_tc, s.missing, limits.bridge_s * rate)
    out.bridged[m] = (gaps, Fraction(filled) / s.rate)
    codes = validity.verdicts(x, missing, rate, limits)
    cells = math.floor(len(x) / s.rate * grid)
    edges = _edges(s.rate, grid, cells)
    # one verdict per cell: the most severe of its samples (the code order only means kept = 0)
    by_cell = codes[:cells]
    if cells and edges[-1] != cells:
        by_cell = np.maximum.reduceat(codes[: edges[-1]], edges[:-1])
    by_cell = validity.drop_fragments(by_cell, limits.fragment_s * float(grid))
    for start, stop, code in zip(*validity.stretches(by_cell), strict=True):
        if code != KEPT:
            out.refuse(
                m, Fraction(int(start)) / grid, Fraction(int(stop - start)) / grid, validity.REASONS[code]
            )
    tail = out.seconds_in[m] - Fraction(cells) / grid
    if tail:
        out.refuse(m, Fraction(cells) / grid, tail, "fragment")
    known = replace(s, x_tc=x, missing=missing)
    track = _Track(known, *encode(known), edges, by_cell)
    _say_coarse(m, track, out)
    return track


def _say_coarse(m: str, track: _Track, out: Segments) -> None:
    """Outliers share the steps of an int16 with the signal: warn if they leave it too few."""
    step, length = track.scale / track.known.scale, max(2, round(float(track.known.rate)))
    if abs(step) == 1 or len(track.x) < length:
        return
    seconds = len(track.x) // length
    some = slice(None, None, max(1, seconds // LOOKED_AT))  # enough to estimate the usual movement

    def moved(x: np.ndarray) -> float:
        return validity.usual_movement(x[: seconds * length].reshape(-1, length)[some].ravel(), length)

    steps = [(moved(track.x[:, c]), moved(track.known.x_tc[:, c])) for c in range(track.x.shape[1])]
    # over channels that move at all; 0: each moves within a single step
    moves = max((0.0 if np.isinf(now) else now for now, was in steps if np.isfinite(was)), default=np.inf)
    if moves < COARSE:
        out.words.append(
            f"{m}: rows with outliers are rounded to steps of {abs(track.scale):.3g} {track.known.unit}, and "
            f"a second usually moves {moves:.0f} of them: list the values that mean missing as `missing` in "
            f"[signals.{m}]"
        )


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
        x, scale, offset = t.encoded(start, stop)
        row |= {
            m: x.tobytes(),
            f"{m}_rate": float(t.known.rate),
            f"{m}_scale": scale,
            f"{m}_offset": offset,
            f"{m}_unit": t.known.unit,
            f"{m}_channels": x.shape[1],
        }
    return row
