"""Places a recording's rows on a regular grid by the times that its device or phone wrote.

The clock is split at its gaps; between gaps each row's time is jitter around a clock that runs almost evenly.
Samples stay unchanged where that clock stays within half a sample of the grid, and are resampled where it
drifts.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.interpolate import make_lsq_spline
from scipy.ndimage import map_coordinates, minimum_filter1d

from datasets.readers.base import Refused

DRIFT = 0.001  # share by which a clock may differ from the promised rate, unless the descriptor gives another
# how far a row's time may lie from the clock of its neighbours, and how far a short record may drift
STRAY_S = 0.1
HALF = 0.5  # how far a sample may lie from its grid place, samples
LONGEST = 100  # longest ratio of span to recorded time: beyond it the times are probably in another unit
KNOTS_S = (60.0, 20.0, 5.0)  # spacing of the knots between which the clock is linear; closer where it bends
ORDER = 5  # of the interpolating splines


@dataclass(frozen=True)
class Stretch:
    """Rows first … stop - 1, without a gap: their clock (s) is linear between the knots `rows`, `at_s`.
    `unsure_s`: the clock's uncertainty from jitter, s."""

    first: int
    stop: int
    rows: np.ndarray
    at_s: np.ndarray
    unsure_s: float = 0.0


@dataclass(frozen=True)
class Piece:
    """Rows first … stop - 1 at grid places place … place + count - 1. `rows`: the (fractional) row for each
    place; None: one row per place."""

    first: int
    stop: int
    place: int
    count: int
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class Grid:
    """`length` places at `rate` (Hz), of which `pieces` hold samples. `moved_s`: the largest shift from where
    counting rows at the grid's rate would put a sample; 0 if none is resampled."""

    rate: Fraction
    length: int
    pieces: tuple[Piece, ...]
    moved_s: float = 0.0

    def put(self, x: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples (T,) and their missing mask, both (length,) on the grid; floats if any is resampled."""
        moved = any(piece.rows is not None for piece in self.pieces)
        wide = np.zeros(self.length, np.float64 if moved else x.dtype)
        gaps = np.ones(self.length, bool)
        for piece in self.pieces:
            at, rows = slice(piece.place, piece.place + piece.count), slice(piece.first, piece.stop)
            if piece.rows is None:
                wide[at], gaps[at] = x[rows], missing[rows]
            else:
                wide[at], gaps[at] = _resampled(x[rows], missing[rows], piece.rows - piece.first)
        return wide, gaps


@dataclass(frozen=True)
class Clock:
    """The clock of one file's rows. `rate`: of the grid, Hz; `measured_hz`: the rate that the times show;
    `start_s`: the clock at the first row."""

    rate: Fraction
    measured_hz: float
    start_s: float
    stretches: tuple[Stretch, ...]

    def on(self, origin_s: float) -> Grid:
        """The places of all rows on the grid of `rate` that starts at `origin_s`."""
        rate, free, counted, moved = float(self.rate), 0, 0.0, 0.0
        pieces: list[Piece] = []
        before: Stretch | None = None
        for s in self.stretches:
            y = (s.at_s - origin_s) * rate
            rows = s.rows - s.first
            late = y - rows
            place = max(free, int(np.rint((late.max() + late.min()) / 2)))
            if np.abs(late - place).max() <= HALF * 1.1 + s.unsure_s * rate:
                pieces.append(Piece(s.first, s.stop, place, s.stop - s.first))
            else:
                place = max(free, int(np.rint(y[0])))
                places = np.arange(place, max(place, int(np.rint(y[-1]))) + 1)
                pieces.append(Piece(s.first, s.stop, place, len(places), np.interp(places, y, s.rows)))
            if before is None:
                counted = y[0]
            else:
                counted += max(1.0, np.rint((s.at_s[0] - before.at_s[-1]) * rate))
            moved = max(moved, float(np.abs(late - counted).max()) / rate)
            counted += rows[-1]
            free, before = place + pieces[-1].count, s
        kept = all(piece.rows is None for piece in pieces)
        return Grid(self.rate, free, tuple(pieces), 0.0 if kept and moved * rate <= 1 else moved)


def regular(length: int, rate: Fraction, start_s: float) -> Clock:
    """The clock of `length` rows at `rate`, without a gap, starting at `start_s`."""
    last = max(length - 1, 0)
    rows = np.array([0, last])
    return Clock(rate, float(rate), start_s, (Stretch(0, length, rows, start_s + rows / float(rate)),))


def measured(t: np.ndarray, promised: Fraction | None, tolerance: float | None) -> Clock:
    """The clock of rows whose times are `t` (n,), s.

    `promised`: the grid's rate, from which the clock may drift by `DRIFT`. With a `tolerance` (a share), or
    without a promise, the grid takes the record's measured rate if that differs. A clock outside these limits
    also gets a `rate` other than `promised`: the caller refuses it.
    Raises Refused (bad_time): times that do not rise, stray, or span far more than was recorded.
    """
    wrong = np.flatnonzero(~(np.diff(t) > 0))
    if len(wrong) or not np.isfinite(t).all():
        row = int(wrong[0]) + 2 if len(wrong) else 1
        raise Refused(
            "bad_time",
            f"times do not rise at row {row}: put the rows in order, name a finer column in `time`, or drop "
            "`time` and give `rate`",
        )
    if len(t) < 2:
        return regular(len(t), promised or Fraction(1), float(t[0]) if len(t) else 0.0)
    usual, packets = _usual_step(t)
    if t[-1] - t[0] > LONGEST * len(t) * usual:
        raise Refused(
            "bad_time", f"{len(t):,} rows span {t[-1] - t[0]:,.0f} s: are the times in another unit?"
        )
    near = promised is not None and abs(usual * float(promised) - 1) < 0.1
    if promised and near and (places := _evident(t, promised)) is not None:
        return _of_places(t, places, promised)
    cuts, step = _cuts(t, usual, packets)
    measured_hz = 1 / step
    rate = _rate(measured_hz, max(np.diff(cuts)), t[-1] - t[0], promised, tolerance)
    if rate != promised and (places := _evident(t, rate)) is not None:
        return _of_places(t, places, rate, measured_hz)
    stretches = tuple(_fits(t, cuts, step))
    start = float(stretches[0].at_s[0])
    return Clock(rate, measured_hz, float(t[0]) if abs(start - t[0]) < HALF / 2 * step else start, stretches)


# ---------------------------------------------------------------- clean columns


def _evident(t: np.ndarray, rate: Fraction) -> np.ndarray | None:
    """Places of rows whose times match `rate`, with or without gaps; None if that is not evident."""
    elapsed = (t - t[0]) * float(rate)
    places = np.rint(elapsed)
    off = elapsed - places
    if (np.abs(off) > 0.15).any() or (np.diff(places) < 1).any():
        return None
    return places.astype(np.int64)


def _of_places(t: np.ndarray, places: np.ndarray, rate: Fraction, measured_hz: float | None = None) -> Clock:
    cuts = [0, *(np.flatnonzero(np.diff(places) > 1) + 1), len(t)]
    stretches = []
    for a, b in itertools.pairwise(cuts):
        rows = np.array([a, b - 1])
        stretches.append(Stretch(int(a), int(b), rows, t[0] + places[rows] / float(rate)))
    return Clock(rate, measured_hz or float(rate), float(t[0]), tuple(stretches))


# ---------------------------------------------------------------- gaps


def _usual_step(t: np.ndarray) -> tuple[float, bool]:
    """Seconds between rows where there is no gap; whether rows come in packets, so that few steps are that
    long."""
    step = np.diff(t)
    middle = float(np.median(step))
    usual = float(step[np.abs(step - middle) <= 0.5 * middle].mean())
    sparse = usual * len(step) < 0.5 * (t[-1] - t[0])
    if not sparse and np.median(np.abs(step - middle)) < 0.1 * middle:
        return usual, False
    for lag in (32, 128, 512):
        if lag < len(t):
            wide = (t[lag:] - t[:-lag]) / lag
            low, centre, high = np.quantile(wide, (0.25, 0.5, 0.75))
            if high - low < 0.1 * centre:  # else packets are longer, or gaps closer together, than `lag` rows
                near = 0.4 if sparse else 0.2  # with packets, few spans are far longer than the rest
                return float(wide[np.abs(wide - centre) <= near * centre].mean()), sparse
    return usual, False


def _cuts(t: np.ndarray, usual: float, packets: bool) -> tuple[np.ndarray, float]:
    """Boundaries of the stretches without a gap (first rows, and the number of rows), and the step between
    rows (s).

    A gap is a lasting jump of the clock. A late row also makes a jump, but the next rows reverse it: then the
    earliest of the rows after it are no later than those before.
    """
    step = usual
    cuts = np.array([0, len(t)])
    for _ in range(2):
        late = t - t[0] - np.arange(len(t)) * step
        jumps = np.diff(late)
        noise = 1.4826 * float(np.median(np.abs(jumps - np.median(jumps)))) / np.sqrt(2)
        least = max(HALF * step, 2 * noise)
        width = max(33, int(np.ceil(0.3 / step)) | 1) if packets or noise > 0.25 * step else 9
        half = width // 2
        after = minimum_filter1d(late, width, mode="nearest", origin=-half)[1:]  # of rows i + 1 … i + width
        earlier = minimum_filter1d(late, width, mode="nearest", origin=half)[:-1]  # of rows i - width + 1 … i
        found, last = [0], 0
        for i in np.flatnonzero((jumps > least) & (after - earlier > least)):
            if after[i] - late[max(last, i - width + 1) : i + 1].min() > least:
                found.append(int(i) + 1)
                last = int(i) + 1
        cuts = _lasting(late, np.array([*found, len(t)]), HALF * step, noise)
        step = _pooled_step(t, cuts) or usual
    return cuts, step


def _lasting(late: np.ndarray, cuts: np.ndarray, least: float, noise: float) -> np.ndarray:
    """The boundaries where the mean of some rows jumps by `least` and by more than jitter explains."""
    kept = [0]
    for cut, stop in zip(cuts[1:-1].tolist(), cuts[2:].tolist(), strict=True):
        before, after = late[max(kept[-1], cut - 64) : cut], late[cut : min(stop, cut + 64)]
        if after.mean() - before.mean() > least + 3 * noise * np.sqrt(1 / len(before) + 1 / len(after)):
            kept.append(cut)
    return np.array([*kept, len(late)])


def _pooled_step(t: np.ndarray, cuts: np.ndarray) -> float:
    """Seconds between rows, over all stretches; 0 if no stretch has two rows."""
    sizes = np.diff(cuts)
    middle = np.repeat(cuts[:-1] + (sizes - 1) / 2, sizes)
    i = np.arange(len(t)) - middle
    centred = t - np.repeat(np.add.reduceat(t - t[0], cuts[:-1]) / sizes + t[0], sizes)
    spread = float((i * i).sum())
    return float((i * centred).sum()) / spread if spread else 0.0


# ---------------------------------------------------------------- rates and clocks


def _rate(
    measured_hz: float, rows: int, elapsed_s: float, promised: Fraction | None, tolerance: float | None
) -> Fraction:
    """The grid's rate: the promised one if it fits, else the simplest that keeps `rows` in their places."""

    def fits(rate: Fraction) -> bool:
        # a gap already moves the rows after it by up to half a sample
        return abs(measured_hz / float(rate) - 1) * rows <= HALF / 10

    if promised:
        allowed = max(DRIFT, STRAY_S / elapsed_s) if tolerance is None else 0.0
        if fits(promised) or abs(measured_hz / float(promised) - 1) <= allowed:
            return promised
    simple = [Fraction(round(measured_hz)), Fraction(1000, max(1, round(1000 / measured_hz)))]
    simple += [Fraction(round(measured_hz * 10**digits), 10**digits) for digits in range(1, 7)]
    return next((rate for rate in simple if rate and fits(rate)), simple[-1])


def _fits(t: np.ndarray, cuts: np.ndarray, step: float) -> Iterator[Stretch]:
    """The clock of each stretch. Refused (bad_time): a row that strays from it."""
    for first, stop in itertools.pairwise(cuts.tolist()):
        mine = t[first:stop]
        for knots_s in KNOTS_S:
            rows, at_s = _line(mine, step, knots_s)
            off = mine - np.interp(np.arange(len(mine)), rows, at_s)
            per_knot = max(1, int(knots_s / step))
            noise = float(off.std())
            block = max(1, per_knot // 4)
            whole = len(off) // block * block
            means = off[:whole].reshape(-1, block).mean(axis=1)
            if (np.abs(means) <= HALF / 2 * step + 3 * noise / np.sqrt(block)).all():
                break
        far = int(np.argmax(np.abs(off)))
        if abs(off[far]) > STRAY_S:
            raise Refused(
                "bad_time",
                f"row {first + far + 1}: its time strays {abs(off[far]):.2f} s from those around it",
            )
        if (np.diff(at_s) <= 0).any():
            raise Refused("bad_time", f"the times of rows {first + 1} to {stop} keep no rate")
        yield Stretch(first, stop, rows + first, at_s, 2 * noise / np.sqrt(min(len(mine), per_knot)))


def _line(t: np.ndarray, step: float, knots_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Knots (rows) and the clock at them, s: a piecewise linear least-squares fit."""
    n = len(t)
    i = np.arange(n)
    parts = max(1, round(n * step / knots_s))
    rows = np.linspace(0, n - 1, parts + 1)
    elapsed = t - t[0]
    if parts > 1:
        block = max(1, n // parts // 64)  # block means fit as well as single rows, and faster
        whole = n // block * block
        x, y = (v[:whole].reshape(-1, block).mean(axis=1) for v in (i, elapsed))
        inner = np.r_[0.0, rows, n - 1.0]
        return rows, make_lsq_spline(x, y, inner, k=1)(rows) + t[0]
    middle, late = (n - 1) / 2, elapsed - i * step
    slope = 0.0
    if n > 2:
        spread = float(((i - middle) ** 2).sum())
        slope = float(((i - middle) * late).sum()) / spread
        unsure = float((late - late.mean() - slope * (i - middle)).std()) / np.sqrt(spread)
        if unsure * n > 0.1 * step:  # too few rows to tell the measured rate from jitter
            slope = 0.0
    ends = np.array([0, n - 1]) if n > 1 else np.array([0])
    return ends, t[0] + late.mean() + ends * step + slope * (ends - middle)


def _resampled(x: np.ndarray, missing: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`x` interpolated at `rows`; missing if one of the two neighbouring samples is."""
    if missing.all():
        return np.zeros(len(rows)), np.ones(len(rows), bool)
    x = x.astype(np.float64)
    if missing.any():
        there = np.flatnonzero(~missing)
        x = np.interp(np.arange(len(x)), there, x[there])
    near = np.rint(rows)
    exact = np.abs(rows - near) < 1e-6
    left = np.where(exact, near, np.floor(rows)).astype(np.int64)
    right = np.where(exact, near, np.ceil(rows)).astype(np.int64)
    if len(x) <= ORDER:
        return np.interp(rows, np.arange(len(x)), x), missing[left] | missing[right]
    return map_coordinates(x, [rows], order=ORDER, mode="mirror"), missing[left] | missing[right]
