"""What is known of imported weights: a JSON file beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster import storage
from cluster.config import Config, validate
from cluster.errors import PlethoraError

FILE = "origin.json"
UNSTATED = "not stated"


class Origin(Config):
    """Written by `import-vision` as origin.json beside model.safetensors."""

    weights: str  # SHA-256 of model.safetensors
    name: str  # timm's
    options: dict[str, Any]  # of timm's model
    image: tuple[int, int]  # height and width that the table of positions is for
    mean: tuple[float, ...]
    std: tuple[float, ...]
    file: str  # name of the ONNX file
    sha256: str  # of the ONNX file
    licence: str
    origin: str  # who trained the weights, on what
    difference: float  # largest, between tokens of timm's model and of the graph

    def line(self) -> str:
        return f"from {self.file}, licence {self.licence}, origin of the weights {self.origin}"


def beside(path: str, digest: str) -> Origin | None:
    """The origin of the weights at `path`, whose SHA-256 is `digest`; None where no origin.json lies beside
    them. PlethoraError: it is of other weights, or no such file.
    """
    file = Path(path).parent / FILE
    if not file.is_file():
        return None
    found = storage.read_json(str(file))
    if not isinstance(found, dict):
        raise PlethoraError(f"{file} is no record of imported weights: delete it")
    known = validate(Origin, found, str(file))
    if known.weights != digest:
        raise PlethoraError(f"{file} is of other weights than {path}: import them again, or delete {FILE}")
    return known
