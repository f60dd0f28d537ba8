"""Batch normalisation over ranks against torch's own on the whole batch, in float64."""

from pathlib import Path

import pytest
import torch

from pretrain.sync_bn import BatchNorm
from tests.pretrain.group import together

CHANNELS = 5
SHARES = {2: (5, 3), 4: (3, 0, 1, 4)}  # rows a rank


def drawn(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows far from zero mean, and the weights of a loss on them; (8, 5, samples) or, for 0, (8, 5)."""
    draw = torch.Generator().manual_seed(samples)
    shape = (8, CHANNELS, samples) if samples else (8, CHANNELS)
    x, w = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
    return 40 + 3 * x, w


def layer(sync: bool | None) -> torch.nn.BatchNorm1d:
    """Ours, or torch's for None, with weights of its own."""
    norm = (torch.nn.BatchNorm1d(CHANNELS) if sync is None else BatchNorm(CHANNELS, sync)).double()
    norm.weight.data.copy_(torch.linspace(0.5, 2, CHANNELS))
    norm.bias.data.copy_(torch.linspace(-1, 1, CHANNELS))
    return norm


def passes(norm: torch.nn.BatchNorm1d, samples: int, rows: slice) -> dict[str, torch.Tensor]:
    x, w = drawn(samples)
    x = x[rows].requires_grad_()
    y = norm(x)
    (torch.sin(y) * w[rows]).sum().backward()
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    return {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}


def worker(rank: int, world: int, folder: Path) -> None:
    at = sum(SHARES[world][:rank])
    rows, out = slice(at, at + SHARES[world][rank]), {}
    for samples in (0, 7):
        norm = layer(True)
        out[samples] = passes(norm, samples, rows) | {k: v.detach() for k, v in norm.named_buffers()}
    norm = layer(True)
    norm(torch.zeros(0, CHANNELS, 7, dtype=torch.float64))
    out["empty"] = {k: v.detach() for k, v in norm.named_buffers()}
    torch.save(out, folder / f"{world}.{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, list[dict]]:
    folder = tmp_path_factory.mktemp("norm")
    for world in SHARES:
        together(worker, world, folder)
    return {w: [torch.load(folder / f"{w}.{r}.pt", weights_only=True) for r in range(w)] for w in SHARES}


@pytest.mark.parametrize("samples", [0, 7])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_equal_torchs_norm_of_the_whole_batch(found, world: int, samples: int) -> None:
    reference = layer(None)
    wanted = passes(reference, samples, slice(None))
    if world == 1:
        norm = layer(True)
        parts = [passes(norm, samples, slice(None)) | dict(norm.named_buffers())]
    else:
        parts = [part[samples] for part in found[world]]
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([p[name] for p in parts]), wanted[name], atol=1e-10, rtol=1e-10)
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(p[name] for p in parts), wanted[name], atol=1e-10, rtol=1e-10)
    for name, value in reference.named_buffers():
        for part in parts:
            torch.testing.assert_close(part[name], value, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("world", [2, 4])
def test_no_row_on_any_rank_leaves_the_running_statistics(found, world: int) -> None:
    for part in found[world]:
        for name, value in layer(None).named_buffers():
            assert torch.equal(part["empty"][name], value)


def test_without_a_group_rows_may_be_missing_or_alone() -> None:
    norm = layer(False)
    assert norm(torch.zeros(0, CHANNELS, 3, dtype=torch.float64)).shape == (0, CHANNELS, 3)
    assert norm.num_batches_tracked == 0
    alone = norm(torch.full((1, CHANNELS), 3.0, dtype=torch.float64))
    torch.testing.assert_close(alone[0], norm.bias)  # a single value is its own mean
    assert norm.num_batches_tracked == 1 and torch.isfinite(norm.running_var).all()


def test_the_gradient_is_that_of_finite_differences() -> None:
    from pretrain.sync_bn import _Normalise

    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *a: _Normalise.apply(*a, 1e-5, False)[0], (x, weight, bias))


def test_half_precision_input_keeps_its_type_and_float32_statistics() -> None:
    norm = BatchNorm(CHANNELS, sync=False)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(torch.ones(1, CHANNELS, 1, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and norm.running_mean.dtype == torch.float32


def test_weights_are_torchs_by_name_and_evaluation_is_torchs() -> None:
    ours, theirs = layer(True), layer(None)
    passes(theirs, 7, slice(None))
    ours.load_state_dict(theirs.state_dict())
    x = drawn(7)[0]
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
