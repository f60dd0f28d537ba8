"""The most memory that training steps take on a worker, measured: resident pages of a real process.

Each rank is a process of its own in a gloo group, with the run's own engine (DeepSpeed or DDP), and makes a
few steps through the loop's `optimize`. Its figure is the high-water mark of resident memory (VmHWM, reset
after imports, the start of the group and a plain micro-batch, for which libraries load and
compile what they keep) less what was resident then. glibc is told to give freed blocks
back at once, so that the mark is that of live memory.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
STEPS = 3  # DDP lays its buckets anew after the first


def measured(job: dict[str, Any]) -> int:
    """Bytes of the worst rank. job: {"run": RunConfig as a dict, "world", "micro", "accumulation"}."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.peak", json.dumps(job | {"folder": folder})],
                env=os.environ
                | EXACT
                | {
                    "RANK": str(r),
                    "LOCAL_RANK": str(r),
                    "OMP_NUM_THREADS": "1",
                    "WORLD_SIZE": str(job["world"]),
                },
                stdout=subprocess.PIPE,
                text=True,
            )
            for r in range(job["world"])
        ]
        said = [rank.communicate()[0] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            raise RuntimeError(f"a rank of {job} failed")
        return max(int(text.split()[-1]) for text in said)


def _pages(field: str) -> int:
    """VmHWM or VmRSS of this process, bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def _warm(recipe: Any, micro: int) -> None:
    """One plain micro-batch: what libraries load, compile and keep for themselves is there afterwards."""
    from pretrain.planning.probe import made_up

    result = recipe.losses(recipe.modules(), recipe.frozen(), made_up(recipe.windows(), micro), 0)
    for loss in result.losses.values():
        loss.backward()


def _rank(job: dict[str, Any]) -> None:
    import gc

    import torch
    import torch.distributed as dist

    from pretrain.config import RunConfig
    from pretrain.engine import _deepspeed, wrap
    from pretrain.loop import optimize
    from pretrain.planning.probe import made_up
    from pretrain.planning.rehearse import rehearsal

    torch.set_num_threads(1)
    device, rank = torch.device("cpu"), int(os.environ["RANK"])
    dist.init_process_group("gloo", f"file://{job['folder']}/meeting", rank=rank, world_size=job["world"])
    run = RunConfig(**job["run"])
    recipe = rehearsal(run)
    _deepspeed(device)
    _warm(recipe, job["micro"])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    base = _pages("VmRSS")
    modules, frozen = recipe.modules(), recipe.frozen()
    engines = {
        name: wrap(name, m, run.optim_for(name), run.engine, job["micro"], job["accumulation"], device)
        for name, m in modules.items()
    }
    rates = dict.fromkeys(engines, 1e-4)
    batch = made_up(recipe.windows(), job["micro"])
    for step in range(STEPS):
        optimize(recipe, engines, frozen, [batch] * job["accumulation"], step, rates, 0, rank)
    print(_pages("VmHWM") - base, flush=True)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    _rank(json.loads(sys.argv[1]))
