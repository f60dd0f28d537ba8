"""Images a second a core of each transform, ours against a float64 loop over samples, in one run.

The loop is NumPy and scipy's STFT, a window at a time, as released pipelines do it (theirs is torch's, in
float32); 30 s at 40 Hz with the paper's constants. Both run on one thread, on the same windows, a tenth of a
second in turn, each at its best; the largest difference between their images is shown. Memory: what
recurrence of 64 windows takes beyond the process, in one of its own, and how much of that is the result.

    python -m tests.benchmarks.imaging [--windows 256] [--seconds 5]
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import signal

from finetune.imaging import TRANSFORMS, Imaging, Transform, images
from tests.benchmarks.table import ROOT, show

GOALS = {"stft": 5.0, "complex": 5.0, "recurrence": 2.0}
BEYOND_MB = 64.0  # most that recurrence may take beyond its result


def zscore(v: np.ndarray) -> np.ndarray:
    return (v - v.mean()) / (v.std(ddof=1) + 1e-6)


def one(x: np.ndarray, name: Transform, c: Imaging) -> np.ndarray:
    """(T,) float64 -> (3, H, W) float32."""
    if name == "recurrence":
        first = np.diff(x, prepend=x[0])
        planes = []
        for v in (x, first, np.diff(first, prepend=first[0])):
            z = zscore(v[:: c.stride])
            planes.append(zscore(np.exp(-((z[:, None] - z) ** 2) / (2 * c.sigma**2))))
        return np.stack(planes).astype(np.float32)
    window = signal.get_window("hann", c.n_fft)
    overlap = c.n_fft - c.hop
    _, _, found = signal.stft(
        x, window=window, nperseg=c.n_fft, noverlap=overlap, boundary="even", padded=False
    )
    found = found * window.sum()
    if name == "stft":
        power = 10 * np.log10(np.abs(found) ** 2 + c.eps)
        return np.repeat(zscore(np.maximum(power, power.max() - 80))[None], 3, axis=0).astype(np.float32)
    size, phase = 20 * np.log10(np.abs(found) + c.eps), np.angle(found)
    planes = [zscore(np.maximum(size, size.max() - 80)), zscore(np.cos(phase)), zscore(np.sin(phase))]
    return np.stack(planes).astype(np.float32)


def looped(x: np.ndarray, name: Transform, c: Imaging) -> np.ndarray:
    return np.stack([one(row, name, c) for row in x])


def waves(many: int, samples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    t = np.arange(samples) / 40.0
    beats = np.sin(2 * np.pi * rng.uniform(0.8, 2, (many, 1)) * t)
    return (beats + 0.3 * beats**2 + rng.normal(0, 0.05, (many, samples))).astype(np.float32)


def timed(work: Callable[[], object], at_least: float = 0.1) -> list[float]:
    """Processor seconds of each run, run after run for `at_least`: a stream of batches has the memory and the
    caches of the batch before, which the first run after other work has not."""
    runs: list[float] = []
    while sum(runs) < at_least:
        start = time.process_time()
        work()
        runs.append(time.process_time() - start)
    return runs


def peak() -> dict[str, float]:
    """MB of recurrence at batch 64: what the process grew by at most, and the result's own share."""
    x, c = torch.from_numpy(waves(64, 1200)), Imaging(transform="recurrence")
    images(x[:1], c)
    before = _highest()
    (found,) = images(x, c)
    return {"grew": _highest() - before, "result": found.pixels.numel() * 4 / 2**20}


def _highest() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=256, help="of recurrence a quarter")
    parser.add_argument("--seconds", type=float, default=5.0, help="of rounds a transform (default 5)")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        print(json.dumps(peak()))
        return
    drawn = waves(given.windows, 1200)
    rows, goals = [], {}
    for name in TRANSFORMS:
        c = Imaging(transform=name)
        many = max(1, given.windows // 4) if name == "recurrence" else given.windows
        x, x64 = torch.from_numpy(drawn[:many]), drawn[:many].astype(np.float64)
        ours: list[float] = []
        theirs: list[float] = []
        while sum(ours) + sum(theirs) < given.seconds:
            ours += timed(partial(images, x, c))
            theirs += timed(partial(looped, x64, name, c))
        ratio = min(theirs) / min(ours)
        (found,), expected = images(x, c), looped(x64, name, c)
        rows.append(
            {
                "transform": name,
                "size": "x".join(map(str, found.pixels.shape[2:])),
                "images/core-s": many / min(ours),
                "loop images/core-s": many / min(theirs),
                "ratio": ratio,
                "largest difference": float(np.abs(found.pixels.numpy() - expected).max()),
            }
        )
        goals[f"{name}: at least {GOALS[name]:g} times the float64 loop"] = ratio >= GOALS[name]
    command = [sys.executable, "-m", "tests.benchmarks.imaging", "--peak"]
    memory = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    goals[f"recurrence takes its result and at most {BEYOND_MB:g} MiB more"] = (
        memory["grew"] - memory["result"] <= BEYOND_MB
    )
    for row in rows:
        mine = row["transform"] == "recurrence"
        row["peak MiB at 64"] = f"{memory['grew']:.0f}, result {memory['result']:.0f}" if mine else ""
    show("imaging", rows, goals)


if __name__ == "__main__":
    main()
