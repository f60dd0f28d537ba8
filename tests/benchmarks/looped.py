"""What we are measured against: one window at a time, float64, as released pipelines do it.

Own lines after the definitions (DESIGN 8 and the papers there), so that they also say what is right: physical
values, pandas interpolation over gaps, scipy's `sosfiltfilt` and `resample`, NumPy a window, a Python loop a
patch. Filters are designed once a rate.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import fft, ndimage, stats
from scipy import signal as scipy_signal

from datasets.signal import Signal


@lru_cache(maxsize=32)
def sections(rate: float, sig: Signal) -> np.ndarray | None:
    """Second-order sections of a signal's band and notch; None: neither."""
    parts = []
    if sig.band is not None:
        low, high = sig.band
        edges, kind = (low, "highpass") if high is None else ((low, high), "bandpass")
        parts.append(scipy_signal.butter(sig.order, edges, btype=kind, fs=rate, output="sos"))
    if sig.notch is not None and sig.notch < rate / 2:
        parts.append(scipy_signal.tf2sos(*scipy_signal.iirnotch(sig.notch, 30, fs=rate)))
    return np.concatenate(parts) if parts else None


def window(cut: np.ndarray, rate: float, scale: float, offset: float, sig: Signal) -> np.ndarray:
    """(T, channels) int16 -> the first channel prepared, (samples,) float64."""
    x = cut[:, 0].astype(float) * scale + offset
    x = pd.Series(x).interpolate(limit_direction="both").to_numpy()
    sos = sections(rate, sig)
    if sos is not None:
        x = scipy_signal.sosfiltfilt(sos, x)
    x = scipy_signal.resample(x, round(len(x) * sig.rate / rate))
    return -x if sig.upright and inverted(x, sig.rate) else x


def minmax(x: np.ndarray) -> np.ndarray:
    span = x.max() - x.min()
    return (x - x.min()) / (span if span > 0 else 1)


def priors(x: np.ndarray, patch: int, beta: float = 0.5) -> np.ndarray:
    """SIGMA's prior of each patch of a [0, 1] window: (patches,). DESIGN 8.1."""
    patches = [x[i : i + patch] for i in range(0, len(x) - patch + 1, patch)]
    spread = np.array([p.std() for p in patches])
    middle = np.median(spread)
    mad = np.median(np.abs(spread - middle))
    out = []
    for p, s in zip(patches, spread, strict=True):
        z = 0.6745 * (s - middle) / mad if mad >= 1e-9 else 0.0
        amp = np.exp(-0.2 * z**2) / (1 + np.exp(-50 * (s - 0.05))) / (1 + np.exp(5 * (s - 2)))
        skew = np.tanh(abs(stats.skew(p, bias=False))) if s**2 >= 1e-10 else 0.0
        out.append(beta * amp + (1 - beta) * skew)
    return np.array(out)


# ---------------------------------------------------------------- ECG: polarity and gates (datasets/ecg.py)


