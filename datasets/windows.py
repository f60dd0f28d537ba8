"""Windows: a recipe's request, and how corpus rows become its samples."""

import hashlib
import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from cluster.config import Config
from datasets import ecg
from datasets.signal import HALF, Signal, length, periodicity, prepare

TOGETHER = 16  # windows per call into scipy

PARTS = ("_channels", "_rate", "_scale", "_offset")
# added after caches existed; a Signal itself leaves out what came still later (`signal.LATEST`)
LATER = ("required", "notch", "upright", "min_rate", "max_flat", "gate")

__all__ = ["Signal", "WindowSpec", "empty", "extract", "grid", "lasts", "present", "transform", "verdicts"]


class WindowSpec(Config):
    """Time-aligned windows over the modalities in `signals`.

    A row that lacks a required modality, or all of them, gives no window.
    """

    signals: tuple[Signal, ...]
    window_s: float = Field(gt=0)
    hop_s: float | None = None  # None: no overlap
    until_s: float | None = None  # one window per record, which ends at this second of it; None: a grid
    min_quality: float = (
        0.0  # minimum `signal.periodicity` of the first signal; 0: no gate, as in SIGMA's paper
    )

    @model_validator(mode="after")
    def _check(self) -> "WindowSpec":
        if not self.signals:
            raise ValueError("a window needs at least one signal")
        if self.hop_s is not None and self.hop_s <= 0:
            raise ValueError("hop_s must be above 0")
        if len({s.modality for s in self.signals}) < len(self.signals):
            raise ValueError("signals names a modality twice")
        return self

    @property
    def hash(self) -> str:
        """Identifies this spec in caches and lineage. Later keys count only if set, so that the caches of
        specs without them stay valid.
        """
        plain = {name: field.default for name, field in Signal.model_fields.items() if name in LATER}
        fields = self.model_dump()
        if self.until_s is None:
            del fields["until_s"]
        for sig in fields["signals"]:
            for name, default in plain.items():
                if sig[name] == default:
                    del sig[name]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def optional(self) -> list[str]:
        """Modalities that a window may lack: `has_<modality>` in a batch says where they are present."""
        return [s.modality for s in self.signals if not s.required]

    @property
    def bytes(self) -> int:
        """Size of one prepared window, all signals."""
        return sum(4 * s.channels * round(self.window_s * s.rate) for s in self.signals)

    @property
    def columns(self) -> list[str]:
        """Corpus columns that windows are made from."""
        parts = ("", "_rate", "_scale", "_offset", "_channels")
        return ["subject", "record", "start_s", "duration_s"] + [
            s.modality + part for s in self.signals for part in parts
        ]


def grid(duration_s: float, spec: WindowSpec, start_s: float = 0.0) -> np.ndarray:
    """Start offsets in seconds, (windows,), of the windows that fit a stretch of `duration_s` (`lasts`) that
    begins `start_s` into its record.
    """
    hop = spec.hop_s or spec.window_s
    room = duration_s - spec.window_s + 1e-10  # allows for rounding in sums of seconds
    if spec.until_s is not None:
        offset = spec.until_s - spec.window_s - start_s
        # the millisecond allows for a row that begins a sample late
        return np.array([max(offset, 0.0)] if offset >= -1e-3 and max(offset, 0.0) <= room else [])
    return np.arange(max(int(np.floor(room / hop)) + 1, 0)) * hop


