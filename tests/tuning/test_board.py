"""TensorBoard, read by its own library, shows a search as it goes and as it ended."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from tests.tuning import drawn
from tuning.board import Board
from tuning.record import Record
from tuning.space import Spread


@pytest.fixture(params=["local", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "search")
    request.getfixturevalue("store")
    return f"s3://plethora/{uuid.uuid4().hex}/search"


@pytest.fixture(scope="module")
def record() -> Record:
    return drawn.search(8)


def at(home: str, record: Record) -> Record:
    """The record under `home`, without trials."""
    return replace(record, home=home, trials=())


def play(board: Board, record: Record) -> None:
    """Each trial as a driver reports it: at its start, at each validation, at its end."""
    for trial in record.trials:
        board.update(replace(trial, state="running", why="", curve=(), objective=None))
        for count in range(1, len(trial.curve) + 1):
            board.update(replace(trial, state="running", why="", curve=trial.curve[:count]))
        board.update(trial)
        board.update(trial)


def seen(home: str, tmp_path: Path) -> dict[str, Any]:
    """{trial: TensorBoard's own reading of its folder}, "" for the search's."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    folder = tmp_path / "copy"
    storage.download(storage.join(home, "tensorboard"), folder)
    found = EventMultiplexer()
    found.AddRunsFromDirectory(str(folder))
    found.Reload()
    return {run.strip("."): found.GetAccumulator(run) for run in found.Runs()}


def messages(run: Any) -> dict[str, Any]:
    """The HParams tab's messages of a run."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = {
        tag: HParamsPluginData.FromString(data) for tag, data in run.PluginTagToContent("hparams").items()
    }
    return {tag.rpartition("/")[2]: data for tag, data in found.items()}


def test_every_trial_shows_its_values_its_curve_once_and_how_it_ended(
    home: str, record: Record, tmp_path: Path
) -> None:
    from tensorboard.plugins.hparams.api_pb2 import Status

    board = Board(at(home, record))
    play(board, record)
    board.close()
    runs = seen(home, tmp_path)
    assert set(runs) == {"", *(t.trial for t in record.trials)}
    for trial in record.trials:
        run, found = runs[trial.trial], messages(runs[trial.trial])
        hparams = found["session_start_info"].session_start_info.hparams
        given = {name: value.number_value or value.string_value for name, value in hparams.items()}
        assert given == pytest.approx(trial.values)
        if trial.curve:
            scalars = [(event.step, event.value) for event in run.Scalars("val/mae")]
            assert scalars == [
                (step, pytest.approx(value, rel=1e-6)) for step, value in trial.curve_of("val/mae")
            ]
        status = found["session_end_info"].session_end_info.status
        assert Status.Name(status) == ("STATUS_FAILURE" if trial.state == "failed" else "STATUS_SUCCESS")


def test_a_search_that_goes_on_shows_each_trial_once(record: Record, tmp_path: Path) -> None:
    home = str(tmp_path / "search")
    first = Board(at(home, record))
    play(first, replace(record, trials=record.trials[:4]))
    first.update(replace(record.trials[4], state="running", curve=record.trials[4].curve[:1]))
    first.close()
    again = Board(replace(record, home=home, trials=record.trials[:4]))
    play(again, replace(record, trials=record.trials[4:]))
    again.close()
    for name, run in seen(home, tmp_path).items():
        steps = (
            [event.step for event in run.Scalars("val/mae")]
            if name and "val/mae" in run.Tags()["scalars"]
            else []
        )
        assert steps == sorted(set(steps))


def test_a_running_trial_is_on_the_disk_before_it_ends(record: Record, tmp_path: Path) -> None:
    board = Board(at(str(tmp_path / "search"), record))
    trial = record.trials[0]
    board.update(replace(trial, state="running", curve=trial.curve[:2]))
    run = seen(str(tmp_path / "search"), tmp_path)[trial.trial]
    assert len(run.Scalars("val/mae")) == 2
    assert "session_end_info" not in messages(run)
    board.close()


def test_the_tab_knows_the_space_and_the_objective(record: Record, tmp_path: Path) -> None:
    space = record.search.space | {
        "flag": Spread(kind="choice", choices=(True, False)),
        "mix": Spread(kind="choice", choices=(1, "a")),
    }
    search = record.search.model_copy(update={"space": space})
    board = Board(at(str(tmp_path / "search"), replace(record, search=search)))
    board.close()
    experiment = messages(seen(str(tmp_path / "search"), tmp_path)[""])["experiment"].experiment
    infos = {info.name: info for info in experiment.hparam_infos}
    assert set(infos) == set(space)
    assert infos["optim.lr"].domain_interval.max_value == 1e-2
    assert list(infos["method.rank"].domain_discrete) == [2, 4, 8, 16, 32]
    assert list(infos["flag"].domain_discrete) == [False, True]
    assert list(infos["mix"].domain_discrete) == ["1.0", "a"]
    assert [metric.name.tag for metric in experiment.metric_infos] == ["val/mae"]


def test_a_probe_that_is_known_at_the_end_is_a_figure_of_its_trial(record: Record, tmp_path: Path) -> None:
    goal = record.search.objective[0].model_copy(update={"task": "heart_rate", "metric": "mae"})
    search = record.search.model_copy(update={"objective": (goal,)})
    board = Board(at(str(tmp_path / "search"), replace(record, search=search)))
    trial = replace(record.trials[0], objective={"heart_rate mae": 3.5})
    board.update(trial)
    board.close()
    events = seen(str(tmp_path / "search"), tmp_path)[trial.trial].Scalars("heart_rate mae")
    assert [(event.step, event.value) for event in events] == [(trial.step, 3.5)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import logging

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    yield
