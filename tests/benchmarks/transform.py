"""Hours of waveform a core-second, ours against a per-window loop.

sigma: 240 s of PPG, 0.5-8 Hz, 50 Hz. anyppg: 10 s of PPG (0.5-8 Hz, order 3, 125 Hz) and of ECG (0.5-Hz
high-pass of order 5, notch, 500 Hz, turned upright), and what its index costs (the same, with the gates).

The loop is written as released pipelines do it: one window at a time, pandas interpolation over gaps, scipy
filter design and filtering, scipy resampling; the upright rule and the gates, which are ours, in the loop are
calls with one window. Both run on one thread, on the same windows, interleaved.

    python -m tests.benchmarks.transform [--spec anyppg] [--windows 60] [--rounds 5]
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"
import time

import numpy as np
import pandas as pd
from scipy import signal as scipy_signal

from datasets import ecg
from datasets.signal import Signal
from datasets.windows import WindowSpec, transform, verdicts
from tests.benchmarks.table import show

SIGMA = (Signal(modality="ppg", rate=50.0, band=(0.5, 8.0)),)
ANYPPG = (
    Signal(modality="ppg", rate=125.0, band=(0.5, 8.0), order=3),
    Signal(
        modality="ecg",
        rate=500.0,
        band=(0.5, None),
        order=5,
        notch=50.0,
        upright=True,
        max_flat=0.25,
        gate="ecg",
    ),
)
SPECS = {
    "sigma": WindowSpec(signals=SIGMA, window_s=240.0),
    "anyppg": WindowSpec(signals=ANYPPG, window_s=10.0),
}


def loop(cuts: list[np.ndarray], rate: float, scale: float, offset: float, sig: Signal) -> np.ndarray:
    """One window at a time."""
    out = []
    for cut in cuts:
        x = cut[:, 0].astype(float) * scale + offset
        x = pd.Series(x).interpolate(limit_direction="both").to_numpy()
        assert sig.band is not None
        edges, kind = (sig.band, "bandpass") if sig.band[1] else (sig.band[0], "highpass")
        sos = scipy_signal.butter(sig.order, edges, btype=kind, fs=rate, output="sos")
        if sig.notch:
            notch = scipy_signal.tf2sos(*scipy_signal.iirnotch(sig.notch, 30, fs=rate))
            sos = np.concatenate([sos, notch])
        x = scipy_signal.sosfiltfilt(sos, x)
        x = scipy_signal.resample(x, round(len(x) * sig.rate / rate))
        if sig.upright and ecg.inverted(x, sig.rate):
            x = -x
        out.append(x.astype(np.float32)[None])
    return np.stack(out)


def judge(cuts: list[np.ndarray], rate: float, windows: np.ndarray, sig: Signal, spec: WindowSpec) -> None:
    """What the index does with prepared windows."""
    x = np.stack(cuts).transpose(0, 2, 1)
    verdicts(windows, sig, spec, ecg.flat_share(x, rate).max(axis=1))


def waves(rng: np.random.Generator, n: int, rate: float, many: int) -> list[np.ndarray]:
    """int16 windows (n, 1): beats of about the shape of a PPG's and an ECG's together, drift and noise."""
    t = np.arange(n) / rate
    out = []
    for f in rng.uniform(0.8, 2, many):
        x = 4000 * np.sin(2 * np.pi * f * t) + 8000 * np.exp(-0.5 * ((t % (1 / f) - 0.3) / 0.012) ** 2)
        out.append((x + rng.normal(0, 500, n)).astype("<i2")[:, None])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", choices=tuple(SPECS), default="sigma")
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    spec, many = SPECS[given.spec], given.windows
    rng = np.random.default_rng(0)
    rows, met = [], True
    for rate in (125.0, 250.0):
        cuts = waves(rng, round(spec.window_s * rate), rate, many)
        one, best = np.ones(many), dict.fromkeys(("batched", "loop", "index", "index loop"), 0.0)
        difference = 0.0
        for sig in spec.signals:
            times: dict[str, list[float]] = {name: [] for name in best}
            for _ in range(given.rounds):
                ours = np.empty((many, 1, round(spec.window_s * sig.rate)), np.float32)
                marks = [time.process_time()]
                transform(cuts, one * rate, one * 1e-3, one * 0.5, sig, ours, np.arange(many))
                marks.append(time.process_time())
                theirs = loop(cuts, rate, 1e-3, 0.5, sig)
                marks.append(time.process_time())
                judge(cuts, rate, ours, sig, spec)
                marks.append(time.process_time())
                for i in range(many):
                    judge(cuts[i : i + 1], rate, theirs[i : i + 1], sig, spec)
                marks.append(time.process_time())
                batched, looped, judged, one_by_one = np.diff(marks).tolist()
                new = (batched, looped, batched + judged, looped + one_by_one)
                for name, value in zip(best, new, strict=True):
                    times[name].append(value)
            best = {name: total + min(times[name]) for name, total in best.items()}
            difference = max(difference, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        hours = many * spec.window_s / 3600
        ratio = best["loop"] / best["batched"]
        rows.append(
            {
                "native Hz": rate,
                "batched h/core-s": hours / best["batched"],
                "loop h/core-s": hours / best["loop"],
                "ms a window": 1e3 * best["batched"] / many,
                "ratio": ratio,
                "index h/core-s": hours / best["index"],
                "index loop h/core-s": hours / best["index loop"],
                "largest difference": difference,
            }
        )
        met = met and ratio >= 3.5
    title = "transform" if given.spec == "sigma" else f"transform {given.spec}"
    show(title, rows, {"at least 3.5 times the per-window loop": met})


if __name__ == "__main__":
    main()
