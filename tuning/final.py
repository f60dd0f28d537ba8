"""The chosen trial on test subjects: once, after the search has chosen by validation alone."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import storage
from pretrain.config import RunConfig
from tuning.space import Plan


def on_test(plan: Plan, run: RunConfig, bundle: str) -> dict[str, Any]:
    """{"test": [table {title, header, body, notes}], "test_metrics": {objective: {"val", "test"}}, "notes"}
    of the bundle that `run` gave: each objective on validation and on test subjects.
    """
    from pretrain import driver

    run = driver.located(run)
    told = storage.read_json(storage.join(bundle, "metrics.json"))
    published = (told.get("selected") or told["history"][-1])["step"]  # whose weights these are
    last = next(each for each in told["history"] if each["step"] == published)
    metrics: dict[str, dict[str, Any]] = {}
    figures, windows, subjects = figures_on(run, bundle, "test")
    for objective in plan.search.objective:
        if objective.task:
            from tuning.objective import probe

            metrics[objective.name] = {part: probe(objective, run, bundle, part) for part in ("val", "test")}
        else:
            metrics[objective.name] = {
                "val": last.get(objective.metric),
                "test": figures.get(objective.metric),
            }
    body = [
        [o.name + (f", {o.unit}" if o.unit else ""), *(number(metrics[o.name][p]) for p in ("val", "test"))]
        for o in plan.search.objective
    ]
    others = sorted(k for k in figures if k not in metrics)
    body += [[name, number(last.get(name)), number(figures[name])] for name in others]
    table = {
        "title": "The chosen trial on people that no trial has seen",
        "header": ["figure", "validation subjects", "test subjects"],
        "body": body,
        "notes": [
            f"{windows} windows of {subjects} test subjects, touched once, after the choice was made",
            "the validation figure is the best of many trials, and so flatters",
        ],
    }
    return {"test": [table], "test_metrics": metrics, "notes": []}


def figures_on(run: RunConfig, bundle: str, part: str) -> tuple[dict[str, float], int, int]:
    """(figures of a validation pass over `part`'s windows with a bundle's weights, windows, subjects)."""
    import torch

    from pretrain.data import open_data
    from pretrain.loop import validate
    from pretrain.meters import chunks

    with alone():
        recipe, modules = opened(bundle, run)
        data = open_data(run.model_copy(update={"workers": 1}), recipe)
        held_out = data.validation(0, 1, part)
        frozen = recipe.frozen()
        done = int(storage.read_json(storage.join(bundle, "metrics.json"))["history"][-1]["step"])
        found, _ = validate(
            recipe, modules, frozen, chunks(held_out, run.micro), done - 1, torch.device("cpu")
        )
    return found, len(held_out["window"]), len(set(held_out["subject"].tolist()))


def opened(bundle: str, run: RunConfig) -> tuple[Any, Any]:
    """A bundle's recipe and its trained modules; of an adapter, on what it sits upon."""
    from cluster.bundle import open as open_bundle

    if open_bundle(bundle).config["kind"] == "adapter":
        from finetune.adapter import open_adapter

        adapter = open_adapter(bundle)
        return adapter.recipe, {"net": adapter.net}
    from pretrain.trained import open_modules

    _, recipe, modules = open_modules(bundle)
    return recipe, modules


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """torch.distributed with this process alone, where there is none: the loop's means are global."""
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


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
