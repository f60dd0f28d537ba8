"""Resharding of a DeepSpeed checkpoint for another number of workers, through DeepSpeed's universal
format."""

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
    """A folder with checkpoint `tag` of `folder` in the universal format; it lives as long as the block.

    Collective: every rank enters; the first rank of each machine converts. Errors: PlethoraError on every
    rank when one conversion fails.
    """
    with tempfile.TemporaryDirectory(prefix="plethora-universal-") as name:
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        error = _convert(folder / tag, Path(name) / tag) if first else None
        results: list[tuple[str, bool, str, str | None]] = [("", False, "", None)] * dist.get_world_size()
        dist.all_gather_object(results, (socket.gethostname(), first, name, error))
        for host, _, _, wrong in results:
            if wrong:
                raise PlethoraError(
                    f"checkpoint {folder} does not convert to {len(results)} workers on {host} ({wrong}): "
                    f"resume with as many workers as it was saved by"
                )
        here = socket.gethostname()
        yield next(Path(at) for host, converted, at, _ in results if converted and host == here)
        dist.barrier()  # other ranks on this machine still read from the folder


def _convert(source: Path, target: Path) -> str | None:
    """Convert in a subprocess, because DeepSpeed's converter is a script that forks. Returns None, or the
    error."""
    script = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", str(source), "--output_folder", str(target)]
    done = subprocess.run(
        [*script, *folders, "--num_extract_workers", "1", "--num_merge_workers", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},  # conversion needs no GPU
    )
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]
