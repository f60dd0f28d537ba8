"""Which keys of a run may change between its start and --resume, and what is said of each."""

from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from cluster.errors import PlethoraError
from pretrain import fingerprint
from pretrain.fingerprint import Fingerprint
from pretrain.recipe import build
from tests.datasets.test_stream import write_corpus
from tests.pretrain.test_same_run import run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("fingerprint")
    write_corpus(home / "a", shards=1)
    write_corpus(home / "b", shards=1, first=20)
    return home


def of(home: Path, **more: Any) -> Fingerprint:
    one = run(home, "n", **{"select": {"metric": "loss/net"}, "validate_every": 3} | more)
    return fingerprint.of(one, build(one.recipe, one.method, one.seed))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"engine": {"zero_stage": 0, "clip": 0.5}}, "engine.clip was 1.0, is 0.5"),
        ({"optim": {"weight_decay": 0.1}}, "optim.weight_decay was 0.05, is 0.1"),
        ({"optim": {"betas": [0.9, 0.95]}}, r"optim.betas was \[0.9, 0.999\], is \[0.9, 0.95\]"),
        ({"optim": {"eps": 1e-6}}, "optim.eps was 1e-08, is 1e-06"),
        ({"optim_of": {"net": {"weight_decay": 0.1}}}, "optim_of.net.weight_decay was 0.05, is 0.1"),
        ({"select": {"metric": "loss/*"}}, r'select.metric was "loss/net", is "loss/\*"'),
    ],
)
def test_a_key_that_a_checkpoint_brings_back_is_refused(home: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(PlethoraError, match=rf"run n is not what it began as \({says}\): go on with what it"):
        fingerprint.compare("n", of(home), of(home, **more))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"optim": {"lr": 1e-3}}, "optim.lr was 0.0001, is 0.001"),
        ({"optim": {"lr_reference_batch": 4}}, "optim.lr_reference_batch was null, is 4"),
        ({"optim": {"min_lr": 1e-6}}, "optim.min_lr was 0.0, is 1e-06"),
        ({"optim": {"warmup_epochs": 0.5}}, "optim.warmup_epochs was 0.0, is 0.5"),
        ({"optim": {"warmup_steps": 2}}, "optim.warmup_steps was null, is 2"),
        ({"optim": {"schedule": "constant"}}, 'optim.schedule was "cosine", is "constant"'),
        ({"optim_of": {"net": {"lr": 1e-3}}}, "optim_of.net.lr was 0.0001, is 0.001"),
        ({"optim_of": {"net": {"lr": 1e-4}}}, ""),  # as it was
        ({"engine": {"zero_stage": 0, "precision": "fp32"}}, 'engine.precision was "auto", is "fp32"'),
        ({"engine": {"zero_stage": 0, "offload": True}}, "engine.offload was false, is true"),
        ({"micro_batch": 4}, "micro_batch was null, is 4"),
        ({"select": {"metric": "loss/net", "patience": 2}}, "select.patience was 0, is 2"),
        ({"log_every": 1, "validate_windows": 8, "checkpoint_every": 2, "max_nonfinite": 3}, ""),
    ],
)
def test_a_key_that_may_change_is_told_where_training_depends_on_it(
    home: Path, more: dict[str, Any], says: str
) -> None:
    found = fingerprint.compare("n", of(home), of(home, **more))
    assert str(found) == says and not found.longer


def test_what_changes_is_told_also_where_the_run_grows(home: Path) -> None:
    found = fingerprint.compare("n", of(home), of(home, steps=15, micro_batch=4))
    assert found.longer and str(found) == "micro_batch was null, is 4"


def test_a_plan_that_lacks_the_optimizer_is_told_as_an_older_one(home: Path, tmp_path: Path) -> None:
    fingerprint.write(str(tmp_path), now := of(home))
    assert fingerprint.read(str(tmp_path)) == now
    old = now.model_dump(mode="json", exclude={"optim", "optim_of", "micro_batch"})
    storage.write_json(tmp_path / fingerprint.FILE, old)
    with pytest.raises(PlethoraError, match=r"plan.json is of an older Plethora, which did not keep the opt"):
        fingerprint.read(str(tmp_path))
