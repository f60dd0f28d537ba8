"""Starts or joins Ray; the workers' resource requests; Ray Data's defaults."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cluster.errors import PlethoraError

if TYPE_CHECKING:
    import ray.train

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
CONNECT_S = 10
STARTS = 5
BLOCK_BYTES = 128 * 2**20

# Ray reads these when it is imported or started, here and in the processes that it starts.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": "",  # infra/runtime_env.yaml lists them itself
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without a GPU share needs no warning about it
}

# Ray's warnings about our choices, and its copies of exceptions that reach the caller anyway.
_SAID_OTHERWISE = {
    "ray._private.authentication.authentication_token_setup": "Token authentication is enabled",
    "ray.data._internal.progress": "Progress bars disabled",
    "ray.data._internal.execution.streaming_executor_state": "An exception was raised from a task",
    "ray.data.exceptions": "Exception occurred in user code",
}


@contextlib.contextmanager
def session(
    workers: int = 0, actors: int = 2, gpu: float = 0, cpu: float = 1, fewest: int | None = None
) -> Iterator[Any]:
    """Ray for a `with` block, which gets the `ray` module: an existing cluster if there is one, else a local
    one.

    An initialised Ray is used as it is; RAY_ADDRESS is joined (this checkout is sent as working directory,
    unless a Ray job already brought it); otherwise a local Ray starts with one logical CPU for each of
    `workers`, for each of their `actors`, and a spare, because fewer would starve the stream for ever. Only
    what was started here is shut down. Token authentication stays on. PlethoraError: the cluster cannot be
    joined, GPUs are requested (`gpu` per worker) but missing, or there are fewer CPUs than `fewest` workers
    need (`cpu` each, and one for each of their actors; None: the caller works with what there is).
    """
    ray = quiet_ray()
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        _join(ray, address)
    else:
        _start(ray, workers, actors, cpu)
    try:
        if gpu and workers and ray.cluster_resources().get("GPU", 0) < gpu * workers:
            have = ray.cluster_resources().get("GPU", 0)
            raise PlethoraError(
                f"resources.gpu = {gpu:g} for {workers} workers needs {gpu * workers:g} GPUs, "
                f"Ray has {have:g}: set resources.gpu = 0 or add GPUs"
            )
        need, have = (fewest or 0) * (cpu + actors), ray.cluster_resources().get("CPU", 0)
        if need > have:  # the run would wait for ever for a worker without a CPU, and starve without actors
            raise PlethoraError(
                f"{fewest} workers with {cpu:g} CPUs (resources.cpu) and {actors} transform actors "
                f"(stream.actors) each need {need:g} CPUs, Ray has {have:g}: lower one of them, or add nodes"
            )
        yield ray
    finally:
        ray.shutdown()


def require_labels(ray: Any, labels: Mapping[str, str], cpus: float) -> None:
    """PlethoraError if the live nodes with these labels have fewer than `cpus` CPUs together: a request for
    one would wait for ever.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    having = [node for node in nodes if labels.items() <= node.get("Labels", {}).items()]
    found = sum(node["Resources"].get("CPU", 0) for node in having)
    if labels and found < cpus:
        wanted = ", ".join(f"{name}={value}" for name, value in labels.items())
        raise PlethoraError(
            f"nodes with the labels {wanted} (stream.on) have {found:g} CPUs, transform actors take "
            f"{cpus:g}: start some with ray start --labels, or lower stream.actors"
        )


def quiet_ray() -> Any:
    """The `ray` module, configured before its import not to warn about our choices."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    for name, start in _SAID_OTHERWISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Drop) for known in logger.filters):
            logger.addFilter(_Drop(start))
    return ray


class _Drop(logging.Filter):
    """Drops messages that begin with `start`."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.start)


