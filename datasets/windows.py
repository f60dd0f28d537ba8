"""Windows: what a recipe asks for, and corpus rows → the samples it gets."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from cluster.config import Config
from datasets.signal import Signal, periodicity, prepare

__all__ = ["Signal", "WindowSpec", "cut", "grid", "transform", "verdicts"]


class WindowSpec(Config):
    """Time-aligned windows over every modality in `signals`; a row that lacks one gives no window."""

    signals: tuple[Signal, ...]
    window_s: float = Field(gt=0)
    hop_s: float | None = None  # None: no overlap
    min_quality: float = (
        0.0  # lowest `signal.periodicity` of the first signal; 0: no gate, as in SIGMA's paper
    )

    @model_validator(mode="after")
    def _check(self) -> "WindowSpec":
        if not self.signals:
            raise ValueError("a window needs at least one signal")
        if self.hop_s is not None and self.hop_s <= 0:
            raise ValueError("hop_s must be above 0")
        return self

    @property
    def hash(self) -> str:
        """Names this spec in caches and lineage."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:16]

    def shape(self, channels: int = 1) -> dict[str, tuple[int, int]]:
        """{modality: (channels, samples)} of one prepared window."""
        return {s.modality: (channels, round(self.window_s * s.rate)) for s in self.signals}


def grid(duration_s: float, spec: WindowSpec) -> np.ndarray:
    """Start offsets in seconds, (windows,), of the windows that fit a stretch of `duration_s`."""
    hop = spec.hop_s or spec.window_s
    # the millisecond forgives durations that samples/rate rounds down
    count = int(np.floor((duration_s - spec.window_s + 1e-3) / hop)) + 1
    return np.arange(max(count, 0)) * hop


def cut(
    raw: bytes | memoryview,
    rate: float,
    scale: float,
    offset: float,
    channels: int,
    start_s: Sequence[float],
    window_s: float,
) -> np.ndarray:
    """Windows of one row's binary column: (n, channels, round(window_s · rate)) float32 in physical units.

    `raw` holds little-endian int16, channels interleaved last (corpus contract, version 1).
    """
    x = np.frombuffer(raw, dtype="<i2").reshape(-1, channels)
    n = round(window_s * rate)
    starts = [min(round(s * rate), len(x) - n) for s in start_s]
    out = np.stack([x[a : a + n] for a in starts]).transpose(0, 2, 1)
    # float32 holds an int16 exactly, and the model's own precision is no better
    return out.astype(np.float32) * np.float32(scale) + np.float32(offset)


def transform(x: Sequence[np.ndarray], rates: Sequence[float], sig: Signal, window_s: float) -> np.ndarray:
    """Prepare windows that may differ in native rate: n arrays (channels, T_i) → (n, channels, window_s ·
    sig.rate).

    Windows of one rate are stacked and filtered together: one call into scipy a rate, none a window.
    """
    want = round(window_s * sig.rate)
    out = np.empty((len(x), x[0].shape[0], want), np.float32)
    rates_n = np.asarray(rates)
    for rate in np.unique(rates_n):
        which = np.flatnonzero(rates_n == rate)
        out[which] = prepare(np.stack([x[i] for i in which]), float(rate), sig)[..., :want]
    return out


def verdicts(windows: np.ndarray, sig: Signal, spec: WindowSpec) -> tuple[np.ndarray, np.ndarray]:
    """(quality (n,) float32, verdict (n,) str) of prepared windows (n, channels, samples) of the first
    signal.

    Verdicts: `ok`, `nan` (not finite), `flat` (constant), `quality` (under `spec.min_quality`).
    """
    finite = np.isfinite(windows).all(axis=(1, 2))
    flat = np.ptp(windows, axis=-1).min(axis=-1) <= 0
    quality = periodicity(np.where(finite[:, None], windows[:, 0], 0), sig.rate).astype(np.float32)
    verdict = np.where(
        ~finite, "nan", np.where(flat, "flat", np.where(quality < spec.min_quality, "quality", "ok"))
    )
    return quality, verdict
