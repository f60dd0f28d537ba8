"""Checks a machine, an environment and a store before a run; each finding comes with its remedy."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import secrets
import shutil
import stat
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster import storage
from cluster.errors import PlethoraError, user_message
from cluster.session import GIB, ROOT, memory_bytes, object_store_bytes, session, token_path

Status = Literal["ok", "warn", "fail"]
BUILD_S = 600  # building DeepSpeed's extension takes about two minutes: an older lock is stale


@dataclass(frozen=True)
class Check:
    """The result of one check: its name, its status, what was found and the remedy."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(storage_uri: str | None, start_ray: bool) -> Iterator[Check]:
    """All checks, one at a time; none raises. Storage and a start of Ray are tested on request."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", python),
        ("packages", lambda: packages(ROOT / "requirements.lock", _core_packages())),
        ("bytecode", bytecode),
        ("torch", torch_pair),
        ("accelerators", accelerators),
        ("compiler", compiler),
        ("extension lock", lambda: extension_lock(_extensions_folder())),
        ("memory", memory),
        ("object store", object_store),
        ("disk of ray", lambda: disk("disk of ray", os.environ.get("RAY_TMPDIR", "/tmp"))),
        ("ray tokens", ray_tokens),
        ("subject key", lambda: subject_key(bool(storage_uri and storage.is_remote(storage_uri)))),
    ]
    if storage_uri:
        if not storage.is_remote(storage_uri):
            checks.append(
                ("disk of storage", lambda: disk("disk of storage", storage.normalise(storage_uri)))
            )
        checks.append(("storage", lambda: store(storage_uri)))
    if start_ray:
        checks.append(("ray", ray_start))
    for name, check in checks:
        try:
            yield check()
        except Exception as error:  # a failed check is a finding, and the others still run
            message = user_message(error) or f"{type(error).__name__}: {error}".splitlines()[0]
            yield Check(name, "fail", message, "this check could not run: fix what it names and try again")


# ---------------------------------------------------------------- environment


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python() -> Check:
    from packaging.specifiers import SpecifierSet

    found, wanted = ".".join(str(part) for part in sys.version_info[:3]), _project()["requires-python"]
    if found not in SpecifierSet(wanted):
        return Check(
            "python", "fail", f"{found}, needed {wanted}", "make a new environment: uv venv --python 3.11"
        )
    return Check("python", "ok", found)


def _plain_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _core_packages() -> set[str]:
    """Required packages of pyproject.toml (development tools excluded)."""
    return {_plain_name(re.split(r"[\[<>=!~; ]", item)[0]) for item in _project()["dependencies"]}


def packages(lock: Path, core: set[str]) -> Check:
    """Installed versions against the lock: a missing core package fails, a different version warns."""
    from packaging.requirements import Requirement

    sync = "install what was verified together: uv pip sync requirements.lock"
    if not lock.is_file():
        return Check("packages", "fail", f"no {lock}", "run from a complete checkout")
    missing, other, count = [], [], 0
    for line in lock.read_text().splitlines():
        if not re.match(r"[A-Za-z0-9].*==", line):
            continue
        wanted = Requirement(line.rstrip(" \\"))
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        count += 1
        version = str(wanted.specifier).removeprefix("==")
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(wanted.name)
            continue
        if found.split("+")[0] != version.split("+")[0]:
            other.append(f"{wanted.name} {found} (lock: {version})")
    lost = [name for name in missing if _plain_name(name) in core]
    if lost:
        return Check("packages", "fail", f"missing: {_some(lost)}", sync)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("plethora")
        return Check(
            "packages", "fail", "plethora is installed", "uninstall it: it runs from the checkout root"
        )
    if missing or other:
        differences = [f"{len(missing)} missing: {_some(missing)}"] if missing else []
        differences += [f"{len(other)} of another version: {_some(other)}"] if other else []
        return Check("packages", "warn", "; ".join(differences), sync)
    return Check("packages", "ok", f"all {count} as in {lock.name}")


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def bytecode(names: Sequence[str] = ("ray", "torch", "deepspeed")) -> Check:
    """Whether packages are compiled: otherwise each of a run's many processes compiles what it imports."""
    specs = {name: importlib.util.find_spec(name) for name in names}
    raw = [
        name
        for name, spec in specs.items()
        if spec and spec.origin and not Path(importlib.util.cache_from_source(spec.origin)).exists()
    ]
    if raw and sys.dont_write_bytecode:
        return Check(
            "bytecode",
            "warn",
            f"{_some(raw)} not compiled, and PYTHONDONTWRITEBYTECODE is set: a run starts slowly",
            "compile once: uv pip sync --compile-bytecode requirements.lock",
        )
    return Check("bytecode", "ok", "packages are compiled, or will be when they are first imported")


