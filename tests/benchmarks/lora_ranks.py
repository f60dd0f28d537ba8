"""LoRA of ranks 2, 4, 8 and 16 at once on one backbone, against one after another: time, memory, results.

Whole optimizer steps of our loop (images, forward, backward, clip, AdamW) on windows in memory, one thread;
rounds alternate, and the clock counts processor seconds, so that other programs do not enter. Memory: what a
process of its own grows by beyond its imports. Results: the largest difference between a first gradient and
that of the rank alone, dropout on, and the largest gradient. Weights are random, DINOv3's layer scales 1.

    python -m tests.benchmarks.lora_ranks [--backbone vit_small_patch16_dinov3] [--batch 8] [--rounds 3]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
import torch
import torch.distributed as dist

from finetune.ranks import Ranks, RanksConfig
from pretrain.config import Engine, Optim
from pretrain.engine import wrap
from pretrain.loop import optimize
from tests.benchmarks.table import ROOT, show

RANKS = (2, 4, 8, 16)
BACKBONES = ("vit_small_patch16_dinov3", "vit_base_patch16_dinov3")
MODULE = "tests.benchmarks.lora_ranks"


def recipe(backbone: str, transform: str) -> Ranks:
    c = RanksConfig.model_validate(
        {
            "tasks": ["heart_rate"],
            "backbone": {"name": backbone, "weights": "random"},
            "imaging": {"transform": transform},
            "ranks": RANKS,
        }
    )
    found = Ranks(c, seed=0)
    found.told(np.linspace(50, 120, 30)[:, None])
    return found


def windows(many: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rate = 50 + 70 * torch.rand(many, 1, generator=generator)
    x = torch.sin(2 * torch.pi * rate / 60 * torch.arange(1200) / 40)
    x = x + 0.1 * torch.randn(many, 1200, generator=generator)
    return {"ppg": x[:, None], "target": rate, "window": torch.arange(many)}


def stepper(method: Any, batch: dict[str, torch.Tensor]) -> Callable[[int], object]:
    """What makes one optimizer step of a recipe."""
    many, device = len(batch["window"]), torch.device("cpu")
    engines = {
        name: wrap(name, module, Optim(), Engine(zero_stage=0), many, 1, device)
        for name, module in method.modules().items()
    }
    frozen, rates = method.frozen(), dict.fromkeys(engines, 5e-4)
    return lambda step: optimize(method, engines, frozen, [batch], step, rates, 0, 0)


def apart(shared: Ranks, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Largest difference between a first gradient of all ranks at once and that of the rank alone, and the
    largest gradient of an adapter."""

    def gradients(method: Any, modules: Any, frozen: Any) -> None:
        for net in [*modules.values(), *frozen.values()]:
            for name, p in net.named_parameters():
                if ".gamma_" in name:  # 1e-5 at first, which would hide all else
                    torch.nn.init.ones_(p)
        torch.manual_seed(0)
        for loss in method.losses(modules, frozen, batch, 0).losses.values():
            loss.backward()

    modules, worst, most = shared.modules(), 0.0, 0.0
    gradients(shared, modules, shared.frozen())
    for name, module in modules.items():
        alone = shared.alone(name)[2]
        net = alone.modules()["net"]
        gradients(alone, {"net": net}, {})
        ours = [(key, p) for key, p in net.named_parameters() if p.requires_grad]
        for own, (key, p) in zip(module.tensors, ours, strict=True):
            assert own.grad is not None and p.grad is not None
            worst = max(worst, float((own.grad - p.grad).abs().max()))
            most = max(most, float(p.grad.abs().max()) if "lora_" in key else 0.0)
    return worst, most


def memory(backbone: str, transform: str, which: str, many: int) -> dict[str, float]:
    """MiB that two steps of `which` ("together", or a rank's module) take beyond the imports."""
    import peft  # noqa: F401
    import timm  # noqa: F401

    before, shared = _resident("VmRSS"), recipe(backbone, transform)
    step = stepper(shared if which == "together" else shared.alone(which)[2], windows(many))
    for number in range(2):
        step(number)
    return {"grew": _resident("VmHWM") - before}


def _resident(key: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[key].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", action="append", help=f"any ViT of timm (default {' and '.join(BACKBONES)})"
    )
    parser.add_argument("--transform", default="stft", choices=("stft", "complex", "recurrence"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    backbones = given.backbone or BACKBONES
    if given.memory:
        print(json.dumps(memory(backbones[0], given.transform, given.memory, given.batch)), flush=True)
        os._exit(0)

    rows, goals = [], {}
    for backbone in backbones:
        shared, batch = recipe(backbone, given.transform), windows(given.batch)
        names = list(shared.config.members)
        base = sum(p.numel() for p in shared.frozen()["net"].parameters()) * 4 / 2**20
        worst, most = apart(shared, batch)
        steppers = {"together": stepper(shared, batch)}
        steppers |= {name: stepper(shared.alone(name)[2], batch) for name in names}
        best = dict.fromkeys(steppers, float("inf"))
        for number in range(given.rounds + 1):
            for name, step in steppers.items():
                began = time.process_time()
                step(number)
                passed = time.process_time() - began
                best[name] = min(best[name], passed) if number else best[name]  # the first round warms up
        del steppers
        grew = {}
        for name in ("together", names[-1]):
            command = [sys.executable, "-m", MODULE, "--memory", name, "--backbone", backbone]
            command += ["--batch", str(given.batch), "--transform", given.transform]
            said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            grew[name] = json.loads(said.splitlines()[-1])["grew"]
        separate = sum(best[name] for name in names)
        total = len(names) * grew[names[-1]]
        rows.append(
            {
                "backbone": backbone,
                "together s/step": best["together"],
                "separate s/step": separate,
                "speed": separate / best["together"],
                "base MiB": base,
                "together MiB": grew["together"],
                "r16 alone MiB": grew[names[-1]],
                "first gradients differ by": worst,
                "largest of adapters": most,
            }
        )
        goals |= {
            f"{backbone}: together at least 0.95 of the speed of separate runs": rows[-1]["speed"] >= 0.95,
            f"{backbone}: no more than so many runs at once, less all bases but one": grew["together"]
            <= total - (len(names) - 1) * base,
            f"{backbone}: first gradients equal within 1e-5": worst < 1e-5,
        }
    show(f"lora_ranks ({given.transform}, batch {given.batch}, 1 thread, ranks {RANKS})", rows, goals)


if __name__ == "__main__":
    main()
