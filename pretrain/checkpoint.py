"""Sharded checkpoints through Ray Train: every rank saves its share, a manifest guards every file.

A checkpoint counts once Ray's controller has committed it (`committed`); DeepSpeed's files are pickles, so
they are opened only from the run's own folder and only after every file matches its manifest.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cluster import s3, storage
from cluster.errors import PlethoraError
from cluster.scratch import scratch

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.engine import Engine

STATE, BEST = "loop.json", "best.safetensors"


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


@contextmanager
def last() -> Iterator[Saved | None]:
    """The last committed checkpoint of this run, here for a `with` block; None at a fresh start."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as name:
        folder = Path(name)
        verify(folder)
        told = json.loads((folder / STATE).read_text())
        yield Saved(folder, told["state"], told["workers"])


def verify(folder: Path) -> None:
    """Every file is there and is the one that a rank saved; PlethoraError names the first that is not."""
    wrong = f"in checkpoint {folder} is not what was saved: delete that folder and resume"
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
        raise PlethoraError(
            f"{name} is missing from checkpoint {folder}: delete that folder and resume from the one before"
        )
    for name in sorted(found - known.keys()):
        raise PlethoraError(f"{name} does not belong to checkpoint {folder}: delete it, and resume")


def committed(uri: str) -> int | None:
    """Steps done at the last checkpoint that Ray's controller has committed under a run's folder; None: no
    such.
    """
    result = _result(uri)
    return result.metrics["step"] if result and result.checkpoint is not None and result.metrics else None


def collect(uri: str) -> list[str]:
    """Delete the checkpoint folders of a run that Ray never committed (a worker or the driver died between
    upload and commit) and half bundles, and return their names; on S3, abort the uploads of writers that
    died inside one. Only while nothing trains under `uri`.
    """
    if storage.is_remote(uri):
        s3.abort_uploads(storage.normalise(uri))
    result = _result(uri)
    known = {PurePosixPath(c.path).name for c, _ in (result.best_checkpoints or [])} if result else set()
    folders = {name.split("/", 1)[0] for name in storage.listing(uri)}
    stages = {name for name in folders if name.startswith(".bundle.") and name.endswith(".part")}
    orphans = sorted({name for name in folders - known if name.startswith("checkpoint_20")} | stages)
    for name in orphans:
        storage.delete(storage.join(uri, name))
    return orphans


def _result(uri: str) -> Any:
    from ray.train import Result

    if not storage.exists(storage.join(uri, "checkpoint_manager_snapshot.json")):
        return None
    filesystem, path = storage.filesystem(uri)
    return Result.from_path(path, storage_filesystem=filesystem)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
