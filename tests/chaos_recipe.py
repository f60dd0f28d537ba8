"""The toy recipe at a walking pace, leaving a trail of its steps, so that faults can be dealt at a step."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from pretrain.recipe import StepResult
from tests.pretrain.toy import Toy, ToyConfig


class PacedConfig(ToyConfig):
    trail: str = ""  # a file that gets a line a step: unix seconds, step (from 0), workers
    pace_s: float = 0.1  # a step takes at least this long


class Paced(Toy):
    Config = PacedConfig

    def __init__(self, config: PacedConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.paced = config

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        if torch.is_grad_enabled():
            if dist.get_rank() == 0:
                with Path(self.paced.trail).open("a") as trail:
                    trail.write(f"{time.time():.3f} {step} {dist.get_world_size()}\n")
            time.sleep(self.paced.pace_s)
        return super().losses(modules, frozen, batch, step)
