"""A sharded DeepSpeed checkpoint for another number of workers, through DeepSpeed's universal format."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from cluster.errors import PlethoraError


@contextmanager
def universal(folder: Path, tag: str) -> Iterator[Path]:
    """A folder that holds checkpoint `tag` of `folder` in the universal format while the block runs.

    Every rank enters; the first of each machine converts. Raises PlethoraError on every rank when one fails.
    """
    with tempfile.TemporaryDirectory(prefix="plethora-universal-") as name:
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        error = _convert(folder / tag, Path(name) / tag) if first else None
        told: list[tuple[str, bool, str, str | None]] = [("", False, "", None)] * dist.get_world_size()
        dist.all_gather_object(told, (socket.gethostname(), first, name, error))
        for host, _, _, wrong in told:
            if wrong:
                raise PlethoraError(
                    f"checkpoint {folder} does not convert to {len(told)} workers on {host} ({wrong}): "
                    f"resume with as many workers as it was saved by"
                )
        yield next(Path(at) for host, converted, at, _ in told if converted and host == socket.gethostname())
        dist.barrier()  # the others on this machine still read from it


def _convert(source: Path, target: Path) -> str | None:
    """None, or what went wrong. In a process of its own: DeepSpeed's converter is a script that forks."""
    script = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", str(source), "--output_folder", str(target)]
    done = subprocess.run(
        [*script, *folders, "--num_extract_workers", "1", "--num_merge_workers", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},  # it only moves files
    )
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]
