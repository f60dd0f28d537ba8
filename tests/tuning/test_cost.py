"""Costs add up, and a full grid has the points that a grid has."""

from dataclasses import replace

import pytest

from tests.tuning import drawn
from tuning.config import Search
from tuning.cost import cost
from tuning.record import Trial
from tuning.space import Spread, grid, grid_points, stepless


@pytest.mark.parametrize(
    "space",
    [
        {"a": {"choice": [1, 2, 3]}, "b": {"int": [1, 4]}},
        {"a": {"choice": ["x", "y"]}, "b": {"choice": [1, 2, 3], "when": {"a": "y"}}},
        {
            "a": {"choice": ["x", "y", "z"]},
            "b": {"choice": [1, 2], "when": {"a": ["y", "z"]}},
            "c": {"uniform": [0, 1], "step": 0.25, "when": {"b": 2}},
            "d": {"choice": [True, False]},
        },
    ],
)
def test_a_grid_has_as_many_points_as_a_search_over_it_runs(space: dict) -> None:
    search = Search(name="s", base="b.toml", objective=[{"metric": "m", "mode": "min"}], space=space)
    assert grid_points(search.space) == grid_points(search.space, 5) == len(list(grid(search.space)))


def test_a_key_without_steps_counts_as_five_and_is_named() -> None:
    space = {
        "lr": Spread(kind="loguniform", low=1e-5, high=1e-2),
        "alpha": Spread(kind="int", low=1, high=64),
        "rank": Spread(kind="choice", choices=(2, 4)),
    }
    assert grid_points(space, 5) == 50 and grid_points(space) is None
    assert [key for key, spread in space.items() if stepless(spread)] == ["lr", "alpha"]


def test_a_stopped_trial_would_have_continued_at_its_own_pace() -> None:
    given = drawn.search()
    found = cost(given)
    whole = [t for t in given.trials if t.state != "failed"]
    failed = sum(t.spent_s for t in given.having("failed"))
    assert found.spent_s == pytest.approx(sum(t.spent_s for t in given.trials))
    assert found.unstopped_s == pytest.approx(len(whole) * drawn.STEPS * drawn.SECOND + failed)
    assert found.grid_s == pytest.approx(found.grid_points * drawn.STEPS * drawn.SECOND)
    assert found.saved == pytest.approx(1 - found.spent_s / found.unstopped_s)


def test_without_a_pace_nothing_is_compared() -> None:
    given = drawn.search(6)
    lost = tuple(Trial(t.trial, "failed", spent_s=3.0) for t in given.trials)
    found = cost(replace(given, trials=lost))
    assert (found.spent_s, found.unstopped_s, found.grid_s, found.saved) == (18.0, None, None, None)
