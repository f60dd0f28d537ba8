"""The driver's side of a run: check, index, start the workers, watch, report."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import owner, session, storage, telemetry, terms
from cluster.durable import durable
from cluster.errors import PlethoraError, user_message
from datasets.ledger import expected
from pretrain import checkpoint, fingerprint
from pretrain.config import RunConfig
from pretrain.data import Data, open_data
from pretrain.fingerprint import Fingerprint
from pretrain.lineage import corpora, inherited
from pretrain.planning.actors import with_actors
from pretrain.recipe import Recipe, build


def launch(run: RunConfig, resume: bool = False, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Train `run` and publish its bundle. Returns {"bundle", "steps", "metrics", "resumed_from", "stopped"}.

    resume: continue from the run's last committed checkpoint (from the start if there is none), with the
    settings that the run started with; without it, an existing run is an error. callbacks: Ray Train
    callbacks; when there are any, each validation is reported to them as {"step", "steps", "figures": {name:
    value}}. Errors: PlethoraError for what a user can fix.
    """
    run = with_actors(located(run))
    home = storage.join(run.storage, run.name)
    outside_bundles(run)
    recipe = build(run.recipe, run.method, run.seed)
    bundle = storage.join(home, "bundle")
    if not resume and (checkpoint.begun(home) or storage.exists(bundle)):
        raise PlethoraError(
            f"run {run.name} exists in {run.storage}: go on with --resume, or give another name"
        )
    now = fingerprint.of(run, recipe)
    if storage.exists(storage.join(bundle, "_COMPLETE")):
        before = began_as(run)
        found = None if before is None else fingerprint.compare(run.name, before, now, lengthen=False)
        say(f"run {run.name} is complete")
        if found and found.changed:
            say(f"run {run.name} trains no more, so this has no effect: {found}")
        metrics = storage.read_json(storage.join(bundle, "metrics.json"))
        return {"bundle": bundle, "metrics": metrics["last"], "resumed_from": None}
    with owner.owned(home) as token:
        return _owned(run, recipe, now, token, callbacks)


def _owned(
    run: RunConfig, recipe: Recipe, now: Fingerprint, token: str, callbacks: Sequence[Any]
) -> dict[str, Any]:
    """`launch` while this process owns the run's folder, so nothing else changes the state found there."""
    home = storage.join(run.storage, run.name)
    bundle = storage.join(home, "bundle")
    before = began_as(run) if checkpoint.begun(home) else None
    resumed = None if before is None else fingerprint.compare(run.name, before, now)
    for line in checkpoint.mend(home):
        say(f"run {run.name}: {line}")
    start = checkpoint.committed(home) or 0
    for name in checkpoint.collect(home):
        say(f"run {run.name}: removed {name}, which was never committed")
    if resumed and resumed.changed:
        say(f"run {run.name} goes on with changes after step {start}: {resumed}")

    asked = run.resources
    workers = run.fewest if asked.gpu else run.most
    with session.session(workers, run.stream.count, asked.gpu, asked.cpu, run.fewest) as ray:
        session.require_labels(ray, run.stream.on, run.fewest * run.stream.count)
        data = open_data(run, recipe)
        if resumed and resumed.longer and before is not None:
            say(lengthened(run, data, before, now, start))
        if before is None and start and not same_so_far(run, data, start):
            raise PlethoraError(
                f"run {run.name} was begun as another run, or by an older Plethora, whose plan has another "
                "order: go on with what it began with, or give another name"
            )
        terms.check([*corpora(data), *inherited(run)], bundle)  # before training is paid for, not after
        fingerprint.write(home, now)
        for line in summary(run, recipe, data, start):
            say(line)
        steps = data.steps
        del data  # gigabytes for a large corpus, and not needed again here
        value = trained(run, now, token, steps, callbacks)
    for name in checkpoint.collect(home):  # left by workers that died during the run
        say(f"run {run.name}: removed {name}, which was never committed")
    metrics = storage.read_json(storage.join(bundle, "metrics.json"))
    return {
        "bundle": value["bundle"],
        "steps": steps,
        "resumed_from": start or None,
        "metrics": metrics["last"],
        "stopped": value.get("stopped", ""),
    }


