"""Contrastive terms against a float64 loop over rows, in one process and over real process groups."""

import math
from pathlib import Path

import pytest
import torch

from pretrain.contrastive import Scale, held_out, info_nce, metrics, uniformity
from tests.pretrain.group import together

ROWS, WIDTH = 8, 6
# name: (arguments of info_nce, absent rows); "none here": ranks 1 of 2, and 2 and 3 of 4, have no pair at all
CASES: dict[str, tuple[dict, tuple[int, ...]]] = {
    "global": ({}, ()),
    "absent": ({}, (1, 5, 6)),
    "none here": ({}, (4, 5, 6, 7)),
    "nowhere": ({}, tuple(range(ROWS))),
    "subjects": ({"subjects": True}, (3,)),
    "within": ({"within": True, "subjects": True}, (2,)),
    "local": ({"negatives": "local"}, ()),
}
SUBJECTS = torch.tensor([0, 1, 1, 2, 3, 0, 3, 3])


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of both sides, and the weight that both share."""
    draw = torch.Generator().manual_seed(4)
    x, y = (torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64) for _ in range(2))
    return x, x + 0.5 * y, torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64)


def steps(rank: int, world: int, name: str) -> dict[str, torch.Tensor]:
    """Loss and gradients of one case as engines see them: averaged over ranks."""
    more, absent = CASES[name]
    x, y, start = drawn()
    valid = torch.ones(ROWS, dtype=torch.bool)
    valid[list(absent)] = False
    x, y, valid, subjects = (part.chunk(world)[rank] for part in (x, y, valid, SUBJECTS))
    weight, scale = start.clone().requires_grad_(), Scale().double()
    options = {k: v for k, v in more.items() if k != "subjects"}
    named = subjects if more.get("subjects") else None
    loss = info_nce(x @ weight, torch.tanh(y @ weight), scale(), valid, named, **options)
    loss.backward()
    assert weight.grad is not None and scale.log.grad is not None
    found = {"loss": loss.detach(), "weight": weight.grad, "scale": scale.log.grad}
    if world > 1:
        for value in found.values():
            torch.distributed.all_reduce(value)
            value /= world
    return found


def worker(rank: int, world: int, folder: Path) -> None:
    found = {name: steps(rank, world, name) for name in CASES}
    if rank == 0:
        torch.save(found, folder / f"{world}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict]:
    folder = tmp_path_factory.mktemp("contrastive")
    for world in (2, 4):
        together(worker, world, folder)
    one = {name: steps(0, 1, name) for name in CASES}
    return {1: one} | {w: torch.load(folder / f"{w}.pt", weights_only=True) for w in (2, 4)}


def by_hand(name: str) -> dict[str, torch.Tensor]:
    """The definition, a row at a time."""
    more, absent = CASES[name]
    x, y, start = drawn()
    weight = start.clone().requires_grad_()
    log_scale = Scale().double().log.detach().squeeze().requires_grad_()
    a, b = x @ weight, torch.tanh(y @ weight)
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    there = [i for i in range(ROWS) if i not in absent]
    total = torch.zeros((), dtype=torch.float64) + 0 * (weight.sum() + log_scale)
    for i in there:
        others = [j for j in there if j != i and not (more.get("subjects") and SUBJECTS[i] == SUBJECTS[j])]
        for anchor, far, near in ((a, b, a), (b, a, b)):
            values = [log_scale.exp() * (anchor[i] @ far[j]) for j in [i, *others]]
            if more.get("within"):
                values += [log_scale.exp() * (anchor[i] @ near[j]) for j in others]
            total = total + (torch.stack(values).logsumexp(0) - values[0]) / 2
    loss = total / max(len(there), 1)
    loss.backward()
    assert weight.grad is not None and log_scale.grad is not None
    return {"loss": loss.detach(), "weight": weight.grad, "scale": log_scale.grad[None]}


@pytest.mark.parametrize("name", [name for name in CASES if name != "local"])
def test_one_process_computes_the_definition(name: str) -> None:
    found = steps(0, 1, name)
    for key, value in by_hand(name).items():
        torch.testing.assert_close(found[key], value, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", [name for name in CASES if name != "local"])
def test_workers_together_have_the_loss_and_gradients_of_one(found, name: str, world: int) -> None:
    for key, value in found[1][name].items():
        torch.testing.assert_close(found[world][name][key], value, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("world", [2, 4])
def test_local_negatives_depend_on_the_number_of_workers(found, world: int) -> None:
    assert torch.equal(found[1]["local"]["loss"], found[1]["global"]["loss"])
    for key, value in found[1]["local"].items():
        assert (found[world]["local"][key] - value).abs().max() > 0.01 * value.abs().max(), key


def test_no_pair_anywhere_is_a_loss_of_zero_without_gradient(found) -> None:
    for world in (1, 2, 4):
        assert all(not value.any() for value in found[world]["nowhere"].values())


def test_absent_rows_may_hold_anything(found) -> None:
    x, y, _ = drawn()
    valid = torch.tensor([True, False] * 4)
    y = y.requires_grad_()
    loss = info_nce(x, torch.where(valid[:, None], y, 0.0), 5.0, valid)
    (grad,) = torch.autograd.grad(loss, y)
    assert torch.equal(loss, info_nce(x, torch.where(valid[:, None], y, 1e6), 5.0, valid))
    assert torch.isfinite(grad).all() and not grad[~valid].any() and grad[valid].any()


def test_half_precision_embeddings_are_contrasted_in_float32() -> None:
    x, y, _ = (part.bfloat16() for part in drawn())
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(x, y, Scale()())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, info_nce(x.float(), y.float(), Scale()()))


def test_the_scale_starts_at_the_temperature_and_comes_back_from_its_bounds() -> None:
    scale = Scale(0.07, largest=100.0)
    assert scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    for start, bound in ((9.0, 100.0), (-3.0, 1.0)):
        scale.log.data.fill_(start)
        assert scale().item() == pytest.approx(bound, rel=1e-6)
        inwards = math.copysign(1.0, start)  # a loss that falls towards the allowed range
        for sign, passes in ((inwards, True), (-inwards, False)):
            (grad,) = torch.autograd.grad(sign * scale(), scale.log)
            assert bool(grad != 0) == passes


def test_retrieval_counts_as_a_sorted_list_does() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(40, 5, generator=draw), dim=1) for _ in range(2))
    b = torch.nn.functional.normalize(a + 1.2 * b, dim=1)
    found = metrics(a, b)
    for name, x, y in (("ab", a, b), ("ba", b, a)):
        places = [(x[i] @ y.T).argsort(descending=True).tolist().index(i) for i in range(40)]
        for k in (1, 5):
            assert found[f"recall{k}_{name}"] == pytest.approx(sum(p < k for p in places) / 40)
        assert 0.1 < found[f"recall1_{name}"] < found[f"recall5_{name}"] < 1
    assert found["chance"] == pytest.approx(1 / 40)
    assert found["alignment"] == pytest.approx(float((2 - 2 * (a * b).sum(1)).mean()), rel=1e-5)
    far = [math.exp(-2 * float((a[i] - a[j]).square().sum())) for i in range(40) for j in range(i)]
    assert uniformity(a) == pytest.approx(math.log(sum(far) / len(far)), rel=1e-5)


def test_constant_embeddings_retrieve_nothing() -> None:
    same = torch.ones(10, 4) / 2
    assert metrics(same, same)["recall5_ab"] == 0


def test_galleries_hold_each_subject_once_and_do_not_depend_on_the_cut() -> None:
    x, y, _ = drawn()
    whole_loss, whole = held_out(x, y, 3.0, SUBJECTS, size=4)
    parts = [held_out(x[i : i + 4], y[i : i + 4], 3.0, SUBJECTS[i : i + 4], size=4) for i in (4, 0)]
    torch.testing.assert_close(whole_loss, (parts[0][0] + parts[1][0]) / 2)
    for name, value in whole.items():
        torch.testing.assert_close(value, (parts[0][1][name] + parts[1][1][name]) / 2)
    kept = [0, 1, 3]  # row 2 repeats subject 1
    torch.testing.assert_close(parts[1][0], info_nce(x[kept], y[kept], 3.0))
    assert parts[1][1]["chance"] == pytest.approx(1 / 3)


def test_a_held_out_batch_without_a_pair_gives_zeros_of_the_same_names() -> None:
    x, y, _ = drawn()
    loss, found = held_out(x, y, 3.0, SUBJECTS, 4, valid_n=torch.zeros(ROWS, dtype=torch.bool))
    assert loss == 0 and found.keys() == held_out(x, y, 3.0, SUBJECTS, 4)[1].keys()
    assert not any(found.values())
