"""A Hugging Face model folder as an encoder: config.json, safetensors, and our preprocessing.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster import storage
from cluster.contract import Document
from cluster.errors import PlethoraError
from finetune.graph import one_line

# transformers' name of a model's input → how it takes windows (n, 1, samples)
INPUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "input_values": lambda x: x[:, 0],  # Wav2Vec2, HuBERT, WavLM: (n, samples)
    "past_values": lambda x: x.transpose(0, 2, 1),  # PatchTST, PatchTSMixer: (n, samples, channels)
}


def is_model(folder: Path) -> bool:
    """Whether config.json is one of transformers' (a bundle has one, too)."""
    try:
        table = json.loads((folder / "config.json").read_bytes())
    except ValueError:
        return False
    return isinstance(table, dict) and "model_type" in table


class HubPort:
    """A model of transformers' own classes; its vector is the mean of its last hidden states.

    Code that a folder brings is never run, and weights in pickles are not read.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        beside = folder / "preprocessing.json"
        if not beside.is_file():
            raise PlethoraError(f"{folder}: no preprocessing.json is in it: docs/bundles.md lists its keys")
        self.preprocessing = Document.of(storage.read_json(beside), str(beside))
        if len(self.preprocessing) != 1:
            raise PlethoraError(f"{beside}: a model folder takes one signal, not {len(self.preprocessing)}")
        self.folder, self.name = folder, folder.resolve().name
        self._net = self._loaded()
        self._adapt = INPUTS.get(self._net.main_input_name)
        if self._adapt is None:
            raise PlethoraError(
                f"{folder}: the model takes {self._net.main_input_name}, not {' or '.join(INPUTS)}: "
                "write a class with `embed` for it"
            )
        self._torch = torch

    def _loaded(self) -> Any:
        from transformers import AutoModel, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            net, about = AutoModel.from_pretrained(
                self.folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:
            raise PlethoraError(
                f"{self.folder}: transformers cannot open this model: {one_line(error)}"
            ) from error
        missing = sorted(about["missing_keys"])
        if missing:
            raise PlethoraError(
                f"{self.folder}: {len(missing)} weights are missing, the first is {missing[0]}"
            )
        return net.eval()

    def untrained(self, seed: int) -> "HubPort":
        from transformers import AutoModel

        fresh = object.__new__(HubPort)
        fresh.__dict__ = dict(self.__dict__)
        with self._torch.random.fork_rng(devices=[]):
            self._torch.manual_seed(seed)
            fresh._net = AutoModel.from_config(self._net.config).eval()
        return fresh

    def embed(self, x: np.ndarray) -> np.ndarray:
        assert self._adapt is not None
        with self._torch.inference_mode():
            given = self._torch.from_numpy(np.ascontiguousarray(self._adapt(x)))
            hidden = self._net(given).last_hidden_state
        return hidden.flatten(1, -2).mean(1).float().numpy()
