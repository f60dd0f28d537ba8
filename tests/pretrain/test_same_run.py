"""A run that goes on is the one that began: by its plan, alone in its folder, over the same corpora."""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cluster import bundle
from cluster.errors import PlethoraError
from pretrain import checkpoint, driver, fingerprint
from pretrain.config import RunConfig
from tests.datasets.test_stream import write_corpus

SAME = "go on with what it began with, or give another name"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("same")
    write_corpus(home / "a", shards=2, rows=6)
    write_corpus(home / "b", shards=1, rows=4, first=20)
    return home


def run(home: Path, name: str, **more: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "recipe": "tests.pretrain.paused:Paused",
        "corpus": {str(home / "a"): 0.75, str(home / "b"): 0.25},
        "storage": str(home / "storage"),
        "name": name,
        "steps": 12,
        "batch": 8,
        "stream": {"actors": 0, "lanes": 4},
        "split": {"val": 0.2, "test": 0.2},
        "engine": {"zero_stage": 0},
        "validate_every": 0,
        "checkpoint_every": 3,
        "max_failures": 0,
    }
    return RunConfig.model_validate(settings | more)


def failing(home: Path, **more: Any) -> dict[str, Any]:
    """[method] of a run that fails at step 10, until `mended` is there."""
    return {"method": {"fail_at": 10, "kill_mark": str(home / "mended"), **more}}


@pytest.fixture(scope="module")
def stopped(ray_session: Any, home: Path) -> RunConfig:
    """A run that ended after its third checkpoint, of step 9."""
    one = run(home, "stopped", **failing(home))
    with pytest.raises(Exception, match="planted failure"):
        driver.launch(one)
    assert checkpoint.committed(str(home / "storage" / "stopped")) == 9
    return one


def copied(home: Path, stopped: RunConfig, name: str) -> tuple[RunConfig, Path]:
    """A run that has come as far, and its folder."""
    shutil.copytree(home / "storage" / stopped.name, home / "storage" / name)
    return stopped.model_copy(update={"name": name}), home / "storage" / name


@contextmanager
def mended(home: Path) -> Iterator[None]:
    (home / "mended").touch()
    yield
    (home / "mended").unlink()


def other(run: RunConfig, **more: Any) -> RunConfig:
    return RunConfig.model_validate(run.model_dump() | more)


@pytest.fixture(scope="module")
def whole(ray_session: Any, home: Path, stopped: RunConfig) -> dict[str, Any]:
    with mended(home):
        return driver.launch(other(stopped, name="whole"))


def weights(result: dict[str, Any]) -> dict[str, Any]:
    return load_file(bundle.open(result["bundle"]).path("model.safetensors"))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all((first[k] == second[k]).all() for k in first)


