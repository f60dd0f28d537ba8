"""What a run tells ends up once in each place."""

from __future__ import annotations

import json
import re
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from cluster import mirror, storage
from cluster.telemetry import Board, Telemetry, make_board, put


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run/telemetry")
    request.getfixturevalue("store")
    return f"s3://plethora/{uuid.uuid4().hex}/run/telemetry"


def _lines(uri: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in storage.read_bytes(storage.join(uri, "metrics.jsonl")).splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def _events(uri: str, folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    storage.download(uri, folder)
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_numbers_and_figures_end_up_in_lines_and_in_tensorboard(uri: str, tmp_path: Path) -> None:
    import matplotlib.figure

    told = Telemetry(uri)
    for step in range(1, 4):
        told.scalars(step, {"train/loss": 1.0 / step})
    told.scalars(3, {"val/loss": 0.5, "grad": float("nan")})
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([0, 1])
    told.figure(3, "masks", figure)
    told.close()
    assert _lines(uri) == [
        {"step": 1, "train/loss": 1.0},
        {"step": 2, "train/loss": 0.5},
        {"step": 3, "train/loss": 1 / 3, "val/loss": 0.5, "grad": None},
    ]
    events = _events(uri, tmp_path / "read")
    assert [(event.step, round(event.value, 4)) for event in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 0.3333),
    ]
    assert [event.step for event in events.Images("masks")] == [3]


def test_after_a_lost_attempt_each_step_appears_once(uri: str, tmp_path: Path) -> None:
    first = Telemetry(uri)
    for step in range(1, 8):
        first.scalars(step, {"loss": float(step)})
    first.flush()  # and the process is killed
    where = storage.join(uri, "metrics.jsonl")
    storage.write_bytes(where, storage.read_bytes(where) + b'{"step": 8, "lo')
    first._file.close()
    second = Telemetry(uri, start_step=5)
    for step in range(5, 10):
        second.scalars(step, {"loss": 10.0 * step})
    second.close()
    lines = _lines(uri)
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["loss"] for line in lines] == [1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0, 80.0, 90.0]


def test_a_run_from_the_start_keeps_no_old_lines(uri: str) -> None:
    for value in (1.0, 2.0):
        told = Telemetry(uri)
        told.scalars(1, {"loss": value})
        told.close()
    assert _lines(uri) == [{"step": 1, "loss": 2.0}]


def test_what_was_flushed_is_on_the_store_before_the_run_ends(uri: str) -> None:
    told = Telemetry(uri)
    told.scalars(1, {"loss": 1.0})
    told.flush()
    assert _lines(uri) == [{"step": 1, "loss": 1.0}]
    told.close()


def test_an_upload_that_fails_is_told(store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.errors import PlethoraError

    monkeypatch.setattr(mirror, "UPLOAD_EVERY_S", 0.0)
    told = Telemetry(f"s3://plethora/{uuid.uuid4().hex}/telemetry")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "revoked-meanwhile")
    with pytest.raises(PlethoraError, match=r"refuses the signature|denies access"):
        for step in range(200):
            told.scalars(step, {"loss": 1.0})
            time.sleep(0.05)


def test_numbers_become_gauges_of_ray(ray_session: Any, tmp_path: Path) -> None:
    told = Telemetry(str(tmp_path / "my-run/telemetry"))
    told.scalars(1, {"train/loss/student": 0.25, "train/data_wait": 0.5})
    told.close()
    info = told.gauges._known["loss"].info
    assert info["name"] == "plethora_loss"
    assert info["default_tags"] == {"run": "my-run"}
    assert set(info["tag_keys"]) == {"run", "part", "module"}
    assert told.gauges._known["data_wait"].info["name"] == "plethora_data_wait"


def test_a_board_shows_in_the_driver_what_a_worker_puts(
    ray_session: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    board = make_board()

    @ray_session.remote
    def work(board: Board) -> None:
        for step in range(1, 21):
            time.sleep(0.02)
            put(board, step, 20, {"loss": 1.0 / step})

    with board.render("tokenizer", None):
        ray_session.get(work.remote(board))
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"tokenizer: 20/20 steps \(100%\) · \S+ · loss 0\.05", last)


def test_a_board_that_hears_nothing_says_that_workers_are_starting(
    ray_session: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import cluster.cli

    monkeypatch.setattr(cluster.cli, "LINE_EVERY_S", 0.1)
    with make_board().render("tokenizer", 10):
        time.sleep(1.2)
    assert "tokenizer: 0/10 steps (0%)" in (said := capsys.readouterr().err)
    assert "workers are starting" in said


def test_without_a_board_nothing_is_put() -> None:
    put(None, 1, 2, {"loss": 1.0})
