"""Pure, batched signal functions: from raw windows to model input samples."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import scipy  # its parts load on first use: processes that only plan or pass on windows start sooner
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cluster.config import Config
from cluster.errors import PlethoraError
from datasets import ecg, filters, zerophase

HALF = 0.5 + 1e-6  # of a sample, plus rounding of a rate and of a length in seconds
SHORT = 100  # shorter windows are filtered by scipy itself: its padding no longer fits

Step = Literal["filter", "resample", "normalise"]
Normalisation = Literal["none", "minmax", "minmax_signed", "zscore"]
Resampling = Literal["fft", "polyphase", "linear"]
USUAL: tuple[Step, ...] = ("filter", "resample", "normalise")


class Signal(Config):
    """How one modality is prepared, and the checks that a window must pass. Rates and bands in Hz."""

    modality: str
    rate: float
    band: zerophase.Band | None = None  # (0.5, None): a high-pass
    order: int = 2  # of an IIR filter
    channels: int = 1  # the first channels; a row with fewer lacks this signal
    # per window and channel; minmax: to [0, 1], minmax_signed: to [-1, 1]; "none" if the network normalises
    normalise: Normalisation = "none"
    required: bool = True  # False: a window may lack it (samples zero, mask False)
    notch: float | None = None  # mains, 50 or 60; one zero-phase pass together with the band
    upright: bool = False  # turn inverted ECG windows (`ecg.inverted`)
    min_rate: float = 0.0  # a row with a lower native rate lacks this signal
    max_flat: float = 1.0  # largest `ecg.flat_share` of the raw samples
    gate: Literal["none", "ecg"] = "none"  # "ecg": `ecg.sound`

    # From here on what published pipelines need: version 2 of the bundle contract, and omitted from JSON at
    # its default, so that caches, checkpoints and lineage of before stay valid (`LATEST`).
    filter: Literal["butterworth", "chebyshev2", "fir"] = "butterworth"
    attenuation: float | None = Field(
        default=None, gt=0, le=200
    )  # dB of chebyshev2's stop band, in each direction
    taps: int | None = Field(default=None, ge=3, le=100_001)  # of fir, at the rate at which it runs; odd
    taper: filters.Taper = "hamming"  # of fir's taps: `window` of scipy's firwin
    beta: float | None = Field(default=None, ge=0, le=100)  # of a Kaiser taper
    phase: Literal["zero", "delayed"] = "zero"  # delayed: fir in one pass, see `filters.Fir`
    smooth_s: float | None = Field(default=None, gt=0, le=10)  # moving average after the band
    smooth_from: float = Field(default=0.0, ge=0, le=1e6)  # Hz: at lower rates there is no moving average
    baseline_s: float | None = Field(default=None, gt=0, le=100)  # then less the running median
    resample: Resampling = "fft"
    sequence: tuple[Step, ...] = USUAL

    @model_validator(mode="after")
    def _fits(self) -> "Signal":
        for wrong, what in _CONFLICTS.items():
            if what(self):
                raise ValueError(f"{self.modality}: {wrong}")
        if self.sequence.index("resample") < self.sequence.index("filter"):
            try:
                check_band(self.band, self.rate)
            except PlethoraError as error:
                raise ValueError(f"{self.modality}: filtered after resampling: {error}") from None
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in usual(self).items() if k not in LATEST or getattr(self, k) != LATEST[k]}

    @property
    def fused(self) -> bool:
        """Whether filter, resampling and sequence are those of version 1 of the bundle contract: two
        transforms (`zerophase.design`), on a device as well. All else runs step by step, on a host.
        """
        return all(getattr(self, key) == default for key, default in LATEST.items())

    @property
    def removes_offset(self) -> bool:
        """Whether a constant added to the raw samples changes nothing. An even Chebyshev II lets a share of
        it through, a FIR filter too, and a polyphase resampler's ends depend on it.
        """
        return self.fused and self.band is not None


_FIELDS = list(Signal.model_fields)
LATEST: Mapping[str, Any] = {
    name: Signal.model_fields[name].default for name in _FIELDS[_FIELDS.index("filter") :]
}

# what is wrong: whether a signal is
_CONFLICTS: Mapping[str, Callable[[Signal], bool]] = {
    "chebyshev2 and fir need a band": lambda s: s.filter != "butterworth" and s.band is None,
    "chebyshev2, and it alone, needs attenuation in dB": lambda s: (
        (s.filter == "chebyshev2") != (s.attenuation is not None)
    ),
    "fir, and it alone, needs taps": lambda s: (s.filter == "fir") != (s.taps is not None),
    "taps must be odd: an even number delays by half a sample": lambda s: (
        s.taps is not None and not s.taps % 2
    ),
    "taper goes with fir": lambda s: s.filter != "fir" and s.taper != "hamming",
    "a Kaiser taper, and it alone, needs beta": lambda s: (s.taper == "kaiser") != (s.beta is not None),
    'phase = "delayed" goes with fir': lambda s: s.filter != "fir" and s.phase == "delayed",
    "a notch goes with butterworth and chebyshev2, not with fir": lambda s: (
        s.filter == "fir" and s.notch is not None
    ),
    "smooth_from goes with smooth_s": lambda s: s.smooth_s is None and s.smooth_from > 0,
    "sequence must name filter, resample and normalise, each once": lambda s: (
        sorted(s.sequence) != sorted(USUAL)
    ),
    "upright needs normalise as the last of sequence": lambda s: s.upright and s.sequence[-1] != "normalise",
}


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
    """Filter, resample, turn upright and normalise, each as `sig` requests.

    x: (n, channels, samples) at `native_rate` Hz, any unit, finite; scale: (n,) factors of the windows; to:
    samples of the result, if a window's length is known better than from its raw samples (30 s at 124.945 Hz
    are 3748.35 samples), by default round(samples / native_rate * sig.rate). Returns (n, channels, to)
    float32, contiguous. The usual sequence, filter at the native rate and then resample, is SIGMA's (arXiv
    2601.21031, released preset): resampling first changes the result by up to 0.19 of its range. Raises
    PlethoraError if the band does not fit under half the rate at which the filter runs.
    """
    return np.ascontiguousarray(exact(x, native_rate, sig, scale, to), dtype=np.float32)


def exact(
    x: np.ndarray,
    native_rate: float,
    sig: Signal,
    scale: np.ndarray | None = None,
    to: int | None = None,
) -> np.ndarray:
    """`prepare` before its cast: float64."""
    y = np.asarray(x, dtype=np.float64)
    rate = float(native_rate)
    m = samples(y.shape[-1], native_rate, sig.rate) if to is None else to
    if not sig.fused:
        return _in_turn(y if scale is None else y * scale[:, None, None], rate, sig, m)
    y = _fused(y, rate, sig, m)
    if scale is not None:
        y = y * scale[:, None, None]
    return normalise(_turned(y, sig), sig.normalise)


def _fused(y: np.ndarray, rate: float, sig: Signal, m: int) -> np.ndarray:
    """Filter at the native rate and Fourier resampling to `m` samples."""
    mains = notch(sig, rate)
    if sig.band is None and mains is None:
        return resample(y, m)
    if short(sig, y.shape[-1]):
        return resample(filtered(y, rate, sig.band, sig.order, mains), m)
    check_band(sig.band, rate)  # the same, in two transforms
    return zerophase.design(rate, sig.band, sig.order, y.shape[-1], m, mains)(y)


def _in_turn(y: np.ndarray, rate: float, sig: Signal, m: int) -> np.ndarray:
    """The steps of `sig.sequence` one after the other."""
    for step in sig.sequence:
        if step == "filter":
            y = conditioned(y, rate, sig)
        elif step == "resample":
            y, rate = resample(y, m, sig.resample), sig.rate
        else:
            y = normalise(_turned(y, sig), sig.normalise)
    return y


def _turned(y: np.ndarray, sig: Signal) -> np.ndarray:
    return y * np.where(ecg.inverted(y, sig.rate), -1.0, 1.0)[..., None] if sig.upright else y


def conditioned(x: np.ndarray, rate: float, sig: Signal) -> np.ndarray:
    """x (…, samples) at `rate` Hz through the band and notch of `sig`, its moving average, and less its
    running median. Raises PlethoraError if the band does not fit under half of `rate`.
    """
    mains = notch(sig, rate)
    if sig.filter == "fir":
        assert sig.band is not None and sig.taps is not None  # a Signal checks both
        check_band(sig.band, rate)
        x = filters.Fir(sig.band, sig.taps, sig.taper, sig.beta, sig.phase == "delayed")(x, rate)
    elif sig.band is not None or mains is not None:
        x = filtered(x, rate, sig.band, sig.order, mains, sig.attenuation)
    if sig.smooth_s is not None and rate >= sig.smooth_from:
        x = filters.moving_average(x, sig.smooth_s, rate)
    return x if sig.baseline_s is None else filters.less_median(x, sig.baseline_s, rate)


def notch(sig: Signal, rate: float) -> float | None:
    """The notch frequency; None if the recording's rate is too low to contain the mains frequency."""
    return sig.notch if sig.notch is not None and sig.notch < rate / 2 else None


