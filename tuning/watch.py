"""What happens to Tune's trials, as the journal tells it; and when a search is over."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback, Stopper

from tuning.config import Values
from tuning.early import Asha, Median, Never
from tuning.journal import Journal
from tuning.record import Trial
from tuning.space import Plan
from tuning.trial import reached


class Watch(Callback):
    """Tune's callback: keeps the journal.

    `lost` is set, one line, where no trial can succeed: the objective is no figure of validation.
    """

    def __init__(self, plan: Plan, journal: Journal, early: Asha | Median | Never) -> None:
        self.plan, self.journal, self.early = plan, journal, early
        self.objectives = plan.search.objective
        self.lost = ""
        self.began: dict[str, float] = {}  # this session's clock, by trial
        self.before: dict[str, float] = {}  # seconds spent before it
        self.retries = {n: t.retries for n, t in journal.trials.items()}  # before this start of the trial

    def begin(self, name: str, values: Values, command: str) -> None:
        """A trial was chosen, and waits for room."""
        known = self.journal.trials.get(name)
        self.before[name] = known.spent_s if known else 0.0
        self.journal.tell(
            name, state="running", why="", values=values, command=command, run=name,
            started=(known and known.started) or time.time(),
        )  # fmt: skip

    def refused(self, name: str, values: Values, line: str) -> None:
        self.journal.tell(name, state="failed", why=line, values=values, started=time.time())

    # -- Tune's

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.began.setdefault(trial.config["trial"], time.monotonic())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial.config["trial"]
        if "failed" in result:
            self.tell(name, state="failed", why=result["failed"])
        elif "bundle" in result:
            self.done(name, result)
        elif "figures" in result:
            missing = self.missing(result["figures"])
            if missing:
                self.tell(name, state="failed", why=missing)
                return
            kept = [each for each in self.journal.trials[name].curve if each[0] < result["step"]]
            curve = (*kept, (result["step"], result["figures"]))
            objective = {o.name: reached(o, curve) for o in self.objectives if not o.task}
            self.tell(
                name, step=result["step"], curve=curve, objective=objective or None,
                steps=result["steps"],
                retries=self.retries.get(name, 0) + result["restarts"],
            )  # fmt: skip

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if self.journal.trials[name].state == "running":
            why = self.early.why.get(trial.trial_id, "stopped")
            self.tell(name, state="stopped", why=why)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        self.retries[name] = self.journal.trials[name].retries + 1
        self.tell(name, retries=self.retries[name])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if self.journal.trials[name].state == "running":
            tries = self.plan.search.budget.retries + 1
            line = str(trial.get_error() or "").strip().rpartition("\n")[2]
            self.tell(name, state="failed", why=f"failed {tries} times: {line or 'its process died'}")

    # -- what they mean

    def done(self, name: str, result: Mapping[str, Any]) -> None:
        objective = {o.name: v for o, v in zip(self.objectives, result["best"], strict=True)}
        curve = tuple((step, dict(figures)) for step, figures in result["curve"])
        wrong = [k for k, v in objective.items() if v is None or not math.isfinite(v)]
        missing = self.missing(curve[-1][1]) if wrong else ""
        why = missing or (f"{wrong[0]} = {objective[wrong[0]]} at its end" if wrong else "")
        self.tell(
            name, state="failed" if wrong else "done", why=why, objective=objective, curve=curve,
            step=result["step"], bundle=result["bundle"],
            facts=dict(result["facts"]),
        )  # fmt: skip

    def missing(self, figures: Mapping[str, Any]) -> str:
        """One line where a figure that is judged by is none of validation; where no trial had it, all end."""
        wanted = {o.metric: "objective.metric" for o in self.objectives if not o.task}
        if self.plan.search.scheduler.metric:
            wanted[self.plan.search.scheduler.metric] = "scheduler.metric"
        for metric, key in wanted.items():
            if metric in figures:
                continue
            near = difflib.get_close_matches(metric, figures, n=1, cutoff=0.0)
            line = (
                f"{key} = {metric!r}: no such figure of validation"
                + (f", the nearest is {near[0]!r}" if near else "")
                + f"; there are {', '.join(sorted(figures))}"
            )
            others = [t for t in self.journal.trials.values() if any(metric in f for _, f in t.curve)]
            if not others:
                self.lost = f"{self.plan.path}: {line}"
            return line
        return ""

    def tell(self, name: str, **changes: Any) -> Trial:
        passed = time.monotonic() - self.began.get(name, time.monotonic())
        return self.journal.tell(name, spent_s=round(self.before.get(name, 0.0) + passed, 1), **changes)


class Ending(Stopper):
    """When all trials end: the hours are over, or none can succeed. One trial ends that lacks a figure."""

    def __init__(self, watch: Watch, hours: float | None) -> None:
        self.watch, self.hours = watch, hours

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return "figures" in result and "bundle" not in result and bool(self.watch.missing(result["figures"]))

    def stop_all(self) -> bool:
        return bool(self.watch.lost) or self.over

    @property
    def over(self) -> bool:
        return self.hours is not None and self.watch.journal.told()["spent_s"] > self.hours * 3600
