"""Chooses the next point: an Optuna study behind Ray Tune's Searcher.

Ray's OptunaSearch takes no finished trials where keys depend on one another; a study does, so that a search
resumes from its record alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search import Searcher

from cluster.errors import PlethoraError
from tuning.plan import Plan, toml
from tuning.record import Trial
from tuning.schedulers import SCORE, TuneResult, comparable
from tuning.space import Spread, Values, grid, sample

STATES = {"done": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class StudySearcher(Searcher):
    """Trials for Tune, the config of each made by `config_of(name, values)`.

    earlier: the record's trials of former sessions. Those still "running" come first, under their names; the
    study learns from the finished ones. `refused` gets (name, values, why) of a point that makes no run.
    """

    def __init__(
        self,
        plan: Plan,
        earlier: Iterable[Trial],
        config_of: Callable[[str, Values], dict[str, Any]],
        refused: Callable[[str, Values, str], None],
    ) -> None:
        super().__init__(metric=SCORE, mode="max")  # Tune requires both; the study knows what is best
        self.plan, self.config_of, self.refused = plan, config_of, refused
        self.search, self.space = plan.search, plan.search.space
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directions = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
        self.study = optuna.create_study(directions=[directions[o.mode] for o in self.search.objective])
        self.count = 0  # trials so far, refused ones included
        self.resumed: list[Trial] = []
        self.live: dict[str, optuna.Trial] = {}  # by Tune's trial id
        self.reported: dict[str, int] = {}  # the last step reported of each
        for trial in earlier:
            self.count += 1
            if trial.state == "running":
                self.resumed.append(trial)
            else:
                self.study.add_trial(self._past(trial))
        gridded = self.search.searcher.kind == "grid"
        planned = list(grid(self.space)) if gridded else list(self.search.searcher.start)
        self.most = min(self.search.budget.trials, len(planned)) if gridded else self.search.budget.trials
        known = [trial.params for trial in self.study.trials] + [self._params(t.values) for t in self.resumed]
        # a start point may leave keys out: it was tried if a trial has its values
        tried = (any(self._params(point).items() <= params.items() for params in known) for point in planned)
        self.planned = [point for point, done in zip(planned, tried, strict=True) if not done]

    @property
    def over(self) -> bool:
        """Whether no trial is left to run."""
        return not self.resumed and self.count >= self.most

    def suggest(self, trial_id: str) -> Any:
        while True:
            if self.resumed:
                trial = self.resumed.pop(0)
                self.live[trial_id] = self._ask(trial.values)[0]
                return self.config_of(trial.trial, trial.values)
            if self.count >= self.most:
                return Searcher.FINISHED
            self.count += 1
            name = f"t{self.count:04d}"
            asked, values = self._ask(self.planned.pop(0) if self.planned else None)
            try:
                config = self.config_of(name, values)
            except PlethoraError as error:
                self.study.tell(asked, state=TrialState.FAIL)
                self.refused(name, values, str(error))
                continue
            self.live[trial_id] = asked
            return config

    def on_trial_result(self, trial_id: str, result: TuneResult) -> None:
        # Optuna ranks stopped trials by how far they came and by their last score
        trial, step = self.live.get(trial_id), result.get("step", 0)
        if trial is None or len(self.study.directions) > 1 or not comparable(result):
            return
        if step > self.reported.get(trial_id, 0):  # a resumed trial repeats some validations
            self.reported[trial_id] = step
            same = self.search.score[1] == self.search.objective[0].mode
            trial.report(result[SCORE] * (1 if same else -1), step)

    def on_trial_complete(self, trial_id: str, result: TuneResult | None = None, error: bool = False) -> None:
        result = result or {}
        self.on_trial_result(trial_id, result)
        trial = self.live.pop(trial_id, None)
        if trial is None:
            return
        best = result.get("best") or []
        if best and all(v is not None and math.isfinite(v) for v in best):
            self.study.tell(trial, best)
        elif error or best or "failed" in result or len(self.study.directions) > 1:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search resumes from its record."""

    # -- Optuna

    def _ask(self, point: Values | None) -> tuple[optuna.Trial, Values]:
        """A trial of the study and its values: those of `point`, sampled where it has none."""
        seed = [self.search.searcher.seed, len(self.study.trials)]
        self.study.sampler = _sampler(self.search.searcher.kind, seed)
        if point is not None:
            self.study.enqueue_trial(self._params(point))
        asked = self.study.ask()
        return asked, sample(self.space, lambda key, spread: suggested(asked, key, spread))

    def _params(self, values: Values) -> Values:
        return {k: v if self.space[k].numeric else toml(v) for k, v in values.items()}

    def _past(self, trial: Trial) -> optuna.trial.FrozenTrial:
        found = [trial.at_end(o.name) for o in self.search.objective]
        values = [v for v in found if v is not None]
        state = STATES[trial.state] if len(values) == len(found) else TrialState.FAIL
        if state == TrialState.PRUNED and len(found) > 1:  # Optuna ranks these for one objective only
            state = TrialState.FAIL
        return optuna.trial.create_trial(
            state=state,
            params=self._params(trial.values),
            distributions={k: distribution(self.space[k]) for k in trial.values},
            values=values if state == TrialState.COMPLETE else None,
            intermediate_values={trial.step: values[0]} if state == TrialState.PRUNED else None,
        )


def _sampler(kind: str, seed: list[int]) -> optuna.samplers.BaseSampler:
    """A sampler for one draw, seeded by the search's seed and the number of trials: a resumed search draws
    what an uninterrupted one would."""
    mixed = (seed[0] * 1_000_003 + seed[1]) % 2**32
    if kind == "optuna":
        with warnings.catch_warnings():  # "experimental", for years
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # `group`: conditional keys are modelled where they occur
            return optuna.samplers.TPESampler(seed=mixed, multivariate=True, group=True, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=mixed)


def distribution(spread: Spread) -> BaseDistribution:
    """As Optuna has it; a choice is known by its TOML text, as it may be a list."""
    if not spread.numeric:
        return CategoricalDistribution([toml(value) for value in spread.choices])
    low, high = spread.bounds
    if spread.kind == "int":
        return IntDistribution(int(low), int(high), step=int(spread.step or 1))
    return FloatDistribution(low, high, log=spread.logarithmic, step=spread.step)


def suggested(trial: optuna.Trial, key: str, spread: Spread) -> Any:
    """The trial's value of one key."""
    if not spread.numeric:
        found = trial.suggest_categorical(key, [toml(value) for value in spread.choices])
        return next(value for value in spread.choices if toml(value) == found)
    low, high = spread.bounds
    if spread.kind == "int":
        return trial.suggest_int(key, int(low), int(high), step=int(spread.step or 1))
    return trial.suggest_float(key, low, high, log=spread.logarithmic, step=spread.step)
