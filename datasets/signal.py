"""Pure, batched signal functions: from raw windows to model input samples."""

from fractions import Fraction
from typing import Literal

import numpy as np
import scipy  # its parts load on first use: processes that only plan or pass on windows start sooner

from cluster.config import Config
from cluster.errors import PlethoraError
from datasets import ecg, zerophase

HALF = 0.5 + 1e-6  # of a sample, plus rounding of a rate and of a length in seconds
SHORT = 100  # shorter windows are filtered by scipy itself: its padding no longer fits


class Signal(Config):
    """How one modality is prepared, and the checks that a window must pass. Rates and bands in Hz."""

    modality: str
    rate: float
    band: zerophase.Band | None = None  # (0.5, None): a high-pass
    order: int = 2
    channels: int = 1  # the first channels; a row with fewer lacks this signal
    normalise: Literal["none", "minmax", "zscore"] = (
        "none"  # "none" if the network normalises, as SIGMA's does
    )
    required: bool = True  # False: a window may lack it (samples zero, mask False)
    notch: float | None = None  # mains, 50 or 60; one zero-phase pass together with the band
    upright: bool = False  # turn inverted ECG windows (`ecg.inverted`)
    min_rate: float = 0.0  # a row with a lower native rate lacks this signal
    max_flat: float = 1.0  # largest `ecg.flat_share` of the raw samples
    gate: Literal["none", "ecg"] = "none"  # "ecg": `ecg.sound`


def length(seconds: np.ndarray | float, rate: np.ndarray | float) -> np.ndarray:
    """Number of samples in windows of `seconds` at `rate` Hz, int64: the nearest number, and the lower of two
    equally near ones, so that rounding and truncation give the same window.

    A stretch holds a window if it has that many samples, give or take half a sample at any rate.
    """
    return np.ceil(np.multiply(seconds, rate) - HALF).astype(np.int64)


def prepare(
    x: np.ndarray,
    native_rate: float,
    sig: Signal,
    scale: np.ndarray | None = None,
    to: int | None = None,
) -> np.ndarray:
    """Filter at the native rate, then resample, turn upright, normalise, each as `sig` requests.

    x: (n, channels, samples) at `native_rate` Hz, any unit, finite; scale: (n,), factor for the resampled
    windows; to: samples of the result, if a window's length is known better than from its raw samples (30 s
    at 124.945 Hz are 3748.35 samples), by default round(samples / native_rate * sig.rate). Returns (n,
    channels, to) float32, contiguous. The order is SIGMA's (arXiv 2601.21031, released preset): resampling
    before filtering changes the result by up to 0.19 of its range. Raises PlethoraError if the band does not
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
    """The notch frequency; None if the recording's rate is too low to contain the mains frequency."""
    return sig.notch if sig.notch is not None and sig.notch < rate / 2 else None


def filtered(
    x: np.ndarray, rate: float, band: zerophase.Band | None, order: int, notch: float | None = None
) -> np.ndarray:
    """x (…, samples) through `zerophase.sections`, zero-phase: scipy `sosfiltfilt` with odd padding."""
    check_band(band, rate)
    sos = zerophase.sections(float(rate), band, order, notch)
    # scipy's default padding length, shortened for very short windows
    return scipy.signal.sosfiltfilt(sos, x, axis=-1, padlen=min(zerophase.padding(sos), x.shape[-1] - 1))


def check_band(band: zerophase.Band | None, rate: float) -> None:
    """Raises PlethoraError if `band` does not fit under half of `rate`, in Hz."""
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
    """Number of samples that `n` samples at `rate` Hz become at `to` Hz."""
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
    """Regularity of a pulse wave: the highest normalised autocorrelation at lags of 0.3 to 2 s (200 to 30 a
    minute).

    x: (n, samples) at `rate` Hz, band-passed. Returns (n,) in [0, 1]: near 1 for a clean pulse, under about
    0.3 for noise. The unbiased estimate (each lag divided by its overlap) is clipped to 1.
    """
    n = x.shape[-1]
    x = x - x.mean(axis=-1, keepdims=True)
    lags = np.arange(int(0.3 * rate), min(int(2.0 * rate), n - 1) + 1)
    size = scipy.fft.next_fast_len(n + int(lags.max(initial=0)), real=True)  # the used lags do not wrap round
    spectrum = scipy.fft.rfft(x, size, axis=-1)
    r = scipy.fft.irfft(spectrum.real**2 + spectrum.imag**2, size, axis=-1)
    energy = r[..., :1]
    r = r[..., lags] * (n / (n - lags)) / np.where(energy > 0, energy, 1)
    # Only lags at a local maximum count: a slow wave is high at the shortest lag without being periodic.
    peak = np.zeros(r.shape, bool)
    peak[..., 1:-1] = (r[..., 1:-1] >= r[..., :-2]) & (r[..., 1:-1] >= r[..., 2:])
    return np.clip(np.where(peak, r, 0).max(axis=-1, initial=0), 0, 1)
