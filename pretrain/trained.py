"""Loads a published bundle back into torch: the recipe's networks with the trained weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cluster import bundle
from cluster.config import validate
from cluster.errors import PlethoraError
from cluster.session import ROOT, memory_bytes
from pretrain.held import fill, held
from pretrain.recipe import Encoder, load

if TYPE_CHECKING:
    from torch import Tensor


def open_trained(uri: str) -> tuple[bundle.Bundle, Encoder]:
    """The bundle at ``uri`` and its encoder in torch, in eval mode on the CPU (even under the "meta" device,
    which only counts parameters). Errors: as for `open_modules`, and when the modules that the bundle holds
    do not give its modes.
    """
    import torch

    found, recipe, modules = open_modules(uri)
    with torch.device("cpu"):
        encoder = encoder_of(recipe, modules, found.config, f"{uri}/config.json")
    for mode in encoder.modes.values():
        mode.module.eval()
    return found, encoder


def open_modules(uri: str) -> tuple[bundle.Bundle, Any, dict[str, Any]]:
    """The bundle at ``uri``, its recipe, and the modules that it holds with the trained weights.

    Errors: PlethoraError when there is no bundle, its recipe cannot be loaded here, or ``model.safetensors``
    does not hold exactly these modules' weights (an int8 bundle's, an adapter's).
    """
    import torch

    found = bundle.open(uri)
    run = found.config.get("run", {})
    if "recipe" not in run or "quantised" in found.config or found.config["kind"] == "adapter":
        what = "int8" if "quantised" in found.config else f"of kind {found.config['kind']}"
        raise PlethoraError(
            f"{uri} holds no weights that can be opened in torch (it is {what}): name the bundle it was made "
            "from"
        )
    weights = weights_of(found)
    with torch.device("cpu"):
        recipe, modules = fresh(found.config, f"{uri}/config.json", run.get("seed", 0))
        what = f"{uri}: model.safetensors does not fit the networks of {run['recipe']} in this checkout"
        fill(modules, weights, what)
    return found, recipe, modules


def fresh(config: Mapping[str, Any], where: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """The recipe that a bundle's config.json (read from ``where``) names, and the modules that the bundle
    holds, untrained. Errors: PlethoraError (see ``trusted``, ``recipe_of`` and ``held``).
    """
    recipe = recipe_of(config, where)(seed)
    return recipe, held(recipe.modules(), config.get("modules"), where)


def encoder_of(recipe: Any, modules: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Encoder:
    """The encoder of the modules that a bundle holds. Errors: PlethoraError when they do not give the modes
    that its config.json names."""
    try:
        encoder: Encoder = recipe.encoder(modules)
        missing = set(config.get("modes", {})) - set(encoder.modes)
    except KeyError as error:
        raise PlethoraError(
            f"{where}: its encoder needs {error}, and modules names only {', '.join(modules)}"
        ) from None
    if missing:
        raise PlethoraError(
            f"{where}: the modules that it holds ({', '.join(config.get('modules', modules))}) do not give "
            f"mode {', '.join(sorted(missing))}"
        )
    return encoder


def weights_of(found: bundle.Bundle) -> dict[str, Tensor]:
    """The tensors of a bundle's ``model.safetensors``; PlethoraError when it holds something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(found.path("model.safetensors"))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise PlethoraError(
            f"{found.uri}: model.safetensors holds no weights ({reason}): do not use it"
        ) from None


def trusted(config: Mapping[str, Any], where: str) -> type:
    """The recipe class that a bundle's config.json (read from ``where``) names.

    The bundle may be untrusted: only recipes of this checkout are imported, and those whose top-level package
    is listed in the environment variable PLETHORA_RECIPES (comma-separated). Errors: PlethoraError.
    """
    run = config.get("run")
    name = run.get("recipe") if isinstance(run, Mapping) else None
    if not isinstance(name, str):
        raise PlethoraError(f"{where}: run.recipe names no recipe: the bundle cannot be opened in torch")
    package = name.partition(":")[0].partition(".")[0]
    ours = package.isidentifier() and ((ROOT / package).is_dir() or (ROOT / f"{package}.py").is_file())
    if not ours and package not in os.environ.get("PLETHORA_RECIPES", "").replace(" ", "").split(","):
        raise PlethoraError(
            f"{where}: its recipe {name} is no part of this checkout, and a bundle may not import anything "
            f"else: set PLETHORA_RECIPES={package or 'PACKAGE'} if you trust that package"
        )
    return load(name)


def recipe_of(config: Mapping[str, Any], where: str) -> Callable[[int], Any]:
    """A function from a seed to the recipe that a bundle's config.json names (see ``trusted``). It raises
    PlethoraError for networks that would take more than half of this machine's memory.
    """
    import torch

    recipe_class: Any = trusted(config, where)
    method = validate(recipe_class.Config, config["run"].get("method", {}), f"{where}, run.method")

    def build(seed: int) -> Any:
        with torch.device("meta"):  # counts without memory
            modules = recipe_class(method, seed).modules().values()
        size = 4 * sum(p.numel() for module in modules for p in module.parameters())
        if size > memory_bytes() / 2:
            raise PlethoraError(
                f"{where}: run.method asks for networks of {size / 2**30:,.0f} GiB, more than half of this "
                "machine's memory"
            )
        return recipe_class(method, seed)

    return build