def lasts(table: pa.Table, spec: WindowSpec) -> np.ndarray:
    """(rows,) seconds of each row available to windows of `spec`: those that every present signal fills to
    half a sample (`signal.length`); 0 if none is present.
    """
    found = np.full((len(spec.signals), table.num_rows), np.inf)
    for number, (sig, there) in enumerate(zip(spec.signals, present(table, spec), strict=True)):
        if there.any():
            rate, channels = (table[sig.modality + p].to_numpy() for p in ("_rate", "_channels"))
            size = pc.binary_length(table[sig.modality]).to_numpy()
            found[number, there] = (size[there] // (2 * channels[there]) + HALF) / rate[there]
    least = found.min(axis=0)
    return np.where(np.isfinite(least), least, 0.0)


def empty(n: int, spec: WindowSpec) -> dict[str, np.ndarray]:
    """Zeroed buffers for `n` prepared windows: {modality: (n, channels, window_s · rate) float32}, and for
    each optional modality its mask {"has_" + modality: (n,) bool}.
    """
    room = {
        s.modality: np.empty((n, s.channels, round(spec.window_s * s.rate)), np.float32) for s in spec.signals
    }
    return room | {f"has_{m}": np.zeros(n, bool) for m in spec.optional}


@dataclass(frozen=True)
class Column:
    """One modality of a row group's rows, ready to be cut: a window's samples are contiguous, so that it is a
    view, not a copy. All but `flat` are (rows,).
    """

    flat: np.ndarray  # the samples of all rows, (samples · channels,) little-endian int16
    begin: np.ndarray  # int64: the start of each row in it
    end: np.ndarray
    valid: np.ndarray  # bool
    channels: np.ndarray
    rate: np.ndarray  # Hz
    scale: np.ndarray
    offset: np.ndarray

    def stretch(
        self, row: np.ndarray, offset_s: np.ndarray, window_s: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where windows (n,) of these rows begin in `flat`, their samples per channel, and their channels."""
        rate, channels = self.rate[row], self.channels[row].astype(np.int64)
        count = length(window_s, rate)
        there = (self.end[row] - self.begin[row]) // channels
        first = np.minimum(np.round(offset_s * rate).astype(np.int64), there - count)
        return self.begin[row] + first * channels, count, channels


_columns: dict[tuple[int, str], Column] = {}  # of live tables


def column(table: pa.Table, modality: str) -> Column:
    """Made once per table: a batch takes few windows from each of many row groups."""
    key = (id(table), modality)
    found = _columns.get(key)
    if found is None:
        values = table[modality]
        samples = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
        if isinstance(samples, pa.ChunkedArray):  # without rows
            samples = pa.array([], pa.binary())
        _, ends, data = samples.buffers()
        borders = np.zeros(1, np.int64)
        if len(samples):
            borders = (
                np.frombuffer(ends, np.int32, len(samples) + 1, 4 * samples.offset).astype(np.int64) // 2
            )
        parts = (table[modality + part].to_numpy(zero_copy_only=False) for part in PARTS)
        flat = np.frombuffer(data, "<i2") if data is not None else np.empty(0, "<i2")
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        found = Column(flat, borders[:-1], borders[1:], valid, *parts)
        _columns[key] = found
        weakref.finalize(table, _columns.pop, key, None)
    return found


def present(table: pa.Table, spec: WindowSpec) -> np.ndarray:
    """(signals, rows) bool: whether a row has each signal of `spec`: valid, with enough channels, at a high
    enough native rate. A modality without columns in the table is absent.
    """
    there = np.zeros((len(spec.signals), table.num_rows), bool)
    for number, sig in enumerate(spec.signals):
        if sig.modality in table.column_names:
            of = column(table, sig.modality)
            with np.errstate(invalid="ignore"):  # nulls are NaN here
                there[number] = of.valid & (of.channels >= sig.channels) & (of.rate >= sig.min_rate)
    return there


def extract(
    table: pa.Table,
    row: np.ndarray,
    offset_s: np.ndarray,
    spec: WindowSpec,
    out: dict[str, np.ndarray],
    at: np.ndarray,
    has: np.ndarray | None = None,
) -> None:
    """Prepare windows of one row group into `out` (see `empty`) at the places `at`.

    table: rows with `spec.columns`; row, offset_s, at: (n,) each window's row, its start within that row in
    seconds, its place; has: (signals, n) bool, which signals to prepare (None: those that the row has).
    Values are physical: raw · scale + offset, then prepared as the signal requests; zeros where absent.

    Every modality is cut at its sample nearest to the window's start (ties to even), counted from the row's
    start, which all modalities share: the shift is at most half a native sample each, and does not grow along
    a row. If window_s is not a whole number of samples (`signal.length`), the last window of a row may start
    one sample early, and time in the prepared window is off by up to half a native sample.
    """
    there = present(table, spec)[:, row]
    if has is not None:
        there &= has
    for sig, wanted in zip(spec.signals, there, strict=True):
        if not sig.required:
            out[f"has_{sig.modality}"][at] = wanted
        which = np.flatnonzero(wanted)
        out[sig.modality][at[~wanted]] = 0
        cuts, gain = cut(table, row[which], offset_s[which], sig, spec.window_s)
        transform(cuts, *gain, sig, out[sig.modality], at[which])


def cut(
    table: pa.Table, row: np.ndarray, offset_s: np.ndarray, sig: Signal, window_s: float
) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Raw samples [(T_i, channels) int16] of windows that have `sig`; (n,) rate, scale, offset."""
    if not len(row):
        return [], (np.empty(0), np.empty(0), np.empty(0))
    of = column(table, sig.modality)
    stretches = zip(*(x.tolist() for x in of.stretch(row, offset_s, window_s)), strict=True)
    cuts = [of.flat[low : low + n * c].reshape(n, c)[:, : sig.channels] for low, n, c in stretches]
    return cuts, (of.rate[row], of.scale[row], of.offset[row])


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

    rate, scale, offset: (n,). Windows of one rate are stacked and filtered together, a few at a time so that
    they stay in the CPU cache; a window's result does not depend on what it is batched with.
    """
    for native in np.unique(rate):
        which = np.flatnonzero(rate == native)
        as_is = passes(sig, float(native), len(cuts[which[0]]), out.shape[-1])
        for low in range(0, len(which), TOGETHER):
            part = which[low : low + TOGETHER]
            some = [cuts[i] for i in part.tolist()]
            if as_is:
                raw = np.stack(some, dtype=np.float32).transpose(0, 2, 1)
                raw *= scale[part, None, None].astype(np.float32)
                raw += offset[part, None, None].astype(np.float32)
                out[at[part]] = raw
                continue
            x = np.stack(some, dtype=np.float64).transpose(0, 2, 1)
            if not sig.removes_offset:
                x = x + (offset / scale)[part, None, None]
            out[at[part]] = prepare(x, float(native), sig, scale[part], out.shape[-1])


def passes(sig: Signal, native_rate: float, n: int, to: int) -> bool:
    """Whether windows of `n` samples at `native_rate` Hz need only their gain to become `to` samples of
    `sig`."""
    bare = sig.band is None and sig.notch is None and sig.smooth_s is None and sig.baseline_s is None
    plain = bare and not sig.upright and sig.normalise == "none"
    return plain and native_rate == sig.rate and n == to


def verdicts(
    windows: np.ndarray,
    sig: Signal,
    spec: WindowSpec,
    flat_share: np.ndarray | float = 0.0,
    sound: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(quality (n,) float32, verdict (n,) str) of prepared windows (n, channels, samples) of one signal,
    given the flat share `flat_share` (n,) of their raw samples; sound: (n, channels) bool, their `ecg.sound`
    if known.

    Quality is `signal.periodicity` of the spec's first signal, NaN for others. Verdicts: `ok`, `nan` (not
    finite), `flat` (constant, or a larger share flat than `sig.max_flat`), `quality` (fails `sig.gate`, or
    the first signal's periodicity is under `spec.min_quality`).
    """
    low, high = windows.min(axis=-1), windows.max(axis=-1)  # values that are not finite show in one of them
    finite = (np.isfinite(low) & np.isfinite(high)).all(axis=1)
    flat = (low == high).any(axis=1) | (flat_share > sig.max_flat)
    known = windows if finite.all() else np.where(finite[:, None, None], windows, 0)
    if sig == spec.signals[0]:
        quality = periodicity(known[:, 0], sig.rate).astype(np.float32)
    else:
        quality = np.full(len(windows), np.nan, np.float32)
    poor = quality < spec.min_quality
    if sig.gate == "ecg":
        poor |= ~(ecg.looks(known, sig.rate)[1] if sound is None else sound).all(axis=1)
    verdict = np.where(~finite, "nan", np.where(flat, "flat", np.where(poor, "quality", "ok")))
    return quality, verdict