# ---------------------------------------------------------------- it knows its plan


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"batch": 16}, "batch was 8, is 16"),
        ({"seed": 7}, "seed was 0, is 7"),
        ({"stream": {"actors": 0, "lanes": 8}}, r"stream.lanes was 4, is 8"),
        ({"stream": {"actors": 0, "lanes": 4, "mixed": 3}}, r"stream.mixed was 2, is 3"),
        ({"split": {"val": 0.1, "test": 0.2}}, "split.val was 0.2, is 0.1"),
        ({"steps": 10}, "steps was 12, is 10"),
        ({"steps": None, "epochs": 2.0}, "steps was 12, is null; epochs was null, is 2.0"),
        ({"engine": {"zero_stage": 1}}, "engine.zero_stage was 0, is 1"),
        ({"optim": {"weight_decay": 0.1}}, "optim.weight_decay was 0.05, is 0.1"),
        ({"recipe": "tests.pretrain.toy:Toy", "method": {}}, "recipe was .*Paused.*, is .*Toy"),
    ],
)
def test_a_key_that_changed_is_refused_before_ray_starts_and_named(
    stopped: RunConfig, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(driver.session, "session", lambda *_: pytest.fail("Ray was asked for"))
    with pytest.raises(PlethoraError, match=f"run stopped is not .*{says}.*: {SAME}$"):
        driver.launch(other(stopped, **more), resume=True)


def test_another_corpus_or_weight_is_refused(stopped: RunConfig, home: Path) -> None:
    a, b = str(home / "a"), str(home / "b")
    with pytest.raises(PlethoraError, match=rf"corpus was {a} .*weight 0.75\), is {a} .*weight 0.5"):
        driver.launch(other(stopped, corpus={a: 0.5, b: 0.5}), resume=True)
    with pytest.raises(PlethoraError, match=rf"corpus was {b} .*, is not there"):
        driver.launch(other(stopped, corpus=a), resume=True)


def test_a_setting_of_the_method_is_refused_also_one_that_was_a_default(stopped: RunConfig) -> None:
    with pytest.raises(PlethoraError, match=r"method.dropout was 0.1, is 0.2"):
        driver.launch(other(stopped, method=stopped.method | {"dropout": 0.2}), resume=True)


def test_a_bundle_replaced_under_the_same_path_is_refused(
    whole: dict, stopped: RunConfig, home: Path
) -> None:
    built_on = home / "built-on"
    shutil.copytree(whole["bundle"], built_on)
    run_of = other(stopped, method=stopped.method | {"bundle": str(built_on)})
    before = fingerprint.of(run_of, driver.build(run_of.recipe, run_of.method, 0))
    shutil.copytree(built_on, home / "moved")
    moved = other(stopped, method=stopped.method | {"bundle": str(home / "moved")})
    assert not fingerprint.changes(before, fingerprint.of(moved, driver.build(moved.recipe, moved.method, 0)))
    (built_on / "_COMPLETE").write_text("f" * 64)
    now = fingerprint.of(run_of, driver.build(run_of.recipe, run_of.method, 0))
    with pytest.raises(PlethoraError, match=r'method.bundle was "content [0-9a-f]{12}", is "content f{12}"'):
        fingerprint.compare("x", before, now)


def test_a_complete_run_is_not_taken_for_another_one(
    whole: dict, stopped: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    one = other(stopped, name="whole")
    faster = other(one, optim={"lr": 1e-3})
    assert driver.launch(faster, resume=True)["bundle"] == whole["bundle"]
    said = "run whole trains no more, so this has no effect: optim.lr was 0.0001, is 0.001"
    assert said in capsys.readouterr().err
    for more, says in [
        ({"recipe": "tests.pretrain.toy:Toy", "method": {}}, "recipe"),
        ({"steps": 24}, "steps"),
    ]:
        with pytest.raises(PlethoraError, match=f"run whole is not what it began as .{says} was"):
            driver.launch(other(one, **more), resume=True)


@pytest.mark.slow
def test_what_leaves_the_plan_alone_may_change(
    stopped: RunConfig, whole: dict, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = copied(home, stopped, "free")
    more: dict[str, Any] = {"micro_batch": 4, "log_every": 1, "max_failures": 1, "keep_checkpoints": 3}
    with mended(home):
        result = driver.launch(other(one, **more), resume=True)
    assert "goes on with changes after step 9: micro_batch was null, is 4\n" in capsys.readouterr().err
    assert result["resumed_from"] == 9
    assert (
        bundle.open(result["bundle"]).lineage["windows_seen"]
        == bundle.open(whole["bundle"]).lineage["windows_seen"]
    )


def test_a_run_grows_where_its_steps_are_the_same_and_says_so(
    stopped: RunConfig, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, folder = copied(home, stopped, "longer")
    with mended(home):
        result = driver.launch(other(one, steps=15, micro_batch=4, log_every=1), resume=True)
    assert "longer grows from 12 steps to 15 steps: its 9 steps are the same" in capsys.readouterr().err
    assert result["resumed_from"] == 9 and result["steps"] == 15
    assert sum(bundle.open(result["bundle"]).lineage["windows_seen"].values()) == 15 * 8
    assert fingerprint.read(str(folder)).steps == 15  # type: ignore[union-attr]


def test_a_rate_that_changed_is_told_and_takes_effect(
    stopped: RunConfig, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, folder = copied(home, stopped, "slower")
    with mended(home):
        driver.launch(other(one, optim={"lr": 1e-5, "schedule": "constant"}, log_every=1), resume=True)
    assert "with changes after step 9: optim.lr was 0.0001, is 1e-05; optim.sched" in capsys.readouterr().err
    lines = (folder / "telemetry" / "metrics.jsonl").read_text().splitlines()
    rates = {each["step"]: each["train/lr/net"] for each in map(json.loads, lines) if "train/lr/net" in each}
    assert [rates[step] for step in (10, 11, 12)] == [1e-5] * 3
    assert fingerprint.read(str(folder)).optim.lr == 1e-5  # type: ignore[union-attr]


def test_a_run_of_before_there_were_plans_is_refused_where_its_windows_were_others(
    stopped: RunConfig, home: Path
) -> None:
    one, folder = copied(home, stopped, "older")
    (folder / fingerprint.FILE).unlink()
    with pytest.raises(PlethoraError, match="run older was begun as another run, or by an older Plethora"):
        driver.launch(other(one, seed=7), resume=True)
    assert fingerprint.read(str(folder)) is None


def test_a_run_whose_done_steps_would_be_others_does_not_grow(
    stopped: RunConfig, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, folder = copied(home, stopped, "bound")
    told = checkpoint.ledger(str(folder))
    wrong = {key: [count, 1] for key, (count, _) in told.items()}
    monkeypatch.setattr(checkpoint, "ledger", lambda _: wrong)
    with pytest.raises(PlethoraError, match="cannot grow from 12 steps to 15 steps: its 9 completed steps"):
        driver.launch(other(one, steps=15), resume=True)
    assert fingerprint.read(str(folder)).steps == 12  # type: ignore[union-attr]


# ---------------------------------------------------------------- damage


def spoil(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def cut_list(folder: Path) -> None:
    (folder / checkpoint.SNAPSHOT).write_text('{"ray')


def cut_list_and_spoiled(folder: Path, last: Path) -> None:
    cut_list(folder)
    spoil(last / "net.pt")


SLOW = pytest.mark.slow  # each is a run of its own


@pytest.mark.parametrize(
    ("damage", "says", "after"),
    [
        pytest.param(cut_list_and_spoiled, "list of checkpoints was damaged", 6, id="both"),
        pytest.param(
            lambda f, last: spoil(last / "net.pt"), "is damaged .net.pt in", 6, id="weights", marks=SLOW
        ),
        pytest.param(
            lambda f, last: (last / "loop.json").unlink(), "loop.json is missing", 6, id="state", marks=SLOW
        ),
        pytest.param(
            lambda f, last: shutil.rmtree(last), "checkpoint_20.* is gone", 6, id="gone", marks=SLOW
        ),
        pytest.param(
            lambda f, last: cut_list(f), "list of checkpoints was damaged", 9, id="list", marks=SLOW
        ),
    ],
)
def test_a_damaged_end_is_skipped_and_the_run_ends_with_the_same_weights(
    stopped: RunConfig,
    whole: dict,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    damage: Callable[[Path, Path], object],
    says: str,
    after: int,
) -> None:
    one, folder = copied(home, stopped, f"damaged-{request.node.callspec.id}")
    damage(folder, folder / checkpoint.listed(str(folder))[-1])
    with mended(home):
        result = driver.launch(one, resume=True)
    err = capsys.readouterr().err
    assert re.search(says, err), err
    assert damage is not cut_list_and_spoiled or re.search("skipped .*, which is damaged .net.pt in", err)
    assert f"after step {after}" in err or f"resuming after {after}" in err
    assert same(result, whole)


def test_a_run_without_a_whole_checkpoint_says_what_to_do(stopped: RunConfig, home: Path) -> None:
    one, folder = copied(home, stopped, "empty")
    for name in checkpoint.listed(str(folder)):
        shutil.rmtree(folder / name)
    with pytest.raises(PlethoraError, match="no whole checkpoint left: delete that folder to begin anew"):
        driver.launch(one, resume=True)


# ---------------------------------------------------------------- it owns its folder, over its corpora


@contextmanager
def under_way(one: RunConfig, meeting: Path) -> Iterator[list[str]]:
    """The run waits at its step for the block; how it ended, afterwards."""
    meeting.mkdir()
    ended: list[str] = []

    def work() -> None:
        try:
            ended.append(driver.launch(one)["bundle"])
        except Exception as error:
            ended.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work)
    thread.start()
    until = time.monotonic() + 120
    while not (meeting / "there").exists() and thread.is_alive():
        assert time.monotonic() < until
        time.sleep(0.05)
    try:
        yield ended
    finally:
        (meeting / "go").touch()
        thread.join(180)


def waiting(home: Path, name: str, **more: Any) -> RunConfig:
    return run(home, name, method={"pause_at": 4, "meeting": str(home / f"meet-{name}")}, **more)


def test_of_two_runs_of_one_name_the_second_is_refused(ray_session: Any, home: Path) -> None:
    one = waiting(home, "twice")
    with under_way(one, home / "meet-twice") as ended:
        for resume in (False, True):
            with pytest.raises(
                PlethoraError, match=r"twice(: go on|.* exists| belongs to a run under way on)"
            ):
                driver.launch(one, resume)
    assert ended == [str(home / "storage" / "twice" / "bundle")]


@pytest.mark.slow
def test_a_run_whose_folder_was_taken_over_writes_nothing_more(ray_session: Any, home: Path) -> None:
    one = waiting(home, "taken", checkpoint_every=100)
    folder = home / "storage" / "taken"
    with under_way(one, home / "meet-taken") as ended:
        held = json.loads((folder / "owner" / "000001.json").read_text())
        (folder / "owner" / "000002.json").write_text(json.dumps(held | {"token": "another"}))
    assert "PlethoraError: run taken stopped" in ended[0] and "belongs to another process now" in ended[0]
    assert not list(folder.glob("checkpoint_20*"))


@pytest.mark.parametrize("now", ["replaced", pytest.param("removed", marks=pytest.mark.slow)])
def test_a_corpus_that_changes_under_a_run_stops_it(ray_session: Any, home: Path, now: str) -> None:
    corpus = home / f"to-be-{now}"
    write_corpus(corpus, shards=2, rows=6)
    one = waiting(home, now, corpus=str(corpus), steps=6, checkpoint_every=100)
    with under_way(one, home / f"meet-{now}") as ended:
        shutil.rmtree(corpus)
        if now == "replaced":
            write_corpus(corpus, shards=2, rows=6, first=50)
    assert f"PlethoraError: run {now} stopped: corpus {corpus} was {now}" in ended[0] and "\n" not in ended[0]
    assert not (home / "storage" / now / "bundle").exists()


def test_a_shard_of_another_size_is_refused_by_its_reader_and_when_workers_start(
    ray_session: Any, home: Path
) -> None:
    from datasets.schema import content_hash, open_corpus

    folder = home / "sized"
    write_corpus(folder, shards=1)
    manifest = json.loads((folder / "corpus.json").read_text())
    shard = folder / "shards" / "0.parquet"
    manifest["shards"][0]["bytes"] = shard.stat().st_size
    manifest["hash"] = content_hash(manifest)
    (folder / "corpus.json").write_text(json.dumps(manifest))
    driver.index(run(home, "sized", corpus=str(folder)))  # cached: a run reads no shard before it trains
    with shard.open("ab") as file:
        file.write(b"more")
    with pytest.raises(PlethoraError, match=r"0.parquet is corrupt, or was replaced .* corpus.json states"):
        open_corpus(str(folder)).read_row_group(0, 0)
    with pytest.raises(PlethoraError, match=r"run sized stopped: .*0.parquet is not the file"):
        driver.launch(run(home, "sized", corpus=str(folder)))


def test_a_run_does_not_write_into_a_bundle(whole: dict, home: Path) -> None:
    with pytest.raises(ValueError, match="`bundle` is a folder inside runs: choose another word"):
        run(home, "whole/bundle")
    inside = run(home, "x", storage=whole["bundle"])
    with pytest.raises(PlethoraError, match=r"run x would write into what is published at .*whole/bundle"):
        driver.launch(inside)
    assert bundle.verify(whole["bundle"])


def test_one_corpus_written_in_two_ways_is_refused(home: Path) -> None:
    a = os.path.relpath(home / "a")
    for second in (f"{a}/", str(home / "a"), f"file://{home / 'a'}"):
        with pytest.raises(ValueError, match=r"corpus names one folder twice, .*: name it once"):
            run(home, "x", corpus={a: 0.7, second: 0.3})
