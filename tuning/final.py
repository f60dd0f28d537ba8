"""The best trial on test subjects: once, after the search has chosen it by validation alone."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import storage
from pretrain.config import RunConfig
from tuning.config import Search
from tuning.record import Figures, Table

PARTS = ("val", "test")


def on_test(search: Search, run: RunConfig, bundle: str) -> tuple[Table, dict[str, Figures]]:
    """(every figure of the bundle that `run` gave, {objective: {"val", "test"}}), on validation and on test
    subjects."""
    from pretrain import driver

    run = driver.located(run)
    found = storage.read_json(storage.join(bundle, "metrics.json"))
    published = (found.get("selected") or found["history"][-1])["step"]  # the step of the bundle's weights
    validation = next(each for each in found["history"] if each["step"] == published)
    test, windows, subjects = validated(run, bundle, "test")
    metrics: dict[str, Figures] = {}
    for objective in search.objective:
        if objective.task:
            from tuning.probe import probe

            metrics[objective.name] = {part: probe(objective, run, bundle, part) for part in PARTS}
        else:
            name = objective.metric
            metrics[objective.name] = {"val": validation.get(name), "test": test.get(name)}
    rows = {o.title: metrics[o.name] for o in search.objective}
    rows |= {k: {"val": validation.get(k), "test": test[k]} for k in sorted(test) if k not in metrics}
    notes = (
        f"{windows} windows of {subjects} test subjects, evaluated once, after the choice",
        "the validation figure is the best of many trials, and so optimistic",
    )
    title, header = "The best trial on test subjects", ("figure", "validation subjects", "test subjects")
    body = tuple((name, *(_number(row[part]) for part in PARTS)) for name, row in rows.items())
    return Table(title, header, body, notes), metrics


def validated(run: RunConfig, bundle: str, part: str) -> tuple[Mapping[str, float], int, int]:
    """(figures of a validation pass over `part`'s windows with a bundle's weights, windows, subjects)."""
    import torch

    from pretrain.data import open_data
    from pretrain.loop import validate
    from pretrain.meters import chunks

    with single_process():
        recipe, modules = opened(bundle, run)
        data = open_data(run.model_copy(update={"workers": 1}), recipe)
        held_out = data.validation(0, 1, part)
        frozen = recipe.frozen()
        done = int(storage.read_json(storage.join(bundle, "metrics.json"))["history"][-1]["step"])
        batches, cpu = chunks(held_out, run.micro), torch.device("cpu")
        found, _ = validate(recipe, modules, frozen, batches, done - 1, cpu)
    return found, len(held_out["window"]), len(set(held_out["subject"].tolist()))


def opened(bundle: str, run: RunConfig) -> tuple[Any, Any]:
    """A bundle's recipe and its trained modules; an adapter's come with the backbone below it."""
    from cluster.bundle import open as open_bundle

    if open_bundle(bundle).config["kind"] == "adapter":
        from finetune.adapter import open_adapter

        adapter = open_adapter(bundle)
        return adapter.recipe, {"net": adapter.net}
    from pretrain.trained import open_modules

    _, recipe, modules = open_modules(bundle)
    return recipe, modules


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """torch.distributed with this process alone, where there is none: the loop averages over all ranks."""
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="plethora-") as folder:
        where = (Path(folder) / "store").as_uri()
        dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
