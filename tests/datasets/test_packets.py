"""Packets on one grid: late, early, repeated, lost, out of order, and stamped by a clock that drifts."""

import numpy as np
import pytest

from datasets.readers import packets
from datasets.readers.base import Refused

START = 1_700_000_000.0
RATES = pytest.mark.parametrize(("rate", "size"), [(500, 500), (125, 32), (62.5, 16), (100, 9)])


def made(rate, size, seconds=60, seed=3):
    """[(clock, samples)] of a wave that never repeats, and all its samples."""
    rng = np.random.default_rng(seed)
    n = int(rate * seconds) // size * size
    t = np.arange(n) / rate
    x = (1000 * np.sin(2 * np.pi * 1.1 * t) + 50 * rng.normal(size=n)).astype(np.int16)
    return [(START + a / rate, x[a : a + size]) for a in range(0, n, size)], x


def laid(sent, rate):
    stream = packets.read(np.array([t for t, _ in sent]), [v for _, v in sent], rate)
    return (stream, *packets.lay(stream, stream.drifts()))


def assert_whole(sent, x, rate):
    stream, got, missing, start = laid(sent, rate)
    assert not missing.any() and np.array_equal(got, x) and start == pytest.approx(START, abs=1e-3)
    return stream


@RATES
@pytest.mark.parametrize("which", [0, 20, -2, -1])
@pytest.mark.parametrize("late", [0.03, 0.12, 0.21])
def test_one_late_packet_makes_no_gap_and_stays_in_its_place(rate, size, which, late):
    sent, x = made(rate, size)
    sent[which] = (sent[which][0] + late, sent[which][1])
    stream = assert_whole(sent, x, rate)
    assert [round(s, 3) for s in stream.late] == [late] * (late > packets.JITTER_S)


@RATES
def test_an_early_packet_stays_in_its_place(rate, size):
    sent, x = made(rate, size)
    sent[20] = (sent[20][0] - 0.15, sent[20][1])
    assert_whole(sent, x, rate)


@RATES
def test_packets_that_a_network_held_back_for_a_second_follow_one_another(rate, size):
    sent, x = made(rate, size)
    free = sent[20][0] + 1
    assert_whole([(max(t, free + i * 1e-4) if i >= 20 else t, v) for i, (t, v) in enumerate(sent)], x, rate)


@RATES
@pytest.mark.parametrize(("later", "times"), [(0, 1), (0, 2), (3, 1)])
def test_a_packet_sent_again_is_taken_once_and_counted(rate, size, later, times):
    sent, x = made(rate, size)
    sent[20 + later : 20 + later] = [sent[19]] * times
    stream = assert_whole(sent, x, rate)
    assert (stream.twice, stream.repeated) == (times, 0)
    several = "packets received twice were" if times > 1 else "packet received twice was"
    assert stream.notes() == [f"{times} {several} used once"]


def test_a_packet_sent_again_with_a_clock_of_its_own_is_taken_once():
    sent, x = made(125, 125)
    sent.insert(20, (sent[19][0] + 0.03, sent[19][1]))
    assert assert_whole(sent, x, 125).twice == 1


@RATES
@pytest.mark.parametrize("again", [1, 3, 10, 60])
@pytest.mark.parametrize("which", [20, -1])
def test_samples_that_a_packet_repeats_are_taken_once(rate, size, again, which):
    sent, x = made(rate, size)
    at = len(x) + which * size if which < 0 else which * size
    sent[which] = (START + (at - again) / rate, x[at - again : at + size])
    assert assert_whole(sent, x, rate).repeated == again


