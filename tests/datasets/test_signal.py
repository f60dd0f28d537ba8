"""Signal functions against scipy's own, window by window, on drawn inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal as scipy_signal

from cluster.errors import PlethoraError
from datasets.signal import Signal, filtered, normalise, periodicity, prepare, resample, samples
from datasets.zerophase import design


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 4),
    length=st.sampled_from([30, 31, 250, 999, 3000]),
    rates=st.sampled_from([(125, 50), (250, 50), (50, 50), (100, 125), (60, 40), (125, 40), (62.4725, 50)]),
    seed=st.integers(0, 99),
)
def test_resampling_equals_scipys_fourier_method(n: int, length: int, rates: tuple, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 1, length))
    m = samples(length, *rates)
    np.testing.assert_allclose(resample(x, m), scipy_signal.resample(x, m, axis=-1), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), rate=st.sampled_from([125.0, 250.0]), order=st.sampled_from([2, 3]))
def test_the_band_pass_equals_a_window_by_window_sosfiltfilt(seed: int, rate: float, order: int) -> None:
    x = np.random.default_rng(seed).normal(size=(3, 2, 700)).cumsum(-1)
    sos = scipy_signal.butter(order, [0.5, 8], "bandpass", fs=rate, output="sos")
    want = np.stack([[scipy_signal.sosfiltfilt(sos, channel) for channel in window] for window in x])
    np.testing.assert_allclose(filtered(x, rate, (0.5, 8), order), want, atol=1e-9 * np.abs(want).max())


def test_preparing_filters_at_the_native_rate_and_then_resamples() -> None:
    x = np.random.default_rng(0).normal(size=(2, 1, 2500)).cumsum(-1)
    sig = Signal(modality="ppg", rate=50, band=(0.5, 8), normalise="minmax")
    y = scipy_signal.resample(
        scipy_signal.sosfiltfilt(scipy_signal.butter(2, [0.5, 8], "bandpass", fs=250, output="sos"), x),
        500,
        axis=-1,
    )
    y = (y - y.min(-1, keepdims=True)) / np.ptp(y, axis=-1, keepdims=True)
    got = prepare(x, 250, sig)
    assert got.dtype == np.float32 and got.shape == (2, 1, 500)
    np.testing.assert_allclose(got, y, atol=1e-6)


def test_a_batch_equals_its_windows_one_by_one() -> None:
    x = np.random.default_rng(1).normal(size=(5, 1, 1250))
    sig = Signal(modality="ppg", rate=50, band=(0.5, 8))
    np.testing.assert_array_equal(
        prepare(x, 125, sig), np.concatenate([prepare(w[None], 125, sig) for w in x])
    )


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([62.4725, 125.0, 250.0, 500.0]),
    to=st.sampled_from([40.0, 50.0, 125.0]),
    seconds=st.sampled_from([2.0, 3.33, 10.0, 61.0]),
    order=st.sampled_from([1, 2, 3]),
    band=st.sampled_from([(0.5, 8.0), (0.3, 20.0), (1.0, 5.0)]),
    seed=st.integers(0, 99),
)
def test_two_transforms_equal_sosfiltfilt_and_resample(rate, to, seconds, order, band, seed) -> None:
    n = round(seconds * rate)
    x = np.random.default_rng(seed).normal(size=(3, n)).cumsum(-1) + 100
    sos = scipy_signal.butter(order, band, "bandpass", fs=rate, output="sos")
    want = scipy_signal.resample(scipy_signal.sosfiltfilt(sos, x), samples(n, rate, to), axis=-1)
    got = design(rate, band, order, n, want.shape[-1])(x)
    np.testing.assert_allclose(got, want, atol=1e-7 * np.abs(want).max())


def test_a_window_is_the_same_bit_for_bit_whatever_it_is_batched_with() -> None:
    x = np.random.default_rng(4).normal(size=(13, 1, 7500)).cumsum(-1)
    apply = design(125.0, (0.5, 8.0), 2, 7500, 3000)
    whole = apply(x)
    for part in (1, 2, 5):
        np.testing.assert_array_equal(
            np.concatenate([apply(x[i : i + part]) for i in range(0, 13, part)]), whole
        )


def test_a_band_above_half_the_rate_is_refused_by_name() -> None:
    with pytest.raises(PlethoraError, match=r"0\.5-8 Hz does not fit a signal of 15 Hz"):
        filtered(np.zeros((1, 100)), 15, (0.5, 8), 2)


@pytest.mark.parametrize("how", ["minmax", "zscore"])
def test_a_constant_window_normalises_to_zeros(how: str) -> None:
    assert (normalise(np.full((1, 1, 9), 3.0), how) == 0).all()


def test_periodicity_is_high_for_a_pulse_and_low_for_noise_and_slow_drift() -> None:
    rng = np.random.default_rng(2)
    t = np.arange(0, 30, 1 / 50)
    pulse = (
        np.sin(2 * np.pi * 1.2 * t) + 0.4 * np.sin(2 * np.pi * 2.4 * t + 1) + 0.1 * rng.normal(size=t.size)
    )
    drift = np.sin(2 * np.pi * 0.05 * t)
    q = periodicity(np.stack([pulse, rng.normal(size=t.size), drift, np.zeros_like(t)]), 50)
    assert q[0] > 0.9 and q[1] < 0.3 and q[2] < 0.3 and q[3] == 0


def test_periodicity_equals_a_loop_over_lags() -> None:
    x = np.random.default_rng(3).normal(size=300)
    x -= x.mean()
    r = {lag: (x[lag:] @ x[:-lag]) * (300 / (300 - lag)) / (x @ x) for lag in range(15, 101)}
    best = max(
        (v for k, v in r.items() if k - 1 in r and k + 1 in r and v >= r[k - 1] and v >= r[k + 1]), default=0
    )
    assert periodicity(x[None], 50)[0] == pytest.approx(min(max(best, 0), 1), abs=1e-9)
