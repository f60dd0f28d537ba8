"""Chaos in small: a run that meets three faults on the shared Ray, and what a seed draws. The whole of it is
`python tests/chaos.py --runs 20 --seed 1`.
"""

import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from pretrain import driver
from pretrain.config import RunConfig
from tests.chaos import Run, compared, recovery, table, unwhole
from tests.chaos_faults import FAULTS, STEPS, draw, kill_actor, stop_worker, terminate_worker
from tests.chaos_world import World, until
from tests.datasets.test_stream import write_corpus

SHORT = 20


def test_a_seed_draws_the_same_fates_again_and_every_kind_before_any_twice() -> None:
    fates = draw(20, 1)
    assert fates == draw(20, 1) and fates != draw(20, 2)
    assert {f.kind for f in fates[: len(FAULTS)]} == set(FAULTS)
    assert set(Counter(f.kind for f in fates).values()) == {1, 2}
    assert {f.zero for f in fates} == {0, 1}
    for fate in draw(200, 3):
        assert 0 <= fate.step <= STEPS
        assert (fate.step == 0) == (fate.kind == "actor")


def launched(world: World, name: str) -> Run:
    run = Run(world, name, 0, str(world.home / "runs"))
    run.settings |= {"steps": SHORT, "validate_every": 10}
    driver.launch(RunConfig.model_validate(run.settings))
    return run


@pytest.mark.slow  # 2 to 5 minutes; test_loop kills workers in every run, `make chaos` the rest
def test_a_run_that_stands_still_loses_an_actor_and_is_told_to_leave_ends_as_the_unbroken_one(
    ray_session: Any, tmp_path: Path
) -> None:
    world, fate = World(tmp_path), replace(draw(1, 1)[0], seconds=1.0)
    write_corpus(tmp_path / "corpus", shards=2, rows=6)
    whole = launched(world, "whole")
    broken = Run(world, "broken", 0, str(tmp_path / "runs"))
    struck: list[str] = []

    until(lambda: not world.running("MapWorker"), 60, "the unbroken run has ended")

    def strike() -> None:
        for step, fault in ((0, kill_actor), (3, stop_worker), (9, terminate_worker)):
            until(lambda step=step: broken.reached(step), 120, f"step {step} begins")  # type: ignore[misc]
            fault(world, fate, None)  # type: ignore[arg-type]
            struck.append(fault.__name__)

    blows = threading.Thread(target=strike, daemon=True)
    blows.start()
    launched(world, "broken")
    blows.join(10)
    assert struck == ["kill_actor", "stop_worker", "terminate_worker"]
    assert compared(broken, whole, elastic=False) == []
    steps = [step for _, step, _ in broken.steps()]
    assert steps == list(range(SHORT)), "a worker that is told to leave saves first: no step is done twice"
    assert len(list((tmp_path / "runs" / "broken").glob("checkpoint_2*"))) == 2

    snapshot = storage.read_json(tmp_path / "runs" / "broken" / "checkpoint_manager_snapshot.json")
    newest = tmp_path / "runs" / "broken" / snapshot["checkpoint_results"][-1]["checkpoint_dir_name"]
    (newest / "loop.json").write_text("{}")
    assert "torn checkpoint" in unwhole(broken.home)[0]


def test_recovery_is_the_longest_wait_for_a_new_step_after_the_fault() -> None:
    killed = [
        (10.0, 0, 2),
        (11.0, 1, 2),
        (12.0, 2, 2),
        (30.0, 1, 2),
        (31.0, 2, 2),
        (32.0, 3, 2),
        (33.0, 4, 2),
    ]
    assert recovery(killed, struck=12.5, ended=40.0) == 19.5  # steps done again count as waiting
    warned = [(10.0, 0, 2), (11.0, 1, 2), (14.0, 2, 2), (15.0, 3, 2)]
    assert recovery(warned, struck=10.5, ended=40.0) == 3.0
    assert recovery(killed[:3], struck=12.5, ended=40.0) == 27.5  # it struck after the last step


@pytest.mark.parametrize(("wrong", "says"), [([], "1 of 1 hold"), (["torn"], "0 of 1 hold")])
def test_the_table_counts_what_held(wrong: list[str], says: str) -> None:
    result = {"kind": "worker", "wrong": wrong, "recovery_s": 2.0, "lost": 3, "relaunched": 0}
    lines = table([json.loads(json.dumps(result)), {"kind": "disk", "skipped": "no root"}])
    assert lines[1].split() == ["worker", "1", str(int(not wrong)), "2.0", "2.0", "3.0", "0"]
    assert lines[-1] == f"{says}; 1 skipped"
