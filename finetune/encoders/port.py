"""Anyone's encoder: a class that declares `preprocessing` and has `embed`, checked before it is used."""

import hashlib
import inspect
import traceback
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster import config as configuration
from cluster.contract import Input, Preparation
from cluster.errors import PlethoraError
from finetune.encoders.base import Encoder, Run, Samples
from finetune.graph import one_line

TRIED = 3  # drawn windows that a port embeds before it is used
APART = 1e-3  # of the vectors' RMS: how far the vectors of one window may lie apart


class Port(Protocol):
    """What an encoder from outside implements.

    preprocessing: {modality: entry}, the keys of preprocessing.json; `rate` (Hz) and `window_s` are needed,
    `channels` is 1 by default, `min_s` and `max_s` are `window_s` (a fixed length), `short` is "reflect".
    An input with `required = false` may be missing: its samples are zero and `has_<modality>` says where it
    is there.

    Optional: `name`, the row's name in tables; `lineage`, the corpora it was trained on, as lineage.json has
    them; `untrained(seed)`, the same port with new weights, the row beside it.
    """

    @property
    def preprocessing(self) -> Mapping[str, Any]: ...

    def embed(self, x: Any) -> Any:
        """Prepared windows (n, channels, samples) float32, or a dict of them by modality where there are
        several inputs → vectors (n, dim), the same for a window whatever else is in the batch.
        """


