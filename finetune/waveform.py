"""How close a rebuilt waveform is to the true one, and two references that know no network.

n windows, T samples at one rate. What is compared is z-scored a window, as the networks see it: amplitude and
offset of a pulse wave or of an ECG lead carry the sensor, not the beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.labels import qrs_energy
from finetune import probe
from finetune.features import autocorrelation_rate

WORST_S = 0.5  # counts for a beat that is nowhere near
LAG_S = 0.4  # monitors delay one signal against the other by a constant up to about that
SUPPORT_S = 1.0  # of the mean beat, either side
PEAK_S = 0.08  # from where a complex has its energy to its R peak, at most
ALPHAS = (1e1, 1e2, 1e3, 1e4, 1e5)
METRICS = {
    "mae": "MAE of the z-scored signal",
    "pearson": "Pearson r",
    "pearson_lag": f"Pearson r at the best lag within {LAG_S:g} s",
    "timing_ms": f"beat timing error, ms (a missing beat counts {1000 * WORST_S:g})",
    "hr_bpm": "heart rate error, bpm",
}


def zscored(x_nt: np.ndarray) -> np.ndarray:
    """(n, T) float64 of zero mean and unit variance; 1e-5 as in the networks, so a flat window is zeros."""
    x = np.asarray(x_nt, np.float64)
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-5)


def beats(x_t: np.ndarray, rate: float, modality: str) -> np.ndarray:
    """Times (s) of R peaks of an ECG, of the steepest rises of a pulse wave."""
    from scipy.signal import find_peaks

    x = np.asarray(x_t, np.float64)
    if modality == "ecg":  # the detector tells complexes; the R peak is the highest sample of one
        at = np.round(qrs_energy(x, rate) * rate).astype(int)
        near = np.arange(-round(PEAK_S * rate), round(PEAK_S * rate) + 1)
        places = np.clip(at[:, None] + near, 0, len(x) - 1)
        return places[np.arange(len(at)), x[places].argmax(1)] / rate
    bpm = autocorrelation_rate(x[None], rate)[0][0]
    rise = np.gradient(x)
    apart = max(1, int(0.55 * 60 * rate / (bpm if np.isfinite(bpm) else 120.0)))
    return find_peaks(rise, distance=apart, height=0.35 * float(np.percentile(rise, 98)))[0] / rate


def scores(true_nt: np.ndarray, guess_nt: np.ndarray, rate: float, modality: str) -> dict[str, np.ndarray]:
    """{metric: (n,)} of z-scored windows; NaN where a window has none (a rate from fewer than two beats)."""
    true, guess = zscored(true_nt), zscored(guess_nt)
    t, lag = true.shape[1], round(LAG_S * rate)
    r = (true * guess).mean(1)
    cross = np.fft.irfft(np.fft.rfft(true) * np.fft.rfft(guess).conj(), t) / t
    near = np.concatenate([cross[:, : lag + 1], cross[:, t - lag :]], axis=1)
    timing, heart = np.full(len(true), np.nan), np.full(len(true), np.nan)
    for i in range(len(true)):
        a, b = beats(true[i], rate, modality), beats(guess[i], rate, modality)
        if len(a):
            gaps = np.abs(a[:, None] - b[None, :]).min(1) if len(b) else np.full(len(a), np.inf)
            timing[i] = 1000 * np.minimum(gaps, WORST_S).mean()
        if len(a) > 1 and len(b) > 1:
            heart[i] = abs(60 / np.median(np.diff(a)) - 60 / np.median(np.diff(b)))
    return {
        # the guess as it is: one that is sure of nothing may say little
        "mae": np.abs(true - guess_nt).mean(1),
        "pearson": r,
        "pearson_lag": near.max(1),
        "timing_ms": timing,
        "hr_bpm": heart,
    }


@dataclass(frozen=True)
class MeanBeat:
    """The mean target around a beat of the source, (2 · SUPPORT_S · rate + 1,), put at every beat."""

    template: np.ndarray
    rate: float
    source: str

    @classmethod
    def fit(cls, x_nt: np.ndarray, y_nt: np.ndarray, rate: float, source: str) -> MeanBeat:
        """The mean over all beats of all windows (n, T), what lies outside a window left out."""
        half = round(SUPPORT_S * rate)
        total, count = np.zeros(2 * half + 1), np.zeros(2 * half + 1)
        y = np.pad(zscored(y_nt), ((0, 0), (half, half)), constant_values=np.nan)
        for i in range(len(y)):
            for at in np.round(beats(x_nt[i], rate, source) * rate).astype(int):
                part = y[i, at : at + 2 * half + 1]
                known = np.isfinite(part)
                total[known] += part[known]
                count[known] += 1
        return cls(total / np.maximum(count, 1), rate, source)

    def __call__(self, x_nt: np.ndarray) -> np.ndarray:
        """(n, T): at each sample the template at its distance from the nearest beat; 0 without beats."""
        half, time = len(self.template) // 2, np.arange(x_nt.shape[1])
        out = np.zeros(x_nt.shape)
        for i in range(len(out)):
            at = np.round(beats(x_nt[i], self.rate, self.source) * self.rate)
            if len(at):
                offset = time[:, None] - at[None, :]
                nearest = offset[time, np.abs(offset).argmin(1)].astype(int)
                out[i] = np.where(
                    np.abs(nearest) <= half, self.template[np.clip(nearest + half, 0, 2 * half)], 0
                )
        return out


@dataclass(frozen=True)
class Ridge:
    """Ridge regression from the whole source window to the whole target window, (T, T)."""

    weights: np.ndarray
    offset: np.ndarray
    alpha: float

    @classmethod
    def fit(cls, x_nt: np.ndarray, y_nt: np.ndarray, subject_n: np.ndarray, seed: int) -> Ridge:
        """α by the squared error on held-out subjects of these."""
        x, y = zscored(x_nt), zscored(y_nt)
        train, test = probe.inner_folds(subject_n, 5, seed)[0]
        error = []
        for weights, offset in _solve(x[train], y[train], ALPHAS):
            error.append(((x[test] @ weights + offset - y[test]) ** 2).mean())
        alpha = ALPHAS[int(np.argmin(error))]
        return cls(*_solve(x, y, (alpha,))[0], alpha)

    def __call__(self, x_nt: np.ndarray) -> np.ndarray:
        return zscored(x_nt) @ self.weights + self.offset


def _solve(x: np.ndarray, y: np.ndarray, alphas: tuple[float, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weights, offset) for each α from one eigendecomposition."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    eigen, basis = np.linalg.eigh(centred.T @ centred)
    projected = basis.T @ (centred.T @ (y - mean_y))
    found = []
    for alpha in alphas:
        weights = basis @ (projected / (np.maximum(eigen, 0) + alpha)[:, None])
        found.append((weights, mean_y - mean_x @ weights))
    return found
