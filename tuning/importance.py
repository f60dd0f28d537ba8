"""Importance of each key: the share of the objective's variance that it explains alone (functional ANOVA,
Hutter et al. 2014, with Optuna's forest), its bootstrap interval, and whether the key helps to predict.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuning.record import Record, Trial
from tuning.space import Space, Spread, Values

DRAWS = 40
SHUFFLES = 20
TREES = 16  # of Optuna's forest in each draw
OOB_TREES = 60  # of the forest that predicts out-of-bag trials
FEWEST = 6  # trials below which a forest has nothing to split


@dataclass(frozen=True)
class Importance:
    """Share of the variance of the objective over the space that one key explains by itself.

    low, high: 95 % bootstrap interval over trials. significant: a forest predicts out-of-bag trials better
    with the key than with its values shuffled among the trials, in each of SHUFFLES tries (for a key without
    effect, 1 case of 21). What the shares lack to 1 are joint effects of keys.
    """

    key: str
    value: float
    low: float
    high: float
    significant: bool
    trials: int
    among: str = ""  # of a conditional key: the condition of the trials it was computed from


@dataclass(frozen=True)
class Importances:
    """Importance of every key for one objective, most important first, and what it is computed from."""

    objective: str
    rows: tuple[Importance, ...]
    about: str
    r2: float  # R² of the forest on out-of-bag trials; at or below 0 it knows nothing


def importances(record: Record, number: int = 0, seed: int = 0) -> Importances | str:
    """Importance of the space's keys for one objective; a reason where it cannot be known.

    Stopped trials count too: all trials are compared at the last step that every one of them reached, so that
    none looks bad only because it was stopped.
    """
    objective = record.search.objective[number]
    trials, values, about = comparable(record, objective.name)
    if len(trials) < FEWEST:
        return f"{len(trials)} trials have a value; importance needs {FEWEST}"
    if np.ptp(values) == 0:
        return "every trial has the same value"
    found = [*_by_condition(record.search.space, trials, values, seed)]
    if not found:
        return "no key took more than one value"
    rows = sorted((row for row, _ in found), key=lambda row: -row.value)
    return Importances(objective.name, tuple(rows), about, found[0][1])


def comparable(record: Record, name: str) -> tuple[list[Trial], np.ndarray, str]:
    """Trials with their values of an objective at one step, and in words which step that is."""
    trials = [t for t in record.having("done", "stopped") if t.at_end(name) is not None]
    apart = len({t.steps for t in trials}) > 1  # then steps are compared as shares of each trial's steps
    reached: list[dict[float, float]] = []
    for trial in trials:
        whole = trial.steps or 1
        points = [*trial.curve_of(name), (trial.step, trial.at_end(name) or 0.0)]
        reached.append({round(100 * s / whole, 1) if apart else s: value for s, value in points})
    shared = set.intersection(*map(set, reached)) if reached else set()
    ends = {max(points) for points in reached}
    if len(ends) > 1 and shared:
        at = max(shared)
        where = f"at {at:g} % of its steps" if apart else f"at step {at:g}"
        about = f"each trial's value {where}, the last that all of them reached"
        return trials, np.array([points[at] for points in reached]), about
    values = np.array([t.at_end(name) for t in trials], float)
    uneven = ", at different steps: read with care" if len(ends) > 1 else ""
    return trials, values, f"each trial's last value{uneven}"


def _by_condition(
    space: Space, trials: list[Trial], values: np.ndarray, seed: int
) -> Iterator[tuple[Importance, float]]:
    """The keys that every trial has; then those of each condition, among the trials that meet it; each with
    the out-of-bag R² of its forest.
    """
    conditions: list[Values] = [{}]
    for key in space.values():
        if key.when not in conditions:
            conditions.append(key.when)
    for when in conditions:
        keys = {name: key for name, key in space.items() if key.when in ({}, when)}
        here = [i for i, trial in enumerate(trials) if all(name in trial.values for name in keys)]
        some = [trials[i] for i in here]
        varied = {n: key for n, key in keys.items() if len({str(t.values[n]) for t in some}) > 1}
        if len(here) < FEWEST or np.ptp(values[here]) == 0:
            continue
        wanted = next(key.conditions for key in keys.values() if key.when == when) if when else {}
        among = " and ".join(f"{name} = {' or '.join(map(str, each))}" for name, each in wanted.items())
        rows, r2 = _forest(some, values[here], varied, among, seed) if varied else ([], 0.0)
        yield from ((row, r2) for row in rows if space[row.key].when == when)


def _forest(
    trials: list[Trial], values: np.ndarray, keys: Space, among: str, seed: int
) -> tuple[list[Importance], float]:
    """(importance of `keys` for `values` (n,), out-of-bag R²)."""
    coded = {name: _coded(key, [t.values[name] for t in trials]) for name, key in keys.items()}
    generator = np.random.default_rng([seed, len(trials), len(keys)])
    count, names = len(trials), list(keys)
    drawn: list[dict[str, float]] = []
    while len(drawn) < DRAWS:
        rows = generator.integers(count, size=count)
        if np.ptp(values[rows]) > 0:
            drawn.append(_fanova(coded, rows, values[rows], seed + len(drawn)))
    low, high = np.quantile([[d[n] for n in names] for d in drawn], [0.025, 0.975], axis=0)
    found = _fanova(coded, np.arange(count), values, seed, 4 * TREES)
    columns = {name: _columns(*given) for name, given in coded.items()}
    r2 = float(np.median([_oob_r2(columns, values, seed + i) for i in range(5)]))
    result = []
    for i, name in enumerate(names):
        orders = (generator.permutation(count) for _ in range(SHUFFLES))
        tries = (_oob_r2(columns | {name: columns[name][o]}, values, seed + n) for n, o in enumerate(orders))
        significant = r2 > 0 and all(value < r2 for value in tries)
        interval = float(low[i]), float(high[i])
        result.append(Importance(name, found[name], *interval, significant, count, among))
    return result, r2


def _columns(distribution: Any, values: list[Any]) -> np.ndarray:
    """A key's values as columns (n, one a choice, or 1)."""
    choices = getattr(distribution, "choices", None)
    if choices is None:
        return np.array(values, float)[:, None]
    return np.array([[value == choice for choice in choices] for value in values], float)


