"""Derived labels: right on made-up people and by a monitor's own numbers, absent where signals are poor."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, signal

from datasets import labels, physiology, synthetic
from datasets.descriptor import Derive
from datasets.ingest import read_descriptor
from datasets.readers import mat, wfdb
from datasets.readers.base import Labels, Recording, Root, Samples
from datasets.validity import Limits
from finetune.task import load_task, window_targets

ROOT = Path(__file__).resolve().parents[2]


def samples(x, rate, missing=None):
    missing = np.zeros(len(x), bool) if missing is None else missing
    return Samples(x[:, None], missing, Fraction(rate), 1.0, 0.0, "mV")


def beats_at(times, seconds, rate, rng):
    """An ECG of narrow R waves and broad T waves at the given times, with a wandering baseline."""
    t = np.arange(int(seconds * rate)) / rate
    x = 0.3 * np.sin(2 * np.pi * 0.3 * t) + 0.01 * rng.standard_normal(len(t))
    for at in times:
        x += np.exp(-0.5 * ((t - at) / 0.012) ** 2) + 0.3 * np.exp(-0.5 * ((t - at - 0.25) / 0.05) ** 2)
    return x


@pytest.mark.parametrize("rate", [100, 125, 250, 500])
@pytest.mark.parametrize("polarity", [1.0, -700.0])
def test_both_detectors_find_every_beat_at_any_rate_unit_and_polarity(rate, polarity):
    rng = np.random.default_rng(rate)
    beats = 0.5 + np.cumsum(rng.uniform(0.45, 1.3, 40))
    x = polarity * beats_at(beats, beats[-1] + 0.5, rate, rng)
    for detector in (labels.qrs_energy, labels.qrs_length):
        found = detector(x, rate)
        assert len(found) == len(beats)
        assert np.abs(found - beats).max() < 0.05


def test_counting_rates_equals_a_plain_loop_over_events():
    rng = np.random.default_rng(3)
    events = np.cumsum(rng.uniform(0.3, 1.6, 300))
    start = np.arange(0, 200, 10.0)
    got = labels.rates(events, start, start + 10, (40.0, 150.0))
    for k, s in enumerate(start):
        inside = [e for e in events if s <= e < s + 10]
        gaps = np.diff([s, *inside, s + 10])
        rate = 60 * (len(inside) - 1) / (inside[-1] - inside[0]) if len(inside) > 2 else np.nan
        if len(inside) > 2 and 40 <= rate <= 150 and gaps.max() <= 1.5:
            assert got[k] == pytest.approx(rate)
        else:
            assert np.isnan(got[k])
    assert 3 < np.isfinite(got).sum() < 20


def test_agreement_of_beats_is_the_f_score_of_a_plain_loop():
    rng = np.random.default_rng(4)
    a = np.cumsum(rng.uniform(0.4, 1.2, 60))
    b = np.sort(np.concatenate([a[rng.random(60) < 0.7] + rng.uniform(-0.3, 0.3, 1)[0] * 0.4, [5.0, 17.3]]))
    start = np.arange(0, 40, 10.0)
    got = labels.agreement_of_beats(a, b, start, start + 10)
    for k, s in enumerate(start):
        mine, other = ([t for t in x if s <= t < s + 10] for x in (a, b))
        matched = sum(min(abs(b - t)) <= 0.15 for t in mine) + sum(min(abs(a - t)) <= 0.15 for t in other)
        assert got[k] == pytest.approx(matched / (len(mine) + len(other)))
    assert labels.agreement_of_beats(a, np.zeros(0), start, start + 10).tolist() == [0] * 4


@pytest.mark.parametrize("rate", [125, 500])
@pytest.mark.parametrize("colour", ["white", "brown", "tremor"])
def test_noise_has_no_heart_rate(rate, colour):
    x = np.random.default_rng(5).standard_normal(rate * 120)
    if colour == "brown":
        x = np.cumsum(x)
    elif colour == "tremor":
        x = 0.1 * x + np.sin(2 * np.pi * 6 * np.arange(len(x)) / rate)
    start = np.arange(0, 120, 10.0)
    assert np.isnan(labels.heart_rate(x, rate, start, start + 10)).all()


def test_a_pause_has_no_heart_rate():
    rng = np.random.default_rng(5)
    start = np.arange(0, 60, 10.0)
    beats = np.concatenate([np.arange(0.5, 34, 0.8), np.arange(41, 60, 0.8)])
    bpm = labels.heart_rate(beats_at(beats, 60, 125, rng), 125, start, start + 10)
    assert np.allclose(bpm[[0, 1, 2, 5]], 75, atol=0.5)
    assert np.isnan(bpm[3])  # silent from 34 s on


def test_stretches_that_touch_missing_or_flat_samples_have_no_label():
    rng = np.random.default_rng(6)
    x = beats_at(np.arange(0.4, 60, 0.75), 60, 125, rng)
    missing = np.zeros(len(x), bool)
    missing[125 * 14 : 125 * 15] = True
    x[125 * 35 : 125 * 41] = 0.0
    (found,) = labels.from_signal(samples(x, 125, missing), Limits(), 10, ["hr"], labels.heart_rate, "bpm")
    assert found.name == "hr_derived"
    assert found.start_s.tolist() == [0, 20, 50]
    assert np.allclose(found.values, 80, atol=0.5) and np.array_equal(found.end_s, found.start_s + 10)


def test_a_short_gap_that_ingest_bridges_does_not_cost_the_label():
    rng = np.random.default_rng(7)
    x = beats_at(np.arange(0.4, 20, 0.75), 20, 125, rng)
    missing = np.zeros(len(x), bool)
    missing[600:608] = True
    (found,) = labels.from_signal(samples(x, 125, missing), Limits(), 10, ["hr"], labels.heart_rate, "bpm")
    assert len(found.values) == 2


def pressure(sbp, dbp, bpm, seconds, rate=125):
    """A pressure that rises within 0.12 s and decays to the next beat, exactly between dbp and sbp."""
    t = np.arange(int(seconds * rate)) / rate
    phase = (t * bpm / 60) % 1 * 60 / bpm
    wave = np.where(phase < 0.12, np.sin(phase / 0.12 * np.pi / 2) ** 2, np.exp(-(phase - 0.12) / 0.35))
    wave = (wave - wave.min()) / np.ptp(wave)
    return dbp + (sbp - dbp) * wave


@pytest.mark.parametrize(("sbp", "dbp", "bpm"), [(120, 80, 60), (180, 95, 110), (85, 50, 45), (140, 60, 150)])
def test_pressures_of_clean_beats_are_found(sbp, dbp, bpm):
    start = np.arange(0, 60, 10.0)
    found = labels.blood_pressure(pressure(sbp, dbp, bpm, 60), 125, start, start + 10)
    for values, truth in zip(found, (sbp, dbp), strict=True):
        assert np.abs(values - truth).max() < 0.08 * (sbp - dbp)


@pytest.mark.parametrize(("sbp", "dbp"), [(290, 90), (90, 10), (84, 77), (70, -20)])
def test_implausible_pressures_make_no_label(sbp, dbp):
    start = np.arange(0, 60, 10.0)
    found = labels.blood_pressure(pressure(sbp, dbp, 70, 60), 125, start, start + 10)
    assert np.isnan(found).all()


def test_a_stretch_of_many_odd_beats_has_no_pressure():
    start = np.arange(0, 60, 10.0)
    x = pressure(120, 80, 60, 60)
    second = np.arange(len(x)) // 125
    for odd, labelled in ((second % 10 == 4, True), (second % 10 > 5, False)):  # one beat of ten, four of ten
        found = labels.blood_pressure(np.where(odd, 80 + 2.2 * (x - 80), x), 125, start, start + 10)
        assert np.isfinite(found).all() == labelled and np.isfinite(found).any() == labelled


def test_two_detectors_that_differ_make_no_label(monkeypatch):
    x = beats_at(np.arange(0.4, 60, 0.75), 60, 125, np.random.default_rng(9))
    start = np.arange(0, 60, 10.0)
    assert np.isfinite(labels.heart_rate(x, 125, start, start + 10)).all()
    whole = labels.qrs_length
    monkeypatch.setattr(labels, "qrs_length", lambda x, rate: np.delete(whole(x, rate), slice(20, None, 2)))
    found = labels.heart_rate(x, 125, start, start + 10)
    assert np.isfinite(found[0]) and np.isnan(found[2:]).all()


def test_breathing_needs_people_who_agree():
    first = np.arange(1, 300, 4.0)
    second = np.concatenate([first[first < 150] + 0.2, np.arange(152, 300, 6.0)])
    both = labels.breathing_rate({"a": first, "b": second}, 300, 30)
    assert np.allclose(both.values, 15) and both.start_s.tolist() == [0, 30, 60, 90, 120]
    assert np.allclose(labels.breathing_rate({"a": first}, 300, 30).values, 15)
    assert len(labels.breathing_rate({}, 300, 30).values) == 0


def test_only_what_the_descriptor_asks_for_is_derived():
    ecg = samples(beats_at(np.arange(0.4, 60, 0.75), 60, 125, np.random.default_rng(8)), 125)
    at = np.arange(1, 60, 4.0)
    breaths = Labels("breath", ["ann1"] * len(at), None, at, at)
    recording = Recording({"ecg": ecg}, [breaths])
    assert labels.derived(recording, Derive(), Limits()) == []
    found = labels.derived(recording, Derive(hr="ecg", bp="abp", rr="breath"), Limits())
    assert [label.name for label in found] == ["hr_derived", "rr_derived"]
    assert np.allclose(found[1].values, 15)


# ---------------------------------------------------------------- against known truth


def against(found, given):
    """Derived value and mean of the given ones in its stretch, for every stretch that has both."""
    middle = (given.start_s + given.end_s) / 2
    pairs = [
        (v, given.values[(middle >= a) & (middle < b)].mean())
        for v, a, b in zip(found.values, found.start_s, found.end_s, strict=True)
        if ((middle >= a) & (middle < b)).any()
    ]
    return np.array(pairs).reshape(-1, 2)


def test_made_up_people_get_the_labels_that_they_were_made_with():
    recipe = synthetic.Recipe(hours=1.0, subjects=12, seed=11)
    pairs: dict[str, list] = {}
    stretches = 0
    for person in range(recipe.subjects):
        for entry in synthetic.person_entries(recipe, person):
            truth = {label.name: label for label in entry.recording.labels}
            for label in labels.derived(entry.recording, Derive(hr="ecg", bp="abp"), Limits()):
                name = label.name.removesuffix("_derived")
                pairs.setdefault(name, []).append(against(label, truth[name]))
            stretches += recipe.seconds // 10
    for name, mae in {"hr": 0.5, "sbp": 1.0, "dbp": 0.6}.items():
        error = np.subtract(*np.concatenate(pairs[name]).T)
        assert len(error) > 0.9 * stretches
        assert np.abs(error).mean() < mae and (np.abs(error) <= 5).mean() > 0.96, name


def test_a_breath_annotated_at_the_true_phase_gives_the_true_rate():
    rng = np.random.default_rng(12)
    who = physiology.person(rng)
    course = physiology.course(rng, who, 300)
    at = np.interp(np.arange(np.ceil(course.breath[0]), course.breath[-1]), course.breath, course.t)
    found = labels.breathing_rate({"truth": at[(at >= 0) & (at < 300)]}, 300, 30)
    truth = np.array([course.rr[(course.t >= a) & (course.t < a + 30)].mean() for a in found.start_s])
    assert len(found.values) == 10 and np.abs(found.values - truth).max() < 0.8


def test_the_monitors_heart_rate_is_the_derived_one(data):
    """BIDMC: an independent algorithm, the monitor's own, with its averaging and delay."""
    known = read_descriptor(ROOT / "datasets/corpora/bidmc.toml")
    root = Root(str(data / "bidmc"))
    pairs = []
    for source in wfdb.scan(root, known)[:16]:
        recording = wfdb.load(source, Path(root.uri), known)
        given = {label.name: label for label in recording.labels}
        for label in labels.derived(recording, Derive(hr="ecg"), Limits()):
            pairs.append(against(label, given["hr"]))
    error = np.subtract(*np.concatenate(pairs).T)
    assert len(error) > 0.85 * 16 * 48
    assert np.abs(error).mean() < 1.5 and abs(error.mean()) < 0.5 and (np.abs(error) <= 5).mean() > 0.93


