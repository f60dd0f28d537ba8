"""A corpus of synthetic recordings with known truth: paired ECG, PPG, RESP and ABP (see physiology.py).

Everything is drawn from (seed, "synthetic", subject): the same arguments give the same bytes, on any machine
and with any number of workers. It uses the same writer and ledger as real recordings, so planted gaps, flat
lines and clipping become rejects.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError
from datasets import assemble, jobs, physiology, schema
from datasets.ingest import summary
from datasets.readers.base import Labels, Recording, Samples
from datasets.validity import Limits
from datasets.write import SHARD_BYTES, Entry, ShardReport, write_shard

ID_SPACE = "synthetic"
# These subjects are not real: a public key lets everyone make the same corpus.
KEY = b"plethora synthetic"
RATES = {"ppg": 125.0, "ecg": 250.0, "abp": 125.0, "resp": 25.0}
UNITS = {"ppg": "au", "ecg": "mV", "abp": "mmHg", "resp": "au"}
LABEL_S = 5.0
RECORD_S = 3600.0
PURPOSE = int.from_bytes(b"synthetic"[:8], "big")


@dataclass(frozen=True)
class Recipe:
    """All parameters of a synthetic corpus. Shares are of the recording's time, per modality."""

    hours: float
    subjects: int
    seed: int = 0
    rates: Mapping[str, float] = field(default_factory=lambda: dict(RATES))
    wavelengths: int = 1  # 2: PPG has channels infrared and red, and so carries SpO2
    noise: float = 1.0  # sensor noise, relative to a good monitor's
    motion: float = 0.02  # share of time with motion artefacts (kept, and labelled `motion`)
    gaps: float = 0.003  # share missing; half of the gaps are short enough to be bridged
    flats: float = 0.003  # share on a flat line
    clips: float = 0.001  # share saturated
    af: float = 0.12  # share of people with atrial fibrillation, in all or part of their record
    ectopy: float = 0.12  # share of people with premature beats

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rates) - set(RATES))
        shares = [getattr(self, k) for k in ("motion", "gaps", "flats", "clips")]
        ill = (self.af, self.ectopy)
        wrong = [
            (not (math.isfinite(self.hours) and self.hours > 0), "hours must be above 0"),
            (self.subjects < 1, "subjects must be at least 1"),
            (self.seed < 0, "seed must not be negative"),
            (bool(unknown) or not self.rates, f"no modality {unknown}; there are {', '.join(RATES)}"),
            (
                any(not 20 <= r <= 2000 or r % 1 for r in self.rates.values()),
                "rates must be whole, 20 to 2000 Hz",
            ),
            (self.wavelengths not in (1, 2), "wavelengths must be 1 or 2"),
            (self.noise < 0, "noise must not be negative"),
            (any(not 0 <= s <= 0.5 for s in shares), "shares of time must lie between 0 and 0.5"),
            (min(ill) < 0 or sum(ill) > 1, "af and ectopy are shares of people: 0 to 1, together at most 1"),
        ]
        for is_wrong, message in wrong:
            if is_wrong:
                raise PlethoraError(f"synthesize: {message}")

    @property
    def seconds(self) -> int:
        """Length of each person's recording, s."""
        return max(1, round(self.hours * 3600 / self.subjects))

    @property
    def records(self) -> int:
        """Total number of records: each lasts at most an hour."""
        return self.subjects * math.ceil(self.seconds / RECORD_S)


def synthesize(
    out: str, hours: float, subjects: int, seed: int = 0, force: bool = False, **more: Any
) -> dict:
    """Make a corpus of `subjects` people, `hours` in all, at `out`; returns its summary (as ingest does).

    `more`: the other fields of `Recipe` (rates, noise, motion, gaps, flats, clips, …). An existing corpus of
    the same recipe is kept; another one is an error unless `force`.
    """
    recipe = Recipe(hours, subjects, seed, **more)
    out = storage.normalise(out)
    about = _about(recipe)
    there = assemble.prepare(out, force)
    if there is not None:
        if there.get("recipe") != about["recipe"]:
            raise PlethoraError(
                f"{out} holds another corpus: choose another --out, or replace it with --force"
            )
        return summary(there, out, already=True)
    tasks = _plan(recipe)
    work = functools.partial(_work, out, recipe)
    reports = jobs.run(work, tasks, "synthesize", recipe.records, in_process=len(tasks) == 1)
    manifest, words = assemble.finish(out, reports, about)
    return summary(manifest, out, words)


