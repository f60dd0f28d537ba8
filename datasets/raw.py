"""Raw windows: int16 as a corpus holds them, with what makes them physical, prepared later and elsewhere.

A process that only carries windows reads and cuts them: half the bytes of float32 at the same rate, and no
filter. They are plain arrays with a row a window, which may be cut and joined as prepared ones may. Who
trains on a GPU prepares them there (`datasets.device`), a CPU worker here (`prepared`).
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from datasets.signal import length
from datasets.windows import WindowSpec, column, empty, present, transform

GAINS = ("_rate", "_scale", "_offset")

# rows of one row group: its table, each window's row, its start there in seconds, its place in the batch, and
# which signals to take (signals, n) bool (None: those that the row has)
Part = tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


def gather(parts: Iterable[Part], n: int, spec: WindowSpec) -> dict[str, np.ndarray]:
    """The raw samples of `n` windows out of the row groups `parts`, which are gone through once.

    Returns for every signal {modality: (n, channels, longest) "<i2", modality + "_rate", "_scale", "_offset":
    (n,) float64}, longest being the samples of the longest window, what lies beyond a shorter one zeros; and
    for each optional modality {"has_" + modality: (n,) bool}. Where a window lacks a signal, samples and rate
    are 0. Windows are cut as `windows.extract` cuts them. Every place of the batch must be in one part.
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
    """`room` (n, channels, samples) with `longest` samples at least: a later rate may be higher."""
    held = room.shape[-1]
    if longest <= held:
        return room
    wider = np.empty((*room.shape[:-1], longest), room.dtype)
    if held:
        wider[..., :held], wider[..., held:] = room, 0
    return wider


def prepared(batch: Mapping[str, np.ndarray], spec: WindowSpec) -> dict[str, np.ndarray]:
    """What `windows.extract` gives, of what `gather` gave, or rows of it, bit for bit."""
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
