"""A checkpoint that is not whole is refused with one line, whatever of it is damaged."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import PlethoraError
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
