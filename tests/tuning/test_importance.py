"""Importance finds what was planted, and says where it may be noise."""

from dataclasses import replace

import numpy as np
import pytest

from tests.tuning import drawn
from tuning import importance
from tuning.config import Objective, Search
from tuning.importance import Importances
from tuning.record import Info, Record, Trial
from tuning.space import Spread

SPACE = {
    "lr": Spread(kind="loguniform", low=1e-5, high=1e-1),
    "size": Spread(kind="choice", choices=(1, 2, 4, 8)),
    "idle": Spread(kind="uniform", low=0.0, high=1.0),
}


SEARCH = Search(name="s", base="b", objective=(Objective(metric="loss", mode="min"),), space=SPACE)


def planted(count: int, seed: int, noise: float = 0.02) -> Record:
    """log lr makes 80 % of the variance over the space, size 20 %, idle none."""
    generator = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        exponent, size = generator.uniform(-5, -1), int(generator.choice([1, 2, 4, 8]))
        value = 2 * (exponent + 3) * np.sqrt(12) / 4 + np.log2(size) / np.sqrt(1.25)
        value += noise * generator.normal()
        values = {"lr": float(10**exponent), "size": size, "idle": float(generator.uniform())}
        trials.append(Trial(f"t{number}", "done", values=values, step=1, objective={"loss": float(value)}))
    return Record(SEARCH, Info(), tuple(trials))


def judged(record: Record, number: int = 0) -> dict[str, importance.Importance]:
    found = importance.importances(record, number)
    assert isinstance(found, Importances)
    return {row.key: row for row in found.rows}


def test_shares_are_those_that_were_planted() -> None:
    found = judged(planted(60, 1))
    for name, share in (("lr", 0.8), ("size", 0.2)):
        assert found[name].value == pytest.approx(
            share, abs=0.12
        )  # a forest of 60 trials leans to the larger
        assert found[name].low <= found[name].value <= found[name].high
        assert found[name].significant
    assert found["idle"].value < 0.05
    assert not found["idle"].significant


def test_what_noise_makes_is_not_taken_for_an_effect() -> None:
    count = 0
    for seed in range(3):
        record = planted(12, seed)
        generator = np.random.default_rng(seed)
        noise = tuple(replace(t, objective={"loss": float(generator.normal())}) for t in record.trials)
        count += sum(row.significant for row in judged(replace(record, trials=noise)).values())
    assert count <= 1


def test_trials_are_compared_where_all_of_them_were() -> None:
    record = drawn.search()
    trials, values, about = importance.comparable(record, "val/mae")
    assert {t.state for t in trials} == {"done", "stopped"}
    assert "step 10" in about
    np.testing.assert_array_equal(values, [dict(t.curve_of("val/mae"))[10] for t in trials])


def test_steps_of_different_lengths_are_compared_by_their_share() -> None:
    curves = {"a": [(5, 3.0), (10, 2.0)], "b": [(10, 3.5), (20, 2.5)], "c": [(10, 4.0)]}
    trials = []
    for name, points in curves.items():
        step, value = points[-1]
        curve = tuple((s, {"loss": v}) for s, v in points)
        steps = 10 if name == "a" else 20
        trials.append(Trial(name, "done", step=step, steps=steps, objective={"loss": value}, curve=curve))
    record = Record(SEARCH, Info(), tuple(trials))
    _, values, about = importance.comparable(record, "loss")
    np.testing.assert_array_equal(values, [3.0, 3.5, 4.0])
    assert "50 % of its steps" in about


def test_a_conditional_key_is_computed_from_the_trials_that_have_it() -> None:
    record = drawn.search(20)
    found = importance.importances(record)
    assert isinstance(found, Importances)
    assert sorted(row.key for row in found.rows) == sorted(record.search.space)
    row = next(row for row in found.rows if row.key == "method.stft.n_fft")
    having = [t for t in record.having("done", "stopped") if "method.stft.n_fft" in t.values]
    assert row.trials == len(having)
    assert row.among == "method.transform = stft"


def test_too_few_trials_and_equal_values_give_a_reason() -> None:
    record = planted(8, 0)
    assert "needs 6" in str(importance.importances(replace(record, trials=record.trials[:5])))
    same = tuple(replace(t, objective={"loss": 1.0}) for t in record.trials)
    assert "same value" in str(importance.importances(replace(record, trials=same)))
    alike = tuple(replace(t, values=record.trials[0].values) for t in record.trials)
    assert "no key" in str(importance.importances(replace(record, trials=alike)))
