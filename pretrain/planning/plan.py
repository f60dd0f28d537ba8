"""The plan of a run before it is paid for: data read, memory, time and cost, from its run file and the hours
of signal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from cluster.errors import PlethoraError
from cluster.session import memory_bytes
from datasets.plan import CorpusShare, Plan, steps_for
from datasets.windows import WindowSpec, grid
from pretrain.config import RunConfig
from pretrain.planning import local
from pretrain.planning.assume import HERE, Assumption, Assumptions, accelerators, assumptions
from pretrain.planning.memory import STAGES, Peak, largest_micro, peak
from pretrain.planning.probe import Cost, probe
from pretrain.planning.rehearse import rehearsal
from pretrain.planning.speed import step_time

GROUP_BYTES = 16e6  # samples in a row group, as ingest writes them
WORTH = 1.6  # minimum speed-up from doubling the GPUs; below it, the knee is passed
CURVE = tuple(2**k for k in range(11))


@dataclass(frozen=True)
class Work:
    """The work of a run, independent of the hardware."""

    hours: float
    windows: int  # accepted
    train_windows: int
    steps: int
    epochs: float
    patches: int  # tokens per window, 0 if the method has none
    raw_bytes: float  # read from the bucket per raw window, including row groups that are read again
    prepared_bytes: float  # per materialised window


@dataclass(frozen=True)
class Point:
    """The plan for one number of workers: seconds per step and in total, price in US dollars."""

    workers: int
    micro: int
    accumulation: int
    step_s: float
    compute_s: float
    run_s: float
    limit: str  # the bottleneck of a step
    price: float


@dataclass(frozen=True)
class Planned:
    """A complete plan, as `show` prints it."""

    run: RunConfig
    accelerator: str
    work: Work
    cost: Cost
    bf16: bool
    room: float  # bytes of one worker's memory that a run may fill
    memory: dict[int, Peak]  # by ZeRO stage
    prepare: float  # raw windows per second and core that an actor reads and, if it is to, prepares
    copy: float  # materialised windows per second and core
    chosen: dict[str, Point]  # by form of the corpus
    curve: dict[str, list[Point]]
    given: Assumptions
    refused: str = ""  # why the run does not fit, and what would
    fragments: float = field(default=1.0)

    def knee(self, form: str) -> Point | None:
        """The last point of the curve before a doubling gains less than `WORTH`; None without a curve."""
        points = self.curve[form]
        for few, many in pairwise(points):
            if few.run_s / many.run_s < WORTH ** np.log2(many.workers / few.workers):
                return few
        return points[-1] if points else None


def plan(
    run: RunConfig, hours: float, gpus: int | None, accelerator: str, assume: Sequence[str] = ()
) -> Planned:
    """Plan `run` over `hours` of signal on `gpus` accelerators of one kind (None: one per worker).

    accelerator: a name in accelerators.toml, or "here": this machine's CPU, timed by running steps. If the
    run does not fit, `refused` of the result gives the reason. Errors: PlethoraError if no plan can be made.
    """
    if not 0 < hours < float("inf"):
        raise PlethoraError(f"--hours {hours:g}: give the hours of signal, above 0")
    run = sized(run, gpus or run.most)
    recipe = rehearsal(run)
    spec = recipe.windows()
    given = assumptions(accelerator, spec, assume)
    bf16 = run.engine.precision == "bf16-autocast" or (run.engine.precision == "auto" and accelerator != HERE)
    cost = probe(recipe, bf16, run.most)
    native = {s.modality: given[f"native.{s.modality}"].value for s in spec.signals}
    work = _work(run, spec, hours, native, given, getattr(recipe, "config", None))
    laid = accelerator != HERE
    raw = run.stream.model_copy(update={"materialised": False})
    prepare = local.actor_rate(spec, native, raw.sends_raw("cuda" if laid else "cpu", spec), False)
    copy = local.copy_rate(spec)
    if laid:
        room = 1e9 * (given["gpu.memory_gb"].value - given["gpu.reserve_gb"].value)
        fragments = given["gpu.fragments"].value
    else:
        room, fragments = 0.9 * memory_bytes() / run.most, 1.0
    memory = {
        stage: peak(cost, stage, run.most, run.micro, run.accumulation, run.engine.offload, laid)
        for stage in STAGES
    }
    planned = Planned(
        run,
        accelerator,
        work,
        cost,
        bf16,
        room,
        memory,
        prepare,
        copy,
        {},
        {"raw": [], "materialised": []},
        given,
        _refusal(run, cost, memory, room, fragments, accelerator, laid),
        fragments,
    )
    if planned.refused:
        return planned
    if not laid:
        timed = local.steps(run, native)
        given["cpu.step_s"] = Assumption(
            timed.step,
            "s",
            f"a step of {run.most} worker(s), processor time, just measured here while windows are prepared",
        )
        planned.chosen["raw"] = _point_here(planned, timed)
        return planned
    for form in ("raw", "materialised"):
        planned.chosen[form] = _point(planned, run, form)
        for workers in sorted({*CURVE, run.most}):
            if run.batch % workers == 0:
                other = sized(run, workers)
                stage = other.engine.zero_stage
                asked = peak(cost, stage, workers, other.micro, other.accumulation, run.engine.offload)
                if asked.total * fragments > room:
                    share = run.batch // workers
                    fits = largest_micro(cost, stage, workers, share, room, fragments, run.engine.offload)
                    if not fits:
                        continue
                    other = other.model_copy(update={"micro_batch": fits})
                planned.curve[form].append(_point(planned, other, form))
    return planned


def sized(run: RunConfig, workers: int) -> RunConfig:
    """The run on `workers` workers. A micro-batch larger than a worker's share becomes the largest divisor of
    the share. PlethoraError when the batch does not divide over the workers.
    """
    if run.batch % workers:
        near = [n for n in range(1, 4 * workers) if run.batch % n == 0]
        best = min(near, key=lambda n: abs(n - workers))
        raise PlethoraError(
            f"batch = {run.batch} does not divide over {workers} GPUs: {best} would, or set another batch"
        )
    share, micro = run.batch // workers, run.micro_batch
    if micro is not None:
        micro = next(m for m in range(min(micro, share), 0, -1) if share % m == 0)
    return run.model_copy(update={"workers": workers, "micro_batch": micro})


def _work(
    run: RunConfig, spec: WindowSpec, hours: float, native: dict[str, float], given: Assumptions, config: Any
) -> Work:
    row_h = given["hours.row"].value
    a_row = len(grid(3600 * row_h, spec))
    windows = int(hours / row_h * a_row * given["accepted"].value)
    train = round(windows * (1 - run.split.val - run.split.test))
    an_epoch = run.epoch_windows or train
    steps = run.steps or steps_for(run.epochs or 0, an_epoch, run.batch)
    if train < run.batch or not steps:
        raise PlethoraError(
            f"{hours:g} h hold {train} windows of {spec.window_s:g} s to train on, less than one batch of "
            f"{run.batch}: more hours, or a smaller batch"
        )
    raw = sum(2 * s.channels * native[s.modality] for s in spec.signals) * spec.window_s
    again = reread(run, spec, raw, train)
    given["bucket.again"] = Assumption(
        again, "", f"times that a row group of {GROUP_BYTES / 1e6:g} MB is read, from the plan's order"
    )
    given["split.train"] = Assumption(
        train / windows, "", "share of windows to train on: 1 - split.val - split.test, by subject"
    )
    return Work(
        hours,
        windows,
        train,
        steps,
        steps * run.batch / an_epoch,
        int(getattr(config, "patches", 0)),
        raw * given["compression"].value * again,
        float(spec.bytes),
    )


def reread(run: RunConfig, spec: WindowSpec, raw: float, windows: int) -> float:
    """How often a row group is read per pass, from a real plan of such a corpus: two lanes read a row group
    if one ends inside it.
    """
    a_group = max(1, round(GROUP_BYTES / raw))
    counts = np.full(-(-windows // a_group), a_group)
    counts[-1] -= counts.sum() - windows
    stream = run.stream
    source = CorpusShare(counts, np.empty(0, np.int64))  # only the ledger needs names
    plan = Plan((source,), run.seed, run.batch, 1, run.most, 0, stream.lanes, stream.mixed, spec.bytes)
    return plan.reads(0, 0) / len(counts)


def _refusal(
    run: RunConfig,
    cost: Cost,
    memory: dict[int, Peak],
    room: float,
    fragments: float,
    accelerator: str,
    laid: bool,
) -> str:
    """Why the run's ZeRO stage and micro-batch do not fit, and what would; "" if they fit."""
    stage, share = run.engine.zero_stage, run.batch // run.most
    need = memory[stage].total * fragments
    if need <= room:
        return ""
    micro = largest_micro(cost, stage, run.most, share, room, fragments, run.engine.offload, laid)
    ways = [f"micro_batch = {micro}"] if micro else []
    ways += [f"engine.zero_stage = {s}" for s in STAGES if s > stage and memory[s].total * fragments <= room][
        :1
    ]
    if not micro and stage < 3:
        deeper = largest_micro(cost, 3, run.most, share, room, fragments, run.engine.offload, laid)
        ways += [f"engine.zero_stage = 3 with micro_batch = {deeper}"] if deeper else []
    if not micro and not run.engine.offload:
        deeper = largest_micro(cost, 3, run.most, share, room, fragments, True, laid)
        ways += (
            [f"engine.offload = true with engine.zero_stage = 3, micro_batch = {deeper}"] if deeper else []
        )
    larger = [n for n, a in accelerators().items() if 1e9 * a["memory_gb"] * 0.95 > need] if laid else []
    if larger:
        ways.append(f"--accelerator {min(larger, key=lambda n: accelerators()[n]['memory_gb'])}")
    out = "; or ".join(ways) or "no setting of this run file does: a smaller network"
    return (
        f"{run.name} cannot fit: micro_batch {run.micro} at ZeRO-{stage} takes {need / 1e9:.1f} GB a worker, "
        f"{'one ' + accelerator if laid else 'a share of this machine'} has {room / 1e9:.1f} GB to give. "
        f"The way out: {out}"
    )


