"""A run's recipe, built before the bundles that it names exist."""

from pretrain.config import RunConfig
from pretrain.recipe import Recipe, build, has


def rehearsal(run: RunConfig) -> Recipe:
    """The recipe of `run` for measurement, not for training."""
    recipe = build(run.recipe, run.method, run.seed)
    return recipe.rehearsal() if has(recipe, "plan") else recipe
