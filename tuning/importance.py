"""How much of what an objective does each key explains alone (functional ANOVA, Hutter et al. 2014, by
Optuna's forest), how far other trials would have moved that, and whether the key helps to predict at all.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuning.record import Key, Record, Trial

DRAWS = 40
SHUFFLES = 20
TREES = 16  # of Optuna's forest in each draw
UNSEEN_TREES = 60  # of the forest that predicts trials it did not see
FEWEST = 6  # trials below which a forest has nothing to split


@dataclass(frozen=True)
class Importance:
    """Share of the variance of the objective over the space that one key explains by itself.

    low, high: 95 % interval over trials drawn with replacement. telling: a forest predicts trials that it did
    not see better with the key than with its values shuffled among the trials, in each of SHUFFLES tries (for
    a key that does nothing, 1 case of 21). The rest of the shares to 1 is joint effects of keys.
    """

    key: str
    value: float
    low: float
    high: float
    telling: bool
    trials: int
    among: str = ""  # for a conditional key: the trials that it was judged on


@dataclass(frozen=True)
class Judged:
    """Importance of every key for one objective, most important first, and what it rests on."""

    objective: str
    rows: tuple[Importance, ...]
    about: str
    unseen: float  # R² of the forest on trials that it did not see; at or below 0 it knows nothing


def judge(record: Record, number: int = 0, seed: int = 0) -> Judged | str:
    """Importance of the space's keys for one objective; a reason where it cannot be told.

    Trials that were stopped count too: all are compared at the last step that every one of them reached, so
    that none looks bad only for having been stopped early.
    """
    objective = record.search.objective[number]
    trials, values, about = comparable(record, objective.name)
    if len(trials) < FEWEST:
        return f"{len(trials)} trials told a value; importance asks for {FEWEST}"
    if np.ptp(values) == 0:
        return "every trial has the same value"
    found = [*_judged(record.search.space, trials, values, seed)]
    if not found:
        return "no key took more than one value"
    rows = sorted((row for row, _ in found), key=lambda row: -row.value)
    return Judged(objective.name, tuple(rows), about, found[0][1])


def comparable(record: Record, name: str) -> tuple[list[Trial], np.ndarray, str]:
    """Trials with their values of an objective at one step, and in words which step that is."""
    told = [t for t in record.having("done", "stopped") if t.at_end(name) is not None]
    apart = len({t.steps for t in told}) > 1  # then steps compare as shares of each trial's own
    reached: list[dict[float, float]] = []
    for trial in told:
        whole = trial.steps or 1
        points = [*trial.curve_of(name), (trial.step, trial.at_end(name) or 0.0)]
        reached.append({round(100 * s / whole, 1) if apart else s: value for s, value in points})
    shared = set.intersection(*map(set, reached)) if reached else set()
    ends = {max(points) for points in reached}
    if len(ends) > 1 and shared:
        at = max(shared)
        where = f"at {at:g} % of its steps" if apart else f"at step {at:g}"
        about = f"each trial's value {where}, the last that all of them reached"
        return told, np.array([points[at] for points in reached]), about
    values = np.array([t.at_end(name) for t in told], float)
    uneven = ", which was at different steps: read with care" if len(ends) > 1 else ""
    return told, values, f"each trial's last value{uneven}"


def _judged(
    space: dict[str, Key], trials: list[Trial], values: np.ndarray, seed: int
) -> Iterator[tuple[Importance, float]]:
    """Keys that every trial draws; then those of each condition, among the trials that meet it. With each its
    forest's R² on trials not seen.
    """
    conditions: list[dict[str, Any]] = [{}]
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
        among = " and ".join(f"{name} = {_either(wanted)}" for name, wanted in when.items())
        rows, unseen = _forest(some, values[here], varied, among, seed) if varied else ([], 0.0)
        yield from ((row, unseen) for row in rows if space[row.key].when == when)


def _either(wanted: Any) -> str:
    given = wanted if isinstance(wanted, list | tuple) else [wanted]
    return " or ".join(str(value) for value in given)


def _forest(
    trials: list[Trial], values: np.ndarray, keys: dict[str, Key], among: str, seed: int
) -> tuple[list[Importance], float]:
    """(importance of `keys` for `values` (n,), R² on trials not seen)."""
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
    unseen = float(np.median([_unseen(columns, values, seed + i) for i in range(5)]))
    told = []
    for i, name in enumerate(names):
        orders = (generator.permutation(count) for _ in range(SHUFFLES))
        tries = (_unseen(columns | {name: columns[name][o]}, values, seed + n) for n, o in enumerate(orders))
        telling = unseen > 0 and all(value < unseen for value in tries)
        told.append(Importance(name, found[name], float(low[i]), float(high[i]), telling, count, among))
    return told, unseen


def _columns(distribution: Any, values: list[Any]) -> np.ndarray:
    """A key's values as columns (n, one a choice, or 1)."""
    choices = getattr(distribution, "choices", None)
    if choices is None:
        return np.array(values, float)[:, None]
    return np.array([[value == choice for choice in choices] for value in values], float)


def _unseen(columns: dict[str, np.ndarray], values: np.ndarray, seed: int) -> float:
    """R² of a forest on the trials that its trees did not see."""
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(UNSEEN_TREES, bootstrap=True, oob_score=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a trial that every tree saw: its prediction is 0, and counts
        return float(forest.fit(np.hstack([*columns.values()]), values).oob_score_)


def _coded(key: Key, values: Sequence[Any]) -> tuple[Any, list[Any]]:
    """(Optuna's distribution, values in it): logarithms of logarithmic keys, so that a volume is that which
    was drawn from (Optuna's forest knows no logarithms), and places of ordered choices.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if key.numeric:
        change = math.log if key.logarithmic else float
        numbers = [change(value) for value in values]
        ends = [change(end) for end in (key.low, key.high) if end is not None]
        return FloatDistribution(min(*ends, *numbers), max(*ends, *numbers)), numbers
    choices = [*key.choices, *(v for v in values if v not in key.choices)]
    ordered = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)
    if ordered:
        choices = sorted(set(choices))
        return IntDistribution(0, max(len(choices) - 1, 1)), [choices.index(value) for value in values]
    return CategoricalDistribution([str(i) for i in range(len(choices))]), [
        str(choices.index(v)) for v in values
    ]


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
    except RuntimeError:  # Optuna's word for zero variance in every tree
        return dict.fromkeys(coded, 0.0)
    return {name: float(found[name]) for name in coded}
