"""A worker's log line is one JSON object that says who said it, and at which step."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from cluster import log


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in log.PACKAGES]
    before = [(one, list(one.handlers), one.level, one.propagate) for one in loggers]
    yield
    for one, handlers, level, propagate in before:
        one.handlers[:], one.level, one.propagate = handlers, level, propagate


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_names_run_rank_and_step_and_carries_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(run="pro", rank=1, world=2, step=0)
    log.at(40)
    logging.getLogger("pretrain.watch").info("step", extra={"loss": 0.5, "data_wait": float("nan")})
    (line,) = _lines(capsys)
    assert line | {"time": "", "host": "", "pid": 0, "job": None} == {
        "time": "",
        "level": "info",
        "logger": "pretrain.watch",
        "message": "step",
        "run": "pro",
        "rank": 1,
        "world": 2,
        "step": 40,
        "host": "",
        "pid": 0,
        "job": None,
        "loss": 0.5,
        "data_wait": None,
    }
    assert line["time"].endswith("+00:00")


def test_an_exception_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(run="pro", rank=0)
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        logging.getLogger("datasets").exception("lost")
    (line,) = _lines(capsys)
    assert line["message"] == "lost"
    assert "ValueError: one\ntwo" in line["error"]


def test_a_worker_that_starts_another_run_says_each_line_once_and_as_that_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure(run="first", rank=0)
    log.configure(run="second", rank=0)
    logging.getLogger("pretrain").warning("careful")
    (line,) = _lines(capsys)
    assert (line["run"], line["level"]) == ("second", "warning")


def test_progress_is_said_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    log.configure(run="pro", rank=0)
    said = []
    for _ in range(300):  # a step a second
        now[0] += 1
        said.append(log.minute())
    assert [n for n, due in enumerate(said) if due] == [0, 60, 120, 180, 240]
