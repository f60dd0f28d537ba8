"""Which weights a run publishes and whether it ends early, judged on validation; off unless asked for.

Overfitting is told by both curves: since the best validation, `patience` validations in a row were worse
while the training loss was under what it was then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import PlethoraError
from pretrain.config import Select
from pretrain.recipe import StepResult

Weights = dict[str, dict[str, Tensor]]  # by module, without what is frozen


class Selection:
    """The best validation so far and its weights. `told` is JSON and goes into every checkpoint, so that a
    resumed run decides as the unbroken one; weights are kept by rank 0.
    """

    def __init__(self, config: Select, told: dict[str, Any], weights: Weights | None) -> None:
        self.config, self.weights = config, weights
        self.told: dict[str, Any] = told or {
            "step": None, "value": None, "train": None, "worse": 0, "sum": 0.0, "windows": 0.0, "stopped": "",
        }  # fmt: skip
        self.mine = torch.zeros(2, dtype=torch.float64)  # Σ training loss · windows, windows: since the merge

    @property
    def on(self) -> bool:
        return bool(self.config.metric)

    @property
    def stopped(self) -> str:
        """Why the run ended early; "" while it has not."""
        return str(self.told["stopped"])

    def trained(self, results: list[StepResult], windows: int) -> None:
        """Count the micro-batches, of `windows` windows each, of a step that was applied."""
        if self.on:
            for result in results:
                loss = torch.stack([x.detach().double() for x in result.losses.values()]).sum()
                self.mine = self.mine.to(loss.device) + torch.stack([loss, torch.ones_like(loss)]) * windows

    def merge(self) -> None:
        """Add up every rank's training losses; every rank calls it at the same step."""
        if self.on:
            dist.all_reduce(self.mine)
            total, windows = self.mine.tolist()
            self.told["sum"] += total
            self.told["windows"] += windows
            self.mine = torch.zeros_like(self.mine)

    def validated(
        self, step: int, found: Mapping[str, float], weights: Callable[[], Weights], last: bool = False
    ) -> None:
        """Judge the validation after `step` steps. Every rank calls it with the same figures; `weights` is
        called, on every rank, where they are the best so far. `last`: of the run, which then ends by itself.

        Errors: PlethoraError when the validation has no such figure.
        """
        if not self.on:
            return
        if self.config.metric not in found:
            raise PlethoraError(
                f"select.metric = {self.config.metric}: no such figure of validation; "
                f"there are {', '.join(sorted(found))}"
            )
        self.merge()
        value, told = found[self.config.metric], self.told
        train = told["sum"] / told["windows"] if told["windows"] else math.nan
        told["sum"] = told["windows"] = 0.0
        if math.isfinite(value) and (told["value"] is None or value < told["value"]):
            kept = weights()
            self.weights = kept if dist.get_rank() == 0 else None
            told |= {"step": step, "value": value, "train": train, "worse": 0}
            return
        overfits = told["train"] is not None and train < told["train"]
        told["worse"] = told["worse"] + 1 if overfits else 0
        if not last and self.config.patience and told["worse"] >= self.config.patience:
            told["stopped"] = (
                f"overfitting: {self.config.metric} of validation has been above its best "
                f"({told['value']:.4g} at step {told['step']}) for {told['worse']} validations, now "
                f"{value:.4g}, while the training loss fell from {told['train']:.4g} to {train:.4g}: "
                f"stopped at step {step}, the weights of step {told['step']} are published"
            )
