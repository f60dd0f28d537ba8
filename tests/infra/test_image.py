"""The image's recipe (nothing here can build one), and the scripts that let a node leave in good order."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"

# Ray's command line as far as the script looks at it: it takes its time to leave, and says so
RAY = """
import signal, sys, time
def leave(*_):
    time.sleep(0.5)
    open(sys.argv[3], "w").write("left")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
open(sys.argv[3] + ".up", "w").close()
time.sleep(30)
"""


def instructions() -> list[tuple[str, str]]:
    text = re.sub(
        r"\\\n",
        " ",
        "\n".join(
            line for line in (INFRA / "Dockerfile").read_text().splitlines() if not line.startswith("#")
        ),
    )
    return [
        (line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in text.splitlines() if line.strip()
    ]


def test_the_image_runs_as_nobody_special_and_asks_the_doctor_for_its_health() -> None:
    users = [value for name, value in instructions() if name == "USER"]
    assert users and int(users[-1].split(":")[0]) >= 1000
    (health,) = [value for name, value in instructions() if name == "HEALTHCHECK"]
    assert health.endswith('CMD ["python", "-m", "cluster", "doctor"]')
    last_root = max(i for i, (name, _) in enumerate(instructions()) if name in ("COPY", "RUN"))
    assert last_root < [name for name, _ in instructions()].index(
        "USER"
    )  # the code is not the user's to change


def test_the_image_installs_what_the_lock_pins_and_nothing_else() -> None:
    installs = [
        value for name, value in instructions() if name == "RUN" and ("pip" in value or "uv" in value)
    ]
    assert any("pip sync" in value and "--require-hashes" in value for value in installs)
    copied = " ".join(value for name, value in instructions() if name == "COPY")
    assert "requirements.lock" in copied
    packages = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if re.match(r"\w.*==", line)
    ]
    hashed = (ROOT / "requirements.lock").read_text().count("--hash=sha256:")
    assert hashed >= len(packages) > 50


def test_no_secret_is_given_to_the_image_and_few_folders_go_in() -> None:
    named = " ".join(value for name, value in instructions() if name in ("ARG", "ENV", "LABEL"))
    assert not re.search(r"SECRET|PASSWORD|ACCESS_KEY|SUBJECT_KEY|AUTH_TOKEN|HF_TOKEN", named)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and ignored.index("*") < min(
        i for i, line in enumerate(ignored) if line.startswith("!")
    )
    allowed = {line[1:].rstrip("/") for line in ignored if line.startswith("!")}
    packages = {"cluster", "datasets", "pretrain", "finetune", "tuning", "infra"}
    assert packages <= allowed and not allowed & {".git", ".venv", "out", "tests"}
    assert all((ROOT / name).exists() for name in allowed)


@pytest.fixture
def rays(tmp_path: Path) -> "subprocess.Popen[bytes]":
    """A process whose command line looks like `python …/ray start --block`."""
    (tmp_path / "ray").write_text(RAY)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "ray"), "start", "--block", str(tmp_path / "mark")]
    )
    while not (tmp_path / "mark.up").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def told(pattern: str) -> dict[str, str]:
    """The environment of a script that looks for this command line, and for no real Ray of this machine."""
    return {"PATH": os.environ["PATH"], "RAY_START": pattern}


def test_a_node_that_is_told_to_leave_has_left_when_the_script_returns(
    rays: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    reaper = threading.Thread(target=rays.wait)
    reaper.start()
    done = subprocess.run(
        [INFRA / "preempted"], env=told(f"{tmp_path}/ray start"), capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0 and "to leave" in done.stderr
    assert (tmp_path / "mark").read_text() == "left"
    reaper.join(10)
    assert rays.returncode == 0


def test_the_pattern_of_the_script_knows_rays_own_command_line() -> None:
    pattern = re.search(r"pattern=\$\{RAY_START:-'([^']+)'\}", (INFRA / "preempted").read_text())
    assert pattern
    assert re.search(
        pattern[1], "/opt/venv/bin/python /opt/venv/bin/ray start --head --block --metrics-export-port=8080"
    )
    assert re.search(
        pattern[1], "/usr/bin/python3.11 /usr/local/bin/ray start --address=plethora:6379 --block"
    )
    for other in (
        "/bin/bash -c -- ulimit -n 65536; ray start --block",
        "python -m pretrain run.toml",
        "ray::train",
    ):
        assert not re.search(pattern[1], other)


def test_without_ray_there_is_nothing_to_do() -> None:
    done = subprocess.run(
        [INFRA / "preempted"], env=told("no such command line anywhere 7f3a"), capture_output=True, text=True
    )
    assert done.returncode == 0 and "no Ray runs here" in done.stderr


class _Metadata(BaseHTTPRequestHandler):
    """Amazon's instance metadata: a notice from the third look on, for whoever shows its token."""

    looks = 0

    def do_PUT(self) -> None:
        self._answer(200 if self.path == "/latest/api/token" else 404, b"token-1")

    def do_GET(self) -> None:
        assert self.path == "/latest/meta-data/spot/instance-action"
        _Metadata.looks += self.headers["X-aws-ec2-metadata-token"] == "token-1"
        self._answer(200 if _Metadata.looks > 2 else 404, b'{"action": "terminate"}')

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_spot_machine_leaves_when_its_provider_says_so(
    rays: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=rays.wait).start()
    done = subprocess.run(
        [INFRA / "spot-notice"],
        env=told(f"{tmp_path}/ray start")
        | {"METADATA": f"http://127.0.0.1:{server.server_port}", "EVERY_S": "0.1"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    server.shutdown()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").read_text() == "left" and _Metadata.looks == 3
    assert rays.wait(10) != -signal.SIGKILL
