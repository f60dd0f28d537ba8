"""SIGMA's windows (240 s, 0.5-8 Hz, 50 Hz): hours of waveform a core-second, ours against a per-window loop.

The loop is written as released pipelines do it: one window at a time, pandas interpolation over gaps, scipy
filter design and filtering, scipy resampling. Both run on one thread, on the same windows, interleaved.

    python -m tests.benchmarks.transform [--windows 60] [--rate 250] [--rounds 5]
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"
import time

import numpy as np
import pandas as pd
from scipy import signal as scipy_signal

from datasets.signal import Signal
from datasets.windows import transform
from tests.benchmarks.table import show

SIG = Signal(modality="ppg", rate=50.0, band=(0.5, 8.0))
WINDOW_S = 240.0


def loop(cuts: list[np.ndarray], rate: float, scale: float, offset: float) -> np.ndarray:
    """One window at a time."""
    out = []
    for cut in cuts:
        x = cut[:, 0].astype(float) * scale + offset
        x = pd.Series(x).interpolate(limit_direction="both").to_numpy()
        sos = scipy_signal.butter(2, [0.5, 8.0], btype="bandpass", fs=rate, output="sos")
        x = scipy_signal.sosfiltfilt(sos, x)
        x = scipy_signal.resample(x, round(len(x) * 50 / rate))
        out.append(x.astype(np.float32)[None])
    return np.stack(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    rows, met = [], True
    for rate in (125.0, 250.0):
        n = round(WINDOW_S * rate)
        t = np.arange(n) / rate
        cuts = [
            (8000 * np.sin(2 * np.pi * f * t) + rng.normal(0, 500, n)).astype("<i2")[:, None]
            for f in rng.uniform(0.8, 2, given.windows)
        ]
        one = np.ones(given.windows)
        times: dict[str, list[float]] = {"batched": [], "loop": []}
        for _ in range(given.rounds):
            began = time.process_time()
            ours = np.empty((given.windows, 1, round(WINDOW_S * SIG.rate)), np.float32)
            transform(cuts, one * rate, one * 1e-3, one * 0.5, SIG, ours, np.arange(given.windows))
            middle = time.process_time()
            theirs = loop(cuts, rate, 1e-3, 0.5)
            times["batched"].append(middle - began)
            times["loop"].append(time.process_time() - middle)
        best = {name: min(values) for name, values in times.items()}
        hours = given.windows * WINDOW_S / 3600
        ratio = best["loop"] / best["batched"]
        rows.append(
            {
                "native Hz": rate,
                "batched h/core-s": hours / best["batched"],
                "loop h/core-s": hours / best["loop"],
                "ms a window": 1e3 * best["batched"] / given.windows,
                "ratio": ratio,
                "largest difference": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
            }
        )
        met = met and ratio >= 3.5
    show("transform", rows, {"at least 3.5 times the per-window loop": met})


if __name__ == "__main__":
    main()
