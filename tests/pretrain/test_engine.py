"""Engines over a real gloo group of two processes: every ZeRO stage and DDP against a hand-written loop."""

from pathlib import Path

import pytest
import torch

from tests.pretrain.group import EPS, together

STEPS = 20
PRECISIONS = ("fp32", "bf16-autocast")


def net() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(12, 32), torch.nn.GELU(), torch.nn.LayerNorm(32), torch.nn.Linear(32, 4)
    )


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 12, generator=generator)
    return x, torch.stack([x[:, :3].sum(1), x[:, 3] * x[:, 4], x[:, 5], x[:, 6].abs()], 1)


def worker(rank: int, world: int, folder: Path) -> None:
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap

    out: dict[str, object] = {}
    for stage in (0, 1, 2, 3):
        for accumulation in (1, 2):
            engine = start(stage, accumulation, world, Engine, Optim, wrap)
            losses = [train_step(engine, step, rank, world, accumulation) for step in range(STEPS)]
            out[f"{stage}/{accumulation}"] = losses
            out[f"{stage}/{accumulation}/weights"] = engine.weights()

        if stage:
            out[f"{stage}/bucket"] = engine.optimizer.reduce_bucket_size

        # a poisoned step changes nothing, and the next one goes on
        before = engine.weights()
        x, y = data(0)
        for last in (False, True):
            engine.begin(last)
            loss = ((engine.module(x) - y) ** 2).mean()
            engine.backward(loss * (torch.nan if not last else 1.0))
        applied, _ = engine.step(1e-2)
        after = engine.weights()
        out[f"{stage}/skipped"] = not applied and all(torch.equal(before[k], after[k]) for k in before)

        # save, take two more steps, load, take them again: bitwise the same
        home = folder / f"{stage}"  # the ranks' files merged, as Ray does
        home.mkdir(exist_ok=True)
        engine.save(home)
        torch.distributed.barrier()
        again = []
        for _ in range(2):
            for step in (30, 31):
                train_step(engine, step, rank, world, 2)
            again.append(engine.weights())
            engine = start(stage, 2, world, Engine, Optim, wrap)
            engine.load(home, world)
        out[f"{stage}/resumed"] = all(torch.equal(again[0][k], again[1][k]) for k in again[0])
        for precision in PRECISIONS:
            out[f"{stage}/{precision}/kept"] = kept_over_validation(stage, precision)
    out["exchanges"] = exchanges(start(0, 2, world, Engine, Optim, wrap), rank, world)
    if rank == 0:
        torch.save(out, folder / "out.pt")


def kept_over_validation(stage: int, precision: str) -> dict[str, bool]:
    """Whether the weights after validation are those after the step before it, and are more than bfloat16s.
    The first layer is large enough for ZeRO-3 to share it out between passes; the last one is frozen."""
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap

    torch.manual_seed(3)
    wide = torch.nn.Sequential(
        torch.nn.Linear(12, 10000),
        torch.nn.LayerNorm(10000),
        torch.nn.Linear(10000, 4),
        torch.nn.Linear(4, 4).requires_grad_(False),
    )
    config = Engine.model_validate({"zero_stage": stage, "precision": precision})
    engine = wrap("wide", wide, Optim(), config, 8, 1, torch.device("cpu"))
    x, y = data(0)
    found = []
    for number in range(2):
        engine.begin(last=True)
        engine.backward(((engine.module(x).float() - y) ** 2).mean())
        assert engine.step(1e-3)[0]
        before = engine.weights()
        engine.module.eval()
        with torch.no_grad():
            engine.module(data(5 + number)[0])
        engine.module.train()
        after = engine.weights()
        found.append(all(torch.equal(before[k], after[k]) for k in before))
    fine = any(not torch.equal(v, v.bfloat16().float()) for k, v in after.items() if k == "0.weight")
    return {"same": all(found), "float32": fine}


def exchanges(engine, rank: int, world: int) -> list[int]:  # type: ignore[no-untyped-def]
    """How often gradients meet in each of some steps of two micro-batches; the network fills one bucket."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    sent: list[int] = []

    def counted(group, bucket):  # type: ignore[no-untyped-def]
        sent[-1] += 1
        return allreduce_hook(group, bucket)

    engine.module.register_comm_hook(None, counted)
    for step in range(4):
        sent.append(0)
        train_step(engine, step, rank, world, 2)
    return sent


def start(stage: int, accumulation: int, world: int, Engine: type, Optim: type, wrap):  # type: ignore[no-untyped-def]
    config = Engine(zero_stage=stage, clip=0.5)
    micro = 16 // world // accumulation
    return wrap(
        "net", net(), Optim(weight_decay=0.1, eps=EPS), config, micro, accumulation, torch.device("cpu")
    )


def train_step(engine, step: int, rank: int, world: int, accumulation: int) -> float:  # type: ignore[no-untyped-def]
    x, y = (part.chunk(world)[rank] for part in data(step))
    total = torch.zeros(())
    for micro, (xs, ys) in enumerate(zip(x.chunk(accumulation), y.chunk(accumulation), strict=True)):
        engine.begin(last=micro == accumulation - 1)
        loss = ((engine.module(xs) - ys) ** 2).mean()
        engine.backward(loss)
        total += loss.detach() / accumulation
    assert engine.step(1e-2)[0]
    torch.distributed.all_reduce(total)
    return float(total / world)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("engines")
    together(worker, 2, folder)
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.fixture(scope="module")
def reference() -> tuple[list[float], dict]:
    """The same 20 steps by hand in one process."""
    model = net()
    deep = [p for p in model.parameters() if p.ndim == 2]
    flat = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": deep, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}], lr=1e-2, eps=EPS
    )
    losses = []
    for step in range(STEPS):
        x, y = data(step)
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_workers_step_as_one_hand_written_loop_does(
    found, reference, stage: int, accumulation: int
) -> None:
    losses, weights = reference
    assert found[f"{stage}/{accumulation}"] == pytest.approx(losses, abs=1e-5)
    for name, value in found[f"{stage}/{accumulation}/weights"].items():
        torch.testing.assert_close(value, weights[name], atol=1e-4, rtol=1e-4)
    assert losses[-1] < 0.8 * losses[0]


def test_gradients_meet_once_a_step_however_many_micro_batches_it_has(found) -> None:
    assert found["exchanges"] == [1, 1, 1, 1]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_with_a_non_finite_loss_leaves_every_weight_as_it_was(found, stage: int) -> None:
    assert found[f"{stage}/skipped"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_restored_engine_takes_the_next_steps_bitwise(found, stage: int) -> None:
    assert found[f"{stage}/resumed"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_gradient_bucket_is_no_larger_than_the_module(found, stage: int) -> None:
    """DeepSpeed lays it out whole on a GPU."""
    assert found[f"{stage}/bucket"] == sum(p.numel() for p in net().parameters())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_validation_changes_no_weight_that_is_kept_or_published(found, stage: int, precision: str) -> None:
    assert found[f"{stage}/{precision}/kept"] == {"same": True, "float32": True}
