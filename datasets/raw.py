"""Raw windows: int16 as stored in a corpus, with the scale to physical values, prepared later and elsewhere.

A process that only passes windows on reads and cuts them: half the bytes of float32 at the same rate, and no
filter. They are plain arrays with one row per window, which can be split and joined like prepared ones. GPU
workers prepare them on the device (`datasets.device`), CPU workers here (`prepared`).
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from datasets.signal import length
from datasets.windows import WindowSpec, column, empty, present, transform

GAINS = ("_rate", "_scale", "_offset")

# rows of one row group: its table, each window's row, its start there in seconds, its place in the batch, and
# the signals to take (signals, n) bool (None: those present in the row)
Part = tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


def gather(parts: Iterable[Part], n: int, spec: WindowSpec) -> dict[str, np.ndarray]:
    """The raw samples of `n` windows from the row groups `parts`, which are iterated once.

    Returns for every signal {modality: (n, channels, longest) "<i2", modality + "_rate", "_scale", "_offset":
    (n,) float64}, where longest is the length of the longest window and shorter ones are padded with zeros;
    and for each optional modality {"has_" + modality: (n,) bool}. If a window lacks a signal, its samples and
    rate are 0. Windows are cut as in `windows.extract`. Every place of the batch must occur in one part.
    """
    out: dict[str, np.ndarray] = {}
    for sig in spec.signals:
        out[sig.modality] = np.empty((n, sig.channels, 0), "<i2")
        out |= {sig.modality + part: np.zeros(n) for part in GAINS}
    out |= {f"has_{m}": np.zeros(n, bool) for m in spec.optional}
    for table, row, offset_s, at, used in parts:
        there = present(table, spec)[:, row]
        if used is not None:
            there &= used
        for sig, wanted in zip(spec.signals, there, strict=True):
            m, which = sig.modality, np.flatnonzero(wanted)
            if not sig.required:
                out[f"has_{m}"][at] = wanted
            if not len(which):
                continue
            of, rows = column(table, m), row[which]
            begin, count, channels = of.stretch(rows, offset_s[which], spec.window_s)
            room = out[m] = _wide(out[m], int(count.max()))
            stretches = zip(
                at[which].tolist(), begin.tolist(), count.tolist(), channels.tolist(), strict=True
            )
            for place, low, n, c in stretches:
                samples = of.flat[low : low + n * c]
                room[place, :, :n] = samples if c == 1 else samples.reshape(n, c)[:, : sig.channels].T
                if n < room.shape[-1]:
                    room[place, :, n:] = 0
            for part, values in zip(GAINS, (of.rate, of.scale, of.offset), strict=True):
                out[m + part][at[which]] = values[rows]
    for sig in spec.signals:
        out[sig.modality][out[sig.modality + "_rate"] == 0] = 0
    return out


def _wide(room: np.ndarray, longest: int) -> np.ndarray:
    """`room` (n, channels, samples), enlarged to at least `longest` samples: a later rate may be higher."""
    held = room.shape[-1]
    if longest <= held:
        return room
    wider = np.empty((*room.shape[:-1], longest), room.dtype)
    if held:
        wider[..., :held], wider[..., held:] = room, 0
    return wider


def prepared(batch: Mapping[str, np.ndarray], spec: WindowSpec) -> dict[str, np.ndarray]:
    """Equals `windows.extract`, bit for bit, for the output of `gather` or rows of it."""
    out = empty(len(batch[spec.signals[0].modality]), spec)
    for sig in spec.signals:
        m = sig.modality
        rate, scale, offset = (batch[m + part] for part in GAINS)
        there = np.flatnonzero(rate > 0)
        out[m][rate == 0] = 0
        longest = length(spec.window_s, rate[there])
        cuts = [batch[m][i, :, :n].T for i, n in zip(there.tolist(), longest.tolist(), strict=True)]
        transform(cuts, rate[there], scale[there], offset[there], sig, out[m], there)
    return out | {f"has_{m}": batch[f"has_{m}"] for m in spec.optional}
