"""What published pipelines do to a signal, each kind against scipy written out window by window."""

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.signal as ss
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datasets.schema import row_schema
from datasets.signal import Signal, exact, normalise, prepare, resample
from datasets.windows import WindowSpec, empty, extract, transform

PAPAGEI: dict[str, Any] = {  # pyPPG 1.0.41's preprocessing, and PaPaGei's resampling
    "rate": 125.0,
    "band": (0.5, 12.0),
    "filter": "chebyshev2",
    "order": 4,
    "attenuation": 20.0,
    "smooth_s": 0.05,
    "smooth_from": 75.0,
    "resample": "polyphase",
}
ECGFOUNDER: dict[str, Any] = {
    "rate": 500.0,
    "band": (0.67, 40.0),
    "order": 4,
    "notch": 50.0,
    "baseline_s": 0.4,
    "resample": "linear",
    "normalise": "zscore",
}
PULSEPPG = {"rate": 50.0, "resample": "linear", "normalise": "zscore"}
FIR: dict[str, Any] = {"rate": 100.0, "band": (0.5, 8.0), "filter": "fir", "taps": 101}


def walk(seed: int, n: int, rows: int = 2) -> np.ndarray:
    """(rows, n) random walks on an offset, as raw samples have it."""
    return np.random.default_rng(seed).normal(size=(rows, n)).cumsum(-1) + 1000


