"""An older commit of ours beside this one: its git worktree, made once below out/, and code run there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.table import ROOT


def worktree(commit: str) -> Path:
    """A checkout of `commit`. It shares this environment."""
    at = ROOT / "out" / "older" / commit
    if not at.exists():
        add = ["git", "worktree", "add", "--detach", "-f", str(at), commit]
        if subprocess.run(add, cwd=ROOT, capture_output=True).returncode:
            sys.exit(f"error: this checkout has no commit {commit}: name another one with --older")
    return at


def told(commit: str, code: str) -> Any:
    """What `code`, run in a process of its own on the older commit, prints as JSON."""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=worktree(commit), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
