"""Windows: what a recipe asks for, and corpus rows → the samples it gets."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from cluster.config import Config
from datasets.signal import Signal, periodicity, prepare

TOGETHER = 16  # windows in one call into scipy

__all__ = ["Signal", "WindowSpec", "empty", "extract", "grid", "transform", "verdicts"]


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


def empty(n: int, spec: WindowSpec) -> dict[str, np.ndarray]:
    """Room for `n` prepared windows: {modality: (n, channels, window_s · rate) float32}."""
    return {
        s.modality: np.empty((n, s.channels, round(spec.window_s * s.rate)), np.float32) for s in spec.signals
    }


def extract(
    table: pa.Table,
    row: np.ndarray,
    offset_s: np.ndarray,
    spec: WindowSpec,
    out: dict[str, np.ndarray],
    at: np.ndarray,
) -> None:
    """Prepare windows of one row group into `out` (see `empty`) at the places `at`.

    table: rows with `spec.columns`; row, offset_s, at: (n,) each window's row, its start within that row in
    seconds, its place. Values are physical: raw · scale + offset, then what the signal asks for.
    """
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
        transform(cuts, rate, scale, offset, sig, out[m], at)


def _samples(value: pa.BinaryScalar, channels: int) -> np.ndarray:
    """(samples, channels) little-endian int16, without a copy."""
    return np.frombuffer(value.as_buffer(), dtype="<i2").reshape(-1, channels)


def transform(
    cuts: Sequence[np.ndarray],
    rate: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    sig: Signal,
    out: np.ndarray,
    at: np.ndarray,
) -> None:
    """Prepare n windows (T_i, channels) int16, which may differ in native rate, into out[at]: (…, channels,
    T).

    rate, scale, offset: (n,). Windows of one rate are stacked and filtered together, some at a time so that
    they stay in the processor's cache; a window's result does not depend on its company.
    """
    for native in np.unique(rate):
        which = np.flatnonzero(rate == native)
        if native == sig.rate and sig.band is None and sig.normalise == "none":
            for i in which.tolist():
                target = out[at[i]]
                np.multiply(cuts[i].T, np.float32(scale[i]), out=target)
                target += np.float32(offset[i])
            continue
        for low in range(0, len(which), TOGETHER):
            part = which[low : low + TOGETHER]
            x = np.stack([cuts[i] for i in part.tolist()]).transpose(0, 2, 1).astype(np.float64, order="C")
            x *= scale[part, None, None]
            x += offset[part, None, None]
            out[at[part]] = prepare(x, float(native), sig)[..., : out.shape[-1]]


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
