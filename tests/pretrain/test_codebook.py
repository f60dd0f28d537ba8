"""SIGMA's tokenizer through engines and the loop: micro-batches, ranks and ZeRO stages change no codebook."""

from pathlib import Path

import pytest
import torch

from tests.pretrain.group import EPS, together
from tests.pretrain.test_sigma import tokenizer_config

WINDOWS, STEPS = 16, 3
# (ranks, micro-batches a step, ZeRO stage)
RUNS = [(1, 1, 0), (1, 8, 0), (1, 4, 1), (2, 1, 0), (2, 4, 0), (2, 2, 1), (2, 2, 3)]


def worker(rank: int, world: int, folder: Path) -> None:
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap
    from pretrain.loop import optimize
    from pretrain.recipes.sigma import Tokenizer
    from tests.pretrain.kit import batch

    def run(micros: int, stage: int) -> dict:
        recipe, size = Tokenizer(tokenizer_config(decay=0.99), 0), WINDOWS // world // micros
        engine = wrap(
            "tokenizer",
            recipe.modules()["tokenizer"],
            Optim(eps=EPS),
            Engine(zero_stage=stage),
            size,
            micros,
            torch.device("cpu"),
        )

        def step(number: int, spoilt: bool = False) -> bool:
            whole = batch(WINDOWS, 100 * number)
            if spoilt:
                whole["ppg"][-1] = torch.nan
            mine = {k: v.chunk(world)[rank] for k, v in whole.items()}
            parts = [{k: v.chunk(micros)[i] for k, v in mine.items()} for i in range(micros)]
            return optimize(recipe, {"tokenizer": engine}, {}, parts, number, {"tokenizer": 1e-3}, 0, rank)[0]

        done = [step(90, spoilt=True)]
        unstarted = engine.weights()
        done += [step(number) for number in range(STEPS)]
        before = engine.weights()
        done.append(step(91, spoilt=True))
        after = engine.weights()
        kept = all(torch.equal(before[k], after[k]) for k in before)
        kept &= not unstarted["quantizer.vq._codebook.initted"] and not unstarted["mean_spectrum"].any()
        return {"weights": before, "done": done, "kept": bool(kept)}

    for ranks, micros, stage in RUNS:
        if ranks == world:
            torch.save(run(micros, stage), folder / f"{world}.{micros}.{stage}.{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("codebook")
    for world in (1, 2):
        together(worker, world, folder)
    return {
        run: [torch.load(folder / f"{run[0]}.{run[1]}.{run[2]}.{r}.pt") for r in range(run[0])]
        for run in RUNS
    }


@pytest.mark.parametrize("run", RUNS[1:])
def test_the_codebook_and_the_weights_are_those_of_one_large_batch(found: dict, run: tuple) -> None:
    (whole,), ranks = found[RUNS[0]], found[run]
    for name, value in whole["weights"].items():
        assert all(torch.equal(rank["weights"][name], ranks[0]["weights"][name]) for rank in ranks)
        torch.testing.assert_close(ranks[0]["weights"][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("run", RUNS)
def test_a_skipped_step_neither_starts_nor_moves_the_codebook(found: dict, run: tuple) -> None:
    for rank in found[run]:
        assert rank["done"] == [False] + [True] * STEPS + [False] and rank["kept"]
