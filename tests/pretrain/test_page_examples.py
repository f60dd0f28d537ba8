"""The worked example of docs/running.md."""

from pathlib import Path
from typing import Any

import pytest

from cluster import bundle
from datasets.synthetic import synthesize
from tests.pages import blocks, commands, run, worked


@pytest.mark.slow  # a plan that is timed, and a training on two workers
def test_a_run_is_planned_indexed_trained_and_found_complete(
    ray_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    synthesize(str(out / "demo" / "corpus"), hours=0.6, subjects=12, seed=1)
    (shell,) = blocks(worked("docs/running.md"), "bash")
    for words in commands(shell):
        in_out = [] if "plan" in words else ["--set", f"storage={out / 'runs'}"]  # its default is out/runs
        run([*words, *in_out], out)
    assert bundle.open(str(out / "runs" / "simclr-tiny" / "bundle")).metrics
    assert "run simclr-tiny is complete" in "".join(capsys.readouterr())
