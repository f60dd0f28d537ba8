"""The toy recipe, which waits at a step until the test has done what it does meanwhile."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from pretrain.recipe import StepResult
from tests.pretrain.toy import Toy, ToyConfig


class PausedConfig(ToyConfig):
    pause_at: int = -1
    meeting: str = ""  # a folder: `there` appears in it at that step, which goes on once `go` is there
    bundle: str = ""  # what a method may be built on


class Paused(Toy):
    Config = PausedConfig

    def __init__(self, config: PausedConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.paused = config

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        if torch.is_grad_enabled() and step == self.paused.pause_at:
            meeting = Path(self.paused.meeting)
            (meeting / "there").touch()
            until = time.monotonic() + 120
            while not (meeting / "go").exists() and time.monotonic() < until:
                time.sleep(0.05)
        return super().losses(modules, frozen, batch, step)
