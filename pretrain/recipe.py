"""The contract between a pretraining method and the training loop, and how a run file names a recipe.

A recipe is one class: ``RecipeClass(config, seed)`` with a frozen pydantic ``Config`` (paper defaults; each
field cites its source). The loop wraps the modules of ``modules()`` in engines (DeepSpeed or DDP), calls
``losses`` with the wrapped modules, steps each module by its scalar loss, and publishes ``encoder()``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeGuard

from cluster.config import validate
from cluster.errors import PlethoraError

if TYPE_CHECKING:  # torch and matplotlib take seconds to import, and `--help` needs neither
    import numpy as np
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from datasets.schema import Corpus
    from datasets.windows import WindowSpec


@dataclass
class StepResult:
    """The result of one micro-batch.

    losses   {module name: scalar with a graph}: exactly the keys of ``modules()``; each is stepped
    separately.
    log      {name: scalar}: means over the windows of this micro-batch; the loop averages them, weighted by
             windows, over accumulation and ranks, and in validation over the whole pass.
    counts   {name: 1-d tensor}: quantities that must not be averaged (a code histogram): the loop *sums* them
             over ranks and over the validation pass and passes the sums to ``Recipe.summary``. Shapes and
             keys are the same at every call.
    figures  {name: function without arguments that draws}: called only at validation, so it costs nothing in
             training. They show this micro-batch.
    """

    losses: dict[str, Tensor]
    log: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)


@dataclass
class Mode:
    """One input mode of an encoder: ``module`` maps (B, C, T) float32 to (B, dim) float32. The input is
    preprocessed as ``preprocessing`` of the encoder describes; normalisation happens in the module.

    min_samples   shortest T that the module accepts.
    step_samples  the module uses the first ``T // step_samples * step_samples`` samples and drops the rest.
    max_samples   longest T; the caller refuses longer input.
    """

    module: nn.Module
    inputs: list[dict[str, Any]]  # [{"name", "modality", "rate" (Hz), "channels"}]
    dim: int
    min_samples: int
    step_samples: int
    max_samples: int


@dataclass
class Decoder:
    """A translation from signals to another simultaneous signal: like a ``Mode``, but ``module`` returns
    (B, ``output["channels"]``, T // step_samples * step_samples) float32, z-scored per window."""

    module: nn.Module
    inputs: list[dict[str, Any]]
    output: dict[str, Any]  # {"modality", "rate" (Hz), "channels"}
    min_samples: int
    step_samples: int
    max_samples: int


@dataclass
class Encoder:
    """The published encoder for downstream tasks; ``pretrain.published.encoder`` makes it from the recipe's
    windows.

    ``preprocessing`` = {modality: {rate, band, order, kind, window_s, min_s, short, normalise, unit}}, the
    content of ``preprocessing.json`` (DESIGN section 6)."""

    modes: dict[str, Mode]  # by input: "ppg", "ecg", "ppg+ecg"
    kind: Literal["encoder", "tokenizer", "adapter"]  # an adapter is published without its frozen weights
    preprocessing: dict[str, dict[str, Any]]
    decoders: dict[str, Decoder] = field(default_factory=dict)  # by name: "ppg_to_ecg"
    about: dict[str, Any] = field(
        default_factory=dict
    )  # further keys of config.json, such as an adapter's base


class Recipe(Protocol):
    """The contract between a method and the loop (DESIGN section 4).

    Batches are dicts of tensors on the modules' device: one (B, C, T) float32 a modality ("ppg"), "window"
    (B,) int64 window ids and "step" (B,) int64. Random draws per sample are keyed by (seed, purpose, step,
    window id), see ``pretrain.layers.keyed_uniform``, so that results depend neither on the world size nor on
    the order; only dropout draws from the global generator.
    """

    Config: ClassVar[type]

    def __init__(self, config: Any, seed: int) -> None: ...

    def windows(self) -> WindowSpec:
        """The windows this method reads: modalities, seconds, rates, filters, gates."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """The modules to train: each has one engine, one optimizer and one scalar loss. Called once; initial
        weights are a pure function of the seed, so every rank builds the same ones."""
        ...

    def frozen(self) -> dict[str, nn.Module]:
        """Modules that do not train (a tokenizer, a teacher), in eval mode without gradients, loaded from the
        bundle URIs in the config; {} if there are none."""
        ...

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        """One scalar loss per module. It calls each (wrapped) module exactly once, never its submodules, and
        every module runs at every step. ``step`` counts optimizer steps. In validation the loop calls it with
        the modules in eval mode under ``torch.no_grad``, and nothing may update. State that is updated
        without gradients (a codebook, a running mean) belongs in a ``pretrain.layers.Stepped`` part of its
        module, which the loop moves once per step; until such a part has started, the loop may call this
        twice."""
        ...

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of a whole validation pass from the summed ``StepResult.counts`` (codebook usage,
        perplexity, accuracy of the most common code); {} if there are none."""
        ...

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        """The encoder to publish, from the unwrapped modules."""
        ...


class Hooks(Recipe, Protocol):
    """Optional hooks of a recipe. The loop checks ``has(recipe, hook)``. A recipe may implement any number of
    hooks, but must implement all methods of each (``HOOKS``).
    """

    # -- "labels": the recipe learns from labels. Its batches contain "target" (B, k) float32, NaN where a
    # window lacks a label; windows without any label are not in the plan.

    def targets(self, corpus: Corpus, table: pa.Table) -> np.ndarray:
        """(n, k) targets for the n rows of an index table, NaN where unknown; each is a pure function of its
        row and the corpus.
        """
        ...

    def told(self, targets: np.ndarray) -> None:
        """Receives the (n, k) targets of all training windows, once, before `modules`, for
        standardisation."""
        ...

    # -- "materialise": columns that stay the same over training are computed once, when windows are
    # materialised; batches may then contain them.

    def foreseen(self) -> str:
        """A string that identifies everything that the columns depend on besides the window; "" without
        columns."""
        ...

    def foresee(self, frozen: Mapping[str, nn.Module], batch: dict) -> dict[str, Tensor]:
        """The precomputed columns of a batch of windows: {column: (B, …)}."""
        ...

    # -- "plan": the recipe needs a bundle (a frozen tokenizer) that may not be trained yet.

    def rehearsal(self) -> Recipe:
        """The recipe for measurement: itself, or a copy with fresh weights of the same size in place of a
        bundle that its config does not name yet."""
        ...

    # -- "check": checks before a run starts.

    def check(self) -> list[str]:
        """Lines to print at the start of a run. Errors: PlethoraError when network and windows do not fit."""
        ...

    # -- "tokens": the network works on tokens; telemetry then includes tokens per second.

    @property
    def tokens(self) -> int:
        """Tokens (patches) of one window."""
        ...


Hook = Literal["labels", "materialise", "plan", "check", "tokens"]
HOOKS: dict[Hook, tuple[str, ...]] = {
    "labels": ("targets", "told"),
    "materialise": ("foreseen", "foresee"),
    "plan": ("rehearsal",),
    "check": ("check",),
    "tokens": ("tokens",),
}


def has(recipe: Recipe, hook: Hook) -> TypeGuard[Hooks]:
    """Whether `recipe` implements an optional hook (`load` has checked that each hook is complete)."""
    return hasattr(recipe, HOOKS[hook][0])


_PARTS = ("Config", "windows", "modules", "frozen", "losses", "summary", "encoder")


def load(name: str) -> type:
    """The recipe class ``"package.module:Class"``; the module may be anywhere on the Python path.

    Errors: PlethoraError when the name has another form, the module or the class does not exist, or the class
    lacks a part of the contract.
    """
    module_name, _, class_name = name.partition(":")
    if not (module_name and class_name.isidentifier()):
        raise PlethoraError(
            f'recipe = "{name}" is no recipe name: write "package.module:Class", '
            'for example "pretrain.recipes.sigma:Tokenizer"'
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the recipe exists but one of its imports does not: the traceback helps its author
        raise PlethoraError(
            f'recipe = "{name}": there is no module {module_name}; '
            "check the spelling, and that its folder is where you start from or on PYTHONPATH"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        there = ", ".join(n for n, v in vars(module).items() if isinstance(v, type) and hasattr(v, "losses"))
        raise PlethoraError(
            f'recipe = "{name}": module {module_name} has no class {class_name} (it has {there or "none"})'
        )
    missing = [part for part in _PARTS if not hasattr(found, part)]
    if missing:
        raise PlethoraError(
            f'recipe = "{name}": class {class_name} lacks {", ".join(missing)}; '
            "see Recipe in pretrain/recipe.py"
        )
    for hook, parts in HOOKS.items():
        lacking = [part for part in parts if not hasattr(found, part)]
        if lacking and len(lacking) < len(parts):
            raise PlethoraError(
                f'recipe = "{name}": class {class_name} lacks {", ".join(lacking)} of the hook "{hook}" '
                f"({', '.join(parts)}); see Hooks in pretrain/recipe.py"
            )
    return found


def build(name: str, method: Mapping[str, Any], seed: int) -> Recipe:
    """The recipe ``name`` with a validated ``[method]``. PlethoraError: unknown or wrong keys."""
    found: Any = load(name)
    return found(validate(found.Config, dict(method), "[method]"), seed)
