"""A checkpoint that is not whole is refused with one line, whatever of it is damaged."""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import PlethoraError
from pretrain import checkpoint
from pretrain.checkpoint import verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What two ranks save."""
    shares = {0: {"net.pt": b"0", "loop.json": json.dumps({"workers": 2, "state": {}}).encode()}}
    shares[1] = {"net/share-1.pt": b"1"}
    for rank, files in shares.items():
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
        manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        (tmp_path / f"manifest-{rank}.json").write_text(json.dumps(manifest))
    return tmp_path


def test_a_whole_checkpoint_verifies(folder: Path) -> None:
    verify(folder)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "net.pt").write_bytes(b"2"), "net.pt in checkpoint .* is not what was saved"),
        (lambda f: (f / "loop.json").write_text("{}"), "loop.json in checkpoint .* is not what was saved"),
        (lambda f: (f / "loop.json").write_text(""), "loop.json in checkpoint .* is not what was saved"),
        (lambda f: (f / "manifest-1.json").write_text('{"net'), "manifest-1.json in checkpoint .* is not"),
        (lambda f: (f / "manifest-1.json").write_text("7"), "manifest-1.json in checkpoint .* is not"),
        (lambda f: (f / "net/share-1.pt").unlink(), "net/share-1.pt is missing"),
        (lambda f: (f / "loop.json").unlink(), "loop.json is missing"),
        (lambda f: (f / "manifest-0.json").unlink(), "manifest-0.json is missing"),
        (
            lambda f: [(f / n).unlink() for n in ("manifest-1.json", "net/share-1.pt")],
            "manifest-1.json is missing",
        ),
        (lambda f: (f / "evil.pt").touch(), "evil.pt does not belong"),
    ],
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(folder)
    with pytest.raises(PlethoraError, match=says):
        verify(folder)


class Writes:
    """An engine whose share is written so."""

    def __init__(self, write: Callable[[Path], object]) -> None:
        self.write = write

    def save(self, folder: Path) -> None:
        self.write(folder)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of 1 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


BIG = torch.zeros(2**20)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: torch.save({"w": BIG}, folder / "net.pt"),
        lambda folder: save_file({"w": BIG}, folder / "buffers.safetensors"),
        lambda folder: (folder / "x").write_bytes(BIG.numpy().tobytes()),
    ],
    ids=["torch", "safetensors", "bytes"],
)
def test_a_full_temporary_folder_is_one_line(small: Path, write: Callable[[Path], object]) -> None:
    engines: Any = {"net": Writes(write)}
    with pytest.raises(
        PlethoraError, match=f"temporary folder {small} is full: free some of it, or .* TMPDIR"
    ):
        checkpoint.save(engines, {"step": 1}, 1, {})


def test_what_else_goes_wrong_while_saving_keeps_its_traceback(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        raise RuntimeError("cannot write this")

    engines: Any = {"net": Writes(fails)}
    with pytest.raises(RuntimeError, match="cannot write this"):
        checkpoint.save(engines, {"step": 1}, 1, {})
