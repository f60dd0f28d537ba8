"""Sharded checkpoints through Ray Train: every rank saves its shard and a manifest of file hashes.

A checkpoint is valid once Ray's controller has committed it (`committed`). DeepSpeed's files are pickles, so
they are opened only from the run's folder, and only after every file matches its manifest.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pydantic

from cluster import s3, storage
from cluster.errors import PlethoraError
from cluster.scratch import filling, scratch
from pretrain.guard import Ended

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.engine import Engine

STATE, BEST = "loop.json", "best.safetensors"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's list of committed checkpoints


def save(
    engines: Mapping[str, "Engine"],
    state: dict[str, Any],
    rank: int,
    metrics: dict[str, Any],
    best: Mapping[str, Mapping[str, "Tensor"]] | None = None,
) -> None:
    """Save every engine's shard and, on rank 0, the loop's `state` and the `best` weights so far (by module);
    report them as one checkpoint.

    Collective: every rank calls it at the same step; Ray merges the folders. `state` is JSON-serialisable
    and contains "step".
    """
    import ray.train
    from safetensors.torch import save_file

    with scratch("checkpoint") as name:
        folder = Path(name)
        with filling(folder):
            for engine in engines.values():
                engine.save(folder)
            if rank == 0:
                if best is not None:
                    save_file(flat(best), folder / BEST)
                saved_by = ray.train.get_context().get_world_size()
                (folder / STATE).write_text(json.dumps({"workers": saved_by, "state": state}))
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            manifest = {p.relative_to(folder).as_posix(): _sha256(p) for p in files}
            (folder / f"manifest-{rank}.json").write_text(json.dumps(manifest))
        ray.train.report(
            metrics | {"step": state["step"]}, checkpoint=ray.train.Checkpoint.from_directory(folder)
        )


def flat(weights: Mapping[str, Mapping[str, "Tensor"]]) -> dict[str, "Tensor"]:
    """Flatten {module: {key: tensor}} to {"module.key": tensor}, the form of safetensors files."""
    return {f"{name}.{k}": v.contiguous() for name, state in weights.items() for k, v in state.items()}


def unflat(weights: Mapping[str, "Tensor"], names: Iterable[str]) -> dict[str, dict[str, "Tensor"]]:
    """The inverse of `flat` for the modules in `names`."""
    return {
        name: {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        for name in names
    }


@dataclass(frozen=True)
class Saved:
    """A verified checkpoint, valid while its folder exists. state: the loop's state."""

    folder: Path
    state: dict[str, Any]
    workers: int

    def load(self, engines: Mapping[str, "Engine"]) -> dict[str, dict[str, "Tensor"]] | None:
        """Restore the engines. Returns the best weights so far, or None without model selection."""
        from safetensors.torch import load_file

        for engine in engines.values():
            engine.load(self.folder, self.workers)
        best = self.folder / BEST
        return unflat(load_file(best), engines) if best.exists() else None


class Damaged(Ended):
    """The last committed checkpoint is damaged; the previous one becomes the last."""

    def __init__(self, name: str, wrong: str) -> None:
        super().__init__(wrong)
        self.checkpoint = name


@contextmanager
def last() -> Iterator[Saved | None]:
    """The last committed checkpoint of this run, local for the `with` block; None at a fresh start.

    Collective: every rank calls it, and every rank raises `Damaged` when any of them finds the checkpoint
    damaged or missing.
    """
    import ray.train
    import torch.distributed as dist

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with ExitStack() as stack:
        wrong: str | None = None
        try:
            folder = Path(stack.enter_context(checkpoint.as_directory()))
            verify(folder)
        except (PlethoraError, FileNotFoundError) as error:
            wrong = str(error)
        failures: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, wrong)
        for failure in failures:
            if failure is not None:
                raise Damaged(PurePosixPath(checkpoint.path).name, failure)
        state = json.loads((folder / STATE).read_text())
        yield Saved(folder, state["state"], state["workers"])


def verify(folder: Path) -> None:
    """Check that every file exists and has the hash that a rank recorded. PlethoraError names the first that
    fails."""
    wrong = f"in checkpoint {folder} is not what was saved"
    known: dict[str, str] = {}
    manifests = {p.name: p for p in folder.glob("manifest-*.json")}
    for name, manifest in manifests.items():
        try:
            known |= json.loads(manifest.read_bytes())
        except (ValueError, TypeError):
            raise PlethoraError(f"{name} {wrong}") from None
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - manifests.keys()
    for name, digest in known.items():
        if name in found and _sha256(folder / name) != digest:
            raise PlethoraError(f"{name} {wrong}")
    lost = sorted(known.keys() - found)
    if STATE in known and not lost:
        workers = json.loads((folder / STATE).read_text())["workers"]
        lost = sorted({f"manifest-{rank}.json" for rank in range(workers)} - manifests.keys())
    elif not lost:
        lost = ["manifest-0.json"]
    for name in lost:
        raise PlethoraError(f"{name} is missing from checkpoint {folder}")
    for name in sorted(found - known.keys()):
        raise PlethoraError(f"{name} does not belong to checkpoint {folder}")


