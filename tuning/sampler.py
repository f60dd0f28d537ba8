"""Where the next point comes from: an Optuna study behind Ray Tune's Searcher.

Ray's own OptunaSearch takes no finished trials where keys depend on one another; a study does, so that a
search goes on from its record alone.
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
from tuning.config import Spread, Values
from tuning.early import SCORE, judged
from tuning.record import Trial
from tuning.space import Plan, text

STATES = {"done": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class Points(Searcher):
    """Trials for Tune, `config` of each made by `config_of(name, values)`.

    earlier: what the record has of former sessions. Those still "running" there come first, under their
    names; the finished ones are known to the study. `refused` is told (name, values, line) of a point whose
    run cannot be.
    """

    def __init__(
        self,
        plan: Plan,
        earlier: Iterable[Trial],
        config_of: Callable[[str, Values], dict[str, Any]],
        refused: Callable[[str, Values, str], None],
    ) -> None:
        super().__init__(metric=SCORE, mode="max")  # Tune wants both; what is best, the study knows
        self.plan, self.config_of, self.refused = plan, config_of, refused
        self.search = plan.search
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        ways = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
        self.study = optuna.create_study(directions=[ways[o.mode] for o in self.search.objective])
        self.begun = 0  # trials so far, refused ones included
        self.again: list[Trial] = []
        self.live: dict[str, optuna.Trial] = {}  # by Tune's trial id
        self.told: dict[str, int] = {}  # the last step told of each
        for trial in earlier:
            self.begun += 1
            if trial.state == "running":
                self.again.append(trial)
            else:
                self.study.add_trial(self._past(trial))
        known = [trial.params for trial in self.study.trials] + [self._params(t.values) for t in self.again]
        planned = self.search.points() if self.search.searcher.kind == "grid" else self.search.searcher.start
        self.planned = [point for point in planned if self._params(point) not in known]

    @property
    def most(self) -> int:
        """Trials of the whole search."""
        if self.search.searcher.kind == "grid":
            return min(self.search.budget.trials, sum(1 for _ in self.search.points()))
        return self.search.budget.trials

    @property
    def over(self) -> bool:
        """Whether no trial is left to run."""
        return not self.again and self.begun >= self.most

    def suggest(self, trial_id: str) -> Any:
        while True:
            if self.again:
                trial = self.again.pop(0)
                self.live[trial_id] = self._ask(trial.values)[0]
                return self.config_of(trial.trial, trial.values)
            if self.begun >= self.most:
                return Searcher.FINISHED
            self.begun += 1
            name = f"t{self.begun:04d}"
            asked, values = self._ask(self.planned.pop(0) if self.planned else None)
            try:
                config = self.config_of(name, values)
            except PlethoraError as error:
                self.study.tell(asked, state=TrialState.FAIL)
                self.refused(name, values, str(error))
                continue
            self.live[trial_id] = asked
            return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        # Optuna ranks stopped trials by how far they came and by their last score
        trial, step = self.live.get(trial_id), result.get("step", 0)
        if trial is None or len(self.study.directions) > 1 or not judged(result):
            return
        if step > self.told.get(trial_id, 0):  # a trial that goes on tells some validations twice
            self.told[trial_id] = step
            own = self.search.scheduler.mode or self.search.objective[0].mode
            trial.report(result[SCORE] * (1 if own == self.search.objective[0].mode else -1), step)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
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
        """Nothing: a search goes on from its record, and is never restored."""

    # -- Optuna

    def _ask(self, point: Values | None) -> tuple[optuna.Trial, Values]:
        """A trial of the study and its values: those of `point`, and drawn where it names none."""
        seed = [self.search.searcher.seed, len(self.study.trials)]
        self.study.sampler = _sampler(self.search.searcher.kind, seed)
        if point is not None:
            self.study.enqueue_trial(self._params(point))
        asked = self.study.ask()
        return asked, self.search.values(lambda key, spread: suggested(asked, key, spread))

    def _params(self, values: Values) -> dict[str, Any]:
        found = {}
        for key, value in values.items():
            found[key] = text(value) if self.search.space[key].choice is not None else value
        return found

    def _past(self, trial: Trial) -> optuna.trial.FrozenTrial:
        found = [trial.at_end(o.name) for o in self.search.objective]
        values = [v for v in found if v is not None]
        state = STATES[trial.state] if len(values) == len(found) else TrialState.FAIL
        if state == TrialState.PRUNED and len(found) > 1:  # Optuna ranks these for one objective only
            state = TrialState.FAIL
        return optuna.trial.create_trial(
            state=state,
            params=self._params(trial.values),
            distributions={k: distribution(self.search.space[k]) for k in trial.values},
            values=values if state == TrialState.COMPLETE else None,
            intermediate_values={trial.step: values[0]} if state == TrialState.PRUNED else None,
        )


def _sampler(kind: str, seed: list[int]) -> optuna.samplers.BaseSampler:
    """A sampler for one draw: seeded by the search's seed and how many trials there were, so that a search
    that was broken off draws what the unbroken one would."""
    mixed = (seed[0] * 1_000_003 + seed[1]) % 2**32
    if kind == "optuna":
        with warnings.catch_warnings():  # "experimental", these five years
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # `group`: keys that depend on others are modelled where they occur
            return optuna.samplers.TPESampler(seed=mixed, multivariate=True, group=True, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=mixed)


def distribution(spread: Spread) -> BaseDistribution:
    """As Optuna calls it; a choice is known by its TOML text, as it may be a list."""
    if spread.choice is not None:
        return CategoricalDistribution([text(v) for v in spread.choices])
    low, high = spread.bounds
    if spread.kind == "int":
        return IntDistribution(int(low), int(high), step=int(spread.step or 1))
    return FloatDistribution(low, high, log=spread.kind == "loguniform", step=spread.step)


def suggested(trial: optuna.Trial, key: str, spread: Spread) -> Any:
    """The trial's value of one key."""
    if spread.choice is not None:
        found = trial.suggest_categorical(key, [text(v) for v in spread.choices])
        return next(v for v in spread.choices if text(v) == found)
    low, high = spread.bounds
    if spread.kind == "int":
        return trial.suggest_int(key, int(low), int(high), step=int(spread.step or 1))
    return trial.suggest_float(key, low, high, log=spread.kind == "loguniform", step=spread.step)
