"""Which samples may be kept, and why the others may not: run-length code on whole records, no loop over
samples.

A verdict is one uint8 code per sample: 0 = keep, else an index into `REASONS`.
"""

from dataclasses import dataclass

import numpy as np

REASONS = ("kept", "nan", "clipped", "flat", "fragment")
KEPT, NAN, CLIPPED, FLAT, FRAGMENT = range(5)
FEW = 100  # for up to so many runs slices are faster than a sum over all samples
OUTLYING = 10  # a channel's range beyond this multiple of its usual movement is due to outliers


@dataclass(frozen=True)
class Limits:
    """Thresholds in seconds (and a share of the channel's range) that decide what is refused."""

    bridge_s: float = 0.1  # missing runs up to this long, inside a signal, are interpolated
    flat_s: float = 3.0  # exactly constant for so long: no signal
    clipped_s: float = 1.0  # on a rail for so long: saturated
    rail: float = 0.002  # "on a rail": within this share of the channel's range of its own extreme; the range
    # counts at most `OUTLYING` times what the channel usually moves in `clipped_s`
    fragment_s: float = 1.0  # shorter kept stretches between refused ones are useless


def runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops (half-open) of the runs of True in a 1-D mask."""
    if not len(mask):
        return np.zeros(0, int), np.zeros(0, int)
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    ends = np.concatenate(([0] * bool(mask[0]), edges, [len(mask)] * bool(mask[-1]))).astype(int)
    return ends[::2], ends[1::2]


def mark(length: int, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Boolean mask (length,), True in the given non-overlapping runs: the inverse of `runs`."""
    if len(starts) <= FEW:
        found = np.zeros(length, bool)
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            found[start:stop] = True
        return found
    edges = np.zeros(length + 1, np.int8)
    edges[starts] += 1
    edges[stops] -= 1
    return np.cumsum(edges[:-1], dtype=np.int8).astype(bool)


def long_runs(mask: np.ndarray, shortest: float) -> np.ndarray:
    """The mask with only the runs of True that are at least `shortest` samples long."""
    starts, stops = runs(mask)
    keep = stops - starts >= shortest
    return mark(len(mask), starts[keep], stops[keep])


def bridge(x_tc: np.ndarray, missing: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Fill missing runs of at most `longest` samples by linear interpolation, channel by channel.

    A run at either end of the signal has only one neighbour and stays missing. Integers stay integers
    (rounded). Returns (filled copy, mask of what is still missing, runs bridged, samples bridged).
    """
    if not missing.any():
        return x_tc, missing, 0, 0
    starts, stops = runs(missing)
    fill = (stops - starts <= longest) & (starts > 0) & (stops < len(missing))
    starts, stops = starts[fill], stops[fill]
    if not len(starts):
        return x_tc, missing, 0, 0
    filled = mark(len(missing), starts, stops)
    at, known = np.flatnonzero(filled), np.flatnonzero(~missing)
    x_tc = x_tc.copy()
    for c in range(x_tc.shape[1]):
        between = np.interp(at, known, x_tc[known, c].astype(np.float64))
        x_tc[at, c] = np.rint(between) if np.issubdtype(x_tc.dtype, np.integer) else between
    return x_tc, missing & ~filled, len(starts), len(at)


def constant(x: np.ndarray, valid: np.ndarray, shortest: float) -> np.ndarray:
    """Mask of the stretches of a channel (T,) that hold one exact value for at least `shortest` samples."""
    same = x[1:] == x[:-1]
    if not valid.all():
        same &= valid[1:]
        same &= valid[:-1]
    starts, stops = runs(same)
    stops = stops + 1  # n equal steps are n + 1 equal samples
    keep = stops - starts >= shortest
    return mark(len(x), starts[keep], stops[keep])


def on_rail(x: np.ndarray, valid: np.ndarray, rail: float, shortest: float) -> np.ndarray:
    """Mask of the stretches of a channel (T,) that stay at its highest or lowest value.

    Saturation in monitor signals takes three forms, all found here: exactly at the converter's limit, at a
    lower ceiling of the device, and (after the archive resampled them) with a ripple of a few counts; `rail`
    is the allowed ripple, a share of the channel's range. A constant channel has no rails: that is flat. A
    spike, a missing-value marker or a moment off the skin makes a channel's range thousands of times its
    pulse, and all of the pulse would lie "on the rail": so the range counts at most `OUTLYING` times the
    usual movement.
    """
    nothing = np.zeros(len(x), bool)
    if not valid.any():
        return nothing
    known = x if valid.all() else x[valid]
    low, high = float(known.min()), float(known.max())
    if low == high:
        return nothing
    slack = rail * (high - low)
    found = _near(x, valid, low, high, slack, shortest)
    if not found.any():
        return found  # a smaller slack finds less
    narrow = rail * OUTLYING * usual_movement(known, max(2, round(shortest)))
    return _near(x, valid, low, high, narrow, shortest) if narrow < slack else found


def _near(
    x: np.ndarray, valid: np.ndarray, low: float, high: float, slack: float, shortest: float
) -> np.ndarray:
    top = long_runs(valid & (x >= high - slack), shortest)
    return top | long_runs(valid & (x <= low + slack), shortest)


def usual_movement(known: np.ndarray, length: int) -> float:
    """The usual movement of a channel within `length` samples: the upper quartile over all such stretches
    that move, each without a tenth of its samples.

    So outliers may lie in any stretch, and saturation with a ripple may fill three quarters of the record.
    """
    whole = known[: len(known) // length * length].reshape(-1, length)
    low, high = np.quantile(whole, (0.05, 0.95), axis=1) if len(whole) else (np.zeros(0), np.zeros(0))
    moves = (high - low)[high > low]
    return float(np.quantile(moves, 0.75)) if len(moves) else np.inf


def verdicts(x_tc: np.ndarray, missing: np.ndarray, rate: float, limits: Limits) -> np.ndarray:
    """One code per sample (T,) for a signal (T, C) whose short gaps are already bridged.

    Missing or clipped in any channel refuses the sample; flat must be flat in every channel (an accelerometer
    at rest has quiet axes). Missing takes precedence over clipped, clipped over flat.
    """
    valid = ~missing
    channels = [np.ascontiguousarray(x_tc[:, c]) for c in range(x_tc.shape[1])]
    codes = np.zeros(len(x_tc), np.uint8)
    flat = np.ones(len(x_tc), bool)
    clipped = np.zeros(len(x_tc), bool)
    for x in channels:
        flat &= constant(x, valid, limits.flat_s * rate)
        clipped |= on_rail(x, valid, limits.rail, limits.clipped_s * rate)
    codes[flat], codes[clipped], codes[missing] = FLAT, CLIPPED, NAN
    return codes


def drop_fragments(codes: np.ndarray, shortest: float) -> np.ndarray:
    """Refuse kept stretches under `shortest` samples. A fully kept signal is not a fragment."""
    if not codes.any():
        return codes
    kept = codes == KEPT
    codes = codes.copy()
    codes[kept & ~long_runs(kept, shortest)] = FRAGMENT
    return codes


def stretches(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, stops and codes of the maximal stretches of equal code."""
    if not len(codes):
        return np.zeros(0, int), np.zeros(0, int), codes
    cuts = np.flatnonzero(np.diff(codes)) + 1
    starts = np.concatenate(([0], cuts))
    return starts, np.concatenate((cuts, [len(codes)])), codes[starts]
