"""Handcrafted features against waves whose truth is known."""

import numpy as np
import pytest
from scipy import signal

from finetune.evaluation import features

RATE, SECONDS = 50.0, 30.0
AT = {name: i for i, name in enumerate(features.NAMES)}


def pulses(interval_s: np.ndarray, notch: float = 0.35, rise_s: float = 0.12) -> np.ndarray:
    """A pulse wave (T,) of 30 s, band-passed, with a systolic and a dicrotic wave at each beat."""
    time = np.arange(0, SECONDS, 1 / RATE)
    x = np.zeros_like(time)
    for beat in np.concatenate([[0.3], 0.3 + np.cumsum(interval_s)]):
        x += np.exp(-0.5 * ((time - beat) / rise_s) ** 2) + notch * np.exp(
            -0.5 * ((time - beat - 0.3) / 0.1) ** 2
        )
    return signal.sosfiltfilt(signal.butter(2, [0.5, 8], "band", fs=RATE, output="sos"), x)


def steady(bpm: float, **shape: float) -> np.ndarray:
    return pulses(np.full(int(SECONDS * bpm / 60), 60 / bpm), **shape)


@pytest.mark.parametrize("bpm", [42, 55, 70, 88, 110, 140, 175])
@pytest.mark.parametrize("route", ["hr_autocorrelation", "hr_spectrum", "hr_beats", "hr_consensus"])
def test_every_route_to_the_heart_rate_finds_it(bpm: float, route: str) -> None:
    assert features.handcrafted(steady(bpm)[None], RATE)[0, AT[route]] == pytest.approx(bpm, abs=1.0)


def test_the_heart_rate_survives_noise_and_breathing() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(0, SECONDS, 1 / RATE)
    rates = rng.uniform(50, 150, 40)
    x = np.stack([steady(r) for r in rates]) * (1 + 0.3 * np.sin(2 * np.pi * 0.25 * time)) + rng.normal(
        0, 0.15, 1
    )
    x += 0.1 * rng.normal(size=x.shape)
    found = features.handcrafted(x, RATE)[:, AT["hr_consensus"]]
    assert np.median(np.abs(found - rates)) < 0.5
    assert np.mean(np.abs(found - rates) < 3) >= 0.95


def test_a_weak_second_beat_is_not_taken_for_half_the_rate() -> None:
    x = steady(92)
    time = np.arange(0, SECONDS, 1 / RATE)
    weaker = x * (1 + 0.12 * np.cos(np.pi * 92 / 60 * (time - 0.3)))  # every second pulse is smaller
    found = features.handcrafted(weaker[None], RATE)[0]
    assert found[AT["hr_consensus"]] == pytest.approx(92, abs=1)


def test_beat_interval_variation_is_measured() -> None:
    rng = np.random.default_rng(1)
    interval = 0.8 + 0.05 * rng.normal(size=36)
    found = features.handcrafted(pulses(interval)[None], RATE)[0]
    assert found[AT["ibi_mean"]] == pytest.approx(interval.mean(), abs=0.02)
    assert found[AT["ibi_sd"]] == pytest.approx(interval.std(), rel=0.25)
    assert found[AT["ibi_rmssd"]] == pytest.approx(np.sqrt(np.mean(np.diff(interval) ** 2)), rel=0.25)
    calm = features.handcrafted(steady(75)[None], RATE)[0]
    assert calm[AT["ibi_sd"]] < 0.01
    assert calm[AT["ibi_pnn50"]] == 0


def test_breathing_is_found_in_beat_amplitudes_and_in_beat_intervals() -> None:
    time = np.arange(0, SECONDS, 1 / RATE)
    louder = steady(84) * (1 + 0.3 * np.sin(2 * np.pi * 0.27 * time))
    assert features.handcrafted(louder[None], RATE)[0, AT["breath_amplitude_hz"]] == pytest.approx(
        0.27, abs=0.03
    )
    beat_s = np.cumsum(np.full(34, 0.8))
    found = features.handcrafted(pulses(0.8 + 0.06 * np.sin(2 * np.pi * 0.2 * beat_s))[None], RATE)[0]
    assert found[AT["breath_interval_hz"]] == pytest.approx(0.2, abs=0.03)


def test_shape_features_tell_a_wide_pulse_from_a_narrow_one() -> None:
    narrow, wide = features.handcrafted(np.stack([steady(60, rise_s=0.07), steady(60, rise_s=0.16)]), RATE)
    assert wide[AT["width50_s"]] > 1.3 * narrow[AT["width50_s"]]
    assert wide[AT["power_5_8"]] < narrow[AT["power_5_8"]]


def test_amplitude_and_unit_change_nothing() -> None:
    x = np.stack([steady(66), steady(101)])
    np.testing.assert_allclose(
        features.handcrafted(x, RATE), features.handcrafted(1e4 * x + 7, RATE), rtol=1e-6
    )


def test_windows_do_not_influence_each_other() -> None:
    x = np.stack([steady(66), steady(101), steady(140)])
    alone = np.concatenate([features.handcrafted(w[None], RATE) for w in x])
    np.testing.assert_allclose(features.handcrafted(x, RATE), alone, rtol=1e-9)


def test_a_flat_or_noisy_window_gives_missing_values_not_a_crash() -> None:
    x = np.stack([np.zeros(1500), np.random.default_rng(0).normal(size=1500), steady(80)])
    found = features.handcrafted(x, RATE)
    assert found.shape == (3, len(features.NAMES)) and np.isnan(found[0, AT["hr_consensus"]])
    assert not np.isinf(found).any()
    assert np.isfinite(found[2]).all()


def test_column_subsets_are_nested_and_end_with_all() -> None:
    assert [s.stop for s in features.SUBSETS] == sorted(s.stop for s in features.SUBSETS)
    assert features.SUBSETS[-1] == slice(0, len(features.NAMES))
    assert len(set(features.NAMES)) == len(features.NAMES)


def test_ten_seconds_with_a_pause_or_wild_intervals_give_figures_and_no_crash() -> None:
    x = steady(75)[None, :500].copy()
    x[:, 200:420] = 0  # 4.4 s without a beat
    found = features.handcrafted(x, RATE)[0]
    assert found[AT["longest_pause_s"]] == pytest.approx(5, abs=0.8)
    time = np.arange(0, 10, 1 / RATE)
    wild = sum(np.exp(-0.5 * ((time - beat) / 0.12) ** 2) for beat in (1.0, 1.8, 8.5))
    found = features.handcrafted(wild[None], RATE)[0]
    assert np.isfinite(found[[AT["beat_count_per_s"], AT["longest_pause_s"], AT["ibi_mean"]]]).all()
