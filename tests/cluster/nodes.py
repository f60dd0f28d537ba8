"""A real Ray cluster on this machine: a head and more nodes from `ray start`, with a token, own ports.

Each node is a process of ours that runs `ray start --block`; only what it started is stopped, by pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import ROOT

START_S = 150.0


@dataclass(frozen=True)
class Nodes:
    """A running cluster. `env`: for a process that submits to it; `metrics`: ports, the head's first."""

    url: str
    token: str
    env: dict[str, str]
    metrics: tuple[int, ...]
    folder: str


@contextlib.contextmanager
def nodes(more: int = 2, cpus: int = 2, env: Mapping[str, str] | None = None) -> Iterator[Nodes]:
    """A head without CPUs for tasks and `more` nodes of `cpus` (logical) each; the nodes' environment gets
    `env` on top of this process's."""
    folder = tempfile.mkdtemp(prefix="pl-", dir="/tmp")  # short: it holds Unix sockets
    token = secrets.token_hex(32)
    Path(folder, "token").write_text(token)
    python = str(Path(sys.executable).parent)
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    base |= {"PATH": f"{python}{os.pathsep}{base.get('PATH', '')}", "RAY_USAGE_STATS_ENABLED": "0"}
    base |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(Path(folder, "token"))}
    base |= {"RAY_raylet_start_wait_time_s": "120"}
    gcs, dashboard, client, *rest = _free(3 + 3 * (more + 1))
    ports = [rest[3 * n : 3 * n + 3] for n in range(more + 1)]
    common = ["--block", "--object-store-memory", str(150 * 2**20), "--node-ip-address", "127.0.0.1"]
    head = ["--head", "--port", gcs, "--dashboard-port", dashboard, "--dashboard-host", "127.0.0.1"]
    head += ["--ray-client-server-port", client, "--include-dashboard", "true"]
    url = f"http://127.0.0.1:{dashboard}"
    started: list[psutil.Popen] = []
    try:
        for n, (agent, metrics, runtime) in enumerate(ports):
            words = [*head, "--num-cpus", "0"] if n == 0 else ["--address", f"127.0.0.1:{gcs}"]
            words += [] if n == 0 else ["--num-cpus", str(cpus)]
            words += ["--dashboard-agent-listen-port", agent, "--metrics-export-port", metrics]
            # a folder each, as machines have: in one, a node replaces the job's checkout under the job's feet
            words += ["--runtime-env-agent-port", runtime, "--temp-dir", f"{folder}/{n}"]
            words = [f"{python}/ray", "start", *common, *words]
            with open(Path(folder, f"node-{n}.log"), "wb") as log:
                started.append(
                    psutil.Popen(words, cwd=ROOT, env=base | dict(env or {}), stdout=log, stderr=log)
                )
            if n == 0:
                _answers(url, token, folder, started[0])
        _alive(url, token, folder, started)
        mine = {k: v for k, v in base.items() if not k.startswith("RAY_raylet")}
        yield Nodes(
            url=url,
            token=token,
            env=mine | {"RAY_API_SERVER_ADDRESS": url, "RAY_AUTH_TOKEN_PATH": str(Path(folder, "token"))},
            metrics=tuple(int(port[1]) for port in ports),
            folder=folder,
        )
    finally:
        _end(started)
        shutil.rmtree(folder, ignore_errors=True)


def _free(count: int) -> list[str]:
    """Ports that nobody listens on, above those of Ray's workers and below those that Linux hands out."""
    found: list[str] = []
    while len(found) < count:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe:
            if str(port) not in found and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(str(port))
    return found


def _get(url: str, token: str) -> bytes:
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        content: bytes = answer.read()
        return content


def _answers(url: str, token: str, folder: str, head: psutil.Popen) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        if head.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError):
            _get(f"{url}/api/version", token)
            return
        time.sleep(0.5)
    raise RuntimeError(f"the head did not start: {Path(folder, 'node-0.log').read_text()[-3000:]}")


def _alive(url: str, token: str, folder: str, started: list[psutil.Popen]) -> None:
    ends = time.monotonic() + START_S
    told = ""
    while time.monotonic() < ends and not any(process.poll() is not None for process in started):
        with contextlib.suppress(urllib.error.URLError, OSError, KeyError, ValueError):
            told = _get(f"{url}/api/v0/nodes", token).decode()
            rows = json.loads(told)["data"]["result"]["result"]
            if sum(row["state"] == "ALIVE" for row in rows) >= len(started):
                return
        time.sleep(0.5)
    said = {log.name: log.read_text()[-1500:] for log in Path(folder).glob("node-*.log")}
    raise RuntimeError(f"nodes are missing: {told[:1000]}; they said {said}")


def _end(started: list[psutil.Popen]) -> None:
    """Stop what was started, the nodes before the head, and what they started; by pid."""
    below: list[psutil.Process] = []
    for process in reversed(started):
        with contextlib.suppress(psutil.NoSuchProcess):
            below += process.children(recursive=True)
            process.terminate()
    _, alive = psutil.wait_procs(started, timeout=20)
    for process in [*alive, *below]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs([*started, *below], timeout=10)
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
