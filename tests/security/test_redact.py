"""Planted secrets: in messages, tracebacks, logs, configuration dumps and URIs none of them is seen again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import redact, storage
from cluster.config import Config, load
from cluster.errors import PlethoraError

ROOT = Path(__file__).resolve().parents[2]
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEBYaDK8r/planted",
    "RAY_AUTH_TOKEN": "ray-8f2c19d0-planted",
    "PLETHORA_SUBJECT_KEY": "5e7d0c3b9a88f1e2planted",
    "HF_TOKEN": "hf_plantedplantedplanted",
    "WANDB_API_KEY": "0123456789abcdefplanted",
    "DATABASE_PASSWORD": "correct horse battery",
}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def seen(text: str) -> list[str]:
    """Which planted secrets a text shows."""
    return [name for name, value in PLANTED.items() if value in text]


def test_every_planted_secret_is_masked_and_the_rest_stays() -> None:
    text = "; ".join(f"{name} is {value} here" for name, value in PLANTED.items())
    told = redact.redact(text)
    assert seen(text) == list(PLANTED) and not seen(told)
    assert told == "; ".join(f"{name} is {redact.MASK} here" for name in PLANTED)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://anna:tulip@host:9000/b", "https://…@host:9000/b"),
        ("s3://tok@bucket/x?X-Amz-Signature=abc&a=1", "s3://…@bucket/x?X-Amz-Signature=…&a=1"),
        ("GET /f?sig=a%2Bb&token=zzz HTTP", "GET /f?sig=…&token=… HTTP"),
        ("Authorization: Bearer abcdefgh12345678==", "Authorization: Bearer …"),
        ("key ASIAY34FZKBOKMUTVV7A", "key …"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nrest", "…\nrest"),
    ],
)
def test_secrets_that_no_variable_holds_are_known_by_their_shape(text: str, told: str) -> None:
    assert redact.redact(text) == told


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/run@2/x", "method.tokenizer=/runs/tok/bundle", "8 tokens: 5", "a@b.org", "step 3/7, 12.5%"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact.redact(text) == text


def test_rays_token_file_and_this_machines_subject_key_are_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    for name, text in ((".ray/auth_token", "tokenfile\n"), (".config/plethora/subject.key", "keyfile")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert redact.redact("a tokenfile b keyfile") == "a … b …"


def test_an_error_shows_no_secret_and_moves_no_cursor() -> None:
    error = PlethoraError(f"cannot use {PLANTED['HF_TOKEN']}\x1b]0;title\x07 of \u202ecod.exe\n  twice")
    assert str(error) == "cannot use …\ufffd]0;title\ufffd of \ufffdcod.exe twice"


def test_a_wrong_value_in_a_configuration_is_not_shown_when_it_is_a_secret(tmp_path: Path) -> None:
    class Run(Config):
        steps: int

    (tmp_path / "run.toml").write_text("")
    with pytest.raises(PlethoraError) as caught:
        load(tmp_path / "run.toml", Run, [f"steps={PLANTED['AWS_SECRET_ACCESS_KEY']}"])
    assert "steps" in str(caught.value) and not seen(str(caught.value))


@pytest.mark.parametrize(
    "uri", ["https://anna:tulip@host/corpus", "s3://anna:tulip@bucket/corpus", "gs://anna:tulip@b/c"]
)
def test_a_password_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(PlethoraError) as caught:
        storage.normalise(uri)
    assert "tulip" not in str(caught.value)


def test_a_dumped_configuration_holds_masks_under_telling_names_and_planted_values() -> None:
    dumped = redact.clean(
        {
            "storage": "s3://bucket/runs",
            "tokenizer": "/a/b",
            "password": "tulip",
            "hub": {"api_key": "rose", "user": "anna"},
            "list": [PLANTED["RAY_AUTH_TOKEN"], 3, None, ("https://anna:tulip@h/x",)],
        }
    )
    assert dumped == {
        "storage": "s3://bucket/runs",
        "tokenizer": "/a/b",
        "password": "…",
        "hub": {"api_key": "…", "user": "anna"},
        "list": ["…", 3, None, ["https://…@h/x"]],
    }


def test_a_command_that_fails_in_any_way_shows_no_secret() -> None:
    code = """
import logging, os, sys
from cluster.cli import entry
def main(argv):
    logging.basicConfig()
    print("to stdout", os.environ["HF_TOKEN"])
    logging.warning("to the log %s", os.environ["RAY_AUTH_TOKEN"])
    try:
        raise ValueError("inside " + os.environ["WANDB_API_KEY"])
    except ValueError:
        logging.exception("failed")
    raise RuntimeError("a bug with " + os.environ["AWS_SECRET_ACCESS_KEY"] + " in it")
entry(main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not seen(done.stdout + done.stderr)
    assert "to stdout …" in done.stdout and "to the log …" in done.stderr
    assert "ValueError: inside …" in done.stderr and "RuntimeError: a bug with … in it" in done.stderr


def test_a_handler_made_before_redaction_writes_no_secret_either() -> None:
    code = """
import logging, os, sys
logging.basicConfig(format="%(message)s")
from cluster import redact
redact.install(); redact.install()
logging.warning("given %s", {"key": os.environ["DATABASE_PASSWORD"]})
try: 1 / 0
except ZeroDivisionError: logging.exception("at %s", os.environ["PLETHORA_SUBJECT_KEY"])
print(type(sys.stdout.inner).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not seen(done.stdout + done.stderr), done.stderr
    assert "given {'key': '…'}" in done.stderr and "ZeroDivisionError" in done.stderr
    assert done.stdout.strip() == "TextIOWrapper"  # wrapped once


def test_a_dumped_environment_holds_no_secret() -> None:
    assert seen(json.dumps(dict(os.environ))) and not seen(json.dumps(redact.clean(dict(os.environ))))
