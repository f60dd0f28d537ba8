"""The doctor names what is wrong and what to do; verify says yes in one line or why not."""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from cluster import doctor, storage
from cluster.__main__ import main
from cluster.doctor import Check
from cluster.session import ROOT


def _command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_doctor_on_this_machine_gives_each_finding_a_remedy(tmp_path: Path) -> None:
    done = _command("doctor", "--storage", str(tmp_path / "store"), "--json", PLETHORA_SUBJECT_KEY="00" * 16)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if report["ok"] else 1)
    checks = {check["name"]: check for check in report["checks"]}
    assert {"python", "packages", "torch", "accelerators", "memory", "ray tokens", "storage"} <= set(checks)
    assert all(check["remedy"] for check in report["checks"] if check["status"] != "ok")
    assert checks["storage"]["status"] == checks["torch"]["status"] == "ok"
    assert not storage.listing(tmp_path / "store"), "the probe is gone"
    assert "Traceback" not in done.stderr


def test_a_failed_check_makes_doctor_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *_: iter([Check("disk", "fail", "full", "free some")]))
    assert main(["doctor"]) == {
        "ok": False,
        "checks": [{"name": "disk", "status": "fail", "found": "full", "remedy": "free some"}],
    }
    shown = capsys.readouterr().out
    assert "fail  disk" in shown
    assert "→ free some" in shown
    assert shown.endswith("0 ok, 0 to know, 1 to mend\n")


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> Check:
        raise OSError("no such device")

    for name in ("packages", "torch_pair", "accelerators"):
        monkeypatch.setattr(doctor, name, lambda *_: Check("x", "ok", ""))
    monkeypatch.setattr(doctor, "memory", breaks)
    found = {check.name: check for check in doctor.examine(None, False)}
    assert (found["memory"].status, found["memory"].found) == ("fail", "OSError: no such device")
    assert "subject key" in found


def test_packages_that_miss_or_differ_from_the_lock_are_named(tmp_path: Path) -> None:
    import numpy

    lock = tmp_path / "requirements.lock"
    lock.write_text(
        f"numpy=={numpy.__version__} \\\n    --hash=sha256:0\n    # via x\nno-such-thing==1.0 \\\n"
        'windows-only==2 ; sys_platform == "win32" \\\n'
    )
    check = doctor.packages(lock, set())
    assert (check.status, check.found) == ("warn", "1 missing: no-such-thing")
    assert doctor.packages(lock, {"no-such-thing"}).status == "fail"
    lock.write_text("numpy==0.0.1\n")
    assert (
        doctor.packages(lock, set()).found == f"1 of another version: numpy {numpy.__version__} (lock: 0.0.1)"
    )
    lock.write_text(f"numpy=={numpy.__version__}\n")
    assert doctor.packages(lock, {"numpy"}).status == "ok"


def test_packages_that_every_process_would_compile_anew_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lies_raw.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = doctor.bytecode(["lies_raw"])
    assert found.status == "warn" and "lies_raw" in found.found and "--compile-bytecode" in found.remedy
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert doctor.bytecode(["lies_raw"]).status == "ok", "the first import compiles it for good"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    compileall.compile_dir(tmp_path, quiet=1)
    assert doctor.bytecode(["lies_raw", "there_is_none_such"]).status == "ok"


def test_a_lock_left_by_a_killed_build_of_deepspeed_is_found(tmp_path: Path) -> None:
    assert doctor.extension_lock(tmp_path).status == "ok"
    lock = tmp_path / "py311_cpu/deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    assert doctor.extension_lock(tmp_path).status == "warn"
    os.utime(lock, (time.time() - 3600, time.time() - 3600))
    check = doctor.extension_lock(tmp_path)
    assert (check.status, check.remedy) == ("fail", f"rm {lock}")


def test_a_subject_key_must_be_given_for_a_shared_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLETHORA_SUBJECT_KEY", raising=False)
    assert doctor.subject_key(remote=False).status == "warn"
    assert doctor.subject_key(remote=True).status == "fail"
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a-secret")
    assert doctor.subject_key(remote=True) == Check("subject key", "ok", "PLETHORA_SUBJECT_KEY is set")


