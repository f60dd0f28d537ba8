"""Windows: what a recipe asks for, and corpus rows → the samples it gets."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from cluster.config import Config
from datasets.signal import Signal, periodicity, prepare

__all__ = ["Signal", "WindowSpec", "extract", "grid", "transform", "verdicts"]


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

    @property
    def bytes(self) -> int:
        """Of one prepared window, all signals."""
        return sum(4 * s.channels * round(self.window_s * s.rate) for s in self.signals)

    @property
    def columns(self) -> list[str]:
        """Corpus columns that windows are made from."""
        parts = ("", "_rate", "_scale", "_offset", "_channels")
        return ["subject", "record", "start_s", "duration_s"] + [
            s.modality + part for s in self.signals for part in parts
        ]


def grid(duration_s: float, spec: WindowSpec) -> np.ndarray:
    """Start offsets in seconds, (windows,), of the windows that fit a stretch of `duration_s`."""
    hop = spec.hop_s or spec.window_s
    # the millisecond forgives durations that samples/rate rounds down
    count = int(np.floor((duration_s - spec.window_s + 1e-3) / hop)) + 1
    return np.arange(max(count, 0)) * hop


def extract(
    table: pa.Table, row: np.ndarray, offset_s: np.ndarray, spec: WindowSpec
) -> dict[str, np.ndarray]:
    """Prepared windows of one row group.

    table: a row group with `spec.columns`; row, offset_s: (n,) each window's row and its start within that
    row in seconds. Returns {modality: (n, channels, window_s · rate) float32} in physical units (before any
    normalisation that the signal asks for).
    """
    out = {}
    for sig in spec.signals:
        m = sig.modality
        rate, scale, offset = (table[f"{m}{p}"].to_numpy()[row] for p in ("_rate", "_scale", "_offset"))
        channels = table[f"{m}_channels"].to_numpy()
        raw = {r: _samples(table[m][r], int(channels[r])) for r in np.unique(row).tolist()}
        starts = np.round(offset_s * rate).astype(int).tolist()
        lengths = np.round(spec.window_s * rate).astype(int).tolist()
        cuts = [
            raw[r][min(a, len(raw[r]) - n) :][:n, : sig.channels]
            for r, a, n in zip(row.tolist(), starts, lengths, strict=True)
        ]
        out[m] = transform(cuts, rate, scale, offset, sig, spec.window_s)
    return out


def _samples(value: pa.BinaryScalar, channels: int) -> np.ndarray:
    """(samples, channels) little-endian int16, without a copy."""
    return np.frombuffer(value.as_buffer(), dtype="<i2").reshape(-1, channels)


def transform(
    cuts: Sequence[np.ndarray],
    rate: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    sig: Signal,
    window_s: float,
) -> np.ndarray:
    """Prepare windows that may differ in native rate: n arrays (T_i, channels) → (n, channels, window_s ·
    sig.rate).

    physical = raw · scale + offset, (n,) each. Windows of one rate are stacked and filtered together: one
    call into scipy a rate, none a window.
    """
    want = round(window_s * sig.rate)
    out = np.empty((len(cuts), sig.channels, want), np.float32)
    for native in np.unique(rate):
        which = np.flatnonzero(rate == native)
        # float32 holds every int16 exactly
        x = np.stack([cuts[i] for i in which.tolist()]).astype(np.float32).transpose(0, 2, 1)
        x *= scale[which, None, None].astype(np.float32)
        x += offset[which, None, None].astype(np.float32)
        out[which] = prepare(x, float(native), sig)[..., :want]
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
