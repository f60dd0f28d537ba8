"""How close a rebuilt waveform is to the true one, and references that need no network.

n windows, T samples at one rate. Each window is z-scored before it is compared, as the networks see it: the
amplitude and offset of a pulse wave or of an ECG lead depend on the sensor, not on the beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.labels import qrs_energy
from finetune import probe
from finetune.evaluation.features import autocorrelation_rate

WORST_S = 0.5  # error of a beat that is missing or extra, at most
LAG_S = 0.4  # monitors delay one signal against the other by a constant up to about that
SUPPORT_S = 1.0  # of the mean beat, either side
PEAK_S = 0.08  # from where a complex has its energy to its R peak, at most
ALPHAS = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7)
METRICS = {
    "mae": "MAE of the z-scored signal",
    "pearson": "Pearson r",
    "pearson_lag": f"Pearson r at the best lag within {LAG_S:g} s",
    "timing_ms": "beat timing error, ms (to the nearest beat, both ways)",
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
    if modality == "ecg":  # the detector finds complexes; the R peak is the highest sample of one
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
            timing[i] = 1000 * (_off(a, b) + _off(b, a)) / 2
        if len(a) > 1 and len(b) > 1:
            heart[i] = abs(60 / np.median(np.diff(a)) - 60 / np.median(np.diff(b)))
    return {
        # the guess is not z-scored: an unsure one may stay near zero
        "mae": np.abs(true - guess_nt).mean(1),
        "pearson": r,
        "pearson_lag": near.max(1),
        "timing_ms": timing,
        "hr_bpm": heart,
    }


def _off(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance (s) of the beats of `a` from the nearest of `b`."""
    if not (len(a) and len(b)):
        return WORST_S
    return float(np.minimum(np.abs(a[:, None] - b[None, :]).min(1), WORST_S).mean())


@dataclass(frozen=True)
class MeanBeat:
    """A mean beat of the target, (2 · SUPPORT_S · rate + 1,), put `delay_s` after each beat of the source."""

    template: np.ndarray
    delay_s: float
    rate: float
    source: str

    @classmethod
    def around_source(cls, x_nt: np.ndarray, y_nt: np.ndarray, rate: float, source: str) -> MeanBeat:
        """The mean target around beats of the source: least squares, blurred where delays differ."""
        return cls(_mean_around([beats(x, rate, source) for x in x_nt], y_nt, rate), 0.0, rate, source)

    @classmethod
    def of_target(cls, x_nt: np.ndarray, y_nt: np.ndarray, rate: float, source: str, target: str) -> MeanBeat:
        """The mean beat of the target, aligned at its own beats, so that it stays sharp; put at the median
        delay of these beats from the nearest ones of the source.
        """
        given = [beats(x, rate, source) for x in x_nt]
        true = [beats(y, rate, target) for y in y_nt]
        gaps = [
            (b[:, None] - a[None, :])[np.arange(len(b)), np.abs(b[:, None] - a[None, :]).argmin(1)]
            for a, b in zip(given, true, strict=True)
            if len(a) and len(b)
        ]
        delay = float(np.median(np.concatenate(gaps))) if gaps else 0.0
        return cls(_mean_around(true, y_nt, rate), delay, rate, source)

    def __call__(self, x_nt: np.ndarray) -> np.ndarray:
        """(n, T): at each sample the template at its distance from the nearest beat; 0 without beats."""
        half, time = len(self.template) // 2, np.arange(x_nt.shape[1])
        out = np.zeros(x_nt.shape)
        for i in range(len(out)):
            at = np.round((beats(x_nt[i], self.rate, self.source) + self.delay_s) * self.rate)
            if len(at):
                offset = time[:, None] - at[None, :]
                near = offset[time, np.abs(offset).argmin(1)].astype(int) + half
                inside = (near >= 0) & (near < len(self.template))
                out[i] = np.where(inside, self.template[np.clip(near, 0, 2 * half)], 0.0)
        return out


def _mean_around(at_s: list[np.ndarray], y_nt: np.ndarray, rate: float) -> np.ndarray:
    """Mean of z-scored windows (n, T) within SUPPORT_S of the times given for each; samples outside a window
    are left out.
    """
    half = round(SUPPORT_S * rate)
    total, count = np.zeros(2 * half + 1), np.zeros(2 * half + 1)
    y = np.pad(zscored(y_nt), ((0, 0), (half, half)), constant_values=np.nan)
    for row, times in zip(y, at_s, strict=True):
        for at in np.round(times * rate).astype(int):
            part = row[at : at + 2 * half + 1]
            known = np.isfinite(part)
            total[known] += part[known]
            count[known] += 1
    return total / np.maximum(count, 1)


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