def trained(
    run: RunConfig, known: Fingerprint, token: str, steps: int, callbacks: Sequence[Any]
) -> dict[str, Any]:
    """Run the workers to the end and return their result. A damaged checkpoint is dropped and training
    continues from the previous one. `max_failures` counts failures since the last checkpoint; Ray alone would
    count them over a run of weeks. PlethoraError: the workers gave up, with the reason.
    """
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    home = storage.join(run.storage, run.name)
    board = telemetry.make_board()
    loop_config = {"known": known.model_dump(mode="json"), "token": token, "board": board}
    with board.render(run.name, steps):
        while True:
            before = checkpoint.committed(home) or 0
            try:
                value = fitted(trainer(run, loop_config, callbacks), run).return_value or {}
            except (TrainingFailedError, PlethoraError) as error:
                now = checkpoint.committed(home) or 0
                orphaned = isinstance(
                    error.__cause__, RayActorError
                )  # its resources stay taken until we exit
                if orphaned or not run.max_failures or now <= before:
                    raise
                say(f"run {run.name}: failed, but got from step {before} to {now} since it started: going on")
                continue
            if "damaged" not in value:
                break
            checkpoint.drop(home, value["damaged"])
            say(
                f"run {run.name}: skipped {value['damaged']}, which is damaged ({value['error']}): going on "
                f"after step {checkpoint.committed(home)}"
            )
    if "error" in value:
        raise PlethoraError(value["error"])
    if value.get("stopped"):
        say(f"run {run.name}: {value['stopped']}")
    return value


def began_as(run: RunConfig) -> Fingerprint | None:
    """The settings that an existing run started with; None, with a notice, if none are recorded."""
    found = fingerprint.read(home := storage.join(run.storage, run.name))
    if found is None:
        say(f"run {run.name}: {home} has no {fingerprint.FILE} with its settings; assuming the same run")
    return found


def outside_bundles(run: RunConfig) -> None:
    """PlethoraError when the run's folder lies inside a published bundle, which would no longer verify."""
    place = storage.normalise(run.storage)
    for part in ("", *run.name.split("/")):
        place = storage.join(place, part)
        if storage.exists(storage.join(place, "_COMPLETE")):
            raise PlethoraError(
                f"run {run.name} would write into what is published at {place}: give another name or storage"
            )


def same_so_far(run: RunConfig, data: Data, start: int) -> bool:
    """Whether the ledger of the run's checkpoint matches the first `start` steps of its plan."""
    plan, _ = data.plan(0, 1)
    planned = {f"{source}/{pass_}": list(n) for (source, pass_), n in expected(plan, start).items()}
    return planned == checkpoint.ledger(storage.join(run.storage, run.name))


def lengthened(run: RunConfig, data: Data, before: Fingerprint, now: Fingerprint, start: int) -> str:
    """The log line about a run that is extended. PlethoraError: the longer plan has other windows in the
    completed steps.
    """
    if start and not same_so_far(run, data, start):
        raise PlethoraError(
            f"run {run.name} cannot grow from {before.length} to {now.length}: its {start} completed steps "
            f"would have had other windows; end it with {before.length}, or give another name"
        )
    return (
        f"run {run.name} grows from {before.length} to {now.length}: its {start} steps are the same in both "
        "plans, the learning rate follows the longer schedule from here on"
    )


def located(run: RunConfig) -> RunConfig:
    """The run with absolute URIs, because each worker has its own current directory. In [method], strings
    that name a bundle or a weights file (a frozen tokenizer, a teacher) are URIs."""

    def named(value: object) -> bool:
        if not isinstance(value, str) or not value:
            return False
        return storage.exists(storage.join(value, "_COMPLETE")) or (
            bool(Path(value).suffix) and Path(value).is_file()
        )

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [absolute(inner) for inner in value]
        return storage.normalise(value) if named(value) else value

    corpus = {storage.normalise(uri): weight for uri, weight in run.corpora.items()}
    method = absolute(run.method)
    return run.model_copy(
        update={"corpus": corpus, "method": method, "storage": storage.normalise(run.storage)}
    )


