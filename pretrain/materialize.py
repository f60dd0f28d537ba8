"""python -m pretrain materialize RUN.toml: store windows as fixed-shape columns, so training needs no
transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cluster import session, storage
from datasets import prepared
from pretrain.config import RunConfig
from pretrain.data import foreseen, open_data, where_prepared
from pretrain.driver import located, say
from pretrain.recipe import build


def materialize(run: RunConfig) -> dict[str, Any]:
    """Write the accepted windows of every corpus of `run` to its storage; complete ones are kept.

    Training reads them with ``stream.materialised = true``. Returns {"corpora": [{uri, windows, columns,
    materialised}]}.
    """
    run = located(run)
    raw = run.model_copy(update={"stream": run.stream.model_copy(update={"materialised": False})})
    recipe = build(run.recipe, run.method, run.seed)
    actors = max(run.stream.count, 1) * run.most
    out = []
    with session.session(0, actors):
        data = open_data(raw, recipe)
        make = _Foresee(run) if foreseen(recipe) else None
        for found, uri in zip(data.indexes, run.corpora, strict=True):
            where = where_prepared(run, recipe, found)
            written = prepared.write(found, where, make, actors)
            columns = {name: [kind, *shape] for name, kind, shape in written.columns}
            out.append({"uri": uri, "windows": written.windows, "columns": columns, "materialised": where})
            say(f"{uri}: {written.windows} windows at {storage.join(where)}, columns {', '.join(columns)}")
    return {"corpora": out}


class _Foresee:
    """Builds, in an actor, the function that computes the recipe's columns of a batch."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run

    def __call__(self) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
        import torch

        recipe: Any = build(self.run.recipe, self.run.method, self.run.seed)
        frozen = recipe.frozen()

        @torch.no_grad()
        def foresee(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in batch.items()}
            return {name: x.numpy() for name, x in recipe.foresee(frozen, tensors).items()}

        return foresee
