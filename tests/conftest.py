"""What tests share: one small Ray, real recordings, an S3 endpoint in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUCKET = "plethora"
_POLICY = (
    '{"Version": "2012-10-17", '
    '"Statement": [{"Effect": "Allow", "Action": ["s3:*", "iam:*"], "Resource": "*"}]}'
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What tests/pretrain/test_recipe_contract.py holds to the contract in place of the house's recipes."""
    group = parser.getgroup("recipes")
    for name, form, words in (
        ("--recipe", "MODULE:CLASS", "hold this recipe to the contract of recipes (again for more)"),
        ("--method", "KEY=VALUE", "a key of its [method], to make its network small (again for more)"),
    ):
        group.addoption(name, action="append", default=[], metavar=form, help=words)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """One local Ray for the whole run (token authentication on); yields the ray module."""
    from cluster.session import data_context, session

    with session(workers=2, actors=3) as ray:
        data_context()
        yield ray


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real recordings: PLETHORA_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("PLETHORA_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}: set PLETHORA_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def _moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A moto server that checks keys and signatures, with one user who may do everything."""
    boto3 = pytest.importorskip("boto3")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("moto") / "log"
    with open(log, "wb") as sink:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.s3.atomic_moto", str(port)],
            cwd=ROOT,
            # the three requests that make the user come first; from the fourth on, keys are checked
            env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "3"},
            stdout=sink,
            stderr=sink,
            preexec_fn=_dies_with_us,
        )
    try:
        _wait_for(port, server, log)
        anyone = {"endpoint_url": url, "region_name": "us-east-1"}
        iam = boto3.client("iam", aws_access_key_id="x", aws_secret_access_key="x", **anyone)
        iam.create_user(UserName="tester")
        iam.put_user_policy(UserName="tester", PolicyName="s3", PolicyDocument=_POLICY)
        key = iam.create_access_key(UserName="tester")["AccessKey"]
        env = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_REGION": "us-east-1",
        }
        boto3.client(
            "s3",
            aws_access_key_id=key["AccessKeyId"],
            aws_secret_access_key=key["SecretAccessKey"],
            **anyone,
        ).create_bucket(Bucket=BUCKET)
        yield env
    finally:
        server.terminate()
        server.wait(10)


def _dies_with_us() -> None:
    """Ask Linux to end this child when a killed test run can no longer do so."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            break
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"moto did not start: {log.read_text()[-2000:]}")


@pytest.fixture
def moto(_moto_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of an S3 endpoint that checks keys (set for this test), with the bucket `plethora`."""
    return _only(_moto_server, monkeypatch)


@pytest.fixture(scope="session")
def store_env(request: pytest.FixtureRequest) -> dict[str, str]:
    """AWS_* of the store under test: PLETHORA_S3_ENDPOINT with the environment's own keys, else moto's."""
    endpoint = os.environ.get("PLETHORA_S3_ENDPOINT")
    if not endpoint:
        return dict(request.getfixturevalue("_moto_server"))
    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    env = {"AWS_ENDPOINT_URL": endpoint, **keys, "AWS_REGION": os.environ.get("AWS_REGION", "us-east-1")}
    boto3 = pytest.importorskip("boto3")
    client = boto3.client("s3", endpoint_url=endpoint, region_name=env["AWS_REGION"])
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    return env


@pytest.fixture
def store(store_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the S3 store under test (set for this test), with the bucket `plethora`."""
    return _only(store_env, monkeypatch)


def _only(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    others = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
    for name in (*others, "PLETHORA_S3_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return dict(env)
