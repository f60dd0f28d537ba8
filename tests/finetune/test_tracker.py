"""The spectral tracker on synthetic recordings with known rate and motion."""

import numpy as np
import pytest

from finetune.evaluation import tracker
from tests.finetune import moving


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng([11, *seed])


def error(bpm: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(bpm - truth).mean())


def at_rest(bpm: float, seconds: int = 60) -> moving.Run:
    return moving.run(rng(int(bpm)), np.full(seconds, bpm), np.zeros(seconds), 0.0)


@pytest.mark.parametrize("bpm", [48, 65, 90, 120, 150, 170])
@pytest.mark.parametrize("window_s, hop_s", [(8.0, 2.0), (30.0, 30.0)])
def test_a_clean_pulse_is_read_to_a_beat_a_minute(bpm: float, window_s: float, hop_s: float) -> None:
    start, ppg, acc, truth = at_rest(bpm).windows(window_s, hop_s)
    assert error(tracker.track(start, ppg, acc), truth) <= 1


def test_a_window_shorter_than_a_frame_is_one_frame() -> None:
    start, ppg, acc, truth = at_rest(75).windows(5.0, 5.0)
    assert len(tracker.frames_of(start, ppg, acc).start_s) == len(start)
    assert error(tracker.track(start, ppg, acc), truth) <= 2


@pytest.mark.parametrize("own", [False, True])
def test_where_motion_crosses_the_heart_rate_the_accelerometer_saves_it(own: bool) -> None:
    with_acc, without = [], []
    for seed in range(4):
        # the heart speeds up from 90 to 160 through 140 steps a minute
        hr, steps = np.linspace(90, 160, 150), np.full(150, 140 / 60)
        start, ppg, acc, truth = moving.run(rng(seed), hr, steps, 2.0, own).windows()
        with_acc.append(error(tracker.track(start, ppg, acc), truth))
        without.append(error(tracker.track(start, ppg), truth))
    assert max(with_acc) < 5 < max(without) and np.mean(with_acc) < np.mean(without) / 3


def test_motion_away_from_the_heart_rate_is_not_mistaken_for_it() -> None:
    hr, steps = np.full(120, 100.0), np.full(120, 160 / 60)
    start, ppg, acc, truth = moving.run(rng(1), hr, steps, 3.0).windows()
    assert error(tracker.track(start, ppg, acc), truth) < 2 < error(tracker.track(start, ppg), truth)


def test_a_treadmill_run_is_tracked_within_five_beats_a_minute() -> None:
    hr, steps = moving.treadmill(rng(5))
    start, ppg, acc, truth = moving.run(rng(6), hr, steps, 2.0).windows()
    assert error(tracker.track(start, ppg, acc), truth) < 5


def test_an_accelerometer_at_rest_changes_nothing() -> None:
    start, ppg, acc, _ = at_rest(80).windows()
    alone = tracker.track(start, ppg)
    for still in (acc, np.zeros_like(acc), np.ones_like(acc)):
        assert np.array_equal(tracker.track(start, ppg, still), alone)


def test_an_axis_that_is_flat_or_missing_leaves_the_others_at_work() -> None:
    hr, steps = np.full(90, 100.0), np.full(90, 160 / 60)
    start, ppg, acc, truth = moving.run(rng(1), hr, steps, 3.0).windows()
    for value in (0.0, np.nan):
        broken = acc.copy()
        broken[:, 1] = value
        assert error(tracker.track(start, ppg, broken), truth) < 5


def test_a_window_without_a_pulse_is_not_answered_and_its_neighbours_are() -> None:
    start, ppg, acc, truth = at_rest(75).windows()
    lost = ppg.copy()
    lost[10, :, 50:60], lost[11] = np.nan, 0.0
    found = tracker.track(start, lost, acc)
    assert np.flatnonzero(np.isnan(found)).tolist() == [10, 11]
    assert error(np.delete(found, [10, 11]), np.delete(truth, [10, 11])) <= 1


def test_a_broken_channel_leaves_the_other_one() -> None:
    start, ppg, acc, truth = at_rest(75).windows()
    ppg[:, 0] = np.nan
    assert error(tracker.track(start, ppg, acc), truth) <= 1
    ppg[:, 1] = 0.0
    assert np.isnan(tracker.track(start, ppg, acc)).all()


def test_windows_after_a_long_gap_are_tracked_anew() -> None:
    (early, a, _, x), (late, b, _, y) = at_rest(60).windows(), at_rest(170).windows()
    start, ppg = np.concatenate([early, late + 1000]), np.concatenate([a, b])
    found = tracker.track(start, ppg)
    assert np.array_equal(found, np.concatenate([tracker.track(early, a), tracker.track(late, b)]))
    assert error(found, np.concatenate([x, y])) <= 1


def test_overlapping_windows_share_their_frames() -> None:
    start, ppg, acc, truth = at_rest(100).windows(30.0, 10.0)
    frames = tracker.frames_of(start, ppg, acc)
    rate = tracker.follow(frames)
    assert len(frames.start_s) == 12 * len(start) and error(tracker.track(start, ppg, acc), truth) <= 1
    for second in np.unique(frames.start_s):
        assert len(set(rate[frames.start_s == second])) == 1


def test_of_equal_frames_the_one_with_a_pulse_counts() -> None:
    start, ppg, _, _ = at_rest(100).windows()
    seen, blind = tracker.frames_of(start, ppg), tracker.frames_of(start, np.zeros_like(ppg))
    pairs = zip(
        (blind.start_s, blind.evidence, blind.known), (seen.start_s, seen.evidence, seen.known), strict=True
    )
    both = tracker.Frames(*(np.concatenate(pair) for pair in pairs))
    assert np.array_equal(tracker.follow(both), np.tile(tracker.follow(seen), 2))


def test_a_frame_alone_shows_the_heart_under_an_artefact_of_five_times_its_height() -> None:
    hr, steps = np.full(120, 100.0), np.full(120, 160 / 60)
    start, ppg, acc, truth = moving.run(rng(1), hr, steps, 5.0).windows()
    highest = tracker.BPM[tracker.frames_of(start, ppg, acc).evidence.argmax(1)]
    assert np.mean(np.abs(highest - truth) < 5) > 0.6
