"""The ONNX file of a mode → the same in int8: onnxruntime's quantisation, judged on people that it was not
calibrated on.

Weights of convolutions and matrix products become int8 with a scale a channel. *Static*: their inputs become
uint8, between bounds measured on calibration windows. *Weights*: their inputs stay float32; it is chosen only
where static loses too much. In neither does a window's vector depend on its company. onnxruntime's dynamic
quantisation is not used: it takes bounds from each batch as it comes, so that one window with a glitch spoils
all others, and gives the weights of a convolution a single scale.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.encoders.base import BATCH, finite
from finetune.encoders.bundle import BundleEncoder
from pretrain.export import bare, take_no_rows

ENOUGH = 0.95  # share of the variance kept, each number alike, under which static is not taken unseen
OPERATORS = ["Conv", "MatMul", "Gemm"]  # those that hold the weights; int8 elsewhere loses more than it saves
HOW = {
    "static": "their inputs are uint8 between bounds measured on the calibration windows (min-max)",
    "weights": "their inputs stay float32: the file is small, what it computes is float32",
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


@dataclass(frozen=True)
class Fidelity:
    """How alike two sets of vectors are: mean and 5th percentile over windows of the cosine, and the share of
    the variance that is kept, every dimension counting alike (1 is all, 0 what the mean vector would keep).
    The cosine flatters where vectors have a large part in common.
    """

    cosine: float
    cosine_p5: float
    kept: float


@dataclass(frozen=True)
class Choice:
    """How weights became int8 ("static" or "weights"), and what each way kept."""

    how: str
    tried: Mapping[str, Fidelity]


def fidelity(true: np.ndarray, found: np.ndarray) -> Fidelity:
    """Of vectors (n, dim) and their counterparts, row by row."""
    a, b = true.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.where(norms > 0, norms, 1)
    variance = a.var(0)
    varies = variance > 1e-12 * (a**2).mean(0).max()
    missed = ((a - b) ** 2).mean(0)[varies] / variance[varies]
    kept = 1 - float(missed.mean()) if varies.any() else float("nan")
    return Fidelity(float(cosine.mean()), float(np.percentile(cosine, 5)), kept)


# ---------------------------------------------------------------- the file


def quantised(model: Path, how: str, calibration: Feed, folder: Path) -> Path:
    """`model` in int8, in `folder`; `calibration` is for "static" alone."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    made = folder / f"{how}.onnx"
    with _quiet():
        plain = _plain(model, folder)
        if how == "weights":
            _store_int8(plain, made)
        else:
            quantize_static(
                plain,
                made,
                _Reader(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=OPERATORS,
                extra_options={"MatMulConstBOnly": True},  # products of two activations stay float32
            )
    take_no_rows(made)  # bundles of before 12/2026 may not
    return made


def _store_int8(plain: Path, made: Path) -> None:
    """Weights of `OPERATORS` as int8 with a scale for each output channel, made float32 again at run time."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(plain)
    graph, back = model.graph, []
    weights = {t.name: t for t in graph.initializer}
    for node in graph.node:
        name = node.input[1] if node.op_type in OPERATORS else ""
        if name not in weights:
            continue
        w = numpy_helper.to_array(weights.pop(name))
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or turned else w.ndim - 1
        others = tuple(i for i in range(w.ndim) if i != axis)
        largest = np.abs(w).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        parts: dict[str, np.ndarray] = {
            "quantized": np.rint(w / scale).astype(np.int8),
            "scale": scale.ravel(),
        }
        graph.initializer.remove(next(t for t in graph.initializer if t.name == name))
        graph.initializer.extend(numpy_helper.from_array(x, f"{name}_{part}") for part, x in parts.items())
        stored = [f"{name}_{part}" for part in parts]
        back.append(helper.make_node("DequantizeLinear", stored, [name], f"{name}_back", axis=axis))
    nodes = [*back, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, made)


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


def choose(encoder: BundleEncoder, calibration: Feed, check: Feed, folder: Path) -> tuple[Path, Choice]:
    """The int8 file that is published, and what was measured on `check`.

    Static, unless it keeps less than `ENOUGH` of the variance and int8 weights alone keep more.
    """
    model = encoder.bundle.path(encoder.bundle.config["modes"][encoder.mode]["file"])
    true = Graph(model)(check)
    files: dict[str, Path] = {}
    tried: dict[str, Fidelity] = {}
    for how in HOW:
        files[how] = quantised(model, how, calibration, folder)
        tried[how] = fidelity(true, Graph(files[how])(check))
    static, weights = tried["static"].kept, tried["weights"].kept
    how = "weights" if static < ENOUGH and weights > static else "static"
    _takes_all(Graph(files[how]), encoder)
    return files[how], Choice(how, tried)


def _takes_all(graph: Graph, encoder: BundleEncoder) -> None:
    """RuntimeError where the int8 file does not take every length and batch that the encoder's takes."""
    rate, draw = encoder.signal.rate, np.random.default_rng(0)
    shortest, longest = round(encoder.min_s * rate), round(encoder.max_s * rate)
    for samples in (shortest, (shortest + longest) // 2, longest):
        for count in (0, 1, 3):
            feed = {
                i.name: draw.standard_normal((count, i.channels, samples)).astype(np.float32)
                for i in encoder.inputs
            }
            found = graph.run(feed)
            if found.shape != (count, encoder.dim):
                raise RuntimeError(f"int8 of {encoder.bundle.uri} gives {found.shape}")
