"""Made-up people: the truth in the labels is the truth in the waveforms, found here by other means."""

import numpy as np
import pytest
from scipy import signal as sps

from cluster.errors import PlethoraError
from datasets import __main__ as command
from datasets import physiology
from datasets.schema import open_corpus
from datasets.synthetic import PURPOSE, Recipe, person_entries, record, synthesize

CLEAN = dict(motion=0.0, gaps=0.0, flats=0.0, clips=0.0)


def people(n, seconds=120, **more):
    """(person, signals {m: (x (samples,), rate)}, labels {name: Labels}) of `n` clean records."""
    recipe = Recipe(hours=n * seconds / 3600, subjects=n, **(CLEAN | more))
    for i in range(n):
        rng = np.random.default_rng([recipe.seed, PURPOSE, i])
        who = physiology.person(rng, recipe.af, recipe.ectopy)
        made = record(recipe, who, rng, seconds)
        signals = {m: (s.x_tc[:, 0], float(s.rate)) for m, s in made.signals.items()}
        yield who, signals, {label.name: label for label in made.labels}


def r_peaks(x, rate):
    sos = sps.butter(2, [5, 25], "bandpass", fs=rate, output="sos")
    y = sps.sosfiltfilt(sos, x) ** 2
    return sps.find_peaks(y, height=0.25 * np.percentile(y, 99.5), distance=int(0.25 * rate))[0] / rate


def spectral_peak(x, rate, low, high):
    f, p = sps.welch(x - x.mean(), rate, nperseg=len(x), nfft=16 * len(x))
    band = (f >= low) & (f <= high)
    return 60 * f[band][np.argmax(p[band])]


def test_heart_rate_is_the_rate_of_r_peaks_in_every_rhythm():
    rhythms = set()
    for who, signals, labels in people(12, af=0.4, ectopy=0.3):
        rhythms.add(who.rhythm)
        beats = r_peaks(*signals["ecg"])
        hr = labels["hr"]
        for a in range(10, 100, 20):
            inside = beats[(beats >= a) & (beats < a + 20)]
            counted = 60 * (len(inside) - 1) / (inside[-1] - inside[0])
            told = hr.values[(hr.start_s >= a) & (hr.end_s <= a + 20)].mean()
            # uneven beats at the borders of the stretch weigh more than a bpm
            assert counted == pytest.approx(told, abs=2 if who.rhythm == "sinus" else 7)
    assert rhythms == {"sinus", "af", "ectopy"}


def test_the_pulse_in_ppg_and_abp_beats_with_the_heart():
    for _, signals, labels in people(5, seconds=40, af=0, ectopy=0):
        told = labels["hr"].values.mean()
        for m in ("ppg", "abp"):
            assert spectral_peak(*signals[m], 0.7, 3) == pytest.approx(told, abs=4)


def test_breathing_rate_is_that_of_resp_and_is_seen_in_ppg():
    for _, signals, labels in people(6, seconds=60):
        told = labels["rr"].values.mean()
        assert spectral_peak(*signals["resp"], 0.08, 0.7) == pytest.approx(told, abs=1.5)
        assert spectral_peak(*signals["ppg"], 0.13, 0.55) == pytest.approx(told, abs=3.5)


def test_pressures_are_the_peaks_and_feet_of_abp():
    for _, signals, labels in people(6, af=0, ectopy=0, noise=0.0):
        x, rate = signals["abp"]
        peaks = sps.find_peaks(x, distance=int(0.4 * rate), prominence=15)[0]
        feet = sps.find_peaks(-x, distance=int(0.4 * rate), prominence=15)[0]
        assert x[peaks].mean() == pytest.approx(labels["sbp"].values.mean(), abs=2)
        assert x[feet].mean() == pytest.approx(labels["dbp"].values.mean(), abs=2)


def test_pulses_arrive_earlier_when_pressure_is_higher():
    who = physiology.person(np.random.default_rng(0), af=0, ectopy=0)
    rng = np.random.default_rng(1)
    c = physiology.course(rng, who, 300)
    b = physiology.beats(rng, who, c)
    delay = physiology._arrival(who, c, b, 0.75) - b.r
    assert delay.min() > 0.1 and delay.max() < 0.35
    assert np.corrcoef(delay, np.interp(b.r, c.t, c.sbp))[0, 1] < -0.8


def test_saturation_is_in_the_ratio_of_two_wavelengths_and_not_in_one():
    recipe = Recipe(hours=1, subjects=10, wavelengths=2, noise=0.0, af=0, ectopy=0, **CLEAN)
    found, told = [], []
    for i in range(10):
        rng = np.random.default_rng([0, PURPOSE, i])
        made = record(recipe, physiology.person(rng, 0, 0), rng, 60)
        x = made.signals["ppg"].x_tc
        sos = sps.butter(2, [0.8, 8], "bandpass", fs=125, output="sos")
        infrared, red = sps.sosfiltfilt(sos, x, axis=0).std(0)
        found.append(110 - 25 * red / infrared)
        told.append(next(label for label in made.labels if label.name == "spo2").values.mean())
    assert np.abs(np.subtract(found, told)).max() < 2
    one = [next(iter(people(1, seed=s)))[1]["ppg"][0] for s in (0,)]
    assert one[0].ndim == 1


