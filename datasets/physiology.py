"""A synthetic person's heart, vessels and breathing: the truth, and the clean waveforms that follow from it.

What carries which information (so that a synthetic task is as hard as it looks, no more and no less):
heart rate and rhythm: the beat times, in every modality (respiration only through its coupling);
breathing rate: RESP itself, respiratory sinus arrhythmia, and the amplitude and baseline of the others;
blood pressure: ABP itself; PPG and ECG together through the arrival time (stiffer and fuller vessels conduct
faster); PPG alone through the timing and height of the diastolic wave (stiffness), so confounded by age;
oxygen saturation: the ratio of two wavelengths, and *nothing else*: one PPG wavelength does not carry it.
"""

from dataclasses import dataclass

import numpy as np

FINE_HZ = 20.0  # grid on which rates are integrated to beat times
PAD_S = 4.0  # the heart beats before and after the record


@dataclass(frozen=True)
class Person:
    """Constants of one person. BP in mmHg, rates per minute, stiffness 0 (young artery) to 1 (old)."""

    age: float
    female: bool
    hr: float
    rr: float
    sbp: float
    dbp: float
    spo2: float
    stiffness: float
    sinus_arrhythmia: float  # share of the heart rate
    perfusion: float  # PPG pulse, % of its DC level
    rhythm: str  # "sinus", "af" or "ectopy"
    desaturates: bool


@dataclass(frozen=True)
class Course:
    """The truth over time on a 1-Hz grid from -PAD_S: arrays (n,), and breathing phase in cycles."""

    t: np.ndarray
    hr: np.ndarray
    rr: np.ndarray
    sbp: np.ndarray
    dbp: np.ndarray
    spo2: np.ndarray
    breath: np.ndarray
    af_from: float  # seconds; infinite: never


@dataclass(frozen=True)
class Beats:
    """R-peak times (n,) in s, with each beat's type; `fill` = preceding interval over the expected one."""

    r: np.ndarray
    interval: np.ndarray  # to the next beat, s
    fill: np.ndarray
    ectopic: np.ndarray
    af: np.ndarray


def person(rng: np.random.Generator, af: float = 0.12, ectopy: float = 0.12) -> Person:
    """Draw a person: pressure and stiffness rise with age, diastolic falls again after 55."""
    age = float(rng.uniform(20, 85))
    female = bool(rng.random() < 0.5)
    sbp = float(np.clip(102 + 0.5 * (age - 20) - 4 * female + rng.normal(0, 11), 88, 195))
    dbp = 66 + 0.35 * (min(age, 55) - 20) - 0.25 * max(age - 55, 0) + 0.2 * (sbp - 120) + rng.normal(0, 5)
    dbp = float(np.clip(dbp, 45, min(115, sbp - 25)))
    stiffness = 0.1 + 0.6 * (age - 20) / 65 + 0.005 * (sbp - 120) + rng.normal(0, 0.06)
    rhythm = rng.choice(["af", "ectopy", "sinus"], p=[af, ectopy, 1 - af - ectopy])
    return Person(
        age=round(age, 1),
        female=female,
        hr=float(np.clip(rng.normal(70 + 4 * female, 10), 48, 110)),
        rr=float(np.clip(rng.normal(15, 2.8), 9, 26)),
        sbp=sbp,
        dbp=dbp,
        spo2=float(np.clip(97.8 - abs(rng.normal(0, 1.5)), 90, 99)),
        stiffness=float(np.clip(stiffness, 0, 1)),
        sinus_arrhythmia=float(np.clip(0.07 - 0.0007 * (age - 20) + rng.normal(0, 0.01), 0.005, 0.1)),
        perfusion=float(np.exp(rng.normal(0.6, 0.5))),
        rhythm=str(rhythm),
        desaturates=bool(rng.random() < 0.3),
    )


