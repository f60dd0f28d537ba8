"""Damage does what it says: shapes, shares, sizes and times, window by window, on drawn waves."""

from typing import Any

import numpy as np
import pytest
from scipy.signal import find_peaks

from datasets.schema import open_corpus
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation import corrupt
from finetune.evaluation.choose import place
from finetune.task import load_task

RATE = 100.0


def waves(n: int = 4, channels: int = 2, seconds: float = 20, seed: int = 0) -> np.ndarray:
    """(n, channels, T): pulses of 1.2 Hz on a large constant, some noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    phase = rng.random((n, channels, 1))
    return 500 + 3 * np.sin(2 * np.pi * (1.2 * t + phase)) + 0.1 * rng.standard_normal((n, channels, len(t)))


def rngs(n: int, seed: int = 7) -> list[np.random.Generator]:
    return corrupt.generators(seed, "test", np.arange(n, dtype=np.int64) * 7919 - 3)


@pytest.mark.parametrize("kind", corrupt.KINDS)
def test_damage_is_drawn_a_window_and_leaves_its_input_alone(kind: str) -> None:
    x = waves()
    before, found = x.copy(), corrupt.KINDS[kind]
    for severity in found.severities:
        y = found.damage(x, RATE, severity, rngs(len(x)))
        assert y.shape == x.shape and y.dtype == np.float64 and np.isfinite(y).all()
        assert np.array_equal(x, before) and not np.array_equal(y, x)
        one_by_one = [found.damage(x[i : i + 1], RATE, severity, [rngs(len(x))[i]]) for i in range(len(x))]
        assert np.array_equal(y, np.concatenate(one_by_one))


@pytest.mark.parametrize("kind", ["motion", "wander", "clipping", "dropouts"])
def test_a_higher_severity_is_more_of_the_same_damage(kind: str) -> None:
    x, found = waves(), corrupt.KINDS[kind]
    moved = [np.abs(found.damage(x, RATE, s, rngs(len(x))) - x) for s in found.severities]
    sizes = [m.mean() for m in moved]
    assert sizes == sorted(sizes) and sizes[0] > 0
    if kind in ("motion", "wander"):  # in proportion, sample by sample
        ratio = found.severities[-1] / found.severities[0]
        assert np.allclose(moved[-1], ratio * moved[0], rtol=1e-6, atol=1e-9)


def test_the_pulse_height_ignores_level_and_drift() -> None:
    x = waves()
    t = np.arange(x.shape[-1]) / RATE
    drifting = x + 40 * np.sin(2 * np.pi * 0.02 * t)
    for found in (corrupt.height(x, RATE), corrupt.height(drifting, RATE)):
        assert found.shape == (4, 2, 1) and np.allclose(found, 6, rtol=0.12)


def test_wander_has_the_range_that_it_says_and_stays_below_half_a_hertz() -> None:
    x = waves(seconds=60)
    added = corrupt.wander(x, RATE, 2.0, rngs(len(x))) - x
    assert np.allclose(np.ptp(added, axis=-1, keepdims=True), 2 * corrupt.height(x, RATE))
    power = np.abs(np.fft.rfft(added * np.hanning(added.shape[-1]))) ** 2
    frequency = np.fft.rfftfreq(added.shape[-1], 1 / RATE)
    assert power[..., frequency > 0.5].sum() < 1e-3 * power.sum()


def test_motion_swings_as_high_as_it_says() -> None:
    x = waves(n=30, seconds=30)
    added = corrupt.motion(x, RATE, 1.0, rngs(len(x))) - x
    assert np.allclose(added[:, 0], added[:, 1])  # one limb moves all channels of a sensor
    power = np.abs(np.fft.rfft(added[:, 0])) ** 2
    frequency = np.fft.rfftfreq(x.shape[-1], 1 / RATE)
    swing = 2 * power[:, frequency > 0.7].sum(1) / x.shape[-1] ** 2  # mean square
    height = corrupt.height(x, RATE).mean(axis=(1, 2))
    # a sine of amplitude 1 under the fade sin(pi u): mean square 1/2 * 2/pi
    assert np.median(np.sqrt(swing) / height) == pytest.approx(np.sqrt(1 / np.pi), rel=0.1)


@pytest.mark.parametrize("share", corrupt.KINDS["clipping"].severities)
def test_clipping_cuts_off_that_share_of_the_samples_half_at_each_end(share: float) -> None:
    x = waves()
    y = corrupt.clipping(x, RATE, share, rngs(len(x)))
    for side in (y < x, y > x):
        assert np.allclose(side.mean(-1), share / 2, atol=2 / x.shape[-1])


@pytest.mark.parametrize("share", corrupt.KINDS["dropouts"].severities)
def test_dropouts_hold_the_last_value_over_that_share_of_the_time(share: float) -> None:
    x = waves(n=20)
    y = corrupt.dropouts(x, RATE, share, rngs(len(x)))
    gone = (y != x).all(axis=1)
    slot = int(corrupt.SLOT_S * RATE)
    by_slot = gone.reshape(len(x), -1, slot)
    assert (by_slot.mean(-1) > 0.9).mean(1) == pytest.approx(share, abs=1e-9)
    for i, lost in enumerate(gone):
        for at in np.flatnonzero(lost[1:]) + 1:
            if not gone[i, :at].all():
                assert (y[i, :, at] == y[i, :, at - 1]).all()
    first_lost = by_slot[:, 0].mean(-1) > 0.9
    assert first_lost.any() or share < 0.1
    for i in np.flatnonzero(first_lost):  # nothing to hold yet: the first value to come
        stop = slot * int(np.argmin(by_slot[i].mean(-1) > 0.9))
        assert (y[i, :, :stop] == x[i, :, stop][:, None]).all()


def test_a_short_window_loses_one_slot_and_never_all() -> None:
    x = waves(seconds=2.1)
    for share in (0.05, 0.4, 1.0):
        y = corrupt.dropouts(x, RATE, share, rngs(len(x)))
        kept = (y == x).all(axis=1).mean(1)
        assert (kept < 0.9).all() and (kept > 0).all()


@pytest.mark.parametrize("off", corrupt.KINDS["wrong_rate"].severities)
def test_a_wrong_rate_slows_the_pulse_by_that_share(off: float) -> None:
    x = waves(seconds=60)
    y = corrupt.wrong_rate(x, RATE, off, rngs(len(x)))

    def hertz(wave: np.ndarray) -> float:
        peaks = find_peaks(wave, distance=0.5 * RATE, prominence=3)[0]
        return (len(peaks) - 1) * RATE / (peaks[-1] - peaks[0])

    assert hertz(y[0, 0]) == pytest.approx((1 - off) * hertz(x[0, 0]), rel=0.01)
    t = np.arange(x.shape[-1]) * (1 - off)
    assert np.allclose(y[1, 0], np.interp(t, np.arange(x.shape[-1]), x[1, 0]))


def test_twice_inverted_is_the_window_itself() -> None:
    x = waves()
    y = corrupt.inverted(x, RATE, 1.0, rngs(len(x)))
    assert np.allclose(corrupt.inverted(y, RATE, 1.0, rngs(len(x))), x)
    assert np.allclose(np.median(y, -1), np.median(x, -1))
    assert np.corrcoef(x[0, 0], y[0, 0])[0, 1] == pytest.approx(-1)


def test_a_seed_and_a_purpose_decide_what_is_drawn() -> None:
    ids = np.array([-5, 3], np.int64)
    first = [g.random() for g in corrupt.generators(1, "motion ppg", ids)]
    assert first == [g.random() for g in corrupt.generators(1, "motion ppg", ids)]
    others = [corrupt.generators(2, "motion ppg", ids), corrupt.generators(1, "motion ecg", ids)]
    assert all(first[0] != g[0].random() for g in others) and first[0] != first[1]


def test_damaged_views_hold_the_same_windows_and_no_damage_is_none(
    ray_session: Any, pair_bundle: str, paired_corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, task = open_corpus(paired_corpus), load_task("heart_rate")
    encoders = {m: BundleEncoder(pair_bundle, m) for m in ("ecg", "ppg+ecg")}
    places = place(source, encoders, task)
    none = corrupt.Kind("None", "", (0.0,), lambda x, rate, severity, drawn: np.asarray(x, np.float64))
    monkeypatch.setitem(corrupt.KINDS, "none", none)
    raw = corrupt.recorded(places)
    same = corrupt.damaged(places, raw, "none", 0.0, 0)
    worse = corrupt.damaged(places, raw, "inverted", 1.0, 0)
    ok = np.flatnonzero(np.asarray(places.verdicts(), object) == "ok")
    rows = ok[np.random.default_rng(0).permutation(len(ok))[:9]]
    assert places.pulses is not None and same.pulses is not None
    pairs = [*((places.views[n], same.views[n], worse.views[n]) for n in encoders)]
    for view, unharmed, upside in [*pairs, (places.pulses, same.pulses, worse.pulses)]:
        expected, found = view.load(rows), unharmed.load(rows)
        assert set(found) == set(expected)
        for m, x in expected.items():
            assert found[m].dtype == np.float32 and found[m].shape == x.shape
            assert np.allclose(found[m], x, atol=2e-5 * np.ptp(x))
        if "ppg" in expected:
            turned = upside.load(rows)["ppg"]
            assert np.allclose(turned, -expected["ppg"], atol=2e-4 * np.ptp(expected["ppg"]))
        else:  # the encoder's own preparation turns an inverted ECG upright again
            agree = [
                np.corrcoef(a, b)[0, 1] for a, b in zip(upside.load(rows)["ecg"][:, 0], x[:, 0], strict=True)
            ]
            assert np.mean(np.array(agree) > 0.99) > 0.7