def test_tokens_switched_off_are_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert doctor.ray_tokens().status == "fail"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert doctor.ray_tokens().status == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert doctor.ray_tokens().status == "fail"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 32)
    check = doctor.ray_tokens()
    assert check.status == "ok"
    assert "t" * 32 not in check.found


def test_little_memory_and_a_full_disk_have_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    monkeypatch.setattr(doctor, "memory_bytes", lambda: 1 << 30)
    assert doctor.memory().status == "fail"
    gib = 1 << 30
    usage = shutil._ntuple_diskusage  # type: ignore[attr-defined]
    for free, ray, other in ((1, "fail", "fail"), (8, "fail", "warn"), (90, "ok", "ok")):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _, free=free: usage(200 * gib, (200 - free) * gib, free * gib)
        )
        assert doctor.disk("disk of ray", str(tmp_path)).status == ray
        assert doctor.disk("disk of storage", str(tmp_path / "not/yet")).status == other


def test_a_store_with_all_rights_passes_and_the_probe_is_gone(store: dict[str, str]) -> None:
    uri = f"s3://plethora/{uuid.uuid4().hex}"
    check = doctor.store(uri)
    assert check.status == "ok", check.found
    assert "put, get, get through pyarrow, list, conditional put, delete" in check.found
    assert storage.listing(uri) == []


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong-and-secret", "put: .*(refuses the signature|denies access)"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "put: .*cannot reach http://127.0.0.1:9"),
    ],
)
def test_a_store_out_of_reach_or_closed_to_us_fails_without_telling_secrets(
    store: dict[str, str], monkeypatch: pytest.MonkeyPatch, setting: str, value: str, said: str
) -> None:
    import re

    from cluster import s3

    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setenv(setting, value)
    check = doctor.store("s3://plethora/x")
    assert check.status == "fail"
    assert re.match(said, check.found), check.found
    assert "wrong-and-secret" not in check.found


def test_a_user_who_may_write_but_not_list_is_told_which_right_is_missing(
    moto: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Resource": "*",'
    policy += ' "Action": ["s3:PutObject", "s3:GetObject"]}]}'
    iam = boto3.client(
        "iam",
        endpoint_url=moto["AWS_ENDPOINT_URL"],
        aws_access_key_id=moto["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=moto["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    iam.create_user(UserName="writer")
    iam.put_user_policy(UserName="writer", PolicyName="p", PolicyDocument=policy)
    key = iam.create_access_key(UserName="writer")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    check = doctor.store("s3://plethora/x")
    assert check.status == "fail"
    assert check.found.startswith("list: ")


def test_a_store_that_ignores_the_condition_of_a_mark_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "write_exclusive", lambda uri, data: storage.write_bytes(uri, data) or True)
    check = doctor.store(str(tmp_path))
    assert check.status == "fail"
    assert "two writers can both succeed" in check.found
    assert storage.listing(tmp_path) == []


def test_verify_says_ok_in_one_line_and_a_changed_byte_in_one_line(tmp_path: Path) -> None:
    from cluster import bundle

    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "config.json").write_text('{"version": 1, "kind": "tokenizer", "modes": {}}')
    for name in bundle.REQUIRED:
        if name != "config.json":
            (folder / name).write_text("{}")
    uri = str(tmp_path / "run/bundle")
    bundle.publish(folder, uri)
    done = _command("verify", uri, "--json")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0] == f"ok {uri}: tokenizer, 6 files, {json.loads(lines[1])['bytes']} bytes"
    assert json.loads(lines[1]) == {"uri": uri, "files": 6, "bytes": 58, "kind": "tokenizer"}
    (tmp_path / "run/bundle/README.md").write_text("[]")
    done = _command("verify", uri)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {uri}: `README.md` is damaged or was changed")
    assert done.stderr.count("\n") == 1


def test_help_is_there_and_bad_usage_exits_2() -> None:
    assert _command("--help").returncode == 0
    assert "--storage URI" in _command("doctor", "--help").stdout
    for wrong in ([], ["cure"], ["verify"]):
        assert _command(*wrong).returncode == 2
