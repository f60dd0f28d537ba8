"""An ONNX file as an encoder: its preprocessing.json lies beside it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster import storage
from cluster.contract import Document
from cluster.errors import PlethoraError
from finetune.graph import Graph


class OnnxPort:
    """The first output of a graph, (n, dim). A single input may have any name; several are named by their
    modalities.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        beside = path.with_name("preprocessing.json")
        if not beside.is_file():
            raise PlethoraError(f"{path}: no preprocessing.json is beside it: docs/bundles.md lists its keys")
        self.preprocessing = Document.of(storage.read_json(beside), str(beside))
        self.name = path.stem
        self._graph = Graph(path, str(path), threads)
        names = self._graph.inputs
        if len(self.preprocessing) == 1:
            self._inputs = dict(zip(self.preprocessing, names, strict=False))
        else:
            self._inputs = {m: m for m in self.preprocessing}
        if sorted(self._inputs.values()) != sorted(names):
            raise PlethoraError(
                f"{path}: the graph takes {', '.join(names)}, preprocessing.json names "
                f"{', '.join(self.preprocessing)}: they must be the same"
            )

    def embed(self, x: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        given = x if isinstance(x, Mapping) else dict.fromkeys(self._inputs, x)
        return self._graph({name: given[m] for m, name in self._inputs.items()})
