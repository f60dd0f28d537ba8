"""A recipe from outside our packages, small enough to train in a test; it can be told to die."""

import gc
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cluster.config import Config
from datasets.index import Index
from datasets.windows import Signal, WindowSpec
from pretrain.recipe import Encoder, Mode, StepResult


class ToyConfig(Config):
    kill_at: int = -1  # one worker ends at this step as by `kill -9`, once
    kill_mark: str = ""  # a file that says that it was done
    fail_at: int = -1  # every worker raises at this step, as long as there is no file `kill_mark`
    fail_once: list[int] = []  # the one worker raises once at each of these steps
    dropout: float = 0.1
    nan_from: int = 10**9  # every loss from this step on is NaN


class Net(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.encode = nn.Conv1d(1, 8, 10, stride=10)
        self.decode = nn.ConvTranspose1d(8, 1, 10, stride=10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.dropout(torch.tanh(self.encode(x))))


class Pooled(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.encode = net.encode

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encode(x / 1000)).mean(dim=-1)


class Toy:
    Config = ToyConfig

    def __init__(self, config: ToyConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def windows(self) -> WindowSpec:
        return WindowSpec(signals=(Signal(modality="ppg", rate=10.0),), window_s=10.0)

    def modules(self) -> dict[str, nn.Module]:
        torch.manual_seed(self.seed)
        return {"net": Net(self.config.dropout)}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        if torch.is_grad_enabled():
            self.die(step)
        x = batch["ppg"] / 1000
        loss = ((modules["net"](x) - x) ** 2).mean()
        if step >= self.config.nan_from and torch.is_grad_enabled():
            loss = loss * torch.nan
        found = gc.get_objects() if step == 3 else []
        indexes = sum(type(o) is Index for o in found)
        counts = {"windows": torch.tensor([float(len(x))])}
        return StepResult(losses={"net": loss}, log={"indexes_at_3": float(indexes)}, counts=counts)

    def die(self, step: int) -> None:
        if step == self.config.fail_at and not Path(self.config.kill_mark or "/nowhere").exists():
            time.sleep(6)  # Ray's controller commits a report within 2 s: what came before is kept
            raise RuntimeError("planted failure")
        mark = Path(f"{self.config.kill_mark}-{step}")
        if step in self.config.fail_once and not mark.exists():
            mark.touch()
            time.sleep(6)
            raise RuntimeError("planted failure")
        if step == self.config.kill_at:
            try:
                Path(self.config.kill_mark).touch(exist_ok=False)  # by one worker only, and only once
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        return {"windows": float(counts["windows"][0])}

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        net = modules["net"]
        assert isinstance(net, Net)
        inputs = [{"name": "ppg", "modality": "ppg", "rate": 10.0, "channels": 1}]
        mode = Mode(Pooled(net), inputs, dim=8, min_samples=10, step_samples=10, max_samples=100)
        about = {"rate": 10.0, "band": None, "order": 2, "kind": "none", "window_s": 10.0, "min_s": 1.0}
        return Encoder(
            {"ppg": mode}, "encoder", {"ppg": about | {"short": "refuse", "normalise": "none", "unit": "any"}}
        )


class Declared(Toy):
    """Its windows take steps that only hosts do."""

    def windows(self) -> WindowSpec:
        given = Signal(
            modality="ppg",
            rate=5.0,
            band=(0.2, 2.0),
            filter="chebyshev2",
            order=4,
            attenuation=20.0,
            smooth_s=0.3,
            resample="polyphase",
            normalise="zscore",
        )
        return WindowSpec(signals=(given,), window_s=10.0)


class Misdescribed(Toy):
    """Its bundle would describe a rate that its windows do not have."""

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        found = super().encoder(modules)
        found.modes["ppg"].inputs[0]["rate"] = 20.0
        return found
