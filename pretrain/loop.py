"""The training loop: every worker of every run executes `train`. It knows no objective; recipes know no
engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster import redact, storage
from cluster.errors import PlethoraError
from datasets.ledger import expected
from datasets.stream import Actors, batches
from datasets.windows import WindowSpec
from pretrain import checkpoint, published
from pretrain.config import RunConfig
from pretrain.data import open_data
from pretrain.engine import Engine, wrap
from pretrain.fingerprint import Fingerprint
from pretrain.guard import Ended, Guard
from pretrain.layers import stepped
from pretrain.lineage import corpora
from pretrain.meters import Means, TrainedWindows, chunks
from pretrain.recipe import Recipe, StepResult, build, has
from pretrain.schedule import learning_rate
from pretrain.selection import Selection
from pretrain.transfer import arriving
from pretrain.watch import Watch


@dataclass
class State:
    """The loop's state in a checkpoint, besides the engines. Random draws need no state: they are keyed by
    step and window.
    """

    step: int = 0
    skipped: int = 0  # non-finite steps, in total and consecutive
    in_a_row: int = 0
    ledger: dict[str, list[int]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)  # validations
    selection: dict[str, Any] = field(default_factory=dict)


def train(config: dict[str, Any]) -> dict[str, Any]:
    """One worker of one run, from the last checkpoint (or the seed) to the published bundle.

    config: {"run": RunConfig as a dict, "known": Fingerprint as a dict, "token": of the folder's owner,
    "board": telemetry board, "actor_cpus": CPUs of each transform actor}.
    Returns {"bundle": uri, "stopped": why the run ended early, or ""} or, when every worker has agreed to
    give up, {"error": one line}; raising would make Ray repeat the same steps. If "damaged" names a
    checkpoint, the run can continue from the previous one.
    """
    try:
        return _train(config)
    except checkpoint.Damaged as damaged:
        return {"error": str(damaged), "damaged": damaged.checkpoint}
    except Ended as ended:
        return {"error": str(ended)}


def _check_description(name: str, recipe: Recipe, modules: Mapping[str, nn.Module], spec: WindowSpec) -> None:
    """Ended: the bundle would describe other input than the recipe trains on; told before the first step."""
    with torch.random.fork_rng(devices=[]):  # training draws as it would without this check
        found = recipe.encoder(modules)
    try:
        published.check(name, found, spec)
    except PlethoraError as wrong:
        raise Ended(str(wrong)) from wrong


def _train(config: dict[str, Any]) -> dict[str, Any]:
    import ray.train.torch

    from pretrain.leaving import Notice, leave

    redact.install()  # also covers what Ray logs for this worker
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    asked = RunConfig(**config["run"])
    run = asked.at(world)
    device = ray.train.torch.get_device()

    recipe = build(run.recipe, run.method, run.seed)
    guard = Guard(asked, Fingerprint(**config["known"]), config["token"], rank)
    guard.begin(recipe)
    data = open_data(run, recipe)
    guard.read([found.corpus for found in data.indexes])
    modules = recipe.modules()
    _check_description(run.recipe, recipe, modules, data.spec)
    frozen = {name: m.to(device) for name, m in recipe.frozen().items()}
    with checkpoint.last() as saved:
        state = State(**saved.state if saved else {})
        plan, selections = data.plan(state.step, world)
        as_raw = run.stream.sends_raw(device.type, data.spec)
        given = batches(  # starts to read while the engines are built
            plan,
            rank,
            selections,
            data.spec,
            run.micro,
            run.accumulation,
            Actors(run.stream.count, config["actor_cpus"], run.stream.self_read_mb, run.stream.on),
            as_raw,
        )
        engines = {
            name: wrap(name, m, run.optim_for(name), run.engine, run.micro, run.accumulation, device)
            for name, m in modules.items()
        }
        best = saved.load(engines) if saved else None
        stream = arriving(given, data.spec, device, as_raw)
    wrapped = {name: engine.module for name, engine in engines.items()}
    selection = Selection(run.select, state.selection, best)
    held_out = chunks(data.validation(rank, world), run.micro) if run.validate_every else []
    steps, epoch_steps = data.steps, data.epoch_steps
    tokens = recipe.tokens if has(recipe, "tokens") else 0
    watch = Watch(run, config["board"], steps, rank, state.step, tokens)
    watch.begin(data, wrapped, device)
    spec = data.spec
    learned_from = corpora(data) if rank == 0 else []
    del data  # gigabytes per worker for a large corpus (python -m tests.benchmarks.scale)
    means, seen = Means(), TrainedWindows(state.ledger)
    notice = Notice(device, guard, run.checkpoint_minutes)

    for step in range(state.step, state.step if selection.stopped else steps):
        micros = []
        for _ in range(run.accumulation):
            with watch.spending("data"):
                batch, there = next(stream)
            seen.add(batch)
            micros.append(there)
        rates = {
            name: learning_rate(run.optim_for(name), step, steps, epoch_steps, run.batch) for name in engines
        }
        applied, norms, results = optimize(
            recipe, engines, frozen, micros, step, rates, run.seed, rank, watch.forward
        )
        for result in results:
            means.add(result, run.micro)
        if applied:
            selection.trained(results, run.micro)

        state.step = step + 1
        state.in_a_row = 0 if applied else state.in_a_row + 1
        state.skipped += not applied
        if not applied:
            watch.skipped(step, torch.cat([batch["window"] for batch in micros]))
            if state.in_a_row >= run.max_nonfinite:
                return {"error": stopped(run, step)}

        watch.step(state.step, run.batch)
        last = state.step == steps
        if state.step % run.log_every == 0 or last:
            logged, _ = means.reduce(device)
            logged |= {f"lr/{name}": rate for name, rate in rates.items()}
            logged |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
            watch.log(state.step, logged | {"skipped_steps": float(state.skipped)})
        if held_out and (state.step == 1 or state.step % run.validate_every == 0 or last):
            with watch.spending("validation"):
                found, figures = validate(recipe, wrapped, frozen, held_out, step, device)
                watch.validated(state.step, found, figures)
            state.history.append({"step": float(state.step)} | found)
            if config.get("report"):  # on every rank, or Ray waits for the others
                ray.train.report({"step": state.step, "steps": steps, "figures": found})
            try:
                selection.validated(
                    state.step, found, lambda: {n: e.weights() for n, e in engines.items()}, last
                )
            except PlethoraError as error:
                return {"error": str(error)}
        leaving = notice.given() and not last
        if state.step % run.checkpoint_every == 0 or notice.due or last or selection.stopped or leaving:
            selection.merge()
            state.ledger, state.selection = seen.merge(), selection.state
            with watch.spending("checkpoint"):
                guard.saving()
                watch.flush()
                checkpoint.save(engines, vars(state), rank, {}, selection.weights)
            watch.checkpointed(state.step)
            notice.checkpointed()
        if selection.stopped:
            break
        if leaving:
            leave(run.name, state.step)

    watch.close()
    if seen.all != expected(plan, state.step):
        raise PlethoraError(
            f"run {run.name}: the ledger of windows seen does not match the plan; report this"
        )
    weights = {name: engine.weights() for name, engine in engines.items()}
    if rank != 0:
        return {}
    weights = selection.weights or weights
    from pretrain import publish  # imports ONNX and matplotlib, which one rank needs once

    selected = {k: v for k, v in selection.state.items() if k in ("step", "value", "stopped")}
    chosen = {"metric": run.select.metric} | selected if selection.on else None
    trained = publish.Trained(weights, learned_from, spec, state.history, state.ledger, watch.plots, chosen)
    uri = publish.publish(asked, recipe, trained)
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
    forward: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[bool, dict[str, float], list[StepResult]]:
    """One optimizer step of every module over this rank's micro-batches. Each call of `losses` runs inside a
    `forward()` context.

    Returns (whether every engine applied the step, gradient norm by module, one detached result per
    micro-batch).
    """
    wrapped = {name: engine.module for name, engine in engines.items()}
    parts = [part for module in wrapped.values() for part in stepped(module)]

    def losses(number: int) -> StepResult:
        seed_dropout(seed, step, number, rank)
        for engine in engines.values():
            engine.begin(last=number == len(micros) - 1)
        with forward():
            return recipe.losses(wrapped, frozen, micros[number], step)

    results = []
    for number in range(len(micros)):
        result = losses(number)
        if any(part.waits for part in parts):  # only at a step's first micro-batch, on all ranks alike
            for other in range(1, len(micros)):
                losses(other)
            for part in parts:
                part.start()
            result = losses(number)
        finite = all_finite(result.losses)
        for name, engine in engines.items():
            engine.backward(result.losses[name] * finite)
            result.losses[name] = result.losses[name].detach()  # frees the graph before the next micro-batch
        results.append(result)
    for part in parts:
        part.move()  # an engine that skips its step restores the old state
    applied, norms = True, {}
    for name, engine in engines.items():
        done, norms[name] = engine.step(rates[name])
        applied &= done
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
    """(metrics over all ranks' held-out windows, plots of this rank's first batch)."""
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
    """1 if every loss of every rank is finite, else NaN: as a factor on the losses, it makes every engine
    skip the step together.
    """
    good = torch.isfinite(torch.stack([loss.detach() for loss in losses.values()])).all().float()
    dist.all_reduce(good, op=dist.ReduceOp.MIN)
    return torch.where(good > 0, 1.0, torch.nan)


def seed_dropout(*key: int) -> None:
    """Seed the global generator, which only dropout uses, so that checkpoints need not store its state."""
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
