"""`tests.benchmarks.step`: both sides do the same work, and turns reach who has them."""

import argparse
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.benchmarks import step, step_workers
from tests.pretrain.kit import batch
from tests.pretrain.recipes import RECIPES


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["masked", "m2ae"])
def test_our_step_and_the_hand_written_one_have_the_same_losses(group, name: str) -> None:
    data = batch() | {key: torch.zeros(8, dtype=torch.int64) for key in ("source", "pass")}
    hand = step_workers.by_hand(RECIPES[name](), data)
    ours = step_workers.ours(RECIPES[name](), data, 0)
    for number in range(4):
        torch.testing.assert_close(ours(number), hand(number), rtol=1e-5, atol=1e-6)


def test_a_turn_is_taken_by_the_ranks_of_the_side_that_has_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dist, "barrier", lambda: None)
    asked: list[tuple[str, int, int]] = []

    def side(name: str, rank: int):  # type: ignore[no-untyped-def]
        def run(number: int) -> torch.Tensor:
            asked.append((name, rank, number))
            return torch.tensor([float(number)])

        return run

    sides = {("plain",): 2, ("a", "b"): 2}
    ranks = [
        threading.Thread(
            target=step_workers.serve, args=(tmp_path, {n: side(n, rank) for n in names}, rank), daemon=True
        )
        for names, count in sides.items()
        for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    turns = step.Turns(tmp_path, [], None)
    turns.wait(f"ready-{'+'.join(names)}-{rank}" for names in sides for rank in (0, 1))
    given = argparse.Namespace(steps=2, rounds=1, batch=3)
    takes = {n: lambda first, steps, n=n: turns.take(n, first, steps) for n in ("plain", "a", "b")}
    rows = step.table(step.rounds(takes, given), "plain", 2, given)
    turns.end()
    for rank in ranks:
        rank.join(timeout=10)
        assert not rank.is_alive()
    assert sorted(asked) == sorted((n, r, k) for n in takes for r in (0, 1) for k in range(4))
    assert [row["what"] for row in rows] == ["plain", "a", "b"]
    assert all(row["losses apart"] == 0 and row["workers"] == 2 for row in rows)


def test_a_side_that_ends_early_is_told_with_its_last_words(tmp_path: Path) -> None:
    told = (tmp_path / "told").open("w+")
    dead = subprocess.Popen([sys.executable, "-c", "raise SystemExit('no room')"], stderr=told)
    with pytest.raises(SystemExit, match="no room"):
        step.Turns(tmp_path, [dead], told).wait(["never"])