def test_atrial_fibrillation_is_irregular_has_no_p_wave_and_drops_pulses():
    def spread(rhythm, **more):
        for who, signals, _ in people(30, **more):
            if who.rhythm == rhythm:
                beats = np.diff(r_peaks(*signals["ecg"])[-60:])
                return beats.std() / beats.mean()

    assert spread("af", af=1.0, ectopy=0.0) > 0.12 > 0.08 > spread("sinus", af=0.0, ectopy=0.0)


def test_people_are_plausible_and_pressure_rises_with_age():
    who = [physiology.person(np.random.default_rng(i)) for i in range(400)]
    age, sbp = np.array([p.age for p in who]), np.array([p.sbp for p in who])
    assert np.corrcoef(age, sbp)[0, 1] > 0.4
    assert all(p.sbp - p.dbp >= 20 and p.dbp >= 45 and 90 <= p.spo2 <= 99 for p in who)
    assert 0.4 < np.mean([p.female for p in who]) < 0.6


def test_the_same_arguments_give_the_same_bytes_and_another_seed_other_people(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthesize(str(tmp_path / name), hours=0.05, subjects=4, seed=seed)
    a, b = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in "ab"
    )
    assert a == b
    assert open_corpus(str(tmp_path / "a")).hash != open_corpus(str(tmp_path / "c")).hash
    subjects = [
        set(open_corpus(str(tmp_path / n)).read_row_group(0, 0, ["subject"])["subject"].to_pylist())
        for n in "ac"
    ]
    assert len(subjects[0]) == 4 and not subjects[0] & subjects[1]


def test_a_person_does_not_depend_on_how_many_others_there_are():
    few, many = (Recipe(hours=0.02 * n, subjects=n) for n in (2, 9))
    x, y = (next(person_entries(r, 1)) for r in (few, many))
    assert x.subject == y.subject
    assert np.array_equal(x.recording.signals["ppg"].x_tc, y.recording.signals["ppg"].x_tc)


def test_faults_on_demand_turn_up_in_the_ledger_and_none_without(tmp_path):
    faults = dict(gaps=0.05, flats=0.05, clips=0.02, motion=0.1)
    made = synthesize(str(tmp_path / "bad"), hours=0.5, subjects=5, **faults)
    assert set(made["rejects"]["ppg"]) >= {"nan", "flat", "clipped"}
    assert sum(b["gaps"] for b in made["bridged_gaps"].values()) > 0
    assert made["labels"]["motion"] > 0
    for m, hours in made["hours_in"].items():
        assert hours == pytest.approx(0.5)
        refused = made["hours_refused"][m]
        assert made["counts"]["hours"][m] + refused == pytest.approx(hours, abs=3e-9)
        assert 0.03 < refused / hours < 0.25
    clean = synthesize(str(tmp_path / "clean"), hours=0.5, subjects=5, **CLEAN)
    assert clean["rejects"] == {}
    assert clean["counts"]["rows"] == 5


def test_rates_and_modalities_are_chosen(tmp_path):
    rates = {"ppg": 50.0, "ecg": 100.0}
    made = synthesize(str(tmp_path / "c"), hours=0.02, subjects=2, rates=rates, **CLEAN)
    assert made["modalities"] == ["ppg", "ecg"]
    row = open_corpus(made["uri"]).read_row_group(0, 0).to_pylist()[0]
    assert len(row["ppg"]) == 2 * 50 * 36 and len(row["ecg"]) == 2 * 100 * 36


def test_long_recordings_are_cut_into_hours(tmp_path):
    recipe = Recipe(hours=2.5, subjects=1, rates={"resp": 20.0})
    entries = list(person_entries(recipe, 0))
    assert [len(e.recording.signals["resp"].x_tc) for e in entries] == [72000, 72000, 36000]
    assert len({e.record for e in entries}) == 3 and len({e.subject for e in entries}) == 1


def test_many_hours_are_written_by_parallel_tasks_to_the_same_corpus(ray_session, tmp_path, monkeypatch):
    from datasets import synthetic

    one = synthesize(str(tmp_path / "one"), hours=0.05, subjects=6)
    monkeypatch.setattr(synthetic, "SHARD_BYTES", 100_000)
    many = synthesize(str(tmp_path / "many"), hours=0.05, subjects=6)
    assert many["shards"] > one["shards"] == 1
    assert many["counts"] == one["counts"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(hours=0), "hours must be above 0"),
        (dict(hours=float("nan")), "hours must be above 0"),
        (dict(subjects=0), "subjects must be at least 1"),
        (dict(gaps=0.9), "between 0 and 0.5"),
        (dict(af=0.7, ectopy=0.7), "together at most 1"),
        (dict(rates={"eeg": 100.0}), "no modality"),
        (dict(rates={"ppg": 62.5}), "whole"),
    ],
)
def test_an_impossible_wish_is_one_line(tmp_path, more, message):
    wish = dict(hours=1.0, subjects=2) | more
    with pytest.raises(PlethoraError, match=message):
        synthesize(str(tmp_path / "c"), **wish)


def test_another_corpus_in_the_same_place_is_an_error_unless_forced(tmp_path):
    argv = ["synthesize", "--hours", "0.01", "--subjects", "2", "--out", str(tmp_path / "c"), "--json"]
    assert not command.main(argv)["already_there"]
    assert command.main(argv)["already_there"]
    with pytest.raises(PlethoraError, match="--force"):
        command.main([*argv, "--seed", "1"])
    assert not command.main([*argv, "--seed", "1", "--force"])["already_there"]
