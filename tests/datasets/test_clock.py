"""Clocks: every sample lies where its true time is, whatever the device's clock, jitter and gaps."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.readers import clock
from datasets.readers.base import Refused


def off(made, true, origin):
    """How many samples the farthest sample lies from its true time (`true`: of each row, s)."""
    grid = made.on(origin)
    farthest = 0.0
    for piece in grid.pieces:
        rows = np.arange(piece.first, piece.stop)
        at = rows if piece.rows is None else piece.rows
        place = piece.place + np.arange(piece.count)
        expected = (np.interp(at, rows, true[rows]) - origin) * float(grid.rate)
        farthest = max(farthest, float(np.abs(place - expected).max()))
    return farthest


def with_gaps(true, rng, gaps):
    """Rows without those that were lost."""
    kept = np.ones(len(true), bool)
    for at in rng.integers(200, len(true) - 400, gaps):
        kept[at : at + rng.integers(2, 150)] = False
    return true[kept]


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([25, 32, 50, 64, 100, 125, 250]),
    drift=st.floats(-0.0009, 0.0009),
    jitter=st.sampled_from([0.0, 0.0005, 0.2, 0.45]),
    gaps=st.integers(0, 5),
    start=st.sampled_from([0.0, 100.25, 1714554000.5]),
    seed=st.integers(0, 10**6),
)
def test_no_sample_lies_farther_than_half_a_sample_from_its_true_time(rate, drift, jitter, gaps, start, seed):
    rng = np.random.default_rng(seed)
    true = with_gaps(start + np.arange(300 * rate) / (rate * (1 + drift)), rng, gaps)
    t = true + rng.uniform(-jitter, jitter, len(true)) / rate
    made = clock.measured(t, Fraction(rate), None)
    assert made.rate == rate
    assert off(made, true, true[0]) <= 0.55 + jitter / 2


@settings(max_examples=40, deadline=None)
@given(
    own=st.floats(20, 500),
    jitter=st.sampled_from([0.0, 0.2, 0.45]),
    gaps=st.integers(0, 4),
    seed=st.integers(0, 10**6),
)
def test_a_measured_rate_leaves_every_sample_as_it_is(own, jitter, gaps, seed):
    rng = np.random.default_rng(seed)
    true = with_gaps(np.arange(int(200 * own)) / own, rng, gaps)
    t = true + rng.uniform(-jitter, jitter, len(true)) / own
    made = clock.measured(t, None, None)
    grid = made.on(made.start_s)
    assert all(piece.rows is None for piece in grid.pieces) and grid.moved_s == 0
    assert abs(float(made.rate) / own - 1) < 1e-4
    assert off(made, true, true[0]) <= 0.55 + jitter


def test_a_clean_column_keeps_every_sample_and_every_gap():
    at = np.array([0, 1, 2, 7, 8, 9, 500, 501])
    grid = clock.measured(1714554000 + at / 50, Fraction(50), None).on(1714554000.0)
    x, missing = grid.put(np.arange(8), np.zeros(8, bool))
    assert x.dtype == np.int64 and x[at].tolist() == list(range(8))
    assert np.flatnonzero(~missing).tolist() == at.tolist() and grid.moved_s == 0


@pytest.mark.parametrize(("own", "promised"), [(63.95, 64), (32.02, 32), (124.95, 125)])
def test_a_drifting_clock_is_followed_for_hours_and_the_correction_is_stated(own, promised):
    t = np.round(np.arange(int(4 * 3600 * own)) / own, 4)
    made = clock.measured(t, Fraction(promised), None)
    grid = made.on(0.0)
    assert off(made, t, 0.0) <= 0.5
    assert grid.moved_s == pytest.approx(abs(own / promised - 1) * t[-1], rel=1e-3)
    wave = np.sin(2 * np.pi * 1.2 * t)
    x, missing = grid.put(wave, np.zeros(len(t), bool))
    places = np.arange(grid.length) / promised
    inner = ~missing & (places < t[-1] - 1)
    assert np.abs(x - np.sin(2 * np.pi * 1.2 * places))[inner].max() < 2e-3


def test_a_clock_that_wanders_is_followed():
    i = np.arange(2 * 3600 * 64)
    true = i / 64 + 0.5 * np.sin(i / 64 / 700)
    made = clock.measured(true + np.random.default_rng(1).uniform(-0.005, 0.005, len(i)), Fraction(64), None)
    assert off(made, true, 0.0) <= 0.6


def test_rows_that_arrive_in_packets_are_one_stretch_at_their_mean_rate():
    i = np.arange(5000)
    t = 7 + i // 5 * 0.1 + i % 5 * 0.001
    for promised in (Fraction(50), None):
        made = clock.measured(t, promised, None)
        assert made.rate == 50 and len(made.stretches) == 1 and made.on(made.start_s).length == 5000


def test_samples_next_to_missing_ones_stay_missing_when_resampled():
    t = np.arange(60_000) / 63.95
    missing = np.zeros(60_000, bool)
    missing[30_000:30_100] = True
    x, gone = clock.measured(t, Fraction(64), None).on(0.0).put(np.ones(60_000), missing)
    at = np.flatnonzero(gone)
    assert 99 <= len(at) <= 103 and np.abs(at[0] / 64 - t[29_999]) < 2 / 64
    assert np.allclose(x[~gone], 1)


@pytest.mark.parametrize("own", [54.77, 54.96, 201.16])
def test_a_tolerance_keeps_the_records_own_rate(own):
    t = np.round(np.arange(int(370 * own)) / own, 6)
    promised = Fraction(round(own / 5) * 5)
    made = clock.measured(t, promised, 0.01)
    assert float(made.rate) == pytest.approx(own, abs=1e-9)
    assert all(piece.rows is None for piece in made.on(0.0).pieces)


@pytest.mark.parametrize(("period_s", "rate"), [(0.02, 50), (0.03, Fraction(100, 3)), (1 / 256, 256)])
def test_a_measured_rate_is_the_simple_one_behind_rounded_times(period_s, rate):
    t = np.round(np.arange(50_000) * period_s, 3)
    assert clock.measured(t, None, None).rate == rate


def test_a_row_that_strays_and_times_that_do_not_rise_are_named():
    t = np.arange(2000) / 50
    t[700:710] = 14.19 + np.arange(10) / 10_000  # a stall, and ten rows at once
    with pytest.raises(Refused, match=r"row 701: its time strays"):
        clock.measured(t, Fraction(50), None)
    with pytest.raises(Refused, match="do not rise at row 3"):
        clock.measured(np.array([0.0, 1.0, 0.5]), Fraction(1), None)


@pytest.mark.parametrize("size", [4, 7, 10])
@pytest.mark.parametrize("gap", [0, 3.7])
def test_small_packets_of_any_size_keep_their_mean_rate(size, gap):
    n = 6000 // size * size
    i = np.arange(n)
    t = i // size * size / 52.1 + i % size * 1e-3 + (i >= n // 2 // size * size) * gap
    made = clock.measured(t, None, None)
    assert abs(made.measured_hz - 52.1) < 0.05 and len(made.stretches) == 1 + (gap > 0)