def _slow(
    rng: np.random.Generator, t: np.ndarray, fastest_s: float = 40, slowest_s: float = 600
) -> np.ndarray:
    """A smooth wandering curve (n,) of unit standard deviation: six sines of random period and phase."""
    period = np.exp(rng.uniform(np.log(fastest_s), np.log(slowest_s), 6))
    phase = rng.uniform(0, 2 * np.pi, 6)
    return np.sin(2 * np.pi * t[:, None] / period + phase).sum(1) / np.sqrt(3)


def _episodes(rng: np.random.Generator, t: np.ndarray, per_hour: float, width_s: float) -> np.ndarray:
    """Smooth bumps (n,) of height about 1 at random times, `per_hour` of them."""
    count = rng.poisson(per_hour * (t[-1] - t[0]) / 3600)
    centre = rng.uniform(t[0], t[-1], count)
    width = width_s * rng.uniform(0.6, 1.6, count)
    height = rng.uniform(0.5, 1.3, count)
    return (height * np.exp(-0.5 * ((t[:, None] - centre) / width) ** 2)).sum(1)


def course(rng: np.random.Generator, who: Person, seconds: float) -> Course:
    """How rates, pressures and saturation move over a record: activity and desaturation drive them all."""
    t = np.arange(-PAD_S, seconds + PAD_S + 1)
    activity = _episodes(rng, t, per_hour=4, width_s=45)
    fall = _episodes(rng, t, per_hour=8, width_s=25) * 6 if who.desaturates else np.zeros(len(t))
    fast = 18.0 if who.rhythm == "af" else 0.0
    hr = who.hr * (1 + 0.05 * _slow(rng, t)) + fast + 22 * activity + 0.8 * fall
    rr = who.rr * (1 + 0.07 * _slow(rng, t)) + 5 * activity + 0.3 * fall
    tone = 4 * _slow(rng, t)
    sbp = who.sbp + tone + 0.3 * (hr - who.hr - fast)
    dbp = who.dbp + 0.6 * tone + 0.1 * (hr - who.hr - fast)
    rr = np.clip(rr, 6, 40)
    breath = np.concatenate(([0], np.cumsum((rr[1:] + rr[:-1]) / 120))) + rng.random()
    starts = -np.inf if rng.random() < 0.5 else float(rng.uniform(0.2, 0.8)) * seconds
    return Course(
        t=t,
        hr=np.clip(hr, 35, 170),
        rr=rr,
        sbp=sbp,
        dbp=np.minimum(dbp, sbp - 20),
        spo2=np.clip(who.spo2 + 0.3 * _slow(rng, t) - fall, 70, 100),
        breath=breath,
        af_from=starts if who.rhythm == "af" else np.inf,
    )


def breath_at(c: Course, t: np.ndarray) -> np.ndarray:
    """sin of the breathing phase at times `t`: +1 at the height of inspiration."""
    return np.sin(2 * np.pi * np.interp(t, c.t, c.breath))


def beats(rng: np.random.Generator, who: Person, c: Course) -> Beats:
    """Beat times: integral pulse frequency modulation of the heart rate, so that the mean rate is exact.

    Sinus: breathing modulates the rate. AF: intervals drawn independently (gamma, 20 % spread). Ectopy: some
    beats come 35 % early and are followed by a compensatory pause.
    """
    fine = np.arange(c.t[0], c.t[-1], 1 / FINE_HZ)
    af_fine = fine >= c.af_from
    rate = np.interp(fine, c.t, c.hr) / 60
    rate = rate * (1 + np.where(af_fine, 0, who.sinus_arrhythmia) * breath_at(c, fine))
    count = np.concatenate(([0], np.cumsum((rate[1:] + rate[:-1]) / (2 * FINE_HZ))))
    n = int(count[-1]) + 1
    af = np.arange(n) > np.interp(c.af_from, fine, count, left=-1, right=n)
    step = np.where(af, rng.gamma(25, 1 / 25, n), 1 + 0.008 * rng.standard_normal(n))
    place = np.cumsum(step)
    place = place[place < count[-1]]
    af = af[: len(place)]
    ectopic = (rng.random(len(place)) < 0.06) & ~af & (who.rhythm == "ectopy")
    ectopic[1:] &= ~ectopic[:-1]
    r = np.interp(place - 0.35 * ectopic, count, fine)
    gap = np.diff(r)
    expected = 60 / np.interp(r, c.t, c.hr)
    fill = np.concatenate(([1.0], gap)) / np.concatenate(([1.0], expected[1:]))
    return Beats(r, np.append(gap, gap[-1]), np.clip(fill, 0.3, 2), ectopic, af)


