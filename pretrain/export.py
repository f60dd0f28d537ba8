"""Exports an encoder mode to one ONNX file with dynamic batch and length, checked against torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.errors import PlethoraError
from pretrain.recipe import Decoder, Mode

Way = Mode | Decoder

TOLERANCE = 1e-4  # bundle contract, DESIGN section 6
_ANSWER = "plethora.answer"  # the output's name while a graph is exported
_ROWS = "rows."  # prefix of the nodes that `take_no_rows` adds


def export_onnx(mode: Way, path: Path) -> float:
    """Write ``mode`` to ``path`` (one file including weights). Inputs are named as in the mode, each (batch,
    channels, samples) float32; the output is "embedding" (batch, dim) or, for a decoder, "signal" (batch,
    channels, samples), float32. Any batch size and any length that the mode accepts.

    Returns the largest `difference` from torch over its shortest, longest and in-between lengths (including
    one that is not a multiple of the step) at batches of 0, 1 and 3. Errors: PlethoraError above 1e-4.
    """
    module = mode.module.cpu().eval().float()
    names = [str(given["name"]) for given in mode.inputs]
    # sizes 3 and 7, so that the exporter does not take a size for a constant 1 or for equal to another
    steps = min(7, mode.max_samples // mode.step_samples)
    example = _inputs(mode, 3, max(steps * mode.step_samples, mode.min_samples))
    batch = samples = torch.export.Dim.DYNAMIC
    one_length = mode.min_samples == mode.max_samples
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            module,
            example,
            path,
            input_names=names,
            output_names=[_ANSWER],
            dynamic_shapes=tuple({0: batch} if one_length else {0: batch, 2: samples} for _ in names),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    named(path, _output(mode))
    bare(path)
    take_no_rows(path)
    worst = float(np.max([difference(mode, path, n, b) for n in lengths(mode) for b in (0, 1, 3)]))
    if not worst <= TOLERANCE:
        raise PlethoraError(
            f"{path.name} differs from torch by {worst:.2e} (allowed {TOLERANCE:g}): the export is wrong, "
            "so nothing was published; report this with the versions of torch, onnx and onnxruntime"
        )
    return worst


def named(path: Path, output: str) -> None:
    """Call the answer `output`. What the exporter itself called so (it names the result of an `nn.Embedding`
    "embedding") gets another name, or the graph would hold two of one name."""
    import onnx

    model = onnx.load(path)
    called = {output: f"inner.{output}", _ANSWER: output}
    for node in model.graph.node:
        node.input[:] = [called.get(name, name) for name in node.input]
        node.output[:] = [called.get(name, name) for name in node.output]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = called.get(value.name, value.name)
    onnx.save(model, path)


def bare(path: Path) -> None:
    """Remove the exporter's metadata: stack traces, which reveal this machine's paths and can be larger than
    a small network."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.save(model, path)


def take_no_rows(path: Path) -> None:
    """Make the ONNX file return 0 rows for a batch of 0 rows; a file that already does so stays unchanged.

    onnxruntime's operators treat an empty batch inconsistently (a Reshape with -1 fails, a mean loses a
    dimension), so the graph appends a row of zeros to an empty batch and slices its result off.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    graph = model.graph
    if any(node.name.startswith(_ROWS) for node in graph.node):
        return
    given, (output,) = [value.name for value in graph.input], [value.name for value in graph.output]
    inside = {name: _ROWS + name for name in (*given, output)}
    for node in graph.node:
        node.input[:] = [inside.get(name, name) for name in node.input]
        node.output[:] = [inside.get(name, name) for name in node.output]
    count, more, zero, one = (_ROWS + name for name in ("count", "more", "0", "1"))
    steps: list[tuple[str, list[str], str, Any]] = [
        ("Shape", [given[0]], count, {"start": 0, "end": 1}),
        ("Min", [count, one], _ROWS + "least", {}),
        ("Sub", [one, _ROWS + "least"], more, {}),
    ]
    for name in given:
        shape, zeros = f"{inside[name]}.shape", f"{inside[name]}.zeros"
        steps += [
            ("Shape", [name], f"{shape}.row", {"start": 1}),
            ("Concat", [more, f"{shape}.row"], shape, {"axis": 0}),
            ("ConstantOfShape", [shape], zeros, {}),
            ("Concat", [name, zeros], inside[name], {"axis": 0}),
        ]
    nodes = [helper.make_node(kind, inputs, [to], to, **how) for kind, inputs, to, how in steps]
    last = helper.make_node("Slice", [inside[output], zero, count, zero], [output], _ROWS + "answer")
    nodes += [*graph.node, last]
    del graph.node[:]
    graph.node.extend(nodes)
    for name, value in ((zero, 0), (one, 1)):
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    onnx.save(model, path)


def lengths(mode: Way) -> list[int]:
    """Lengths in samples to check: 1, 3, 15 and the maximum number of steps, and one between two steps."""
    most = mode.max_samples // mode.step_samples
    found = {mode.min_samples, *(n * mode.step_samples for n in (1, 3, 15, most) if n <= most)}
    if most > 1:
        found.add(mode.step_samples + mode.step_samples // 2)
    return sorted(n for n in found if mode.min_samples <= n <= mode.max_samples)


def difference(mode: Way, path: Path, samples: int, batch: int) -> float:
    """Largest difference between onnxruntime and torch on random input of this size, as a share of the
    largest number where that exceeds 1: of larger vectors float32 keeps fewer decimals."""
    import onnxruntime

    inputs = _inputs(mode, max(batch, 1), samples)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {str(g["name"]): x[:batch].numpy() for g, x in zip(mode.inputs, inputs, strict=True)}
    (found,) = session.run([_output(mode)], feed)
    with torch.no_grad():
        wanted = mode.module(*inputs)[:batch].numpy()
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found - wanted).max(initial=0) / np.abs(wanted).max(initial=1))


def _output(mode: Way) -> str:
    return "signal" if isinstance(mode, Decoder) else "embedding"


def _inputs(mode: Way, batch: int, samples: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(samples * 131 + batch)
    return tuple(torch.randn(batch, g["channels"], samples, generator=draw) for g in mode.inputs)


@contextlib.contextmanager
def _quiet():
    """Silence the exporter's progress output; only errors are shown."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
