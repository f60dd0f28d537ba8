"""Filters of published pipelines beside the cascades of `datasets.zerophase`: FIR, moving average, median.

All work over the last axis, in float64, at whatever rate the samples have.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts load on first use: processes that only plan or pass on windows start sooner

from datasets.zerophase import Band

Taper = Literal["hamming", "hann", "blackman", "kaiser"]


@dataclass(frozen=True)
class Fir:
    """`scipy.signal.firwin` of an odd number of `taps`: a band-pass, or a high-pass without an upper end.

    delayed: one pass forward from zero, so that the output lags by (taps - 1) / 2 samples, as a live filter's
    does. Otherwise forward and backward (`filtfilt`): no lag, and the attenuation counts twice.
    """

    band: Band
    taps: int
    taper: Taper
    beta: float | None  # of a Kaiser taper
    delayed: bool

    def __call__(self, x: np.ndarray, rate: float) -> np.ndarray:
        """x (…, samples) at `rate` Hz, whose half is above the band."""
        low, high = self.band
        edges, kind = (low, "highpass") if high is None else ((low, high), "bandpass")
        taper = self.taper if self.beta is None else (self.taper, self.beta)
        taps = scipy.signal.firwin(self.taps, edges, pass_zero=kind, window=taper, fs=rate)
        if self.delayed:
            return scipy.signal.lfilter(taps, 1.0, x, axis=-1)
        return _both_ways(taps, x)


def moving_average(x: np.ndarray, seconds: float, rate: float) -> np.ndarray:
    """x forward and backward through the mean of round(seconds · rate) samples, as pyPPG smooths: a
    triangular kernel without lag. Fewer than two samples: x itself.
    """
    k = round(seconds * rate)
    return _both_ways(np.full(k, 1 / k), x) if k > 1 else x


def less_median(x: np.ndarray, seconds: float, rate: float) -> np.ndarray:
    """x without its running median over int(seconds · rate) + 1 samples, made odd, with zeros beyond the
    ends: the baseline as ECGFounder removes it (`scipy.signal.medfilt`).
    """
    k = int(seconds * rate) + 1
    k += k % 2 == 0
    size = (1,) * (x.ndim - 1) + (k,)
    return x - scipy.ndimage.median_filter(x, size=size, mode="constant", cval=0.0)


def _both_ways(taps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`filtfilt` with its odd padding of three times the taps, shortened for short windows."""
    padding = min(3 * len(taps), x.shape[-1] - 1)
    return scipy.signal.filtfilt(taps, 1.0, x, axis=-1, padlen=padding)
