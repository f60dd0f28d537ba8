"""Tune's callback that keeps the record of each trial, and the stopper that ends the search."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback, Stopper

from tuning.journal import Journal
from tuning.plan import Plan
from tuning.record import Trial
from tuning.schedulers import Asha, Median, NoStopping, TuneResult
from tuning.space import Values
from tuning.trial import reached


class JournalCallback(Callback):
    """Writes what happens to Tune's trials into the journal.

    `hopeless` is set, one line, where no trial can succeed: validation does not have the objective's figure.
    """

    def __init__(self, plan: Plan, journal: Journal, scheduler: Asha | Median | NoStopping) -> None:
        self.plan, self.journal, self.scheduler = plan, journal, scheduler
        self.objectives = plan.search.objective
        self.hopeless = ""
        self.started: dict[str, float] = {}  # on this session's clock, by trial
        self.before: dict[str, float] = {}  # seconds spent in earlier sessions
        self.retries = {n: t.retries for n, t in journal.trials.items()}  # before this start of the trial

    def start(self, name: str, values: Values, command: str) -> None:
        """A trial was chosen, and waits for room."""
        known = self.journal.trials.get(name) or Trial(name, "running")
        self.before[name] = known.spent_s
        started = known.started or time.time()
        new = {"state": "running", "why": "", "values": values, "command": command, "run": name}
        self.journal.update(name, **new, started=started)

    def refused(self, name: str, values: Values, why: str) -> None:
        """The values of a trial make no run."""
        self.journal.update(name, state="failed", why=why, values=values, started=time.time())

    # -- called by Tune

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.started.setdefault(trial.config["trial"], time.monotonic())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: TuneResult, **info: Any
    ) -> None:
        name = trial.config["trial"]
        if "failed" in result:
            self.update(name, state="failed", why=result["failed"])
        elif "bundle" in result:
            self.ended(name, result)
        elif "figures" in result:
            self.validated(name, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if self.journal.trials[name].state == "running":
            self.update(name, state="stopped", why=self.scheduler.why.get(trial.trial_id, "stopped"))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        self.retries[name] = self.journal.trials[name].retries + 1
        self.update(name, retries=self.retries[name])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if self.journal.trials[name].state == "running":
            tries = self.plan.search.budget.retries + 1
            error = str(trial.get_error() or "").strip().rpartition("\n")[2]
            self.update(name, state="failed", why=f"failed {tries} times: {error or 'its process died'}")

    # -- what that means for the record

    def validated(self, name: str, result: TuneResult) -> None:
        missing = self.missing(result["figures"])
        if missing:
            self.update(name, state="failed", why=missing)
            return
        step = result["step"]
        kept = [each for each in self.journal.trials[name].curve if each[0] < step]
        curve = (*kept, (step, result["figures"]))
        objective = {o.name: reached(o, curve) for o in self.objectives if not o.task} or None
        retries = self.retries.get(name, 0) + result["restarts"]
        steps = result["steps"]
        self.update(name, step=step, steps=steps, curve=curve, objective=objective, retries=retries)

    def ended(self, name: str, result: TuneResult) -> None:
        objective = {o.name: v for o, v in zip(self.objectives, result["best"], strict=True)}
        curve = tuple((step, dict(figures)) for step, figures in result["curve"])
        wrong = [k for k, v in objective.items() if v is None or not math.isfinite(v)]
        missing = self.missing(curve[-1][1]) if wrong else ""
        self.update(
            name,
            state="failed" if wrong else "done",
            why=missing or (f"{wrong[0]} = {objective[wrong[0]]} at its end" if wrong else ""),
            objective=objective,
            curve=curve,
            step=result["step"],
            bundle=result["bundle"],
            facts=dict(result["facts"]),
        )

    def missing(self, figures: Mapping[str, Any]) -> str:
        """One line where validation lacks a figure that is judged by; `hopeless` if no trial ever had it."""
        search = self.plan.search
        wanted = {o.metric: "objective.metric" for o in self.objectives if not o.task}
        if search.scheduler.metric:
            wanted[search.scheduler.metric] = "scheduler.metric"
        metric = next((metric for metric in wanted if metric not in figures), None)
        if metric is None:
            return ""
        near = difflib.get_close_matches(metric, figures, n=1, cutoff=0.0)
        why = f"{wanted[metric]} = {metric!r}: validation has no such figure"
        why += f", the nearest is {near[0]!r}" if near else ""
        why += f"; there are {', '.join(sorted(figures))}"
        if not any(metric in each for t in self.journal.trials.values() for _, each in t.curve):
            self.hopeless = f"{self.plan.path}: {why}"
        return why

    def update(self, name: str, **changes: Any) -> None:
        now = time.monotonic()
        spent = self.before.get(name, 0.0) + now - self.started.get(name, now)
        self.journal.update(name, spent_s=round(spent, 1), **changes)


class SearchStopper(Stopper):
    """Ends the search when its hours are spent or no trial can succeed; ends a trial that lacks a figure."""

    def __init__(self, callback: JournalCallback, hours: float | None) -> None:
        self.callback, self.hours = callback, hours

    def __call__(self, trial_id: str, result: TuneResult) -> bool:
        validation = "figures" in result and "bundle" not in result
        return validation and bool(self.callback.missing(result["figures"]))

    def stop_all(self) -> bool:
        spent = self.callback.journal.info.spent_s or 0.0
        return bool(self.callback.hopeless) or (self.hours is not None and spent > self.hours * 3600)
