"""Controlled damage to raw windows: what a moving hand, a bad amplifier, a lost link or a wrong header does.

Each function takes (n, channels, samples) finite physical samples at `rate` Hz, a severity, and one generator
a window, and returns a new float64 array of the same shape. A generator a window, because then a window's
damage does not depend on its company, and because every severity draws the same numbers: it is the same
damage, only more of it. Motion and wander are measured in heights of the window's own pulse (`height`).

The damage is done to the samples as recorded, before filters: that is where it happens, and a filter that
takes it away again is part of what an encoder's users get.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.index import Index
from datasets.signal import Signal, filtered, prepare
from datasets.synthetic import move
from datasets.windows import WindowSpec
from finetune.evaluation.choose import Places, relocated
from finetune.evaluation.results import Result

SLOT_S = 0.5  # dropouts lose whole slots of this length
Generators = Sequence[np.random.Generator]
Damage = Callable[[np.ndarray, float, float, Generators], np.ndarray]


def generators(seed: int, purpose: str, ids: np.ndarray) -> list[np.random.Generator]:
    """One a window, from (seed, purpose, the window's id in `Index.ids`)."""
    what = zlib.crc32(purpose.encode())
    return [np.random.default_rng([seed, what, i]) for i in ids.view(np.uint64).tolist()]


def height(x_nct: np.ndarray, rate: float) -> np.ndarray:
    """(n, channels, 1): how high the pulse of a window is, in its own unit, without the tallest 1 % and the
    drift below 0.5 Hz.
    """
    low, high = np.percentile(filtered(x_nct, rate, (0.5, None), 2), [1, 99], axis=-1)
    return (high - low)[..., None]


def motion(x_nct: np.ndarray, rate: float, severity: float, rngs: Generators) -> np.ndarray:
    """A swinging limb (0.8 to 3 Hz, drifting) and a wandering baseline over the whole window, as synthetic
    corpora have them; severity: the swing's amplitude in pulse heights.
    """
    out = np.array(x_nct, np.float64)
    size = severity * height(out, rate).mean(axis=(1, 2))
    for window, rng, by in zip(out, rngs, size.tolist(), strict=True):
        move(rng, window.T, rate, [(0.0, out.shape[-1] / rate)], by)
    return out


def wander(x_nct: np.ndarray, rate: float, severity: float, rngs: Generators) -> np.ndarray:
    """A baseline of three sines of 0.05 to 0.4 Hz; severity: its range in pulse heights."""
    x = np.asarray(x_nct, np.float64)
    drawn = np.stack([rng.random((2, 3)) for rng in rngs])
    cycles = (0.05 + 0.35 * drawn[:, 0])[..., None] * (np.arange(x.shape[-1]) / rate) + drawn[:, 1, :, None]
    base = np.sin(2 * np.pi * cycles).sum(1)[:, None]
    return x + severity * height(x, rate) * base / np.ptp(base, axis=-1, keepdims=True)


def clipping(x_nct: np.ndarray, rate: float, severity: float, rngs: Generators) -> np.ndarray:
    """Rails that cut off the highest and lowest samples; severity: the share cut off, half at each end."""
    low, high = np.quantile(x_nct, [severity / 2, 1 - severity / 2], axis=-1, keepdims=True)
    return np.clip(np.asarray(x_nct, np.float64), low, high)


def dropouts(x_nct: np.ndarray, rate: float, severity: float, rngs: Generators) -> np.ndarray:
    """Slots of 0.5 s lost at random places, the last value held; severity: the share of slots lost (at least
    one). What is lost at a low severity is lost at a higher one, too.
    """
    x = np.asarray(x_nct, np.float64)
    total = x.shape[-1]
    slots = max(2, round(total / (SLOT_S * rate)))
    rank = np.stack([rng.permutation(slots) for rng in rngs])
    lost = rank < min(max(1, round(severity * slots)), slots - 1)
    at = np.arange(total)
    gone = lost[:, at * slots // total]
    last = np.maximum.accumulate(np.where(gone, -1, at), axis=1)
    first = np.argmin(gone, axis=1)[:, None]  # a gap at the start holds the first value to come
    return np.take_along_axis(x, np.where(last < 0, first, last)[:, None], axis=-1)


def wrong_rate(x_nct: np.ndarray, rate: float, severity: float, rngs: Generators) -> np.ndarray:
    """A clock that is off: recorded at rate / (1 - severity), taken for `rate`, so everything seems slower by
    that share. The window holds the first (1 - severity) of its time, stretched (linear interpolation).
    """
    x = np.asarray(x_nct, np.float64)
    place = np.arange(x.shape[-1]) * (1 - severity)
    whole = np.minimum(place.astype(int), x.shape[-1] - 2)
    part = place - whole
    return x[..., whole] * (1 - part) + x[..., whole + 1] * part


def inverted(x_nct: np.ndarray, rate: float, severity: float, rngs: Generators) -> np.ndarray:
    """Upside down about its own median, as swapped wires or raw light (before 1 - x) give it."""
    x = np.asarray(x_nct, np.float64)
    return 2 * np.median(x, axis=-1, keepdims=True) - x


@dataclass(frozen=True)
class Kind(Result):
    """A kind of damage; `unit`: what its severity counts; `severities`: of its curve."""

    title: str
    unit: str
    severities: tuple[float, ...]
    damage: Damage

    def to_json(self) -> dict[str, Any]:
        return {"title": self.title, "unit": self.unit, "severities": list(self.severities)}


KINDS = {
    "motion": Kind("Motion", "swing / pulse height", (0.25, 0.5, 1.0, 2.0), motion),
    "wander": Kind("Baseline wander", "range / pulse height", (0.5, 1.0, 2.0, 4.0), wander),
    "clipping": Kind("Clipping", "share of samples cut off", (0.05, 0.1, 0.2, 0.4), clipping),
    "dropouts": Kind("Dropouts", "share of time lost", (0.05, 0.1, 0.2, 0.4), dropouts),
    "wrong_rate": Kind("Wrong rate", "share by which time runs slow", (0.02, 0.05, 0.1, 0.2), wrong_rate),
    "inverted": Kind("Inverted", "all of it", (1.0,), inverted),
}


@dataclass(frozen=True)
class Damaged(Index):
    """A view whose windows are damaged before they are prepared. `raw`: the same windows as recorded."""

    raw: Index
    kind: str
    severity: float
    seed: int

    def load(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """As `Index.load`; every signal is damaged, each by numbers of its own."""
        recorded, ids = self.raw.load(rows), self.ids(rows)
        found = {}
        for was, signal in zip(self.raw.spec.signals, self.spec.signals, strict=True):
            m = signal.modality
            drawn = generators(self.seed, f"{self.kind} {m}", ids)
            x = KINDS[self.kind].damage(recorded[m], was.rate, self.severity, drawn)
            found[m] = prepare(x, was.rate, signal, to=round(self.spec.window_s * signal.rate))
        return found


def damaged(places: Places, raw: Mapping[WindowSpec, Index], kind: str, severity: float, seed: int) -> Places:
    """The same windows, damaged, for every encoder and for the handcrafted features; `raw`: `recorded`."""

    def view(of: Index) -> Index:
        if of.spec not in made:
            made[of.spec] = Damaged(of.corpus, of.spec, of.table, raw[of.spec], kind, severity, seed)
        return made[of.spec]

    made: dict[WindowSpec, Index] = {}
    views = {name: view(of) for name, of in places.views.items()}
    return Places(places.index, views, places.pulses and view(places.pulses))


def recorded(places: Places) -> dict[WindowSpec, Index]:
    """Of each view the same windows without filters, at the corpus' own rate (the highest, where it has
    several).
    """
    found = {}
    for of in [*places.views.values(), *([places.pulses] if places.pulses else [])]:
        signals = []
        for signal in of.spec.signals:
            m = signal.modality
            rates = {rate for shard in of.corpus.shards for rate in shard.get("rates", {}).get(m, ())}
            signals.append(Signal(modality=m, rate=max(rates, default=signal.rate), channels=signal.channels))
        spec = WindowSpec(
            signals=tuple(signals), window_s=of.spec.window_s, hop_s=of.spec.hop_s, until_s=of.spec.until_s
        )
        found[of.spec] = relocated(places.index, spec, judged=False)
    return found