def _around(planned: Planned, run: RunConfig, step_s: float, forward_s: float, cores: float) -> float:
    """Seconds of a whole run: its steps, start, indexing, validations and checkpoints."""
    work, given = planned.work, planned.given
    validations = 2 + work.steps // run.validate_every if run.validate_every else 0
    held_out = min(run.validate_windows, work.windows * run.split.val)
    checked = validations * held_out / run.most / run.micro * forward_s
    state = 12.0 * planned.cost.parameters
    saves = 1 + work.steps // run.checkpoint_every
    a_save = state / (1e9 * given["bucket.write_gb_s"].value) + given["checkpoint.commit_s"].value
    indexed = work.windows / (planned.prepare * cores)
    return given["start_s"].value + indexed + checked + saves * a_save + work.steps * step_s


def _point(planned: Planned, run: RunConfig, form: str) -> Point:
    """The plan of `run` on its number of accelerators, with the corpus in one `form` ("raw",
    "materialised")."""
    given, work = planned.given, planned.work
    accumulation = run.batch // run.most // run.micro
    stage = run.engine.zero_stage
    time_ = step_time(planned.cost, given, planned.bf16, stage, run.most, run.micro, accumulation)
    cores = max(1.0, given["gpu.cores"].value - 1) * run.most  # one core per GPU launches its kernels
    machines = -(-run.most // int(given["gpu.node"].value))
    a_core, size = (planned.prepare, work.raw_bytes) if form == "raw" else (planned.copy, work.prepared_bytes)
    limits = {
        "compute": time_.total,
        "CPU cores": run.batch / (a_core * cores),
        "the bucket": run.batch * size / (1e9 * given["bucket.node_gb_s"].value * machines),
    }
    if time_.talk > 0.5 * time_.total:
        limits["collectives"] = limits.pop("compute")
    limit = max(limits, key=lambda name: limits[name])
    forward = time_.compute / accumulation / 3
    seconds = _around(planned, run, limits[limit], forward, cores)
    price = seconds / 3600 * run.most * given["gpu.price_h"].value
    return Point(run.most, run.micro, accumulation, limits[limit], time_.total, seconds, limit, price)


def _point_here(planned: Planned, timed: local.Steps) -> Point:
    run, cores = planned.run, os.cpu_count() or 1
    shared = (run.most * timed.step + run.batch / planned.prepare) / cores  # if workers outnumber cores
    step = max(timed.step, shared)
    seconds = _around(planned, run, step, timed.forward, cores)
    return Point(run.most, run.micro, run.accumulation, step, timed.step, seconds, "this machine", 0.0)
