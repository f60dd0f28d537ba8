"""The two sides that `step` compares over two workers, each in processes of its own, waiting for their turns.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.benchmarks.step_workers plain …
    python -m tests.benchmarks.step_workers ours FOLDER RECIPE BATCH       (Ray Train, two workers)

A turn is a file `turn-N` in FOLDER that names a side and steps; whoever has that side takes them and writes
`done-N-RANK.json`: processor and wall seconds, and each step's loss.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.engine import parameter_groups
from pretrain.loop import optimize, seed_dropout
from pretrain.recipe import Recipe
from pretrain.recipes.anyppg import AnyPPG, AnyPPGConfig
from pretrain.recipes.m2ae import M2AE, M2AEConfig
from pretrain.recipes.sigma import Masked, MaskedConfig, TokenizerConfig, tokens
from pretrain.recipes.simclr import SimCLR, SimCLRConfig

RATE = 1e-4
STAGES = {"plethora, DDP": 0, "plethora, DeepSpeed ZeRO-1": 1}
PLAIN = "torchrun, plain DDP"
Runner = Callable[[int], Tensor]


def sigma() -> Masked:
    """The masked stage, base."""
    small = TokenizerConfig(dim=64, depth=1, heads=4, decoder_depth=1, codebook_size=512, kmeans=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Masked(MaskedConfig(codebook_size=512), 0, tokens(small))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "sigma": sigma,
    "m2ae": lambda: M2AE(M2AEConfig(), 0),
    "anyppg": lambda: AnyPPG(AnyPPGConfig(), 0),
    "simclr": lambda: SimCLR(SimCLRConfig(), 0),
}


def windows(recipe: Recipe, batch: int, rank: int) -> dict[str, Tensor]:
    """A batch in memory, another one on each rank."""
    draw, spec = torch.Generator().manual_seed(rank), recipe.windows()
    ids = torch.arange(batch) + batch * rank
    found = {
        sig.modality: torch.randn(batch, 1, round(spec.window_s * sig.rate), generator=draw).cumsum(-1)
        for sig in spec.signals
    }
    same = torch.zeros_like(ids)
    return found | {"window": ids, "subject": ids, "source": same, "pass": same, "step": same}


def by_hand(recipe: Recipe, batch: dict[str, Tensor], rank: int = 0, off: float = 0.0) -> Runner:
    """What one would write without us: modules (in DDP where there are several ranks), their optimizers,
    clip, step. Dropout is seeded as our loop does, so that losses can be compared.

    off: share by which each initial weight is moved, up or down at random."""
    modules, frozen = recipe.modules(), recipe.frozen()
    draw = torch.Generator().manual_seed(0)
    for weight in (w for m in modules.values() for w in m.parameters() if off):
        weight.data *= 1 + off * (2 * torch.randint(2, weight.shape, generator=draw) - 1)
    optimizers = {
        n: torch.optim.AdamW(parameter_groups(m, 0.05), lr=RATE, foreach=True) for n, m in modules.items()
    }
    # in the optimizer's order, as our engine does: in another one the norm is rounded otherwise
    clipped = {n: [p for g in o.param_groups for p in g["params"]] for n, o in optimizers.items()}
    called: dict[str, Any] = modules
    if dist.get_world_size() > 1:
        called = {n: DistributedDataParallel(m, broadcast_buffers=False) for n, m in modules.items()}

    def step(number: int) -> Tensor:
        seed_dropout(0, number, 0, rank)
        result = recipe.losses(called, frozen, batch, number)
        for name, optimizer in optimizers.items():
            result.losses[name].backward()
            nn.utils.clip_grad_norm_(clipped[name], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss.detach() for loss in result.losses.values()])

    return step


def ours(recipe: Recipe, batch: dict[str, Tensor], stage: int, rank: int = 0) -> Runner:
    """Our engines and what the loop does around them at every step, without the stream."""
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap
    from pretrain.meters import Means, TrainedWindows
    from pretrain.schedule import learning_rate

    optim, config, size = (
        Optim(lr=RATE, schedule="constant"),
        Engine.model_validate({"zero_stage": stage}),
        len(batch["window"]),
    )
    engines = {
        name: wrap(name, module, optim, config, size, 1, torch.device("cpu"))
        for name, module in recipe.modules().items()
    }
    frozen, means, seen = recipe.frozen(), Means(), TrainedWindows()

    def step(number: int) -> Tensor:
        seen.add(batch)
        rates = {name: learning_rate(optim, number, 1000, 1000, size) for name in engines}
        _, _, results = optimize(recipe, engines, frozen, [batch], number, rates, 0, rank)
        means.add(results[0], size)
        return torch.stack(list(results[0].losses.values()))

    return step


def taken(run: Runner, first: int, steps: int) -> dict[str, Any]:
    """{"cpu", "wall": seconds, "losses": [one list a step]} of so many steps. Processor seconds are those of
    all threads of this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    losses = [run(number) for number in range(first, first + steps)]
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return {**spent, "losses": [loss.tolist() for loss in losses]}


def serve(folder: Path, runners: dict[str, Runner], rank: int) -> None:
    """Take turns until one says "end"."""
    (folder / f"ready-{'+'.join(runners)}-{rank}").touch()
    for number in range(10**6):
        turn = folder / f"turn-{number}"
        while not turn.exists():
            time.sleep(0.02)
        asked = json.loads(turn.read_text())
        if asked["who"] == "end":
            return
        if asked["who"] in runners:
            dist.barrier()
            found = taken(runners[asked["who"]], asked["first"], asked["steps"])
            written = folder / f"done-{number}-{rank}.part"
            written.write_text(json.dumps(found))
            written.rename(folder / f"done-{number}-{rank}.json")


def plain(folder: Path, name: str, batch: int) -> None:
    """A rank under torchrun."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, recipe = dist.get_rank(), RECIPES[name]()
    serve(folder, {PLAIN: by_hand(recipe, windows(recipe, batch, rank), rank)}, rank)
    dist.barrier()
    os._exit(0)


def worker(config: dict[str, Any]) -> None:
    """A rank under Ray Train."""
    import ray.train

    from tests.benchmarks import step_workers as here

    torch.set_num_threads(1)
    rank, runners = ray.train.get_context().get_world_rank(), {}
    for title, stage in here.STAGES.items():
        recipe = here.RECIPES[config["recipe"]]()
        runners[title] = here.ours(recipe, here.windows(recipe, config["batch"], rank), stage, rank)
    here.serve(Path(config["folder"]), runners, rank)


def train(folder: Path, name: str, batch: int) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    from cluster import session
    from pretrain.rendezvous import Rendezvous

    with session.session(2, 0):
        TorchTrainer(
            worker,
            train_loop_config={"folder": str(folder), "recipe": name, "batch": batch},
            torch_config=Rendezvous(backend="gloo"),
            scaling_config=session.scaling(2, 0),
            run_config=ray.train.RunConfig(name="step", storage_path=str(folder / "ray")),
        ).fit()


if __name__ == "__main__":
    side = {"plain": plain, "ours": train}[sys.argv[1]]
    side(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
