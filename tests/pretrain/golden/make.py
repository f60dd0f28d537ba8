"""Records what the authors' own network computes, in `<kind>.json` beside this file.

    python -m tests.pretrain.golden.make KIND FOLDER COMMIT

FOLDER holds the authors' code at COMMIT; it is imported from there and never copied. The network is narrow,
and its weights are `weights` of its own state dict's names and shapes, which the file keeps, so that the test
needs no code of theirs.
"""

import argparse
import importlib
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
LENGTHS = (250, 251, 63)  # even, odd, and shorter than the halvings need
MORE = {"moment": (512,)}  # all that it takes at once
NET1D = {"base_filters": 16, "ratio": 1, "filter_list": [16, 32], "m_blocks_list": [2, 1], "stride": 2}
RESNET = {"in_channels": 1, "base_filters": 4, "stride": 2, "groups": 1, "n_block": 10}
FOUNDER = NET1D | {"kernel_size": 16, "groups_width": 8, "n_classes": 3, "use_bn": False, "use_do": False}
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_heads": 3, "num_layers": 3, "vocab_size": 8}
MOMENT = {  # config.json of MOMENT-1-small, but for sizes
    "task_name": "reconstruction",
    "transformer_type": "encoder_only",
    "transformer_backbone": "google/flan-t5-small",
    "d_model": None,
    "seq_len": 512,
    "patch_len": 8,
    "patch_stride_len": 8,
    "t5_config": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
# kind: (repository, module, class, arguments, which of its outputs is the vector; None: it has one output)
NETWORKS: dict[str, tuple[str, str, str, dict[str, Any], int | None]] = {
    "papagei-s": (
        "Nokia-Bell-Labs/papagei-foundation-model",
        "models.resnet",
        "ResNet1DMoE",
        RESNET | {"kernel_size": 3, "n_classes": 6, "n_experts": 3},
        0,
    ),
    "papagei-p": (
        "Nokia-Bell-Labs/papagei-foundation-model",
        "models.resnet",
        "ResNet1D",
        RESNET | {"kernel_size": 3, "n_classes": 6},
        0,
    ),
    "pulse-ppg": (
        "maxxu05/pulseppg",
        "pulseppg.nets.ResNet1D.ResNet1D_Net",
        "Net",
        RESNET | {"kernel_size": 11, "finalpool": "max"},
        None,
    ),
    "ecgfounder": (
        "PKUDigitalHealth/ECGFounder",
        "net1d",
        "Net1D",
        FOUNDER | {"in_channels": 1, "return_features": True},
        1,
    ),
    "ecgfounder-12": (
        "PKUDigitalHealth/ECGFounder",
        "net1d",
        "Net1D",
        FOUNDER | {"in_channels": 12, "return_features": True},
        1,
    ),
    "anyppg": (
        "PKUDigitalHealth/AnyPPG",
        "load_anyppg.resnet1d",
        "Net1D",
        NET1D | {"in_channels": 1, "kernel_size": 3, "groups_width": 8},
        None,
    ),
    "moment": (
        "moment-timeseries-foundation-model/moment",
        "momentfm.models.moment",
        "MOMENTPipeline",
        {"config": MOMENT, "model_kwargs": {}},
        None,
    ),
}


def weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A state dict of these shapes; each tensor depends on its name alone, whatever the numpy release."""
    found = {}
    for name, shape in shapes.items():
        draw = np.random.RandomState(zlib.crc32(name.encode()))
        x = draw.standard_normal(shape)
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7)
            continue
        if name.endswith("running_var"):
            x = 0.5 + np.abs(x)
        elif name.endswith(".pe"):  # positions: as large as the sines that they replace
            pass
        elif len(shape) > 1:
            x *= np.sqrt(0.5 / np.prod(shape[1:]))
        else:
            x = 0.3 * x + name.endswith("weight")
        found[name] = torch.from_numpy(np.asarray(x, dtype=np.float32))
    return found


def golden(name: str) -> dict[str, Any]:
    """What `main` recorded of a network."""
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    return found


def theirs(name: str) -> dict[str, torch.Tensor]:
    """The state dict of the network that `main` recorded."""
    return weights(golden(name)["shapes"])


def windows(channels: int, samples: int) -> torch.Tensor:
    """(2, channels, samples): noise on an offset, of another scale in each channel."""
    x = np.random.RandomState(samples).standard_normal((2, channels, samples))
    return torch.from_numpy((x * np.linspace(1, 3, channels)[:, None] + 0.5).astype(np.float32))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kind", choices=tuple(NETWORKS))
    parser.add_argument("folder")
    parser.add_argument("commit")
    given = parser.parse_args(argv)
    repository, module, name, arguments, output = NETWORKS[given.kind]
    sys.path.insert(0, given.folder)
    net = getattr(importlib.import_module(module), name)(**arguments).eval()
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict(weights(shapes))
    outputs = {}
    for samples in (*LENGTHS, *MORE.get(given.kind, ())):
        x = windows(arguments.get("in_channels", 1), samples)
        with torch.no_grad():
            found = embedded(net, x) if given.kind == "moment" else net(prepared(given.kind, x))
        vectors = (found if output is None else found[output]).numpy()
        outputs[str(samples)] = [[float(f"{value:.9g}") for value in row] for row in vectors]
    content = {
        "code": f"https://github.com/{repository}",
        "commit": given.commit,
        "network": f"{module}:{name}",
        "arguments": arguments,
        "shapes": shapes,
        "vectors": outputs,
    }
    (HERE / f"{given.kind}.json").write_text(json.dumps(content) + "\n")


def embedded(net: Any, x: torch.Tensor) -> torch.Tensor:
    """MOMENT's vectors of shorter windows, padded as its data loader pads (classification_dataset.py)."""
    left = (net.seq_len - x.shape[-1], 0)
    mask = torch.nn.functional.pad(torch.ones(len(x), x.shape[-1]), left)
    found: torch.Tensor = net.embed(x_enc=torch.nn.functional.pad(x, left), input_mask=mask).embeddings
    return found


def prepared(kind: str, x: torch.Tensor) -> torch.Tensor:
    """What the authors' data loaders do right before the network, where our network does it."""
    if kind == "anyppg":  # README.md: z-score along the time axis
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + 1e-5)
    if kind.startswith("ecgfounder"):  # dataset.py, z_score_normalization: over all leads
        each = [(w - np.mean(w)) / (np.std(w) + 1e-8) for w in x.numpy()]
        return torch.from_numpy(np.stack(each))
    return x


if __name__ == "__main__":
    main(sys.argv[1:])
