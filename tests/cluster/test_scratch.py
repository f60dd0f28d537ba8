"""Temporary folders of killed processes are removed, and no other."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from cluster.scratch import scratch


def test_only_folders_of_processes_that_are_long_gone_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = {
        "old": f"plethora-checkpoint-{gone.pid}-a",
        "young": f"plethora-checkpoint-{gone.pid}-b",
        "alive": f"plethora-checkpoint-{os.getpid()}-c",
        "other": f"plethora-bundle-{gone.pid}-d",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
        if name != names["young"]:
            os.utime(tmp_path / name, (0, time.time() - 3700))
    with scratch("checkpoint") as mine:
        assert Path(mine).is_dir()
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {*names.values(), Path(mine).name} - {names["old"]}
    assert not Path(mine).exists()