def ecg(t: np.ndarray, who: Person, c: Course, b: Beats) -> np.ndarray:
    """Lead II in mV at times `t`: five Gaussian waves a beat (after McSharry et al. 2003), QT scaled by
    the square root of the interval, no P but fibrillation in AF, wide and inverted in ectopic beats."""
    root = np.sqrt(np.clip(b.interval, 0.35, 1.6))
    tall = (1 + 0.06 * breath_at(c, b.r)) * (1.1 - 0.003 * (who.age - 20))
    wide = np.where(b.ectopic, 3.0, 1.0)
    no_p = b.ectopic | b.af
    waves = [  # amplitude mV, centre s after R, width s
        (np.where(no_p, 0, 0.12), -0.16 * root, 0.022 * root),
        (-0.10 * tall, -0.028 * wide, 0.009 * wide),
        (tall * np.where(b.ectopic, 1.3, 1.0), 0 * root, 0.011 * wide),
        (-0.22 * tall, 0.028 * wide, 0.011 * wide),
        (np.where(b.ectopic, -0.35, 0.28), 0.30 * root, 0.048 * root),
    ]
    last = np.clip(np.searchsorted(b.r, t, side="right") - 1, 0, len(b.r) - 2)
    x = 0.06 * breath_at(c, t)
    for k in (last, last + 1):  # T belongs to the beat before, P to the beat to come
        since = t - b.r[k]
        for height, centre, width in waves:
            x += height[k] * np.exp(-0.5 * ((since - centre[k]) / width[k]) ** 2)
    wobble = 2 * np.pi * 5.8 * t + 2 * np.sin(2 * np.pi * 0.3 * t)
    return x + b.af[last] * 0.05 * np.sin(wobble)


def _arrival(who: Person, c: Course, b: Beats, path_m: float) -> np.ndarray:
    """When each beat's pulse arrives `path_m` down the arm: pre-ejection time + path / pulse-wave
    velocity."""
    mean = np.interp(b.r, c.t, (c.sbp + 2 * c.dbp) / 3)
    velocity = np.clip(4.5 + 4.5 * who.stiffness + 0.035 * (mean - 90), 3, 15)
    return b.r + 0.08 + path_m / velocity


@dataclass(frozen=True)
class _Shape:
    """A pulse, an array (n,) a beat: systolic peak `rise` s after the foot, a diastolic wave `lag` s later,
    `second` as high; `run_off`: how fast the vessel empties."""

    rise: np.ndarray
    lag: np.ndarray
    second: np.ndarray
    run_off: float


def _pulse(t: np.ndarray, foot: np.ndarray, shape: _Shape) -> tuple[np.ndarray, np.ndarray]:
    """Unit pulses (0 at each foot, 1 at the peak) at times `t`, and the index of each sample's beat.

    A gamma-shaped wave and a Gaussian one; a ramp removes the remainder at the next foot, so that beats join.
    """
    length = np.append(np.diff(foot), foot[-1] - foot[-2])

    def raw(tau: np.ndarray, k: np.ndarray) -> np.ndarray:
        u = np.maximum(tau, 0) / shape.rise[k]
        steep = np.where(u < 1, 2.2, shape.run_off)
        delay = shape.rise[k] + shape.lag[k]
        second = np.exp(-0.5 * ((tau - delay) / 0.065) ** 2) - np.exp(-0.5 * (delay / 0.065) ** 2)
        return (u * np.exp(1 - u)) ** steep + shape.second[k] * second

    every = np.arange(len(foot))
    left = raw(length, every)
    grid = np.linspace(0, 1, 48)[:, None] * length
    peak = (raw(grid, every[None]) - left * grid / length).max(0)
    k = np.clip(np.searchsorted(foot, t, side="right") - 1, 0, len(foot) - 1)
    tau = t - foot[k]
    return (raw(tau, k) - left[k] * tau / length[k]) / peak[k], k


