"""What holds two real ranks up is what their telemetry says, and what the doctor names."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cluster.diagnose import Diagnosis, diagnose
from tests.pretrain.group import together

PLANTED = ("data", "compute", "straggle", "exchange", "validation", "checkpoint")
STEPS, NAP_S = 9, 0.06


def worker(rank: int, world: int, folder: Path) -> None:
    from pretrain.config import RunConfig
    from pretrain.watch import Watch

    settings = {"recipe": "x:Y", "corpus": "c", "steps": STEPS, "batch": 8, "workers": world}
    index = SimpleNamespace(corpus=SimpleNamespace(manifest={}), summary=lambda: {"windows": {"ok": 3}})
    for planted in PLANTED:
        run = RunConfig.model_validate(settings | {"storage": str(folder), "name": planted})
        watch = Watch(run, None, STEPS, rank, 0, tokens=5)
        size = 20_000 if planted == "exchange" else 2  # on meta: only its count matters
        data: Any = SimpleNamespace(indexes=[index])
        watch.begin(data, {"net": nn.Linear(size, size, device="meta")}, torch.device("cpu"))

        def nap(kind: str, here: bool = True, seconds: float = NAP_S, planted: str = planted) -> None:
            if planted == kind and here:
                time.sleep(seconds)

        for step in range(1, STEPS + 1):
            with watch.spending("data"):
                time.sleep(0.2 if step == 1 else 0)  # the stream starts
                nap("data")
            with watch.forward():
                nap("straggle", here=rank == 1)
            nap("compute")
            dist.barrier()
            watch.step(step, run.batch)
            if step % 3 == 0:
                watch.log(step, {"loss/net": 0.5})
                with watch.spending("validation"):
                    nap("validation", seconds=10 * NAP_S)  # once in three steps, and the last is not told
                    watch.validated(step, {"loss/net": 0.4}, {})
            if planted == "checkpoint":
                with watch.spending("checkpoint"):
                    nap("checkpoint")
                watch.checkpointed(step)
        watch.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("watch")
    together(worker, 2, home)
    return home


def _found(home: Path, planted: str) -> Diagnosis:
    return diagnose(str(home / planted))


@pytest.mark.parametrize("planted", PLANTED)
def test_what_was_planted_takes_the_most_time(home: Path, planted: str) -> None:
    shares = _found(home, planted).shares
    assert max(shares, key=lambda phase: shares[phase]) == planted, shares


def test_the_doctor_names_it(home: Path) -> None:
    named = {planted: _found(home, planted).bottleneck for planted in PLANTED}
    assert named == {planted: planted for planted in PLANTED} | {
        "straggle": "communication",
        "exchange": "communication",
    }


def test_shares_of_each_interval_add_up_to_one_and_only_the_first_has_a_start(home: Path) -> None:
    text = (home / "data" / "telemetry" / "metrics.jsonl").read_text()
    told = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in told] == [3, 6, 9]
    for line in told:
        shares = [value for name, value in line.items() if name.startswith("train/time/")]
        assert sum(shares) == pytest.approx(1.0)
        assert line["train/tokens_per_s"] == pytest.approx(5 * line["train/windows_per_s"])
        assert line["train/data_wait"] <= line["train/data_wait_max"]
    assert told[0]["train/time/start"] > 0
    assert [line["train/time/start"] for line in told[1:]] == [0.0, 0.0]


def test_a_checkpoint_tells_how_long_training_stood_still(home: Path) -> None:
    text = (home / "checkpoint" / "telemetry" / "metrics.jsonl").read_text()
    told = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in told] == list(range(1, STEPS + 1))
    assert all(line["train/checkpoint_seconds"] >= NAP_S for line in told)
