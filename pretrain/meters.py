"""Counters of the training loop: means over windows and ranks, and the ledger of windows trained on."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from datasets.ledger import tally
from pretrain.recipe import StepResult

Ledger = dict[tuple[int, int], tuple[int, int]]


class Means:
    """Window-weighted means of losses and logs, and sums of counts, without a host synchronisation before
    `reduce`.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.total: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.windows = 0

    def add(self, result: StepResult, windows: int) -> None:
        """Add one micro-batch of `windows` windows."""
        values = {f"loss/{name}": loss for name, loss in result.losses.items()} | result.log
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float32).detach() * windows
            self.total[name] = self.total[name] + value if name in self.total else value
        for name, count in result.counts.items():
            self.counts[name] = self.counts[name] + count if name in self.counts else count.detach().clone()
        self.windows += windows

    def reduce(self, device: torch.device) -> tuple[dict[str, float], dict[str, Tensor]]:
        """(means, summed counts) over all ranks; then reset. Collective: every rank calls it with the same
        names."""
        names = sorted(self.total)
        weight = torch.tensor(float(self.windows), device=device)
        sums = torch.stack([*(self.total[name].to(device) for name in names), weight])
        dist.all_reduce(sums)
        counts = {name: self.counts[name].to(device) for name in sorted(self.counts)}
        for count in counts.values():
            dist.all_reduce(count)
        *values, windows = sums.tolist()
        self.clear()
        return {n: v / max(windows, 1.0) for n, v in zip(names, values, strict=True)}, counts


class TrainedWindows:
    """The ledger: for each (corpus, pass), the number of windows trained on and the sum of their ids."""

    def __init__(self, text: Mapping[str, list[int]] | None = None) -> None:
        # all: every rank's counts, merged; mine: this rank's counts since the last merge
        self.all: Ledger = {_key(k): (int(n), int(s)) for k, (n, s) in (text or {}).items()}
        self.mine: Ledger = {}

    def add(self, batch: Mapping[str, Tensor]) -> None:
        """Count one micro-batch (columns "source", "pass", "window")."""
        columns = [batch[name].cpu().numpy() for name in ("source", "pass", "window")]
        tally(self.mine, *columns)

    def merge(self) -> dict[str, list[int]]:
        """Sum the counts over ranks. Collective: every rank calls it. Returns the ledger with string keys,
        for JSON."""
        gathered: list[Ledger] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, self.mine)
        for part in gathered:
            for key, (n, s) in part.items():
                count, total = self.all.get(key, (0, 0))
                self.all[key] = (count + n, (total + s) % 2**64)
        self.mine = {}
        return {f"{source}/{pass_}": [n, s] for (source, pass_), (n, s) in sorted(self.all.items())}


def _key(text: str) -> tuple[int, int]:
    source, _, pass_ = text.partition("/")
    return int(source), int(pass_)


def chunks(windows: Mapping[str, np.ndarray], size: int) -> list[dict[str, Tensor]]:
    """Split windows in memory into batches of at most `size`; the batches are views."""
    n = len(windows["window"])
    return [
        {name: torch.from_numpy(x[low : low + size]) for name, x in windows.items()}
        for low in range(0, n, size)
    ]
