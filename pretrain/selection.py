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


class Best:
    """The best validation so far by one figure. `told` is JSON."""

    def __init__(self, metric: str, patience: int, told: dict[str, Any]) -> None:
        self.metric, self.patience = metric, patience
        self.told: dict[str, Any] = told or {
            "step": None,
            "value": None,
            "train": None,
            "worse": 0,
            "sum": 0.0,
            "windows": 0.0,
            "stopped": "",
        }
        self.mine = torch.zeros(2, dtype=torch.float64)  # Σ training loss · windows, windows: since the merge

    def trained(self, losses: list[Tensor], windows: int) -> None:
        loss = torch.stack([x.detach().double() for x in losses]).sum()
        self.mine = self.mine.to(loss.device) + torch.stack([loss, torch.ones_like(loss)]) * windows

    def merge(self) -> None:
        dist.all_reduce(self.mine)
        total, windows = self.mine.tolist()
        self.told["sum"] += total
        self.told["windows"] += windows
        self.mine = torch.zeros_like(self.mine)

    def validated(self, step: int, found: Mapping[str, float], last: bool) -> bool:
        """Whether this is the best so far."""
        if self.metric not in found:
            raise PlethoraError(
                f"select.metric = {self.metric}: no such figure of validation; "
                f"there are {', '.join(sorted(found))}"
            )
        self.merge()
        value, told = found[self.metric], self.told
        train = told["sum"] / told["windows"] if told["windows"] else math.nan
        told["sum"] = told["windows"] = 0.0
        if math.isfinite(value) and (told["value"] is None or value < told["value"]):
            told |= {"step": step, "value": value, "train": train, "worse": 0}
            return True
        overfits = told["train"] is not None and train < told["train"]
        told["worse"] = told["worse"] + 1 if overfits else 0
        if not last and self.patience and told["worse"] >= self.patience:
            told["stopped"] = (
                f"overfitting: {self.metric} of validation has been above its best "
                f"({told['value']:.4g} at step {told['step']}) for {told['worse']} validations, now "
                f"{value:.4g}, while the training loss fell from {told['train']:.4g} to {train:.4g}: "
                f"stopped at step {step}, the weights of step {told['step']} are published"
            )
        return False


class Selection:
    """The best validation so far and its weights, which rank 0 keeps. `told` is JSON and goes into every
    checkpoint, so that a resumed run decides as the unbroken one.

    A metric with `*` ("loss/*") is one figure a module, by its name: each module's weights are those of its
    own best, one that overfits is settled, and the run ends once all are.
    """

    def __init__(self, config: Select, told: dict[str, Any], weights: Weights | None) -> None:
        self.config, self.weights, self.apart = config, weights, "*" in config.metric
        each: dict[str, Any] = (told or {}).get("each", {}) if self.apart else {"": told}
        self.each = {name: self._best(name, one) for name, one in each.items()}

    def _best(self, name: str, told: dict[str, Any]) -> Best:
        return Best(self.config.metric.replace("*", name), self.config.patience, told)

    @property
    def on(self) -> bool:
        return bool(self.config.metric)

    @property
    def told(self) -> dict[str, Any]:
        each = {name: one.told for name, one in self.each.items()}
        if not self.apart:
            return each[""]
        shown = {key: {name: told[key] for name, told in each.items()} for key in ("step", "value")}
        return shown | {"stopped": self.stopped, "each": each}

    @property
    def stopped(self) -> str:
        """Why the run ended early; "" while it has not."""
        why = {name: str(one.told["stopped"]) for name, one in self.each.items()}
        if not self.apart:
            return why[""]
        return "; ".join(f"{n}: {w}" for n, w in why.items()) if why and all(why.values()) else ""

    def trained(self, results: list[StepResult], windows: int) -> None:
        """Count the micro-batches, of `windows` windows each, of a step that was applied."""
        if not self.on:
            return
        for result in results:
            if not self.apart:
                self.each[""].trained(list(result.losses.values()), windows)
                continue
            for name, loss in result.losses.items():
                self.each.setdefault(name, self._best(name, {})).trained([loss], windows)

    def merge(self) -> None:
        """Add up every rank's training losses; every rank calls it at the same step."""
        for one in self.each.values() if self.on else ():
            one.merge()

    def validated(
        self, step: int, found: Mapping[str, float], weights: Callable[[], Weights], last: bool = False
    ) -> None:
        """Judge the validation after `step` steps. Every rank calls it with the same figures; `weights` is
        called, on every rank, where they are the best so far. `last`: of the run, which then ends by itself.

        Errors: PlethoraError when the validation has no such figure.
        """
        if not self.on:
            return
        going = {name: one for name, one in self.each.items() if not one.told["stopped"]}
        better = [name for name, one in going.items() if one.validated(step, found, last)]
        if not better:
            return
        kept = weights()
        if dist.get_rank() == 0:
            self.weights = (self.weights or kept) | {n: kept[n] for n in better} if self.apart else kept
