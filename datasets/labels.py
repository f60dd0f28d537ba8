"""Labels derived from the recordings: heart rate, blood pressure, breathing rate.

Pure functions: samples and rate in, `Labels` out. Derived labels have their own names: `hr_derived`,
`sbp_derived`, `dbp_derived`, `rr_derived`; no given label may end like that. One value per stretch of fixed
length (10 s; breathing 30 s), counted from the start of the record. A stretch that is not valid throughout
has no value, since a doubtful label does more harm than a missing one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, signal

from datasets import validity
from datasets.descriptor import Derive
from datasets.readers.base import Labels, Recording, Samples
from datasets.schema import DERIVED
from datasets.validity import KEPT, Limits

SHORTEST_S = 5.0  # of valid signal, for a beat detector to settle
HR_RANGE = (25.0, 240.0)  # bpm
SAME_BEAT_S = 0.15  # tolerance for two detectors to mean the same beat (ANSI/AAMI EC57)
AGREE = 0.9  # bSQI: least agreement of two detectors (Li, Mark, Clifford, Physiol Meas 29:15, 2008)
# Beat slope over the usual slope between beats: above 3.5 in all of BIDMC, below 1.7 in noise of any colour
# and in tremor, where two detectors agree by chance at 160 a minute.
CONTRAST = 2.5
# Plausible beats, mmHg: the signal abnormality index of Sun, Reisner, Mark, Comput Cardiol 33:13, 2006, its
# ranges narrowed to those of a living adult, its 20 mmHg between beats taken from the stretch's median.
SBP_RANGE, DBP_RANGE, PULSE_RANGE = (40.0, 260.0), (20.0, 160.0), (12.0, 150.0)

JUMP_MMHG = 20.0
SOUND_BEATS = 0.8  # share of a stretch's beats that must be plausible
RR_RANGE = (4.0, 60.0)  # breaths a minute
ANNOTATORS_WITHIN = 2.0  # 1/min: if two annotators differ by more, the truth is unknown (Pimentel 2017)


@dataclass(frozen=True)
class Pulses:
    """Beats of an arterial pressure: time of each foot (s), systolic and diastolic value (mmHg)."""

    foot_s: np.ndarray
    sbp: np.ndarray
    dbp: np.ndarray


def _level(envelope: np.ndarray, rate: float) -> np.ndarray:
    """Height of the beats around each sample: maxima of 2-s blocks, the median of five neighbours (10 s).

    A block contains a beat down to 30 a minute; the median tolerates an artefact in two of five blocks.
    """
    size = max(1, int(2 * rate))
    cuts = np.arange(0, max(1, len(envelope) - size // 2), size)
    tops = ndimage.median_filter(np.maximum.reduceat(envelope, cuts), 5, mode="nearest")
    # linear between the block centres: equals np.interp, in half its time
    half = size - size // 2
    after_centre = np.arange(half, half + size) - size / 2
    inner = (np.diff(tops) / size)[:, None] * after_centre + tops[:-1, None]
    level = np.concatenate((np.full(half, tops[0]), inner.ravel(), np.full(size, tops[-1])))
    return level[: len(envelope)]


def _band(x: np.ndarray, rate: float, low: float | None, high: float) -> np.ndarray:
    """Zero-phase Butterworth band-pass (low-pass if `low` is None); `high` is lowered at low rates.

    Equals `signal.sosfiltfilt`, which solves for the filter's state at every call, in a fifth of its time.
    """
    sos, state, pad = _filter(rate, low, min(high, 0.45 * rate))
    if len(x) <= pad:
        raise ValueError(f"a filter that mirrors {pad} samples is given {len(x)}")
    y = np.concatenate((2 * x[0] - x[pad:0:-1], x, 2 * x[-1] - x[-2 : -pad - 2 : -1]))
    for _ in range(2):
        y = signal.sosfilt(sos, y, zi=state * y[0])[0][::-1]
    return y[pad:-pad]


@lru_cache(maxsize=64)
def _filter(rate: float, low: float | None, high: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Second-order sections, their state for a constant input of 1, and the samples to mirror at either
    end."""
    edges, kind = (high, "low") if low is None else ((low, high), "band")
    sos = signal.butter(2, edges, kind, fs=rate, output="sos")
    zeros = min((sos[:, 2] == 0).sum(), (sos[:, 5] == 0).sum())  # of first-order sections
    return sos, signal.sosfilt_zi(sos), 3 * int(2 * len(sos) + 1 - zeros)


