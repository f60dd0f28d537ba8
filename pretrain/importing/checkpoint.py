"""Reads the tensors, and nothing else, from a third-party checkpoint file."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.errors import PlethoraError

CONTAINERS = ("model_state_dict", "state_dict", "model", "net")  # keys under which trainers store the weights
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's


def read(path: str) -> dict[str, Tensor]:
    """{name: tensor} of the state dict in a local .safetensors file, or in any file that ``torch.save``
    wrote: bare or in one of ``CONTAINERS``, without the prefix of ``WRAPPERS``.

    Opened as weights only: a file that needs any code other than a plain ``argparse.Namespace`` (the options
    that SIGMA's trainer saves) is refused, and none of its code runs. Errors: PlethoraError.
    """
    if "://" in path:
        raise PlethoraError(f"{path}: give a local file: download the checkpoint first")
    if not Path(path).is_file():
        raise PlethoraError(f"{path}: there is no such file")
    found: Any = _opened(path)
    while isinstance(found, Mapping):
        inner = next((found[key] for key in CONTAINERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        inside = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise PlethoraError(f"{path}: no state dict in it, only: {inside[:200] or 'nothing'}")
    if other := [str(name) for name, value in found.items() if not isinstance(value, Tensor)]:
        raise PlethoraError(f"{path}: its state dict holds more than tensors: {', '.join(other)[:200]}")
    return _unwrapped({str(name): value.detach() for name, value in found.items()})


def digest(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: str) -> Any:
    from safetensors.torch import load_file

    try:
        if path.lower().endswith(".safetensors"):
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a user's file may fail in any way: report it in one line
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise PlethoraError(
                f"{path}: not opened, it asks for {asked[1]} and only weights are read: "
                "save its state dict alone, best as .safetensors"
            ) from None
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise PlethoraError(
            f"{path}: cut off, or neither .safetensors nor torch weights ({reason}): download it again"
        ) from None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            return _unwrapped({name.removeprefix(prefix): value for name, value in state.items()})
    return state
