"""A real Prometheus (Debian's package) that scrapes Ray's nodes; on PATH, or where PROMETHEUS says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


def program(name: str = "prometheus") -> str | None:
    """`prometheus` or `promtool`, None where there is none."""
    given = os.environ.get("PROMETHEUS")
    if given:
        beside = Path(given).with_name(name)
        return str(beside) if beside.is_file() else None
    return shutil.which(name)


@dataclass(frozen=True)
class Prometheus:
    """A running one; questions go to its HTTP API."""

    url: str

    def ask(self, path: str, **asked: str) -> Any:
        """The `data` of an answer of the API; its error as a RuntimeError."""
        query = urllib.parse.urlencode(asked)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{asked}: {error.read().decode()[:500]}") from error

    def series(self, expression: str, seconds: float = 1800) -> list[dict[str, Any]]:
        """Series of `expression` over the last `seconds`, every 2 s; those without a number left out."""
        now = time.time()
        window = {"start": f"{now - seconds:.3f}", "end": f"{now:.3f}", "step": "2"}
        found = self.ask("query_range", query=expression, **window)["result"]
        return [one for one in found if any(value != "NaN" for _, value in one["values"])]

    def rules(self) -> list[dict[str, Any]]:
        """The rules of infra/prometheus, with their state and the error of their last evaluation."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


@contextlib.contextmanager
def prometheus(folder: Path, ports: tuple[int, ...]) -> Iterator[Prometheus]:
    """One that scrapes `ports` of this machine every 2 s and writes under `folder`."""
    found = program()
    assert found is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    targets = ", ".join(f"'127.0.0.1:{one}'" for one in ports)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 2s, evaluation_interval: 5s}\n"
        f"rule_files: ['{ROOT}/infra/prometheus/rules.yaml']\n"
        f"scrape_configs: [{{job_name: ray, static_configs: [{{targets: [{targets}]}}]}}]\n"
    )
    words = [found, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    words += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        at = Prometheus(f"http://127.0.0.1:{port}")
        for _ in range(100):
            with contextlib.suppress(OSError, RuntimeError):
                at.ask("query", query="1")
                break
            time.sleep(0.2)
        yield at
    finally:
        process.terminate()
        process.wait(30)


def panels(dashboard: Path) -> list[tuple[str, str]]:
    """(title, expression) of every query of a Grafana dashboard, its variables filled in: all runs, 30 s."""

    def walk(node: Any) -> Iterator[tuple[str, str]]:
        for panel in node.get("panels", []):
            yield from walk(panel)
            for target in panel.get("targets", []):
                yield panel.get("title", ""), target["expr"]

    return [(title, filled(text)) for title, text in walk(json.loads(dashboard.read_text()))]


def filled(expression: str) -> str:
    """An expression of a dashboard as Prometheus takes it."""
    text = re.sub(r"\$(?:__rate_interval|__interval|__range|\{__rate_interval\})", "30s", expression)
    return re.sub(r"\$(?:\{\w+(?::\w+)?\}|\w+)", ".*", text)
