"""A published bundle as a function from raw samples to vectors, and the same network without its training."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cluster import bundle as bundles
from cluster.errors import PlethoraError
from datasets.signal import Signal, prepare

BATCH = 64


class BundleEncoder:
    """One mode of a bundle, run by onnxruntime; files are verified against the bundle's checksums.

    Lengths, filters and what happens to short input come from preprocessing.json alone, so this is what any
    downstream team can do with the card's snippet, and a test compares the two.
    """

    def __init__(self, uri: str, mode: str | None = None, threads: int = 0) -> None:
        self.bundle = bundles.open(uri)
        modes = self.bundle.config.get("modes", {})
        if mode is None and len(modes) != 1:
            raise PlethoraError(f"{uri} has {len(modes)} modes: choose one with --mode ({', '.join(modes)})")
        self.mode = mode or next(iter(modes))
        if self.mode not in modes:
            raise PlethoraError(f"{uri} has no mode {self.mode!r}: it has {', '.join(modes)}")
        entry = modes[self.mode]
        if len(entry["inputs"]) != 1:
            names = ", ".join(i["name"] for i in entry["inputs"])
            raise PlethoraError(
                f"mode {self.mode!r} of {uri} needs {names} together: choose a mode with one input"
            )
        self.input, self.dim = entry["inputs"][0], int(entry["dim"])
        self.modality: str = self.input["modality"]
        if self.modality not in self.bundle.preprocessing:
            raise PlethoraError(
                f"{uri}: preprocessing.json says nothing about {self.modality}: publish it again"
            )
        known = self.bundle.preprocessing[self.modality]
        if known.get("normalise", "none") not in ("none", "in the model"):
            raise PlethoraError(
                f"{uri}: preprocessing.json asks for normalisation ({known['normalise']}) outside the "
                "network, which the bundle contract does not allow: publish it again"
            )
        band = known.get("band")
        self.signal = Signal(
            modality=self.modality,
            rate=float(known["rate"]),
            band=None if band is None else (float(band[0]), None if band[1] is None else float(band[1])),
            order=int(known.get("order") or 2),
            notch=known.get("notch"),
            upright=bool(known.get("upright")),
            min_rate=float(known.get("min_rate") or 0),
        )
        self.window_s, self.min_s = float(known["window_s"]), float(known["min_s"])
        self.max_s = float(known.get("max_s", self.window_s))
        self.step_s, self.short = float(known["multiple_s"]), str(known["short"])
        self._session = self._open_session(threads)

    def _open_session(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        path = self.bundle.path(self.bundle.config["modes"][self.mode]["file"])
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    @property
    def samples_step(self) -> int:
        """Prepared inputs have a length that is a multiple of this."""
        return round(self.step_s * self.signal.rate)

    def prepare(self, x: np.ndarray, rate: float) -> np.ndarray:
        """Raw (n, channels, T) at `rate` Hz, any unit → (n, channels, T') float32 at the encoder's rate.

        The end is cut to a whole number of steps; what is shorter than the minimum is reflected (or
        repeated, or refused) as preprocessing.json says; then it is filtered at its own rate and resampled.
        Raises PlethoraError for input that cannot be matched: non-finite samples, a rate too low for the
        band, another channel count, longer than the encoder's window.
        """
        x = np.asarray(x, np.float64)
        if x.ndim != 3 or x.shape[1] != self.input["channels"]:
            raise PlethoraError(
                f"mode {self.mode!r} takes (n, {self.input['channels']}, samples), not {x.shape}: "
                f"select the channel first"
            )
        band = self.signal.band
        top = band[1] or band[0] if band else self.signal.rate / 2
        if not rate > 2 * top:
            raise PlethoraError(
                f"{self.modality} at {rate:g} Hz cannot hold the encoder's band up to {top:g} Hz: "
                f"it needs more than {2 * top:g} Hz"
            )
        if rate < self.signal.min_rate:
            raise PlethoraError(
                f"{self.modality} at {rate:g} Hz: the encoder needs at least {self.signal.min_rate:g} Hz"
            )
        bad = np.flatnonzero(~np.isfinite(x).all(axis=(1, 2)))
        if len(bad):
            raise PlethoraError(f"window {bad[0]} holds NaN or infinite samples: bridge or drop it first")
        y = prepare(self._fit(x, rate), rate, self.signal)
        return y[..., : y.shape[-1] // self.samples_step * self.samples_step]

    def _fit(self, x: np.ndarray, rate: float) -> np.ndarray:
        """Raw windows of a length that the network takes."""
        seconds = x.shape[-1] / rate
        if seconds > self.max_s + 0.5 / rate:
            raise PlethoraError(
                f"windows of {seconds:g} s are longer than the encoder takes ({self.max_s:g} s): "
                "cut them (--window-s)"
            )
        if seconds < self.min_s - 1e-6:
            want = int(np.ceil(self.min_s * rate - 1e-6))
            if self.short == "refuse" or x.shape[-1] < 2:
                raise PlethoraError(
                    f"windows of {seconds:g} s are under the encoder's minimum of {self.min_s:g} s"
                )
            pad = ((0, 0), (0, 0), (0, want - x.shape[-1]))
            return np.pad(x, pad, mode="reflect" if self.short == "reflect" else "wrap")
        steps = int(seconds / self.step_s + 1e-6)
        return x[..., : int(np.ceil(steps * self.step_s * rate - 1e-6))]

    def __call__(self, prepared: np.ndarray) -> np.ndarray:
        """Prepared (n, channels, T') → vectors (n, dim) float32."""
        name = self._session.get_inputs()[0].name
        parts = [
            self._session.run(None, {name: prepared[i : i + BATCH]})[0]
            for i in range(0, len(prepared), BATCH)
        ]
        return finite(
            np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32), self.bundle.uri
        )

    def embed(self, x: np.ndarray, rate: float) -> np.ndarray:
        """Raw (n, channels, T) at `rate` Hz → vectors (n, dim) float32. Errors: see `prepare`."""
        return self(self.prepare(x, rate))

    def pieces(self, window_s: float) -> int:
        """Into how many windows of the encoder a longer window is cut (their vectors are averaged); 1 if it
        fits.
        """
        if window_s < self.min_s - 1e-6:
            raise PlethoraError(
                f"windows of {window_s:g} s are under the encoder's minimum of {self.min_s:g} s: "
                "use longer ones"
            )
        return int(np.ceil(window_s / self.max_s - 1e-6))


def finite(vectors: np.ndarray, who: str) -> np.ndarray:
    """The vectors, or a PlethoraError: a NaN would silently become the median in a probe."""
    if not np.isfinite(vectors).all():
        raise PlethoraError(
            f"{who}: the encoder gives NaN or infinite vectors for finite input: do not use it"
        )
    return vectors.astype(np.float32, copy=False)


def pooled(
    run: Callable[[np.ndarray], np.ndarray], prepared: np.ndarray, pieces: int, step: int
) -> np.ndarray:
    """Vectors of prepared windows (n, C, T) by `run`, each the mean over `pieces` equal parts of its
    window.
    """
    n, channels, total = prepared.shape
    length = total // pieces // step * step
    cut = prepared[..., : length * pieces].reshape(n, channels, pieces, length)
    vectors = run(np.ascontiguousarray(cut.transpose(0, 2, 1, 3).reshape(n * pieces, channels, length)))
    return vectors.reshape(n, pieces, -1).mean(1)


def untrained(config: dict[str, Any], mode: str, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """The bundle's own network before training: rebuilt from its run config by its recipe, fresh weights.

    Returns prepared (n, C, T) float32 → (n, dim) float32. Raises PlethoraError when the recipe cannot be
    loaded here.
    """
    import torch

    from cluster.config import validate
    from pretrain.recipe import load

    run = config["run"]
    recipe_class: Any = load(run["recipe"])
    method = validate(recipe_class.Config, run.get("method", {}), "config.json of the bundle, run.method")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recipe = recipe_class(method, seed)
        module = recipe.encoder(recipe.modules()).modes[mode].module.eval()

    def run_module(prepared: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                module(torch.from_numpy(np.ascontiguousarray(prepared[i : i + BATCH]))).float().numpy()
                for i in range(0, len(prepared), BATCH)
            ]
        return finite(np.concatenate(parts), "untrained encoder")

    return run_module
