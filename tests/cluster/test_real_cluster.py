"""A head and two nodes with a token: jobs, their exit codes, who is refused, and a run to its bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Nodes, nodes
from tests.cluster.prometheus import Prometheus, panels, program, prometheus
from tests.conftest import ROOT

DASHBOARDS = sorted((ROOT / "infra").glob("grafana/*.json"))


SECRET = {"PLETHORA_SUBJECT_KEY": "a test's key"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(store_env: dict[str, str]) -> Iterator[Nodes]:
    """Nodes that know the store under test, as theirs: its keys are not in the runtime environment."""
    with nodes(more=2, cpus=3, env=store_env | SECRET) as running:
        yield running


def _ask(at: Nodes, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", *words],
        cwd=ROOT,
        env=at.env | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def test_a_job_runs_our_checkout_and_its_exit_code_is_ours(cluster: Nodes) -> None:
    done = _ask(cluster, "submit", "--wait", "--json", "--", "python", "-m", "cluster", "verify", "/nowhere")
    assert done.returncode == 1, done.stderr
    assert "no complete bundle" in done.stdout, "the job's log"
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["status"], told["exit_code"], told["new"]) == ("FAILED", 1, True)
    bad_usage = _ask(cluster, "submit", "--wait", "--", "python", "-m", "cluster", "verify")
    assert bad_usage.returncode == 2, bad_usage.stderr
    listed = _ask(cluster, "status", "--json")
    assert [job["exit_code"] for job in json.loads(listed.stdout.splitlines()[-1])["jobs"]] == [1, 2]


def test_without_the_token_or_with_another_one_is_refused(cluster: Nodes, tmp_path: Path) -> None:
    empty = {
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none"),
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "disabled",
    }
    wrong = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}
    (tmp_path / "wrong").write_text("f" * 64)
    for env in (empty, wrong):
        done = _ask(cluster, "submit", "--", "python", "-m", "cluster", "doctor", **env)
        assert done.returncode == 1
        assert "refuses access" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    with_ray = ["ray", "job", "submit", "--address", cluster.url, "--", "echo", "hello"]
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster.env["PATH"]])
    plain = subprocess.run(
        with_ray,
        env=cluster.env | wrong | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert plain.returncode != 0
    assert "hello" not in plain.stdout


def test_a_job_is_stopped_and_its_run_can_be_told(cluster: Nodes, tmp_path: Path) -> None:
    words = ["python", "-m", "pretrain", "pretrain/runs/sigma/tiny_tokenizer.toml"]
    words += [
        "--set",
        f"storage={tmp_path}/runs",
        "--set",
        f"corpus={tmp_path}/corpus",
        "--set",
        "name=stopped",
    ]
    (tmp_path / "corpus").mkdir()
    done = _ask(cluster, "submit", "--json", "--", *words)
    assert json.loads(done.stdout.splitlines()[-1])["id"] == "stopped-1"
    ended = _ask(cluster, "stop", "stopped", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["job"]["status"] in ("STOPPED", "FAILED")
    again = _ask(cluster, "submit", "--wait", "--json", "--", *words)
    told = json.loads(again.stdout.splitlines()[-1])
    assert (told["id"], told["exit_code"]) == ("stopped-2", 1), "no corpus there: one line in its log"
    assert "no corpus at" in again.stdout


@pytest.fixture
def scraped(cluster: Nodes, tmp_path: Path) -> Iterator[Prometheus]:
    if program() is None:
        pytest.skip("no Prometheus: apt-get install prometheus, or set PROMETHEUS to its program")
    with prometheus(tmp_path / "prometheus", cluster.metrics) as running:
        yield running


def test_sigma_tiny_goes_from_jobs_to_a_bundle_in_a_bucket_and_every_panel_has_data(
    cluster: Nodes, scraped: Prometheus, store: dict[str, str]
) -> None:
    home = f"s3://plethora/{uuid.uuid4().hex}"
    made = f"datasets synthesize --hours 2 --subjects 24 --seed 0 --out {home}/corpus".split()
    subprocess.run([sys.executable, "-m", *made], cwd=ROOT, env=os.environ | SECRET, check=True, timeout=300)
    common = ["--set", f"corpus={home}/corpus", "--set", f"storage={home}/runs", "--set", "batch=16"]
    common += ["--set", "validate_every=10", "--set", "checkpoint_every=10", "--set", "log_every=2"]
    first = ["python", "-m", "pretrain", "pretrain/runs/sigma/tiny_tokenizer.toml", *common]
    first += ["--set", "name=tokenizer", "--set", "steps=20", "--set", "method.codebook_start=5"]
    plain = ["ray", "job", "submit", "--runtime-env", "infra/runtime_env.yaml", "--working-dir", "."]
    done = subprocess.run(
        [*plain, "--", *first],
        cwd=ROOT,
        env=cluster.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    second = ["python", "-m", "pretrain", "pretrain/runs/sigma/tiny.toml", *common, "--set", "name=sigma"]
    second += ["--set", "steps=20", "--set", f"method.tokenizer={home}/runs/tokenizer/bundle"]
    done = _ask(cluster, "submit", "--wait", "--json", "--", *second)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["id"] == "sigma-1"

    from cluster import bundle, diagnose

    assert bundle.verify(f"{home}/runs/sigma/bundle")["kind"] == "encoder"
    assert diagnose.diagnose(f"{home}/runs/sigma").state == "complete"
    again = _ask(cluster, "submit", "--wait", "--json", "--", *second)
    assert "run sigma is complete" in again.stdout + again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["id"] == "sigma-2"

    names = {one["metric"]["run"] for one in scraped.series("ray_plethora_step")}
    assert names == {"tokenizer", "sigma"}
    ends = [
        {one["metric"]["run"]: one["values"][-1][0] for one in scraped.series(f"ray_plethora_{name}")}
        for name in ("step", "steps")
    ]
    # what is told once at the start lasts as long as what is told at every step, but for one of Ray's reports
    assert ends[0] == pytest.approx(ends[1], rel=0, abs=11)
    queries = [query for file in DASHBOARDS for query in panels(file)]
    assert queries, "no dashboard in infra/grafana"
    empty = [f"{title}: {text}" for title, text in queries if not scraped.series(text)]
    assert not empty
    rules = scraped.rules()
    assert rules and not [rule["name"] for rule in rules if rule["health"] != "ok"]
