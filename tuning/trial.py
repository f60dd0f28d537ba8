"""One trial: the very function behind `python -m pretrain` (or `finetune vision`), in a process of Tune's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback

from cluster import storage
from cluster.errors import PlethoraError, user_message
from pretrain.config import RunConfig
from tuning.config import Objective
from tuning.early import END, PROGRESS, SCORE
from tuning.room import Held


class Tell(TuneReportCallback):
    """Lives in the process that watches a trial's workers: passes each validation on to Tune, and counts how
    often the workers were started again."""

    def __init__(self, score: str) -> None:
        super().__init__()
        self.score, self.restarts = score, 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        told = metrics[0]
        if "figures" in told:
            self._training_actor_item_queue.put(validated(told, self.score) | {"restarts": self.restarts})

    def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
        self.restarts += 1


def validated(told: Mapping[str, Any], score: str) -> dict[str, Any]:
    """A validation as a result of Tune."""
    step, steps, figures = int(told["step"]), int(told["steps"]), dict(told["figures"])
    value = figures.get(score, math.nan)
    return {
        "step": step, "steps": steps, PROGRESS: END * step / steps, SCORE: value, "figures": figures,
    }  # fmt: skip


def trial(config: dict[str, Any]) -> None:
    """config: {"run": RunConfig as a dict, "objective": [Objective as a dict], "score": the figure that a
    scheduler judges by, "room": who keeps what its workers hold}. Reports each validation, and at the end
    {"bundle", "best": [objective], "curve", "facts"} or {"failed": one line}; what may go better another time
    is raised, and Tune tries again.
    """
    from ray import tune

    run = RunConfig(**config["run"])
    objectives = tuple(Objective(**each) for each in config["objective"])
    try:
        tune.report(finish(run, objectives, config["score"], config["room"]))
    except Exception as error:
        line = user_message(error)
        lost = isinstance(error, PlethoraError) and error.__cause__ and not user_message(error.__cause__)
        if line is None or lost:
            raise
        tune.report({"failed": line, PROGRESS: 0.0, SCORE: math.nan, "step": 0})


def finish(run: RunConfig, objectives: Sequence[Objective], score: str, room: str) -> dict[str, Any]:
    """Train `run` from its last checkpoint (or from the seed, or not at all) to its bundle; its results."""
    from pretrain import driver
    from pretrain.recipe import build

    recipe: Any = build(run.recipe, run.method, run.seed)
    if hasattr(recipe, "check"):  # one that learns from labels, as `python -m finetune vision` starts it
        recipe.check()
    bundle = driver.launch(run, resume=True, callbacks=[Tell(score), Held(room, run.name)])["bundle"]
    found = storage.read_json(storage.join(bundle, "metrics.json"))
    curve = [(int(each["step"]), {k: v for k, v in each.items() if k != "step"}) for each in found["history"]]
    # where the run publishes its best weights, what came after them is not what it is worth
    worth = [each for each in curve if each[0] <= (found.get("selected") or {}).get("step", each[0])]
    best: list[float | None] = []
    for objective in objectives:
        if objective.task:
            from tuning.objective import probe

            best.append(probe(objective, run, bundle, "val"))
        else:
            best.append(reached(objective, worth))
    step, figures = curve[-1]
    last = validated({"step": step, "steps": step, "figures": figures}, score)
    return last | {"bundle": bundle, "best": best, "curve": curve, "facts": facts(bundle)}


def reached(objective: Objective, curve: Sequence[tuple[int, Mapping[str, float]]]) -> float | None:
    """The objective of a trial that was validated as `curve` says; None where it never had the figure."""
    values = [figures[objective.metric] for _, figures in curve if objective.metric in figures]
    if not values:
        return None
    finite = [value for value in values if math.isfinite(value)]
    if objective.at == "best" and finite:
        return min(finite) if objective.mode == "min" else max(finite)
    return values[-1]


def facts(bundle: str) -> dict[str, Any]:
    """{"parameters", "hours" of training windows, "subjects"}: what a scaling curve is drawn over."""
    config = storage.read_json(storage.join(bundle, "config.json"))
    lineage = storage.read_json(storage.join(bundle, "lineage.json"))
    spec = lineage["windows"]
    hop = min(spec.get("hop_s") or spec["window_s"], spec["window_s"])
    windows = sum(corpus["windows"]["train"] for corpus in lineage["corpora"])
    return {
        "parameters": sum(config["parameters"].values()),
        "hours": round(windows * hop / 3600, 3),
        "subjects": sum(len(corpus["subjects"]) for corpus in lineage["corpora"]),
    }
