"""Time of a step on an accelerator, from the arithmetic and memory traffic of its kernels.

A roofline (Williams, Waterman, Patterson 2009): each kernel takes the longer of its arithmetic at the
precision's rate and its bytes at the memory's bandwidth, and at least the launch time. Every operation of an
eager step reads its inputs and writes its outputs, so a network of small kernels stays far below the chip's
peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.planning.assume import Assumptions
from pretrain.planning.probe import Cost


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, without the stream."""

    compute: float  # forward and backward, all micro-batches
    update: float  # optimizer
    talk: float  # collectives, without overlap

    @property
    def total(self) -> float:
        return self.compute + self.update + self.talk


def step_time(
    cost: Cost, given: Assumptions, bf16: bool, stage: int, workers: int, micro: int, accumulation: int
) -> StepTime:
    """The time of a step on `workers` accelerators described by `given`, with `micro` windows per backward
    pass."""

    def value(name: str) -> float:
        return given[f"gpu.{name}"].value

    rate = value("bf16" if bf16 else "fp32") * 1e12 * value("matrix_share")
    memory = value("memory_gb_s") * 1e9 * value("memory_share")
    launch = value("kernel_us") * 1e-6
    once = sum(
        max(launch, (f0 + f1 * micro) / rate, (m0 + m1 * micro) / memory)
        for (f0, f1), (m0, m1) in cost.kernels
    )
    p = 4.0 * cost.parameters
    mine = p / workers if stage else p
    update = 12 * mine / memory + 10 * launch * len(cost.trained)  # AdamW reads and writes about 12 copies
    inside = workers <= value("node")
    link = value("link_gb_s" if inside else "net_gb_s") * 1e9 * value("link_share")
    copies = {0: 2.0, 1: 3.0, 2: 1.0 + 2.0 * accumulation, 3: 3.0 * accumulation}[stage]
    talk = copies * p * (workers - 1) / workers / link
    return StepTime(once * accumulation, update, talk)
