"""Windows of a row group → the index columns that say which pass, and why the others do not."""

import numpy as np
import pyarrow as pa

from datasets import ecg
from datasets.signal import Signal
from datasets.windows import WindowSpec, cut, present, transform, verdicts

VERDICTS = ("ok", "absent", "flat", "nan", "quality")
TOGETHER = 64  # bounds memory: windows prepared at a time

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("group", pa.int32()),  # row group in the shard
        ("row", pa.int32()),  # row in the row group, as `read` returns it
        ("offset_s", pa.float64()),  # of the window within the row
        ("start_s", pa.float64()),  # of the window within the record
        ("subject", pa.string()),
        ("record", pa.string()),
        ("quality", pa.float32()),  # signal.periodicity of the first signal; null if absent
        ("verdict", pa.string()),  # ok, or the reason
    ]
)


def schema(spec: WindowSpec) -> pa.Schema:
    """`SCHEMA`, and for each optional modality `verdict_<m>` (ok, absent, or why the window is used without
    it), for each that is turned upright `inverted_<m>`.
    """
    more = [pa.field(f"verdict_{m}", pa.string()) for m in spec.optional]
    more += [pa.field(f"inverted_{s.modality}", pa.bool_()) for s in spec.signals if s.upright]
    return pa.schema([*SCHEMA, *more])


def judge(table: pa.Table, row: np.ndarray, offset: np.ndarray, spec: WindowSpec) -> dict[str, pa.Array]:
    """The columns of `schema` from `quality` on. The first required signal that refuses a window gives the
    reason; a refused optional signal is only left out; if no signal is left, the first one present gives it.
    """
    n, signals = len(row), spec.signals
    quality = np.full(n, np.nan, np.float32)
    verdict = np.full((len(signals), n), "absent", object)
    turned = np.zeros((len(signals), n), bool)
    there = present(table, spec)[:, row]
    for low in range(0, n, TOGETHER):
        for number, sig in enumerate(signals):
            which = low + np.flatnonzero(there[number, low : low + TOGETHER])
            cuts, gain = cut(table, row[which], offset[which], sig, spec.window_s)
            windows = np.empty((len(which), sig.channels, round(spec.window_s * sig.rate)), np.float32)
            # turned or not, a window passes the same gates
            transform(cuts, *gain, sig.model_copy(update={"upright": False}), windows, np.arange(len(which)))
            sound = None
            if sig.upright:
                upside_down, sound = ecg.looks(windows, sig.rate)
                turned[number, which] = upside_down.any(axis=1)
            q, verdict[number, which] = verdicts(windows, sig, spec, _flat(cuts, gain[0], sig), sound)
            if number == 0:
                quality[which] = q
    return _columns(quality, verdict, turned, spec)


def _flat(cuts: list[np.ndarray], rate: np.ndarray, sig: Signal) -> np.ndarray:
    """(n,) largest flat share of any channel, if the signal limits it."""
    share = np.zeros(len(cuts))
    if sig.max_flat < 1:
        for native in np.unique(rate):
            which = np.flatnonzero(rate == native)
            x = np.stack([cuts[i] for i in which.tolist()]).transpose(0, 2, 1)
            share[which] = ecg.flat_share(x, float(native)).max(axis=1)
    return share


def _columns(
    quality: np.ndarray, verdict: np.ndarray, turned: np.ndarray, spec: WindowSpec
) -> dict[str, pa.Array]:
    """`judge`'s columns from (n,) quality, (signals, n) verdicts and inversions."""
    whole = np.full(len(quality), "ok", object)
    used = np.any(verdict == "ok", axis=0)
    for number in reversed(range(len(spec.signals))):
        says = verdict[number]
        whole = np.where(~used & (says != "absent"), says, whole)
    for number, sig in reversed(list(enumerate(spec.signals))):
        if sig.required:
            whole = np.where(verdict[number] != "ok", verdict[number], whole)
    out = {"quality": pa.array(quality, from_pandas=True), "verdict": pa.array(whole.tolist(), pa.string())}
    for number, sig in enumerate(spec.signals):
        if not sig.required:
            out[f"verdict_{sig.modality}"] = pa.array(verdict[number].tolist(), pa.string())
        if sig.upright:
            out[f"inverted_{sig.modality}"] = pa.array(turned[number])
    return out
