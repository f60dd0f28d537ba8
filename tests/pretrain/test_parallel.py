"""SIGMA's two stages over real process groups: every engine and every cut into workers gives the same
losses.
"""

from pathlib import Path

import pytest
import torch

from tests.pretrain.group import together

STEPS, BATCH = 20, 8


def recipes() -> dict:
    from pretrain.recipes.sigma import Masked, MaskedConfig, Tokenizer, TokenizerConfig, tokens

    small = {"window_s": 20.0, "dim": 32, "depth": 1, "heads": 4, "codebook_size": 16}
    tokenizer = TokenizerConfig(**small, decoder_dim=32, decoder_depth=1, decoder_heads=4, code_dim=8)
    masked = MaskedConfig(
        **small, max_patches=10, teacher_dim=16, teacher_depth=1, dropout=0, attn_dropout=0, drop_path=0
    )
    torch.manual_seed(1)
    return {"tokenizer": Tokenizer(tokenizer, 0), "masked": Masked(masked, 0, tokens(tokenizer))}


def batch(step: int, rank: int, world: int) -> dict[str, torch.Tensor]:
    """The same windows a step however many workers share them."""
    generator = torch.Generator().manual_seed(step)
    rate = torch.rand(BATCH, 1, 1, generator=generator) + 0.8
    phase = torch.rand(BATCH, 1, 1, generator=generator)
    t = torch.arange(1000) / 50
    x = torch.sin(6.283 * (rate * t + phase)) + 0.3 * torch.randn(BATCH, 1, 1000, generator=generator)
    window = torch.arange(BATCH) + 1000 * step
    return {"ppg": x.chunk(world)[rank], "window": window.chunk(world)[rank]}


def worker(rank: int, world: int, folder: Path, stages: tuple[int, ...]) -> None:
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap
    from pretrain.loop import optimize
    from pretrain.meters import Means

    out = {}
    for name in ("tokenizer", "masked"):
        for stage in stages:
            recipe = recipes()[name]
            engines = {
                key: wrap(
                    key,
                    module,
                    Optim(lr=1e-3),
                    Engine(zero_stage=stage),
                    BATCH // world,
                    1,
                    torch.device("cpu"),
                )
                for key, module in recipe.modules().items()
            }
            frozen, rates, losses = recipe.frozen(), dict.fromkeys(engines, 1e-3), []
            for step in range(STEPS):
                mine = batch(step, rank, world)
                applied, _, results = optimize(recipe, engines, frozen, [mine], step, rates, 0, rank)
                assert applied
                means = Means()
                means.add(results[0], BATCH // world)
                losses.append(means.reduce(torch.device("cpu"))[0])
            out[f"{name}/{stage}"] = losses
    if rank == 0:
        torch.save(out, folder / f"{world}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict]:
    folder = tmp_path_factory.mktemp("parallel")
    for world, stages in ((1, (0,)), (2, (0, 1, 2, 3))):
        together(worker, world, folder, stages)
    return {world: torch.load(folder / f"{world}.pt", weights_only=True) for world in (1, 2)}


def differences(a: list[dict], b: list[dict]) -> list[float]:
    """Largest difference of any module's loss, a step."""
    return [max(abs(x[k] - y[k]) for k in x if k.startswith("loss/")) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", ["tokenizer", "masked"])
def test_every_zero_stage_gives_the_losses_of_ddp_over_20_steps(found, name: str, stage: int) -> None:
    assert max(differences(found[2][f"{name}/{stage}"], found[2][f"{name}/0"])) < 1e-4


@pytest.mark.parametrize("name", ["tokenizer", "masked"])
def test_two_workers_with_half_the_batch_each_give_the_losses_of_one(found, name: str) -> None:
    assert max(differences(found[2][f"{name}/0"], found[1][f"{name}/0"])) < 1e-5


@pytest.mark.parametrize("name", ["tokenizer", "masked"])
def test_the_losses_that_agree_move_by_far_more_than_they_differ(found, name: str) -> None:
    key = {"tokenizer": "loss/tokenizer", "masked": "loss/student"}[name]
    losses = [step[key] for step in found[1][f"{name}/0"]]
    assert max(losses) - min(losses) > 1e-3
