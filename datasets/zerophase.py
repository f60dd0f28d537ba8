"""Zero-phase IIR filtering and Fourier resampling of many windows in two transforms, equal to scipy's.

`sosfiltfilt` runs a recursion over every sample twice. It is linear, and differs from the *circular*
zero-phase filter (multiply the window's spectrum by |H|²) only through the initial states of the recursion:
the 2k state values at each end of a filter of order 2k. So over windows of one length

    resample(sosfiltfilt(x)) = irfft(|H|² · rfft(x), cut to the new length) + U (V x)

with U (samples out, 4k) and V (4k, samples in) computed once. Both sides agree to rounding (tests compare
them). This holds for any cascade of sections: band-pass, high-pass, notch, or several in one pass.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # its parts load on first use: processes that only plan or pass on windows start sooner


@dataclass(frozen=True)
class ZeroPhase:
    """Applies a filter and a change of rate to windows of `n` samples, giving `m`."""

    n: int
    m: int
    gain: np.ndarray  # |H|² with the resampling factor, at the kept frequencies
    u: np.ndarray  # (states, m)
    head: np.ndarray  # V without the rows that are zero to rounding: (samples from the start, states)
    tail: np.ndarray  # the same from the end

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x: (…, n) float64 → (…, m). A window's result does not depend on what it is batched with, bit for
        bit: products run window by window (a stack of matmuls), so resuming with other blocks changes
        nothing.
        """
        spectrum = scipy.fft.rfft(x, axis=-1)[..., : len(self.gain)]
        spectrum *= self.gain
        edges = x[..., None, : len(self.head)] @ self.head
        if len(self.tail):
            edges = edges + x[..., None, -len(self.tail) :] @ self.tail
        y = scipy.fft.irfft(spectrum, self.m, axis=-1)
        y += (edges @ self.u)[..., 0, :]
        return y


NOTCH_Q = 30.0  # of the mains notch: its -3 dB width is a thirtieth of its frequency

Band = tuple[float, float | None]  # Hz; None: no upper end


@lru_cache(maxsize=64)
def sections(
    rate: float,
    band: Band | None,
    order: int,
    notch: float | None = None,
    attenuation: float | None = None,
) -> np.ndarray:
    """Second-order sections of one cascade: a Butterworth of `order`, or with `attenuation` a Chebyshev II
    whose stop band that many dB down starts at the edges (band-pass, or high-pass if the band has no upper
    end), then a notch (`scipy.signal.iirnotch`, Q 30) at `notch` Hz.
    """
    parts = []
    if band is not None:
        low, high = band
        edges, kind = (low, "highpass") if high is None else ((low, high), "bandpass")
        if attenuation is None:
            parts.append(scipy.signal.butter(order, edges, btype=kind, fs=rate, output="sos"))
        else:
            parts.append(scipy.signal.cheby2(order, attenuation, edges, btype=kind, fs=rate, output="sos"))
    if notch is not None:
        parts.append(scipy.signal.tf2sos(*scipy.signal.iirnotch(notch, NOTCH_Q, fs=rate)))
    return np.concatenate(parts)