def _about(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": "synthetic",
        "source": "python -m datasets synthesize",
        "licence": "generated",
        "terms": "None: nobody's data.",
        "citation": "",
        "access": "open",
        "key_id": schema.key_id(KEY),
        "id_space": ID_SPACE,
        "subjects_published": True,
        "modalities": [m for m in schema.MODALITIES if m in recipe.rates],
        "segment_s": RECORD_S,
        "limits": asdict(Limits()),
        "recipe": asdict(recipe) | {"rates": dict(sorted(recipe.rates.items()))},
    }


def _plan(recipe: Recipe) -> list[tuple[int, tuple[int, ...]]]:
    """(shard, its people): in order of their hashed names, shards near the usual size."""
    order = sorted(range(recipe.subjects), key=lambda i: _name(recipe, i))
    each = 2 * recipe.seconds * sum(r * _channels(recipe, m) for m, r in recipe.rates.items())
    per_shard = max(1, int(SHARD_BYTES // each))
    chunks = [order[i : i + per_shard] for i in range(0, len(order), per_shard)]
    return [(index, tuple(chunk)) for index, chunk in enumerate(chunks)]


def _channels(recipe: Recipe, modality: str) -> int:
    return recipe.wavelengths if modality == "ppg" else 1


def _name(recipe: Recipe, person: int) -> str:
    return schema.hash_subject(KEY, ID_SPACE, f"{recipe.seed}/{person}")


def _work(out: str, recipe: Recipe, task: tuple[int, tuple[int, ...]], tick: jobs.Tick) -> ShardReport:
    index, people = task
    modalities = [m for m in schema.MODALITIES if m in recipe.rates]
    entries = (entry for i in people for entry in person_entries(recipe, i))
    return write_shard(out, index, entries, modalities, Limits(), RECORD_S, tick)


def person_entries(recipe: Recipe, person: int) -> Iterator[Entry]:
    """The records of one person, each at most an hour."""
    rng = np.random.default_rng([recipe.seed, PURPOSE, person])
    who = physiology.person(rng, recipe.af, recipe.ectopy)
    left, part = recipe.seconds, 0
    while left > 0:
        seconds = min(left, int(RECORD_S))
        name = f"s{recipe.seed}_{person:06d}_{part:04d}"
        yield Entry(name, _name(recipe, person), record(recipe, who, rng, seconds))
        left, part = left - seconds, part + 1


def record(recipe: Recipe, who: physiology.Person, rng: np.random.Generator, seconds: int) -> Recording:
    """One record: clean waveforms, sensor noise, motion, then a monitor's defects; and the truth."""
    c = physiology.course(rng, who, seconds)
    b = physiology.beats(rng, who, c)
    moving = _bouts(rng, seconds, recipe.motion, 5, 20)
    signals = {}
    for m in (m for m in schema.MODALITIES if m in recipe.rates):
        rate = recipe.rates[m]
        t = np.arange(int(seconds * rate)) / rate
        if m == "ppg":
            x = physiology.ppg(t, who, c, b, recipe.wavelengths)
        elif m == "ecg":
            x = physiology.ecg(t, who, c, b)[:, None]
        elif m == "abp":
            x = physiology.abp(t, who, c, b)[:, None]
        else:
            x = physiology.resp(t, c)[:, None]
        size = {"ppg": who.perfusion, "ecg": 1.0, "abp": 40.0, "resp": 1.0}[m]
        x = x + 0.012 * size * recipe.noise * rng.standard_normal(x.shape)
        if m == "ecg":
            x += 0.006 * recipe.noise * np.sin(2 * np.pi * 50 * t)[:, None]
        move(rng, x, rate, moving, {"ppg": 1.2, "ecg": 0.25, "abp": 0.15, "resp": 0.6}[m] * size)
        missing = _spoil(rng, x, rate, recipe, seconds)
        signals[m] = Samples(x, missing, Fraction(int(rate)), 1.0, 0.0, UNITS[m])
    return Recording(signals, _truth(who, c, b, moving, seconds))


Bouts = list[tuple[float, float]]


def _bouts(rng: np.random.Generator, seconds: float, share: float, shortest: float, longest: float) -> Bouts:
    """Random stretches (start, stop) in s that make up `share` of the time on average."""
    count = rng.poisson(share * seconds / ((shortest + longest) / 2))
    length = rng.uniform(shortest, longest, count)
    start = rng.uniform(0, 1, count) * np.maximum(0, seconds - length)
    return sorted((float(a), float(min(a + n, seconds))) for a, n in zip(start, length, strict=True))


def move(rng: np.random.Generator, x_tc: np.ndarray, rate: float, moving: Bouts, size: float) -> None:
    """Add motion in place: a swinging limb (0.8 to 3 Hz, drifting) and a wandering baseline."""
    for start, stop in moving:
        a, b = int(start * rate), int(stop * rate)
        t = np.arange(b - a) / rate
        swing = rng.uniform(0.8, 3) * t + 0.3 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * t)
        wander = np.cumsum(rng.standard_normal(b - a)) / np.sqrt(rate)
        fade = np.sin(np.pi * np.arange(b - a) / max(1, b - a)) ** 0.5
        x_tc[a:b] += (size * fade * (np.sin(2 * np.pi * (swing + rng.random())) + 0.4 * wander))[:, None]


def _spoil(
    rng: np.random.Generator, x_tc: np.ndarray, rate: float, recipe: Recipe, seconds: float
) -> np.ndarray:
    """Plant clipping, flat lines and gaps in place; returns which samples are missing (samples,)."""

    def spans(share: float, shortest: float, longest: float) -> list[slice]:
        bouts = _bouts(rng, seconds, share, shortest, longest)
        return [slice(int(a * rate), int(b * rate)) for a, b in bouts]

    ceiling = x_tc.max(0) + 0.05 * np.ptp(x_tc, axis=0)
    for span in spans(recipe.clips, 1.2, 4):
        x_tc[span] = ceiling
    for span in spans(recipe.flats, 3.5, 12):
        x_tc[span] = x_tc[span][:1]
    missing = np.zeros(len(x_tc), bool)
    long = spans(recipe.gaps, 0.3, 6)
    for span in long:
        missing[span] = True
    for start in rng.uniform(0, 1, len(long)) * seconds:
        missing[int(start * rate) : int((start + 0.06) * rate)] = True
    return missing


def _truth(
    who: physiology.Person, c: physiology.Course, b: physiology.Beats, moving: Bouts, seconds: float
) -> list[Labels]:
    start = np.arange(0, seconds, LABEL_S)
    stop = np.minimum(start + LABEL_S, seconds)
    middle = (start + stop) / 2
    sbp, dbp = physiology.pressures(who, c, b)
    inside = np.searchsorted(start, b.r, side="right") - 1
    inside[(b.r < 0) | (b.r >= seconds)] = -1

    def by_beat(values: np.ndarray) -> np.ndarray:
        held = np.bincount(inside[inside >= 0], minlength=len(start))
        sums = np.bincount(inside[inside >= 0], values[inside >= 0], minlength=len(start))
        return np.where(held > 0, sums / np.maximum(held, 1), np.interp(middle, b.r, values))

    def over_time(name: str, values: np.ndarray, unit: str) -> Labels:
        return Labels(name, np.round(values, 3), unit, start, stop)

    labels = [
        over_time("hr", physiology.mean_rate(b.r, start, stop), "bpm"),
        over_time("rr", np.interp(middle, c.t, c.rr), "1/min"),
        over_time("spo2", np.interp(middle, c.t, c.spo2), "%"),
        over_time("sbp", by_beat(sbp), "mmHg"),
        over_time("dbp", by_beat(dbp), "mmHg"),
        Labels("age", np.array([who.age]), "year"),
        Labels("sex", ["F" if who.female else "M"]),
    ]
    rhythm = ["af" if t >= c.af_from else "ectopy" if who.rhythm == "ectopy" else "sinus" for t in start]
    change = [0, *(i for i in range(1, len(rhythm)) if rhythm[i] != rhythm[i - 1])]
    ends = np.append(start[change[1:]], seconds)
    labels.append(Labels("rhythm", [rhythm[i] for i in change], None, start[change], ends))
    if moving:
        spans = np.array(moving)
        labels.append(Labels("motion", np.ones(len(spans)), None, spans[:, 0], spans[:, 1]))
    return labels
