"""Windows a second of our optimizer step against a hand-written torch loop: same model, batch and thread.

Windows in memory, one process; rounds alternate. The clock counts processor seconds of all threads of the
process: nothing here waits, and other programs on the machine do not enter.

    python -m tests.benchmarks.step [--recipe sigma] [--batch 8] [--rounds 5]
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"
import torch
import torch.distributed as dist
from torch import nn

from pretrain.config import Engine, Optim
from pretrain.engine import parameter_groups, wrap
from pretrain.loop import optimize
from pretrain.recipe import Recipe
from pretrain.recipes.anyppg import AnyPPG, AnyPPGConfig
from pretrain.recipes.m2ae import M2AE, M2AEConfig
from pretrain.recipes.sigma import Masked, MaskedConfig, TokenizerConfig, tokens
from pretrain.recipes.simclr import SimCLR, SimCLRConfig
from tests.benchmarks.table import show

RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="sigma", help="its published size")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "RANK": "0", "WORLD_SIZE": "1"}
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", rank=0, world_size=1)
    device = torch.device("cpu")
    recipe = RECIPES[given.recipe]()
    generator = torch.Generator().manual_seed(0)
    spec = recipe.windows()
    batch = {
        sig.modality: torch.randn(
            given.batch, 1, round(spec.window_s * sig.rate), generator=generator
        ).cumsum(-1)
        for sig in spec.signals
    }
    batch |= {"window": torch.arange(given.batch), "subject": torch.arange(given.batch)}

    runners: dict[str, Callable[[int], object]] = {"hand-written torch": by_hand(recipe, batch)}
    for name, stage in (("plethora, DDP", 0), ("plethora, DeepSpeed ZeRO-1", 1)):
        engines = {
            key: wrap(key, module, Optim(lr=RATE), Engine(zero_stage=stage), given.batch, 1, device)
            for key, module in recipe.modules().items()
        }
        rates, frozen = dict.fromkeys(engines, RATE), recipe.frozen()
        runners[name] = lambda step, e=engines, r=rates, f=frozen: optimize(
            recipe, e, f, [batch], step, r, 0, 0
        )

    best = dict.fromkeys(runners, 0.0)
    for round_ in range(given.rounds + 1):
        for name, run in runners.items():
            began = time.process_time()
            for step in range(given.steps):
                run(round_ * given.steps + step)
            speed = given.steps * given.batch / (time.process_time() - began)
            best[name] = max(best[name], speed) if round_ else 0.0  # the first round warms up
    hand = best["hand-written torch"]
    rows = [{"what": name, "windows/s": speed, "ratio": speed / hand} for name, speed in best.items()]
    show(
        f"step ({given.recipe}, {spec.window_s:g} s, batch {given.batch}, 1 thread)",
        rows,
        {"at least 0.95 of the hand-written loop": min(r["ratio"] for r in rows) >= 0.95},
    )


def sigma() -> Masked:
    """The masked stage, base."""
    small = TokenizerConfig(dim=64, depth=1, heads=4, decoder_depth=1, codebook_size=512, kmeans=False)
    return Masked(MaskedConfig(codebook_size=512), 0, tokens(small))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "sigma": sigma,
    "m2ae": lambda: M2AE(M2AEConfig(), 0),
    "anyppg": lambda: AnyPPG(AnyPPGConfig(), 0),
    "simclr": lambda: SimCLR(SimCLRConfig(), 0),
}


def by_hand(recipe: Recipe, batch: dict[str, torch.Tensor]) -> Callable[[int], object]:
    """What one would write without us: modules, their optimizers, clip, step."""
    modules, frozen = recipe.modules(), recipe.frozen()
    optimizers = {
        n: torch.optim.AdamW(parameter_groups(m, 0.05), lr=RATE, foreach=True) for n, m in modules.items()
    }

    def step(number: int) -> None:
        result = recipe.losses(modules, frozen, batch, number)
        for name, optimizer in optimizers.items():
            result.losses[name].backward()
            nn.utils.clip_grad_norm_(modules[name].parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