def torch_pair() -> Check:
    """torch and torchvision must come from the same build, or timm cannot be imported."""
    try:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        torchvision.ops.nms(boxes, torch.ones(1), 0.5)
    except (ImportError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        return Check(
            "torch", "fail", first, "install the pair from one source: uv pip sync requirements.lock"
        )
    return Check("torch", "ok", f"torch {torch.__version__}, torchvision {torchvision.__version__}")


def accelerators() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found = ", ".join(f"{names.count(name)}x {name}" for name in sorted(set(names)))
        if os.environ.get("DS_ACCELERATOR") == "cpu":
            return Check("accelerators", "warn", f"{found}, and DS_ACCELERATOR=cpu", "unset DS_ACCELERATOR")
        return Check("accelerators", "ok", found)
    if Path("/dev/nvidia0").exists():
        return Check(
            "accelerators",
            "warn",
            "a GPU is here, torch cannot use it",
            "install the build of torch for its driver (nvidia-smi shows the version)",
        )
    return Check("accelerators", "ok", f"none: training runs on {os.cpu_count()} CPU cores")


def compiler() -> Check:
    lost = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if lost:
        return Check(
            "compiler",
            "warn",
            f"no {' and no '.join(lost)}",
            "only DeepSpeed's own kernels need them (CPU offload): apt install g++, uv pip install ninja",
        )
    return Check("compiler", "ok", "g++ and ninja")


def _extensions_folder() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))


def extension_lock(folder: Path) -> Check:
    """A killed build leaves a lock on which every later run waits silently."""
    name = "extension lock"
    for lock in sorted(folder.glob("**/lock")):
        age = time.time() - lock.stat().st_mtime
        if age > BUILD_S:
            return Check(name, "fail", f"left behind by a killed build: {lock}", f"rm {lock}")
        return Check(
            name, "warn", f"{lock} is {age:.0f} s old", "a build may be running; otherwise rm that file"
        )
    return Check(name, "ok", "no DeepSpeed build is stuck")


# ---------------------------------------------------------------- machine


def memory() -> Check:
    total = memory_bytes() / GIB
    free = total
    with contextlib.suppress(OSError, AttributeError):
        match = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        free = min(total, int(match[1]) / 2**20) if match else total
    found = f"{total:.1f} GiB, {free:.1f} available"
    if free < 2:
        return Check("memory", "fail", found, "end other programs: a demo run needs 4 GiB")
    if free < 6:
        return Check("memory", "warn", found, "enough for the demo; use workers = 1 for larger models")
    return Check("memory", "ok", found)


def object_store() -> Check:
    size = object_store_bytes()
    shm = Path("/dev/shm")
    found = f"{size / GIB:.1f} GiB"
    if not shm.is_dir():
        return Check("object store", "warn", f"{found}, no /dev/shm", "Ray will use slower disk files")
    free = shutil.disk_usage(shm).free
    found += f", /dev/shm has {free / GIB:.1f} GiB free"
    if free < 0.5 * GIB:
        return Check("object store", "warn", found, "give the container more: docker run --shm-size=2g")
    return Check("object store", "ok", found)


def disk(name: str, folder: str) -> Check:
    """Free space where `folder` is or will be; Ray stops placing objects on a disk that is 95 % full."""
    path = Path(folder)
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    free, full = usage.free / GIB, 1 - usage.free / usage.total
    found = f"{free:.1f} GiB free at {path} ({full:.0%} full)"
    remedy = "free some space or choose another place" + (" (RAY_TMPDIR)" if "ray" in name else "")
    if free < 2 or ("ray" in name and full > 0.95):
        return Check(name, "fail", found, remedy)
    return Check(name, "warn" if free < 10 else "ok", found, remedy if free < 10 else "")


