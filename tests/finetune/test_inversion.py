"""Decoders from vectors to waveforms: what comes back, what does not, and whom they never see."""

import numpy as np
import pytest

from finetune.evaluation import inversion
from finetune.probe import grouped_folds

FITS = pytest.mark.parametrize("name", list(inversion.DECODERS))


def pulses(subjects: int = 10, windows: int = 20, samples: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random waveforms in a space of 12 dimensions, as z-scored windows, and their subjects."""
    rng = np.random.default_rng(0)
    time = np.arange(samples) / 50
    basis = np.stack([f(2 * np.pi * k * time) for k in (1, 1.5, 2, 2.5, 3, 4) for f in (np.sin, np.cos)])
    waves = rng.normal(size=(subjects * windows, len(basis))) @ basis
    return inversion.waveform(waves, 50.0), np.repeat([f"s{i:02}" for i in range(subjects)], windows)


def test_a_linear_encoder_is_inverted_by_ridge_nearly_exactly_and_shuffled_vectors_give_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inversion, "STEPS", 160)
    waves, subject = pulses()
    vectors = waves @ np.random.default_rng(1).normal(size=(waves.shape[1], 24))
    found = inversion.invert(vectors, waves, subject, grouped_folds(subject, 4, 0), 0)
    result = inversion.table(waves, found, subject, 0)
    rows = result.rows
    assert rows["ridge"].r.value > 0.999 and rows["ridge"].explained.value > 0.999
    assert rows["network"].r.value > 0.8 and result.best == "ridge"
    for name in inversion.DECODERS:
        other = rows[f"{name}, shuffled"]
        assert abs(other.r.value) < 0.1 and other.explained.value < 0
        assert result.gain_r[name].low > 0.5
    assert rows["mean"].explained.value == 0 and abs(rows["mean"].r.value) < 0.1


def test_vectors_of_noise_give_no_waveform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion, "STEPS", 60)
    waves, subject = pulses()
    vectors = np.random.default_rng(2).normal(size=(len(waves), 16))
    found = inversion.invert(vectors, waves, subject, grouped_folds(subject, 4, 0), 0)
    result = inversion.table(waves, found, subject, 0)
    for name in inversion.DECODERS:
        assert result.gain_r[name].low < 0.02
        assert result.rows[name].explained.value < 0.01


@FITS
def test_a_decoder_never_sees_the_waveforms_of_the_subjects_it_is_tested_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inversion, "STEPS", 40)
    monkeypatch.setattr(inversion, "DECODERS", {name: inversion.DECODERS[name]})
    waves, subject = pulses(8, 15, 40)
    vectors = (waves @ np.random.default_rng(3).normal(size=(40, 10))).astype(np.float32)
    folds = grouped_folds(subject, 4, 0)
    before = inversion.invert(vectors, waves, subject, folds, 0)
    train, test = folds[0]
    assert not set(subject[train]) & set(subject[test])
    changed = waves.copy()
    changed[test] = 7 * np.random.default_rng(4).normal(size=changed[test].shape)
    after = inversion.invert(vectors, changed, subject, folds, 0)
    assert np.array_equal(before.decoded[name][test], after.decoded[name][test])
    assert np.array_equal(before.mean[test], after.mean[test])
    assert not np.array_equal(before.decoded[name][train], after.decoded[name][train])


@FITS
def test_a_decoder_is_the_same_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion, "STEPS", 40)
    waves, subject = pulses(5, 10, 40)
    one, two = (inversion.DECODERS[name](waves, waves, subject, 3)(waves) for _ in range(2))
    assert np.array_equal(one, two)


def test_ridge_agrees_with_a_plain_solve() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(50, 6)) * [1, 2, 3, 4, 5, 6] + 9, rng.normal(size=(50, 7))
    z = (x - x.mean(0)) / x.std(0)
    weights = np.linalg.solve(z.T @ z + 10 * np.eye(6), z.T @ (y - y.mean(0)))
    np.testing.assert_allclose(inversion._ridge(x, y)(x, 10.0), z @ weights + y.mean(0), atol=1e-10)


def test_the_shuffled_vector_is_always_somebody_elses() -> None:
    subject = np.repeat(["a", "b", "c"], [1, 50, 2])
    other = inversion.another_subject(subject, 0)
    assert (subject[other] != subject).all() and len(set(other.tolist())) > 2


def test_metrics_are_those_of_a_loop_over_windows_and_subjects() -> None:
    rng = np.random.default_rng(6)
    subject = np.repeat(["a", "b", "c"], [2, 5, 3])
    y, p, mean = rng.normal(size=(3, 10, 30))
    found = inversion.metrics_of(inversion.per_subject(y, p, mean, subject).mean(0))
    of = [[i for i, s in enumerate(subject) if s == name] for name in "abc"]
    r = np.mean([np.mean([np.corrcoef(y[i], p[i])[0, 1] for i in rows]) for rows in of])
    mae = np.mean([np.mean([np.abs(y[i] - p[i]).mean() for i in rows]) for rows in of])
    squared, base = (
        np.mean([np.mean([((y[i] - q[i]) ** 2).mean() for i in rows]) for rows in of]) for q in (p, mean)
    )
    assert found["r"] == pytest.approx(r) and found["mae"] == pytest.approx(mae)
    assert found["explained"] == pytest.approx(1 - squared / base)


def test_a_flat_reconstruction_correlates_with_nothing() -> None:
    assert inversion.pearson(np.array([[1.0, 2.0, 3.0]]), np.ones((1, 3))).tolist() == [0.0]


def test_the_spectrum_is_in_the_band_and_keeps_no_phase() -> None:
    rate, time = 50.0, np.arange(1500) / 50
    waves = np.stack([np.sin(2 * np.pi * 1.5 * time + phase) for phase in (0.0, 1.0)])
    freq = inversion.frequencies(1500, rate, (0.5, 8.0))
    found = inversion.spectrum(3 * waves + 5, rate, (0.5, 8.0))
    assert found.shape == (2, len(freq)) and freq.min() >= 0.5 and freq.max() <= 8
    assert freq[np.argmax(found, axis=1)].tolist() == [1.5, 1.5]
    peak = np.abs(freq - 1.5) <= 0.125
    np.testing.assert_allclose(found[0, peak], found[1, peak], atol=0.02)
    assert inversion.frequencies(100, rate, None).max() == 25
    assert inversion.frequencies(5000, 500.0, (0.5, None)).max() == inversion.TOP_HZ
