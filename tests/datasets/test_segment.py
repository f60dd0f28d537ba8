"""One record into rows: nothing lost in coding, one set of modalities a row, a ledger exact to the sample."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.readers.base import Samples
from datasets.segment import encode, segment
from datasets.validity import Limits
from tests.datasets.recordings import waves


def samples(x, rate=100, missing=None, scale=0.5, offset=3.0):
    x = np.asarray(x)
    x = x[:, None] if x.ndim == 1 else x
    none = np.zeros(len(x), bool) if missing is None else missing
    return Samples(x, none, Fraction(rate), scale, offset, "au")


def test_integers_that_fit_int16_are_kept_as_they_are():
    x = waves(5, 100, 0)
    coded, scale, offset = encode(samples(x))
    assert coded.dtype == np.dtype("<i2")
    assert np.array_equal(coded[:, 0], x)
    assert (scale, offset) == (0.5, 3.0)


def test_integers_beyond_int16_that_span_less_are_shifted_without_loss():
    x = waves(5, 100, 0) + 1_000_000
    coded, scale, offset = encode(samples(x))
    assert np.array_equal(coded[:, 0] * scale + offset, x * 0.5 + 3.0)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.sampled_from([1e-3, 1.0, 70.0]))
def test_everything_else_is_quantised_within_a_ten_thousandth_of_its_range(values, scale):
    x = np.array(values)
    coded, s, o = encode(samples(x, scale=scale))
    error = np.abs(coded[:, 0] * s + o - (x * scale + 3.0))
    assert error.max() <= 1e-4 * np.ptp(x * scale) + 1e-9


def test_wide_integers_are_quantised():
    x = waves(5, 100, 0) * 1000
    coded, s, o = encode(samples(x))
    assert np.abs(coded[:, 0] * s + o - (x * 0.5 + 3)).max() < 1e-4 * np.ptp(x * 0.5)


def test_a_row_is_a_stretch_with_one_set_of_valid_modalities():
    ppg, abp = waves(20, 100, 1), waves(20, 100, 2)
    gone = np.zeros(2000, bool)
    gone[500:900] = True
    cut = segment("r", {"ppg": samples(ppg), "abp": samples(abp, missing=gone)}, Limits(), 3600)
    assert [(r["start_s"], r["duration_s"], "abp" in r) for r in cut.rows] == [
        (0.0, 5.0, True),
        (5.0, 4.0, False),
        (9.0, 11.0, True),
    ]
    assert b"".join(r["ppg"] for r in cut.rows) == ppg.astype("<i2").tobytes()
    assert [(m, float(a), float(n), why) for m, a, n, why in cut.rejects] == [("abp", 5.0, 4.0, "nan")]


def test_rows_are_cut_at_the_longest_length():
    cut = segment("r", {"ppg": samples(waves(25, 100, 1))}, Limits(), 10)
    assert [(r["start_s"], r["duration_s"]) for r in cut.rows] == [(0, 10), (10, 10), (20, 5)]


def test_modalities_of_different_rates_share_borders_and_lose_no_time():
    fast, slow = waves(20, 250, 1), waves(20.1, 25, 2)
    gone = np.zeros(len(fast), bool)
    gone[1003:1500] = True  # begins inside a sample of the slow one
    cut = segment("r", {"ecg": samples(fast, 250, gone), "resp": samples(slow, 25)}, Limits(), 3600)
    for row in cut.rows:
        for m, rate in (("ecg", 250), ("resp", 25)):
            assert m not in row or len(row[m]) / 2 == pytest.approx(row["duration_s"] * rate, abs=1e-9)
    assert cut.kept["ecg"] + cut.refused["ecg"]["nan"] == 20
    assert cut.seconds_in["resp"] == cut.kept["resp"] == Fraction(502, 25)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1_000, 300_000), min_size=2, max_size=3, unique=True),
    st.integers(0, 2**32 - 1),
)
def test_rates_without_a_common_grid_go_in_cut_at_their_own_samples_nearest_to_whole_seconds(rates, seed):
    rng = np.random.default_rng(seed)
    signals = {}
    for m, thousandths in zip(("ppg", "ecg", "resp"), rates, strict=False):
        rate = Fraction(thousandths, 1000)
        x = np.arange(int(rng.uniform(5, 30) * rate)) % 30_000
        missing = np.zeros(len(x), bool)
        missing[int(len(x) * 0.4) : int(len(x) * 0.4 + 2 * rate)] = True
        signals[m] = Samples(x[:, None], missing, rate, 1.0, 0.0, "au")
    cut = segment("r", signals, Limits(), 4)  # raises when the ledger does not add up
    assert {m for row in cut.rows for m in signals if m in row} == set(signals)
    for row in cut.rows:
        for m in [m for m in signals if m in row]:
            x, rate = np.frombuffer(row[m], "<i2"), float(signals[m].rate)
            at = int(np.flatnonzero((signals[m].x_tc[:, 0] == x[0]) & ~signals[m].missing)[0])
            assert abs(at / rate - row["start_s"]) <= 0.5 / rate + 1e-9
            assert abs(len(x) / rate - row["duration_s"]) <= 1 / rate + 1e-9
            assert np.array_equal(x, signals[m].x_tc[at : at + len(x), 0])


def test_a_signal_slower_than_a_sample_a_second_is_refused_with_a_word_on_what_to_do():
    slow = Samples(waves(20, 10, 1)[:, None], np.zeros(200, bool), Fraction(1, 60), 1, 0, "au")
    cut = segment("r", {"resp": slow, "ppg": samples(waves(20, 125, 1), 125)}, Limits(), 3600)
    assert set(cut.refused) == {"resp"} and set(cut.refused["resp"]) == {"bad_rate"}
    assert cut.kept["ppg"] == 20
    assert "numerics" in cut.words[0]


def loud_then_quiet(kind):
    """20 s of which the first 10 hold a burst 4,000 times as large as the pulse."""
    t = np.arange(2000) / 100
    x = np.sin(2 * np.pi * 1.2 * t) + 4000 * ((t > 3) & (t < 6)) * np.sin(20 * t)
    return np.rint(400 * x).astype(np.int64) + 300_000 if kind == "integers" else x


@pytest.mark.parametrize("kind", ["floats", "integers"])
def test_every_row_is_within_a_ten_thousandth_of_its_own_range_whatever_the_rest_of_its_record_holds(kind):
    x = loud_then_quiet(kind)
    cut = segment("r", {"ppg": samples(x)}, Limits(), 10)
    for row, source in zip(cut.rows, (x[:1000], x[1000:]), strict=True):
        got = np.frombuffer(row["ppg"], "<i2") * row["ppg_scale"] + row["ppg_offset"]
        physical = source * 0.5 + 3.0
        assert np.abs(got - physical).max() <= 1e-4 * np.ptp(physical)


def test_rows_share_a_scale_where_it_serves_them_all():
    t = np.arange(2000) / 100
    cut = segment("r", {"ppg": samples((1 + t / 20) * np.sin(8 * t))}, Limits(), 5)
    assert len({(row["ppg_scale"], row["ppg_offset"]) for row in cut.rows}) == 1


def test_a_record_whose_outliers_leave_its_signal_few_steps_says_so():
    cut = segment("r", {"ppg": samples(loud_then_quiet("floats"))}, Limits(), 3600)
    assert "rounded to steps" in cut.words[0] and "`missing`" in cut.words[0]
    x = np.sin(np.arange(2000) / 9)
    assert not segment("r", {"ppg": samples(x)}, Limits(), 3600).words
    x[-1] = -1e7  # a step is larger than all else that the record holds
    (words,) = segment("r", {"ppg": samples(x)}, Limits(), 3600).words
    assert "moves 0 of them" in words
    assert not segment("r", {"ppg": samples(waves(20, 100, 0))}, Limits(), 3600).words


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_ledger_of_any_record_adds_up_to_the_sample(seed):
    rng = np.random.default_rng(seed)
    signals = {}
    for m, rate in (("ppg", 20), ("ecg", 50), ("resp", 4)):
        x = rng.integers(-50, 50, rate * int(rng.integers(1, 40)) + int(rng.integers(0, 5)))
        missing = np.zeros(len(x), bool)
        for _ in range(rng.integers(0, 5)):
            a, n = rng.integers(0, len(x)), rng.integers(1, 5 * rate)
            if rng.random() < 0.5:
                missing[a : a + n] = True
            else:
                x[a : a + n] = rng.integers(-50, 50)
        signals[m] = samples(x, rate, missing)
    cut = segment("r", signals, Limits(), 7)  # raises when it does not add up
    for m, s in signals.items():
        here = sum((Fraction(len(r[m]), 2) / s.rate for r in cut.rows if m in r), Fraction(0))
        refused = sum((n for name, _, n, _ in cut.rejects if name == m), Fraction(0))
        assert here + refused == Fraction(len(s.x_tc)) / s.rate