@lru_cache(maxsize=16)
def design(
    rate: float, band: Band | None, order: int, n: int, m: int, notch: float | None = None
) -> ZeroPhase:
    """The filter for windows of `n` samples at `rate` Hz, with `sections`, resampled to `m`."""
    sos = sections(rate, band, order, notch)
    a, b, c, d = _state_space(sos)
    k = len(b)
    pad = padding(sos)
    still = np.linalg.solve(np.eye(k) - a, b)  # steady state for a constant input of 1
    powers = _powers(a, n)  # (n + 1, k, k): A^0 … A^n
    reach = powers[:n] @ b  # (n, k): A^j B, what an input j steps ago left in the state
    loop = np.linalg.inv(np.eye(k) - powers[n])  # sums over infinitely many turns of a circular signal

    # Every quantity below is a linear functional of x, written as its matrix (n, …).
    eye = np.eye(n, pad + 1)
    front = 2 * eye[:, :1] - eye[:, pad:0:-1]  # odd extension before x, in time order: (n, pad)
    z = front[:, :1] * still
    for j in range(pad):
        z = z @ a.T + front[:, j : j + 1] * b  # state at the first sample of x
    summed = reach[::-1]  # Σ A^(n-1-j) B x[j]
    delta0 = z - summed @ loop.T  # against the circular filter's state there

    eye = np.eye(n, pad + 1, k=pad + 1 - n)
    back = 2 * eye[:, -1:] - eye[:, -2::-1][:, :pad]  # odd extension after x
    s = z @ powers[n].T + summed  # forward state after the last sample of x
    tail = []
    for j in range(pad):
        tail.append(s @ c + back[:, j] * d)
        s = s @ a.T + back[:, j : j + 1] * b
    w = tail[-1][:, None] * still
    for j in reversed(range(pad)):
        w = w @ a.T + tail[j][:, None] * b  # backward state at the last sample of x

    frequency = np.exp(2j * np.pi * np.arange(n // 2 + 1) / n)
    h = c @ np.linalg.solve(
        frequency[:, None, None] * np.eye(k) - a, np.tile(b[:, None], (len(frequency), 1, 1))
    )
    h = h[:, 0] + d

    ring = powers[:n].transpose(0, 2, 1) @ c  # (n, k): a state's output j samples later
    # what the circular forward output, and its correction, add to the circular backward state
    from_x = scipy.fft.irfft(scipy.fft.rfft(reach, axis=0) * h.conj()[:, None], n, axis=0)
    delta1 = w - (from_x + delta0 @ (ring.T @ reach)) @ loop.T

    # ring, filtered backward
    ringing = scipy.fft.irfft(scipy.fft.rfft(ring, axis=0) * h.conj()[:, None], n, axis=0)
    u = np.concatenate([ringing, ring[::-1]], axis=1).T  # (2k, n)
    bins = min(n, m) // 2 + 1
    fold = np.ones(bins)
    if m != n and min(n, m) % 2 == 0:
        fold[-1] = 2.0 if m < n else 0.5  # the lower Nyquist bin, as scipy.signal.resample treats it
    fold *= m / n
    u = scipy.fft.irfft(scipy.fft.rfft(u, axis=-1)[:, :bins] * fold, m, axis=-1)
    v = np.concatenate([delta0, delta1], axis=1)
    # After so many samples the slowest pole's ringing is below 1e-17 of its start.
    lasts = pad + int(np.ceil(40 / -np.log(np.abs(np.linalg.eigvals(a)).max())))
    split = lasts if 2 * lasts < n else n
    return ZeroPhase(
        n, m, (np.abs(h) ** 2)[:bins] * fold, u, v[:split], v[n - lasts :] if split < n else v[:0]
    )


def padding(sos: np.ndarray) -> int:
    """`sosfiltfilt`'s default padding, in samples."""
    return int(3 * (2 * len(sos) + 1 - min((sos[:, 2] == 0).sum(), (sos[:, 5] == 0).sum())))


def _powers(a: np.ndarray, n: int) -> np.ndarray:
    out = np.empty((n + 1, *a.shape))
    out[0] = np.eye(len(a))
    done = 1
    while done <= n:  # doubling: A^(done + j) = A^done A^j
        step = min(done, n + 1 - done)
        out[done : done + step] = (out[done - 1] @ a) @ out[:step]
        done += step
    return out


def _state_space(sos: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """z' = A z + B u, y = C z + D u of a cascade of second-order sections (transposed direct form II)."""
    k = 2 * len(sos)
    a, b, c, d = np.zeros((k, k)), np.zeros(k), np.zeros(k), 1.0
    for i, (b0, b1, b2, _, a1, a2) in enumerate(sos):
        # this section's input is c z + d u of the sections before it
        for row, gain in ((2 * i, b1 - a1 * b0), (2 * i + 1, b2 - a2 * b0)):
            a[row] += gain * c
            b[row] = gain * d
        a[2 * i, 2 * i : 2 * i + 2] += (-a1, 1.0)
        a[2 * i + 1, 2 * i] += -a2
        c, d = b0 * c, b0 * d
        c[2 * i] += 1.0
    return a, b, c, d
