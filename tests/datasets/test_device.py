"""Windows prepared in torch against `windows.extract`, `signal.prepare` and `ecg.inverted`, on drawn inputs.

Before the cast the two differ by at most 1e-9 of a window's range; after it by one unit in the last place of
the window's largest value, which is what samples near zero may be apart.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from cluster.errors import PlethoraError
from datasets import device as on
from datasets import ecg
from datasets.raw import Part, gather, prepared
from datasets.schema import row_schema
from datasets.signal import Signal, length, normalise, prepare
from datasets.signal import exact as before_the_cast
from datasets.windows import WindowSpec, empty, extract
from pretrain.config import Stream
from tests.datasets.test_ecg import ANYPPG, beats
from tests.pretrain.test_syncs import Waits

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
PPG = Signal(modality="ppg", rate=50.0, band=(0.5, 8.0))
ECG = ANYPPG.model_copy(update={"upright": True, "required": False, "min_rate": 100.0})
HOW = ["none", "minmax", "minmax_signed", "zscore"]
KINDS = {
    "band": {"band": (0.5, 8.0)},
    "high-pass and notch": {"band": (0.5, None), "order": 5, "notch": 50.0},
    "notch": {"band": None, "notch": 50.0},
    "none": {"band": None},
}


def row(rng: np.random.Generator, number: int, **signals: tuple[float, int] | None) -> dict[str, Any]:
    """31 s; signals: {modality: (rate, channels)}."""
    found: dict[str, Any] = {"subject": "s", "record": f"r{number}", "start_s": 0.0, "duration_s": 31.0}
    for m, there in signals.items():
        parts: dict[str, Any] = dict.fromkeys(("", "_rate", "_scale", "_offset", "_unit", "_channels"))
        if there is not None:
            rate, channels = there
            x = rng.normal(size=(channels, round(31 * rate))).cumsum(-1)
            if m == "ecg":
                x = np.stack([beats(31, rate, 60 + number, number) * (-1) ** number] * channels)
            x = (3e4 * x / np.abs(x).max()).T.astype("<i2")
            parts = {"": x.tobytes(), "_rate": rate, "_scale": 0.5 + number, "_offset": -7.0}
            parts |= {"_unit": "x", "_channels": channels}
        found |= {m + part: value for part, value in parts.items()}
    return found


def tables(rng: np.random.Generator, *rows: list[dict[str, Any]]) -> list[pa.Table]:
    return [pa.Table.from_pylist(some, row_schema(["ppg", "ecg"])) for some in rows]


def drawn(rng: np.random.Generator, table: list[pa.Table], n: int, spec: WindowSpec) -> list[Part]:
    """`n` windows scattered over the row groups, not only where the grid has them."""
    whose, at = rng.integers(0, len(table), n), rng.permutation(n)
    parts = []
    for number, one in enumerate(table):
        here = at[whose == number]
        rows = rng.integers(0, len(one), len(here))
        offset = rng.uniform(0, 31 - spec.window_s, len(here))
        used = rng.random((len(spec.signals), len(here))) < 0.9
        used[[s.required for s in spec.signals]] = True
        parts.append((one, rows, offset, here, used))
    return parts


def same(got: dict[str, torch.Tensor], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, x in want.items():
        found = got[name].cpu().numpy()
        assert found.dtype == x.dtype and found.shape == x.shape
        near = np.spacing(np.abs(x).max(axis=-1, keepdims=True)) if x.ndim > 1 else 0
        assert (np.abs(found.astype(float) - x) <= near).all(), name


def extracted(parts: list[Part], n: int, spec: WindowSpec) -> dict[str, np.ndarray]:
    out = empty(n, spec)
    for table, rows, offset, at, used in parts:
        extract(table, rows, offset, spec, out, at, used)
    return out


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    how=st.sampled_from(HOW),
    to=st.sampled_from([40.0, 50.0, 128.0]),
    window_s=st.sampled_from([10.0, 9.97, 30.0]),
    channels=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_batches_of_mixed_rates_out_of_many_row_groups_equal_extract(
    device, kind, how, to, window_s, channels, seed
) -> None:
    rng = np.random.default_rng(seed)
    sig = Signal(modality="ppg", rate=to, normalise=how, channels=channels, **KINDS[kind])
    spec = WindowSpec(signals=(sig, ECG), window_s=window_s)
    table = tables(
        rng,
        [row(rng, 0, ppg=(50.0, 2), ecg=None), row(rng, 1, ppg=(124.945, 3), ecg=(250.0, 1))],
        [row(rng, 2, ppg=(125.0, 2), ecg=(500.0, 2)), row(rng, 3, ppg=(62.4725, 2), ecg=(62.5, 1))],
        [row(rng, 4, ppg=(250.0, 2), ecg=(250.0, 1))],
    )
    parts = drawn(rng, table, 50, spec)
    raw = gather(iter(parts), 50, spec)
    want = extracted(parts, 50, spec)
    assert all(x.dtype == "<i2" for name, x in raw.items() if name in ("ppg", "ecg"))
    assert not raw["ecg"][~raw["has_ecg"]].any() and 0 < raw["has_ecg"].sum() < 50
    same(on.batch_on(device, spec, raw), want)
    here = prepared(raw, spec)  # by NumPy: bit for bit
    assert here.keys() == want.keys() and all(np.array_equal(here[name], x) for name, x in want.items())
    some = {name: torch.from_numpy(x[7:23]) for name, x in raw.items()}  # rows of it, as the stream cuts them
    same(on.batch_on(device, spec, some), {name: x[7:23] for name, x in want.items()})


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    how=st.sampled_from(HOW),
    upright=st.booleans(),
    rate=st.sampled_from([62.4725, 125.0, 250.0]),
    n=st.sampled_from([100, 625, 1249, 3748]),
    to=st.sampled_from([100, 501, 1000, 1249, 3000]),
    seed=st.integers(0, 99),
)
def test_before_the_cast_it_is_prepare_to_1e9_of_the_range(
    device, kind, how, upright, rate, n, to, seed
) -> None:
    rng = np.random.default_rng(seed)
    x = np.stack([beats(n / rate, rate, 70 + i, seed)[:n] * (-1) ** i for i in range(3)])[:, None]
    x = (8000 * x + 300).astype("<i2")
    sig = Signal(modality="x", rate=to * rate / n, normalise=how, upright=upright, **KINDS[kind])
    scale, offset = rng.uniform(0.1, 2, 3), rng.normal(size=3)
    given_ = x if sig.removes_offset else x + (offset / scale)[:, None, None]
    want = before_the_cast(given_, rate, sig, scale, to)
    got = on.exact(
        torch.from_numpy(x).to(device),
        rate,
        *(torch.tensor(g, device=device) for g in (scale, offset)),
        sig,
        to,
    )
    assert got.dtype == torch.float64
    assert (np.abs(got.cpu().numpy() - want) <= 1e-9 * np.ptp(want, axis=-1, keepdims=True)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_windows_that_need_but_their_gain_and_short_ones_are_equal_bit_for_bit(device) -> None:
    rng = np.random.default_rng(0)
    table = tables(rng, [row(rng, 0, ppg=(50.0, 1), ecg=None), row(rng, 1, ppg=(50.0, 2), ecg=None)])
    for sig, window_s in ((PPG.model_copy(update={"band": None}), 10.0), (PPG, 1.5)):
        spec = WindowSpec(signals=(sig,), window_s=window_s)
        parts = drawn(rng, table, 40, spec)
        got = on.batch_on(device, spec, gather(parts, 40, spec))
        np.testing.assert_array_equal(got["ppg"].cpu().numpy(), extracted(parts, 40, spec)["ppg"])


UNFUSED: list[dict[str, Any]] = [
    {"band": (0.5, 12.0), "filter": "chebyshev2", "order": 4, "attenuation": 20.0},
    {"band": (0.5, 8.0), "filter": "fir", "taps": 101},
    {"band": (0.5, 8.0), "smooth_s": 0.05},
    {"baseline_s": 0.4},
    {"band": (0.5, 8.0), "resample": "polyphase"},
    {"resample": "linear", "normalise": "zscore"},
    {"band": (0.5, 8.0), "sequence": ("resample", "filter", "normalise")},
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("told", UNFUSED)
def test_steps_that_a_device_does_not_do_are_the_hosts_bit_for_bit(device, told: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    spec = WindowSpec(signals=(Signal(modality="ppg", rate=50.0, **told),), window_s=10.0)
    table = tables(rng, [row(rng, 0, ppg=(50.0, 1), ecg=None), row(rng, 1, ppg=(124.945, 2), ecg=None)])
    parts = drawn(rng, table, 20, spec)
    got = on.batch_on(device, spec, gather(parts, 20, spec))
    np.testing.assert_array_equal(got["ppg"].cpu().numpy(), extracted(parts, 20, spec)["ppg"])


def test_a_stream_that_may_choose_leaves_such_steps_to_its_actors() -> None:
    def sent(prepare: str, device: str, **told: Any) -> bool:
        spec = WindowSpec(signals=(PPG, Signal(modality="ecg", rate=50.0, **told)), window_s=10.0)
        return Stream(prepare=prepare).sends_raw(device, spec)

    for told in UNFUSED:
        assert not sent("auto", "cuda", **told) and not sent("actor", "cuda", **told)
        assert sent("worker", "cuda", **told) and sent("worker", "cpu", **told)
    for told in KINDS.values():
        assert sent("auto", "cuda", **told) and not sent("auto", "cpu", **told)


def test_a_signal_that_no_window_has_is_zeros_and_a_later_rate_may_be_higher() -> None:
    rng = np.random.default_rng(0)
    spec = WindowSpec(signals=(PPG, ECG), window_s=10.0)
    table = tables(rng, [row(rng, 0, ppg=(125.0, 1), ecg=None)], [row(rng, 1, ppg=(250.0, 1), ecg=None)])
    parts = [(t, np.zeros(1, int), np.zeros(1), np.array([i]), None) for i, t in enumerate(table)]
    raw = gather(parts, 2, spec)
    assert raw["ecg"].shape == (2, 1, 0) and raw["ppg"].shape == (2, 1, 2500)
    assert raw["ppg"][0, 0, :1250].any() and not raw["ppg"][0, 0, 1250:].any()
    got = on.batch_on(CPU, spec, raw)
    same(got, extracted(parts, 2, spec))
    assert not got["ecg"].any() and not got["has_ecg"].any()


def test_an_impossible_band_is_refused_as_prepare_refuses_it() -> None:
    cuts = on.Cuts(
        torch.zeros(1, 1, 150, dtype=torch.int16), *np.array([[15.0], [1.0], [0.0]]), window_s=10.0
    )
    with pytest.raises(PlethoraError, match=r"0\.5-8 Hz does not fit a signal of 15 Hz"):
        on.prepared(cuts, PPG, 500, CPU)


@pytest.mark.parametrize("how", HOW[1:])
@pytest.mark.parametrize("value", [3.0, 0.1])
def test_a_constant_window_normalises_to_zeros(how: str, value: float) -> None:
    assert (on.normalise(torch.full((1, 1, 9), value, dtype=torch.float64), how) == 0).all()


def test_normalisation_is_that_of_numpy() -> None:
    x = np.random.default_rng(0).normal(1e3, 2, (3, 2, 500))
    for how in HOW:
        np.testing.assert_allclose(on.normalise(torch.from_numpy(x), how), normalise(x, how), atol=1e-10)


def test_polarity_is_that_of_ecg_on_drawn_windows() -> None:
    rng = np.random.default_rng(0)
    for rate, seconds in ((100.0, 10), (250.0, 3.33), (500.0, 10), (499.9, 1.2)):
        x = np.stack([beats(seconds, rate, rng.uniform(40, 180), i) * (-1) ** i for i in range(40)])
        x = np.concatenate([x, rng.normal(size=x.shape).cumsum(-1), np.full_like(x[:1], 5)])[:, None]
        np.testing.assert_array_equal(on.inverted(torch.from_numpy(x), rate), ecg.inverted(x, rate))


def test_polarity_is_that_of_ecg_on_real_windows(data) -> None:
    wfdb = pytest.importorskip("wfdb")
    for folder, name, rate in (
        ("bidmc", "bidmc13", 125),
        ("bidmc", "bidmc03", 125),
        ("cinc2015", "a123l", 250),
    ):
        record = wfdb.rdrecord(str(data / folder / name), physical=False)
        for lead in {"II", "V"} & set(record.sig_name):
            raw = record.d_signal[: 24 * 10 * rate, record.sig_name.index(lead)].astype("<i2")
            x = raw.reshape(24, 1, -1)
            want = ecg.inverted(prepare(x, rate, ANYPPG).astype(float), 500)
            prepared = on.exact(torch.from_numpy(x), rate, torch.ones(24), torch.zeros(24), ANYPPG, 5000)
            np.testing.assert_array_equal(on.inverted(prepared, 500.0), want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_window_is_the_same_bit_for_bit_whatever_it_is_batched_with(device, threads: int) -> None:
    """On CUDA this shows that the libraries at hand do what they do not promise."""
    rng, before = np.random.default_rng(1), torch.get_num_threads()
    spec = WindowSpec(signals=(PPG, ECG), window_s=30.0)
    table = tables(
        rng,
        [row(rng, 0, ppg=(125.0, 2), ecg=(250.0, 1)), row(rng, 1, ppg=(250.0, 1), ecg=None)],
        [row(rng, 2, ppg=(125.0, 1), ecg=(250.0, 1))],
    )
    raw = gather(drawn(rng, table, 75, spec), 75, spec)
    torch.set_num_threads(threads)
    try:
        want = on.batch_on(device, spec, raw)
        for size in (1, 2, 7, 40):
            order = rng.permutation(75)
            for low in range(0, 75, size):
                some = order[low : low + size]
                got = on.batch_on(device, spec, {name: x[some] for name, x in raw.items()})
                assert all(torch.equal(x, want[name][some]) for name, x in got.items())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("how", HOW)
def test_on_a_gpu_the_host_waits_for_nothing(kind: str, how: str) -> None:
    """With fake CUDA tensors: once the filters lie there, no operation reads a value or copies."""
    sig = Signal(modality="ecg", rate=128.0, normalise=how, upright=True, **KINDS[kind])
    caches = (on._filter, on._polarity)
    with FakeTensorMode():
        raw = torch.empty(on.TOGETHER, 1, 2500, dtype=torch.int16, device="cuda")
        gain = torch.empty(2, on.TOGETHER, dtype=torch.float64, device="cuda")
        try:
            for told in (sig, Signal(modality="ecg", rate=250.0)):
                to = round(10 * told.rate)
                on.whole(raw, 250.0, *gain, told, to)
                with Waits() as waits:
                    done = on.whole(raw, 250.0, *gain, told, to)
                assert not waits.found and done.device.type == "cuda"
                assert done.shape == (on.TOGETHER, 1, to) and done.dtype == torch.float32
        finally:
            for cache in caches:  # of fake tensors
                cache.cache_clear()


def test_what_comes_to_the_device_is_a_few_tensors_and_its_index_is_no_mask() -> None:
    sent = []
    spec = WindowSpec(signals=(PPG,), window_s=10.0)
    rng = np.random.default_rng(0)
    table = tables(rng, [row(rng, 0, ppg=(125.0, 1), ecg=None), row(rng, 1, ppg=(250.0, 1), ecg=None)])
    raw = gather(drawn(rng, table, 50, spec), 50, spec)
    on.batch_on(CPU, spec, raw)
    send = on._sent
    with pytest.MonkeyPatch.context() as patch, Waits() as waits:
        patch.setattr(on, "_sent", lambda x, device: sent.append(x.dtype) or send(x, device))
        on.batch_on(CPU, spec, raw)
    assert not waits.found and sorted(map(str, sent)) == ["torch.float64", "torch.int16", "torch.int64"]
    assert int(length(10.0, 250.0)) == raw["ppg"].shape[-1]
