"""Searches on real Ray Tune and Ray Train, over a toy recipe."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import bundle, config
from cluster.errors import PlethoraError
from pretrain.config import RunConfig
from tests.conftest import ROOT
from tests.datasets.test_stream import write_corpus
from tuning import record
from tuning.config import Objective, Search
from tuning.plan import read
from tuning.resources import Resources
from tuning.search import search

BASE = """
recipe = "tests.pretrain.toy:Toy"
name = "toy"
steps = 12
batch = 8
optim = { lr = 0.03, warmup_steps = 2 }
split = { val = 0.2, test = 0.3 }
validate_every = 4
checkpoint_every = 4
max_nonfinite = 1
method.dropout = 0.0
"""
SEARCH = """
base = "run.toml"
[objective]
metric = "loss/net"
mode = "min"
[space]
kind.choice.good = { optim.lr = 0.03 }
kind.choice.slow = { optim.lr = 1e-9 }
kind.choice.broken = { method.nan_from = 2 }
[searcher]
kind = "grid"
[budget]
concurrent = 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("search")
    write_corpus(home / "corpus", shards=2, rows=6)
    (home / "run.toml").write_text(BASE)
    (home / "search.toml").write_text(SEARCH)
    return home


def sets(home: Path, name: str, *more: str) -> list[str]:
    return [f"corpus={home / 'corpus'}", f"storage={home / 'out'}", f"name={name}", *more]


def command(home: Path, *words: str) -> list[str]:
    sets = [word for each in words if each != "--resume" for word in ("--set", each)]
    resume = ["--resume"] if "--resume" in words else []
    return [sys.executable, "-m", "tuning", str(home / "search.toml"), *sets, *resume]


@pytest.fixture(scope="module")
def found(ray_session, home: Path) -> dict[str, Any]:
    return search(str(home / "search.toml"), sets(home, "whole"))


@pytest.fixture(scope="module")
def trials(found) -> dict[str, record.Trial]:
    return {trial.values["kind"]: trial for trial in record.read(found["search"]).trials}


def test_the_best_trial_is_the_one_that_learned(found, trials) -> None:
    assert found["best"] == trials["good"].trial
    assert found["trials"] == {"done": 1, "stopped": 1, "failed": 1}
    assert trials["good"].state == "done"
    assert bundle.verify(trials["good"].bundle)["kind"] == "encoder"


def test_asha_stops_the_slow_one_and_says_why(trials) -> None:
    slow = trials["slow"]
    assert slow.state == "stopped" and slow.step < 12 and slow.bundle is None
    assert slow.why.startswith("asha: ") and f"at step {slow.step}" in slow.why
    assert slow.objective["loss/net"] > trials["good"].objective["loss/net"]


def test_a_trial_that_fails_by_its_own_values_says_why_and_is_not_tried_again(trials) -> None:
    assert trials["broken"].state == "failed"
    assert "non-finite" in trials["broken"].why
    assert trials["broken"].retries == 0


def test_the_record_holds_each_validation_and_what_was_spent(found, trials) -> None:
    history = bundle.open(trials["good"].bundle).metrics["history"]
    expected = [(h["step"], h["loss/net"]) for h in history]
    assert [(s, f["loss/net"]) for s, f in trials["good"].curve] == expected
    assert [s for s, _ in expected] == [1, 4, 8, 12]
    assert trials["good"].facts["parameters"] == 88 + 81
    assert trials["good"].facts["hours"] == pytest.approx(
        bundle.open(trials["good"].bundle).lineage["corpora"][0]["windows"]["train"] * 10 / 3600, abs=1e-3
    )
    assert all(trial.spent_s > 0 for trial in trials.values())
    assert record.read(found["search"]).info.spent_s > sum(t.spent_s for t in trials.values()) - 1


def test_the_best_trial_and_no_other_is_evaluated_on_test_subjects(found, trials) -> None:
    result = record.read(found["search"]).result
    assert result is not None and result.best == trials["good"].trial
    metrics = result.test_metrics["loss/net"]
    assert metrics["val"] == trials["good"].objective["loss/net"]
    assert metrics["test"] != metrics["val"]
    subjects = set(bundle.open(trials["good"].bundle).lineage["corpora"][0]["subjects"])
    from datasets.split import Split, assign

    assert not any(assign(s, Split(val=0.2, test=0.3)) == "test" for s in subjects)


def test_a_stopped_trial_frees_its_workers(found, ray_session) -> None:
    def held() -> list[str]:
        table = ray_session.util.placement_group_table()
        return [name for name, group in table.items() if group["state"] != "REMOVED"]

    deadline = time.monotonic() + 60
    while held() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert held() == []


def test_a_complete_search_runs_nothing_again(found, home: Path) -> None:
    before = (home / "out" / "whole" / "trials.jsonl").read_bytes()
    again = search(str(home / "search.toml"), sets(home, "whole"), resume=True)
    assert again["best"] == found["best"]
    assert (home / "out" / "whole" / "trials.jsonl").read_bytes() == before


def test_a_search_that_exists_is_not_started_again(found, home: Path) -> None:
    with pytest.raises(PlethoraError, match="continue it with --resume, or give another name"):
        search(str(home / "search.toml"), sets(home, "whole"))