class _Result(pydantic.BaseModel):
    """An entry of Ray's list of committed checkpoints."""

    checkpoint_dir_name: str
    metrics: dict[str, Any]


class _Results(pydantic.BaseModel):
    checkpoint_results: list[_Result]


def begun(uri: str) -> bool:
    """Whether Ray's controller has committed a checkpoint in a run's folder."""
    return storage.exists(storage.join(uri, SNAPSHOT))


def listed(uri: str) -> list[str]:
    """Names of a run's committed checkpoints, oldest first. PlethoraError: the list is damaged."""
    return [result.checkpoint_dir_name for result in _results(uri)]


def committed(uri: str) -> int | None:
    """Steps completed at the last committed checkpoint of a run's folder; None if there is no checkpoint."""
    results = _results(uri)
    return results[-1].metrics["step"] if results else None


def ledger(uri: str) -> dict[str, list[int]]:
    """The ledger of windows trained on (`meters.TrainedWindows`) in the last committed checkpoint."""
    state = storage.read_json(storage.join(uri, listed(uri)[-1], STATE))["state"]
    return {key: list(counts) for key, counts in state["ledger"].items()}


def _results(uri: str) -> list[_Result]:
    if not begun(uri):
        return []
    where = storage.join(uri, SNAPSHOT)
    try:
        return _Results.model_validate_json(storage.read_bytes(where)).checkpoint_results
    except pydantic.ValidationError:
        raise PlethoraError(f"{where} is damaged: --resume makes it again from the checkpoints") from None


def mend(uri: str) -> list[str]:
    """Rebuild a damaged checkpoint list and remove entries whose checkpoints are gone; Ray refuses to start
    with either. Returns one line per repair. Call it only while nothing trains in `uri`.
    """
    if not begun(uri):
        return []
    files = storage.listing(uri)
    there = {name.split("/", 1)[0] for name in files}
    lines = []
    try:
        results = _results(uri)
    except PlethoraError:
        names = sorted(name for name in there if name.startswith("checkpoint_20"))
        steps = {name: _step(uri, name, files) for name in names}
        results = [
            _Result(checkpoint_dir_name=name, metrics={"step": step})
            for name, step in steps.items()
            if step is not None
        ]
        lines.append(
            f"its list of checkpoints was damaged: made again from the {len(results)} that are there"
        )
    lines += [f"{name} is gone" for r in results if (name := r.checkpoint_dir_name) not in there]
    if lines:
        _write(uri, [result for result in results if result.checkpoint_dir_name in there])
    return lines


def drop(uri: str, name: str) -> None:
    """Delete checkpoint `name`; the previous one becomes the last. Call it only while nothing trains in
    `uri`."""
    _write(uri, [result for result in _results(uri) if result.checkpoint_dir_name != name])
    storage.delete(storage.join(uri, name))


def _step(uri: str, name: str, files: list[str]) -> int | None:
    """The step of a checkpoint that every worker uploaded; None for any other folder. `last` verifies the
    files."""
    if f"{name}/{STATE}" not in files:
        return None
    try:
        saved = storage.read_json(storage.join(uri, name, STATE))
        ranks, step = range(saved["workers"]), int(saved["state"]["step"])
    except (PlethoraError, KeyError, TypeError, ValueError):
        return None
    return step if all(f"{name}/manifest-{rank}.json" in files for rank in ranks) else None


def _write(uri: str, results: list[_Result]) -> None:
    """Write the checkpoint list in the form that Ray's controller reads. PlethoraError: `results` is
    empty."""
    import ray

    if not results:
        raise PlethoraError(
            f"{uri} has no whole checkpoint left: delete that folder to begin anew, or give another name"
        )
    entries = [result.model_dump() for result in results]
    snapshot = {
        "ray_version": ray.__version__,
        "checkpoint_results": entries,
        "checkpoint_report_indices": list(range(len(entries))),
        "latest_checkpoint_result": entries[-1],
        "current_report_index": len(entries),
    }
    kinds = ("validated", "timed_out_validation", "failed_validation")
    empty = ["pending_training_results", "pending_validation_specs"]
    empty += [f"{kind}_checkpoint_dir_names" for kind in kinds]
    storage.write_json(storage.join(uri, SNAPSHOT), snapshot | {name: [] for name in empty})


def collect(uri: str) -> list[str]:
    """Delete a run's uncommitted checkpoint folders (a worker or the driver died between upload and commit)
    and partial bundles; return their names. On S3, also abort unfinished multipart uploads. Call it only
    while nothing trains in `uri`.
    """
    if storage.is_remote(uri):
        s3.abort_uploads(storage.normalise(uri))
    known = set(listed(uri))
    folders = {name.split("/", 1)[0] for name in storage.listing(uri)}
    stages = {name for name in folders if name.startswith(".bundle.") and name.endswith(".part")}
    orphans = sorted({name for name in folders - known if name.startswith("checkpoint_20")} | stages)
    for name in orphans:
        storage.delete(storage.join(uri, name))
    return orphans


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