def test_a_repeat_among_trembling_clocks_is_seen_and_equal_values_are_not_taken_for_one():
    sent, x = made(100, 100)
    rng = np.random.default_rng(0)
    sent = [(t + rng.uniform(0, 0.04), v) for t, v in sent]
    assert not assert_near(sent, x).repeated
    slow = (x // 400).astype(np.int16)  # many neighbours are equal
    assert not assert_near(
        [(t, slow[i * 100 : i * 100 + 100]) for i, (t, _) in enumerate(sent)], slow
    ).repeated
    sent[20] = (sent[20][0] - 0.3, x[1970:2100])
    assert assert_near(sent, x).repeated == 30


def assert_near(sent, x):
    stream, got, missing, start = laid(sent, 100)
    assert not missing.any() and np.array_equal(got, x) and abs(start - START) < 0.04
    return stream


@RATES
@pytest.mark.parametrize("lost", [1, 4])
def test_lost_packets_are_missing_and_what_follows_keeps_its_time(rate, size, lost):
    sent, x = made(rate, size)
    del sent[20 : 20 + lost]
    _, got, missing, start = laid(sent, rate)
    gap = slice(20 * size, (20 + lost) * size)
    assert np.flatnonzero(missing).tolist() == list(range(gap.start, gap.stop)) and len(got) == len(x)
    assert np.array_equal(got[~missing], np.delete(x, gap)) and start == START


def test_a_late_first_packet_after_a_gap_does_not_lengthen_the_gap():
    sent, x = made(125, 32)
    sent = [(t + 5 * (i >= 20), v) for i, (t, v) in enumerate(sent)]
    sent[20] = (sent[20][0] + 0.2, sent[20][1])
    _, got, missing, _ = laid(sent, 125)
    assert missing.sum() == 625 and np.array_equal(got[~missing], x)


@RATES
def test_packets_written_out_of_order_are_put_in_order(rate, size):
    sent, x = made(rate, size)
    sent[20], sent[21] = sent[21], sent[20]
    assert_whole(sent, x, rate)
    assert_whole(sent[30:] + sent[:30], x, rate)


def test_small_packets_keep_their_order_when_a_clock_is_late_by_more_than_their_length():
    sent, x = made(125, 12)
    sent[20] = (sent[20][0] + 0.3, sent[20][1])
    assert_whole(sent, x, 125)


def test_a_clock_that_is_set_back_a_little_leaves_the_contested_time_missing():
    sent, x = made(125, 125)
    sent = [(t - 0.4 * (i >= 20), v) for i, (t, v) in enumerate(sent)]
    stream, got, missing, _ = laid(sent, 125)
    assert np.flatnonzero(missing).tolist() == list(range(2450, 2500)) and stream.contested == 100
    assert np.array_equal(got[:2450], x[:2450]) and np.array_equal(got[2500:], x[2550:])
    assert "100 samples are missing because the clock was set back" in stream.notes()[0]


@pytest.mark.parametrize("back", [1.5, 3, 30])
def test_time_that_runs_back_is_refused(back):
    sent, _ = made(125, 125)
    with pytest.raises(Refused, match="bad_time: time runs back by"):
        laid([(t - back * (i >= 20), v) for i, (t, v) in enumerate(sent)], 125)


def test_two_senders_under_one_name_are_refused():
    mine, _ = made(125, 125)
    other, _ = made(125, 125, seed=9)
    with pytest.raises(Refused, match="bad_time"):
        laid(sorted([*mine, *other], key=lambda p: p[0]), 125)


@pytest.mark.parametrize("ppm", [-1000, -40, -17, 23, 40, 300])
@pytest.mark.parametrize("trembling", [0, 0.05])
def test_samples_follow_a_converter_that_drifts(ppm, trembling):
    rate, seconds = 50, 7200
    taken = np.arange(rate * seconds) / rate / (1 + ppm * 1e-6)  # a sample's value is when it was taken
    rng = np.random.default_rng(1)
    clock = START + taken[::rate] + rng.uniform(0, trembling, seconds)
    stream, got, missing, start = laid(list(zip(clock, taken.reshape(-1, rate), strict=True)), rate)
    off = got + START - start - np.arange(len(got)) / rate
    assert not missing.any() and np.abs(off).max() < 0.02 + trembling / 2
    assert np.ptp(off) < max(0.01, trembling / 2) or abs(ppm) < 20
    drifted = abs(taken[-1] - (len(taken) - 1) / rate)
    assert stream.corrected_s == pytest.approx(drifted if drifted > 0.15 else stream.corrected_s, abs=0.02)


def test_a_converter_that_drifts_little_keeps_its_own_integers():
    sent, x = made(125, 125, seconds=600)
    assert_whole([(START + (t - START) * (1 + 40e-6), v) for t, v in sent], x, 125)


def test_a_clock_that_drifts_and_a_gap_are_told_apart():
    rate = 100
    taken = np.arange(rate * 7200) / rate * (1 + 40e-6)
    clock, parts = START + taken[::rate], taken.reshape(-1, rate)
    keep = np.ones(7200, bool)
    keep[3000:3100] = False
    _, got, missing, start = laid(list(zip(clock[keep], parts[keep], strict=True)), rate)
    off = (got + START - start - np.arange(len(got)) / rate)[~missing]
    assert missing.sum() == pytest.approx(100 * rate, abs=2) and np.abs(off).max() < 0.01


def test_missing_values_stay_missing_when_samples_are_resampled():
    rate = 100
    taken = np.arange(rate * 3600) / rate * (1 + 100e-6)
    x = np.sin(taken).astype(np.float32)
    x[5000:5100] = np.nan
    sent = list(zip(START + taken[::rate], x.reshape(-1, rate), strict=True))
    _, got, missing, _ = laid(sent, rate)
    assert not missing.any() and 100 <= np.isnan(got).sum() <= 102
    there = ~np.isnan(got)
    assert np.allclose(got[there], np.sin(np.arange(len(got)) / rate)[there], atol=1e-3)


@pytest.mark.parametrize("times", [[np.nan, 1.0], [0.0, np.inf]])
def test_a_packet_without_a_time_is_refused(times):
    with pytest.raises(Refused, match="bad_time: a packet has no time"):
        packets.read(np.array(times), [np.zeros(5, np.int16)] * 2, 100)


def test_a_gap_of_years_is_refused_before_it_is_built():
    sent, _ = made(125, 125)
    sent[-1] = (START + 1e9, sent[-1][1])
    with pytest.raises(Refused, match="corrupt"):
        laid(sent, 125)


@RATES
@pytest.mark.parametrize("seed", range(5))
def test_a_radio_that_loses_packets_again_and_again_leaves_the_others_in_their_places(rate, size, seed):
    sent, x = made(rate, size)
    kept = np.random.default_rng(seed).random(len(sent)) > 0.3
    kept[[0, -2, -1]] = True  # a last one that nothing follows may be late
    _, got, missing, start = laid([s for s, k in zip(sent, kept, strict=True) if k], rate)
    assert np.array_equal(missing, np.repeat(~kept, size)) and start == START
    assert np.array_equal(got[~missing], x[np.repeat(kept, size)])


@pytest.mark.parametrize("times", [1, 2])
def test_several_packets_sent_again_as_a_block_are_taken_once(times):
    sent, x = made(62.5, 63)
    sent[12:12] = sent[9:12] * times
    assert assert_whole(sent, x, 62.5).twice == 3 * times