def _oob_r2(columns: dict[str, np.ndarray], values: np.ndarray, seed: int) -> float:
    """Out-of-bag R² of a forest."""
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(OOB_TREES, bootstrap=True, oob_score=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a trial that is in every bag: its prediction is 0, and counts
        return float(forest.fit(np.hstack([*columns.values()]), values).oob_score_)


def _coded(key: Spread, values: Sequence[Any]) -> tuple[Any, list[Any]]:
    """(Optuna's distribution, values in it): logarithms of logarithmic keys, so that a volume is one of the
    distribution that was sampled (Optuna's forest knows no logarithms), and places of ordered choices.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if key.numeric:
        change = math.log if key.logarithmic else float
        numbers = [change(value) for value in values]
        ends = [change(end) for end in key.bounds]
        return FloatDistribution(min(*ends, *numbers), max(*ends, *numbers)), numbers
    choices = [*key.choices, *(v for v in values if v not in key.choices)]
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
        choices = sorted(set(choices))
        return IntDistribution(0, max(len(choices) - 1, 1)), [choices.index(value) for value in values]
    names = [str(i) for i in range(len(choices))]
    return CategoricalDistribution(names), [names[choices.index(value)] for value in values]


def _fanova(
    coded: dict[str, tuple[Any, list[Any]]],
    rows: np.ndarray,
    values: np.ndarray,
    seed: int,
    trees: int = TREES,
) -> dict[str, float]:
    """{key: share of variance} over trials `rows`; 0 for all where no tree could split."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    distributions = {name: distribution for name, (distribution, _) in coded.items()}
    for row, value in zip(rows, values, strict=True):
        params = {name: given[row] for name, (_, given) in coded.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=float(value))
        )
    try:
        found = FanovaImportanceEvaluator(n_trees=trees, seed=seed).evaluate(study)
    except RuntimeError:  # Optuna raises it where every tree has zero variance
        return dict.fromkeys(coded, 0.0)
    return {name: float(found[name]) for name in coded}