def _stroke(who: Person, c: Course, b: Beats) -> np.ndarray:
    """Relative pulse height per beat: short filling time, small pulse (the deficit of AF and ectopy)."""
    small = np.where(b.af | b.ectopic, b.fill**1.2, b.fill**0.3)
    return np.clip(small, 0.15, 1.5) * (1 + 0.06 * breath_at(c, b.r)) * np.where(b.ectopic, 0.5, 1)


def ppg(t: np.ndarray, who: Person, c: Course, b: Beats, wavelengths: int = 1) -> np.ndarray:
    """Finger PPG (samples, wavelengths) in % of DC, blood-volume upwards: infrared, then red if two.

    The red pulse is R times the infrared one, R = (110 - SpO2) / 25, the usual linear calibration.
    """
    root = np.sqrt(np.clip(b.interval, 0.4, 1.4))
    foot = _arrival(who, c, b, path_m=0.75)
    second = np.full(len(foot), 0.2 + 0.35 * who.stiffness)
    x, k = _pulse(t, foot, _Shape(0.15 * root, (0.34 - 0.16 * who.stiffness) * root, second, run_off=1.6))
    pulse = who.perfusion * _stroke(who, c, b)[k] * x
    mayer = np.sin(2 * np.pi * 0.095 * t + 1.5 * np.sin(2 * np.pi * 0.011 * t))
    base = who.perfusion * (0.22 * breath_at(c, t) + 0.12 * mayer)
    ratio = (110 - np.interp(t, c.t, c.spo2)) / 25
    return np.stack([pulse + base, ratio * pulse + base][:wavelengths], axis=1)


def pressures(who: Person, c: Course, b: Beats) -> tuple[np.ndarray, np.ndarray]:
    """Systolic and diastolic pressure of each beat, mmHg."""
    sbp, dbp = np.interp(b.r, c.t, c.sbp), np.interp(b.r, c.t, c.dbp)
    return dbp + (sbp - dbp) * np.clip(_stroke(who, c, b), 0.3, 1.2), dbp


def abp(t: np.ndarray, who: Person, c: Course, b: Beats) -> np.ndarray:
    """Radial arterial pressure in mmHg: each beat runs from its diastolic to its systolic value."""
    foot = _arrival(who, c, b, path_m=0.55)
    each = np.ones(len(foot))
    second = (0.15 + 0.2 * who.stiffness) * each
    x, k = _pulse(t, foot, _Shape(0.12 * each, (0.28 - 0.1 * who.stiffness) * each, second, run_off=1.2))
    sbp, dbp = pressures(who, c, b)
    return np.interp(t, foot, dbp) + (sbp - dbp)[k] * x


def resp(t: np.ndarray, c: Course) -> np.ndarray:
    """Chest impedance, arbitrary unit: rises with inspiration; a second harmonic shapes it."""
    phase = 2 * np.pi * np.interp(t, c.t, c.breath)
    depth = 1 + 0.15 * np.sin(2 * np.pi * t / 47)
    return depth * (np.sin(phase) + 0.2 * np.sin(2 * phase + 0.6))


def mean_rate(events: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Events a minute in each interval, counted with fractions: the true value of a heart rate label."""
    at = np.arange(len(events), dtype=float)
    return 60 * (np.interp(stop, events, at) - np.interp(start, events, at)) / (stop - start)
