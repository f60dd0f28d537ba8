"""Packets of samples, each with its arrival time → samples on one grid.

A packet may be stamped late (a busy network) or early, may arrive twice or repeat the end of the previous
one, and the converter's clock may run some millionths faster or slower than the one that stamps packets. The
following packets distinguish this from a gap: they are on time again, or they are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import CubicSpline

from datasets.readers.base import Refused, check_span

JITTER_S = 0.1  # minimum tolerance between samples and the clock of their packets
LATE_S = 0.25  # a last packet, followed by nothing, may be so late without being a gap
DISORDER_S = 0.5  # packets that contradict the file's order by more are out of order
BACK_S = 1.0  # a clock set back by more refuses the track
CONTESTED = 0.01  # more than this share of samples in conflict refuses the track
DRIFT = 0.01  # a larger departure from the stated rate is no drift of a converter
FOLLOW_S = 0.05  # a stretch whose clock departs less from its rate keeps its samples unchanged
BIN_S = 300.0  # spacing of the medians between which a converter's clock is linear: its speed changes slowly
UNLIKE = 6  # so many distinct values do not repeat by chance
LOOK_S, LOOK = 5.0, 7  # how far to look ahead: seconds of samples, and minimum packets
BLOCK = 1_000_000  # samples resampled at a time


@dataclass
class Stretch:
    """Samples without a gap. `counts` and `clock`: the sample at which each packet begins, and its clock, in
    samples since the track's first packet."""

    parts: list[np.ndarray] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    lost: int = 0  # samples at its beginning whose time the previous stretch claims too

    def at(self, count: int, clock: float) -> None:
        """Record that the clock shows `clock` at sample `count`."""
        self.counts.append(count)
        self.clock.append(clock)

    def fit(self, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers and their fitted times (in samples): knots of a piecewise line from end to end."""
        last = float(sum(map(len, self.parts)) - 1)
        counts, clock = np.array(self.counts, float), np.array(self.clock)
        off = clock - counts
        bins = 1 if len(counts) < 8 else max(2, round(last / rate / BIN_S))
        which = np.minimum((counts * bins / max(last, 1)).astype(int), bins - 1)
        of_bin = [which == b for b in range(bins)]
        points = np.array([[np.median(counts[b]), np.median(off[b])] for b in of_bin if b.any()])
        if len(points) < 2:
            return np.array([0.0, last]), np.array([0.0, last]) + points[0, 1]
        (x0, y0), (x1, y1) = points[:2]
        (x2, y2), (x3, y3) = points[-2:]
        first, end = y0 - x0 * (y1 - y0) / (x1 - x0), y3 + (last - x3) * (y3 - y2) / (x3 - x2)
        at = np.concatenate([[0.0], points[:, 0], [last]])
        at, kept = np.unique(at, return_index=True)
        return at, at + np.concatenate([[first], points[:, 1], [end]])[kept]

    def drift(self, rate: float) -> float:
        """The largest departure of the clock from the stated rate within the stretch, in samples."""
        at, times = self.fit(rate)
        return float(np.abs(times - at - (times[0] - at[0])).max())


@dataclass
class Stream:
    """A track's packets in order, as stretches; the counts report the repairs."""

    start: float  # the clock at its first packet, s
    rate: float
    stretches: list[Stretch] = field(default_factory=list)
    twice: int = 0  # packets received twice
    repeated: int = 0  # repeated samples, without those packets
    late: list[float] = field(default_factory=list)  # by how much packets were late or early, s
    contested: int = 0  # samples whose time two packets claim
    corrected_s: float = 0.0  # largest correction of the converter's clock

    def drifts(self) -> bool:
        return any(s.drift(self.rate) > FOLLOW_S * self.rate for s in self.stretches)

    def notes(self) -> list[str]:
        """Messages about the repairs."""
        words = []
        if n := self.twice:
            words.append(
                f"{n:,} {'packets received twice were' if n > 1 else 'packet received twice was'} used once"
            )
        if n := self.repeated:
            words.append(
                f"{n:,} {'samples that packets repeat were' if n > 1 else 'repeated sample was'} used once"
            )
        if n := len(self.late):
            words.append(
                f"{n:,} {'packets' if n > 1 else 'packet'} with a clock up to {max(self.late):.3g} s off "
                f"kept their place beside their neighbours"
            )
        if n := self.contested:
            words.append(
                f"{n:,} samples are missing because the clock was set back and two packets claim their time"
            )
        if self.corrected_s:
            words.append(
                f"samples were resampled by the packets' clock, which corrects them by up to "
                f"{self.corrected_s:.3g} s"
            )
        return words


def read(times: np.ndarray, values: Sequence[np.ndarray], rate: float) -> Stream:
    """The packets that began at `times` (s) in file order, at `rate` Hz, as stretches without gaps.

    Raises Refused (bad_time) if a time is not a number or time runs back.
    """
    if not np.isfinite(times).all():
        raise Refused("bad_time", "a packet has no time")
    lengths = np.array([len(v) for v in values])
    if not lengths.any():
        raise Refused("bad_time", "no packet holds a sample")
    once = np.flatnonzero(lengths > 0)
    once = _without_twins(times, values, once)  # duplicates say nothing about the order
    order = once[_order(times[once], lengths[once], rate)]
    stream = Stream(float(times[order[0]]), rate, twice=int((lengths > 0).sum()) - len(once))
    clock = (times[order] - stream.start) * rate
    _split(stream, clock, [values[i] for i in order])
    total = sum(map(len, values))
    if stream.contested > max(CONTESTED * total, 4 * BACK_S * rate):
        raise Refused(
            "bad_time", f"packets overlap: {stream.contested:,} of {total:,} samples are in conflict"
        )
    return stream


def _order(times: np.ndarray, lengths: np.ndarray, rate: float) -> np.ndarray:
    """Packets sorted by their clock, or in the file's order if that contradicts the clock and the clock is
    only late.

    Packets were written out of order if their clocks then leave no jump, or fewer after a long way back.
    """
    order = np.argsort(times, kind="stable")
    if (order == np.arange(len(order))).all():
        return order
    cuts = np.flatnonzero(np.maximum.accumulate(order) == np.arange(len(order))) + 1
    for a, b in zip(np.concatenate([[0], cuts[:-1]]), cuts, strict=True):
        if b - a > 1:
            around = slice(max(0, a - 1), b + 1)
            as_written = np.concatenate([order[max(0, a - 1) : a], np.arange(a, b), order[b : b + 1]])
            jumps = _jumps(times, lengths, order[around], rate)
            back = np.max(np.maximum.accumulate(times[a:b]) - times[a:b])
            if jumps > (0 if back < DISORDER_S else _jumps(times, lengths, as_written, rate)):
                order[a:b] = np.arange(a, b)
    return order


def _jumps(times: np.ndarray, lengths: np.ndarray, order: np.ndarray, rate: float) -> int:
    """Steps between packets that differ from the packet's length by more than half a sample."""
    return int((np.abs(np.diff(times[order]) * rate - lengths[order][:-1]) > 0.5).sum())


def _without_twins(times: np.ndarray, values: Sequence[np.ndarray], packets: np.ndarray) -> np.ndarray:
    """`packets` without those with the time and the samples of an earlier one."""
    order = packets[np.argsort(times[packets], kind="stable")]
    near = np.abs(np.diff(times[order])) < 1e-6
    twins = [
        order[i]
        for i in np.flatnonzero(near) + 1
        if _same(a := values[order[i - 1]], values[order[i]]) and _varies(a)
    ]
    return np.setdiff1d(packets, twins)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _varies(x: np.ndarray) -> bool:
    return bool((x != x[0]).any())


def _split(stream: Stream, clock: np.ndarray, values: Sequence[np.ndarray]) -> None:
    """Append each packet to the previous one or, if the clock jumps for good, to a new stretch."""
    rate = stream.rate
    lengths = np.array([len(v) for v in values])
    before = np.concatenate([[0], np.cumsum(lengths)])
    off = clock - before[:-1]  # rises where samples are missing, falls where they are repeated
    slope, tolerance = _usual(off, lengths, rate)
    off = off - slope * before[:-1]
    look = np.searchsorted(before[:-1], before[:-1] + LOOK_S * rate)
    look = np.maximum(look, np.arange(len(values)) + 1 + LOOK)
    stretch, count, level = Stretch(), 0, _level(off[: look[0]], tolerance)
    stretch.at(0, level)
    stream.stretches.append(stretch)
    for i, value in enumerate(values):
        late, later = off[i] - level, off[i + 1 : look[i]]
        again = 0
        if late < -0.5:
            after = _level(later, tolerance) - level if len(later) else None
            again = _repeats(stretch, value, -late, tolerance, max(tolerance, JITTER_S * rate), after)
        if again:
            stream.twice += again == len(value)
            stream.repeated += again % len(value)
            level -= again
        elif abs(late) <= tolerance:
            stretch.at(count, float(clock[i]))
            level += 0.2 * late
        elif (np.abs(later - level) <= tolerance).any() or (not len(later) and abs(late) <= LATE_S * rate):
            if abs(late) > JITTER_S * rate:
                stream.late.append(float(abs(late) / rate))
        else:
            jump = _level(off[i : look[i]], tolerance) - level
            stretch, count, level = Stretch(), 0, level + jump
            if jump < 0:
                _set_back(stream, stretch, round(-jump), float(clock[i]) / rate)
            stream.stretches.append(stretch)
            stretch.at(0, float(level + (1 + slope) * before[i]))
        if again < len(value):
            stretch.parts.append(value[again:])
        count += len(value) - again


def _level(off: np.ndarray, tolerance: float) -> float:
    """How late the first of these packets is or, if it is later than the following ones, how late they are.

    A value that no other packet shares belongs to a late packet if lower ones follow, else to an isolated
    one.
    """
    near = np.abs(off - off[0]) <= tolerance
    if near[1:].any():
        return float(off[near].mean())
    lower = np.flatnonzero(off < off[0] - tolerance)
    for i in lower:
        if (np.abs(off[i + 1 :] - off[i]) <= tolerance).any():
            return float(off[i])
    return float(off[lower].min()) if len(lower) else float(off[0])


def _usual(off: np.ndarray, lengths: np.ndarray, rate: float) -> tuple[float, float]:
    """The converter's drift (samples per sample), and the usual error of a packet's clock (samples)."""
    if len(off) < 3:
        return 0.0, max(0.5, JITTER_S * rate)
    steps = np.diff(off)
    slope = float(np.median(steps / lengths[:-1]))
    slope = slope if abs(slope) <= DRIFT else 0.0
    usual = float(np.median(np.abs(steps - slope * lengths[:-1])))
    return slope, max(0.5, min(6 * usual, JITTER_S * rate))


def _repeats(
    stretch: Stretch, value: np.ndarray, early: float, tolerance: float, window: float, after: float | None
) -> int:
    """How many of the packet's first samples are repeated: by the clock, the samples and what follows.

    `early`: by how many samples it begins before the last one's end, within `window`; `after`: how late the
    next packets are if all its samples are new, None if none follow.
    """
    tail = _tail(stretch.parts, int(early + window) + 1)
    back = np.arange(max(1, int(np.ceil(early - window))), len(tail) + 1)
    for k in back[np.argsort(np.abs(back - early), kind="stable")]:
        again = int(min(k, len(value)))
        there = tail[len(tail) - k : len(tail) - k + again]
        if there[0] != value[0] or not _same(there, value[:again]):
            continue
        if tolerance > 1:  # among jittering clocks a few equal samples prove nothing
            sure = len(set(there.tolist())) >= UNLIKE and (after is None or abs(after + again) < abs(after))
        elif after is None:
            sure = abs(k - early) <= tolerance
        else:
            sure = abs(after + again) <= tolerance + 0.1
        if sure:
            return again
    return 0


def _tail(parts: Sequence[np.ndarray], most: int) -> np.ndarray:
    """The last `most` samples, or all if there are fewer."""
    end: list[np.ndarray] = []
    for part in reversed(parts):
        if sum(map(len, end)) >= most:
            break
        end.append(part)
    return np.concatenate(end[::-1])[-most:] if end else np.zeros(0)


def _set_back(stream: Stream, stretch: Stretch, samples: int, at_s: float) -> None:
    if samples > BACK_S * stream.rate:
        raise Refused("bad_time", f"time runs back by {samples / stream.rate:.3g} s at {at_s:,.1f} s")
    stretch.lost = samples
    stream.contested += 2 * samples


# ---------------------------------------------------------------- samples on the grid


def lay(stream: Stream, follow: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """All samples from the first on, a missing mask, and the clock at the first sample (s).

    `follow`: resample by the packets' clock where it departs from the stated rate.
    """
    rate = stream.rate
    pieces: list[tuple[int, np.ndarray]] = []
    start = end = 0
    for stretch in stream.stretches:
        at, times = stretch.fit(rate)
        x = np.concatenate(stretch.parts) if stretch.parts else np.zeros(0, np.int16)
        if not pieces:
            start = times[0]
        begin = times[0] - start
        if follow and (drift := stretch.drift(rate)) > 0.5:
            stream.corrected_s = max(stream.corrected_s, drift / rate)
            x = _resample(x, at, times - start, round(begin))
        place = round(begin)
        if place < end and not stretch.lost:
            place = end
        x, place = x[max(0, -place) :], max(0, place)
        pieces.append((place, x))
        end = place + len(x)
    recorded = sum(len(x) for _, x in pieces)
    check_span(end / rate, recorded / rate)
    out = np.zeros(end, np.result_type(*(x.dtype for _, x in pieces)))
    missing = np.ones(end, bool)
    before = 0
    for (place, x), stretch in zip(pieces, stream.stretches, strict=True):
        a, b = place, place + len(x)
        out[a:b], missing[a:b] = x, False
        if stretch.lost:
            missing[a : max(a, min(before, b))] = True
        before = max(before, b)
    return out, missing, stream.start + start / rate


def _resample(x: np.ndarray, at: np.ndarray, times: np.ndarray, first: int) -> np.ndarray:
    """`x` at the integers of `times` from `first` on; `times` is when the samples `at` were taken."""
    grid = np.arange(first, int(np.floor(times[-1] + 0.5)) + 1)
    source = np.clip(np.interp(grid, times, at), 0, len(x) - 1)
    out = np.empty(len(grid), np.float32 if x.dtype.itemsize <= 4 else np.float64)
    for a in range(0, len(grid), BLOCK):
        want = source[a : a + BLOCK]
        low, high = max(0, int(want[0]) - 32), min(len(x), int(want[-1]) + 34)
        part = x[low:high].astype(np.float64)
        good = np.isfinite(part)
        if len(part) < 4 or not good.any():
            out[a : a + BLOCK] = part[np.rint(want - low).astype(int)]
            continue
        places = np.arange(low, high)
        filled = np.where(good, part, np.interp(places, places[good], part[good]))
        out[a : a + BLOCK] = CubicSpline(places, filled)(want)
        lost = ~good[np.floor(want).astype(int) - low] | ~good[np.ceil(want).astype(int) - low]
        out[a : a + BLOCK][lost] = np.nan
    return out
