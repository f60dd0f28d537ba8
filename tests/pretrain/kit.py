"""What tests of recipes share: windows with pulses in them, and the smallest loop."""

from __future__ import annotations

import copy

import torch

from datasets.windows import Signal, WindowSpec
from pretrain.layers import stepped
from pretrain.recipe import Recipe, StepResult

WINDOW_S = 20.0
PAIRED = WindowSpec(
    signals=(Signal(modality="ppg", rate=50.0), Signal(modality="ecg", rate=50.0)), window_s=WINDOW_S
)


def windows_of(spec: WindowSpec, count: int = 8, start: int = 0) -> dict[str, torch.Tensor]:
    """A batch as the stream gives it: of every signal of `spec` pulse-like windows, each with its own rate
    and depth; an ECG has the beats of the same window. Targets are of its rate; some lack the second."""
    draw = torch.Generator().manual_seed(start)
    rate = 0.8 + 1.2 * torch.rand(count, 1, generator=draw)  # Hz
    ids = torch.arange(start, start + count)
    target = torch.cat([60 * rate, 100 + 30 * rate], dim=1)
    target[ids % 4 == 0, 1] = torch.nan  # only some have every label
    found = {"target": target, "window": ids, "subject": ids, "step": torch.zeros_like(ids)}
    for signal in spec.signals:
        t = torch.arange(round(spec.window_s * signal.rate)) / signal.rate
        slow = 1 + 0.5 * torch.sin(2 * torch.pi * 0.1 * t + rate)
        if signal.modality == "ecg":
            x = slow * torch.cos(torch.pi * (rate * t - 0.1)).square() ** 20
        else:
            noise = torch.randn(count, len(t), generator=draw)
            x = slow * torch.sin(2 * torch.pi * rate * t) ** 3 + 0.05 * noise
        found[signal.modality] = x[:, None].float().repeat(1, signal.channels, 1)
        if not signal.required:
            found[f"has_{signal.modality}"] = torch.ones(count, dtype=torch.bool)
    return found


def batch(count: int = 8, start: int = 0) -> dict[str, torch.Tensor]:
    """PPG and ECG at 50 Hz."""
    return windows_of(PAIRED, count, start)


class Trainer:
    """The smallest loop: an optimizer a module, all losses before any step."""

    def __init__(self, recipe: Recipe, lr: float = 1e-3) -> None:
        self.recipe, self.modules, self.frozen = recipe, recipe.modules(), recipe.frozen()
        self.optimizers = {n: torch.optim.AdamW(m.parameters(), lr=lr) for n, m in self.modules.items()}

    def losses(self, data: dict, step: int) -> StepResult:
        torch.manual_seed(step)
        return self.recipe.losses(self.modules, self.frozen, data, step)

    def step(self, data: dict, step: int) -> StepResult:
        for module in self.modules.values():
            module.train()
        result = self.losses(data, step)
        parts = [part for module in self.modules.values() for part in stepped(module)]
        if any(part.waits for part in parts):
            for part in parts:
                part.start()
            result = self.losses(data, step)
        for name, loss in result.losses.items():
            self.optimizers[name].zero_grad()
            loss.backward()
        for part in parts:
            part.move()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return result

    def validate(self, data: dict, step: int = 0) -> StepResult:
        for module in self.modules.values():
            module.eval()
        with torch.no_grad():
            return self.losses(data, step)

    def state(self) -> dict:
        parts = {"modules": self.modules, "optimizers": self.optimizers}
        return copy.deepcopy({k: {n: v.state_dict() for n, v in part.items()} for k, part in parts.items()})

    def load(self, state: dict) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
