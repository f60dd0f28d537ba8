"""What ranks hear of having to leave and of being due for a checkpoint."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrain import leaving


@pytest.fixture
def alone() -> Iterator[None]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_checkpoint_is_due_once_its_minutes_have_passed(alone: None, monkeypatch: Any) -> None:
    now = 100.0
    monkeypatch.setattr(leaving.time, "monotonic", lambda: now)
    guard: Any = SimpleNamespace(passing=lambda: None)
    monkeypatch.setattr(leaving.ray.train, "get_preemption_info", lambda: None)
    timed, untimed = (
        leaving.Notice(torch.device("cpu"), guard, 2.0),
        leaving.Notice(torch.device("cpu"), guard),
    )
    due = []
    for now in (150.0, 219.0, 221.0, 222.0, 342.0, 344.0):
        assert not timed.given() and not untimed.given() and not untimed.due
        due.append(timed.due)
        if now in (222.0, 342.0):  # at 221 it was not saved
            timed.checkpointed()
    assert due == [False, False, True, True, False, False]
    now = 342.0 + 121
    assert not timed.given() and timed.due
