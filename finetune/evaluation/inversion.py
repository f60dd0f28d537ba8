"""How much of a waveform decoders recover from its vector, of people whom they never saw.

Two targets: the prepared waveform itself, and its log amplitude spectrum, which a vector can keep even where
it has lost the phase. Two decoders: ridge, and a small network. Two controls: the mean of the training
windows, which needs no vector, and the same decoder given another subject's vector.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datasets.signal import Signal
from finetune.evaluation.results import Result
from finetune.metrics import Interval, draw_weights, interval, mean_interval
from finetune.probe import Folds, Scaler, inner_folds

WAVE_S = 10.0  # a longer window is inverted over its first so many seconds
SPECTRUM_S = 8.0
TOP_HZ = 40.0  # of a spectrum without an upper band limit
ALPHAS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
STEPS, EVERY, BATCH, WIDTH = 300, 20, 128, 256  # the network's whole budget, on a processor

Band = tuple[float, float | None]
Decoder = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Decoder]


def waveform(prepared_nt: np.ndarray, rate: float) -> np.ndarray:
    """(n, T') float32 of prepared windows (n, T): the first WAVE_S seconds, each of zero mean and unit SD."""
    x = np.asarray(prepared_nt, np.float64)[:, : max(round(WAVE_S * rate), 1)]
    x = x - x.mean(1, keepdims=True)
    spread = x.std(1, keepdims=True)
    return np.asarray(x / np.where(spread > 0, spread, 1), np.float32)


def frequencies(samples: int, rate: float, band: Band | None) -> np.ndarray:
    """(F,) Hz inside `band` of the spectrum of windows of so many samples."""
    freq = np.fft.rfftfreq(min(samples, round(SPECTRUM_S * rate)), 1 / rate)
    return freq[_inside(freq, rate, band)]


def _inside(freq: np.ndarray, rate: float, band: Band | None) -> np.ndarray:
    low, high = band or (0.0, None)
    top = min(high or TOP_HZ, rate / 2)
    return np.asarray((freq > 0) & (freq >= low - 1e-9) & (freq <= top + 1e-9))


def spectrum(prepared_nt: np.ndarray, rate: float, band: Band | None) -> np.ndarray:
    """(n, F) log10 amplitude at `frequencies` by Welch's method over the whole window at zero mean and unit
    SD (Hann segments of SPECTRUM_S, half overlapped).
    """
    from scipy.signal import welch

    x = np.asarray(prepared_nt, np.float64)
    x = x - x.mean(1, keepdims=True)
    spread = x.std(1, keepdims=True)
    segment = min(x.shape[1], round(SPECTRUM_S * rate))
    freq, power = welch(x / np.where(spread > 0, spread, 1), rate, nperseg=segment)
    return np.asarray(0.5 * np.log10(power[:, _inside(freq, rate, band)] + 1e-8), np.float32)


# ---------------------------------------------------------------- decoders


def fit_ridge(x_nd: np.ndarray, y_nt: np.ndarray, subject_n: np.ndarray, seed: int) -> Decoder:
    """StandardScaler → multi-output ridge; one α for all outputs, by squared error over inner
    subject-disjoint folds.
    """
    error = np.zeros(len(ALPHAS))
    for train, test in inner_folds(subject_n, 5, seed):
        decode = _ridge(x_nd[train], y_nt[train])
        error += [np.square(decode(x_nd[test], alpha) - y_nt[test]).sum() for alpha in ALPHAS]
    alpha, decode = ALPHAS[int(np.argmin(error))], _ridge(x_nd, y_nt)
    return lambda x: decode(x, alpha)


def _ridge(x_nd: np.ndarray, y_nt: np.ndarray) -> Callable[[np.ndarray, float], np.ndarray]:
    scaler, offset = Scaler(x_nd), y_nt.mean(0, dtype=np.float64)
    x = scaler(x_nd)
    eigen_d, basis_dd = np.linalg.eigh(x.T @ x)
    projected = basis_dd.T @ (x.T @ (y_nt - offset))
    return lambda given, alpha: (
        scaler(given) @ basis_dd @ (projected / (np.maximum(eigen_d, 0) + alpha)[:, None]) + offset
    )


def fit_network(x_nd: np.ndarray, y_nt: np.ndarray, subject_n: np.ndarray, seed: int) -> Decoder:
    """Linear → GELU → Linear → GELU → Linear, AdamW, a fixed number of steps; of the states at every
    EVERY steps it keeps the one that is best on a fifth of the training subjects.
    """
    import torch
    from torch import nn

    learn, check = inner_folds(subject_n, 5, seed)[0]
    scaler, offset = Scaler(x_nd[learn]), y_nt[learn].mean(0, dtype=np.float64)
    scale = float((y_nt[learn] - offset).std()) or 1.0

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array, np.float32))

    x, y = tensor(scaler(x_nd)), tensor((y_nt - offset) / scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Linear(x.shape[1], WIDTH), nn.GELU(), nn.Dropout(0.2)
        second = nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.2)
        net = nn.Sequential(*first, *second, nn.Linear(WIDTH, y.shape[1]))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
        best, state = np.inf, {}
        for step in range(STEPS + 1):
            if step % EVERY == 0:
                net.eval()
                with torch.inference_mode():
                    error = float((net(x[check]) - y[check]).square().mean())
                if error < best:
                    best, state = error, {k: v.clone() for k, v in net.state_dict().items()}
                net.train()
            picked = torch.from_numpy(learn)[torch.randint(len(learn), (BATCH,))]
            loss = (net(x[picked]) - y[picked]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.load_state_dict(state)
    net.eval()

    def decode(given: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(net(tensor(scaler(given))).double().numpy() * scale + offset)

    return decode


DECODERS: dict[str, Fit] = {"ridge": fit_ridge, "network": fit_network}


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Recovery(Result):
    """How close predictions are: correlation, mean absolute error, share of the variance explained."""

    r: Interval
    mae: Interval
    explained: Interval


@dataclass(frozen=True)
class InversionResult(Result):
    """`rows`: of the controls ("mean", "ridge, shuffled" …) and decoders; `gain_r`: {decoder: gain of r over
    its shuffled control, paired over the drawn subjects}.
    """

    rows: Mapping[str, Recovery]
    gain_r: Mapping[str, Interval]

    @property
    def best(self) -> str:
        """The decoder of the highest r."""
        return max(self.gain_r, key=lambda name: self.rows[name].r.value)


@dataclass(frozen=True)
class Inverted:
    """(n, T) out-of-fold predictions: `mean` of the training windows; of each decoder from the right vector
    (`decoded`) and from one of another subject (`shuffled`).
    """

    mean: np.ndarray
    decoded: dict[str, np.ndarray]
    shuffled: dict[str, np.ndarray]


@dataclass(frozen=True)
class Inversion:
    """One target: `axis` (T,) in s or Hz, `truth` (n, T), what decoders made of the vectors, and how close it
    is.
    """

    axis: np.ndarray
    truth: np.ndarray
    found: Inverted
    result: InversionResult


# ---------------------------------------------------------------- out of fold


def inversions(
    x_nd: np.ndarray,
    targets: Mapping[str, Mapping[str, np.ndarray]],
    signals: Sequence[Signal],
    subject_n: np.ndarray,
    folds: Folds,
    seed: int,
) -> dict[str, dict[str, Inversion]]:
    """{modality: {"waveform" or "spectrum": …}} of the same keys in `targets`, (n, T) each."""
    found: dict[str, dict[str, Inversion]] = {}
    for signal in signals:
        aims = targets[signal.modality]
        samples = aims["waveform"].shape[1]
        axes = {
            "waveform": np.arange(samples) / signal.rate,
            "spectrum": frequencies(samples, signal.rate, signal.band),
        }
        found[signal.modality] = {}
        for name, truth in aims.items():
            inverted = invert(x_nd, truth, subject_n, folds, seed)
            result = table(truth, inverted, subject_n, seed)
            found[signal.modality][name] = Inversion(axes[name], truth, inverted, result)
    return found


def invert(x_nd: np.ndarray, y_nt: np.ndarray, subject_n: np.ndarray, folds: Folds, seed: int) -> Inverted:
    """Decode every window by decoders fitted on the training subjects of its fold."""
    other = another_subject(subject_n, seed)
    mean = np.zeros(y_nt.shape)
    decoded = {name: np.zeros(y_nt.shape) for name in DECODERS}
    shuffled = {name: np.zeros(y_nt.shape) for name in DECODERS}
    for train, test in folds:
        mean[test] = y_nt[train].mean(0, dtype=np.float64)
        for name, fit in DECODERS.items():
            decode = fit(x_nd[train], y_nt[train], subject_n[train], seed)
            decoded[name][test], shuffled[name][test] = decode(x_nd[test]), decode(x_nd[other[test]])
    return Inverted(mean, decoded, shuffled)


def another_subject(subject_n: np.ndarray, seed: int) -> np.ndarray:
    """(n,) for each window the number of a drawn window of somebody else."""
    rng = np.random.default_rng([seed, 0x5AFF])
    found = np.zeros(len(subject_n), int)
    for name in np.unique(subject_n):
        mine = subject_n == name
        found[mine] = rng.choice(np.flatnonzero(~mine), int(mine.sum()))
    return found


def pearson(y_nt: np.ndarray, p_nt: np.ndarray) -> np.ndarray:
    """(n,) correlation of each row with its prediction; 0 where either does not vary."""
    y, p = (a - a.mean(1, keepdims=True, dtype=np.float64) for a in (y_nt, p_nt))
    size = np.sqrt((y**2).sum(1) * (p**2).sum(1))
    return np.where(size > 1e-12, (y * p).sum(1) / np.where(size > 1e-12, size, 1), 0.0)


def per_subject(y_nt: np.ndarray, p_nt: np.ndarray, mean_nt: np.ndarray, subject_n: np.ndarray) -> np.ndarray:
    """(subjects, 4) means over each subject's windows: r, MAE, squared error, squared error of the mean."""
    columns = (
        pearson(y_nt, p_nt),
        np.abs(y_nt - p_nt).mean(1),
        np.square(y_nt - p_nt).mean(1),
        np.square(y_nt - mean_nt).mean(1),
    )
    _, group = np.unique(subject_n, return_inverse=True)
    return np.stack([np.bincount(group, weights=c) for c in columns], 1) / np.bincount(group)[:, None]


def metrics_of(means: np.ndarray) -> dict[str, np.ndarray]:
    """Of (..., 4) means over subjects: r, MAE, and the share of the variance about the mean of the training
    windows that is explained (negative: worse than that mean).
    """
    r, mae, squared, squared_mean = np.moveaxis(means, -1, 0)
    return {"r": r, "mae": mae, "explained": 1 - squared / np.maximum(squared_mean, 1e-300)}


def summary(subjects_k: np.ndarray, weights: np.ndarray) -> Recovery:
    """Each metric with its interval over drawn subjects; every subject counts the same."""
    point = metrics_of(subjects_k.mean(0))
    drawn = metrics_of(weights @ subjects_k / weights.sum(1, keepdims=True))
    return Recovery(**{name: interval(np.append(point[name], drawn[name])) for name in point})


def table(y_nt: np.ndarray, found: Inverted, subject_n: np.ndarray, seed: int) -> InversionResult:
    """Figures of the controls and decoders."""
    rows = {"mean": found.mean}
    for name in DECODERS:
        rows |= {name: found.decoded[name], f"{name}, shuffled": found.shuffled[name]}
    sums = {name: per_subject(y_nt, p, found.mean, subject_n) for name, p in rows.items()}
    weights = draw_weights(len(sums["mean"]), seed=seed)
    gains = {}
    for name in DECODERS:
        gain = (sums[name] - sums[f"{name}, shuffled"])[:, 0]
        gains[name] = mean_interval(gain, weights)
    return InversionResult({name: summary(s, weights) for name, s in sums.items()}, gains)
