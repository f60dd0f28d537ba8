"""Handcrafted PPG features: what signal processing knows about a pulse wave, without any pretraining.

They are a baseline meant to be hard to beat. Input: (n, T) band-passed 0.5–8 Hz at `rate` Hz, any unit.
Output: (n, len(NAMES)) float64, NaN where a feature has no meaning (too few beats).

- rate, by three routes that fail differently: autocorrelation (the shortest lag that is nearly the
  best, so that two beats are not taken for one), harmonic sum of the spectrum, median beat interval; and
  their median
- beat timing and HRV: mean, SD, RMSSD, pNN50, quantiles and coefficient of variation of beat intervals
  (Task Force of ESC and NASPE, 1996); beats a second and the longest stretch without one, which are there
  in a window with too few beats for the others, too
- morphology of a beat: rise time, rise share, widths at 25/50/75 % height, area share before the peak,
  amplitude spread, symmetry of slopes, and skewness and kurtosis of the window (Elgendi 2016)
- spectrum: share of power in six bands, entropy, centroid, second and third harmonic against the first
- breathing: strongest frequency between 0.1 and 0.6 Hz, and its share, of the beat amplitude and beat
  interval series
"""

from itertools import pairwise

import numpy as np

HR_BAND = (0.55, 3.9)  # Hz: 33 to 234 beats a minute
BANDS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
SPREAD = (
    3  # beats whose spread means something: of one it is always 0, and a probe that scales by it explodes
)
BREATH_HZ = np.linspace(0.1, 0.6, 51)

RATE = ("hr_autocorrelation", "hr_spectrum", "hr_beats", "hr_consensus", "periodicity", "hr_disagreement")
TIMING = (
    "ibi_mean", "ibi_sd", "ibi_rmssd", "ibi_pnn50", "ibi_cv", "ibi_p10", "ibi_p50", "ibi_p90",
    "beat_count_per_s", "longest_pause_s",
)  # fmt: skip
SHAPE = (
    "rise_s", "rise_share", "width25_s", "width50_s", "width75_s", "width50_share", "area_before_peak",
    "slope_ratio", "amplitude_cv", "trough_cv", "skewness", "kurtosis",
)  # fmt: skip
SPECTRUM = (
    *(f"power_{low:g}_{high:g}" for low, high in pairwise(BANDS)),
    "spectral_entropy", "spectral_centroid", "harmonic2", "harmonic3",
)  # fmt: skip
BREATH = ("breath_amplitude_hz", "breath_amplitude_share", "breath_interval_hz", "breath_interval_share")
NAMES = (*RATE, *TIMING, *SHAPE, *SPECTRUM, *BREATH)


# Nested sets, in the order of NAMES: few subjects cannot afford all columns, so the probe may choose.
SUBSETS = (slice(0, len(RATE)), slice(0, len(RATE) + len(TIMING)), slice(0, len(NAMES)))


def _parabola(values_nk: np.ndarray, at_n: np.ndarray) -> np.ndarray:
    """Sub-sample position (n,) of the extremum next to index at_n, by the parabola through three points."""
    at = np.clip(at_n, 1, values_nk.shape[1] - 2)
    rows = np.arange(len(values_nk))
    left, mid, right = values_nk[rows, at - 1], values_nk[rows, at], values_nk[rows, at + 1]
    curve = left - 2 * mid + right
    shift = np.where(np.abs(curve) > 1e-12, 0.5 * (left - right) / np.where(curve == 0, 1, curve), 0.0)
    return at + np.clip(shift, -0.5, 0.5)