def _spectrum(x: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    n = len(x)
    x = scipy_signal.detrend(x)
    edge = np.sin(np.linspace(0, np.pi / 2, max(2, min(round(0.25 * rate), n // 4)))) ** 2
    x[: len(edge)] *= edge
    x[-len(edge) :] *= edge[::-1]
    return fft.rfft(x), fft.rfftfreq(n, 1 / rate)


def _between(
    spectrum: np.ndarray, f: np.ndarray, n: int, low: float, high: float
) -> tuple[np.ndarray, float]:
    keep = min(len(f), int(np.searchsorted(f, 2.5 * high)) + 1)
    gain = np.zeros(keep)
    gain[1:] = 1 / ((1 + (low / f[1:keep]) ** 8) * (1 + (f[1:keep] / high) ** 8))
    m = min(n, 2 * (keep - 1))
    return fft.irfft(spectrum[:keep] * gain, m), f[1] * m


def _blocks(x: np.ndarray, rate: float) -> list[np.ndarray]:
    count = max(1, int(len(x) / (1.5 * rate)))
    size = len(x) // count
    return [x[i * size : (i + 1) * size] for i in range(count)]


def inverted(x: np.ndarray, rate: float) -> bool:
    y, at = _between(*_spectrum(x, rate), len(x), 5.0, 20.0)
    return bool(np.median([b[np.abs(b).argmax()] for b in _blocks(y, at)]) < 0)


def flat_share(cut: np.ndarray, rate: float) -> float:
    """Of the first channel of raw samples (T, channels)."""
    x = cut[:, 0].astype(float)
    size = max(1, min(round(0.2 * rate), len(x)))
    span = pd.Series(x).rolling(size).max() - pd.Series(x).rolling(size).min()
    still = (span <= 0.002 * np.ptp(x)).to_numpy()  # a stretch by its last sample; False where none ends
    covered = np.convolve(still[size - 1 :].astype(float), np.ones(size)) > 0.5
    return float(covered.mean())


def sound(x: np.ndarray, rate: float) -> bool:
    """The ECG gate: pSQI, kSQI, basSQI and the contrast of beats."""
    spectrum, f = _spectrum(x, rate)
    power = np.abs(spectrum) ** 2

    def share(low: float, high: float, start: float) -> float:
        whole = power[(f >= start) & (f <= 40) & (f > 0)].sum()
        return power[(f >= low) & (f <= high)].sum() / (whole if whole > 0 else 1)

    y, _ = _between(spectrum, f, len(x), 1, 40)
    y = y - y.mean()
    variance = (y**2).mean()
    qrs, at = _between(spectrum, f, len(x), 5.0, 20.0)
    width = max(1, round(0.1 * at))
    slope = np.sqrt(np.maximum(np.convolve(np.diff(qrs) ** 2, np.ones(width), mode="valid"), 0))
    usual = np.median(slope)
    beats = np.median([b.max() for b in _blocks(slope, at)])
    return bool(
        share(5, 15, 5) >= 0.35
        and variance > 0
        and (y**4).mean() / variance**2 >= 3.5
        and usual > 0
        and beats / usual >= 3.0
        and share(1, 40, 0) >= 0.7
    )


def verdict(cut: np.ndarray, rate: float, x: np.ndarray, sig: Signal) -> str:
    """Of a raw window and what `window` made of it."""
    if not np.isfinite(x).all():
        return "nan"
    if np.ptp(x) <= 0 or (sig.max_flat < 1 and flat_share(cut, rate) > sig.max_flat):
        return "flat"
    return "ok" if sig.gate == "none" or sound(x, sig.rate) else "quality"


# ---------------------------------------------------------------- recordings -> files


def heart_rate(x: np.ndarray, rate: float) -> float:
    """Beats a minute of an ECG stretch (samples,): slope energy at 5-20 Hz, beside the curve's length at
    3-16 Hz, as `datasets/labels.py` has them; NaN where they differ by more than 5 a minute."""
    found = []
    for low, high in ((5, 20), (3, 16)):
        sos = scipy_signal.butter(2, (low, high), "bandpass", fs=rate, output="sos")
        y = np.abs(np.gradient(scipy_signal.sosfiltfilt(sos, x)))
        y = ndimage.uniform_filter1d(y, max(1, round(0.12 * rate)))
        peaks, _ = scipy_signal.find_peaks(y, height=0.4 * y.max(), distance=max(1, int(0.25 * rate)))
        found.append(60 * rate / np.diff(peaks).mean() if len(peaks) > 2 else np.nan)
    return float(found[0]) if abs(found[0] - found[1]) <= 5 else float("nan")


def refused(x: np.ndarray, rate: float) -> bool:
    """Whether a stretch of a channel is flat for 3 s or on its own rail for 1 s."""
    series = pd.Series(x)
    run = series.groupby((series != series.shift()).cumsum()).transform("size")
    slack = 0.002 * np.ptp(x)
    rails = pd.Series((x >= x.max() - slack) | (x <= x.min() + slack)).astype(float)
    return bool(run.max() >= 3 * rate or rails.rolling(round(rate)).min().max() > 0.5)


def record(path: str, out: str, channels: list[str], stretch_s: float = 10.0) -> int:
    """One WFDB record -> an .npz of its sound stretches, physical float32, with heart rates; how many."""
    import wfdb

    read = wfdb.rdrecord(path)
    rate, size = read.fs, round(stretch_s * read.fs)
    there = [read.sig_name.index(c) for c in channels if c in read.sig_name]
    kept, rates = [], []
    for start in range(0, read.sig_len - size + 1, size):
        part = read.p_signal[start : start + size, there]
        filled = [pd.Series(x).interpolate(limit=round(0.1 * rate)).to_numpy() for x in part.T]
        if any(np.isnan(x).any() or refused(x, rate) for x in filled):
            continue
        kept.append(np.stack(filled).astype(np.float32))
        rates.append(heart_rate(filled[1], rate))
    numerics = wfdb.rdrecord(path + "n").p_signal if Path(path + "n.hea").exists() else []
    np.savez(out, x=np.array(kept), hr=np.array(rates), numerics=numerics)
    return len(kept)
