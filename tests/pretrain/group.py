"""Several ranks on this machine: a real gloo group of processes, without Ray."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

# AdamW's eps where runs of unlike rounding are compared. With the default 1e-8 an element whose gradient is
# rounding alone moves by the whole learning rate, to either side; with this it moves by a millionth of it.
EPS = 1e-3


def together(work: Callable[..., None], world: int, folder: Path, *args: Any) -> None:
    """`work(rank, world, folder, *args)` in `world` processes that form a gloo group; raises what one raises.

    `work` must be importable: it travels by name. Ranks meet in a file below `folder`: a port that was free
    a moment ago may be taken.
    """
    meeting = folder / f"meeting.{world}.{len(list(folder.glob('meeting.*')))}"
    mp.spawn(_rank, (work, world, str(meeting), folder, args), nprocs=world)


def _rank(rank: int, work: Callable[..., None], world: int, meeting: str, folder: Path, args: tuple) -> None:
    # DeepSpeed reads its place from these
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world)
    work(rank, world, folder, *args)
    torch.distributed.barrier()  # a rank that leaves early closes connections under the others
    # Not through the interpreter's end: gloo's threads may still hold tensors there, and freeing one without
    # an interpreter aborts the process (PyTorch pull request 179291 tells the story; seen in our CI).
    os._exit(0)


def trained(
    method: Any, batches: list[dict[str, torch.Tensor]], zero_stage: int, rank: int, world: int, lr: float
) -> dict[str, Any]:
    """A recipe of one module over whole batches, of which each rank takes its share: {"steps": (steps, 2)
    loss over all ranks and gradient norm, "weights": state dict}."""
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap
    from pretrain.loop import optimize
    from pretrain.meters import Means

    ((name, module),) = method.modules().items()
    device, rows = torch.device("cpu"), len(batches[0]["window"]) // world
    engine = wrap(
        name, module, Optim(eps=EPS, weight_decay=0), Engine(zero_stage=zero_stage), rows, 1, device
    )
    steps = []
    for step, whole in enumerate(batches):
        mine = {k: v.chunk(world)[rank] for k, v in whole.items()}
        applied, norms, results = optimize(method, {name: engine}, {}, [mine], step, {name: lr}, 0, rank)
        assert applied
        means = Means()
        means.add(results[0], rows)
        steps.append((means.reduce(device)[0][f"loss/{name}"], norms[name]))
    return {"steps": torch.tensor(steps, dtype=torch.float64), "weights": engine.weights()}


def same(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Two results of `trained` agree but for rounding, which an average over the wrong number exceeds by far:
    with `EPS`, up to 3e-6 of a loss, 3e-5 of a norm and 1e-5 of a weight on four kinds of arithmetic."""
    (losses, norms), (others, other_norms) = one["steps"].T, two["steps"].T
    torch.testing.assert_close(others, losses, rtol=1e-4, atol=1e-6)  # atol: a loss of zero
    torch.testing.assert_close(other_norms, norms, rtol=1e-3, atol=1e-6)
    for key, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], value, rtol=1e-3, atol=1e-4)
