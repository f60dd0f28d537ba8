"""SIGMA's masked stage through the command line, with processes killed: `pytest -m slow`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from cluster import bundle
from pretrain import checkpoint
from tests.datasets.test_stream import write_corpus
from tests.pretrain.group import EPS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STEPS = 160
SMALL = {
    "method.dim": 32,
    "method.depth": 1,
    "validate_every": 80,
    "checkpoint_every": 40,
    "log_every": 40,
    "batch": 12,
    "validate_windows": 24,  # as many for 1, 2 and 3 workers
    "optim.eps": EPS,
    "stream.self_read_mb": 1,  # most windows come through transform actors
}


def command(*parts: str, **settings: Any) -> list[str]:
    keys = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", *parts, *(word for key in keys for word in ("--set", key))]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("resume")
    corpus = ["--hours", "3", "--subjects", "24", "--seed", "0", "--out", str(home / "corpus")]
    subprocess.run([sys.executable, "-m", "datasets", "synthesize", *corpus], cwd=ROOT, check=True)
    subprocess.run(masked(home, "tokenizer", steps=20), cwd=ROOT, check=True)
    return home


def masked(home: Path, name: str, resume: bool = False, **more: Any) -> list[str]:
    stage = "tiny_tokenizer" if name == "tokenizer" else "tiny"
    parts = ["pretrain", f"pretrain/runs/sigma/{stage}.toml", *(["--resume"] if resume else [])]
    settings = (
        SMALL | {"corpus": home / "corpus", "storage": home / "runs", "name": name, "steps": STEPS} | more
    )
    if name != "tokenizer":
        settings |= {"method.tokenizer": home / "runs" / "tokenizer" / "bundle"}
    return command(*parts, **settings)


def weights(home: Path, name: str) -> dict:
    return load_file(bundle.open(str(home / "runs" / name / "bundle")).path("model.safetensors"))


def same(home: Path, a: str, b: str) -> bool:
    first, second = weights(home, a), weights(home, b)
    return first.keys() == second.keys() and all((first[k] == second[k]).all() for k in first)


def interrupted(home: Path, name: str, kill: Callable[[psutil.Process], None], **more: Any) -> int:
    """Start a run, let `kill` at its driver once a first checkpoint is committed; the exit code."""
    driver = subprocess.Popen(masked(home, name, **more), cwd=ROOT)
    while (checkpoint.committed(str(home / "runs" / name)) or 0) < 40:
        assert driver.poll() is None, "it ended before it could be killed"
        time.sleep(0.2)
    kill(psutil.Process(driver.pid))
    return driver.wait(600)


def kill_a_worker(driver: psutil.Process) -> None:
    workers = [p for p in driver.children(recursive=True) if "RayTrainWorker" in "".join(p.cmdline()[:1])]
    assert len(workers) == 2
    workers[1].kill()


def kill_the_driver(driver: psutil.Process) -> None:
    below = driver.children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(below, timeout=30)  # Ray's processes follow their driver
    for agent in alive:  # some of Ray's agents stay behind, idle
        assert "Agent" in agent.name()
        agent.kill()


@pytest.fixture(scope="module", params=[1, 0], ids=["zero1", "ddp"])
def unbroken(request: pytest.FixtureRequest, home: Path) -> tuple[str, int]:
    name = f"unbroken-{request.param}"
    subprocess.run(masked(home, name, **{"engine.zero_stage": request.param}), cwd=ROOT, check=True)
    return name, request.param


def test_a_run_whose_worker_is_killed_ends_with_the_weights_of_the_unbroken_one(unbroken, home: Path) -> None:
    name, stage = unbroken
    assert interrupted(home, f"worker-{stage}", kill_a_worker, **{"engine.zero_stage": stage}) == 0
    assert same(home, name, f"worker-{stage}")


def test_a_run_whose_driver_is_killed_ends_with_the_same_weights_after_resume(unbroken, home: Path) -> None:
    name, stage = unbroken
    settings = {"engine.zero_stage": stage}
    assert interrupted(home, f"driver-{stage}", kill_the_driver, **settings) == -signal.SIGKILL
    subprocess.run(masked(home, f"driver-{stage}", resume=True, **settings), cwd=ROOT, check=True)
    assert same(home, name, f"driver-{stage}")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_workers_sees_every_window_once_and_learns_the_same(
    unbroken, home: Path, before: int, after: int
) -> None:
    name, stage = unbroken
    new = f"from-{before}-to-{after}-{stage}"
    settings = {"engine.zero_stage": stage}
    interrupted(home, new, kill_the_driver, workers=before, **settings)
    subprocess.run(masked(home, new, resume=True, workers=after, **settings), cwd=ROOT, check=True)
    whole, moved = (bundle.open(str(home / "runs" / n / "bundle")) for n in (name, new))
    assert moved.lineage["windows_seen"] == whole.lineage["windows_seen"]
    for a, b in zip(whole.metrics["history"], moved.metrics["history"], strict=True):
        assert b["loss/student"] == pytest.approx(a["loss/student"], abs=1e-3)


def test_a_run_that_loses_a_machine_ends_with_the_weights_of_the_unbroken_one(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", shards=2, rows=6)
    for name, more in (("whole", []), ("loses", ["kill"])):
        script = [sys.executable, "-m", "tests.pretrain.lost_machine", str(tmp_path / "corpus")]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(
            [*script, str(tmp_path / "runs"), name, *more], cwd=ROOT, env=env, check=True, timeout=900
        )
    assert (tmp_path / "runs" / "loses" / "lost").exists()
    assert same(tmp_path, "whole", "loses")
