"""Model selection and early stopping by a validation metric; off by default.

A run overfits when `patience` consecutive validations are worse than the best one while the training loss is
below its value at that best validation.
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

Weights = dict[str, dict[str, Tensor]]  # by module, without frozen parameters


class Best:
    """The best validation so far by one metric. `state` is JSON-serialisable."""

    def __init__(self, metric: str, patience: int, state: dict[str, Any]) -> None:
        self.metric, self.patience = metric, patience
        self.state: dict[str, Any] = state or {
            "step": None,
            "value": None,
            "train": None,
            "worse": 0,
            "sum": 0.0,
            "windows": 0.0,
            "stopped": "",
        }
        self.mine = torch.zeros(
            2, dtype=torch.float64
        )  # [Σ training loss · windows, windows] since the last merge

    def trained(self, losses: list[Tensor], windows: int) -> None:
        loss = torch.stack([x.detach().double() for x in losses]).sum()
        self.mine = self.mine.to(loss.device) + torch.stack([loss, torch.ones_like(loss)]) * windows

    def merge(self) -> None:
        dist.all_reduce(self.mine)
        total, windows = self.mine.tolist()
        self.state["sum"] += total
        self.state["windows"] += windows
        self.mine = torch.zeros_like(self.mine)

    def validated(self, step: int, found: Mapping[str, float], last: bool) -> bool:
        """Whether this validation is the best so far."""
        if self.metric not in found:
            raise PlethoraError(
                f"select.metric = {self.metric}: no such figure of validation; "
                f"choose one of {', '.join(sorted(found))}"
            )
        self.merge()
        value, state = found[self.metric], self.state
        train = state["sum"] / state["windows"] if state["windows"] else math.nan
        state["sum"] = state["windows"] = 0.0
        if math.isfinite(value) and (state["value"] is None or value < state["value"]):
            state |= {"step": step, "value": value, "train": train, "worse": 0}
            return True
        overfits = state["train"] is not None and train < state["train"]
        state["worse"] = state["worse"] + 1 if overfits else 0
        if not last and self.patience and state["worse"] >= self.patience:
            state["stopped"] = (
                f"overfitting: {self.metric} of validation has been above its best "
                f"({state['value']:.4g} at step {state['step']}) for {state['worse']} validations, now "
                f"{value:.4g}, while the training loss fell from {state['train']:.4g} to {train:.4g}: "
                f"stopped at step {step}, the weights of step {state['step']} are published"
            )
        return False


class Selection:
    """The best validation so far and its weights, which rank 0 keeps. Every checkpoint stores `state` (JSON),
    so a resumed run makes the same decisions as an uninterrupted one.

    A metric with `*` ("loss/*") stands for one metric per module, named after it. Each module is then
    selected separately: selection of a module stops when it overfits, and the run ends when every module has
    stopped.
    """

    def __init__(self, config: Select, state: dict[str, Any], weights: Weights | None) -> None:
        self.config, self.weights, self.apart = config, weights, "*" in config.metric
        each: dict[str, Any] = (state or {}).get("each", {}) if self.apart else {"": state}
        self.each = {name: self._best(name, one) for name, one in each.items()}

    def _best(self, name: str, state: dict[str, Any]) -> Best:
        return Best(self.config.metric.replace("*", name), self.config.patience, state)

    @property
    def on(self) -> bool:
        return bool(self.config.metric)

    @property
    def state(self) -> dict[str, Any]:
        each = {name: one.state for name, one in self.each.items()}
        if not self.apart:
            return each[""]
        shown = {key: {name: state[key] for name, state in each.items()} for key in ("step", "value")}
        return shown | {"stopped": self.stopped, "each": each}

    @property
    def stopped(self) -> str:
        """Why the run ended early; "" if it did not."""
        why = {name: str(one.state["stopped"]) for name, one in self.each.items()}
        if not self.apart:
            return why[""]
        return "; ".join(f"{n}: {w}" for n, w in why.items()) if why and all(why.values()) else ""

    def trained(self, results: list[StepResult], windows: int) -> None:
        """Add the training losses of an applied step: micro-batches of `windows` windows each."""
        if not self.on:
            return
        for result in results:
            if not self.apart:
                self.each[""].trained(list(result.losses.values()), windows)
                continue
            for name, loss in result.losses.items():
                self.each.setdefault(name, self._best(name, {})).trained([loss], windows)

    def merge(self) -> None:
        """Sum the training losses over ranks. Collective: every rank calls it at the same step."""
        for one in self.each.values() if self.on else ():
            one.merge()

    def validated(
        self, step: int, found: Mapping[str, float], weights: Callable[[], Weights], last: bool = False
    ) -> None:
        """Update the selection with the validation after `step` steps. Every rank calls it with the same
        figures; when they are the best so far, every rank calls `weights`. `last`: this is the run's last
        validation, so there is nothing to stop early.

        Errors: PlethoraError when the validation does not report the metric.
        """
        if not self.on:
            return
        going = {name: one for name, one in self.each.items() if not one.state["stopped"]}
        better = [name for name, one in going.items() if one.validated(step, found, last)]
        if not better:
            return
        kept = weights()
        if dist.get_rank() == 0:
            self.weights = (self.weights or kept) | {n: kept[n] for n in better} if self.apart else kept