def test_the_organisers_heart_rate_under_motion_is_the_derived_one(data):
    """IEEE SPC 2015: heart rates that people counted from the same ECG, on a treadmill."""
    known = read_descriptor(ROOT / "datasets/corpora/ieee_spc_2015.toml")
    root = Root(str(data / "ieee_spc_2015"))
    pairs = []
    for source in mat.scan(root, known)[:6]:
        recording = mat.load(source, Path(root.uri), known)
        given = {label.name: label for label in recording.labels}
        for label in labels.derived(recording, Derive(hr="ecg"), Limits()):
            pairs.append(against(label, given["hr"]))
    error = np.subtract(*np.concatenate(pairs).T)
    assert len(error) > 0.8 * 6 * 28
    assert np.abs(error).mean() < 1.5 and abs(error.mean()) < 0.5 and (np.abs(error) <= 5).mean() > 0.95


def test_a_task_may_name_a_derived_label():
    from datasets.write import label_table

    start = np.arange(0, 60, 10.0)
    derived = Labels("hr_derived", np.full(6, 71.0), "bpm", start, start + 10)
    task = load_task("heart_rate").model_copy(update={"label": "hr_derived"})
    target, refusal = window_targets(label_table("s", "r", [derived]), ["r", "r"], [0.0, 30.0], task)
    assert target.tolist() == [71.0, 71.0] and refusal.tolist() == ["", ""]


