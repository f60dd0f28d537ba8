"""Checks for ECG windows beyond filtering: polarity, the share that is flat, and whether it is an ECG.

All functions are vectorised over windows, (…, samples), in any unit; there is no loop over windows.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy  # its parts load on first use: processes that only plan or pass on windows start sooner

QRS_HZ = (5.0, 20.0)  # where QRS complexes stand out from P, T, drift and muscle
REACH = 2.5  # multiple of a band's top: the power above is under a thousandth
TOP_HZ = REACH * 40.0  # nothing above it is used
BLOCK_S = 1.5  # contains at least one beat down to 40 a minute
SLOPE_S = 0.1  # about the length of a QRS complex
TAPER_S = 0.25
TOGETHER = 16  # windows per batch, so that they stay in the CPU cache
# A fifth of a second that moves by less than this share of the window's range is flat. Of the CinC windows in
# which two beat detectors agree, 0.1 % are over a quarter flat; with 1 % it would be 2 % (isoelectric lines).
FLAT_S, FLAT_RANGE = 0.2, 0.002
# The gate's limits, see `sound`.
QRS_SHARE, KURTOSIS, CONTRAST, BASELINE = 0.35, 3.5, 3.0, 0.7


class Spectrum(NamedTuple):
    """Spectra of windows (…, n): straight line removed, tapered at both ends, up to TOP_HZ."""

    x: np.ndarray  # (…, bins) complex
    f: np.ndarray  # (bins,) Hz
    n: int


class Indices(NamedTuple):
    """Signal quality indices of ECG windows, (…) each; see `sound` for sources."""

    qrs_share: np.ndarray  # pSQI: power at 5-15 Hz over that at 5-40 Hz
    baseline: np.ndarray  # basSQI: power at 1-40 Hz over that up to 40 Hz
    kurtosis: np.ndarray  # kSQI, of what lies at 1-40 Hz; 3 is a normal distribution's
    contrast: np.ndarray  # slope energy of the beats over its usual level


def inverted(x: np.ndarray, rate: float) -> np.ndarray:
    """Whether ECG windows (…, samples) at `rate` Hz are upside down: (…) bool.

    The rule: at 5-20 Hz, where QRS complexes dominate, the largest deflection of every 1.5 s (at least one
    beat down to 40 a minute) is taken with its sign; a window is inverted when the median of them is below
    zero. One artefact in a window does not tip it, and neither unit, gain nor offset matters. It is a
    convention, exact under negation, not a diagnosis: a lead that truly points down (aVR, an S wave deeper
    than its R) is turned as well, so that every window shows its largest QRS deflection upward.
    """
    return _upside_down(_spectrum(x, rate))


def _upside_down(spectrum: Spectrum) -> np.ndarray:
    blocks = _blocks(*_band(spectrum, *QRS_HZ))
    largest = np.abs(blocks).argmax(axis=-1)[..., None]
    return np.median(np.take_along_axis(blocks, largest, axis=-1)[..., 0], axis=-1) < 0


def flat_share(x: np.ndarray, rate: float) -> np.ndarray:
    """Share (…) of raw samples (…, samples) at `rate` Hz that are flat: in a stretch of 0.2 s whose highest
    and lowest value differ by at most 0.2 % of the window's range. 1 for a constant window.

    Before any filter: a high-pass turns a flat stretch into a decaying curve. Any rate, any modality.
    """
    n = x.shape[-1]
    size = max(1, min(round(FLAT_S * rate), n))
    spread = np.subtract(_running(x, size, np.maximum), _running(x, size, np.minimum), dtype=np.float64)
    whole = np.subtract(x.max(axis=-1, keepdims=True), x.min(axis=-1, keepdims=True), dtype=np.float64)
    still = spread <= FLAT_RANGE * whole  # stretches by their first sample
    padded = np.zeros((*x.shape[:-1], n + size - 1), bool)
    padded[..., size - 1 : n] = still
    return np.count_nonzero(_running(padded, size, np.logical_or), axis=-1) / n


def indices(x: np.ndarray, rate: float) -> Indices:
    """Quality indices of ECG windows (…, samples) at `rate` Hz (at least 80)."""
    return _indices(_spectrum(x, rate))


def _indices(spectrum: Spectrum) -> Indices:
    f = spectrum.f
    seen = spectrum.x[..., : np.searchsorted(f, 40, side="right")]
    power = seen.real**2 + seen.imag**2

    def between(low: float, high: float) -> np.ndarray:
        return power[..., max(1, np.searchsorted(f, low)) : np.searchsorted(f, high, side="right")].sum(
            axis=-1
        )

    def share(low: float, high: float, start: float) -> np.ndarray:
        whole = between(start, 40)
        return between(low, high) / np.where(whole > 0, whole, 1)

    y, _ = _band(spectrum, 1, 40)
    y -= y.mean(axis=-1, keepdims=True)
    y *= y  # a product: NumPy's power of 4 takes thirty times as long
    spread = y.mean(axis=-1)
    qrs, at = _band(spectrum, *QRS_HZ)
    slope = np.sqrt(np.maximum(_sums(np.diff(qrs, axis=-1) ** 2, max(1, round(SLOPE_S * at))), 0))
    usual = np.median(slope, axis=-1)
    beats = np.median(_blocks(slope, at).max(axis=-1), axis=-1)
    return Indices(
        share(5, 15, 5),
        share(1, 40, 0),
        (y * y).mean(axis=-1) / np.where(spread > 0, spread**2, 1),
        beats / np.where(usual > 0, usual, np.inf),
    )


def sound(x: np.ndarray, rate: float) -> np.ndarray:
    """Whether windows (…, samples) at `rate` Hz, high-passed, look like an ECG: (…) bool.

    Four indices, all of which must pass: the QRS band's share of power (pSQI) at least 0.35, kurtosis (kSQI)
    at least 3.5, share of power above the baseline (basSQI) at least 0.7 (Li, Mark, Clifford, Physiol Meas
    29:15, 2008; Zhao, Zhang, Front Physiol 9:727, 2018, whose optimal ranges are narrower and made for
    resting ECG), and beats whose slope energy is 3 times the usual (as `labels.heart_rate` asks, 2.5 there):
    the median over blocks of 1.5 s, so that a spike, which raises any kurtosis, does not make an ECG.
    The limits are set on BIDMC and CinC 2015 against the agreement of two beat detectors (docs/data.md).
    """
    return _passes(indices(x, rate))


def _passes(i: Indices) -> np.ndarray:
    return (
        (i.qrs_share >= QRS_SHARE)
        & (i.kurtosis >= KURTOSIS)
        & (i.contrast >= CONTRAST)
        & (i.baseline >= BASELINE)
    )


def looks(x: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """(`inverted`, `sound`) of windows (n, channels, samples): (n, channels) bool each, from one spectrum."""
    turned, passes = np.zeros(x.shape[:-1], bool), np.zeros(x.shape[:-1], bool)
    for low in range(0, len(x), TOGETHER):
        at = slice(low, low + TOGETHER)
        spectrum = _spectrum(x[at], rate)
        turned[at], passes[at] = _upside_down(spectrum), _passes(_indices(spectrum))
    return turned, passes


def _spectrum(x: np.ndarray, rate: float) -> Spectrum:
    """Half spectrum of x (…, n), its straight line removed and both ends tapered over TAPER_S.

    Unequal ends would be a step in a circular signal, and a step looks like a beat.
    """
    n = x.shape[-1]
    taper, line, lines = tapered(n, float(rate))
    y = np.subtract(x, x[..., :1], dtype=np.float64)  # a constant becomes exactly zero
    fitted = (y[..., None, :] @ line) @ lines
    y *= taper
    bins = lines.shape[-1]
    found = scipy.fft.rfft(y, axis=-1)[..., :bins] - fitted[..., 0, :]
    return Spectrum(found, np.arange(bins) * rate / n, n)


@lru_cache(maxsize=16)
def tapered(n: int, rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The taper (n,), the least-squares basis of mean and slope (n, 2), and both tapered, as spectra."""
    t = np.linspace(-1, 1, n)
    edge = np.sin(np.linspace(0, np.pi / 2, max(2, min(round(TAPER_S * rate), n // 4)))) ** 2
    taper = np.ones(n)
    taper[: len(edge)], taper[-len(edge) :] = edge, edge[::-1]
    bins = min(n // 2 + 1, int(np.searchsorted(np.arange(n // 2 + 1) * rate / n, TOP_HZ)) + 1)
    fit = np.stack([np.full(n, 1 / n), t / (t @ t)], axis=1)
    return taper, fit, scipy.fft.rfft(np.stack([taper, t * taper]), axis=-1)[:, :bins]


def _band(spectrum: Spectrum, low: float, high: float) -> tuple[np.ndarray, float]:
    """The band `low` to `high` Hz, zero-phase (…, m), and its sampling rate: the lowest that holds the
    band."""
    gain, m, rate = passing(spectrum.f, spectrum.n, low, high)
    return scipy.fft.irfft(spectrum.x[..., : len(gain)] * gain, m, axis=-1), rate


def passing(f: np.ndarray, n: int, low: float, high: float) -> tuple[np.ndarray, int, float]:
    """The filter for `low` to `high` Hz on a spectrum at `f` (bins,) Hz of windows of `n` samples: its gain
    (kept bins,), the number of samples of the result, and its rate.
    """
    keep = min(len(f), int(np.searchsorted(f, REACH * high)) + 1)
    gain = np.zeros(keep)
    gain[1:] = 1 / ((1 + (low / f[1:keep]) ** 8) * (1 + (f[1:keep] / high) ** 8))
    m = min(n, 2 * (keep - 1))
    return gain, m, float(f[1]) * m


def _blocks(y: np.ndarray, rate: float) -> np.ndarray:
    """(…, samples) → (…, blocks, samples of about BLOCK_S); drops a remainder under one sample per block."""
    count = block_count(y.shape[-1], rate)
    size = y.shape[-1] // count
    return y[..., : count * size].reshape(*y.shape[:-1], count, size)


def block_count(n: int, rate: float) -> int:
    """The number of blocks of at least BLOCK_S in `n` samples at `rate` Hz, at least 1."""
    return max(1, int(n / (BLOCK_S * rate)))


def _running(x: np.ndarray, size: int, of: Callable[..., np.ndarray]) -> np.ndarray:
    """`of` (maximum, minimum, or) over every `size` neighbours: (…, n) → (…, n - size + 1)."""
    width = 1
    while 2 * width <= size:
        x = of(x[..., :-width], x[..., width:])
        width *= 2
    rest = size - width
    return of(x[..., :-rest], x[..., rest:]) if rest else x


def _sums(x: np.ndarray, size: int) -> np.ndarray:
    """Sums over every `size` neighbours: (…, n) → (…, n - size + 1)."""
    total = np.zeros((*x.shape[:-1], x.shape[-1] + 1))
    np.cumsum(x, axis=-1, out=total[..., 1:])
    return total[..., size:] - total[..., :-size]