class PortEncoder(Encoder):
    """A port as an encoder. `mode` names its inputs: "ppg", "ppg+acc".

    Raises PlethoraError for a preprocessing outside the contract, and for an `embed` that fails, gives
    another shape or NaN, or whose vectors of a window depend on other windows.
    """

    def __init__(self, address: str, port: Port, files: tuple[Path, ...] = ()) -> None:
        """`files`: the port's code and weights, for its hash."""
        self.port, self._files = port, files
        entries = {m: _entry(address, m, entry) for m, entry in _declared(address, port).items()}
        inputs = [
            Input(name=m, modality=m, rate=e["rate"], channels=e.get("channels", 1))
            for m, e in entries.items()
        ]
        super().__init__(address, "+".join(entries), inputs, entries, 0)
        self.dim, self._seen = _tried(self)

    @property
    def name(self) -> str:
        return f"{getattr(self.port, 'name', type(self.port).__name__)} ({self.mode})"

    @cached_property
    def hash(self) -> str:
        """Of the code and weights that are known, and of the vectors of drawn windows: weights that a port
        finds by itself count as well.
        """
        digest = hashlib.sha256(self.uri.encode() + self._seen.tobytes())
        for root in self._files:
            for file in sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    @property
    def lineage(self) -> Mapping[str, Any]:
        return getattr(self.port, "lineage", {})

    def run(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._embed(self.port, given)

    def untrained(self, seed: int) -> Run:
        if not hasattr(self.port, "untrained"):
            raise PlethoraError(f"{self.uri} has no `untrained(seed)`")
        fresh = self.port.untrained(seed)

        def run(prepared: Samples) -> np.ndarray:
            given = prepared if isinstance(prepared, Mapping) else {self.modalities[0]: prepared}
            size = len(given[self.modalities[0]])
            parts = [
                self._embed(fresh, {m: x[i : i + self.batch] for m, x in given.items()})
                for i in range(0, size, self.batch)
            ]
            return np.concatenate([np.zeros((0, self.dim), np.float32), *parts])

        return run

    def _embed(self, port: Port, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """Raises PlethoraError that names the port's line where it fails."""
        x = dict(given) if len(self.modalities) > 1 else given[self.modalities[0]]
        try:
            found = np.asarray(port.embed(x))
        except PlethoraError:
            raise
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            shapes = ", ".join(f"{m} {a.shape}" for m, a in given.items())
            raise PlethoraError(
                f"{self.uri}: embed failed for {shapes} at {at.filename}:{at.lineno}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        if found.dtype.kind not in "fiu":
            raise PlethoraError(f"{self.uri}: embed gives {found.dtype}, not numbers: return (n, dim) floats")
        return found


def _declared(address: str, port: Port) -> Mapping[str, Mapping[str, Any]]:
    found = getattr(port, "preprocessing", None)
    if not isinstance(found, Mapping) or not found or not all(isinstance(e, Mapping) for e in found.values()):
        raise PlethoraError(
            f'{address}: `preprocessing` must be {{modality: {{"rate": Hz, "window_s": s, …}}}}; '
            "docs/bundles.md lists the keys"
        )
    return found


def _entry(address: str, modality: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The contract's entry of a modality, with what a port may leave out."""
    length = given.get("window_s", 0)
    fixed = {"min_s": length, "max_s": length, "multiple_s": length, "short": "reflect"}
    if "min_s" in given and given.get("rate"):
        fixed["multiple_s"] = 1 / given["rate"]
    entry = fixed | dict(given)
    configuration.validate(Preparation, entry, f"{address}, preprocessing of {modality}")
    return entry


# ---------------------------------------------------------------- the check before use


def _tried(encoder: PortEncoder) -> tuple[int, np.ndarray]:
    """The dim, and the vectors of drawn windows, which must not depend on order or company."""
    drawn = _drawn(encoder)
    vectors = _once(encoder, drawn)
    if not np.isfinite(vectors).all():
        raise PlethoraError(f"{encoder.uri}: embed gives NaN or infinite vectors for finite input")
    again = _once(encoder, {m: x[::-1].copy() for m, x in drawn.items()})
    if again.shape[1] != vectors.shape[1]:
        raise PlethoraError(
            f"{encoder.uri}: embed gives {vectors.shape[1]} numbers a window, then {again.shape[1]}"
        )
    alone = _once(encoder, {m: x[:1] for m, x in drawn.items()})
    room = APART * np.sqrt(np.mean(vectors.astype(np.float64) ** 2)) + 1e-9
    for found, expected, what in (
        (again[::-1], vectors, "in another order"),
        (alone, vectors[:1], "alone"),
    ):
        apart = np.abs(found - expected).max()
        if not apart <= room:
            raise PlethoraError(
                f"{encoder.uri}: embed gives other vectors for the same windows {what} (up to {apart:.3g} "
                f"apart, {room:.3g} allowed): no window may change another's vector; switch off dropout and "
                "batch statistics, and keep no state"
            )
    return vectors.shape[1], vectors.astype(np.float32)


def _once(encoder: PortEncoder, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    found, n = encoder.run(drawn), len(next(iter(drawn.values())))
    if found.ndim != 2 or len(found) != n or not found.shape[1]:
        raise PlethoraError(f"{encoder.uri}: embed gives {found.shape} for {n} windows: return ({n}, dim)")
    return found


def _drawn(encoder: PortEncoder) -> dict[str, np.ndarray]:
    """Prepared windows of pulses in noise, at the encoder's own length."""
    rng, raw, rates = np.random.default_rng(0), {}, {}
    for i, signal in zip(encoder.inputs, encoder.signals, strict=True):
        top = max((edge or 0.0 for edge in signal.band or ()), default=0.0)
        rates[i.modality] = max(signal.rate, signal.min_rate, 2.5 * top)
        t = np.arange(int(np.ceil(encoder.window_s * rates[i.modality]))) / rates[i.modality]
        beat = np.sin(2 * np.pi * rng.uniform(0.8, 2.5, (TRIED, i.channels, 1)) * t)
        raw[i.modality] = beat + 0.3 * rng.normal(size=beat.shape).cumsum(-1) / np.sqrt(len(t))
    return dict(encoder.prepare(raw, rates, encoder.window_s))


def code_of(port: Port) -> tuple[Path, ...]:
    """The file that defines a port's class, where there is one."""
    try:
        return (Path(inspect.getfile(type(port))),)
    except (OSError, TypeError):
        return ()
