"""Ray is started or joined, quietly, with tokens, and workers find our packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import session as sessions
from cluster.errors import PlethoraError
from cluster.session import ROOT, data_context, object_store_bytes, runtime_env, scaling, session


def test_an_initialised_ray_is_joined_and_left_running(ray_session: Any) -> None:
    with session(workers=50) as ray:
        assert ray is ray_session
    assert ray_session.is_initialized()


def test_tokens_are_on_and_there_are_cpus_for_workers_their_actors_and_a_spare(ray_session: Any) -> None:
    mode = ray_session.get(ray_session.remote(lambda: os.environ.get("RAY_AUTH_MODE")).remote())
    assert mode == "token"
    assert ray_session.cluster_resources()["CPU"] >= 2 * (1 + 3) + 1


def test_nothing_of_a_local_session_listens_beyond_loopback(ray_session: Any) -> None:
    ray_session.get(ray_session.remote(lambda: None).remote())
    ours = psutil.Process()
    ports = [
        (process.name(), port.laddr.ip)
        for process in (ours, *ours.children(recursive=True))
        for port in process.net_connections(kind="inet")
        if port.status == psutil.CONN_LISTEN
    ]
    assert len(ports) > 4, "Ray's servers are seen"
    assert [name for name, ip in ports if ip.removeprefix("::ffff:") != "127.0.0.1"] == []


def test_workers_import_our_packages_and_our_datasets(ray_session: Any) -> None:
    def where() -> list[str]:
        import cluster
        import datasets

        return [str(cluster.__file__), str(datasets.__file__)]

    assert ray_session.get(ray_session.remote(where).remote()) == [
        str(ROOT / "cluster/__init__.py"),
        str(ROOT / "datasets/__init__.py"),
    ]


def test_more_gpus_than_there_are_is_one_clear_line_and_ends_what_was_started(ray_session: Any) -> None:
    program = (
        "from cluster.cli import entry\n"
        "from cluster.session import session\n"
        "def main(argv):\n"
        "    with session(workers=2, gpu=64): pass\n"
        "entry(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("Ray did not start within 30 s")]
    assert len(said) == 1, "starting Ray writes nothing else to the terminal"
    assert said[0].startswith("error: resources.gpu = 64 for 2 workers needs 128 GPUs, Ray has ")
    assert done.stdout == ""


def test_a_start_that_fails_leaves_no_process_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Busy:
        """A Ray that leaves a process behind and times out, twice."""

        def init(self, **_: Any) -> None:
            if len(started) < 2:
                started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
                raise Exception("The current node timed out during startup. This could happen because")

        def shutdown(self) -> None:
            pass

    sessions._start(Busy(), workers=1, actors=1)
    assert len(started) == 2
    assert not any(psutil.pid_exists(process.pid) for process in started)
    monkeypatch.setattr(sessions, "STARTS", 1)
    started.clear()
    with pytest.raises(PlethoraError, match="did not start in 1 tries"):
        sessions._start(Busy(), workers=1, actors=1)


def test_more_cpus_a_worker_than_this_machine_has_is_one_clear_line() -> None:
    with pytest.raises(PlethoraError, match="cpu = 640 for 2 workers, beside 4 transform actors"):
        sessions._start(None, workers=2, actors=2, cpu=640)


JOIN = """
from cluster.cli import entry
from cluster.session import session
def main(argv):
    with session() as ray:
        def where():
            import datasets
            return datasets.__file__
        print(ray.get(ray.remote(where).remote()))
entry(main)
"""


def _joined(
    ray_session: Any, folder: Path, code: str = JOIN, **settings: str
) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the session is on loopback alone, so who joins must be
    env |= {"RAY_ADDRESS": ray_session.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT), **settings}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_running_cluster_is_joined_with_its_token_and_this_checkout_travels_there(
    ray_session: Any, tmp_path: Path
) -> None:
    done = _joined(ray_session, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "working_dir_files" in done.stdout
    assert done.stdout.strip().endswith("datasets/__init__.py")
    assert done.stderr == ""
    assert ray_session.get(ray_session.remote(lambda: 1).remote()) == 1, "the joiner ends itself alone"


def test_a_joined_cluster_with_too_few_cpus_is_one_clear_line(ray_session: Any, tmp_path: Path) -> None:
    have = ray_session.cluster_resources()["CPU"]
    many = int(have) + 1
    done = _joined(ray_session, tmp_path, JOIN.replace("session()", f"session({many}, 1, fewest={many})"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {many} workers with 1 CPUs (resources.cpu) and 1 transform actors (stream.actors) each need "
        f"{2 * many} CPUs, Ray has {have:g}: lower one of them, or add nodes"
    ]
    elastic = _joined(ray_session, tmp_path, JOIN.replace("session()", f"session({many}, 1, fewest=1)"))
    assert elastic.returncode == 0, elastic.stderr


@pytest.mark.slow
def test_nodes_with_too_few_cpus_under_the_labels_asked_for_are_one_clear_line(ray_session: Any) -> None:
    (node,) = ray_session.nodes()
    here = {"ray.io/node-id": node["NodeID"]}
    sessions.require_labels(ray_session, {}, 1e6)
    sessions.require_labels(ray_session, here, node["Resources"]["CPU"])
    with pytest.raises(PlethoraError, match=r"the labels ray.io/node-id=\w+ \(stream.on\) have \d+ CPUs"):
        sessions.require_labels(ray_session, here, node["Resources"]["CPU"] + 1)
    with pytest.raises(PlethoraError, match=r"pool=cpu \(stream.on\) have 0 CPUs, transform actors take 2"):
        sessions.require_labels(ray_session, {"pool": "cpu"}, 2)


def test_a_wrong_token_is_refused(ray_session: Any, tmp_path: Path) -> None:
    done = _joined(ray_session, tmp_path, RAY_AUTH_TOKEN="f" * 32)
    assert done.returncode == 1
    assert "cannot join this cluster" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_a_cluster_that_cannot_be_joined_is_one_clear_line() -> None:
    program = (
        "from cluster.cli import entry\n"
        "from cluster.session import session\n"
        "def main(argv):\n"
        "    with session(): pass\n"
        "entry(main)"
    )
    env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=env,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: RAY_ADDRESS=127.0.0.1:9: cannot join this cluster")
    assert done.stderr.count("\n") == 1


def test_the_object_store_is_a_fifth_of_the_memory_two_gib_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "memory_bytes", lambda: 1 << 40)
    assert object_store_bytes() <= 2 << 30
    monkeypatch.setattr(sessions, "memory_bytes", lambda: 5 << 27)
    assert object_store_bytes() == 1 << 27


def test_the_runtime_environment_carries_the_checkout_without_its_ballast() -> None:
    table = runtime_env()
    assert Path(table["working_dir"]) == ROOT
    assert {"/.git/", "/.venv/", "/out/"} <= set(table["excludes"])
    assert "env_vars" not in table


def test_scaling_gives_each_worker_a_cpu_and_its_share_of_gpus() -> None:
    assert scaling(2, 0).resources_per_worker == {"CPU": 1}
    assert not scaling(2, 0).use_gpu
    assert scaling(3, 0.5).resources_per_worker == {"CPU": 1, "GPU": 0.5}
    assert scaling((1, 4), 0).num_workers == (1, 4)


def test_ray_data_keeps_the_order_and_shows_no_bars_of_its_own() -> None:
    context = data_context()
    assert context.execution_options.preserve_order
    assert not context.enable_progress_bars
    assert context.target_max_block_size == 128 << 20
    assert context.execution_no_progress_timeout_s >= 600
