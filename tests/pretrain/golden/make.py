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
NET1D = {"base_filters": 16, "ratio": 1, "filter_list": [16, 32], "m_blocks_list": [2, 1], "stride": 2}
RESNET = {"in_channels": 1, "base_filters": 4, "stride": 2, "groups": 1, "n_block": 10}
FOUNDER = NET1D | {"kernel_size": 16, "groups_width": 8, "n_classes": 3, "use_bn": False, "use_do": False}
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
    for samples in LENGTHS:
        x = windows(arguments["in_channels"], samples)
        with torch.no_grad():
            found = net(prepared(given.kind, x))
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