def short(sig: Signal, n: int) -> bool:
    """Whether `n` samples are too few for `zerophase.design`, which needs room for scipy's padding."""
    return n <= max(SHORT - 1, 3 * (2 * (sig.order + 1) + 1))


def filtered(
    x: np.ndarray,
    rate: float,
    band: zerophase.Band | None,
    order: int,
    notch: float | None = None,
    attenuation: float | None = None,
) -> np.ndarray:
    """x (…, samples) through `zerophase.sections`, zero-phase: scipy `sosfiltfilt` with odd padding."""
    check_band(band, rate)
    sos = zerophase.sections(float(rate), band, order, notch, attenuation)
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


def resample(x: np.ndarray, m: int, how: Resampling = "fft") -> np.ndarray:
    """(…, T) → (…, m) of the same duration: sample k of the result lies at sample k·T/m of `x`.

    fft: equal to `scipy.signal.resample`; polyphase: to `resample_poly` (up m, down T, zeros beyond the
    ends); linear: to `np.interp`, which holds the last sample.
    """
    n = x.shape[-1]
    if m == n:
        return x
    if how == "polyphase":
        return scipy.signal.resample_poly(x, m, n, axis=-1)
    if how == "linear":
        at = np.minimum(np.arange(m) * (n / m), n - 1)
        left = np.minimum(at.astype(np.int64), max(n - 2, 0))
        share = at - left
        return x[..., left] * (1 - share) + x[..., np.minimum(left + 1, n - 1)] * share
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
    if how == "zscore":
        spread = x.std(axis=-1, keepdims=True)
        return (x - x.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1)
    low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    span = np.where(high > low, high - low, 1)
    return (x - low) / span if how == "minmax" else ((x - low) - (high - x)) / span


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
