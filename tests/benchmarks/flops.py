"""What a step computes: formulas for model FLOPs; and the peaks that a device reaches. Torch alone.

A multiplication with its addition counts as two. Training takes three times a forward pass (gradients of
inputs and of weights), less the gradient of the first convolution's input, which nobody asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from tests.benchmarks.gpu_steps import BLOCKS, ECG, FILTERS, PPG, PROJECTION, Shape


def sigma(s: Shape) -> tuple[float, float]:
    """(forward, forward and backward) of a window: the student on all patches with its head on those drawn,
    and the teacher."""
    student, first = _encoder(s, s.dim, s.depth, s.channels)
    teacher, other = _encoder(s, s.teacher, 2, s.teacher)
    heads = 2 * s.drawn * s.dim * s.codes + 2 * s.patches * s.teacher
    forward = student + teacher + heads
    return forward, 3 * forward - first - other


def _encoder(s: Shape, dim: int, depth: int, channels: int) -> tuple[float, float]:
    """(forward, its first convolution) of a window."""
    width = (s.patch - 1) // 8 + 1
    first = 2 * s.patches * width * channels * 15
    embed = 2 * s.patches * (2 * width * channels * channels * 3 + width * channels * dim)
    tokens = s.patches + 1
    block = 2 * tokens * (3 * dim + dim + 8 * dim) * dim + 4 * tokens * tokens * dim
    return first + embed + depth * block, first


def anyppg(
    batch: int, filters: Sequence[int] = FILTERS, blocks: Sequence[int] = BLOCKS, width: int = 16
) -> tuple[float, float]:
    """(forward, forward and backward) of a pair within a batch: both encoders, heads, and all cosines."""
    forward = first = 0.0
    for samples, kernel in ((PPG, 3), (ECG, 16)):
        net, stem = _net1d(samples, kernel, filters, blocks, width)
        forward += net + 2 * filters[-1] * (filters[-1] + PROJECTION)
        first += stem
    forward += 2 * 2 * batch * PROJECTION
    return forward, 3 * forward - first


def _net1d(
    samples: int, kernel: int, filters: Sequence[int], blocks: Sequence[int], width: int, stem: int = 64
) -> tuple[float, float]:
    samples = -(-samples // 2)
    total = first = 2.0 * samples * stem * kernel
    for (inputs, out), count in zip(pairwise((stem, *filters)), blocks, strict=True):
        for number in range(count):
            total += 2 * samples * (inputs if number == 0 else out) * out
            samples = -(-samples // 2) if number == 0 else samples
            total += 2 * samples * out * (width * kernel + out)  # the wide convolution, the last one
            total += 2 * out * (out // 2) * 2  # squeeze and excite
    return total, first


def peak_matmul(device: torch.device, size: int, tries: int) -> float:
    """FLOP/s of a bfloat16 product of square matrices on this device."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / best(lambda: a @ b, device, tries)


def peak_copy(device: torch.device, mib: int, tries: int) -> float:
    """Bytes a second, read and written, of a copy within the device's memory."""
    a = torch.zeros(mib * 2**18, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / best(lambda: b.copy_(a), device, tries)


def best(work: Any, device: torch.device, tries: int) -> float:
    """Seconds of the fastest of `tries`."""
    import time

    took = []
    for _ in range(tries + 1):  # the first one warms up
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        took.append(time.perf_counter() - began)
    return min(took[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
