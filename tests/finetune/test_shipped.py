"""The encoder that ships with Plethora: whole, small, openly licensed, and usable with nothing trained."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster import bundle
from cluster.config import load
from finetune.__main__ import SHIPPED, main
from finetune.encoders.opening import opened
from pretrain.config import RunConfig

RUN = Path(__file__).parents[2] / "pretrain" / "runs" / "anyppg" / "small.toml"


def test_it_verifies_and_is_small() -> None:
    found = bundle.verify(str(SHIPPED))
    assert found["kind"] == "encoder"
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 6e6
    assert sum(bundle.open(str(SHIPPED)).config["parameters"].values()) < 1.5e6


def test_it_was_trained_by_the_run_file_on_openly_licensed_recordings() -> None:
    opened_bundle = bundle.open(str(SHIPPED))
    run, want = opened_bundle.config["run"], load(RUN, RunConfig, ["corpus=x"]).model_dump(mode="json")
    for key in ("recipe", "name", "steps", "batch", "split", "optim", "seed"):
        assert run[key] == want[key], key
    assert want["method"].items() <= run["method"].items()
    corpora = opened_bundle.lineage["corpora"]
    assert {c["name"]: c["licence"] for c in corpora} == {"bidmc": "ODC-By-1.0", "cinc2015": "ODC-By-1.0"}


def test_its_evaluations_lie_beside_it_and_are_whole() -> None:
    folders = sorted((SHIPPED.parent / "evaluations").iterdir())
    held = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert {(r["corpus"]["name"], r["task"]["name"]) for r in held} >= {
        *(("ppg_bp", task) for task in ("sbp", "dbp", "hypertension", "age", "sex")),
        ("ieee_spc_2015", "heart_rate"),
    }
    assert {r["bundle"]["mode"] for r in held} == {"ppg"}


def test_on_the_sets_that_decided_it_beats_its_untrained_self_and_the_mean() -> None:
    decided = {("ppg_bp", "sbp"), ("ieee_spc_2015", "heart_rate")}
    for folder in (SHIPPED.parent / "evaluations").iterdir():
        result = json.loads((folder / "results.json").read_text())
        if (result["corpus"]["name"], result["task"]["name"]) in decided:
            decided.remove((result["corpus"]["name"], result["task"]["name"]))
            for row in ("untrained", "mean"):
                assert result["differences"][row]["high"] < 0
    assert not decided


@pytest.mark.parametrize(("mode", "rate"), [("ppg", 125.0), ("ecg", 250.0)])
def test_both_of_its_modes_tell_one_signal_from_another(mode: str, rate: float) -> None:
    encoder = opened(f"{SHIPPED}#{mode}")
    x = np.random.default_rng(0).normal(size=(3, 1, round(10 * rate))).cumsum(-1)
    vectors = encoder.embed(x, rate)
    assert vectors.shape == (3, 256) and np.ptp(vectors, axis=0).max() > 0.1


def test_embed_takes_it_where_no_bundle_is_named(tmp_path: Path) -> None:
    x = np.sin(7.5 * np.arange(0, 30, 1 / 125))
    np.savez(tmp_path / "mine.npz", ppg=x, rate=125.0)
    found: dict[str, Any] = main(
        ["embed", "--input", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "v.parquet")]
    )
    assert found["dim"] == 256 and pq.read_table(tmp_path / "v.parquet").num_rows == found["windows"]


def test_every_command_of_the_pages_and_the_demo_names_one_of_its_modes() -> None:
    root, found = SHIPPED.parents[2], []
    for file in (root / "README.md", *(root / "docs").glob("*.md"), root / "infra" / "demo"):
        for line in file.read_text().replace("\\\n", " ").splitlines():
            if "finetune " in line:
                found += re.findall(r"bundles/plethora-small/bundle\S*", line.replace('"', " "))
    assert len(found) >= 4
    for address in found:
        assert opened(str(root / address)).modality in ("ppg", "ecg")
