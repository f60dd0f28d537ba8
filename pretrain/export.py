"""An encoder mode -> one ONNX file with dynamic batch and length, checked against torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from cluster.errors import PlethoraError
from pretrain.recipe import Decoder, Mode

Way = Mode | Decoder

TOLERANCE = 1e-4  # bundle contract, DESIGN section 6


def export_onnx(mode: Way, path: Path) -> float:
    """Writes ``mode`` to ``path`` (one file, weights inside): inputs named as the mode says, (batch,
    channels, samples) float32 each, output "embedding" (batch, dim), of a decoder "signal" (batch, channels,
    samples), float32; any batch, any length that it takes.

    Returns the largest difference from torch over its shortest, longest and in-between lengths (one that is
    no whole number of steps among them) at batches of 1 and 3. Errors: PlethoraError when that is above
    1e-4.
    """
    module = mode.module.cpu().eval().float()
    names = [str(given["name"]) for given in mode.inputs]
    # three and seven, so that the exporter takes no size for a constant 1 or for equal to another
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
            output_names=[_output(mode)],
            dynamic_shapes=tuple({0: batch} if one_length else {0: batch, 2: samples} for _ in names),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    bare(path)
    worst = max(difference(mode, path, n, b) for n in lengths(mode) for b in (1, 3))
    if not worst <= TOLERANCE:
        raise PlethoraError(
            f"{path.name} differs from torch by {worst:.2e} (allowed {TOLERANCE:g}): the export is wrong, "
            "so nothing was published; report this with the versions of torch, onnx and onnxruntime"
        )
    return worst


def bare(path: Path) -> None:
    """Take the exporter's notes out of the file: stack traces, which name this machine's folders and outweigh
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


def lengths(mode: Way) -> list[int]:
    """Lengths in samples worth checking: 1, 3, 15 and the most steps, and one between two steps."""
    most = mode.max_samples // mode.step_samples
    found = {mode.min_samples, *(n * mode.step_samples for n in (1, 3, 15, most) if n <= most)}
    if most > 1:
        found.add(mode.step_samples + mode.step_samples // 2)
    return sorted(n for n in found if mode.min_samples <= n <= mode.max_samples)


def difference(mode: Way, path: Path, samples: int, batch: int) -> float:
    """Largest absolute difference between onnxruntime and torch on drawn input of this size."""
    import onnxruntime

    inputs = _inputs(mode, batch, samples)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {str(g["name"]): x.numpy() for g, x in zip(mode.inputs, inputs, strict=True)}
    (found,) = session.run([_output(mode)], feed)
    with torch.no_grad():
        wanted = mode.module(*inputs).numpy()
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found - wanted).max())


def _output(mode: Way) -> str:
    return "signal" if isinstance(mode, Decoder) else "embedding"


def _inputs(mode: Way, batch: int, samples: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(samples * 131 + batch)
    return tuple(torch.randn(batch, g["channels"], samples, generator=draw) for g in mode.inputs)


@contextlib.contextmanager
def _quiet():
    """The exporter prints its progress; only errors are worth a line."""
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
