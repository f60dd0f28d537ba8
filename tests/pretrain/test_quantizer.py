from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pretrain.layers import keyed_uniform
from pretrain.quantizer import Quantizer
from tests.pretrain.group import together


def quantizer(size: int = 8, **kwargs) -> Quantizer:
    return Quantizer(**{"dim": 4, "size": size, "decay": 0.9, "kmeans": True, "dead_share": 0.1, **kwargs})


def blobs(batch: int = 16, n: int = 10, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(7)), dim=-1)
    return centres[torch.randint(0, 8, (batch, n), generator=draw)] + 0.02 * torch.randn(
        batch, n, 4, generator=draw
    )


def keys(batch: int = 16, n: int = 10, start: int = 0) -> torch.Tensor:
    return keyed_uniform(torch.arange(start, start + batch), n, 1)


def state(net: Quantizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def unchanged(net: Quantizer, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_training_starts_the_codebook_on_the_data_and_assigns_the_nearest_code():
    net = quantizer().train()
    assert not net.started
    z = blobs()
    _, ids, commitment = net(z, keys())
    assert net.started
    torch.testing.assert_close(net.codebook.norm(dim=-1), torch.ones(8))
    assert commitment < 0.05  # 0.5 for random codes
    assert len(ids.unique()) >= 6


def test_the_quantised_value_is_the_code_and_its_gradient_the_identity():
    net = quantizer().train()
    net(blobs(), keys())
    net.eval()
    z = F.normalize(blobs(seed=1), dim=-1).requires_grad_()
    quantised, ids, _ = net(z, keys())
    torch.testing.assert_close(quantised, net.codebook[ids])
    weight = torch.randn_like(z)
    (g,) = torch.autograd.grad((quantised * weight).sum(), z)
    unit = z.detach()  # the way through the normalisation remains
    torch.testing.assert_close(g, weight - unit * (unit * weight).sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_evaluation_touches_nothing_not_even_an_unstarted_codebook():
    net = quantizer().eval()
    before = state(net)
    net(blobs(), keys())
    net.codes(blobs())
    assert unchanged(net, before) and not net.started
    net.train()(blobs(), keys())
    before = state(net)
    net.codes(blobs(seed=3))
    net.eval()(blobs(seed=3), keys())
    assert unchanged(net, before)


def test_training_moves_the_codebook_by_ema():
    net = quantizer(dead_share=0.0).train()
    net(blobs(), keys())
    book, size = net.codebook.clone(), net.vq._codebook.cluster_size[0].clone()
    total = net.vq._codebook.embed_avg[0].clone()
    z = F.normalize(blobs(seed=5), dim=-1)
    _, ids, _ = net(z, keys())
    assert torch.equal(ids, (z @ book.T).argmax(-1))
    one_hot = F.one_hot(ids.flatten(), 8).float()
    torch.testing.assert_close(net.vq._codebook.cluster_size[0], 0.9 * size + 0.1 * one_hot.sum(0))
    wanted = F.normalize(0.9 * total + 0.1 * one_hot.T @ z.flatten(0, 1), dim=-1)
    torch.testing.assert_close(net.codebook, wanted, atol=1e-4, rtol=1e-4)


def test_an_unused_code_is_re_seeded_from_the_batch():
    net = quantizer().train()
    z = F.normalize(blobs(), dim=-1)
    net(z, keys())
    book = net.vq._codebook
    book.embed[0, 3] = -z[0, 0]  # nobody's direction
    book.embed_avg[0, 3] = -z[0, 0] * 1e-6
    book.cluster_size[0, 3] = 1e-6
    net(z, keys())
    nearest = (net.codebook[3] @ z.flatten(0, 1).T).max()
    assert nearest.item() == pytest.approx(1.0, abs=1e-5)


def test_autocast_leaves_the_codebook_float32():
    net = quantizer().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantised, _, commitment = net(blobs().bfloat16(), keys())
    assert quantised.dtype == commitment.dtype == net.codebook.dtype == torch.float32


def test_perplexity_counts_evenly_used_codes():
    net = quantizer()
    net.vq._codebook.cluster_size[0] = torch.tensor([5.0] * 4 + [0.0] * 4)
    assert net.perplexity.item() == pytest.approx(4.0)


def train_part(rank: int, world: int, folder: Path) -> None:
    torch.manual_seed(100 + rank)  # each rank's own generator must not matter
    net = quantizer(dead_share=0.5).train()
    for step in range(4):
        share = 16 // world
        part = slice(rank * share, (rank + 1) * share)
        net(blobs(seed=step)[part], keys(start=100 * step)[part])
    torch.save(net.state_dict(), folder / f"{world}.{rank}.pt")


def test_two_ranks_learn_the_codebook_that_one_would(tmp_path):
    train_part(0, 1, tmp_path)
    together(train_part, 2, tmp_path)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1.0", "2.0", "2.1"))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=1e-4, rtol=1e-4)
