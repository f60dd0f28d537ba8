"""A run's recipe as it can be built before anything that it names is there."""

from pretrain.config import RunConfig
from pretrain.recipe import Recipe, build, has


def rehearsal(run: RunConfig) -> Recipe:
    """The recipe of `run`, to be measured rather than trained."""
    recipe = build(run.recipe, run.method, run.seed)
    return recipe.rehearsal() if has(recipe, "plan") else recipe
