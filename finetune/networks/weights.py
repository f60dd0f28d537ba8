"""Initial weights of a backbone (from the hub, a local file, or random) and the record of their source.

The user always chooses: weights are random only on request, and a failed hub download has no fallback.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cluster.errors import PlethoraError
from finetune.networks import origin
from pretrain.importing import checkpoint

LEFT_OUT = ("head", "fc_norm.", "attn_pool.", "classifier", "mask_token")  # what no token passes through


@dataclass(frozen=True)
class Base:
    """The weights that a run started from, for its first lines and its bundle."""

    name: str  # timm's
    source: str  # "hub: <repository>@<commit>", "file: <path>", "random: seed <n>"
    hash: str  # SHA-256: of the file, or for random weights of the tensors; "" without values (meta device)
    mean: tuple[float, ...]  # normalisation, as the model's own configuration says
    std: tuple[float, ...]

    def line(self) -> str:
        """For people: one of the run's first lines."""
        untrained = ", which has seen no image" if self.source.startswith("random") else ""
        return f"backbone {self.name}{untrained}; weights {self.source}, sha256 {self.hash[:16] or 'none'}"

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_base(found: Base, wanted: Base) -> None:
    """Raises PlethoraError unless an adapter made on `wanted` may be applied to `found`."""
    if (found.name, found.hash) != (wanted.name, wanted.hash):
        raise PlethoraError(
            f"the adapter was made on {wanted.name} with weights {wanted.hash[:16]} ({wanted.source}), "
            f"here is {found.name} with {found.hash[:16]} ({found.source}): "
            "give the same weights (backbone.weights)"
        )
    if (found.mean, found.std) != (wanted.mean, wanted.std):
        raise PlethoraError(
            f"the adapter was made with mean {wanted.mean} and std {wanted.std}, this timm gives "
            f"{found.name} mean {found.mean} and std {found.std}: install the timm "
            "of the bundle's lineage.json"
        )


def fill(vit: nn.Module, name: str, weights: str, seed: int) -> Base:
    """Loads `weights` ("hub", "random", or a path) into `vit` (already random); returns their record.
    Raises PlethoraError when they are unavailable or belong to another model."""
    about: dict[str, Any] = vit.pretrained_cfg  # type: ignore[assignment]
    tone = tuple(about["mean"]), tuple(about["std"])
    if weights == "random":
        return Base(name, f"random: seed {seed}", content(vit), *tone)
    if weights == "hub":
        path, source = fetched(name, about)
    else:
        path, source = weights, f"file: {weights}"
    load(vit, name, path)
    digest = checkpoint.digest(path)
    if known := origin.beside(path, digest):
        source += f" ({known.line()})"
    return Base(name, source, digest, *tone)


def fetched(name: str, about: dict[str, Any]) -> tuple[str, str]:
    """(path, "hub: repository@commit") of the model's weights, from the local cache, else from the hub."""
    import huggingface_hub as hub
    from huggingface_hub.errors import GatedRepoError

    where, _, revision = str(about.get("hf_hub_id") or "").partition("@")
    ways = (
        'give backbone.weights the path of a .safetensors or .pth file, or "random" for a network that has '
        "seen no image"
    )
    if not where:
        raise PlethoraError(f"timm knows no weights of {name} on the hub: {ways}")
    file = about.get("hf_hub_filename") or "model.safetensors"
    try:
        path = hub.try_to_load_from_cache(where, file, revision=revision or None)
        if not isinstance(path, str):
            # fail after one request: the download itself retries five times in half a minute
            metadata = hub.get_hf_file_metadata(
                hub.hf_hub_url(where, file, revision=revision or None), timeout=10
            )
            path = hub.hf_hub_download(where, file, revision=metadata.commit_hash)
    except GatedRepoError:
        raise PlethoraError(
            f"the weights of {name} ({where}) are gated: accept their licence on the hub with your account "
            f"and set HF_TOKEN, or {ways}"
        ) from None
    except Exception as error:  # reports any hub failure in one line
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        raise PlethoraError(
            f"the weights of {name} ({where}) cannot be had from the hub ({type(error).__name__}: {reason}): "
            f"{ways}"
        ) from None
    return path, f"hub: {where}@{Path(path).parent.name}"  # the cache keeps snapshots by commit


def load(vit: nn.Module, name: str, path: str) -> None:
    """Loads the state dict of a local file into `vit`. Raises PlethoraError unless it holds every
    parameter of the model and nothing of another model."""
    state, other = checkpoint.read(path), f"{path} holds no weights of {name}"
    convert = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    try:
        state = convert(state, vit) if convert else state
    except Exception as error:
        raise PlethoraError(f"{other}: {type(error).__name__}: {error}") from None
    put(vit, state, other, "name the model that it is of in backbone.name")


def put(vit: nn.Module, state: dict[str, Tensor], other: str, remedy: str) -> None:
    """Loads `state` into `vit`, strictly. PlethoraError "<other>: it lacks …; <remedy>" unless it holds every
    parameter of the model and nothing of another model."""
    wanted = vit.state_dict()
    if "norm.weight" in wanted and "norm.weight" not in state:  # models that average tokens, then normalise
        state |= {k.removeprefix("fc_"): v for k, v in state.items() if k.startswith("fc_norm.")}
    missing = sorted(set(wanted) - set(state))
    strange = sorted(k for k in set(state) - set(wanted) if not k.startswith(LEFT_OUT))
    shape = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    for what, names in (("lacks", missing), ("has besides", strange), ("has in another shape", shape)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise PlethoraError(f"{other}: it {what} {', '.join(names[:3])}{more}; {remedy}")
    if any(tensor.is_meta for tensor in wanted.values()):
        return  # the driver counts parameters without memory: there is nothing to fill
    vit.load_state_dict({k: v for k, v in state.items() if k in wanted})


def content(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a module's state; "" on the meta device."""
    state: dict[str, Tensor] = module.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        return ""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.view(-1).numpy().tobytes())
    return found.hexdigest()
