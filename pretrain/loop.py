"""THE loop: every worker of every run goes through `train`. It knows no objective; recipes know no engine."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster import storage, telemetry
from cluster.errors import PlethoraError
from datasets.stream import batches, dataset
from pretrain import checkpoint
from pretrain.config import RunConfig
from pretrain.data import open_data
from pretrain.engine import Engine, wrap
from pretrain.meters import Means, Seen, chunks
from pretrain.recipe import Recipe, StepResult, build
from pretrain.schedule import learning_rate
from pretrain.selection import Selection


@dataclass
class State:
    """What a checkpoint holds beside the engines. Randomness needs no state: it is keyed by step and
    window.
    """

    step: int = 0
    skipped: int = 0  # non-finite steps, and those in a row
    in_a_row: int = 0
    ledger: dict[str, list[int]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)  # of validation
    selection: dict[str, Any] = field(default_factory=dict)


def train(config: dict[str, Any]) -> dict[str, Any]:
    """One worker of one run, from the last checkpoint (or the seed) to the published bundle.

    config: {"run": RunConfig as a dict, "board": telemetry board}. Returns {"bundle": uri, "stopped": why the
    run ended early, or ""} or, where every worker agreed to give up, {"error": one line}: raising would make
    Ray start the same steps again.
    """
    import ray.train.torch

    run = RunConfig(**config["run"])
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()

    recipe = build(run.recipe, run.method, run.seed)
    data = open_data(run, recipe)
    modules, frozen = recipe.modules(), {name: m.to(device) for name, m in recipe.frozen().items()}
    engines = {
        name: wrap(name, m, run.optim_for(name), run.engine, run.micro, run.accumulation, device)
        for name, m in modules.items()
    }
    wrapped = {name: engine.module for name, engine in engines.items()}
    restored, best = checkpoint.restore(engines)
    state = State(**(restored or {}))
    selection = Selection(run.select, state.selection, best)
    plan, shelves = data.plan(state.step, world)
    windows = dataset(plan, rank, shelves, data.spec, run.stream.actors)
    stream = batches(windows, run.micro, state.step, run.accumulation)
    held_out = chunks(data.validation(rank, world), run.micro) if run.validate_every else []
    watch = Watch(run, config["board"], data.steps, rank, state.step)
    means, seen = Means(), Seen(state.ledger)

    for step in range(state.step, state.step if selection.stopped else data.steps):
        micros = []
        for _ in range(run.accumulation):
            with watch.waiting():
                micros.append({name: x.to(device) for name, x in next(stream).items()})
        rates = {
            name: learning_rate(run.optim_for(name), step, data.steps, data.epoch_steps, run.batch)
            for name in engines
        }
        applied, norms, results = optimize(recipe, engines, frozen, micros, step, rates, run.seed, rank)
        for batch, result in zip(micros, results, strict=True):
            means.add(result, run.micro)
            seen.add(batch)
        if applied:
            selection.trained(results, run.micro)

        state.step = step + 1
        state.in_a_row = 0 if applied else state.in_a_row + 1
        state.skipped += not applied
        if not applied:
            watch.skipped(step, torch.cat([batch["window"] for batch in micros]))
            if state.in_a_row >= run.max_nonfinite:
                return {"error": stopped(run, step)}

        watch.step(run.batch)
        last = state.step == data.steps
        if state.step % run.log_every == 0 or last:
            logged, _ = means.reduce(device)
            logged |= {f"lr/{name}": rate for name, rate in rates.items()}
            logged |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
            watch.log(state.step, logged | {"skipped_steps": float(state.skipped)})
        if held_out and (state.step == 1 or state.step % run.validate_every == 0 or last):
            found, figures = validate(recipe, wrapped, frozen, held_out, step, device)
            state.history.append({"step": float(state.step)} | found)
            watch.validated(state.step, found, figures)
            try:
                selection.validated(
                    state.step, found, lambda: {n: e.weights() for n, e in engines.items()}, last
                )
            except PlethoraError as error:
                return {"error": str(error)}
        if state.step % run.checkpoint_every == 0 or last or selection.stopped:
            selection.merge()
            state.ledger, state.selection = seen.merge(), selection.told
            watch.flush()
            checkpoint.save(engines, vars(state), rank, {}, selection.weights)
        if selection.stopped:
            break

    watch.close()
    expected = data.plan(0, world)[0].expected(state.step)
    if seen.all != expected:
        raise PlethoraError(
            f"run {run.name}: the ledger of windows seen does not match the plan; report this"
        )
    weights = {name: engine.weights() for name, engine in engines.items()}
    if rank != 0:
        return {}
    weights = selection.weights or weights
    from pretrain import publish  # ONNX and matplotlib: needed once, by one rank

    selected = {k: v for k, v in selection.told.items() if k in ("step", "value", "stopped")}
    uri = publish.publish(
        run, recipe, weights, data, state.history, state.ledger, watch.plots,
        {"metric": run.select.metric} | selected if selection.on else {},
    )  # fmt: skip
    return {"bundle": uri, "stopped": selection.stopped}


def optimize(
    recipe: Recipe,
    engines: Mapping[str, Engine],
    frozen: Mapping[str, nn.Module],
    micros: list[dict[str, Tensor]],
    step: int,
    rates: Mapping[str, float],
    seed: int,
    rank: int,
) -> tuple[bool, dict[str, float], list[StepResult]]:
    """One optimizer step of every module over this rank's micro-batches.

    Returns (whether every engine applied it, gradient norm by module, one detached result a micro-batch).
    """
    wrapped = {name: engine.module for name, engine in engines.items()}
    results = []
    for number, batch in enumerate(micros):
        seed_dropout(seed, step, number, rank)
        result = recipe.losses(wrapped, frozen, batch, step)
        finite = all_finite(result.losses)
        for name, engine in engines.items():
            engine.backward(result.losses[name] * finite, last=number == len(micros) - 1)
            result.losses[name] = result.losses[name].detach()  # frees the graph before the next micro-batch
        results.append(result)
    applied, norms = True, {}
    for name, engine in engines.items():
        stepped, norms[name] = engine.step(rates[name])
        applied &= stepped
    return applied, norms, results


@torch.no_grad()
def validate(
    recipe: Recipe,
    wrapped: Mapping[str, nn.Module],
    frozen: Mapping[str, nn.Module],
    held_out: list[dict[str, Tensor]],
    step: int,
    device: torch.device,
) -> tuple[dict[str, float], dict[str, Any]]:
    """(figures of merit over every rank's held-out windows, plots of this rank's first batch)."""
    for module in wrapped.values():
        module.eval()
    means = Means()
    figures: dict[str, Any] = {}
    for number, chunk in enumerate(held_out):
        batch = {name: x.to(device) for name, x in chunk.items()}
        batch["step"] = torch.full_like(batch["window"], step)
        result = recipe.losses(wrapped, frozen, batch, step)
        means.add(result, len(batch["window"]))
        figures = result.figures if number == 0 else figures
    found, counts = means.reduce(device)
    for module in wrapped.values():
        module.train()
    return found | recipe.summary(counts), figures


def all_finite(losses: Mapping[str, Tensor]) -> Tensor:
    """1 where every loss of every rank is finite, else NaN: a factor that makes every engine skip the step
    alike.
    """
    good = torch.isfinite(torch.stack([loss.detach() for loss in losses.values()])).all().float()
    dist.all_reduce(good, op=dist.ReduceOp.MIN)
    return torch.where(good > 0, 1.0, torch.nan)


def seed_dropout(*key: int) -> None:
    """Seed the global generator, which only dropout draws from, so that it needs no state in a checkpoint."""
    mixed = 0
    for part in key:
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 1) % 2**63
    torch.manual_seed(mixed)


def stopped(run: RunConfig, step: int) -> str:
    return (
        f"run {run.name} stopped at step {step + 1}: {run.max_nonfinite} steps in a row had a non-finite "
        f"loss or gradient (their windows are in {storage.join(run.storage, run.name, 'telemetry')}); "
        f"lower optim.lr, or look at those windows; --resume goes on from the last good checkpoint"
    )


class Watch:
    """What people see of a run: rank 0 writes telemetry and moves the driver's progress bar."""

    def __init__(self, run: RunConfig, board: Any, steps: int, rank: int, start: int) -> None:
        self.board, self.steps, self.rank = board, steps, rank
        self.uri = storage.join(run.storage, run.name, "telemetry")
        self.writer = telemetry.Telemetry(self.uri, start_step=start + 1) if rank == 0 else None
        self.waited, self.windows, self.since = 0.0, 0, time.perf_counter()
        self.shown: dict[str, Any] = {}
        self.plots: dict[str, bytes] = {}  # the last validation's figures, PNG

    def waiting(self) -> Watch:
        """`with watch.waiting():` counts as waiting for data."""
        return self

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.waited += time.perf_counter() - self.began

    def step(self, windows: int) -> None:
        self.windows += windows

    def log(self, step: int, values: dict[str, float]) -> None:
        passed = time.perf_counter() - self.since
        values |= {"windows_per_s": self.windows / passed, "data_wait": self.waited / passed}
        self.waited, self.windows, self.since = 0.0, 0, time.perf_counter()
        if self.writer is not None:
            self.writer.scalars(step, {f"train/{n}": v for n, v in values.items()})
            losses = {n.removeprefix("loss/"): v for n, v in values.items() if n.startswith("loss/")}
            self.shown |= losses
            self.shown |= {"data wait": f"{values['data_wait']:.0%}"}
            telemetry.put(self.board, step, self.steps, self.shown)

    def validated(self, step: int, values: dict[str, float], figures: Mapping[str, Any]) -> None:
        if self.writer is None:
            return
        self.writer.scalars(step, {f"val/{n}": v for n, v in values.items()})
        losses = {n.removeprefix("loss/"): v for n, v in values.items() if n.startswith("loss/")}
        self.shown |= {f"val {name}": value for name, value in losses.items()}
        for name, draw in figures.items():
            figure, png = draw(), io.BytesIO()
            figure.savefig(png, format="png", dpi=120)
            self.plots[name] = png.getvalue()
            self.writer.figure(step, name, figure)

    def skipped(self, step: int, windows: Tensor) -> None:
        ids = [torch.empty_like(windows) for _ in range(dist.get_world_size())]
        dist.all_gather(ids, windows)
        if self.rank == 0:
            named = [f"{i & (2**64 - 1):016x}" for i in torch.cat(ids).tolist()]
            storage.write_json(
                storage.join(self.uri, f"nonfinite-{step}.json"), {"step": step, "windows": named}
            )

    def flush(self) -> None:
        """All that was told is stored before the checkpoint that a resumed run would go on from."""
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            telemetry.put(self.board, self.steps, self.steps, self.shown | {"now": "publishing"})
            self.writer.close()
