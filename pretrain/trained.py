"""A published bundle as torch again: its recipe's own networks with the trained weights."""

from __future__ import annotations

from typing import Any

from cluster import bundle
from cluster.config import validate
from cluster.errors import PlethoraError
from pretrain.recipe import Encoder, load


def open_trained(uri: str) -> tuple[bundle.Bundle, Encoder]:
    """The bundle at ``uri`` and its encoder in torch, in eval mode on the CPU (also under "meta", where only
    parameters are counted). Errors: as `open_modules`.
    """
    import torch

    found, recipe, modules = open_modules(uri)
    with torch.device("cpu"):
        encoder = recipe.encoder(modules)
    for mode in encoder.modes.values():
        mode.module.eval()
    return found, encoder


def open_modules(uri: str) -> tuple[bundle.Bundle, Any, dict[str, Any]]:
    """The bundle at ``uri``, its recipe, and all of the recipe's modules with the trained weights.

    Errors: PlethoraError when there is no bundle, its recipe cannot be loaded here, or ``model.safetensors``
    does not hold that recipe's weights (an int8 bundle's, an adapter's).
    """
    import torch
    from safetensors.torch import load_file

    found = bundle.open(uri)
    run = found.config.get("run", {})
    if "recipe" not in run or "quantised" in found.config or found.config["kind"] == "adapter":
        what = "int8" if "quantised" in found.config else f"of kind {found.config['kind']}"
        raise PlethoraError(
            f"{uri} holds no weights that can be opened in torch (it is {what}): name the bundle it was made "
            "from"
        )
    recipe_class: Any = load(run["recipe"])
    method = validate(recipe_class.Config, run.get("method", {}), f"{uri}/config.json, run.method")
    with torch.device("cpu"):
        recipe = recipe_class(method, run.get("seed", 0))
        modules, weights = recipe.modules(), load_file(found.path("model.safetensors"))
        for name, module in modules.items():
            own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
            try:
                module.load_state_dict(own)
            except RuntimeError as error:
                raise PlethoraError(
                    f"{uri}: model.safetensors does not fit the networks of {run['recipe']} as this checkout "
                    f"has them: {' '.join(str(error).split())[:200]}"
                ) from None
    return found, recipe, modules
