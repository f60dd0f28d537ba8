"""Windows a second of our optimizer step against a hand-written torch loop: same model, batch and thread.

SIGMA's masked stage on windows in memory, one process; rounds alternate. The clock counts processor seconds
of all threads of the process: nothing here waits, and other programs on the machine do not enter.

    python -m tests.benchmarks.step [--dim 200] [--depth 12] [--batch 8] [--rounds 5]
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
from pretrain.recipes.sigma import Masked, MaskedConfig, TokenizerConfig, tokens
from tests.benchmarks.table import show

RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=200)
    parser.add_argument("--depth", type=int, default=12)
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
    config = MaskedConfig(dim=given.dim, depth=given.depth, heads=10, codebook_size=512)
    tokenizer = tokens(
        TokenizerConfig(dim=64, depth=1, heads=4, decoder_depth=1, codebook_size=512, kmeans=False)
    )
    recipe = Masked(config, 0, tokenizer)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "ppg": torch.randn(given.batch, 1, config.samples, generator=generator).cumsum(-1),
        "window": torch.arange(given.batch),
    }

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
        f"step (masked stage of 240 s, dim {given.dim}, depth {given.depth}, batch {given.batch}, 1 thread)",
        rows,
        {"at least 0.95 of the hand-written loop": min(r["ratio"] for r in rows) >= 0.95},
    )


def by_hand(recipe: Masked, batch: dict[str, torch.Tensor]) -> Callable[[int], object]:
    """What one would write without us: two modules, two optimizers, clip, step."""
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
