"""What chaos plays with: a Ray cluster of three machines (raylets) on this one, a bucket behind a proxy, and
a small disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from cluster import session
from tests.s3.proxy import Proxy

ROOT = Path(__file__).resolve().parent.parent
STORE_BYTES = 100 * 2**20  # of each machine's object store
DISK = "24m"
CPUS = 3  # of a machine: one is too small for two workers and their actors, two are enough
BUCKET = "plethora"


class Lost(Exception):
    """A run that did not do within its time what it should."""


def dies_with_us() -> None:
    """Ask Linux to end a child when chaos itself is ended."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer; Lost when there is none in `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = true()
        if found:
            return found
        if time.monotonic() > end:
            raise Lost(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


class World:
    """One head without CPUs of use and two machines that train; `with World(home) as world:`."""

    def __init__(self, home: Path, bucket: bool = True) -> None:
        self.home, self.disk, self.bucket = home, home / "disk", bucket
        self.proxy: Proxy | None = None
        self.machines: Any = None

    def __enter__(self) -> World:
        self.rest = contextlib.ExitStack()
        # every process of the cluster inherits these
        os.environ |= session._QUIET | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PYTHONPATH": str(ROOT),
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        }
        os.environ.pop("RAY_ADDRESS", None)
        if self.bucket:
            self._bucket()
        import ray
        from ray.cluster_utils import Cluster

        self.machines = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        self.rest.callback(self.machines.shutdown)
        for _ in range(2):
            self.add()
        ray.init(self.machines.address, log_to_driver=False, logging_level="ERROR")
        self.rest.callback(ray.shutdown)
        return self

    def __exit__(self, *_: object) -> None:
        self.rest.close()
        if os.path.ismount(self.disk):
            subprocess.run(["umount", "-l", str(self.disk)], check=True)

    # ---------------------------------------------------------------- machines and what runs on them

    def add(self) -> None:
        self.machines.add_node(num_cpus=CPUS, object_store_memory=STORE_BYTES)

    def running(self, name: str) -> list[psutil.Process]:
        """Ray's processes of this name, oldest first."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                title = "".join(process.cmdline()[:1])
                if title.startswith("ray::") and name in title and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda p: p.pid)

    def trainers(self) -> list[psutil.Process]:
        return self.running("RayTrainWorker")

    def host(self, process: psutil.Process) -> Any:
        """The machine that a process runs on."""
        above = {p.pid for p in process.parents()}
        return next(
            m for m in self.machines.worker_nodes if m.all_processes["raylet"][0].process.pid in above
        )

    def lose(self, machine: Any) -> None:
        """End a machine and all that runs on it at once, as a power cut does."""
        raylet = psutil.Process(machine.all_processes["raylet"][0].process.pid)
        for process in [*raylet.children(recursive=True), raylet]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.machines.remove_node(machine, allow_graceful=False)

    def warn(self, machine: Any, seconds: float) -> None:
        """Tell Ray that a machine is taken away in `seconds`, as a node does that gets SIGTERM."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        accepted, why = GcsClient(address=self.machines.address).drain_node(
            machine.node_id,
            autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            "chaos takes this machine away",
            int((time.time() + seconds) * 1000),
        )
        assert accepted, why

    @contextlib.contextmanager
    def pressed(self) -> Iterator[None]:
        """Other people's objects fill most of every machine's object store."""
        import numpy as np
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        class Hoard:
            def fill(self, size: int) -> int:
                self.held = [ray.put(np.zeros(size // 8, np.uint8)) for _ in range(8)]
                return len(self.held)

        hoards = []
        for machine in self.machines.worker_nodes:
            place = On(machine.node_id, soft=False)
            hoards.append(ray.remote(Hoard).options(num_cpus=0, scheduling_strategy=place).remote())
        ray.get([hoard.fill.remote(int(0.9 * STORE_BYTES)) for hoard in hoards], timeout=60)
        try:
            yield
        finally:
            for hoard in hoards:
                ray.kill(hoard)

    # ---------------------------------------------------------------- storage

    def _bucket(self) -> None:
        """A bucket behind a proxy, and the environment that every process finds it by."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tests.s3.atomic_moto", str(port)]
        with open(self.home / "moto.log", "wb") as log:
            server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, preexec_fn=dies_with_us)
        self.rest.callback(server.wait)
        self.rest.callback(server.terminate)

        def up() -> bool:
            with socket.socket() as attempt:
                return attempt.connect_ex(("127.0.0.1", port)) == 0

        until(up, 120, "moto answers")
        self.proxy = self.rest.enter_context(Proxy(f"http://127.0.0.1:{port}"))
        keys = {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos", "AWS_REGION": "us-east-1"}
        os.environ |= keys | {"AWS_ENDPOINT_URL": self.proxy.url}
        from cluster import s3

        s3.call("create_bucket", f"s3://{BUCKET}")

    def mounted(self) -> bool:
        """Whether the small disk is there (only root can mount it)."""
        if os.path.ismount(self.disk):
            return True
        self.disk.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.disk)]
        return subprocess.run(mount, capture_output=True, check=False).returncode == 0

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Somebody's file takes all that is left of the small disk."""
        filler = self.disk / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            yield
        finally:
            filler.unlink(missing_ok=True)
