"""The ONNX file of a mode → the same in int8: onnxruntime's quantisation, judged on people that it was not
calibrated on.

Weights of convolutions and matrix products become int8 with a scale a channel. *Static*: so do their inputs,
between bounds measured on calibration windows. *Dynamic*: bounds are taken anew from each batch, so that a
window's vector depends a little on its company; it is chosen only where static loses too much.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune.encoder import BATCH, BundleEncoder, finite
from pretrain.export import bare

ENOUGH = 0.95  # share of the variance kept, each number alike, under which static is not taken unseen
OPERATORS = ["Conv", "MatMul", "Gemm"]  # those that hold the weights; int8 elsewhere loses more than it saves
HOW = {
    "static": "their inputs are uint8 between bounds measured on the calibration windows (min-max)",
    "dynamic": "their inputs become uint8 between the bounds of each batch as it comes, so that a window's "
    "vector depends a little on its company: embed one window at a time where that matters",
}

Feed = Mapping[str, np.ndarray]


class Graph:
    """An ONNX file on one core: {input: (n, C, T)} → (n, dim) float32."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.path = path
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, feed: Feed) -> np.ndarray:
        """All of it as one batch."""
        return self._session.run(None, dict(feed))[0]

    def __call__(self, feed: Feed, batch: int = BATCH) -> np.ndarray:
        parts = [self.run(part) for part in batches(feed, batch)]
        return finite(np.concatenate(parts), str(self.path))


def batches(feed: Feed, size: int) -> Iterator[dict[str, np.ndarray]]:
    for i in range(0, len(next(iter(feed.values()))), size):
        yield {name: x[i : i + size] for name, x in feed.items()}


def fidelity(true: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How alike vectors (n, dim) are: mean and 5th percentile over windows of the cosine, and the share of
    the variance that is kept, each number alike ("kept"; 1 is all, 0 what the mean vector would do). The
    cosine flatters where vectors have a large part in common.
    """
    a, b = true.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.where(norms > 0, norms, 1)
    variance = a.var(0)
    varies = variance > 1e-12 * (a**2).mean(0).max()
    missed = ((a - b) ** 2).mean(0)[varies] / variance[varies]
    return {
        "cosine": float(cosine.mean()), "cosine_p5": float(np.percentile(cosine, 5)),
        "kept": 1 - float(missed.mean()) if varies.any() else float("nan"),
    }  # fmt: skip


# ---------------------------------------------------------------- the file


def quantised(model: Path, how: str, calibration: Feed, folder: Path) -> Path:
    """`model` in int8, in `folder`; `calibration` is for "static" alone."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    made = folder / f"{how}.onnx"
    given: dict[str, Any] = {
        "op_types_to_quantize": OPERATORS, "per_channel": True, "weight_type": QuantType.QInt8,
        "extra_options": {"MatMulConstBOnly": True},  # products of two activations stay float32
    }  # fmt: skip
    with _quiet():
        plain = _plain(model, folder)
        if how == "static":
            quantize_static(
                plain, made, _Reader(calibration), quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8, **given,
            )  # fmt: skip
        else:
            quantize_dynamic(plain, made, **given)
    return made


class _Reader:
    """What onnxruntime asks calibration batches of."""

    def __init__(self, feed: Feed) -> None:
        self._left = batches(feed, 8)  # few at a time: every layer's output is kept for each

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def _plain(model: Path, folder: Path) -> Path:
    """The graph folded and without the exporter's notes, which would outweigh small networks; shapes that
    were inferred before do not fit the nodes that quantisation puts in their place.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / "plain.onnx"
    # its symbolic inference fails on graphs whose length is free, and leaves files where it is started
    quant_pre_process(str(model), str(path), skip_symbolic_shape=True)
    bare(path)
    graph = onnx.load(path)
    del graph.graph.value_info[:]
    onnx.save(graph, path)
    return path


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The constants of an ONNX file by name: weights, scales, zero points."""
    import onnx
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's advice and progress are not for our users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---------------------------------------------------------------- the choice


def choose(
    encoder: BundleEncoder, calibration: Feed, check: Feed, folder: Path
) -> tuple[Path, dict[str, Any]]:
    """The int8 file that is published, and what was measured on `check`: {"how", "tried": {how: fidelity}}.

    Static, unless it keeps less than `ENOUGH` of the variance and dynamic keeps more.
    """
    model = encoder.bundle.path(encoder.bundle.config["modes"][encoder.mode]["file"])
    true = Graph(model)(check)
    files: dict[str, Path] = {}
    tried: dict[str, dict[str, float]] = {}
    for how in HOW:
        files[how] = quantised(model, how, calibration, folder)
        graph = Graph(files[how])
        found = graph(check)
        alone = graph({name: x[:BATCH] for name, x in check.items()}, batch=1)
        spread_of = true.std(0).mean() or 1.0
        tried[how] = fidelity(true, found) | {
            "company": float(np.abs(found[:BATCH] - alone).max() / spread_of)
        }
    static, dynamic = tried["static"]["kept"], tried["dynamic"]["kept"]
    how = "dynamic" if static < ENOUGH and dynamic > static else "static"
    _takes_all(Graph(files[how]), encoder)
    return files[how], {"how": how, "tried": tried}


def _takes_all(graph: Graph, encoder: BundleEncoder) -> None:
    """RuntimeError where the int8 file does not take every length and batch that the encoder's takes."""
    rate, draw = encoder.signal.rate, np.random.default_rng(0)
    shortest, longest = round(encoder.min_s * rate), round(encoder.max_s * rate)
    for samples in (shortest, (shortest + longest) // 2, longest):
        for count in (1, 3):
            feed = {
                str(i["name"]): draw.standard_normal((count, i["channels"], samples)).astype(np.float32)
                for i in encoder.inputs
            }
            found = graph(feed)
            if found.shape != (count, encoder.dim):
                raise RuntimeError(f"int8 of {encoder.bundle.uri} gives {found.shape}")
