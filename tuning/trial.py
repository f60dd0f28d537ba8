"""One trial: the very function behind `python -m pretrain` (or `finetune vision`), in a process of Tune's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback

from cluster import storage
from cluster.errors import PlethoraError, user_message
from pretrain.config import RunConfig
from tuning.config import Objective
from tuning.placement import RegisterWorkers
from tuning.record import Figures
from tuning.schedulers import END, PROGRESS, SCORE, TuneResult


@dataclass(frozen=True)
class TrialConfig:
    """What a trial is started with. `score`: the figure that a scheduler judges by. `room`: the actor that
    keeps the placement groups."""

    trial: str
    run: RunConfig
    objective: tuple[Objective, ...]
    score: str
    room: str

    def to_json(self) -> dict[str, Any]:
        objective = [each.model_dump() for each in self.objective]
        return {**vars(self), "run": self.run.model_dump(), "objective": objective}

    @staticmethod
    def of(raw: Mapping[str, Any]) -> TrialConfig:
        objective = tuple(Objective(**each) for each in raw["objective"])
        return TrialConfig(raw["trial"], RunConfig(**raw["run"]), objective, raw["score"], raw["room"])


@dataclass(frozen=True)
class Validation:
    """One validation of a trial: its step of `steps` and its figures."""

    step: int
    steps: int
    figures: Mapping[str, float]

    def to_tune(self, score: str) -> TuneResult:
        """As a result of Tune, for a scheduler that judges by the figure `score`."""
        progress, value = END * self.step / self.steps, self.figures.get(score, math.nan)
        return {**vars(self), "figures": dict(self.figures), PROGRESS: progress, SCORE: value}


class ReportValidations(TuneReportCallback):
    """Runs in the process that watches a trial's workers: passes each validation on to Tune, with how often
    the workers were restarted."""

    def __init__(self, score: str) -> None:
        super().__init__()
        self.score, self.restarts = score, 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        first = metrics[0]
        if "figures" in first:
            validation = Validation(int(first["step"]), int(first["steps"]), first["figures"])
            result = validation.to_tune(self.score) | {"restarts": self.restarts}
            self._training_actor_item_queue.put(result)

    def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
        self.restarts += 1


def trial(config: dict[str, Any]) -> None:
    """Run the `TrialConfig` that `config` is. Reports each validation, and at the end {"bundle", "best":
    [objective], "curve", "facts"} or {"failed": one line}. What may succeed another time is raised: Tune
    tries again.
    """
    from ray import tune

    try:
        tune.report(finish(TrialConfig.of(config)))
    except Exception as error:
        message = user_message(error)
        lost = isinstance(error, PlethoraError) and error.__cause__ and not user_message(error.__cause__)
        if message is None or lost:
            raise
        tune.report({"failed": message, PROGRESS: 0.0, SCORE: math.nan, "step": 0})


def finish(config: TrialConfig) -> TuneResult:
    """Train the run to its bundle, from its last checkpoint where it has one; the last result for Tune."""
    from pretrain import driver
    from pretrain.recipe import build, has

    run = config.run
    recipe: Any = build(run.recipe, run.method, run.seed)
    if has(recipe, "check"):  # a recipe with labels, as `python -m finetune vision` starts it
        recipe.check()
    callbacks = [ReportValidations(config.score), RegisterWorkers(config.room, run.name)]
    bundle = driver.launch(run, resume=True, callbacks=callbacks)["bundle"]
    found = storage.read_json(storage.join(bundle, "metrics.json"))
    curve = [(int(each["step"]), {k: v for k, v in each.items() if k != "step"}) for each in found["history"]]
    step, figures = curve[-1]
    # where the run publishes its best weights, validations after them do not count
    published = (found.get("selected") or {}).get("step", step)
    counted = [each for each in curve if each[0] <= published]
    return Validation(step, step, figures).to_tune(config.score) | {
        "bundle": bundle,
        "best": [_value(objective, run, bundle, counted) for objective in config.objective],
        "curve": curve,
        "facts": facts(bundle),
    }


def _value(
    objective: Objective, run: RunConfig, bundle: str, curve: Sequence[tuple[int, Figures]]
) -> float | None:
    if not objective.task:
        return reached(objective, curve)
    from tuning.probe import probe

    return probe(objective, run, bundle, "val")


def reached(objective: Objective, curve: Sequence[tuple[int, Figures]]) -> float | None:
    """The objective of a trial with the validations `curve`; None where none has the figure."""
    values = [figures[objective.metric] for _, figures in curve if objective.metric in figures]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if objective.at == "best" and finite:
        return min(finite) if objective.mode == "min" else max(finite)
    return values[-1] if values else None


def facts(bundle: str) -> dict[str, Any]:
    """{"parameters", "hours" of training windows, "subjects"}: what a scaling curve is fitted over."""
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
