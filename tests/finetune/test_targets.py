"""Losses over tasks of which a window may lack some, and the windows that tasks share."""

import numpy as np
import pytest
import torch

from cluster.errors import PlethoraError
from finetune import targets
from finetune.targets import Head
from finetune.task import load_task

SBP, HR, HYP, RHYTHM = (load_task(n) for n in ("sbp", "heart_rate", "hypertension", "rhythm"))
HEADS = [
    Head(SBP, mean=120.0, std=15.0, weight=2.0),
    Head(HYP, ("not", "it"), share=(0.7, 0.3), weight=1.0),
    Head(RHYTHM, ("a", "b", "c"), share=(0.2, 0.3, 0.5), weight=4.0),
]


def drawn(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    y = rng.normal(0, 3, (n, 5))
    y[:, 0] += 120
    target = np.stack([rng.normal(120, 4, n), rng.integers(0, 2, n), rng.integers(0, 3, n)], axis=1)
    target[rng.random((n, 3)) < 0.4] = np.nan
    return torch.from_numpy(y).float(), torch.from_numpy(target).float()


@pytest.mark.parametrize("scaled", [True, False])
def test_each_tasks_loss_is_that_of_its_labelled_windows_by_hand(scaled: bool) -> None:
    y, t = drawn()
    found = targets.task_losses(y, t, HEADS, 2.0, scaled)
    sums = np.zeros(3)
    for row, want in zip(y.double().numpy(), t.double().numpy(), strict=True):
        if np.isfinite(want[0]):
            d = abs(row[0] - want[0])
            sums[0] += (d * d / 4 if d < 2 else d - 1) / (15 if scaled else 1)
        if np.isfinite(want[1]):
            p = 1 / (1 + np.exp(-row[1]))
            sums[1] -= np.log(p if want[1] else 1 - p)
        if np.isfinite(want[2]):
            sums[2] -= np.log(np.exp(row[2 + int(want[2])]) / np.exp(row[2:]).sum())
    np.testing.assert_allclose(found.numpy(), sums / len(y) * [2, 1, 4], rtol=1e-5)


def test_halves_of_a_batch_add_up_whatever_labels_they_lack_and_unlabelled_windows_give_no_gradient() -> None:
    y, t = drawn()
    order = torch.argsort(torch.isfinite(t[:, 0]).int())  # all without a pressure first
    y, t = y[order].requires_grad_(), t[order]
    whole = targets.task_losses(y, t, HEADS, 2.0, True)
    halves = [targets.task_losses(y[part], t[part], HEADS, 2.0, True) for part in (slice(20), slice(20, 40))]
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2)
    (gradient,) = torch.autograd.grad(whole.sum(), y)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 0] != 0).equal(torch.isfinite(t[:, 0]))


def test_errors_count_absolute_and_wrong_ones_over_labelled_windows() -> None:
    y, t = drawn()
    wrong, known = targets.errors(y, t, HEADS).numpy()
    a, b = y.numpy(), t.numpy()
    np.testing.assert_allclose(known, np.isfinite(b).sum(0))
    np.testing.assert_allclose(wrong[0], np.nansum(np.abs(a[:, 0] - b[:, 0])), rtol=1e-5)
    assert wrong[1] == sum((p > 0) != k for p, k in zip(a[:, 1], b[:, 1], strict=True) if k == k)
    assert wrong[2] == sum(p.argmax() != k for p, k in zip(a[:, 2:], b[:, 2], strict=True) if k == k)


def test_statistics_are_of_labelled_training_windows_and_survive_json() -> None:
    y = np.array([[100.0, 0], [110, np.nan], [np.nan, 1], [120, 1], [np.nan, 0]])
    heads = targets.with_statistics([SBP, HYP], {"hypertension": ["no", "yes"]}, y)
    assert heads[0].mean == 110 and heads[0].std == pytest.approx(np.std([100, 110, 120]))
    assert heads[0].weight == pytest.approx(5 / 3) and heads[1].weight == 5 / 4
    assert heads[1].share == (0.5, 0.5) and [h.columns for h in heads] == [1, 1]
    assert [targets.head_of(h.table(), "test") for h in heads] == heads


def test_a_label_that_no_training_window_has_or_one_class_only_is_one_line() -> None:
    with pytest.raises(PlethoraError, match="no window to train on has label 'sbp'"):
        targets.with_statistics([SBP], {}, np.full((3, 1), np.nan))
    with pytest.raises(PlethoraError, match="all 3 windows to train task hypertension on are 'yes'"):
        targets.with_statistics([HYP], {"hypertension": ["no", "yes"]}, np.ones((3, 1)))


def test_tasks_of_one_run_share_their_windows_or_say_what_to_set() -> None:
    with pytest.raises(PlethoraError, match=r"set method\.window_s"):
        targets.placed([SBP, HR], None, None)
    together = targets.placed([SBP, HR], 30.0, None)
    assert {(t.window_s, t.hop_s) for t in together} == {(30.0, 30.0)}
    with pytest.raises(PlethoraError, match="kind retrieval"):
        targets.placed([load_task("identity")], None, None)
    with pytest.raises(PlethoraError, match="each once"):
        targets.placed([SBP, SBP], None, None)
