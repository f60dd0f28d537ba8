"""Heart rate by a spectral tracker that takes the wearer's motion out of the PPG: a baseline of signal
processing that learns nothing.

1. A window is cut into frames of 8 s every 2 s, the grid of TROIKA (Zhang, Pi and Liu 2015); its PPG channels
   are normalised and averaged (Temko 2017, WFPV).
2. What the accelerometer explains is projected out of each frame: delayed copies of its axes span the motion,
   and their leading principal directions are removed from the PPG. No adaptive filter: a frame depends on no
   other.
3. The spectrum of what is left, weighed down where the accelerometer's is high (Temko's second Wiener
   filter), is the frame's evidence for each rate.
4. A forward and a backward pass over the record weigh it with the frames around it, as rates change slowly. A
   frame's rate is the median of its posterior, a window's the median of its frames.

The passes use the windows after a window as well as those before it: the tracker knows more than an encoder,
which sees one window. Without an accelerometer, or on a hand at rest, the motion steps change nothing.

Constants without a source beside them were chosen on 90 synthetic recordings like those that
`tests/finetune/moving.py` makes: a treadmill protocol, rates of 60 to 180, artefacts of 0.5 to 5 times the
pulse. They were frozen before the tracker saw a real recording.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RATE = 25.0  # Hz, Temko 2017
BAND = (0.4, 4.0)  # Hz, Temko 2017
FRAME_S, STEP_S = 8.0, 2.0  # Zhang et al. 2015
POINTS = 2048  # of the transform: 0.73 beats a minute apart
RATES = (36.0, 222.0)  # beats a minute: all that BAND holds, less the slopes of its filter
STILL_G = 0.013  # an axis with a smaller SD does not move (van Hees et al. 2013)
DELAYS = range(0, 12, 2)  # samples, to 0.4 s
DIRECTIONS, SHARE = 8, 0.05  # at most so many, each with at least this share of the strongest one's power
FLOOR = 0.1  # of the evidence is even: a frame may hold no pulse at all
CHANGE = 2.0  # beats a minute: mean change of the rate in STEP_S
APART_S, RUN_S = 60.0, 3600.0  # after a gap, or an hour (which bounds memory), tracking begins anew
TOGETHER = 64  # frames at a time bound memory

_HZ = np.fft.rfftfreq(POINTS, 1 / RATE)
_INSIDE = np.arange(*np.searchsorted(60 * _HZ, RATES))
BPM = 60 * _HZ[_INSIDE]  # the rates that are tracked


@dataclass(frozen=True)
class Frames:
    """start_s (n,) within the record; evidence (n, len(BPM)), each row sums to 1; known (n,): whether the
    frame holds a PPG that moves. An unknown frame's evidence is even.
    """

    start_s: np.ndarray
    evidence: np.ndarray
    known: np.ndarray


def starts(window_s: float) -> np.ndarray:
    """Seconds into a window at which its frames start; a window under FRAME_S is one frame."""
    return np.arange(max(int((window_s - FRAME_S) / STEP_S + 1e-6), 0) + 1) * STEP_S


def frames_of(start_s: np.ndarray, ppg_nct: np.ndarray, acc_nct: np.ndarray | None = None) -> Frames:
    """All frames of windows that start at `start_s` (n,), window by window.

    ppg_nct: (n, channels, T), any unit; acc_nct: (n, axes, T) in g, zeros where a window has none; both at
    RATE, within BAND. A channel or axis with a value that is not finite is left out of its frame.
    """
    n, _, t = ppg_nct.shape
    if acc_nct is None:
        acc_nct = np.zeros((n, 1, t))
    into = starts(t / RATE)
    size = min(t, round(FRAME_S * RATE))
    first = np.minimum(np.round(into * RATE).astype(int), t - size)
    ppg, acc = (
        np.stack([x[:, :, a : a + size] for a in first], axis=1).reshape(n * len(first), x.shape[1], size)
        for x in (ppg_nct, acc_nct)
    )
    parts = [_evidence(ppg[i : i + TOGETHER], acc[i : i + TOGETHER]) for i in range(0, len(ppg), TOGETHER)]
    evidence, known = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Frames((np.asarray(start_s)[:, None] + into).ravel(), evidence, known)


def _evidence(ppg: np.ndarray, acc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (n, len(BPM)) and whether there is any (n,)."""
    ppg, moves = _normalised(ppg)
    acc, _ = _normalised(acc, STILL_G, keep_size=True)
    pulse = ppg.sum(1) / np.maximum(moves.sum(1), 1)[:, None]
    height = _spectrum(_without(pulse, acc))
    motion = _spectrum(acc).sum(1)
    own, foreign = _of_highest(height) ** 2, _of_highest(motion) ** 2
    clean = height * own / np.maximum(own + foreign, 1e-12)
    total = clean.sum(1, keepdims=True)
    known = moves.any(1) & (total[:, 0] > 0)
    share = np.where(known[:, None], clean / np.where(total > 0, total, 1), 1 / len(BPM))
    return (1 - FLOOR) * share + FLOOR / len(BPM), known


