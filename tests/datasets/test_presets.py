"""Windows of the methods' presets on real recordings, against a plain float64 loop over windows.

Tolerance: 1e-5 of a window's largest value (float32 keeps 6e-8); polarity and verdicts are equal. Priors are
float32 throughout: 1e-5, but 1e-3 where a patch is nearly flat, whose skewness rests on rounded samples.
"""

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pytest
import torch

from datasets.judge import judge
from datasets.schema import row_schema
from datasets.signal import normalise
from datasets.windows import WindowSpec, cut, empty, extract, grid
from pretrain.masking import priors
from pretrain.recipes.anyppg import AnyPPGConfig
from pretrain.recipes.sigma_windows import Windows
from tests.benchmarks import looped

ANYPPG = AnyPPGConfig()
SPECS = {
    "sigma": Windows(window_s=60.0).spec(),
    "anyppg": WindowSpec(signals=ANYPPG.signals(), window_s=ANYPPG.window_s),
}


@lru_cache
def rows(folder) -> pa.Table:
    """Four minutes of each of two monitors: 125 Hz of BIDMC, 250 Hz of CinC 2015."""
    wfdb = pytest.importorskip("wfdb")
    found = []
    for name in ("bidmc/bidmc13", "cinc2015/a123l"):
        record = wfdb.rdrecord(str(folder / name), physical=False)
        row = {"subject": "s", "record": name, "start_s": 0.0, "duration_s": 240.0}
        for m, channel in (("ppg", "PLETH"), ("ecg", "II")):
            i = record.sig_name.index(channel)
            x = record.d_signal[: 240 * record.fs, i]
            scale = 1 / record.adc_gain[i]
            row |= {m: x.astype("<i2").tobytes(), f"{m}_rate": float(record.fs), f"{m}_scale": scale}
            row |= {f"{m}_offset": -record.baseline[i] * scale, f"{m}_unit": "x", f"{m}_channels": 1}
        found.append(row)
    return pa.Table.from_pylist(found, row_schema(["ppg", "ecg"]))


def places(spec: WindowSpec) -> tuple[np.ndarray, np.ndarray]:
    offset = grid(240.0, spec)
    return np.repeat([0, 1], len(offset)), np.tile(offset, 2)


def looped_windows(
    table: pa.Table, spec: WindowSpec, number: int
) -> list[tuple[np.ndarray, float, np.ndarray]]:
    """(raw samples, Hz, prepared window) of each."""
    row, offset = places(spec)
    sig = spec.signals[number]
    cuts, gain = cut(table, row, offset, sig, spec.window_s)
    every = zip(cuts, *(g.tolist() for g in gain), strict=True)
    return [(x, rate, looped.window(x, rate, scale, shift, sig)) for x, rate, scale, shift in every]


@pytest.mark.parametrize("name", SPECS)
def test_prepared_windows_are_the_loops(data, name: str) -> None:
    spec, table = SPECS[name], rows(data)
    row, offset = places(spec)
    out = empty(len(row), spec)
    extract(table, row, offset, spec, out, np.arange(len(row)))
    for number, sig in enumerate(spec.signals):
        for got, (_, _, want) in zip(
            out[sig.modality][:, 0], looped_windows(table, spec, number), strict=True
        ):
            np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_verdicts_are_the_loops(data) -> None:
    spec, table = SPECS["anyppg"], rows(data)
    want = np.full(len(places(spec)[0]), "ok", object)
    for number, sig in reversed(list(enumerate(spec.signals))):
        said = [looped.verdict(raw, rate, x, sig) for raw, rate, x in looped_windows(table, spec, number)]
        want = np.where(np.array(said) != "ok", said, want)
    got = judge(table, *places(spec), spec)["verdict"].to_pylist()
    assert got == want.tolist() and len(set(got)) > 1  # both recordings have windows of either kind


def test_priors_are_the_loops(data) -> None:
    spec, table = SPECS["sigma"], rows(data)
    x = np.stack([x for _, _, x in looped_windows(table, spec, 0)])
    unit = torch.from_numpy(normalise(x, "minmax").astype(np.float32)).unflatten(1, (-1, 100))
    want = np.stack([looped.priors(looped.minmax(w), 100) for w in x])
    error, flat = np.abs(priors(unit).numpy() - want), unit.std(-1).numpy() < 5e-3
    assert error[~flat].max() < 1e-5 and error.max() < 1e-3 and flat.mean() < 0.05
