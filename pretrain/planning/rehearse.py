"""A run's recipe as it can be built before anything that it names is there."""

from typing import Any, Protocol, runtime_checkable

from pretrain.config import RunConfig
from pretrain.recipe import Recipe, build


@runtime_checkable
class Rehearsed(Protocol):
    """What a recipe has as well that needs a bundle (a frozen tokenizer) which may not be trained yet."""

    def rehearsal(self) -> Recipe:
        """Itself, or with fresh weights of the same size in place of what its config does not name yet."""
        ...


def rehearsal(run: RunConfig) -> Recipe:
    """The recipe of `run`, to be measured rather than trained."""
    recipe: Any = build(run.recipe, run.method, run.seed)
    return recipe.rehearsal() if isinstance(recipe, Rehearsed) else recipe
