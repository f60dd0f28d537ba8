"""Publishing a run: from trained weights to a bundle that needs only onnxruntime."""

import importlib.metadata
import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import bundle, redact, storage
from datasets import declared
from datasets.windows import WindowSpec
from pretrain import card, published
from pretrain.checkpoint import flat
from pretrain.config import RunConfig
from pretrain.curves import curves
from pretrain.engine import load_trained
from pretrain.export import export_onnx
from pretrain.lineage import inherited, parents
from pretrain.recipe import Encoder, Recipe

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = (
    "ray",
    "torch",
    "timm",
    "peft",
    "deepspeed",
    "numpy",
    "scipy",
    "pyarrow",
    "onnx",
    "onnxruntime",
)


@dataclass(frozen=True)
class Trained:
    """The results of a run, for publication."""

    weights: Mapping[str, Mapping[str, "Tensor"]]  # {module: state dict without frozen parameters}
    corpora: list[dict[str, Any]]  # the training corpora: `lineage.corpora`
    windows: WindowSpec
    history: list[dict[str, float]]  # validations in order
    ledger: Mapping[str, list[int]]
    plots: Mapping[str, bytes]  # {name: PNG}
    # the validation that selected the weights ({"metric", "step", "value", "stopped"}), with model selection
    selected: Mapping[str, Any] | None = None


def publish(run: RunConfig, recipe: Recipe, trained: Trained) -> str:
    """Write and publish <storage>/<name>/bundle; return its URI. A complete bundle is left unchanged.

    The ONNX file of each mode and decoder is checked against torch (1e-4) before anything is published.
    Errors: PlethoraError when the encoder's description differs from the windows of the training.
    """
    uri = storage.join(run.storage, run.name, "bundle")
    if storage.exists(storage.join(uri, "_COMPLETE")):
        return uri
    modules = recipe.modules()
    for name, module in modules.items():
        load_trained(module, trained.weights[name])
        module.eval()
    counts = {name: sum(p.numel() for p in m.parameters() if p.requires_grad) for name, m in modules.items()}
    history = trained.history
    first, last = (history[0], history[-1]) if history else ({}, {})
    selected = {"selected": trained.selected} if trained.selected else {}
    lineage: dict[str, Any] = {
        "corpora": trained.corpora,
        "windows_seen": {key: count for key, (count, _) in trained.ledger.items()},
        "windows": trained.windows.model_dump(mode="json"),
        "seeds": {"run": run.seed, "split": run.split.seed},
        "parents": parents(run),
        "inherited": inherited(run),
    }
    encoder = recipe.encoder(modules)
    published.check(run.recipe, encoder, trained.windows)
    # figures show windows of held-out subjects: publish them only if all corpora are open
    anyone = all(corpus.get("access") == "open" for corpus in lineage["corpora"])
    write_bundle(
        uri,
        encoder,
        trained.weights,
        counts,
        run.model_dump(mode="json"),
        lineage,
        {"first": first, "last": last, "history": history, **selected},
        (dict(trained.plots) if anyone else {}) | curves(history),
    )
    return uri


def write_bundle(
    uri: str,
    encoder: Encoder,
    weights: Mapping[str, Mapping[str, "Tensor"]],
    parameters: Mapping[str, int],
    run: Mapping[str, Any],
    lineage: Mapping[str, Any],
    metrics: Mapping[str, Any],
    plots: Mapping[str, bytes],
) -> None:
    """Write a bundle's files and publish them at ``uri``. Commit and versions are added to ``lineage``.

    weights: by module of the recipe, or by part of one ("pair.ppg") where the bundle holds no more of it; an
    adapter's are those that trained. parameters: trainable parameters, likewise. run: what config.json needs
    to rebuild the network, at least "recipe" and "method".
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="plethora-bundle-") as temporary:
        folder = Path(temporary)
        save_file(flat(weights), folder / "model.safetensors")
        # an adapter needs its base network, so it has no ONNX file
        modes = {} if encoder.kind == "adapter" else encoder.modes
        for name, mode in (modes | encoder.decoders).items():
            export_onnx(mode, folder / f"{name}.onnx")
        config = {
            "version": bundle.VERSION,
            "kind": encoder.kind,
            "modes": {
                name: {"file": f"{name}.onnx", "inputs": mode.inputs, "dim": mode.dim}
                for name, mode in modes.items()
            },
            "decoders": {
                name: {"file": f"{name}.onnx", "inputs": decoder.inputs, "output": decoder.output}
                for name, decoder in encoder.decoders.items()
            },
            "modules": list(weights),
            "parameters": dict(parameters),
            "run": dict(run),
            **encoder.about,
        }
        preprocessing = describe(encoder)
        made = {
            "git_commit": commit(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        documents: dict[str, dict[str, Any]] = {
            "config": config,
            "preprocessing": preprocessing,
            "metrics": dict(metrics),
            "lineage": {**lineage, **made},
        }
        for name, content in documents.items():
            text = json.dumps(redact.clean(content), indent=1, sort_keys=True)
            (folder / f"{name}.json").write_text(text + "\n")
        (folder / "plots").mkdir()
        for name, png in plots.items():
            (folder / "plots" / f"{name}.png").write_bytes(png)
        (folder / "README.md").write_text(
            card.render(config, preprocessing, documents["lineage"], documents["metrics"])
        )
        bundle.publish(folder, uri)


def describe(encoder: Encoder) -> dict[str, dict[str, Any]]:
    """The content of preprocessing.json: what the recipe requires of each modality, in the words of
    `datasets.declared`, and the lengths that its modes take. PlethoraError: nobody can do what it requires.
    """
    out = {}
    for mode in encoder.modes.values():
        for given in mode.inputs:
            modality, rate = given["modality"], given["rate"]
            known = encoder.preprocessing[modality]
            signal = declared.signal_of(modality, known, "preprocessing of the recipe's encoder")
            lengths = {"multiple_s": mode.step_samples / rate, "max_s": mode.max_samples / rate}
            out[modality] = known | declared.entry_of(signal) | lengths
    return out


def commit() -> str | None:
    """The checkout's commit, with "-dirty" if files differ from it; None outside git."""
    root = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty"]
        described = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return described.stdout.strip() or None
