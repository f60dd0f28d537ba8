"""Metrics of rebuilt waveforms against plain loops; references that find what was planted."""

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation import waveform

RATE, T = 125.0, 1250


def pulses(n: int, seed: int, delay_s: float = 0.25) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(n, T) PPG-like and ECG-like windows of the same beats, the PPG later; R peak times in s."""
    draw = np.random.default_rng(seed)
    time = np.arange(T) / RATE
    ppg, ecg, peaks = np.zeros((n, T)), np.zeros((n, T)), []
    for i in range(n):
        at = np.cumsum(draw.uniform(0.7, 0.9) + draw.normal(0, 0.02, 16)) - draw.uniform(0, 1)
        for r in at:
            ecg[i] += np.exp(-(((time - r) / 0.012) ** 2)) + 0.2 * np.exp(-(((time - r - 0.25) / 0.05) ** 2))
            ppg[i] += np.exp(-(((time - r - delay_s) / 0.09) ** 2))
        peaks.append(at[(at > 0.05) & (at < 9.95)])
    return ppg, ecg + 0.01 * draw.normal(size=ecg.shape), peaks


def test_scores_are_those_of_a_loop_over_windows() -> None:
    draw = np.random.default_rng(0)
    true, guess = draw.normal(size=(2, 5, 400)).cumsum(-1)
    found = waveform.scores(true, guess, 100.0, "ppg")
    for i in range(5):
        z = (true[i] - true[i].mean()) / true[i].std()
        assert found["pearson"][i] == pytest.approx(stats.pearsonr(true[i], guess[i])[0], abs=1e-4)
        assert found["mae"][i] == pytest.approx(np.abs(z - guess[i]).mean(), abs=1e-4)
        turned = [stats.pearsonr(true[i], np.roll(guess[i], k))[0] for k in range(-40, 41)]
        assert found["pearson_lag"][i] == pytest.approx(max(turned), abs=1e-3)


def test_beats_of_both_signals_are_where_they_were_put() -> None:
    ppg, ecg, peaks = pulses(6, 1)
    for x, modality, late in ((ecg, "ecg", 0.0), (ppg, "ppg", 0.25 - 0.064)):  # steepest: width / √2 before
        for i, at in enumerate(peaks):
            found = waveform.beats(x[i], RATE, modality)
            inner = at[(at > 0.5) & (at < 9.3)]
            assert np.abs(found[:, None] - inner - late).min(0).max() < 0.02


def test_timing_and_rate_errors_are_those_of_a_shifted_truth() -> None:
    _, ecg, _ = pulses(4, 2)
    for shift in (0, 5):
        found = waveform.scores(ecg, np.roll(ecg, shift, axis=1), RATE, "ecg")
        assert found["timing_ms"] == pytest.approx(1000 * shift / RATE, abs=8)
        assert found["hr_bpm"].max() < 1 and found["pearson_lag"].min() > 0.97
    nothing = waveform.scores(ecg, np.zeros_like(ecg), RATE, "ecg")
    assert nothing["timing_ms"] == pytest.approx(500) and np.isnan(nothing["hr_bpm"]).all()
    twice = waveform.scores(ecg, ecg + np.roll(ecg, 50, axis=1), RATE, "ecg")  # every beat, and one too many
    assert (twice["timing_ms"] > 80).all()


def test_mean_beats_find_the_delay_and_the_shape() -> None:
    ppg, ecg, _ = pulses(40, 3)
    late = np.roll(ecg, 12, axis=1)
    for name in ("around", "of_target"):
        models = [
            waveform.MeanBeat.around_source(ppg[:30], y[:30], RATE, "ppg")
            if name == "around"
            else waveform.MeanBeat.of_target(ppg[:30], y[:30], RATE, "ppg", "ecg")
            for y in (ecg, late)
        ]
        found, wrong = (waveform.scores(ecg[30:], m(ppg[30:]), RATE, "ecg") for m in models)
        assert found["pearson"].mean() > 0.75 and np.median(found["timing_ms"]) < 30
        assert wrong["pearson"].mean() < 0.3
    assert models[1].delay_s - models[0].delay_s == pytest.approx(12 / RATE, abs=0.02)


def test_with_delays_that_differ_the_mean_beat_stays_sharp_and_least_squares_blurs() -> None:
    parts = [pulses(10, seed, delay) for seed, delay in ((5, 0.15), (6, 0.3), (7, 0.45))]
    ppg, ecg = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    around = waveform.MeanBeat.around_source(ppg, ecg, RATE, "ppg").template
    sharp = waveform.MeanBeat.of_target(ppg, ecg, RATE, "ppg", "ecg").template
    assert sharp.max() > 2 * around.max()


def test_ridge_is_the_closed_form_and_finds_a_linear_map() -> None:
    draw = np.random.default_rng(4)
    x = draw.normal(size=(300, 60))
    y = np.roll(x, 3, axis=1)
    model = waveform.Ridge.fit(x, y, np.repeat(np.arange(30), 10).astype(str), 0)
    z, t = waveform.zscored(x), waveform.zscored(y)
    centred = z - z.mean(0)
    plain = np.linalg.solve(centred.T @ centred + model.alpha * np.eye(60), centred.T @ (t - t.mean(0)))
    np.testing.assert_allclose(model.weights, plain, atol=1e-8)
    fresh = draw.normal(size=(20, 60))
    found = waveform.scores(np.roll(fresh, 3, axis=1), model(fresh), 60.0, "ppg")
    assert found["pearson"].min() > 0.98