def _spectrum(x: np.ndarray) -> np.ndarray:
    """(…, T) → (…, len(BPM)) amplitudes. No taper: within 8 s, motion and heart are apart by little."""
    return np.abs(np.fft.rfft(x, POINTS)[..., _INSIDE])


def _of_highest(x: np.ndarray) -> np.ndarray:
    highest = x.max(-1, keepdims=True)
    return x / np.where(highest > 0, highest, 1)


def _normalised(x: np.ndarray, least: float = 1e-9, keep_size: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Channels (n, c, T) without their mean, of unit SD unless `keep_size`; and (n, c) whether each has an SD
    above `least`. Others, and those with values that are not finite, are 0.
    """
    finite = np.isfinite(x).all(-1)
    x = np.where(finite[..., None], x, 0.0)
    x = x - x.mean(-1, keepdims=True)
    spread = x.std(-1)
    used = finite & (spread > least)
    x = np.where(used[..., None], x, 0.0)
    return (x if keep_size else x / np.where(used, spread, 1)[..., None]), used


def _without(pulse: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """pulse (n, T) less its projection on the leading directions of the delayed axes of acc (n, axes, T)."""
    moving = np.flatnonzero(acc.any(axis=(1, 2)))
    if not len(moving):
        return pulse
    delayed = np.concatenate([np.roll(acc[moving], d, axis=-1) for d in DELAYS], axis=1)
    power, mix = np.linalg.eigh(delayed @ delayed.transpose(0, 2, 1))  # weakest first
    power, mix = power[:, -DIRECTIONS:], mix[:, :, -DIRECTIONS:]
    strong = power > SHARE * power[:, -1:]
    scale = np.where(strong, 1 / np.sqrt(np.where(strong, power, 1)), 0)
    basis = (mix * scale[:, None]).transpose(0, 2, 1) @ delayed
    out = pulse.copy()
    held = basis @ out[moving, :, None]
    out[moving] -= (held.transpose(0, 2, 1) @ basis)[:, 0]
    return out


@lru_cache(maxsize=64)
def _change(steps: float) -> np.ndarray:
    """(from, to): how likely a rate becomes another within so many steps (Laplace, rows sum to 1)."""
    near = np.exp(-np.abs(BPM[:, None] - BPM) / (CHANGE * steps))
    return near / near.sum(1, keepdims=True)


def follow(frames: Frames) -> np.ndarray:
    """(n,) rates of one record's frames in beats a minute, in their order; any number may start at one time.
    A frame without evidence gets what those around it say, NaN where tracking begins and ends without any.
    """
    rate = np.full(len(frames.start_s), np.nan)
    # overlapping windows share frames: of equal ones, the first that is known counts
    order = np.lexsort((~frames.known, np.round(frames.start_s, 3)))
    at = np.round(frames.start_s, 3)[order]
    fresh = np.concatenate(([True], np.diff(at) > 0))
    one, time = order[fresh], at[fresh]
    run, begun = np.zeros(len(one), int), time[0] if len(one) else 0.0
    for i in range(1, len(one)):
        new = time[i] - time[i - 1] > APART_S or time[i] - begun >= RUN_S
        run[i], begun = run[i - 1] + new, time[i] if new else begun
    found = np.full(len(one), np.nan)
    for number in range(run[-1] + 1 if len(one) else 0):
        mine = np.flatnonzero(run == number)
        if frames.known[one[mine]].any():
            found[mine] = _smoothed(time[mine], frames.evidence[one[mine]])
    rate[order] = found[np.cumsum(fresh) - 1]
    return rate


def _smoothed(time: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Medians of the posterior of a run: the forward and the backward pass of a hidden Markov chain."""
    change = [_change(round(float(gap) / STEP_S, 2)) for gap in np.diff(time)]
    ahead = evidence.copy()
    for i in range(len(time)):
        if i:
            ahead[i] *= ahead[i - 1] @ change[i - 1]
        ahead[i] /= ahead[i].sum()
    back = np.ones(len(BPM))
    for i in range(len(time) - 2, -1, -1):
        back = change[i] @ (evidence[i + 1] * back)
        back /= back.sum()
        ahead[i] *= back
    sums = ahead.cumsum(1) / ahead.sum(1, keepdims=True)
    k = (sums >= 0.5).argmax(1)
    rows, step = np.arange(len(time)), BPM[1] - BPM[0]
    below = np.where(k > 0, sums[rows, k - 1], 0.0)
    return BPM[k] + step * ((0.5 - below) / (sums[rows, k] - below) - 0.5)


def track(start_s: np.ndarray, ppg_nct: np.ndarray, acc_nct: np.ndarray | None = None) -> np.ndarray:
    """(n,) heart rates of one record's windows (see `frames_of`), in beats a minute; NaN where a window
    holds no PPG that moves.
    """
    return of_windows(frames_of(start_s, ppg_nct, acc_nct), len(start_s))


def of_windows(frames: Frames, windows: int) -> np.ndarray:
    """(windows,) rates of one record's windows from their frames: the median of those that are known."""
    rate = np.where(frames.known, follow(frames), np.nan).reshape(windows, -1)
    found = np.full(windows, np.nan)
    there = np.isfinite(rate).any(1)
    found[there] = np.nanmedian(rate[there], axis=1)
    return found
