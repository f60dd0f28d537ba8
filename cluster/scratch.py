"""Temporary folders that do not outlive a machine's patience: what a killed process left is removed later."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

STALE_S = 3600.0  # another container may share the folder and not the process ids


def scratch(kind: str) -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder for a `with` block. Those of processes that are gone for an hour are removed."""
    home = Path(tempfile.gettempdir())
    for left in home.glob(f"plethora-{kind}-[0-9]*-*"):
        pid = left.name.removeprefix(f"plethora-{kind}-").split("-")[0]
        try:
            old = time.time() - left.stat().st_mtime > STALE_S
        except OSError:
            continue  # another process removes it, too
        if pid.isdecimal() and old and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"plethora-{kind}-{os.getpid()}-")