def qrs_energy(x: np.ndarray, rate: float) -> np.ndarray:
    """Times (s) of the beats of an ECG (samples,), any unit and polarity: Pan and Tompkins's chain.

    Band-pass 5–20 Hz, slope, mean square over 0.1 s; peaks above 0.4 of the local level and 0.25 s apart.
    After IEEE Trans Biomed Eng 32:230, 1985, with a two-sided level instead of running estimates.
    """
    return _peaks(_slope(x, rate), rate, 0.4)


def _slope(x: np.ndarray, rate: float) -> np.ndarray:
    slope = np.gradient(_band(x, rate, 5, 20))
    return np.sqrt(np.maximum(ndimage.uniform_filter1d(slope**2, max(1, round(0.1 * rate))), 0))


def qrs_length(x: np.ndarray, rate: float) -> np.ndarray:
    """Times (s) of the beats of an ECG by a different method: curve length over 0.13 s.

    After Zong, Moody, Jiang, Comput Cardiol 30:737, 2003: 3–16 Hz (T waves are slower), then the curve length
    in excess of a horizontal line's. Its errors differ from those of `qrs_energy`, which is its purpose.
    """
    y = _band(x, rate, 3, 16)
    step = np.diff(y, prepend=y[:1])
    flat = 0.25 * float(np.percentile(np.abs(step), 95)) or 1.0
    length = ndimage.uniform_filter1d(np.sqrt(step**2 + flat**2) - flat, max(1, round(0.13 * rate)))
    return _peaks(length, rate, 0.35)


def _peaks(envelope: np.ndarray, rate: float, share: float) -> np.ndarray:
    level = share * _level(envelope, rate)
    apart = max(1, int(0.25 * rate))  # 240 beats a minute
    found, _ = signal.find_peaks(envelope, height=np.maximum(level, 1e-12), distance=apart)
    return found / rate


