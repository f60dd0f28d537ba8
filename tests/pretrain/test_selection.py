"""Which validation's weights are kept, and when both curves together say that a run overfits."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster.errors import PlethoraError
from pretrain.config import Select
from pretrain.recipe import StepResult
from pretrain.selection import Selection

VALIDATION = [5.0, 4.0, 3.0, 3.2, 3.1, 3.3, 3.4, 2.0]
TRAINING = [9.0, 6.0, 5.0, 4.0, 5.5, 4.5, 3.0, 2.0]


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def played(patience: int, broken_after: int | None = None) -> Selection:
    """Two training steps and a validation a round; in round `broken_after` all but the checkpoint is lost."""
    selection = Selection(Select(metric="loss/net", patience=patience), {}, None)
    for step, (value, train) in enumerate(zip(VALIDATION, TRAINING, strict=True), 1):
        for part in (0.5, 1.5):
            selection.trained([StepResult({"net": torch.tensor(train * part)})], 4)
            if part == 0.5:
                selection.merge()  # a checkpoint between validations
                if step == broken_after:
                    told = json.loads(json.dumps(selection.state))
                    selection = Selection(selection.config, told, selection.weights)
        selection.validated(step, {"loss/net": value}, lambda s=step: {"net": {"w": torch.tensor(float(s))}})
        if selection.stopped:
            break
    return selection


def test_the_best_validations_weights_are_kept() -> None:
    found = played(patience=0)
    assert found.state["step"] == 8 and not found.stopped
    assert found.weights is not None and found.weights["net"]["w"] == 8


def test_a_run_stops_when_validation_stays_worse_while_training_falls_and_says_so() -> None:
    found = played(patience=2)
    # round 5 does not count: its training loss (5.5) is not under that of the best round (5.0)
    assert found.state["step"] == 3 and found.weights is not None and found.weights["net"]["w"] == 3
    assert "overfitting" in found.stopped and "stopped at step 7, the weights of step 3" in found.stopped
    assert "5 to 3" in found.stopped


@pytest.mark.parametrize("after", [2, 4, 6])
def test_a_resumed_run_decides_as_the_unbroken_one(after: int) -> None:
    assert played(2, broken_after=after).state == played(2).state


def test_the_last_validation_of_a_run_stops_nothing() -> None:
    found = Selection(Select(metric="loss/net", patience=1), {}, None)
    for step, (value, train) in enumerate([(1.0, 2.0), (1.5, 1.0)], 1):
        found.trained([StepResult({"net": torch.tensor(train)})], 4)
        found.validated(step, {"loss/net": value}, dict, last=step == 2)
    assert not found.stopped and found.state["worse"] == 1


def test_it_is_off_by_default_and_then_does_nothing() -> None:
    off = Selection(Select(), {}, None)
    off.trained([StepResult({"net": torch.tensor(1.0)})], 4)
    off.validated(1, {"loss/net": 1.0}, lambda: pytest.fail("no weights are wanted"))
    assert not off.on and off.weights is None and off.each[""].mine.sum() == 0


def test_a_figure_that_validation_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(PlethoraError, match=r"select.metric = mae: .* choose one of loss/net, mae/sbp"):
        Selection(Select(metric="mae"), {}, None).validated(1, {"loss/net": 1.0, "mae/sbp": 2.0}, dict)


@pytest.mark.parametrize("after", [None, 2, 4, 6])
def test_modules_chosen_apart_are_each_chosen_as_if_alone(after: int | None) -> None:
    """One that overfits is settled, whatever it does later; the run goes on for the others."""
    found = Selection(Select(metric="loss/*", patience=2), {}, None)
    other = [5.0, 4.0, 3.0, 2.0, 2.5, 1.9, 1.8, 1.7]
    for step, (value, train) in enumerate(zip(VALIDATION, TRAINING, strict=True), 1):
        found.trained([StepResult({"a": torch.tensor(train), "b": torch.tensor(1.0)})], 4)
        weights = {name: {"w": torch.tensor(float(step))} for name in "ab"}
        found.validated(step, {"loss/a": value, "loss/b": other[step - 1]}, lambda w=weights: w)
        if step == after:
            found = Selection(found.config, json.loads(json.dumps(found.state)), found.weights)
    alone = played(patience=2)
    assert found.state["step"] == {"a": alone.state["step"], "b": 8} and not found.stopped
    assert found.state["value"] == {"a": 3.0, "b": 1.7}
    assert found.weights is not None and {n: int(w["w"]) for n, w in found.weights.items()} == {
        "a": 3,
        "b": 8,
    }
    assert found.state["each"]["a"]["stopped"] == alone.stopped.replace("loss/net", "loss/a")