def near(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    assert (np.abs(got - want) <= 1e-9 * np.ptp(want, axis=-1, keepdims=True)).all()


def done(x: np.ndarray, rate: float, to: int, /, **told: Any) -> np.ndarray:
    """`prepare` of (rows, n) before its cast."""
    sig = Signal(modality="x", **told)
    return exact(x[:, None], rate, sig, to=to)[:, 0]


RECORDED: dict[str, Any] = dict(
    seed=st.integers(0, 99),
    rate=st.sampled_from([62.4725, 125.0, 250.0, 500.0]),
    seconds=st.sampled_from([3.3, 10.0, 30.0]),
)


@settings(max_examples=30, deadline=None)
@given(
    **RECORDED,
    order=st.integers(2, 6),
    attenuation=st.sampled_from([20.0, 40.0, 60.0]),
    band=st.sampled_from([(0.5, 12.0), (0.4, 8.0), (0.7, None)]),
    notch=st.sampled_from([None, 50.0]),
    to=st.sampled_from([50.0, 125.0]),
)
def test_chebyshev_2_is_scipys_forward_and_backward(
    seed, rate, seconds, order, attenuation, band, notch, to
) -> None:
    n, m = round(rate * seconds), round(to * seconds)
    x = walk(seed, n)
    edges, kind = (band[0], "highpass") if band[1] is None else (band, "bandpass")
    sos = ss.cheby2(order, attenuation, edges, btype=kind, fs=rate, output="sos")
    if notch and notch < rate / 2:
        sos = np.concatenate([sos, ss.tf2sos(*ss.iirnotch(notch, 30, fs=rate))])
    want = ss.resample(np.stack([ss.sosfiltfilt(sos, row) for row in x]), m, axis=-1)
    told = {"rate": to, "band": band, "order": order, "notch": notch}
    near(done(x, rate, m, filter="chebyshev2", attenuation=attenuation, **told), want)


@settings(max_examples=30, deadline=None)
@given(
    **RECORDED,
    taps=st.sampled_from([3, 31, 101, 401]),
    taper=st.sampled_from(["hamming", "hann", "blackman", ("kaiser", 8.6)]),
    band=st.sampled_from([(0.5, 8.0), (1.0, None)]),
    phase=st.sampled_from(["zero", "delayed"]),
)
def test_a_fir_filter_is_firwin_forward_and_backward_or_one_delayed_pass(
    seed, rate, seconds, taps, taper, band, phase
) -> None:
    n, m = round(rate * seconds), round(100 * seconds)
    x = walk(seed, n)
    edges, kind = (band[0], "highpass") if band[1] is None else (band, "bandpass")
    h = ss.firwin(taps, edges, pass_zero=kind, window=taper, fs=rate)
    if phase == "delayed":
        y = np.stack([np.convolve(row, h)[:n] for row in x])
    else:
        y = np.stack([ss.filtfilt(h, 1, row, padlen=min(3 * taps, n - 1)) for row in x])
    name, beta = taper if isinstance(taper, tuple) else (taper, None)
    told = FIR | {"taps": taps, "taper": name, "beta": beta, "band": band, "phase": phase}
    near(done(x, rate, m, **told), ss.resample(y, m, axis=-1))


def test_a_delayed_fir_lags_by_half_its_taps_and_a_zero_phase_one_does_not() -> None:
    x = np.zeros((1, 1000))
    x[0, 400] = 1
    told = FIR | {"rate": 100.0, "band": (1.0, 30.0)}
    assert done(x, 100, 1000, **told).argmax() == 400
    assert done(x, 100, 1000, **told, phase="delayed").argmax() == 400 + 50


@settings(max_examples=30, deadline=None)
@given(**RECORDED, smooth=st.sampled_from([0.01, 0.05, 0.3]), start=st.sampled_from([0.0, 75.0, 200.0]))
def test_the_moving_average_follows_the_band_forward_and_backward(seed, rate, seconds, smooth, start) -> None:
    n, m = round(rate * seconds), round(100 * seconds)
    x = walk(seed, n)
    sos = ss.butter(2, (0.5, 8), "bandpass", fs=rate, output="sos")
    y = np.stack([ss.sosfiltfilt(sos, row) for row in x])
    k = round(smooth * rate)
    if rate >= start and k > 1:
        y = np.stack([ss.filtfilt(np.ones(k) / k, 1, row, padlen=min(3 * k, n - 1)) for row in y])
        inner = slice(2 * k, -2 * k)  # away from the ends two plain means
        twice = np.stack([np.convolve(np.convolve(r, np.ones(k) / k), np.ones(k) / k) for r in x])
        plain = done(x, rate, n, rate=rate, smooth_s=smooth)
        np.testing.assert_allclose(plain[:, inner], twice[:, k - 1 : k - 1 + n][:, inner], rtol=1e-9)
    told = {"rate": 100.0, "band": (0.5, 8.0), "smooth_s": smooth, "smooth_from": start}
    near(done(x, rate, m, **told), ss.resample(y, m, axis=-1))


@settings(max_examples=10, deadline=None)
@given(**RECORDED, baseline=st.sampled_from([0.2, 0.4, 1.0]))
def test_the_running_median_is_medfilt(seed, rate, seconds, baseline) -> None:
    x = walk(seed, round(rate * seconds))
    k = int(baseline * rate) + 1
    k += 1 - k % 2
    near(
        done(x, rate, x.shape[-1], rate=rate, baseline_s=baseline),
        np.stack([row - ss.medfilt(row, k) for row in x]),
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    rates=st.sampled_from(
        [(125, 50), (250, 125), (64, 50), (50, 125), (100, 500), (1000, 125), (62.4725, 65)]
    ),
    n=st.sampled_from([1, 2, 99, 1000, 3748]),
)
def test_polyphase_and_linear_resampling_are_scipys_and_numpys(seed, rates, n) -> None:
    x = walk(seed, n)
    m = max(1, round(n * rates[1] / rates[0]))
    ratio = Fraction(m, n)
    want = np.stack([ss.resample_poly(row, ratio.numerator, ratio.denominator) for row in x])
    np.testing.assert_allclose(resample(x, m, "polyphase"), want, atol=1e-9 * np.abs(want).max())
    want = np.stack([np.interp(np.arange(m) / m * n, np.arange(n), row) for row in x])
    np.testing.assert_allclose(resample(x, m, "linear"), want, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), size=st.floats(1e-6, 1e6))
def test_normalisation_reaches_both_ends_or_unit_spread(seed, size) -> None:
    x = size * walk(seed, 500)
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    near(normalise(x, "minmax"), (x - low) / (high - low))
    near(normalise(x, "minmax_signed"), 2 * (x - low) / (high - low) - 1)
    near(normalise(x, "zscore"), (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True))
    assert normalise(x, "minmax_signed").min() == -1 and normalise(x, "minmax_signed").max() == 1
    for how in ("minmax", "minmax_signed", "zscore"):
        assert (normalise(np.full((1, 9), 3.0), how) == 0).all()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    sequence=st.permutations(["filter", "resample", "normalise"]),
    how=st.sampled_from(["zscore", "minmax_signed"]),
)
def test_the_steps_come_in_the_declared_sequence(seed, sequence, how) -> None:
    x, rate = walk(seed, 2500), 250.0
    y, at = x, rate
    for step in sequence:
        if step == "filter":
            sos = ss.butter(2, (0.5, 8), "bandpass", fs=at, output="sos")
            y = np.stack([ss.sosfiltfilt(sos, row) for row in y])
        elif step == "resample":
            y, at = np.stack([ss.resample_poly(row, 1, 2) for row in y]), 125.0
        else:
            y = normalise(y, how)
    told = {"rate": 125.0, "band": (0.5, 8.0), "resample": "polyphase", "normalise": how}
    near(done(x, rate, 1250, **told, sequence=tuple(sequence)), y)


