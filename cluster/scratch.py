"""Temporary folders; those that killed processes leave behind are removed later."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from cluster.errors import PlethoraError

LITTLE = 2**20  # bytes: with less free, the disk is full
STALE_S = 3600.0  # another container may share the folder but not the process ids


def scratch(kind: str) -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder for a `with` block. Folders of processes that ended an hour ago are removed."""
    home = Path(tempfile.gettempdir())
    for left in home.glob(f"plethora-{kind}-[0-9]*-*"):
        pid = left.name.removeprefix(f"plethora-{kind}-").split("-")[0]
        try:
            old = time.time() - left.stat().st_mtime > STALE_S
        except OSError:
            continue  # another process is removing it too
        if pid.isdecimal() and old and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"plethora-{kind}-{os.getpid()}-")


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """A block that writes only to the temporary `folder`: a full disk raises a one-line error. torch and
    safetensors report a full disk in their own ways, torch without the reason.
    """
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
        if not full and shutil.disk_usage(folder).free >= LITTLE:
            raise
        raise PlethoraError(
            f"the temporary folder {folder.parent} is full: free some of it, or name another one with TMPDIR"
        ) from error