def test_a_search_resumes_only_with_the_run_that_it_started_with(found, home: Path) -> None:
    with pytest.raises(PlethoraError, match=r"another run: steps was 12 and is 13"):
        search(str(home / "search.toml"), sets(home, "whole", "steps=13"), resume=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("resources.gpu=99", ["resources.gpu = 99", "largest node"]),
        ("resources.cpu=9999", ["resources.cpu = 9999", "largest node"]),
        ("stream.actors=60", ["a trial of 1 workers takes 61 CPUs"]),
        ("space.workers.choice=[1, 4000]\nbatch=4000", ["a trial of 4000 workers"]),
    ],
)
def test_resources_that_no_node_has_are_reported_at_once(
    ray_session, home: Path, given: str, words: list[str]
) -> None:
    plan = read(str(home / "search.toml"), sets(home, "needs", *given.split("\n")))
    with pytest.raises(PlethoraError) as error:
        Resources.of(plan).concurrent(plan, ray_session)
    assert all(word in str(error.value) for word in words)


def test_as_many_trials_run_at_once_as_there_is_room_for(ray_session, home: Path) -> None:
    have = int(ray_session.cluster_resources()["CPU"])
    plan = read(str(home / "search.toml"), sets(home, "room", "budget.concurrent=99", "stream.actors=2"))
    assert Resources.of(plan).concurrent(plan, ray_session) == (have - 1) // 3


def test_the_front_of_two_objectives_is_what_no_other_beats() -> None:
    objectives = (Objective(metric="a", mode="min"), Objective(metric="b", mode="max"))
    points = {"p": (1, 1), "q": (2, 5), "r": (2, 4), "s": (3, 5), "t": (4, 9)}
    trials = [record.Trial(n, "done", objective={"a": a, "b": b}) for n, (a, b) in points.items()]
    search = Search(name="s", base="b", objective=objectives, space={})
    found = record.Record(search, record.Info(), tuple(trials))
    assert [t.trial for t in found.front()] == ["p", "q", "t"]


# ---------------------------------------------------------------- a minute each


@pytest.mark.slow
def test_the_printed_command_of_a_trial_reproduces_its_objective_exactly(trials, home: Path) -> None:
    words = shlex.split(trials["good"].command)
    assert words[:3] == ["python", "-m", "pretrain"]
    subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=True)
    run = config.load(words[3], RunConfig, [w for w in words[4:] if w != "--set"])
    assert run.name == "whole-t0001"
    history = bundle.open(f"{run.storage}/{run.name}/bundle").metrics["history"]
    assert [(int(h.pop("step")), h) for h in history] == list(trials["good"].curve)


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_continues_and_is_counted(ray_session, home: Path) -> None:
    mark = home / "killed"
    kind = f'space.kind.choice={{killed = {{method.kill_at = 6, method.kill_mark = "{mark}"}}}}'
    result = search(str(home / "search.toml"), sets(home, "worker", kind))
    (trial,) = record.read(result["search"]).trials
    assert mark.exists()
    assert (trial.state, trial.retries) == ("done", 1)
    assert [step for step, _ in trial.curve] == [1, 4, 8, 12]


@pytest.mark.slow
def test_an_objective_that_no_validation_has_ends_the_search_at_once(ray_session, home: Path) -> None:
    with pytest.raises(PlethoraError, match=r"objective.metric = 'loss/nett'.*nearest is 'loss/net'"):
        search(str(home / "search.toml"), sets(home, "lost", "objective.metric=loss/nett"))
    trials = record.read(str(home / "out" / "lost")).trials
    assert [t.state for t in trials] == ["failed"]


@pytest.mark.slow
def test_a_killed_search_resumes_without_running_a_finished_trial_again(home: Path) -> None:
    """Of two trials at once, one is done when the driver is killed, and one is on its way."""
    kinds = "space.kind.choice={" + ", ".join(f"k{n} = {{seed = {n}}}" for n in range(4)) + "}"
    given = sets(home, "killed", kinds, "scheduler.kind=none", "budget.concurrent=2")
    driver = subprocess.Popen(command(home, *given), cwd=ROOT)
    lines = home / "out" / "killed" / "trials.jsonl"

    def states() -> list[str]:
        return (
            [json.loads(line)["state"] for line in lines.read_text().splitlines()] if lines.exists() else []
        )

    while not ("done" in states() and "running" in states()):
        assert driver.poll() is None, "it ended before it could be killed"
        time.sleep(0.1)
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(60)
    psutil.wait_procs(children, timeout=60)
    before = record.read(str(home / "out" / "killed")).having("done")
    stamps = {t.trial: _stamps(home / "out" / "killed" / t.trial) for t in before}

    subprocess.run(command(home, *given, "--resume"), cwd=ROOT, check=True)
    after = record.read(str(home / "out" / "killed"))
    assert [t.state for t in after.trials] == ["done"] * 4
    assert {t.values["kind"] for t in after.trials} == {"k0", "k1", "k2", "k3"}
    for trial in before:
        assert trial in after.trials
        assert _stamps(home / "out" / "killed" / trial.trial) == stamps[trial.trial]


def _stamps(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}