@pytest.mark.parametrize(("rate", "share"), [(60.0, 1e-8), (125.0, 1e-5), (250.0, 1e-3)])
def test_papageis_preprocessing_can_be_declared(rate: float, share: float) -> None:
    """Written as pyPPG does it: `filtfilt` of numerator and denominator, the mean only from 75 Hz on.

    That form loses digits as the rate rises, sections do not: at 500 Hz it is off by 1 % of the range, at
    1,000 Hz it is another signal.
    """
    x = walk(1, round(10 * rate))
    b, a = ss.cheby2(4, 20, [0.5, 12], "bandpass", fs=rate)
    y = ss.filtfilt(b, a, x)
    if rate >= 75:
        k = round(rate * 50 / 1000)
        y = ss.filtfilt(np.ones(k) / k, 1, y)
    want = ss.resample_poly(y, 125, int(rate), axis=-1)
    got = done(x, rate, 1250, **PAPAGEI)
    assert (np.abs(got - want) <= share * np.ptp(want, axis=-1, keepdims=True)).all()


def test_ecgfounders_and_pulse_ppgs_preprocessing_can_be_declared() -> None:
    x = walk(2, 2500)
    sos = np.concatenate(
        [
            ss.butter(4, (0.67, 40), "bandpass", fs=250, output="sos"),
            ss.tf2sos(*ss.iirnotch(50, 30, fs=250)),
        ]
    )
    y = ss.sosfiltfilt(sos, x)
    y = y - np.stack([ss.medfilt(row, 101) for row in y])
    y = np.stack([np.interp(np.arange(5000) / 500, np.arange(2500) / 250, row) for row in y])
    near(done(x, 250.0, 5000, **ECGFOUNDER), normalise(y, "zscore"))
    x = walk(3, 640)
    y = np.stack([np.interp(np.arange(500) / 50, np.arange(640) / 64, row) for row in x])
    near(done(x, 64.0, 500, **PULSEPPG), normalise(y, "zscore"))


@pytest.mark.parametrize(
    "told",
    [
        PAPAGEI,
        PAPAGEI | {"smooth_s": None, "smooth_from": 0.0, "resample": "fft"},
        FIR,
        FIR | {"phase": "delayed"},
        ECGFOUNDER,
        PULSEPPG,
        {"rate": 50.0, "band": (0.5, 8.0), "sequence": ("resample", "filter", "normalise")},
        {"rate": 50.0, "band": (0.5, 8.0), "resample": "polyphase"},
    ],
)
def test_a_corpus_gives_what_its_physical_samples_give(told: dict[str, Any]) -> None:
    """The offset of stored samples counts wherever a filter or a resampler lets some of it through."""
    sig, rng = Signal(modality="ppg", **told), np.random.default_rng(0)
    raw = rng.normal(size=(3, 2500)).cumsum(-1).astype("<i2")
    scale, offset = np.array([0.5, 2.0, 1.0]), np.array([900.0, -40.0, 0.0])
    to = round(10 * sig.rate)
    out = np.zeros((3, 1, to), np.float32)
    transform([x[:, None] for x in raw], np.full(3, 250.0), scale, offset, sig, out, np.arange(3))
    want = prepare(raw[:, None] * scale[:, None, None] + offset[:, None, None], 250.0, sig, to=to)
    assert (np.abs(out - want) <= 1e-6 * np.ptp(want, axis=-1, keepdims=True)).all()


