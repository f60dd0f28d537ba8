"""The record as the driver writes it, and what happens to Tune's trials in it; no Ray runs."""

import math
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import PlethoraError
from tuning import record
from tuning.callback import JournalCallback, SearchStopper
from tuning.journal import Journal
from tuning.plan import Plan, read
from tuning.record import Trial
from tuning.schedulers import scheduler
from tuning.search import described
from tuning.trial import Validation

SEARCH = """
name = "s"
base = "run.toml"
[objective]
metric = "loss/net"
mode = "min"
[space]
optim.lr = { loguniform = [1e-4, 1e-2] }
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "run.toml").write_text(
        'recipe = "tests.pretrain.toy:Toy"\nname = "t"\ncorpus = "/c"\n'
        "batch = 12\nsteps = 40\nvalidate_every = 10\n"
    )
    (tmp_path / "search.toml").write_text(SEARCH)
    return read(str(tmp_path / "search.toml"))


@pytest.fixture
def callback(plan: Plan, tmp_path: Path) -> JournalCallback:
    journal = Journal(str(tmp_path / "home"), *described(plan), resume=False)
    return JournalCallback(plan, journal, scheduler(plan.search.scheduler, "min", "loss/net", []))


def ray(name: str, error: str = "") -> Any:
    return SimpleNamespace(trial_id=f"ray-{name}", config={"trial": name}, get_error=lambda: error)


def validated(step: int, value: float, restarts: int = 0, **more: float) -> dict[str, Any]:
    figures = {"loss/net": value, **more}
    return Validation(step, 40, figures).to_tune("loss/net") | {"restarts": restarts}


def ended(*values: float, best: float | None) -> dict[str, Any]:
    curve = [(10 * n, {"loss/net": v}) for n, v in enumerate(values, 1)]
    end = {"bundle": "/b", "best": [best], "curve": curve, "facts": {"parameters": 7}}
    return validated(10 * len(values), values[-1]) | end


def begin(callback: JournalCallback, name: str) -> Any:
    callback.start(name, {"optim.lr": 1e-3}, "python -m pretrain …")
    callback.on_trial_start(0, [], ray(name))
    return ray(name)


def stored(callback: JournalCallback) -> dict[str, Trial]:
    return {t.trial: t for t in record.read(callback.journal.home).trials}


def test_a_trial_is_on_disk_from_its_first_moment_to_its_last(callback: JournalCallback) -> None:
    one = begin(callback, "t0001")
    assert stored(callback)["t0001"].state == "running"
    callback.on_trial_result(0, [], one, validated(10, 3.0, other=1.0))
    found = stored(callback)["t0001"]
    assert (found.step, found.steps, found.objective) == (10, 40, {"loss/net": 3.0})
    assert found.curve == ((10, {"loss/net": 3.0, "other": 1.0}),)
    callback.on_trial_result(0, [], one, ended(3.0, 2.0, best=2.0))
    callback.on_trial_complete(0, [], one)
    found = stored(callback)["t0001"]
    assert (found.state, found.bundle, found.objective) == ("done", "/b", {"loss/net": 2.0})
    assert found.curve_of("loss/net") == [(10, 3.0), (20, 2.0)]


def test_validations_repeated_after_a_restart_are_recorded_once(callback: JournalCallback) -> None:
    one = begin(callback, "t0001")
    for step, restarts in ((10, 0), (20, 0), (10, 1), (20, 1), (30, 1)):
        callback.on_trial_result(0, [], one, validated(step, 1.0 / step, restarts))
    found = stored(callback)["t0001"]
    assert [step for step, _ in found.curve] == [10, 20, 30]
    assert found.retries == 1


def test_deaths_of_workers_and_of_the_trial_itself_add_up(callback: JournalCallback) -> None:
    one = begin(callback, "t0001")
    callback.on_trial_result(0, [], one, validated(10, 1.0, restarts=2))
    callback.on_trial_recover(0, [], one)
    callback.on_trial_result(0, [], one, validated(10, 1.0))
    assert stored(callback)["t0001"].retries == 3
    callback.on_trial_result(0, [], one, validated(20, 1.0, restarts=1))
    assert stored(callback)["t0001"].retries == 4


def test_why_a_trial_stopped_early_is_the_schedulers_reason(callback: JournalCallback) -> None:
    one = begin(callback, "t0001")
    callback.on_trial_result(0, [], one, validated(10, 9.0))
    callback.scheduler.why["ray-t0001"] = "asha: worse"
    callback.on_trial_complete(0, [], one)
    found = stored(callback)["t0001"]
    assert (found.state, found.why, found.objective) == ("stopped", "asha: worse", {"loss/net": 9.0})


def test_a_trial_that_fails_keeps_its_line(callback: JournalCallback) -> None:
    one, two = begin(callback, "t0001"), begin(callback, "t0002")
    callback.on_trial_result(0, [], one, {"failed": "a line", "step": 0, "progress": 0.0, "score": math.nan})
    callback.on_trial_complete(0, [], one)
    callback.on_trial_error(0, [], ray("t0002", "Traceback …\n  at\nRayActorError: it died"))
    assert two.config["trial"] == "t0002"
    assert [(t.state, t.why) for t in stored(callback).values()] == [
        ("failed", "a line"),
        ("failed", "failed 3 times: RayActorError: it died"),
    ]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_an_objective_that_is_no_number_is_a_failure(callback: JournalCallback, value: float | None) -> None:
    one = begin(callback, "t0001")
    callback.on_trial_result(0, [], one, ended(3.0, best=value))
    found = stored(callback)["t0001"]
    assert found.state == "failed" and "loss/net" in found.why


def test_a_figure_that_no_trial_has_ends_the_search_and_names_the_nearest(callback: JournalCallback) -> None:
    one = begin(callback, "t0001")
    ending = SearchStopper(callback, None)
    result = validated(1, 1.0)
    result["figures"] = {"loss/nets": 1.0, "usage": 2.0}
    assert not ending.stop_all()
    assert ending("ray-t0001", result)  # Tune asks before it tells
    callback.on_trial_result(0, [], one, result)
    callback.on_trial_complete(0, [], one)
    assert ending.stop_all()
    assert "objective.metric = 'loss/net'" in callback.hopeless and "'loss/nets'" in callback.hopeless
    assert stored(callback)["t0001"].state == "failed"


def test_a_figure_that_one_trial_lacks_is_that_trials_failure_only(callback: JournalCallback) -> None:
    one, two = begin(callback, "t0001"), begin(callback, "t0002")
    callback.on_trial_result(0, [], one, validated(10, 1.0))
    result = validated(10, 1.0)
    result["figures"] = {"usage": 2.0}
    assert SearchStopper(callback, None)("ray-t0002", result)
    callback.on_trial_result(0, [], two, result)
    assert not SearchStopper(callback, None).stop_all()
    assert [t.state for t in stored(callback).values()] == ["running", "failed"]


def test_when_the_hours_are_spent_all_ends_those_of_earlier_sessions_included(
    callback: JournalCallback,
) -> None:
    assert not SearchStopper(callback, 1.0).stop_all()
    callback.journal.spent = 3601.0
    assert SearchStopper(callback, 1.0).stop_all()


def test_listeners_hear_each_change_of_a_trial(callback: JournalCallback) -> None:
    heard: list[tuple[str, str]] = []
    callback.journal.listeners.append(lambda trial: heard.append((trial.trial, trial.state)))
    one = begin(callback, "t0001")
    callback.on_trial_result(0, [], one, ended(1.0, best=1.0))
    assert heard[0] == ("t0001", "running") and heard[-1] == ("t0001", "done")


def test_tune_can_copy_the_journal_whatever_listens(callback: JournalCallback) -> None:
    lock = threading.Lock()  # as a thread that draws a table has
    callback.journal.listeners.append(lambda trial: lock.locked())
    pickle.dumps(callback.journal)


def test_a_journal_resumes_where_it_was(callback: JournalCallback, plan: Plan) -> None:
    one = begin(callback, "t0001")
    callback.on_trial_result(0, [], one, validated(10, 1.0))
    callback.journal.spent = 100.0
    callback.journal.write()
    with pytest.raises(PlethoraError, match="continue it with --resume"):
        Journal(callback.journal.home, *described(plan), resume=False)
    again = Journal(callback.journal.home, *described(plan), resume=True)
    assert again.trials == callback.journal.trials
    assert again.info.spent_s >= 100 and again.info.started == callback.journal.info.started


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["steps=41"], "another run: steps was 40 and is 41"),
        (["space.optim.lr.loguniform=[1e-4, 1.0]"], "another space: optim.lr"),
        (["objective.mode=max"], "another objective"),
    ],
)
def test_a_resumed_search_must_be_the_same(
    callback: JournalCallback, plan: Plan, sets: list[str], said: str
) -> None:
    with pytest.raises(PlethoraError, match=said):
        Journal(callback.journal.home, *described(read(plan.path, sets)), resume=True)


def test_budget_and_scheduler_may_change_on_the_way(callback: JournalCallback, plan: Plan) -> None:
    changed = read(plan.path, ["budget.trials=99", "scheduler.kind=none", "searcher.seed=5"])
    assert Journal(callback.journal.home, *described(changed), resume=True).search.budget.trials == 99
