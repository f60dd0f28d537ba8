"""Early stopping: its reasons, the trials that it leaves alone, and its state after a restart."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tuning.config import Scheduler
from tuning.record import Trial
from tuning.schedulers import scheduler


class Ray:
    """A trial as Tune hands it to a scheduler."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def result(step: int, value: float, steps: int = 100) -> dict[str, Any]:
    return {"step": step, "progress": 100.0 * step / steps, "score": value}


def play(rule: Any, trials: dict[str, list[tuple[int, float]]]) -> dict[str, int]:
    """Run the trials one after the other; {trial: the step where it ended}."""
    ended = {}
    controller = SimpleNamespace(get_live_trials=list)
    for name, curve in trials.items():
        ray = Ray(name)
        rule.on_trial_add(controller, ray)
        for step, value in curve:
            ended[name] = step
            decision = rule.on_trial_result(controller, ray, result(step, value))
            assert decision in ("CONTINUE", "STOP")  # never PAUSE: there is nothing to resume from
            if decision == "STOP":
                break
        rule.on_trial_complete(controller, ray, result(ended[name], dict(curve)[ended[name]]))
    return ended


def curves(count: int = 12, seed: int = 0) -> dict[str, list[tuple[int, float]]]:
    draw = np.random.default_rng(seed)
    level = draw.uniform(1, 2, count)
    return {
        f"t{n:02d}": [(s, float(level[n] + 2 / (1 + s) + 0.01 * draw.normal())) for s in range(5, 101, 5)]
        for n in range(count)
    }


def asha(grace: float, reduction: float, trials: dict[str, list[tuple[int, float]]]) -> dict[str, int]:
    """Asynchronous successive halving as its paper has it, trials one after the other; less is better."""
    rungs: dict[float, list[float]] = {}
    ended = {}
    levels = [grace * reduction**k for k in range(20) if grace * reduction**k <= 100]
    for name, curve in trials.items():
        passed: set[float] = set()
        for step, value in curve:
            ended[name] = step
            reached = [r for r in levels if step >= r]
            if not reached or reached[-1] in passed or step == 100:
                continue
            passed |= {reached[-1]}
            known = rungs.setdefault(reached[-1], [])
            worse = bool(known) and value > np.percentile(known, 100 / reduction)
            known.append(value)
            if worse:
                break
    return ended


@pytest.mark.parametrize("reduction", [2.0, 3.0])
def test_asha_stops_where_its_definition_does(reduction: float) -> None:
    trials = curves()
    rule = scheduler(Scheduler(grace=0.1, reduction=reduction), "min", "f", [])
    found = play(rule, trials)
    assert found == asha(10, reduction, trials)
    assert {100} < set(found.values())  # some were stopped, some not


def test_a_larger_figure_is_better_where_the_mode_says_so() -> None:
    low, high = curves(), {n: [(s, -v) for s, v in c] for n, c in curves().items()}
    one, two = (scheduler(Scheduler(), mode, "f", []) for mode in ("min", "max"))
    assert play(one, low) == play(two, high)


def test_a_stopped_trial_has_a_reason() -> None:
    trials = {"a": [(10, 1.0), (100, 1.0)], "b": [(10, 3.0), (100, 1.0)]}
    rule = scheduler(Scheduler(), "min", "f", [])
    assert play(rule, trials) == {"a": 100, "b": 10}
    assert rule.why == {
        "b": "asha: 3 is not in the best 1/3 of the 1 before it at 10 % of the steps, at step 10"
    }


def test_a_trial_at_its_last_step_is_not_stopped() -> None:
    trials = {"a": [(100, 1.0)], "b": [(100, 9.0)]}
    rule = scheduler(Scheduler(), "min", "f", [])
    play(rule, trials)
    assert rule.why == {}


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_score_that_is_no_number_is_not_compared(kind: str) -> None:
    lost = {f"n{n}": [(s, math.nan) for s in range(10, 101, 10)] for n in range(4)}
    rule = scheduler(Scheduler(kind=kind), "min", "f", [])
    assert play(rule, lost | curves()) == play(scheduler(Scheduler(kind=kind), "min", "f", []), curves()) | {
        n: 100 for n in lost
    }


@pytest.mark.parametrize("kind", ["asha", "median"])
@pytest.mark.parametrize("cut", [3, 8])
def test_after_a_restart_it_decides_as_if_there_had_been_none(kind: str, cut: int) -> None:
    trials = curves(16, seed=3)
    config = Scheduler(kind=kind)
    whole = play(scheduler(config, "min", "f", []), trials)
    names = list(trials)
    earlier = []
    for name in names[:cut]:
        state = "done" if whole[name] == 100 else "stopped"
        curve = tuple((step, {"f": value}) for step, value in trials[name] if step <= whole[name])
        earlier.append(Trial(name, state, steps=100, step=whole[name], curve=curve))
    rest = play(scheduler(config, "min", "f", earlier), {n: trials[n] for n in names[cut:]})
    assert rest == {n: whole[n] for n in names[cut:]}
    assert {100} < set(whole.values())


def test_the_median_rule_waits_for_enough_trials_and_says_why() -> None:
    trials = {f"g{n}": [(s, 1.0) for s in range(10, 101, 10)] for n in range(3)}
    trials |= {"bad": [(s, 5.0) for s in range(10, 101, 10)]}
    rule = scheduler(Scheduler(kind="median", min_trials=3), "min", "f", [])
    assert play(rule, trials) == {"g0": 100, "g1": 100, "g2": 100, "bad": 10}
    assert rule.why["bad"].startswith("median: 5, its best, is worse than the median")
    assert play(scheduler(Scheduler(kind="median", min_trials=4), "min", "f", []), trials)["bad"] == 100


def test_without_a_scheduler_nothing_stops() -> None:
    rule = scheduler(Scheduler(kind="none"), "min", "f", [])
    assert set(play(rule, curves()).values()) == {100}