def ray_tokens() -> Check:
    name = "ray tokens"
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return Check(
            name,
            "fail",
            f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}: anyone who can reach this Ray can run code here",
            "unset RAY_AUTH_MODE (or set it to token)",
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Check(name, "ok", "a token is in the environment")
    path = token_path()
    if not path.is_file():
        if os.environ.get("RAY_ADDRESS"):
            return Check(name, "fail", "no token for the cluster at RAY_ADDRESS", "set its RAY_AUTH_TOKEN")
        return Check(name, "ok", f"none yet: Ray makes one at {path} when it starts")
    open_to_others = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    if open_to_others and path.parent.parent.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):
        return Check(name, "warn", f"other users can read {path}", f"chmod 600 {path}")
    return Check(name, "ok", f"{path}")


def subject_key(remote: bool) -> Check:
    """Subjects are hashed with a secret key: without one, ingest into a shared corpus is refused."""
    name = "subject key"
    make = "make one once and keep it: export PLETHORA_SUBJECT_KEY=$(openssl rand -hex 32)"
    if os.environ.get("PLETHORA_SUBJECT_KEY"):
        return Check(name, "ok", "PLETHORA_SUBJECT_KEY is set")
    if remote:
        return Check(name, "fail", "PLETHORA_SUBJECT_KEY is not set, and the storage is shared", make)
    return Check(name, "warn", "PLETHORA_SUBJECT_KEY is not set: a key of this machine only is used", make)


# ---------------------------------------------------------------- store and Ray


def store(uri: str) -> Check:
    """Access and permissions: put, get (s3fs's client and pyarrow), list, conditional put and delete of a
    probe."""
    base = storage.normalise(uri)
    probe = storage.join(base, f".plethora-doctor-{secrets.token_hex(4)}")
    started = time.monotonic()
    steps: list[str] = []
    try:
        steps.extend(_probing(probe))
    except PlethoraError as error:
        with contextlib.suppress(PlethoraError):
            storage.delete(probe)
        return Check("storage", "fail", f"{steps[-1]}: {error}", "fix that and try again")
    spent = (time.monotonic() - started) * 1000
    return Check("storage", "ok", f"{base}: {', '.join(steps)} ({spent:.0f} ms)")


def _probing(probe: str) -> Iterator[str]:
    """Yields the name of each step before it runs; PlethoraError if the store fails or answers wrongly."""
    plain, mark = storage.join(probe, "a"), storage.join(probe, "mark")
    wrong = PlethoraError(f"{probe}: what comes back is not what was written: use another store")
    yield "put"
    storage.write_bytes(plain, b"probe")
    yield "get"
    if storage.read_bytes(plain) != b"probe":
        raise wrong
    yield "get through pyarrow"
    files, path = storage.filesystem(plain)
    with storage.clear_errors(plain), files.open_input_stream(path) as stream:
        if stream.read() != b"probe":
            raise wrong
    yield "list"
    if storage.listing(probe) != ["a"]:
        raise wrong
    yield "conditional put"
    if not storage.write_exclusive(mark, b"1") or storage.write_exclusive(mark, b"2"):
        raise PlethoraError(
            f"{mark}: two writers can both succeed: use a store that honours If-None-Match on PUT"
        )
    yield "delete"
    storage.delete(probe)
    if storage.listing(probe):
        raise wrong


def ray_start() -> Check:
    started = time.monotonic()
    joined = os.environ.get("RAY_ADDRESS")
    with session() as ray:
        mode = ray.get(ray.remote(lambda: os.environ.get("RAY_AUTH_MODE", "")).remote())
        share = ray.cluster_resources()
    found = f"{joined or 'a local Ray'} answers in {time.monotonic() - started:.0f} s, "
    found += f"{share.get('CPU', 0):g} CPUs, {share.get('GPU', 0):g} GPUs"
    if mode != "token" and not joined:
        return Check("ray", "fail", f"{found}, without tokens", "unset RAY_AUTH_MODE")
    return Check("ray", "ok", found)


def as_dict(check: Check) -> dict[str, Any]:
    """A check for the JSON line."""
    return asdict(check)