def token_path() -> Path:
    """Where Ray looks for its token if RAY_AUTH_TOKEN is not set."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


def enable_tokens() -> None:
    """Present our token to the cluster that is joined next. Ray enables tokens itself for a cluster that it
    starts, but not for one that it joins; and once imported it has read its settings, so setting
    RAY_AUTH_MODE would be too late.
    """
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _join(ray: Any, address: str) -> None:
    enable_tokens()
    inside_a_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    try:
        _reach(address)
        ray.init(
            address=address,
            runtime_env=None if inside_a_job else runtime_env(),
            logging_level=logging.WARNING,
            log_to_driver=_wants_worker_logs(),
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PlethoraError(
            f"RAY_ADDRESS={address}: cannot join this cluster ({reason}): check the address, "
            "that it runs, and its token (RAY_AUTH_TOKEN); or unset RAY_ADDRESS to work locally"
        ) from error


def _reach(address: str) -> None:
    """OSError if nobody listens at ``host:port``: Ray itself would retry, then end this process."""
    found = re.fullmatch(r"(?:ray://)?([^/:]+|\[.*\]):(\d+)", address)
    if found:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=CONNECT_S).close()


def _start(ray: Any, workers: int, actors: int, cpu: float = 1) -> None:
    cpus = max(os.cpu_count() or 1, max(workers, 1) * (1 + actors) + 1)
    if cpu > 1 and workers * (cpu + actors) + 1 > cpus:
        raise PlethoraError(
            f"resources.cpu = {cpu:g} for {workers} workers, beside {workers * actors} transform actors, is "
            f"more than this machine's {os.cpu_count()} CPUs: set resources.cpu = 1, or join a cluster"
        )
    with _inherited():
        for attempt in range(1, STARTS + 1):
            others = set(_children())
            try:
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    object_store_memory=object_store_bytes(),
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                    log_to_driver=_wants_worker_logs(),
                )
                break
            except Exception as error:  # Ray raises no narrower class
                if "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
                _end([child for child in _children() if child not in others])
                if attempt == STARTS:
                    raise PlethoraError(
                        f"Ray did not start in {STARTS} tries: end other programs, or look into "
                        "/tmp/ray/session_latest/logs"
                    ) from error
                # its 15 s and 30 s limits are fixed in its code, and a busy machine exceeds them
                print("Ray did not start within 30 s, the machine is busy: trying again", file=sys.stderr)


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """What Ray's processes, and the workers that they start, inherit from this one.

    PYTHONPATH: they find our packages (and our `datasets` first) whatever the driver's folder is. Loopback:
    Ray listens only on 127.0.0.1 on systems that it does not support for clusters, by default Windows and
    macOS; elsewhere its ports answer on every interface. Ray's import has read it, so it is set there too.
    """
    from ray._private import ray_constants

    names = ("PYTHONPATH", ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
    before = {name: os.environ.get(name) for name in names}
    path = before["PYTHONPATH"]
    values = (os.pathsep.join([str(ROOT), *([path] if path else [])]), "0")
    os.environ.update(zip(names, values, strict=True))
    for_clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = for_clusters
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _end(processes: list[psutil.Process]) -> None:
    """End the processes that a failed start left running: Ray would do so only when this process exits."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def _wants_worker_logs() -> bool:
    """PLETHORA_WORKER_LOGS=1 copies the workers' output to the terminal; errors are returned either way."""
    return os.environ.get("PLETHORA_WORKER_LOGS", "") not in ("", "0")


def memory_bytes() -> int:
    """Memory of this machine, or of the container."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max", or no such cgroup
            memory = min(memory, int(Path(limit).read_text()))
    return memory


def object_store_bytes() -> int:
    """Size of a local object store: 20 % of the memory, at most 2 GiB and what /dev/shm can hold."""
    wanted = min(2 * GIB, memory_bytes() // 5)
    shm = Path("/dev/shm")
    if shm.is_dir():
        wanted = min(wanted, int(0.8 * shutil.disk_usage(shm).free))
    return max(wanted, 100 * 2**20)


def runtime_env() -> dict[str, Any]:
    """The runtime environment of infra/runtime_env.yaml, with an absolute working directory."""
    import yaml

    table: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "runtime_env.yaml").read_text(encoding="utf-8"))
    table["working_dir"] = str((ROOT / table.get("working_dir", ".")).resolve())
    return table


def travels(path: Path) -> bool:
    """Whether a file or folder of the checkout (an absolute path) is in the copy that a job gets."""
    # Ray's own walk: its rules differ from git's (for one, a parent folder's pattern cannot be undone)
    from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

    gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    table = runtime_env()
    root = Path(table["working_dir"])
    left_out = [_get_excludes(root, table["excludes"])]
    for part in reversed([path, *(p for p in path.parents if p.is_relative_to(root))]):
        left_out += get_excludes_from_ignore_files(part, include_gitignore=gitignore)
        if any(leaves(part) for leaves in left_out):
            return False
    return True


def scaling(
    workers: int | tuple[int, int], gpu: float, cpu: float = 1, resize_every_s: float = 60.0
) -> ray.train.ScalingConfig:
    """`workers` training workers, each with `cpu` CPUs and `gpu` GPUs; of an elastic range, as many as fit,
    checked every `resize_every_s` seconds.
    """
    from ray.train import ScalingConfig

    share: dict[str, float] = {"CPU": cpu}
    if gpu:
        share["GPU"] = gpu
    # Ray's annotations lack the range and the interval
    elastic: dict[str, Any] = {"num_workers": workers, "elastic_resize_monitor_interval_s": resize_every_s}
    return ScalingConfig(**elastic, use_gpu=bool(gpu), resources_per_worker=share)


def data_context() -> Any:
    """Set Ray Data's defaults for this process (each dataset made here carries them) and return them."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True  # otherwise what a worker sees depends on timing
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = 3600  # a paused or stepping trainer is no hang
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return context
