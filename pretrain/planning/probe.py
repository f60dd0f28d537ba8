"""The cost of one micro-batch of a recipe, measured by running small micro-batches on this machine's CPU.

A dispatch hook records every operation of the losses and the backward pass: its arithmetic, its reads and
writes, and the storages that stay alive. Two sizes give a line over the number of windows, which extrapolates
to large micro-batches on large accelerators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datasets.windows import WindowSpec
from pretrain.layers import stepped
from pretrain.planning.meter import Meter
from pretrain.recipe import Recipe

SIZES = (2, 6)  # windows of the two micro-batches


@dataclass(frozen=True)
class Cost:
    """The cost of a micro-batch of b windows on one worker, forward and backward, as lines over b: constant +
    slope · b. held: bytes of activations and temporaries at the peak, without parameters and their gradients.

    kernels: (flops, bytes moved) as a pair of lines ((f0, f1), (m0, m1)) for each operation, in order.
    """

    trained: dict[str, int]  # {module: trainable parameters}
    frozen: int  # bytes of frozen parameters and buffers
    held: tuple[float, float]
    kernels: tuple[tuple[tuple[float, float], tuple[float, float]], ...]

    def held_at(self, windows: int) -> float:
        return self.held[0] + self.held[1] * windows

    @property
    def flops(self) -> float:
        """Floating-point operations per window, forward and backward."""
        return sum(flops[1] for flops, _ in self.kernels)

    @property
    def moved(self) -> float:
        """Bytes per window that kernels read and write."""
        return sum(moved[1] for _, moved in self.kernels)

    @property
    def parameters(self) -> int:
        return sum(self.trained.values())


def probe(recipe: Recipe, bf16: bool, workers: int = 1, sizes: tuple[int, int] = SIZES) -> Cost:
    """Run `recipe` with fresh weights on synthetic micro-batches of two sizes, with bfloat16 autocast if
    `bf16`, as one of `workers`: gathered tensors have their real size, and synchronised layers run as such.
    """
    with _among(workers):
        return _probe(recipe, bf16, sizes)


@contextmanager
def _among(workers: int) -> Iterator[None]:
    """A fake process group of `workers` ranks in which only this one exists: collectives return at once."""
    if workers == 1 or dist.is_initialized():
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=workers, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _probe(recipe: Recipe, bf16: bool, sizes: tuple[int, int]) -> Cost:
    modules, frozen = recipe.modules(), recipe.frozen()
    for module in modules.values():
        module.train()
    spec = recipe.windows()
    runs = []
    for number, size in enumerate((sizes[0], *sizes)):  # the first run warms up and allocates gradients
        meter = Meter()
        batch = made_up(spec, size)
        with meter:
            _once(recipe, modules, frozen, batch, bf16)
        if number:
            runs.append((size, meter.peak, meter.kernels))
    (b1, p1, k1), (b2, p2, k2) = runs
    slope = (p2 - p1) / (b2 - b1)
    fixed = [p for f in frozen.values() for p in (*f.parameters(), *f.buffers())]
    for module in modules.values():
        fixed += [p for p in module.parameters() if not p.requires_grad] + list(module.buffers())
    return Cost(
        trained={n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in modules.items()},
        frozen=sum(p.numel() * p.element_size() for p in fixed),
        held=(max(p1 - slope * b1, 0.0), slope),
        kernels=_lines(b1, k1, b2, k2),
    )


def made_up(spec: WindowSpec, size: int) -> dict[str, Tensor]:
    """A batch of random walks in the shape that `spec` asks for."""
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Tensor] = {
        s.modality: torch.randn(size, s.channels, round(spec.window_s * s.rate), generator=generator).cumsum(
            -1
        )
        for s in spec.signals
    }
    batch |= {f"has_{m}": torch.ones(size, dtype=torch.bool) for m in spec.optional}
    ids = torch.arange(size)
    return batch | {"window": ids, "subject": ids, "step": torch.zeros(size, dtype=torch.int64)}


def _once(
    recipe: Recipe,
    modules: Mapping[str, nn.Module],
    frozen: Mapping[str, nn.Module],
    batch: dict[str, Tensor],
    bf16: bool,
) -> None:
    parts = [part for module in modules.values() for part in stepped(module)]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        result = recipe.losses(modules, frozen, batch, 10**9)
        if any(part.waits for part in parts):
            for part in parts:
                part.start()
            result = recipe.losses(modules, frozen, batch, 10**9)
    for loss in result.losses.values():
        loss.backward()
    for part in parts:
        part.move()


def _lines(
    b1: int, first: list[tuple[float, float]], b2: int, second: list[tuple[float, float]]
) -> tuple[tuple[tuple[float, float], tuple[float, float]], ...]:
    """A line over the number of windows for each kernel. From the kernel at which the two runs diverge (a
    random choice), one line for all the rest.
    """
    head = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if bool(a[0]) != bool(b[0])),
        min(len(first), len(second)),
    )
    pairs = [(a, b) for a, b in zip(first[:head], second[:head], strict=True)]
    rest = [tuple(sum(k[i] for k in run[head:]) for i in (0, 1)) for run in (first, second)]
    if any(rest[1]):
        pairs.append((rest[0], rest[1]))  # type: ignore[arg-type]

    def line(a: float, b: float) -> tuple[float, float]:
        slope = max((b - a) / (b2 - b1), 0.0)
        return max(a - slope * b1, 0.0), slope

    return tuple((line(a[0], b[0]), line(a[1], b[1])) for a, b in pairs)
