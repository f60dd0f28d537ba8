"""Pure, batched signal functions: windows in, the samples that a model sees out."""

from fractions import Fraction
from typing import Literal

import numpy as np
import scipy  # its parts load at first use: processes that only plan or pass windows on start sooner

from cluster.config import Config
from cluster.errors import PlethoraError
from datasets import ecg, zerophase

HALF = 0.5 + 1e-6  # of a sample, and what rounding of a rate and of a length in seconds may add
SHORT = 100  # samples under which a window is filtered by scipy itself: its padding no longer fits


class Signal(Config):
    """How one modality is prepared, and what a window must show to be used. Rates and bands in Hz."""

    modality: str
    rate: float
    band: zerophase.Band | None = None  # (0.5, None): a high-pass
    order: int = 2
    channels: int = 1  # the first so many; a row with fewer does not have this signal
    normalise: Literal["none", "minmax", "zscore"] = (
        "none"  # "none" where the network normalises, as SIGMA's does
    )
    required: bool = True  # False: a window may come without it, its samples zeros, its mask False
    notch: float | None = None  # mains, 50 or 60; in one zero-phase pass with the band
    upright: bool = False  # turn inverted ECG windows (`ecg.inverted`)
    min_rate: float = 0.0  # a row with a lower native rate does not have this signal
    max_flat: float = 1.0  # largest `ecg.flat_share` of the raw samples
    gate: Literal["none", "ecg"] = "none"  # "ecg": `ecg.sound`


def length(seconds: np.ndarray | float, rate: np.ndarray | float) -> np.ndarray:
    """How many samples at `rate` Hz a window of `seconds` has, int64: the nearest number; of two that are as
    near the lower, so that rounding and cutting off give the same window.

    A stretch holds a window where it has so many samples: half a sample is forgiven, at every rate.
    """
    return np.ceil(np.multiply(seconds, rate) - HALF).astype(np.int64)


def prepare(
    x: np.ndarray,
    native_rate: float,
    sig: Signal,
    scale: np.ndarray | None = None,
    to: int | None = None,
) -> np.ndarray:
    """Filter at the native rate, then resample, turn upright, normalise: each only as `sig` says.

    x: (n, channels, samples) at `native_rate` Hz, any unit, finite; scale: (n,), what the resampled windows
    are multiplied by; to: samples of the result, where a window's length says more than its raw samples do
    (30 s at 124.945 Hz are 3748.35 samples), by default round(samples / native_rate * sig.rate). Returns (n,
    channels, to) float32, contiguous. The order is SIGMA's (arXiv 2601.21031, released preset): resampling
    before filtering moves the result by up to 0.19 of its range. Raises PlethoraError when the band does not
    fit under half the native rate.
    """
    y = np.asarray(x, dtype=np.float64)
    n, rate, mains = y.shape[-1], float(native_rate), notch(sig, native_rate)
    m = samples(n, native_rate, sig.rate) if to is None else to
    if sig.band is None and mains is None:
        y = resample(y, m)
    elif n < SHORT:
        y = resample(filtered(y, rate, sig.band, sig.order, mains), m)
    else:  # the same, in two transforms
        check_band(sig.band, rate)
        y = zerophase.design(rate, sig.band, sig.order, n, m, mains)(y)
    if scale is not None:
        y = y * scale[:, None, None]
    if sig.upright:
        y = y * np.where(ecg.inverted(y, sig.rate), -1.0, 1.0)[..., None]
    return np.ascontiguousarray(normalise(y, sig.normalise), dtype=np.float32)


def notch(sig: Signal, rate: float) -> float | None:
    """Where to notch: nowhere in a recording whose rate is too low to hold the mains frequency."""
    return sig.notch if sig.notch is not None and sig.notch < rate / 2 else None


