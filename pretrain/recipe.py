"""What a pretraining method must offer to the one loop, and how a run file names it.

A recipe is one class: ``RecipeClass(config, seed)`` with a frozen pydantic ``Config`` (paper defaults, each
field citing its source). The loop wraps what ``modules()`` returns in engines (DeepSpeed or DDP), calls
``losses`` with the wrapped modules, steps each module by its own scalar, and publishes ``encoder()``.
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
    """What one micro-batch gives back.

    losses   {module name: scalar with a graph}: exactly the keys of ``modules()``; each is stepped alone.
    log      {name: scalar}: means over the windows of this micro-batch; the loop averages them (over
             accumulation, ranks, and in validation over the pass, weighted by windows).
    counts   {name: 1-d tensor}: quantities whose mean of means would be wrong (a code histogram): the loop
             *sums* them over ranks and over the validation pass and hands the sums to ``Recipe.summary``.
             Shapes and keys are the same at every call.
    figures  {name: function without arguments that draws}: only called at validation, so drawing is free
             otherwise. They describe this micro-batch.
    """

    losses: dict[str, Tensor]
    log: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)


@dataclass
class Mode:
    """One way into an encoder: ``module`` maps (B, C, T) float32, preprocessed as the encoder's
    ``preprocessing`` says and otherwise raw (normalisation is inside), to (B, dim) float32.

    min_samples   shortest T that the module takes.
    step_samples  the module uses the first ``T // step_samples * step_samples`` samples; the rest is cut.
    max_samples   longest T; longer input is refused by the caller.
    """

    module: nn.Module
    inputs: list[dict[str, Any]]  # [{"name", "modality", "rate" (Hz), "channels"}]
    dim: int
    min_samples: int
    step_samples: int
    max_samples: int


@dataclass
class Decoder:
    """One way from signals to another one of the same time: as a ``Mode``, but ``module`` gives
    (B, ``output["channels"]``, T // step_samples * step_samples) float32, z-scored per window."""

    module: nn.Module
    inputs: list[dict[str, Any]]
    output: dict[str, Any]  # {"modality", "rate" (Hz), "channels"}
    min_samples: int
    step_samples: int
    max_samples: int


@dataclass
class Encoder:
    """What downstream gets, made by ``pretrain.published.encoder`` from the windows of the recipe.

    ``preprocessing`` = {modality: {rate, band, order, kind, window_s, min_s, short, normalise, unit}}, as it
    is written to ``preprocessing.json`` (DESIGN section 6)."""

    modes: dict[str, Mode]  # by input: "ppg", "ecg", "ppg+ecg"
    kind: Literal["encoder", "tokenizer", "adapter"]  # an adapter is published without its frozen weights
    preprocessing: dict[str, dict[str, Any]]
    decoders: dict[str, Decoder] = field(default_factory=dict)  # by name: "ppg_to_ecg"
    about: dict[str, Any] = field(default_factory=dict)  # what else config.json says: an adapter's base


class Recipe(Protocol):
    """The contract between a method and the loop (DESIGN section 4).

    Batches are dicts of tensors on the modules' device: one (B, C, T) float32 a modality ("ppg"), "window"
    (B,) int64 window ids and "step" (B,) int64. Randomness a sample is keyed by (seed, purpose, step, window
    id), see ``pretrain.layers.keyed_uniform``, so that results depend neither on the world size nor on the
    order; only dropout draws from the global generator.
    """

    Config: ClassVar[type]

    def __init__(self, config: Any, seed: int) -> None: ...

    def windows(self) -> WindowSpec:
        """The windows this method reads: modalities, seconds, rates, filters, gates."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """What trains: a module = an engine = an optimizer = one scalar loss. Called once; initial weights
        are a pure function of the seed, so every rank builds the same ones."""
        ...

    def frozen(self) -> dict[str, nn.Module]:
        """Modules in no engine (a tokenizer, a teacher), in eval mode without gradients, loaded by the
        bundle URI found in the config. Empty when there are none."""
        ...

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        """One scalar a module. Calls each given (wrapped) module exactly once and never its insides; every
        module runs at every step. ``step`` counts optimizer steps. In validation the loop calls it with the
        modules in eval mode under ``torch.no_grad``: nothing may update then. State that no gradient moves
        (a codebook, a running mean) belongs in a ``pretrain.layers.Stepped`` part of its module, which the
        loop moves once a step; until such a part has started the loop may call this twice."""
        ...

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures of a whole validation pass from the summed ``StepResult.counts`` (codebook usage,
        perplexity, accuracy of the most common code); {} when there are none."""
        ...

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        """What downstream gets, from the unwrapped modules."""
        ...


class Hooks(Recipe, Protocol):
    """What a recipe may have as well. The loop asks ``has(recipe, hook)``; the methods of a hook come
    together (``HOOKS``), and a recipe has any number of them.
    """

    # -- "labels": it learns from labels. Its batches carry "target" (B, k) float32, NaN where a window has no
    # such label; windows without any are not in the plan.

    def targets(self, corpus: Corpus, table: pa.Table) -> np.ndarray:
        """(n, k) of n rows of an index's table, NaN where unknown: each a pure function of its row and the
        corpus.
        """
        ...

    def told(self, targets: np.ndarray) -> None:
        """The (n, k) targets of every training window, once, before `modules` (to standardise by)."""
        ...

    # -- "materialise": columns that no step changes are computed once, when windows are materialised; batches
    # may then carry them.

    def foreseen(self) -> str:
        """Names all that the columns depend on beside the window; "" where there are none."""
        ...

    def foresee(self, frozen: Mapping[str, nn.Module], batch: dict) -> dict[str, Tensor]:
        """{column: (B, …)} of a batch of windows."""
        ...

    # -- "plan": it needs a bundle (a frozen tokenizer) which may not be trained yet.

    def rehearsal(self) -> Recipe:
        """Itself, or with fresh weights of the same size in place of what its config does not name yet: to be
        measured rather than trained."""
        ...

    # -- "check": what it can find out before a run starts.

    def check(self) -> list[str]:
        """A run's first lines. Errors: PlethoraError where network and windows do not fit."""
        ...

    # -- "tokens": its network works on tokens; telemetry then tells tokens a second.

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
    """Whether `recipe` has an optional hook (`load` has seen to it that none is there in part)."""
    return hasattr(recipe, HOOKS[hook][0])


_PARTS = ("Config", "windows", "modules", "frozen", "losses", "summary", "encoder")


def load(name: str) -> type:
    """The recipe class that ``"package.module:Class"`` names; any module on the path will do.

    Errors: PlethoraError when the name has another form, the module or the class is not there, or the class
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
            raise  # the recipe exists; what it imports does not: that traceback helps its author
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
    """The recipe that ``name`` names, its ``[method]`` checked. PlethoraError: unknown or wrong keys."""
    found: Any = load(name)
    return found(validate(found.Config, dict(method), "[method]"), seed)