def trainer(run: RunConfig, loop_config: Mapping[str, Any], callbacks: Sequence[Any] = ()) -> Any:
    """The TorchTrainer of a run; `loop_config`: what `loop.train` needs besides the run itself. Each worker
    builds its own dataset and plans the remaining steps from the checkpoint that it restored, so steps after
    that checkpoint are repeated."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from pretrain.leaving import SigtermNotice
    from pretrain.loop import train
    from pretrain.rendezvous import Rendezvous

    loop: Any = train  # Ray's annotation does not allow the loop to return a value
    hooks: Any = [SigtermNotice(), *callbacks]  # Ray's annotation names another class than Ray accepts
    filesystem, path = durable(run.storage)
    # An elastic run starts as many workers as fit. A worker's share then includes the CPUs of its transform
    # actors; otherwise workers would take every CPU and starve their stream. (With GPUs, the GPUs limit it.)
    shared = run.elastic and not run.resources.gpu
    if run.elastic:
        # Just after a machine dies, Ray still counts it and plans workers that do not fit. It waits this long
        # (60 s by default) before it counts again.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    return TorchTrainer(
        loop,
        train_loop_config={
            **loop_config,
            "run": run.model_dump(),
            "actor_cpus": float(not shared),
            "report": bool(callbacks),
        },
        torch_config=Rendezvous(backend="nccl" if run.resources.gpu else "gloo"),
        scaling_config=session.scaling(
            run.workers,
            run.resources.gpu,
            run.resources.cpu + run.stream.count * shared,
            run.resize_every_s,
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=run.keep_checkpoints),
            callbacks=hooks,
        ),
    )


def fitted(trainer: Any, run: RunConfig) -> Any:
    """`trainer.fit()`. What a user can fix (a full disk, a store that is down, a lost machine) becomes one
    PlethoraError; a bug keeps its traceback.
    """
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

    try:
        return trainer.fit()
    except RayActorError as error:
        raise PlethoraError(
            f"run {run.name}: the process that watches its workers is gone: go on with --resume"
        ) from error
    except TrainingFailedError as error:
        causes: list[Any] = []
        if isinstance(error, WorkerGroupError):
            causes = list(error.worker_failures.values())
        elif isinstance(error, ControllerError):
            causes = [error.controller_failure]
        known = [c for c in causes if isinstance(c, PlethoraError) or storage.is_full_or_away(c)]
        if not known:  # a bug: the traceback shows where
            raise
        lines = user_message(known[0]) or " ".join(str(known[0]).split())
        raise PlethoraError(
            f"run {run.name} stopped: {lines}; once that is fixed, go on with --resume"
        ) from error


def summary(run: RunConfig, recipe: Recipe, data: Data, start: int) -> list[str]:
    """A human-readable summary of the run that is about to start, one line per entry."""
    import torch

    with torch.device("meta"):  # counts without memory
        modules = {name: list(m.parameters()) for name, m in recipe.modules().items()}
    counts_of = {
        name: (sum(p.numel() for p in ps if p.requires_grad), sum(p.numel() for p in ps))
        for name, ps in modules.items()
    }
    shards = "DDP" if run.engine.zero_stage == 0 else f"DeepSpeed ZeRO-{run.engine.zero_stage}"
    counts = {
        side: [len(data.selection(i, side)) for i in range(len(data.indexes))]
        for side in ("train", "val", "test")
    }
    accepted = [len(i.selection(None, run.split)) for i in data.indexes]
    unlabelled = [n - len(data.selection(i, None)) for i, n in enumerate(accepted)]
    workers = f"{run.fewest} to {run.most}" if run.elastic else f"{run.most}"
    return [
        f"run        {run.name}: {run.recipe} on {shards}, {workers} worker(s), seed {run.seed}",
        *(
            f"module     {name}: {n / 1e6:.2f} M parameters"
            + (f", {trained:,} of them ({trained / n:.1%}) train" if trained < n else "")
            for name, (trained, n) in counts_of.items()
        ),
        *(
            f"corpus     {uri}: {train} windows to train on, {val} to validate, {test} kept for tests"
            for uri, train, val, test in zip(run.corpora, *counts.values(), strict=True)
        ),
        *(
            f"labels     {uri}: {lacking} of {n} windows have none that the run asks for and are left out"
            for uri, lacking, n in zip(run.corpora, unlabelled, accepted, strict=True)
            if data.targets is not None
        ),
        f"steps      {data.steps} of {run.batch} windows ({data.epoch_steps:.1f} an epoch)"
        + (f", resuming after {start}" if start else ""),
    ]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def index(run: RunConfig) -> dict[str, Any]:
    """Build the window index of every corpus. Returns {"corpora": [{uri, windows, verdicts, windows per
    split, counts of optional and turned signals}]}."""
    run = located(run)
    recipe = build(run.recipe, run.method, run.seed)
    with session.session(0, 2):
        data = open_data(run, recipe)
    out = []
    for number, (found, uri) in enumerate(zip(data.indexes, run.corpora, strict=True)):
        signals = found.summary()
        verdicts = signals.pop("windows")
        sides = {side: len(data.selection(number, side)) for side in ("train", "val", "test")}
        out.append({"uri": uri, "windows": found.windows, "verdicts": verdicts, **sides, "signals": signals})
        say(f"{uri}: {found.windows} windows, {verdicts}; {sides}{f'; {signals}' if signals else ''}")
    return {"corpora": out}