def agreement_of_beats(a: np.ndarray, b: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Agreement of two detectors per stretch (k,): 2 · matched / (beats of both), 0 if neither has any.

    `a`, `b`: ascending times in s. A beat is matched when the other detector has one within 0.15 s.
    """
    matched, total = np.zeros(len(start)), np.zeros(len(start))
    for mine, other in ((a, b), (b, a)):
        near = np.zeros(len(mine), bool)
        if len(other):
            at = np.clip(np.searchsorted(other, mine), 1, max(1, len(other) - 1))
            gaps = [np.abs(other[np.clip(i, 0, len(other) - 1)] - mine) for i in (at - 1, at)]
            near = np.minimum(*gaps) <= SAME_BEAT_S
        ends = np.concatenate(([0], np.cumsum(near)))
        low, high = np.searchsorted(mine, start), np.searchsorted(mine, stop)
        matched += ends[high] - ends[low]
        total += high - low
    return np.where(total > 0, matched / np.maximum(total, 1), 0.0)


def rates(events: np.ndarray, start: np.ndarray, stop: np.ndarray, within: tuple[float, float]) -> np.ndarray:
    """Events a minute (k,) per stretch: whole intervals between its first and last event; else NaN.

    NaN: fewer than two intervals, a rate or a single gap (also one to the stretch's border) out of `within`.
    """
    low, high = np.searchsorted(events, start), np.searchsorted(events, stop)
    out = np.full(len(start), np.nan)
    k = np.flatnonzero(high - low >= 3)
    if not len(k):
        return out
    low, last = low[k], high[k] - 1
    rate = 60 * (last - low) / (events[last] - events[low])
    gaps = np.append(np.diff(events), 0.0)  # the zero: the last event needs an entry too
    inside = np.maximum.reduceat(gaps, np.stack([low, last], axis=1).ravel())[::2]
    widest = np.maximum.reduce([inside, events[low] - start[k], stop[k] - events[last]])
    out[k] = np.where((rate >= within[0]) & (rate <= within[1]) & (widest <= 60 / within[0]), rate, np.nan)
    return out


def heart_rate(x: np.ndarray, rate: float, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Beats a minute (k,) of an ECG (samples,) in stretches [start, stop) s.

    NaN: two detectors differ, the beats hardly stand out, or their rate is implausible (see `rates`).
    """
    envelope = _slope(x, rate)
    a, b = _peaks(envelope, rate, 0.4), qrs_length(x, rate)
    bpm = rates(a, start, stop, HR_RANGE)
    bpm[agreement_of_beats(a, b, start, stop) < AGREE] = np.nan
    k = np.flatnonzero(np.isfinite(bpm))
    beats = _medians(envelope[np.rint(a * rate).astype(int)], *np.searchsorted(a, [start[k], stop[k]]))
    usual = _medians(envelope, *np.round([start[k] * rate, stop[k] * rate]).astype(int))
    bpm[k[beats < CONTRAST * usual]] = np.nan
    return bpm


def _medians(x: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Medians of x[start:stop], (k,), computed together for equal lengths."""
    out = np.full(len(start), np.nan)
    for size in np.unique(stop - start):
        alike = stop - start == size
        out[alike] = np.median(sliding_window_view(x, size)[start[alike]], axis=1)
    return out


def pulses(x: np.ndarray, rate: float) -> Pulses:
    """All beats of an arterial pressure (samples,) in mmHg, plausible or not.

    Upstrokes are the peaks of the slope sum function (rise over 0.13 s; Zong et al., Comput Cardiol 30:259,
    2003) above 0.4 of its local level. Around each: the lowest value before, the highest after it, of the
    signal below 16 Hz, so that noise adds nothing to the peaks.
    """
    y = _band(x, rate, None, 16)
    rise = np.maximum(np.diff(y, prepend=y[:1]), 0)
    width = max(1, round(0.13 * rate))
    up = np.rint(_peaks(ndimage.uniform_filter1d(rise, width) * width, rate, 0.4) * rate).astype(int)
    if len(up) < 3:
        return Pulses(*(np.zeros(0) for _ in range(3)))
    middle = (up[1:] + up[:-1]) / 2
    since, until = np.concatenate(([0.0], middle)), np.concatenate((middle, [float(len(y))]))
    before, low = _extreme(-y, up, -0.3, 0.06, rate, since, until)
    _, high = _extreme(y, up, -0.03, 0.4, rate, since, until)
    return Pulses(before / rate, high, -low)


def _extreme(
    y: np.ndarray,
    at: np.ndarray,
    low_s: float,
    high_s: float,
    rate: float,
    since: np.ndarray,
    until: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Where y peaks in [at + low_s, at + high_s], not before `since` nor after `until`; and the peak
    value."""
    reach = np.arange(round(low_s * rate), round(high_s * rate) + 1)
    index = at[:, None] + reach
    inside = (index >= since[:, None]) & (index <= until[:, None]) & (index >= 0) & (index < len(y))
    value = np.where(inside, y[np.clip(index, 0, len(y) - 1)], -np.inf)
    best = value.argmax(1)
    rows = np.arange(len(at))
    return index[rows, best], value[rows, best]


def blood_pressure(
    x: np.ndarray, rate: float, start: np.ndarray, stop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Systolic and diastolic pressure, medians over the plausible beats of each stretch, (k,) each, mmHg.

    NaN: fewer than three beats, fewer than 80 % of them plausible, or an implausible beat rate.
    """
    found = pulses(x, rate)
    sound = _plausible(found)
    sbp, dbp = np.full(len(start), np.nan), np.full(len(start), np.nan)
    regular = np.isfinite(rates(found.foot_s, start, stop, HR_RANGE))
    low, high = np.searchsorted(found.foot_s, start), np.searchsorted(found.foot_s, stop)
    k = np.flatnonzero(regular)
    counts = high[k] - low[k]
    beats = np.arange(counts.sum()) + np.repeat(low[k] - np.cumsum(counts) + counts, counts)
    stretch = np.repeat(np.arange(len(k)), counts)  # of each beat
    good = sound[beats]
    for value in (found.sbp, found.dbp):
        good &= np.abs(value[beats] - _medians_by(value[beats], stretch, len(k))[stretch]) <= JUMP_MMHG
    fine = np.bincount(stretch[good], minlength=len(k))
    use = (fine >= 3) & (fine / counts >= SOUND_BEATS)
    for out, value in ((sbp, found.sbp), (dbp, found.dbp)):
        out[k[use]] = _medians_by(value[beats[good]], stretch[good], len(k))[use]
    return sbp, dbp


def _medians_by(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Median of the `values` of each group 0 to `groups` - 1, (groups,); NaN for an empty group."""
    ordered = values[np.lexsort((values, group))]
    counts = np.bincount(group, minlength=groups)
    first, some = np.cumsum(counts) - counts, counts > 0
    out = np.full(groups, np.nan)
    low, high = first + (counts - 1) // 2, first + counts // 2
    out[some] = (ordered[low[some]] + ordered[high[some]]) / 2
    return out


def _plausible(p: Pulses) -> np.ndarray:
    pulse = p.sbp - p.dbp
    ok = np.ones(len(pulse), bool)
    for value, (low, high) in ((p.sbp, SBP_RANGE), (p.dbp, DBP_RANGE), (pulse, PULSE_RANGE)):
        ok &= (value >= low) & (value <= high)
    return ok


def stretches(seconds: float, length_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops (s) of the whole stretches in a record."""
    start = np.arange(int(seconds / length_s + 1e-9)) * length_s
    return start, start + length_s


def from_signal(
    samples: Samples,
    limits: Limits,
    length_s: float,
    names: Sequence[str],
    measure: Callable[..., np.ndarray | tuple[np.ndarray, ...]],
    unit: str,
) -> list[Labels]:
    """Labels `names` that `measure(x, rate, start, stop)` finds in the valid parts of the first channel."""
    rate = float(samples.rate)
    x_tc, missing, _, _ = validity.bridge(samples.x_tc, samples.missing, limits.bridge_s * rate)
    sound = validity.verdicts(x_tc, missing, rate, limits) == KEPT
    start, stop = stretches(len(x_tc) / rate, length_s)
    values = np.full((len(names), len(start)), np.nan)
    for a, b in zip(*validity.runs(sound), strict=True):
        k = np.flatnonzero((start * rate >= a - 1e-6) & (stop * rate <= b + 1e-6))
        if len(k) and b - a >= SHORTEST_S * rate:
            x = x_tc[a:b, 0].astype(np.float64) * samples.scale + samples.offset
            values[:, k] = np.atleast_2d(measure(x, rate, start[k] - a / rate, stop[k] - a / rate))
    return [_known(name + DERIVED, v, unit, start, stop) for name, v in zip(names, values, strict=True)]


def breathing_rate(breaths: Mapping[str, np.ndarray], seconds: float, length_s: float) -> Labels:
    """Breaths a minute from the annotations of one or more people (name -> ascending times in s).

    The mean over all annotators; no value if the highest and the lowest differ by more than 2 a minute.
    """
    start, stop = stretches(seconds, length_s)
    each = np.array([rates(np.sort(t), start, stop, RR_RANGE) for _, t in sorted(breaths.items())])
    each = each.reshape(-1, len(start))
    mean = each.mean(0) if len(each) else np.full(len(start), np.nan)
    agree = np.ptp(each, axis=0) <= ANNOTATORS_WITHIN if len(each) else np.zeros(len(start), bool)
    return _known("rr" + DERIVED, np.where(agree, mean, np.nan), "1/min", start, stop)


def _known(name: str, values: np.ndarray, unit: str, start: np.ndarray, stop: np.ndarray) -> Labels:
    """Only the stretches with a value; three decimals are far below a detector's precision."""
    there = np.isfinite(values)
    return Labels(name, np.round(values[there], 3), unit, start[there], stop[there])


def derived(recording: Recording, wanted: Derive, limits: Limits) -> list[Labels]:
    """All labels of one record that a descriptor's [derive] requests."""
    found: list[Labels] = []
    if wanted.hr and wanted.hr in recording.signals:
        ecg = recording.signals[wanted.hr]
        found += from_signal(ecg, limits, wanted.stretch_s, ["hr"], heart_rate, "bpm")
    if wanted.bp and wanted.bp in recording.signals:
        abp = recording.signals[wanted.bp]
        found += from_signal(abp, limits, wanted.stretch_s, ["sbp", "dbp"], blood_pressure, "mmHg")
    if wanted.rr and recording.signals:
        seconds = max(float(len(s.x_tc) / s.rate) for s in recording.signals.values())
        breaths: dict[str, np.ndarray] = {}
        for label in recording.labels:
            if label.name == wanted.rr and label.start_s is not None:
                words = np.asarray(label.values, str)
                breaths |= {w: np.asarray(label.start_s)[words == w] for w in sorted(set(words))}
        found.append(breathing_rate(breaths, seconds, wanted.breath_stretch_s))
    return found
