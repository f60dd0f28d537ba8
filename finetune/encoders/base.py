"""An encoder as a function from raw samples to vectors, whatever its origin."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cluster.contract import Input
from cluster.errors import PlethoraError
from datasets.declared import signal_of
from datasets.schema import Corpus
from datasets.signal import HALF, Signal, length, prepare

if TYPE_CHECKING:
    from torch import nn

BATCH = 64

Samples = np.ndarray | Mapping[str, np.ndarray]  # (n, channels, T) of a single input, or by modality
Run = Callable[[Samples], np.ndarray]


class Encoder(ABC):
    """One mode of an encoder, with the preparation that its input needs.

    `uri`: how a user names it; `name`: how a table names it; `hash`: changes with the vectors it gives;
    `lineage`: the corpora that it was trained on, as lineage.json has them ({}: not known). Lengths, filters
    and the padding of short input come from its declared preprocessing alone. A mode with a single input
    takes and returns arrays; a mode with several takes and returns dicts by modality. An input that is not
    required may be missing: its samples are zero, and `has_<modality>` (n,) says where it is there.
    """

    def __init__(
        self, uri: str, mode: str, inputs: Sequence[Input], preprocessing: Mapping[str, Any], dim: int
    ) -> None:
        self.uri, self.mode, self.inputs, self.dim = uri, mode, tuple(inputs), dim
        self.modalities: tuple[str, ...] = tuple(i.modality for i in self.inputs)
        if len(set(self.modalities)) < len(self.modalities):
            raise PlethoraError(f"mode {mode!r} of {uri} takes one modality twice: publish it again")
        missing = [m for m in self.modalities if m not in preprocessing]
        if missing:
            raise PlethoraError(f"{uri}: its preprocessing says nothing about {missing[0]}: publish it again")
        where = f"{uri}: preprocessing"
        self.signals = tuple(
            signal_of(i.modality, preprocessing[i.modality], where, i.channels).model_copy(
                update={"required": bool(preprocessing[i.modality].get("required", True))}
            )
            for i in self.inputs
        )
        if not any(s.required for s in self.signals):
            raise PlethoraError(f"{uri}: every input may be missing: one must be required")
        if len({s.rate for s in self.signals}) > 1:
            raise PlethoraError(
                f"mode {mode!r} of {uri} takes inputs of different rates, so no single length fits: "
                "publish it again"
            )
        known = [preprocessing[m] for m in self.modalities]
        self.window_s = min(float(k["window_s"]) for k in known)
        self.min_s = max(float(k["min_s"]) for k in known)
        self.max_s = min(float(k.get("max_s") or k["window_s"]) for k in known)
        self.step_s = max(float(k["multiple_s"]) for k in known)
        self.short = "refuse" if any(k["short"] == "refuse" for k in known) else str(known[0]["short"])
        self.batch = BATCH

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def hash(self) -> str: ...

    @property
    def lineage(self) -> Mapping[str, Any]:
        return {}

    @property
    def published(self) -> str | None:
        """The bundle beside which evaluations are published; None where there is none."""
        return None

    @property
    def seed(self) -> int:
        """The seed of the weights that it was trained from."""
        return 0

    @abstractmethod
    def run(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """At most `batch` prepared windows by modality, each (n, channels, T') float32, and `has_<modality>`
        of those that may be missing → (n, dim).
        """

    def untrained(self, seed: int) -> Run:
        """The same network before training, with weights drawn from `seed`.

        Raises PlethoraError where it cannot be built.
        """
        raise PlethoraError(f"{self.uri} holds no recipe of its network")

    def network(self, seed: int | None = None) -> "nn.Module":
        """The network in torch, in eval mode on the CPU: a tensor (n, channels, T') for each of `inputs`, in
        their order → (n, dim); `seed`: with the weights drawn before training.

        Raises PlethoraError where it cannot be built.
        """
        raise PlethoraError(f"{self.uri} is no bundle that holds its network: it cannot be trained here")

    @property
    def modality(self) -> str:
        """Modality of the single input; "ppg and ecg" for several inputs."""
        return " and ".join(self.modalities)

    @property
    def signal(self) -> Signal:
        """Preprocessing of the first (usually the only) input."""
        return self.signals[0]

    def check(self, corpus: Corpus) -> None:
        """Raises PlethoraError when the corpus lacks an input of this mode, or its rate is too low."""
        for signal in self.signals:
            m, who = signal.modality, f"mode {self.mode!r} of {self.uri}"
            if m not in corpus.modalities and not signal.required:
                continue
            if m not in corpus.modalities:
                raise PlethoraError(
                    f"{corpus.uri} has no {m} (it has {', '.join(corpus.modalities)}), which {who} takes: "
                    "use another corpus or mode"
                )
            rates = {rate for shard in corpus.shards for rate in shard.get("rates", {}).get(m, ())}
            if rates and not _holds(signal, max(rates)):
                raise PlethoraError(
                    f"{corpus.uri} has {m} at {max(rates):g} Hz at most, {who} {_need(signal)}: "
                    "use another corpus or mode"
                )

    @property
    def samples_step(self) -> int:
        """The length of a prepared input is a multiple of this many samples."""
        return round(self.step_s * self.signal.rate)

    def steps(self, window_s: float) -> int:
        """Whole steps in a window of `window_s`, at least those of the shortest input."""
        return max(int(window_s / self.step_s + 1e-6), int(np.ceil(self.min_s / self.step_s - 1e-6)))

    def _steps(self, samples: int, rate: float) -> int:
        """Whole steps in `samples` raw samples, with a tolerance of half a sample (30 s at 124.945 Hz are
        3748.35 samples). Where a step is shorter than a sample, rounds to the nearest step; the shortest and
        longest inputs are recognised as well.
        """
        if samples >= self.max_s * rate + 1 - 1e-6:
            raise PlethoraError(
                f"windows of {samples / rate:g} s are longer than the encoder takes ({self.max_s:g} s): "
                "use shorter ones (--window-s)"
            )
        if samples >= length(self.max_s, rate):
            return self.steps(self.max_s)
        if samples <= self.min_s * rate + HALF:
            return self.steps(self.min_s)
        return int(samples / (self.step_s * rate) + HALF * min(1 / (self.step_s * rate), 1))

    def prepare(self, x: Samples, rate: float | Mapping[str, float], window_s: float | None = None) -> Any:
        """Raw (n, channels, T) at `rate` Hz, any unit → (n, channels, T') float32 at the encoder's rate. With
        several inputs, `x` and `rate` are dicts by modality and all signals cover the same time.

        The end is trimmed to a whole number of steps (with a tolerance of half a raw sample). Input shorter
        than the minimum is reflected, repeated or refused, as preprocessing.json says. The signal is then
        filtered at its native rate and resampled to exactly those steps. window_s: the windows' nominal
        length in s (`signal.length`), where it is known more exactly than from samples and rate.
        Raises PlethoraError for input that does not fit: non-finite samples, a rate too low for the band, a
        different channel count, a window longer than the encoder's, signals of different lengths.
        """
        given = self._by_modality(x)
        rates = rate if isinstance(rate, Mapping) else dict.fromkeys(given, float(rate))
        missing = [m for m in self.modalities if m in given and m not in rates]
        if missing:
            raise PlethoraError(f"mode {self.mode!r}: the rate of {' and '.join(missing)} is missing")
        raw = {
            m: self._checked(given[m], rates[m], i, s)
            for m, i, s in zip(self.modalities, self.inputs, self.signals, strict=True)
            if m in given
        }
        steps = {m: self._steps(y.shape[-1], rates[m]) for m, y in raw.items()}
        seconds = {m: y.shape[-1] / rates[m] for m, y in raw.items()}
        apart = max(seconds.values()) - min(seconds.values())
        alike = len(set(steps.values())) == 1 or apart <= 1 / min(rates[m] for m in raw) + 1e-9
        if len({len(y) for y in raw.values()}) > 1 or not alike:
            sizes = ", ".join(f"{m} {len(y)} x {seconds[m]:g} s" for m, y in raw.items())
            raise PlethoraError(
                f"mode {self.mode!r} takes {self.modality} of the same time, not {sizes}: trim them to match"
            )
        count = min(steps.values()) if window_s is None else self.steps(window_s)
        found, total = {}, count * self.samples_step
        for s in self.signals:
            m, n = s.modality, len(next(iter(raw.values())))
            if m in raw:
                found[m] = prepare(self._fit(raw[m], rates[m], count), rates[m], s, to=total)
            else:
                found[m] = np.zeros((n, s.channels, total), np.float32)
            if not s.required:
                found[f"has_{m}"] = np.full(n, m in raw)
        return found if isinstance(x, Mapping) else found[self.modalities[0]]

    def _by_modality(self, x: Samples) -> Mapping[str, np.ndarray]:
        if isinstance(x, Mapping):
            missing = [s.modality for s in self.signals if s.required and s.modality not in x]
            if missing:
                raise PlethoraError(f"mode {self.mode!r} takes {self.modality}: no {missing[0]} is given")
            return x
        if len(self.modalities) > 1:
            raise PlethoraError(f"mode {self.mode!r} takes {self.modality} together: give a dict of both")
        return {self.modalities[0]: x}

    def _checked(self, x: np.ndarray, rate: float, entry: Input, signal: Signal) -> np.ndarray:
        """One input's raw windows as float64. Raises PlethoraError where the network cannot take them."""
        x = np.asarray(x, np.float64)
        if x.ndim != 3 or x.shape[1] != entry.channels:
            raise PlethoraError(
                f"mode {self.mode!r} takes (n, {entry.channels}, samples), not {x.shape}: "
                f"select the channel first"
            )
        if not _holds(signal, rate):
            raise PlethoraError(f"{signal.modality} at {rate:g} Hz: the encoder {_need(signal)}")
        bad = np.flatnonzero(~np.isfinite(x).all(axis=(1, 2)))
        if len(bad):
            raise PlethoraError(f"window {bad[0]} holds NaN or infinite samples: bridge or drop it first")
        return x

    def _fit(self, x: np.ndarray, rate: float, steps: int) -> np.ndarray:
        """Raw windows trimmed or padded to `steps` steps."""
        missing = int(length(steps * self.step_s, rate)) - x.shape[-1]
        if missing <= 0:
            return x[..., : x.shape[-1] + missing]
        if self.short == "refuse" or x.shape[-1] < 2:
            raise PlethoraError(
                f"windows of {x.shape[-1] / rate:g} s are under the encoder's minimum of {self.min_s:g} s"
            )
        mode: Literal["reflect", "wrap"] = "reflect" if self.short == "reflect" else "wrap"
        return np.pad(x, ((0, 0), (0, 0), (0, missing)), mode=mode)

    def __call__(self, prepared: Samples) -> np.ndarray:
        """Prepared windows (n, channels, T'), or a dict of them by modality → vectors (n, dim) float32.

        Raises PlethoraError for vectors of another shape than stated, and for NaN.
        """
        given = self._by_modality(prepared)
        n = len(given[self.modalities[0]])
        found = [np.zeros((0, self.dim), np.float32)]
        for i in range(0, n, self.batch):
            part = {name: x[i : i + self.batch] for name, x in given.items()}
            vectors, many = self.run(part), len(part[self.modalities[0]])
            if vectors.shape != (many, self.dim):
                raise PlethoraError(
                    f"{self.uri}: gives {vectors.shape} for {many} windows, but it states "
                    f"{self.dim} numbers a window: publish it again"
                )
            found.append(finite(vectors, self.uri))
        return np.concatenate(found)

    def embed(
        self, x: Samples, rate: float | Mapping[str, float], window_s: float | None = None
    ) -> np.ndarray:
        """Raw (n, channels, T) at `rate` Hz (or dicts of both by modality) → vectors (n, dim) float32.
        `window_s` and errors: see `prepare`.
        """
        return self(self.prepare(x, rate, window_s))

    def pieces(self, window_s: float) -> int:
        """Number of encoder windows that a longer window is split into (their vectors are averaged); 1 if it
        fits.
        """
        if window_s < self.min_s - 1e-6:
            raise PlethoraError(
                f"windows of {window_s:g} s are under the encoder's minimum of {self.min_s:g} s: "
                "use longer ones"
            )
        return int(np.ceil(window_s / self.max_s - 1e-6))


def finite(vectors: np.ndarray, who: str) -> np.ndarray:
    """Vectors as float32. Raises PlethoraError for NaN: a probe would silently replace it by the median."""
    if not np.isfinite(vectors).all():
        raise PlethoraError(
            f"{who}: the encoder gives NaN or infinite vectors for finite input: do not use it"
        )
    return vectors.astype(np.float32, copy=False)


def pooled(run: Run, prepared: Samples, pieces: int, step: int) -> np.ndarray:
    """Vectors of prepared windows (n, C, T) from `run`, each the mean over `pieces` equal parts of its
    window; samples at the end that fill no `step` are dropped.
    """

    def split(y: np.ndarray) -> np.ndarray:
        if y.ndim == 1:  # has_<modality>
            return np.repeat(y, pieces)
        n, channels, total = y.shape
        length = total // pieces // step * step
        parts = y[..., : length * pieces].reshape(n, channels, pieces, length)
        return np.ascontiguousarray(parts.transpose(0, 2, 1, 3).reshape(n * pieces, channels, length))

    if isinstance(prepared, Mapping):
        vectors = run({m: split(y) for m, y in prepared.items()})
    else:
        vectors = run(split(prepared))
    return vectors.reshape(len(vectors) // pieces, pieces, -1).mean(1)


def _holds(signal: Signal, rate: float) -> bool:
    """Whether samples at `rate` Hz hold what the encoder reads: its band, or all that its own rate holds."""
    top = signal.band[1] or signal.band[0] if signal.band else None
    return rate >= max(signal.min_rate, 0 if top else signal.rate) and (top is None or rate > 2 * top)


def _need(signal: Signal) -> str:
    top = signal.band[1] or signal.band[0] if signal.band else None
    least = max(signal.min_rate, 0 if top else signal.rate)
    if top is None or least > 2 * top:
        return f"needs at least {least:g} Hz"
    return f"has a band up to {top:g} Hz and needs more than {2 * top:g} Hz"