def test_windows_of_a_table_are_the_same_alone_and_together() -> None:
    sig = Signal(modality="ppg", **PAPAGEI)
    spec = WindowSpec(signals=(sig,), window_s=10.0)
    raw = np.random.default_rng(0).normal(size=20 * 250).cumsum().astype("<i2")
    row = {"subject": "s", "record": "r", "start_s": 0.0, "duration_s": 20.0, "ppg": raw.tobytes()}
    row |= {"ppg_rate": 250.0, "ppg_scale": 0.5, "ppg_offset": 3.0, "ppg_unit": "x", "ppg_channels": 1}
    table, starts = pa.Table.from_pylist([row], row_schema(["ppg"])), np.linspace(0, 10, 40)
    whole = empty(40, spec)
    extract(table, np.zeros(40, int), starts, spec, whole, np.arange(40))
    for i in (0, 17, 39):
        one = empty(1, spec)
        extract(table, np.zeros(1, int), starts[i : i + 1], spec, one, np.zeros(1, int))
        np.testing.assert_array_equal(one["ppg"][0], whole["ppg"][i])


# ---------------------------------------------------------------- what a Signal refuses, and what it keeps


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"filter": "chebyshev2", "attenuation": 20.0}, "need a band"),
        ({"filter": "chebyshev2", "band": (0.5, 8.0)}, "needs attenuation"),
        ({"attenuation": 20.0}, "needs attenuation"),
        ({"filter": "fir", "band": (0.5, 8.0)}, "needs taps"),
        ({"filter": "fir", "band": (0.5, 8.0), "taps": 100}, "taps must be odd"),
        ({"taps": 101}, "needs taps"),
        (FIR | {"taper": "kaiser"}, "needs beta"),
        (FIR | {"beta": 3.0}, "needs beta"),
        ({"taper": "hann"}, "taper goes with fir"),
        ({"phase": "delayed"}, "goes with fir"),
        (FIR | {"notch": 50.0}, "not with fir"),
        ({"smooth_from": 75.0}, "smooth_from goes with smooth_s"),
        ({"sequence": ("filter", "resample")}, "each once"),
        ({"upright": True, "sequence": ("normalise", "filter", "resample")}, "upright needs normalise"),
        (
            {"band": (0.5, 30.0), "sequence": ("resample", "filter", "normalise")},
            r"filtered after resampling: band 0\.5-30 Hz does not fit a signal of 50 Hz",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(told: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Signal(modality="ppg", **{"rate": 50.0} | told)


OLD = WindowSpec(
    signals=(
        Signal(modality="ppg", rate=125.0, band=(0.5, 8.0), order=3, normalise="zscore"),
        Signal(
            modality="ecg",
            rate=500.0,
            band=(0.5, None),
            order=5,
            notch=50.0,
            upright=True,
            min_rate=125.0,
            max_flat=0.25,
            gate="ecg",
            required=False,
        ),
    ),
    window_s=10.0,
    hop_s=5.0,
    min_quality=0.2,
)


def test_a_signal_without_the_later_keys_keeps_its_hash_and_its_json() -> None:
    """Values of before these keys existed: caches, checkpoints and materialised windows stay valid."""
    plain = WindowSpec(signals=(Signal(modality="ppg", rate=50.0, band=(0.5, 8.0)),), window_s=240.0)
    assert (plain.hash, OLD.hash) == ("07b0be7dd8f5a2cf", "dfd4fb3d87534bb9")
    assert list(OLD.model_dump(mode="json")["signals"][0]) == [
        "modality",
        "rate",
        "band",
        "order",
        "channels",
        "normalise",
        "required",
        "notch",
        "upright",
        "min_rate",
        "max_flat",
        "gate",
    ]


@pytest.mark.parametrize("told", [PAPAGEI, ECGFOUNDER, PULSEPPG, FIR | {"taper": "kaiser", "beta": 5.0}])
def test_the_later_keys_count_in_the_hash_and_survive_json(told: dict[str, Any]) -> None:
    spec = WindowSpec(signals=(Signal(modality="ppg", **told),), window_s=10.0)
    assert WindowSpec.model_validate_json(spec.model_dump_json()) == spec
    assert WindowSpec(**json.loads(spec.model_dump_json())) == spec
    plain = {k: v for k, v in told.items() if k in ("rate", "band", "order", "normalise", "notch")}
    other = WindowSpec(signals=(Signal(modality="ppg", **plain),), window_s=10.0)
    assert spec.hash != other.hash
