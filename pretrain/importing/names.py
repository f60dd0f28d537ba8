"""Takes a third-party state dict apart by name and reports everything that does not fit at once.

Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

SHOWN = 8  # names listed per problem


class Names:
    """The tensors of a state dict that are not taken yet, and the problems found so far.

    ``take`` returns each tensor once. A tensor that is missing or of another shape is recorded and replaced
    by zeros, so that the mapping completes; ``finish`` then raises.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.left = dict(state)
        self.unused: list[str] = []
        self._missing: list[str] = []
        self._wrong: list[str] = []
        self._nonfinite: list[str] = []

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that other sizes depend on. Errors: ValueError when it is missing."""
        if name not in self.left:
            raise ValueError(f"missing: {name}")
        return tuple(self.left[name].shape)

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """The tensor of that name and shape, half precision as float32."""
        value = self.left.pop(name, None)
        if value is None:
            self._missing.append(name)
        elif tuple(value.shape) != tuple(shape):
            self._wrong.append(f"{name} {_text(value.shape)} instead of {_text(shape)}")
        else:
            if value.is_floating_point():
                if not value.isfinite().all():
                    self._nonfinite.append(name)
                value = value if value.dtype == torch.float64 else value.float()
            return value
        return torch.zeros(tuple(shape))

    def count(self, prefix: str) -> int:
        """The length of a module list whose names start with ``prefix`` and a number."""
        numbers = [name[len(prefix) :].split(".")[0] for name in self.left if name.startswith(prefix)]
        return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)

    def drop(self, *prefixes: str) -> None:
        """Set aside tensors that the authors' forward pass never uses."""
        found = sorted(name for name in self.left if name.startswith(prefixes))
        self.unused += found
        for name in found:
            del self.left[name]

    def finish(self, what: str) -> None:
        """Errors: ValueError that names the tensors that are missing, of another shape, not finite, or
        unknown."""
        problems = (
            ("missing", self._missing),
            ("of another shape", self._wrong),
            ("with NaN or infinite values", self._nonfinite),
            (f"not part of {what}", sorted(self.left)),
        )
        if found := [f"{kind}: {listed(names)}" for kind, names in problems if names]:
            raise ValueError("; ".join(found))


class Filling:
    """The state dict of one of our modules, filled name by name from ``names``."""

    def __init__(self, net: nn.Module, names: Names) -> None:
        self.net, self.names = net, names
        self.wanted = net.state_dict()
        self.new: dict[str, Tensor] = {}

    def move(self, ours: str, theirs: str, parts: Iterable[str] = ("weight", "bias")) -> None:
        """``<theirs>.<part>`` becomes ``<ours>.<part>``."""
        for part in parts:
            name = f"{ours}.{part}"
            self.new[name] = self.names.take(f"{theirs}.{part}", self.wanted[name].shape)

    def norm(self, ours: str, theirs: str, bias: str | None = None) -> None:
        """Map a batch norm. ``bias``: of the preceding linear layer if ours has none; it is subtracted from
        the running mean, which gives the same function."""
        self.move(ours, theirs, ("weight", "bias", "running_mean", "running_var"))
        counted = self.names.left.pop(f"{theirs}.num_batches_tracked", torch.tensor(0))
        self.new[f"{ours}.num_batches_tracked"] = counted
        if bias is not None:
            mean = self.new[f"{ours}.running_mean"]
            self.new[f"{ours}.running_mean"] = mean - self.names.take(bias, mean.shape)

    def load(self) -> None:
        """Load the state dict into the module; all of its tensors must have been filled."""
        self.net.load_state_dict(self.new)


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _text(shape: Iterable[int]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ")"