def autocorrelation_rate(x_nt: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Beats a minute (n,) from the autocorrelation, and the height of its peak (n,), at most 1.

    Of all local maxima in the plausible range the *shortest* lag that reaches 85 % of the highest is the
    beat: multiples of the beat correlate about as well as the beat itself.
    """
    t = x_nt.shape[1]
    size = 1 << (2 * t - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(x_nt, size)) ** 2
    ac = np.fft.irfft(spectrum, size)[:, :t]
    overlap = t - np.arange(t)
    ac = ac / overlap * t / np.maximum(ac[:, :1], 1e-12)
    first = max(int(np.floor(rate / HR_BAND[1])), 1)
    last = min(int(np.ceil(rate / HR_BAND[0])), t // 2, t - 2)
    if last <= first + 1:
        return np.full(len(x_nt), np.nan), np.full(len(x_nt), np.nan)
    inside = ac[:, first : last + 1]
    is_peak = (inside >= ac[:, first - 1 : last]) & (inside > ac[:, first + 1 : last + 2])
    height = np.where(is_peak, inside, -np.inf)
    best = height.max(1)
    good = height >= 0.75 * best[:, None]
    lag = first + np.argmax(good & np.isfinite(height), axis=1)
    bpm = 60 * rate / _parabola(ac, lag)
    found = best > 0.05
    return np.where(found, bpm, np.nan), np.where(found, ac[np.arange(len(ac)), lag], 0.0)


def spectrum_of(x_nt: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (F,) in Hz, finer than 0.6 beats a minute, and Hann-windowed power (n, F)."""
    t = x_nt.shape[1]
    size = max(1 << (t - 1).bit_length(), 1 << int(np.ceil(np.log2(rate / 0.01))))
    return np.fft.rfftfreq(size, 1 / rate), np.abs(np.fft.rfft(x_nt * np.hanning(t), size)) ** 2


def spectral_rate(freq_f: np.ndarray, power_nf: np.ndarray) -> np.ndarray:
    """Beats a minute (n,) at the maximum of √P(f) + ½√P(2f) + ⅓√P(3f): harmonics vote for their
    fundamental.
    """
    inside = np.flatnonzero((freq_f >= HR_BAND[0]) & (freq_f <= HR_BAND[1]))
    amplitude = np.sqrt(power_nf)
    top = amplitude.shape[1] - 1
    votes = sum(amplitude[:, np.minimum(inside * k, top)] / k for k in (1, 2, 3))
    at = _parabola(np.asarray(votes), np.argmax(votes, axis=1))
    return 60 * (freq_f[inside[0]] + at * (freq_f[1] - freq_f[0]))


def _beats(x_t: np.ndarray, rate: float, period_s: float) -> np.ndarray:
    """Sample positions (float) of systolic peaks: local maxima at least 0.55 periods apart, well above the
    noise.
    """
    from scipy.signal import find_peaks

    spread = np.percentile(x_t, 90) - np.percentile(x_t, 10)
    found, _ = find_peaks(x_t, distance=max(int(0.55 * period_s * rate), 1), prominence=0.35 * spread)
    found = found[(found > 0) & (found < len(x_t) - 1)]
    return np.array([]) if len(found) == 0 else _parabola(np.tile(x_t, (len(found), 1)), found)


def _line(values: np.ndarray, at_s: np.ndarray) -> tuple[float, float]:
    """Strongest breathing frequency of an uneven series and its share of the variance (sine fit)."""
    if len(values) < 6 or np.ptp(at_s) < 8:
        return np.nan, np.nan
    y = values - np.polyval(np.polyfit(at_s - at_s[0], values, 1), at_s - at_s[0])
    total = float(y @ y)
    if total <= 1e-18:
        return np.nan, np.nan
    angle = 2 * np.pi * BREATH_HZ[:, None] * at_s
    power = ((np.cos(angle) @ y) ** 2 + (np.sin(angle) @ y) ** 2) * 2 / (len(y) * total)
    best = int(np.argmax(power))
    return float(BREATH_HZ[best]), float(min(power[best], 1.0))


def _crossing(beat: np.ndarray, level: float, peak: int) -> tuple[float, float]:
    """Positions left and right of the peak where a beat falls through `level` (the ends where it doesn't)."""
    left, right = np.flatnonzero(beat[:peak] < level), np.flatnonzero(beat[peak:] < level)
    return float(left[-1] if len(left) else 0), float(peak + right[0] if len(right) else len(beat) - 1)


def _beat_features(x_t: np.ndarray, rate: float, period_s: float) -> dict[str, float]:
    """Timing, shape and breathing features of one window, from its beats."""
    peaks = _beats(x_t, rate, period_s)
    edges = np.concatenate([[0.0], peaks, [len(x_t)]]) / rate
    out = {"beat_count_per_s": len(peaks) * rate / len(x_t), "longest_pause_s": float(np.diff(edges).max())}
    if len(peaks) < 3:
        return out
    at_s, interval = peaks / rate, np.diff(peaks) / rate
    middle = float(np.median(interval))
    ok = (interval > 0.6 * middle) & (interval < 1.5 * middle)
    kept, out["hr_beats"] = interval[ok] if ok.any() else interval, 60 / middle
    both = ok[1:] & ok[:-1]
    step = np.diff(interval)[both]
    out["ibi_mean"] = float(kept.mean())
    if len(kept) >= SPREAD and len(step) >= SPREAD - 1:
        out |= {
            "ibi_sd": float(kept.std()), "ibi_rmssd": float(np.sqrt(np.mean(step**2))),
            "ibi_pnn50": float(np.mean(np.abs(step) > 0.05)), "ibi_cv": float(kept.std() / kept.mean()),
        }  # fmt: skip
    out["ibi_p10"], out["ibi_p50"], out["ibi_p90"] = (float(v) for v in np.percentile(kept, [10, 50, 90]))

    whole = np.round(peaks).astype(int)
    troughs = np.array([a + int(np.argmin(x_t[a:b])) for a, b in pairwise(whole)])
    heights, shapes = [], []
    for start, end, peak in zip(troughs[:-1], troughs[1:], whole[1:-1], strict=True):
        if not start < peak < end:
            continue
        beat, top = x_t[start : end + 1] - x_t[start], peak - start
        height = float(beat[top])
        if height <= 0:
            continue
        spans = [_crossing(beat, share * height, top) for share in (0.25, 0.5, 0.75)]
        widths = [(right - left) / rate for left, right in spans]
        floor = beat - beat.min()
        slope = np.diff(beat)
        shapes.append((
            top / rate, top / (end - start), *widths, widths[1] * rate / (end - start),
            float(floor[:top].sum() / max(floor.sum(), 1e-12)), float(slope.max() / max(-slope.min(), 1e-12)),
        ))  # fmt: skip
        heights.append((at_s[1:-1][whole[1:-1] == peak][0], height))
    if shapes:
        names = SHAPE[:8]
        out |= {name: float(v) for name, v in zip(names, np.median(np.array(shapes), axis=0), strict=True)}
        when, height_k = np.array(heights).T
        if len(height_k) >= SPREAD:
            out["amplitude_cv"] = float(height_k.std() / height_k.mean())
            out["trough_cv"] = float(x_t[troughs].std() / height_k.mean())
        out["breath_amplitude_hz"], out["breath_amplitude_share"] = _line(height_k, when)
    middle_s = (at_s[1:] + at_s[:-1]) / 2
    out["breath_interval_hz"], out["breath_interval_share"] = _line(interval[ok], middle_s[ok])
    return out


def handcrafted(x_nt: np.ndarray, rate: float) -> np.ndarray:
    """(n, len(NAMES)) features of (n, T) windows, band-passed 0.5–8 Hz at `rate` Hz (see the module)."""
    x = np.asarray(x_nt, np.float64)
    x = x - x.mean(1, keepdims=True)
    scale = x.std(1, keepdims=True)
    x = x / np.where(scale > 0, scale, 1)
    column = {name: np.full(len(x), np.nan) for name in NAMES}

    column["hr_autocorrelation"], column["periodicity"] = autocorrelation_rate(x, rate)
    freq, power = spectrum_of(x, rate)
    column["hr_spectrum"] = np.where(scale[:, 0] > 0, spectral_rate(freq, power), np.nan)
    guess = np.where(
        np.isfinite(column["hr_autocorrelation"]), column["hr_autocorrelation"], column["hr_spectrum"]
    )
    for i in np.flatnonzero(np.isfinite(guess)):
        for name, value in _beat_features(x[i], rate, 60 / guess[i]).items():
            column[name][i] = value
    routes = np.stack([column["hr_autocorrelation"], column["hr_spectrum"], column["hr_beats"]])
    known = np.isfinite(routes).any(0)
    column["hr_consensus"][known] = np.nanmedian(routes[:, known], axis=0)
    column["hr_disagreement"][known] = np.nanmax(routes[:, known], axis=0) - np.nanmin(
        routes[:, known], axis=0
    )

    column["skewness"], column["kurtosis"] = (x**3).mean(1), (x**4).mean(1)
    inside = (freq >= BANDS[0]) & (freq <= BANDS[-1])
    total = np.maximum(power[:, inside].sum(1), 1e-12)
    for low, high in pairwise(BANDS):
        column[f"power_{low:g}_{high:g}"] = power[:, (freq >= low) & (freq < high)].sum(1) / total
    share = power[:, inside] / total[:, None]
    column["spectral_entropy"] = -(share * np.log(share + 1e-12)).sum(1) / np.log(inside.sum())
    column["spectral_centroid"] = share @ freq[inside]
    line = np.nan_to_num(column["hr_consensus"], nan=75.0) / 60 / (freq[1] - freq[0])
    at = np.clip(np.round(np.arange(1, 4)[:, None] * line).astype(int), 0, power.shape[1] - 1)
    peak = np.log(power[np.arange(len(x)), at] + 1e-9)
    column["harmonic2"], column["harmonic3"] = peak[1] - peak[0], peak[2] - peak[0]
    return np.stack([column[name] for name in NAMES], axis=1)
