"""A plan as text for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pretrain.planning.actors import needed
from pretrain.planning.assume import HERE
from pretrain.planning.memory import STAGES
from pretrain.planning.plan import Planned, Point


def text(planned: Planned) -> Iterator[str]:
    """Lines for a terminal."""
    run, work, cost = planned.run, planned.work, planned.cost
    where = "this machine's CPU" if planned.accelerator == HERE else planned.accelerator
    yield f"{run.name}: {run.recipe} on {run.most} x {where}, {work.hours:,.0f} h of signal"
    yield ""
    yield f"windows      {work.windows:,}, of them {work.train_windows:,} to train on" + (
        f"; {work.patches} tokens each, {work.train_windows * work.patches / 1e6:,.0f} M an epoch"
        if work.patches
        else ""
    )
    yield f"steps        {work.steps:,} of {run.batch:,} windows, {work.epochs:.1f} epochs"
    parts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in cost.trained.items())
    yield (
        f"network      {parts} parameters; {cost.flops / 1e9:.1f} GFLOP and {cost.moved / 1e6:.0f} MB moved "
        f"a window, {len(cost.kernels):,} kernels a micro-batch ({'bf16' if planned.bf16 else 'fp32'})"
    )
    yield ""
    yield from _memory(planned)
    if planned.refused:
        return
    yield ""
    yield from _stream(planned)
    yield ""
    for form, point in planned.chosen.items():
        yield (
            f"time         {form}: {_clock(point.run_s)}"
            + (
                f", {point.run_s / 3600 * point.workers:,.0f} GPU-hours, US$ {point.price:,.0f}"
                if point.price
                else ""
            )
            + f" ({1000 * point.step_s:,.0f} ms a step, waits for {point.limit})"
        )
    for form, points in planned.curve.items():
        if points:
            yield ""
            yield from _curve(planned, form, points)


def assumed(planned: Planned) -> Iterator[str]:
    """The plan's assumptions, one per line."""
    yield "what this rests on (--assume NAME=VALUE replaces one):"
    for name, a in sorted(planned.given.items()):
        yield f"  {name:<20} {a.value:>10,.4g} {a.unit:<10} {a.why}"
    here = (
        (planned.prepare, "windows/s", "a core reads and prepares from raw samples"),
        (planned.copy, "windows/s", "a core copies from materialised windows"),
        (
            planned.cost.flops / 1e9,
            "GFLOP",
            "per window; like memory, from micro-batches of 2 and 6 windows run on this CPU",
        ),
    )
    for value, unit, what in here:
        yield f"  {'measured here':<20} {value:>10,.4g} {unit:<10} {what}"


def _memory(planned: Planned) -> Iterator[str]:
    run = planned.run
    yield (
        f"memory       GB a worker at micro_batch {run.micro}, accumulation {run.accumulation}; "
        f"{planned.room / 1e9:.1f} GB to give"
    )
    yield "             stage       kept   held   scratch   update    peak"
    for stage in STAGES:
        m = planned.memory[stage]
        total = m.total * planned.fragments
        fits = "fits" if total <= planned.room else "DOES NOT FIT"
        name = "DDP" if stage == 0 else f"ZeRO-{stage}"
        mark = "  <- the run's" if stage == run.engine.zero_stage else ""
        figures = [m.kept, m.held, m.scratch, m.update]
        yield (
            f"             {name:<8} "
            + " ".join(f"{x / 1e9:7.2f}" for x in figures)
            + f"  {total / 1e9:7.2f}  {fits}{mark}"
        )


def _stream(planned: Planned) -> Iterator[str]:
    work, run = planned.work, planned.run
    passes = work.steps * run.batch
    speed = run.batch / next(iter(planned.chosen.values())).compute_s
    yield f"stream       {speed:,.0f} windows/s keep the workers busy"
    lanes = max(1, run.stream.lanes // run.most)
    many = {rate: needed(speed / run.most, rate, lanes) for rate in (planned.prepare, planned.copy)}
    yield (
        f"             stream.actors = {many[planned.prepare]} a worker from raw, {many[planned.copy]} from "
        f'materialised ("auto" takes as many)'
    )
    yield (
        f"             raw: {speed / planned.prepare:,.1f} cores, {speed * work.raw_bytes / 1e6:,.0f} MB/s; "
        f"{passes * work.raw_bytes / 1e12:,.2f} TB read in all"
    )
    yield (
        f"             materialised: {speed / planned.copy:,.1f} cores, "
        f"{speed * work.prepared_bytes / 1e6:,.0f} MB/s; {passes * work.prepared_bytes / 1e12:,.2f} TB read "
        f"in all, {work.windows * work.prepared_bytes / 1e12:,.2f} TB to keep"
    )


def _curve(planned: Planned, form: str, points: list[Point]) -> Iterator[str]:
    knee = planned.knee(form)
    yield f"GPUs         micro   ms/step        time   GPU-hours      US$  waits for       ({form})"
    for point in points:
        mark = "  <- knee" if point == knee else ""
        hours = point.run_s / 3600 * point.workers
        yield (
            f"{point.workers:>6}       {point.micro:>5}  {1000 * point.step_s:>8,.0f}"
            f"  {_clock(point.run_s):>10}  {hours:>10,.0f}  {point.price:>7,.0f}  {point.limit}{mark}"
        )


def _clock(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 3 * 86400 else f"{seconds / 86400:.1f} days"


def as_json(planned: Planned) -> dict[str, Any]:
    """The plan as one JSON object; "ok" is false when the run does not fit."""
    run, work, cost = planned.run, planned.work, planned.cost
    knees = {form: planned.knee(form) for form in planned.curve}
    return {
        "ok": not planned.refused,
        "refused": planned.refused,
        "run": run.name,
        "accelerator": planned.accelerator,
        "workers": run.most,
        "micro_batch": run.micro,
        "accumulation": run.accumulation,
        **asdict(work),
        "tokens": work.steps * run.batch * work.patches,
        "parameters": cost.trained,
        "flops_a_window": cost.flops,
        "room_bytes": planned.room,
        "memory_bytes": {str(s): m.total * planned.fragments for s, m in planned.memory.items()},
        "prepare_windows_per_s_core": planned.prepare,
        "copy_windows_per_s_core": planned.copy,
        "chosen": {form: asdict(point) for form, point in planned.chosen.items()},
        "curve": {form: [asdict(p) for p in points] for form, points in planned.curve.items()},
        "knee": {form: point.workers if point else None for form, point in knees.items()},
        "assumptions": {name: asdict(a) for name, a in planned.given.items()},
    }
