"""Sharded checkpoints through Ray Train: every rank saves its share, a manifest guards every file.

A checkpoint counts once Ray's controller has committed it (`committed`); DeepSpeed's files are pickles, so
they are opened only from the run's own folder and only after every file matches its manifest.
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
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's list of what it has committed


def save(
    engines: Mapping[str, "Engine"],
    state: dict[str, Any],
    rank: int,
    metrics: dict[str, Any],
    best: Mapping[str, Mapping[str, "Tensor"]] | None = None,
) -> None:
    """Save every engine's share and (rank 0) the loop's `state` and the `best` weights so far, by module, and
    report them as one checkpoint.

    Every rank calls it at the same step; Ray merges the folders. `state` is JSON: it holds "step".
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
    """{"module.key": tensor} of {module: {key: tensor}}, as safetensors files hold it."""
    return {f"{name}.{k}": v.contiguous() for name, state in weights.items() for k, v in state.items()}


def unflat(weights: Mapping[str, "Tensor"], names: Iterable[str]) -> dict[str, dict[str, "Tensor"]]:
    """The inverse of `flat` for these modules."""
    return {
        name: {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        for name in names
    }


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was verified, as long as its folder is there. state: of the loop."""

    folder: Path
    state: dict[str, Any]
    workers: int

    def load(self, engines: Mapping[str, "Engine"]) -> dict[str, dict[str, "Tensor"]] | None:
        """Put the engines where they were; the best weights so far, None without selection."""
        from safetensors.torch import load_file

        for engine in engines.values():
            engine.load(self.folder, self.workers)
        best = self.folder / BEST
        return unflat(load_file(best), engines) if best.exists() else None


class Damaged(Ended):
    """The last committed checkpoint is not whole: the one before it is the last now."""

    def __init__(self, name: str, wrong: str) -> None:
        super().__init__(wrong)
        self.checkpoint = name


@contextmanager
def last() -> Iterator[Saved | None]:
    """The last committed checkpoint of this run, here for a `with` block; None at a fresh start. Every rank
    calls it, and raises `Damaged` where one of them finds it damaged or gone.
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
        told: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(told, wrong)
        for each in told:
            if each is not None:
                raise Damaged(PurePosixPath(checkpoint.path).name, each)
        state = json.loads((folder / STATE).read_text())
        yield Saved(folder, state["state"], state["workers"])


def verify(folder: Path) -> None:
    """Every file is there and is the one that a rank saved; PlethoraError names the first that is not."""
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
    """A committed checkpoint in Ray's list of them."""

    checkpoint_dir_name: str
    metrics: dict[str, Any]


class _Results(pydantic.BaseModel):
    checkpoint_results: list[_Result]


def begun(uri: str) -> bool:
    """Whether Ray's controller has committed a checkpoint under a run's folder."""
    return storage.exists(storage.join(uri, SNAPSHOT))


def listed(uri: str) -> list[str]:
    """Names of a run's committed checkpoints, the oldest first. PlethoraError: the list is damaged."""
    return [result.checkpoint_dir_name for result in _results(uri)]


def committed(uri: str) -> int | None:
    """Steps done at the last checkpoint that Ray's controller has committed under a run's folder; None: no
    such.
    """
    results = _results(uri)
    return results[-1].metrics["step"] if results else None


def ledger(uri: str) -> dict[str, list[int]]:
    """Of the last committed checkpoint: the windows seen (`meters.Seen`)."""
    state = storage.read_json(storage.join(uri, listed(uri)[-1], STATE))["state"]
    return {key: list(told) for key, told in state["ledger"].items()}


def _results(uri: str) -> list[_Result]:
    if not begun(uri):
        return []
    where = storage.join(uri, SNAPSHOT)
    try:
        return _Results.model_validate_json(storage.read_bytes(where)).checkpoint_results
    except pydantic.ValidationError:
        raise PlethoraError(f"{where} is damaged: --resume makes it again from the checkpoints") from None


def mend(uri: str) -> list[str]:
    """Make a damaged list of checkpoints again, and let go of checkpoints that are gone: Ray refuses to start
    over either. What was done, a line each. Only while nothing trains under `uri`.
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
    """Delete checkpoint `name`, so that the one before it is the last. Only while nothing trains there."""
    _write(uri, [result for result in _results(uri) if result.checkpoint_dir_name != name])
    storage.delete(storage.join(uri, name))


def _step(uri: str, name: str, files: list[str]) -> int | None:
    """The step of a checkpoint that every worker uploaded; None of another folder. `last` reads the rest."""
    if f"{name}/{STATE}" not in files:
        return None
    try:
        told = storage.read_json(storage.join(uri, name, STATE))
        ranks, step = range(told["workers"]), int(told["state"]["step"])
    except (PlethoraError, KeyError, TypeError, ValueError):
        return None
    return step if all(f"{name}/manifest-{rank}.json" in files for rank in ranks) else None


def _write(uri: str, results: list[_Result]) -> None:
    """The list of checkpoints as Ray's controller reads it. PlethoraError: none is left."""
    import ray

    if not results:
        raise PlethoraError(
            f"{uri} has no whole checkpoint left: delete that folder to begin anew, or give another name"
        )
    told = [result.model_dump() for result in results]
    snapshot = {
        "ray_version": ray.__version__,
        "checkpoint_results": told,
        "checkpoint_report_indices": list(range(len(told))),
        "latest_checkpoint_result": told[-1],
        "current_report_index": len(told),
    }
    kinds = ("validated", "timed_out_validation", "failed_validation")
    empty = ["pending_training_results", "pending_validation_specs"]
    empty += [f"{kind}_checkpoint_dir_names" for kind in kinds]
    storage.write_json(storage.join(uri, SNAPSHOT), snapshot | {name: [] for name in empty})


def collect(uri: str) -> list[str]:
    """Delete the checkpoint folders of a run that Ray never committed (a worker or the driver died between
    upload and commit) and half bundles, and return their names; on S3, abort the uploads of writers that
    died inside one. Only while nothing trains under `uri`.
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