@pytest.mark.parametrize("seed", range(8))
def test_rates_and_medians_are_those_of_a_loop_over_stretches(seed):
    rng = np.random.default_rng(seed)
    events = np.sort(rng.uniform(0, 95, rng.integers(0, 160)))
    start = np.arange(10) * 9.5
    stop = start + 9.5
    want = np.full(10, np.nan)
    for k in range(10):
        inside = events[(events >= start[k]) & (events < stop[k])]
        if len(inside) >= 3:
            rate = 60 * (len(inside) - 1) / (inside[-1] - inside[0])
            gaps = np.diff(np.concatenate([[start[k]], inside, [stop[k]]]))
            if 25 <= rate <= 80 and gaps.max() <= 60 / 25:
                want[k] = rate
    np.testing.assert_array_equal(labels.rates(events, start, stop, (25, 80)), want)
    x, low = rng.normal(size=300), rng.integers(0, 200, 10)
    high = low + rng.integers(1, 90, 10)
    each = [np.median(x[a:b]) for a, b in zip(low, high, strict=True)]
    np.testing.assert_array_equal(labels._medians(x, low, high), each)
    group = np.sort(rng.integers(0, 12, 90))
    each = [np.median(x[:90][group == k]) if (group == k).any() else np.nan for k in range(12)]
    np.testing.assert_array_equal(labels._medians_by(x[:90], group, 12), each)


@pytest.mark.parametrize("rate", [40, 62.4725, 125, 500])
@pytest.mark.parametrize("band", [(5, 20), (3, 16), (None, 16)])
def test_the_band_and_the_level_are_those_of_scipy_and_numpy(rate, band):
    x = np.random.default_rng(1).standard_normal(3000).cumsum()
    low, high = band
    edges, kind = (high, "low") if low is None else ((low, min(high, 0.45 * rate)), "band")
    sos = signal.butter(2, edges, kind, fs=rate, output="sos")
    np.testing.assert_array_equal(labels._band(x, rate, low, high), signal.sosfiltfilt(sos, x))
    with pytest.raises(ValueError, match="mirrors"):
        labels._band(x[:9], rate, low, high)

    for samples_of_it in (1, 99, 3000):
        envelope = np.abs(x[:samples_of_it])
        size = int(2 * rate)
        cuts = np.arange(0, max(1, len(envelope) - size // 2), size)
        tops = ndimage.median_filter(np.maximum.reduceat(envelope, cuts), 5, mode="nearest")
        want = np.interp(np.arange(len(envelope)), cuts + size / 2, tops)
        np.testing.assert_allclose(labels._level(envelope, rate), want, rtol=1e-14)