def filtered(
    x: np.ndarray, rate: float, band: zerophase.Band | None, order: int, notch: float | None = None
) -> np.ndarray:
    """x (…, samples) through `zerophase.sections`, zero-phase: scipy `sosfiltfilt` with odd padding."""
    check_band(band, rate)
    sos = zerophase.sections(float(rate), band, order, notch)
    # scipy's default padding length, cut to what a very short window can give
    return scipy.signal.sosfiltfilt(sos, x, axis=-1, padlen=min(zerophase.padding(sos), x.shape[-1] - 1))


def check_band(band: zerophase.Band | None, rate: float) -> None:
    """Raises PlethoraError when `band` does not fit under half of `rate`, in Hz."""
    if band is None:
        return
    low, high = band
    if high is None and not 0 < low < rate / 2:
        raise PlethoraError(f"a high-pass at {low:g} Hz does not fit a signal of {rate:g} Hz")
    if high is not None and not 0 < low < high < rate / 2:
        raise PlethoraError(
            f"band {low:g}-{high:g} Hz does not fit a signal of {rate:g} Hz: "
            f"its top must be under {rate / 2:g} Hz; use a source with a higher rate"
        )


def resample(x: np.ndarray, m: int) -> np.ndarray:
    """Fourier resampling over the last axis, equal to `scipy.signal.resample`. (…, T) → (…, m)."""
    n = x.shape[-1]
    if m == n:
        return x
    # Half-spectrum transforms with scipy.fft's float32/float64 kernels: scipy.signal.resample's own steps
    # without its copies. The bin at the lower Nyquist frequency is folded (down) or halved (up), as there.
    keep = min(n, m)
    spectrum = scipy.fft.rfft(x, axis=-1)[..., : keep // 2 + 1]
    if keep % 2 == 0:
        spectrum[..., -1] *= 2.0 if m < n else 0.5
    return scipy.fft.irfft(spectrum, m, axis=-1) * (m / n)


def samples(n: int, rate: float, to: float) -> int:
    """How many samples `n` samples at `rate` Hz become at `to` Hz."""
    return round(
        Fraction(n) * Fraction(to).limit_denominator(10**6) / Fraction(rate).limit_denominator(10**6)
    )


def normalise(x: np.ndarray, how: str) -> np.ndarray:
    """Per window and channel, over the last axis. A constant window becomes zeros."""
    if how == "none":
        return x
    if how == "minmax":
        low = x.min(axis=-1, keepdims=True)
        span = x.max(axis=-1, keepdims=True) - low
        return (x - low) / np.where(span > 0, span, 1)
    spread = x.std(axis=-1, keepdims=True)
    return (x - x.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1)


def periodicity(x: np.ndarray, rate: float) -> np.ndarray:
    """How regular a pulse wave is: the highest normalised autocorrelation at lags of 0.3 to 2 s (200 to 30 a
    minute).

    x: (n, samples) at `rate` Hz, band-passed. Returns (n,) in [0, 1]: near 1 for a clean pulse, under some
    0.3 for noise. The unbiased estimate (each lag divided by its overlap) is clipped to 1.
    """
    n = x.shape[-1]
    x = x - x.mean(axis=-1, keepdims=True)
    lags = np.arange(int(0.3 * rate), min(int(2.0 * rate), n - 1) + 1)
    size = scipy.fft.next_fast_len(n + int(lags.max(initial=0)), real=True)  # no lag that counts wraps round
    spectrum = scipy.fft.rfft(x, size, axis=-1)
    r = scipy.fft.irfft(spectrum.real**2 + spectrum.imag**2, size, axis=-1)
    energy = r[..., :1]
    r = r[..., lags] * (n / (n - lags)) / np.where(energy > 0, energy, 1)
    # A lag counts only where the curve turns there: a slow wave is high at the shortest lag without being
    # periodic.
    peak = np.zeros(r.shape, bool)
    peak[..., 1:-1] = (r[..., 1:-1] >= r[..., :-2]) & (r[..., 1:-1] >= r[..., 2:])
    return np.clip(np.where(peak, r, 0).max(axis=-1, initial=0), 0, 1)
