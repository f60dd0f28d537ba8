"""How points are chosen: bounds, conditions, start points, grids, and resuming from a record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from cluster.errors import PlethoraError
from tuning.plan import Plan, read
from tuning.record import Trial
from tuning.sampler import StudySearcher
from tuning.space import grid

SPACE = """
name = "s"
base = "run.toml"
[objective]
metric = "loss/net"
mode = "min"
[space]
optim.lr = { loguniform = [1e-4, 1e-2] }
method.dropout = { uniform = [0.0, 0.4], when = { seed = [2, 3] } }
seed = { int = [1, 4] }
"""


@pytest.fixture
def plan_of(tmp_path: Path):
    (tmp_path / "run.toml").write_text(
        'recipe = "tests.pretrain.toy:Toy"\nname = "t"\ncorpus = "/c"\n'
        "batch = 12\nsteps = 4\nvalidate_every = 1\n"
    )

    def made(*sets: str) -> Plan:
        (tmp_path / "search.toml").write_text(SPACE)
        return read(str(tmp_path / "search.toml"), sets)

    return made


def loss(values: dict[str, Any]) -> float:
    return abs(values["optim.lr"] - 0.002) * 100 + values.get("method.dropout", 0.3)


def points(plan: Plan, earlier: tuple[Trial, ...] = ()) -> StudySearcher:
    def refuse(name: str, values: dict[str, Any], line: str) -> None:
        raise AssertionError(line)

    return StudySearcher(plan, earlier, lambda name, values: {"trial": name, "values": values}, refuse)


def drawn(plan: Plan, count: int = 99, earlier: tuple[Trial, ...] = ()) -> list[Trial]:
    """Up to `count` trials, one after the other, each with its loss."""
    source, found = points(plan, earlier), []
    for number in range(count):
        config = source.suggest(f"ray{number}")
        if config == Searcher.FINISHED:
            break
        value = loss(config["values"])
        result = {"step": 4, "progress": 100.0, "score": value, "best": [value], "bundle": "uri"}
        source.on_trial_complete(f"ray{number}", result)
        name, values, objective = config["trial"], config["values"], {"loss/net": value}
        found.append(Trial(name, "done", values=values, step=4, steps=4, objective=objective))
    return found


@pytest.mark.parametrize("kind", ["optuna", "random"])
def test_points_lie_within_their_bounds_and_follow_their_conditions(plan_of, kind: str) -> None:
    found = [t.values for t in drawn(plan_of("budget.trials=40", f"searcher.kind={kind}"))]
    assert len(found) == 40
    assert {v["seed"] for v in found} == {1, 2, 3, 4}
    assert all(1e-4 <= v["optim.lr"] <= 1e-2 for v in found)
    assert all(("method.dropout" in v) == (v["seed"] in (2, 3)) for v in found)
    assert len({v["optim.lr"] for v in found}) == 40


@pytest.mark.parametrize("kind", ["optuna", "random"])
@pytest.mark.parametrize("cut", [1, 7, 14])
def test_an_interrupted_search_samples_what_an_uninterrupted_one_does(plan_of, kind: str, cut: int) -> None:
    plan = plan_of("budget.trials=18", f"searcher.kind={kind}")
    whole = drawn(plan)
    again = drawn(plan, earlier=tuple(whole[:cut]))
    assert [t.trial for t in whole] == [f"t{n:04d}" for n in range(1, 19)]
    assert [t.values for t in again] == [t.values for t in whole[cut:]]
    assert [t.trial for t in again] == [t.trial for t in whole[cut:]]


def test_it_is_over_when_every_trial_has_ended(plan_of) -> None:
    plan = plan_of("budget.trials=3", "searcher.kind=random")
    whole = drawn(plan)
    assert points(plan, tuple(whole)).over
    assert not points(plan, tuple(whole[:2])).over
    assert not points(plan, (*whole[:2], replace(whole[2], state="running"))).over


def test_a_trial_that_was_running_comes_first_with_its_name_and_values(plan_of) -> None:
    plan = plan_of("budget.trials=5", "searcher.kind=random")
    whole = drawn(plan)
    earlier = (whole[0], replace(whole[1], state="running", objective=None), whole[2])
    again = drawn(plan, earlier=earlier)
    assert [t.trial for t in again] == ["t0002", "t0004", "t0005"]
    assert again[0].values == whole[1].values


def test_optuna_looks_where_it_was_good(plan_of) -> None:
    def best(kind: str, seed: int) -> float:
        plan = plan_of("budget.trials=60", f"searcher.kind={kind}", f"searcher.seed={seed}")
        return min(loss(t.values) for t in drawn(plan))

    assert sum(best("optuna", s) for s in range(3)) < sum(best("random", s) for s in range(3))


def test_start_points_are_tried_first_and_what_they_leave_out_is_sampled(plan_of) -> None:
    start = "searcher.start=[{optim.lr = 0.002, seed = 1}, {seed = 3, method.dropout = 0.125}]"
    first, second, _ = (t.values for t in drawn(plan_of("budget.trials=3", start)))
    assert first == {"optim.lr": 0.002, "seed": 1}
    assert (second["seed"], second["method.dropout"]) == (3, 0.125)
    assert 1e-4 <= second["optim.lr"] <= 1e-2


def test_a_start_point_that_leaves_keys_out_is_not_tried_again_after_a_resume(plan_of) -> None:
    plan = plan_of("budget.trials=5", "searcher.kind=random", "searcher.start=[{optim.lr = 0.002}]")
    whole = drawn(plan)
    again = drawn(plan, earlier=tuple(whole[:2]))
    assert [t.values for t in again] == [t.values for t in whole[2:]]


GRID = (
    "searcher.kind=grid",
    "space.optim={lr = {choice = [1e-3, 2e-3]}}",
    "space.method.dropout={uniform = [0.0, 0.4], step = 0.2, when = {seed = [2, 3]}}",
)


def test_a_grid_is_tried_once_and_resumes_where_it_was(plan_of) -> None:
    plan = plan_of("budget.trials=99", *GRID)
    whole = drawn(plan)
    assert [t.values for t in whole] == list(grid(plan.search.space))
    assert len(whole) == 2 * (1 + 3 + 3 + 1)
    rest = drawn(plan, earlier=(whole[0], replace(whole[1], state="failed"), whole[2]))
    assert [t.values for t in rest] == [t.values for t in whole[3:]]


def test_stopped_trials_teach_optuna_without_counting_as_finished(plan_of) -> None:
    source = points(plan_of("budget.trials=9"))
    for number, step in enumerate((1, 2)):
        source.suggest(f"ray{number}")
        result = {"step": step, "progress": 25.0 * step, "score": 0.5}
        source.on_trial_result(f"ray{number}", result)
        source.on_trial_complete(f"ray{number}", result)
    states = [t.state.name for t in source.study.trials]
    assert states == ["PRUNED", "PRUNED"]
    assert [t.intermediate_values for t in source.study.trials] == [{1: 0.5}, {2: 0.5}]
    source.suggest("ray2")
    source.on_trial_complete("ray2", {"failed": "a line", "step": 0, "progress": 0.0, "score": float("nan")})
    source.suggest("ray3")
    source.on_trial_complete("ray3", None, error=True)
    assert [t.state.name for t in source.study.trials[2:]] == ["FAIL", "FAIL"]


def test_the_study_gets_both_objectives(plan_of) -> None:
    objectives = 'objective=[{metric = "a", mode = "min"}, {metric = "b", mode = "max"}]'
    source = points(plan_of(objectives))
    source.suggest("ray0")
    source.on_trial_result("ray0", {"step": 1, "progress": 25.0, "score": 0.5})
    result = {"step": 4, "progress": 100.0, "score": 0.5, "best": [1.0, 2.0], "bundle": "uri"}
    source.on_trial_complete("ray0", result)
    assert source.study.trials[0].values == [1.0, 2.0]
    assert [d.name for d in source.study.directions] == ["MINIMIZE", "MAXIMIZE"]


def test_a_point_that_makes_no_run_is_recorded_and_the_next_is_sampled(plan_of) -> None:
    refused: list[tuple[str, str]] = []

    def config_of(name: str, values: dict[str, Any]) -> dict[str, Any]:
        if name == "t0001":
            raise PlethoraError("batch does not divide")
        return {"trial": name, "values": values}

    source = StudySearcher(
        plan_of("budget.trials=2"), (), config_of, lambda n, v, line: refused.append((n, line))
    )
    assert source.suggest("ray0")["trial"] == "t0002"
    assert refused == [("t0001", "batch does not divide")]
    assert source.suggest("ray1") == Searcher.FINISHED
