"""Run-length code against loops that a child could read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import validity
from datasets.validity import CLIPPED, FLAT, FRAGMENT, KEPT, NAN, Limits

masks = st.lists(st.booleans(), max_size=60).map(lambda bits: np.array(bits, bool))
small = st.lists(st.integers(-3, 3), min_size=1, max_size=60).map(lambda xs: np.array(xs, np.int16))


def naive_runs(mask):
    found, i = [], 0
    while i < len(mask):
        if mask[i]:
            j = i
            while j < len(mask) and mask[j]:
                j += 1
            found.append((i, j))
            i = j
        else:
            i += 1
    return found


@settings(deadline=None)
@given(masks)
def test_runs_are_those_that_a_loop_finds_and_mark_puts_them_back(mask):
    starts, stops = validity.runs(mask)
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == naive_runs(mask)
    assert np.array_equal(validity.mark(len(mask), starts, stops), mask)


@settings(deadline=None)
@given(masks, st.floats(0, 8))
def test_only_long_runs_stay(mask, shortest):
    expected = np.zeros(len(mask), bool)
    for a, b in naive_runs(mask):
        expected[a:b] = b - a >= shortest
    assert np.array_equal(validity.long_runs(mask, shortest), expected)


@settings(deadline=None)
@given(small, st.data(), st.integers(2, 6))
def test_flat_stretches_are_those_that_a_loop_finds(x, data, shortest):
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x))), bool)
    expected = np.zeros(len(x), bool)
    for a in range(len(x)):
        for b in range(a + shortest, len(x) + 1):
            if valid[a:b].all() and (x[a:b] == x[a]).all():
                expected[a:b] = True
    assert np.array_equal(validity.constant(x, valid, shortest), expected)


@settings(deadline=None)
@given(small, st.data(), st.integers(1, 6))
def test_clipped_stretches_are_long_stays_at_the_lowest_or_highest_value(x, data, shortest):
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x))), bool)
    expected = np.zeros(len(x), bool)
    known = x[valid]
    for rail in {known.min(), known.max()} if known.size and known.min() < known.max() else ():
        for a, b in naive_runs(valid & (x == rail)):
            if b - a >= shortest:
                expected[a:b] = True
    assert np.array_equal(validity.on_rail(x, valid, 0.001, shortest), expected)


@settings(deadline=None)
@given(masks, st.integers(0, 5), st.booleans())
def test_short_inner_gaps_are_interpolated_and_nothing_else_changes(missing, longest, integers):
    x = np.random.default_rng(len(missing)).normal(0, 50, (len(missing), 2))
    x = x.astype(np.int16) if integers else x
    filled, still, runs, samples = validity.bridge(x, missing, longest)
    expected, left, count = x.astype(float), missing.copy(), 0
    for a, b in naive_runs(missing):
        if b - a <= longest and a > 0 and b < len(missing):
            count += 1
            left[a:b] = False
            for i in range(a, b):
                w = (i - a + 1) / (b - a + 1)
                value = (1 - w) * x[a - 1].astype(float) + w * x[b].astype(float)
                expected[i] = np.rint(value) if integers else value
    assert np.array_equal(still, left)
    assert (runs, samples) == (count, int((missing & ~left).sum()))
    assert filled.dtype == x.dtype
    # the two ways of interpolating may round a half apart
    assert np.allclose(filled, expected, atol=1 if integers else 1e-9)
    assert np.array_equal(filled[~missing], x[~missing])


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=80).map(lambda xs: np.array(xs, np.uint8)))
def test_stretches_tile_the_record(codes):
    starts, stops, values = validity.stretches(codes)
    assert np.array_equal(np.repeat(values, stops - starts), codes)
    assert (np.diff(values.astype(int)) != 0).all()
    assert starts.tolist() == ([0, *stops[:-1].tolist()] if len(codes) else [])


def wave(seconds=60, rate=100):
    t = np.arange(seconds * rate) / rate
    return np.sin(2 * np.pi * t)[:, None] * 100 + np.sin(2 * np.pi * 3.1 * t)[:, None] * 7


def spans(codes, code, rate=100):
    return [(a / rate, b / rate) for a, b in naive_runs(codes == code)]


def test_each_planted_fault_is_found_where_it_is_under_its_own_name():
    x = wave()
    missing = np.zeros(len(x), bool)
    missing[500:600] = True
    x[1000:1400] = 3.0  # flat, in the middle of the range
    x[2000:2150] = x.max() + 5  # saturated
    x[3000:3250] = 2.0  # 2.5 s of constancy: too short to be called flat
    codes = validity.verdicts(x, missing, 100, Limits())
    assert spans(codes, NAN) == [(5, 6)]
    assert spans(codes, FLAT) == [(10, 14)]
    assert spans(codes, CLIPPED) == [(20, 21.5)]
    assert (codes == KEPT).sum() == len(x) - 100 - 400 - 150


def test_a_ripple_on_the_rail_is_still_clipping_and_a_single_peak_is_not():
    x = wave()
    ripple = 0.05 * np.random.default_rng(0).standard_normal((200, 1))
    x[2000:2200] = x.max() + 10 + ripple
    codes = validity.verdicts(x, np.zeros(len(x), bool), 100, Limits())
    assert spans(codes, CLIPPED) == [(20, 22)]


@pytest.mark.parametrize("outliers", ["spike", "marker", "off skin", "many spikes"])
def test_outliers_do_not_make_the_rest_of_a_record_clipped(outliers):
    x = 100_000 + wave(seconds=600, rate=50)
    if outliers == "spike":
        x[15_000] = 1e6
    elif outliers == "marker":
        x[15_000] = -9999
    elif outliers == "off skin":
        x[10_000:10_025] = 0
    else:
        x[::150] = 1e7
    assert not validity.verdicts(x, np.zeros(len(x), bool), 50, Limits()).any()


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
def test_saturation_is_found_beside_outliers_and_where_it_fills_most_of_the_record(dtype):
    x = np.rint(100 * wave()).astype(dtype)
    x[2000:5500] = 32_000
    x[2000:5500:7] -= 3  # a ripple
    x[700] = -32_000
    codes = validity.verdicts(x, np.zeros(len(x), bool), 100, Limits())
    assert spans(codes, CLIPPED) == [(20, 55)]


def test_a_long_stay_on_a_rail_is_called_clipped_and_a_channel_of_one_value_flat():
    x = wave()
    x[2000:2800] = x.max() + 5
    assert set(validity.verdicts(x, np.zeros(len(x), bool), 100, Limits())[2000:2800]) == {CLIPPED}
    constant = np.full((1000, 1), 32767, np.int16)
    assert set(validity.verdicts(constant, np.zeros(1000, bool), 100, Limits())) == {FLAT}


def test_an_axis_at_rest_does_not_make_an_accelerometer_flat():
    x = np.concatenate([wave(), np.zeros((6000, 1))], axis=1)
    assert not validity.verdicts(x, np.zeros(6000, bool), 100, Limits()).any()
    x[:, 0] = 0
    assert (validity.verdicts(x, np.zeros(6000, bool), 100, Limits()) == FLAT).all()


def test_a_sliver_between_refused_stretches_goes_and_a_short_whole_record_stays():
    codes = np.zeros(1000, np.uint8)
    assert not validity.drop_fragments(codes[:50], 100).any()
    codes[100:200], codes[250:300] = NAN, FLAT
    cut = validity.drop_fragments(codes, 100)
    assert spans(cut, FRAGMENT, 1) == [(200, 250)]
    assert (cut == KEPT).sum() == 100 + 700


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_a_record_of_nothing_but_missing_values_is_refused_as_nan(dtype):
    x, missing = np.zeros((500, 1), dtype), np.ones(500, bool)
    filled, still, *_ = validity.bridge(x, missing, 10)
    assert (validity.verdicts(filled, still, 100, Limits()) == NAN).all()
