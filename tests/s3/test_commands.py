"""The commands from recordings to a verified bundle, all in a bucket; and what they say when they can't."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import __main__ as cluster_command
from cluster import bundle, s3, storage
from cluster.errors import PlethoraError
from datasets import __main__ as datasets_command
from datasets.schema import open_corpus
from pretrain import __main__ as pretrain_command
from tests.datasets.recordings import descriptor, waves, write_record

ROOT = Path(__file__).resolve().parents[2]
PEOPLE, SECONDS = 10, 100

# One Ray for all: each command uses the one that runs. Its workers have the environment of its start.
RUN_ALL = """
import json, sys
from cluster import __main__ as cluster
from cluster.session import session
from datasets import __main__ as datasets
from pretrain import __main__ as pretrain
made = []
with session(workers=1, actors=1):
    for package, *argv in json.loads(sys.argv[1]):
        made.append({"cluster": cluster, "datasets": datasets, "pretrain": pretrain}[package].main(argv))
print(json.dumps(made))
"""


def commands(*lines: list[str]) -> list[dict[str, Any]]:
    """Run commands one after the other in one process; what each returned."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return made


def run_file(folder: Path, corpus: str, runs: str) -> str:
    path = folder / "run.toml"
    path.write_text(f"""
recipe = "tests.pretrain.toy:Toy"
corpus = "{corpus}"
storage = "{runs}"
name = "toy"
steps = 6
batch = 8
validate_every = 3
checkpoint_every = 3
log_every = 2
optim = {{ lr = 0.03, warmup_steps = 1 }}
stream = {{ self_read_mb = 0 }}
split = {{ val = 0.2, test = 0.2 }}
""")
    return str(path)


def test_recordings_in_a_bucket_become_a_verified_bundle_in_a_bucket(
    store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for n in range(PEOPLE):
        write_record(tmp_path / "root", n, f"id-{n}", {"PLETH": waves(SECONDS, 100, n)})
    home = f"s3://plethora/{uuid.uuid4().hex}"
    root, corpus, runs = (storage.join(home, name) for name in ("root", "corpus", "runs"))
    storage.upload(tmp_path / "root", root)
    known, run = str(descriptor(tmp_path)), run_file(tmp_path, corpus, runs)
    ingested, again, seen, indexed, trained, verified, resumed = commands(
        ["datasets", "ingest", known, "--root", root, "--out", corpus],
        ["datasets", "ingest", known, "--root", root, "--out", corpus],
        ["datasets", "inspect", corpus],
        ["pretrain", "index", run],
        ["pretrain", run],
        ["cluster", "verify", f"{runs}/toy/bundle"],
        ["pretrain", run, "--resume"],
    )
    assert ingested["counts"]["subjects"] == PEOPLE and not ingested["already_there"]
    assert again["already_there"] and again["hash"] == ingested["hash"] == seen["hash"]
    assert indexed["corpora"][0]["verdicts"] == {"ok": PEOPLE * SECONDS // 10}
    assert trained["steps"] == 6 and np.isfinite(trained["metrics"]["loss/net"])
    assert trained["bundle"] == resumed["bundle"] == verified["uri"] == f"{runs}/toy/bundle"
    opened = bundle.open(verified["uri"])
    assert opened.lineage["corpora"][0]["hash"] == ingested["hash"]
    assert [name for name in storage.listing(corpus) if name.startswith("parts")] == []
    assert open_corpus(corpus).read_row_group(0, 0).num_rows > 0
    uploads = s3.call("list_multipart_uploads", home, Prefix=s3.split(home)[1]).get("Uploads") or []
    assert uploads == []
    assert bundle.find(home) == [verified["uri"]]


# ---------------------------------------------------------------- what they say when they can't


def _every_command(home: str, tmp_path: Path) -> dict[str, Callable[[], object]]:
    """Each command on URIs under `home`; none of these comes as far as to start Ray."""
    known = str(descriptor(tmp_path))
    write_record(tmp_path / "root", 1, "id", {"PLETH": waves(20, 100, 1)})
    local = str(tmp_path / "root")
    run = run_file(tmp_path, f"{home}/corpus", f"{home}/runs")
    data, train = datasets_command.main, pretrain_command.main
    return {
        "synthesize": lambda: data(
            ["synthesize", "--hours", "0.01", "--subjects", "1", "--out", f"{home}/c"]
        ),
        "ingest from": lambda: data(
            ["ingest", known, "--root", f"{home}/root", "--out", str(tmp_path / "out")]
        ),
        "ingest to": lambda: data(["ingest", known, "--root", local, "--out", f"{home}/corpus"]),
        "inspect": lambda: data(["inspect", f"{home}/corpus"]),
        "train": lambda: train([run]),
        "verify": lambda: cluster_command.main(["verify", f"{home}/runs/toy/bundle"]),
    }


def _said(home: str, tmp_path: Path) -> dict[str, str]:
    said = {}
    for name, command in _every_command(home, tmp_path).items():
        with pytest.raises(PlethoraError) as caught:
            command()
        said[name] = str(caught.value)
        assert "\n" not in said[name] and said[name].startswith(home), said[name]
    assert not (tmp_path / "out").exists()
    return said


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")


def test_a_missing_bucket_is_named_by_every_command(store: dict[str, str], tmp_path: Path) -> None:
    said = _said("s3://no-such-bucket-here/x", tmp_path)
    assert all("there is no bucket `no-such-bucket-here`" in line for line in said.values()), said


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key_is_one_line_of_every_command(
    store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "SOMETHINGWRONG")
    said = _said("s3://plethora/x", tmp_path)
    assert all(name in line or "denies access" in line for line in said.values()), said
    assert not any("SOMETHINGWRONG" in line for line in said.values())


def test_the_endpoint_may_be_named_for_plethora_alone(
    store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PLETHORA_S3_ENDPOINT", store["AWS_ENDPOINT_URL"])
    uri = f"s3://plethora/{uuid.uuid4().hex}"
    storage.write_bytes(f"{uri}/a", b"1")
    files, path = storage.filesystem(uri)
    with files.open_input_file(f"{path}/a") as source:
        assert source.read() == b"1"
