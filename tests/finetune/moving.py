"""Synthetic wrist recordings on a treadmill: two PPG channels and an accelerometer with known heart rate and
motion. The tracker's constants were chosen on them.
"""

from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, sosfiltfilt

from datasets import physiology
from datasets.signal import prepare
from finetune.evaluation.choose import TRACKED

RATE = 125.0  # Hz
AXES = 3


@dataclass(frozen=True)
class Run:
    """ppg (2, T) and acc (3, T, in g) at RATE; beats: their times in s."""

    ppg: np.ndarray
    acc: np.ndarray
    beats: np.ndarray

    def windows(
        self, window_s: float = 8.0, hop_s: float = 2.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Starts in s, PPG and acceleration as the tracker takes them, and true rates of all windows."""
        count = round(window_s * RATE)
        start = np.arange(0, self.ppg.shape[1] / RATE - window_s + 1e-9, hop_s)
        cuts = [slice(a, a + count) for a in np.round(start * RATE).astype(int)]
        ppg, acc = (
            prepare(np.stack([x[:, cut] for cut in cuts]), RATE, signal)
            for x, signal in zip((self.ppg, self.acc), TRACKED, strict=True)
        )
        return start, ppg, acc, physiology.mean_rate(self.beats, start, start + window_s)


def run(
    rng: np.random.Generator,
    hr: np.ndarray,
    steps: np.ndarray,
    artefact: float,
    own: bool = False,
) -> Run:
    """A run of len(hr) s: heart rate (beats a minute) and step frequency (Hz, 0 at rest) of each second.

    artefact: its SD in SDs of the pulse. An arm swings at half the step frequency; the accelerometer holds
    four harmonics of it. The artefact is a sum of delayed axes with a slowly changing gain or, with `own`,
    has harmonics and phases of its own; some of it the accelerometer does not see at all.
    """
    seconds = len(hr)
    t1 = np.arange(-physiology.PAD_S, seconds + physiology.PAD_S + 1)
    at = np.clip(t1.astype(int), 0, seconds - 1)
    pace, zero = steps[at], np.zeros(len(t1))
    who = physiology.person(rng, 0, 0)
    breath = np.concatenate(([0], np.cumsum(np.full(len(t1) - 1, 0.3)))) + rng.random()
    course = physiology.Course(
        t1, hr[at].astype(float), zero + 18, zero + who.sbp, zero + who.dbp, zero + who.spo2, breath, np.inf
    )
    beats = physiology.beats(rng, who, course)
    t = np.arange(int(seconds * RATE)) / RATE

    def slow(fastest_s: float, slowest_s: float) -> np.ndarray:
        return np.interp(t, t1, physiology._slow(rng, t1, fastest_s, slowest_s))

    pulse = _unit(_band(physiology.ppg(t, who, course, beats)[:, 0], 0.4, 8))
    moving = np.interp(t, t1, (pace > 0).astype(float))
    swing = np.interp(t, t1, np.where(pace > 0, pace, 1.0)) / 2 * (1 + 0.015 * slow(8, 60))
    phase, gain = 2 * np.pi * np.cumsum(swing) / RATE, np.exp(0.2 * slow(10, 60))
    acc = np.zeros((AXES, len(t)))
    for harmonic, (low, high) in enumerate(((0.1, 0.8), (0.2, 0.8), (0.02, 0.3), (0.02, 0.3)), 1):
        size = rng.uniform(low, high)
        for axis in acc:
            axis += size * rng.uniform(0.1, 1) * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    jerk = _unit(_band(rng.standard_normal(acc.shape), 0.3, 5))
    acc = (acc + (0.4 if own else 0.15) * jerk) * gain * moving + 0.005 * rng.standard_normal(acc.shape)

    both = _unit(_band(rng.standard_normal(len(t)), 0.3, 5))
    channels = []
    for _ in range(2):
        if own:
            sizes = zip((1, 2, 3, 4), rng.uniform((0, 0.3, 0, 0), (1, 1, 0.4, 0.4)), strict=True)
            sway = (k * phase + rng.uniform(0, 2 * np.pi) + 0.7 * slow(15, 80) for k in (1, 2, 3, 4))
            art = sum(size * np.sin(angle) for (_, size), angle in zip(sizes, sway, strict=True))
            art = art * gain * moving
        else:
            art = np.zeros(len(t))
            for axis in acc:
                weight = rng.standard_normal() * (1 + 0.5 * slow(20, 100))
                art += weight * np.roll(axis, int(rng.uniform(0, 0.2) * RATE))
        art = _unit(art) if art.any() else art
        art = _band(art + rng.uniform(0, 0.3) * (art**2 - 1), 0.3, 8)
        if (moving > 0.5).any():
            art = art / art[moving > 0.5].std()
        unseen = (0.6 * _unit(_band(rng.standard_normal(len(t)), 0.3, 5)) + 0.6 * both) * moving
        level = artefact * rng.uniform(0.6, 1.4)
        unseen *= artefact * (rng.uniform(0.4, 1.0) if own else rng.uniform(0.2, 0.7))
        channels.append(pulse + level * art + unseen + 0.05 * rng.standard_normal(len(t)))
    return Run(100 * np.array(channels), acc + np.array([[0.0], [0.0], [1.0]]), beats.r)


def treadmill(rng: np.random.Generator, seconds: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """(hr, steps) of each second: rest, a minute slow, a minute fast, both again, rest; the heart follows
    with a time constant of 20 to 50 s.
    """
    rest, peak, share = rng.uniform(60, 100), rng.uniform(130, 180), rng.uniform(0.5, 0.8)
    slow, fast, tau = rng.uniform(1.7, 2.6), rng.uniform(2.5, 3.1), rng.uniform(20, 50)
    t = np.arange(seconds)
    part = np.clip((t - 30) // 60, -1, 4)
    steps = np.where((part == 0) | (part == 2), slow, np.where((part == 1) | (part == 3), fast, 0.0))
    rise = np.select([part == -1, steps == slow, steps == fast], [0.0, share, 1.0], 0.4)
    hr = np.full(seconds, rest)
    for i in range(1, seconds):
        hr[i] = hr[i - 1] + (rest + (peak - rest) * rise[i] - hr[i - 1]) / tau
    return hr, steps


def _band(x: np.ndarray, low: float, high: float) -> np.ndarray:
    return sosfiltfilt(butter(2, (low, high), "band", fs=RATE, output="sos"), x)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / x.std()
