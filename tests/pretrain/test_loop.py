"""Whole runs of the loop on real Ray Train, DeepSpeed and storage, with a toy recipe."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from cluster import bundle
from cluster.errors import PlethoraError
from pretrain import driver
from pretrain.config import RunConfig
from tests.datasets.test_stream import write_corpus
from tests.pretrain.group import EPS

RECIPE = "tests.pretrain.toy:Toy"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    write_corpus(home / "a", shards=2, rows=6)
    write_corpus(home / "b", shards=1, rows=4, first=20)
    return home


def run(home: Path, name: str, **more: Any) -> RunConfig:
    here = os.path.relpath  # as people type them: relative to where they stand
    settings: dict[str, Any] = {
        "recipe": RECIPE,
        "corpus": {here(home / "a"): 0.75, here(home / "b"): 0.25},
        "storage": here(home / "storage"),
        "name": name,
        "steps": 24,
        "batch": 16,
        "micro_batch": 4,
        "workers": 2,
        "optim": {"lr": 0.03, "warmup_steps": 2},
        "split": {"val": 0.2, "test": 0.2},
        "validate_every": 10,
        "checkpoint_every": 6,
        "log_every": 4,
        "stream": {"self_read_mb": 0.003},  # a step: the others come through a transform actor
    }
    return RunConfig.model_validate(settings | more)


@pytest.fixture(scope="module")
def unbroken(ray_session, home) -> dict:
    with actors_seen() as seen:
        done = driver.launch(run(home, "unbroken"))
    assert seen, "there are transform actors"
    return done


def lines(home: Path, name: str) -> list[dict]:
    text = (home / "storage" / name / "telemetry" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def actors_seen() -> Iterator[set[int]]:
    """Ids of the processes that become a transform actor meanwhile."""

    def look() -> set[int]:
        below = psutil.Process().children(recursive=True)
        return {p.pid for p in below if "MapWorker" in name_of(p)}

    def watch() -> None:
        while not over.wait(0.1):
            seen.update(look() - before)

    before, seen, over = look(), set[int](), threading.Event()
    watching = threading.Thread(target=watch)
    watching.start()
    yield seen
    over.set()
    watching.join()


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def test_a_run_ends_in_a_bundle_that_verifies(unbroken) -> None:
    assert bundle.verify(unbroken["bundle"])["kind"] == "encoder"
    history = bundle.open(unbroken["bundle"]).metrics["history"]
    assert [h["step"] for h in history] == [1, 10, 20, 24]
    assert history[-1]["loss/net"] < 0.5 * history[0]["loss/net"]


def test_lineage_names_every_subject_of_training_and_validation_and_no_other(unbroken, home) -> None:
    from datasets.schema import open_corpus
    from datasets.split import Split, assign

    for corpus in bundle.open(unbroken["bundle"]).lineage["corpora"]:
        opened = open_corpus(corpus["uri"])
        subjects = {
            s
            for shard in range(len(opened.shards))
            for group in range(len(opened.shards[shard]["row_groups"]))
            for s in opened.read_row_group(shard, group, ["subject"])["subject"].to_pylist()
        }
        split = Split(val=0.2, test=0.2)
        assert set(corpus["subjects"]) == {s for s in subjects if assign(s, split) != "test"}


def test_telemetry_has_each_step_once(unbroken, home) -> None:
    assert [line["step"] for line in lines(home, "unbroken")] == [1, 4, 6, 8, 10, 12, 16, 18, 20, 24]
    assert "train/data_wait" in lines(home, "unbroken")[-1]


def test_no_worker_holds_an_index_while_it_trains(unbroken, home) -> None:
    told = [line["train/indexes_at_3"] for line in lines(home, "unbroken") if line["step"] == 4]
    assert told == [0.0]


def test_a_run_whose_worker_is_killed_goes_on_by_itself_to_the_same_weights_bit_by_bit(
    unbroken, home
) -> None:
    mark = home / "killed"
    broken = driver.launch(run(home, "broken", method={"kill_at": 15, "kill_mark": str(mark)}))
    assert mark.exists()
    a, b = (load_file(bundle.open(x["bundle"]).path("model.safetensors")) for x in (unbroken, broken))
    assert a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)
    seen = [bundle.open(x["bundle"]).lineage["windows_seen"] for x in (unbroken, broken)]
    assert seen[0] == seen[1] and sum(seen[0].values()) == 24 * 16
    assert [line["step"] for line in lines(home, "broken")] == [1, 4, 6, 8, 10, 12, 16, 18, 20, 24]


def test_failures_are_counted_from_the_last_checkpoint_on(ray_session, home, capsys) -> None:
    method = {"fail_once": [5, 9], "kill_mark": str(home / "twice")}
    more: dict[str, Any] = {"workers": 1, "steps": 12, "checkpoint_every": 4, "validate_every": 0}
    done = driver.launch(run(home, "twice", method=method, max_failures=1, **more))
    assert sum(bundle.open(done["bundle"]).lineage["windows_seen"].values()) == 12 * 16
    assert "failed, but got from step 0 to 8 since it started: going on" in capsys.readouterr().err


def test_workers_that_read_for_themselves_train_to_the_same_weights_bit_by_bit(unbroken, home) -> None:
    with actors_seen() as seen:
        own = driver.launch(run(home, "own", stream={"actors": 0}))
    assert not seen, "there is no transform actor"
    first, second = (load_file(bundle.open(r["bundle"]).path("model.safetensors")) for r in (unbroken, own))
    assert all((first[k] == second[k]).all() for k in first)


def test_a_run_goes_on_with_fewer_workers_as_if_nothing_had_happened(ray_session, home, capsys) -> None:
    optim = {"lr": 0.03, "warmup_steps": 2, "eps": EPS}  # sums over one worker and two round differently
    mended = home / "mended"
    method = {"dropout": 0.0, "fail_at": 15, "kill_mark": str(mended)}
    settings: dict[str, Any] = {"method": method, "max_failures": 0, "optim": optim}
    whole = driver.launch(run(home, "whole", **settings | {"method": {"dropout": 0.0}}, workers=1))
    with pytest.raises(Exception, match="planted failure"):
        driver.launch(run(home, "fewer", **settings))
    mended.touch()
    orphan = home / "storage" / "fewer" / "checkpoint_2020-01-01_00-00-00.000000"
    orphan.mkdir()
    (orphan / "half.pt").touch()
    fewer = driver.launch(run(home, "fewer", **settings, workers=1), resume=True)
    assert fewer["resumed_from"] == 12
    assert (
        not orphan.exists()
        and "checkpoint_2020-01-01_00-00-00.000000, which was never" in capsys.readouterr().err
    )
    opened = [bundle.open(x["bundle"]) for x in (whole, fewer)]
    assert opened[0].lineage["windows_seen"] == opened[1].lineage["windows_seen"]
    losses = [[h["loss/net"] for h in b.metrics["history"]] for b in opened]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_run_that_goes_non_finite_stops_with_one_line_and_names_the_windows(ray_session, home) -> None:
    with pytest.raises(PlethoraError, match="stopped at step 9: 3 steps in a row had a non-finite"):
        driver.launch(run(home, "nan", method={"nan_from": 6}, max_nonfinite=3, engine={"zero_stage": 0}))
    named = json.loads((home / "storage" / "nan" / "telemetry" / "nonfinite-6.json").read_text())
    assert len(named["windows"]) == 16
    assert len(set(named["windows"])) > 12  # a pass ends in this step: a window may come in the next one, too
    assert not (home / "storage" / "nan" / "bundle").exists()


def test_an_existing_run_is_not_overwritten(unbroken, home) -> None:
    with pytest.raises(PlethoraError, match="run unbroken exists"):
        driver.launch(run(home, "unbroken"))


def test_resuming_a_finished_run_changes_nothing(unbroken, home) -> None:
    assert driver.launch(run(home, "unbroken"), resume=True)["bundle"] == unbroken["bundle"]


def test_a_recipe_that_describes_other_input_is_refused_before_the_first_step(ray_session, home) -> None:
    wrong = run(home, "misdescribed", recipe="tests.pretrain.toy:Misdescribed")
    with pytest.raises(PlethoraError, match=r"other input than it trains on \(.*rate of ppg is 20.0"):
        driver.launch(wrong)
    assert not list((home / "storage" / "misdescribed").rglob("checkpoint_*"))


def test_a_missing_corpus_is_one_clear_line(ray_session, home) -> None:
    with pytest.raises(PlethoraError, match=r"no corpus at .*nowhere"):
        driver.launch(run(home, "x", corpus=str(home / "nowhere")))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"batch": 15}, "batch = 15 does not divide over workers = 2"),
        ({"micro_batch": 3}, "micro_batch = 3 does not divide a worker's share of 8 windows"),
        ({"steps": None}, "give steps or epochs, one of them"),
    ],
)
def test_a_run_file_that_cannot_work_says_why(home, more: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(home, "x", **more)
