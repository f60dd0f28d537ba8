"""Checkpoints of one number of workers loaded by another, over real gloo groups."""

from pathlib import Path

import pytest
import torch

from tests.pretrain.group import EPS, together

NAMES = ("net",)
STAGES = (0, 1, 2, 3)
# stages loaded at each change of workers; 1 and 2 are one class in DeepSpeed, and a conversion takes seconds
CHANGES = {(2, 1): STAGES, (1, 2): (0, 1, 3), (2, 3): (0, 1, 3)}
CASES = [(*change, stage, "fp32") for change, stages in CHANGES.items() for stage in stages]
CASES += [(2, 1, stage, "bf16-autocast") for stage in STAGES]
# losses after a load; rounding to bfloat16 falls otherwise where a worker has more rows
APART = {"fp32": 1e-5, "bf16-autocast": 2e-2}


class Net(torch.nn.Module):
    """Two layers, an odd-sized parameter, and a buffer that training moves, as a codebook is."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = torch.nn.Linear(12, 33), torch.nn.Linear(33, 4)
        self.scale = torch.nn.Parameter(torch.randn(7))
        self.register_buffer("moving", torch.zeros(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.moving += 1
        return self.last(torch.nn.functional.gelu(self.first(x))) * self.scale.mean()


def engines(stage: int, world: int, seed: int, precision: str) -> dict:
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap

    config = Engine.model_validate({"zero_stage": stage, "clip": 0.5, "precision": precision})
    cpu = torch.device("cpu")
    return {
        n: wrap(n, Net(seed), Optim(weight_decay=0.1, eps=EPS), config, 12 // world, 1, cpu) for n in NAMES
    }


def train(found: dict, steps: range, rank: int, world: int) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(12, 12, generator=torch.Generator().manual_seed(step)).chunk(world)[rank]
        for engine in found.values():
            engine.begin(last=True)
            loss = ((engine.module(x) - x[:, :4]) ** 2).mean()
            engine.backward(loss)
            assert engine.step(1e-2)[0]
            total = loss.detach()
            torch.distributed.all_reduce(total)
            losses.append(float(total / world))
    return losses


def save(rank: int, world: int, folder: Path) -> None:
    for stage, precision in sorted({case[2:] for case in CASES if case[0] == world}):
        found = engines(stage, world, 1, precision)
        train(found, range(6), rank, world)
        home = folder / f"{stage}.{precision}.{world}"
        home.mkdir(exist_ok=True)
        for engine in found.values():
            engine.save(home)
        torch.distributed.barrier()
        saved = {name: engine.weights() for name, engine in found.items()}
        losses = train(found, range(6, 12), rank, world)
        if rank == 0:
            torch.save({"weights": saved, "losses": losses}, folder / f"saved.{stage}.{precision}.{world}.pt")


def load(rank: int, world: int, folder: Path, saved_by: int) -> None:
    for stage, precision in [case[2:] for case in CASES if case[:2] == (saved_by, world)]:
        found = engines(stage, world, 2, precision)
        for engine in found.values():
            engine.load(folder / f"{stage}.{precision}.{saved_by}", saved_by)
        weights = {name: engine.weights() for name, engine in found.items()}
        losses = train(found, range(6, 12), rank, world)
        if rank == 0:
            there = folder / f"loaded.{stage}.{precision}.{saved_by}.{world}.pt"
            torch.save({"weights": weights, "losses": losses}, there)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reshard")
    for world in (1, 2):
        together(save, world, folder)
    for saved_by, world in CHANGES:
        together(load, world, folder, saved_by)
    return folder


@pytest.mark.parametrize(("saved_by", "world", "stage", "precision"), CASES)
def test_another_number_of_workers_goes_on_from_the_same_weights_buffers_and_moments(
    folder: Path, saved_by: int, world: int, stage: int, precision: str
) -> None:
    saved = torch.load(folder / f"saved.{stage}.{precision}.{saved_by}.pt")
    loaded = torch.load(folder / f"loaded.{stage}.{precision}.{saved_by}.{world}.pt")
    for name, weights in saved["weights"].items():
        assert weights["moving"].tolist() == [6.0] * 5
        assert all(value.dtype == torch.float32 for value in weights.values())
        assert all(torch.equal(value, loaded["weights"][name][key]) for key, value in weights.items())
    # Adam's moments, too
    assert loaded["losses"] == pytest.approx(saved["losses"], abs=APART[precision])
