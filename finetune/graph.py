"""A bundle's ONNX file, run by onnxruntime on the CPU; whatever is wrong with it is one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster.errors import PlethoraError


class Graph:
    """The model at `path`, or its bytes, called `where` in messages. It is a stranger's: it cannot read
    beside itself (onnxruntime refuses weights outside the model's folder, and a bundle holds no such files),
    runs no code of its own, and what it asks for in vain (an operator, more memory than there is) is a
    PlethoraError.
    """

    def __init__(self, path: Path | bytes, where: str, threads: int = 0) -> None:
        import onnxruntime

        self.where = where
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            model = path if isinstance(path, bytes) else str(path)
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a class of its own for each kind of failure
            if "External data path does not exist" in str(error):
                raise PlethoraError(
                    f"{where}: the model's weights are in a file of their own, {_last(error)}, which is not "
                    "there: put it beside the model, or save the model as one file"
                ) from None
            raise PlethoraError(f"{where}: onnxruntime cannot open this model ({one_line(error)})") from None

    @property
    def inputs(self) -> list[str]:
        """Names of its inputs."""
        return [given.name for given in self._session.get_inputs()]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """The first output for `feed`."""
        try:
            return np.asarray(self._session.run(None, dict(feed))[0])
        except Exception as error:
            raise PlethoraError(f"{self.where}: this model does not run ({one_line(error)})") from None


def _last(error: Exception) -> str:
    return Path(str(error).strip().rpartition(": ")[2].strip('"')).name


def one_line(error: Exception) -> str:
    """What a library's error says, which may be many lines, as one of at most 300 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
