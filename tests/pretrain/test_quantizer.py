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


def step(net: Quantizer, *micros: tuple[torch.Tensor, torch.Tensor]) -> list:
    """What each micro-batch (features, keys) of an optimizer step gives, as the loop calls it."""
    found = [net(*micro) for micro in micros]
    if net.waits:
        net.start()
        found = [net(*micro) for micro in micros]
    net.move()
    return found


def state(net: Quantizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def unchanged(net: Quantizer, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_training_starts_the_codebook_on_the_data_and_assigns_the_nearest_code():
    net = quantizer().train()
    assert not net.started
    z = blobs()
    ((_, ids, commitment),) = step(net, (z, keys()))
    assert net.started
    torch.testing.assert_close(net.codebook.norm(dim=-1), torch.ones(8))
    assert commitment < 0.05  # 0.5 for random codes
    assert len(ids.unique()) >= 6


def test_the_quantised_value_is_the_code_and_its_gradient_the_identity():
    net = quantizer().train()
    step(net, (blobs(), keys()))
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
    step(net.train(), (blobs(), keys()))
    before = state(net)
    net.codes(blobs(seed=3))
    net.eval()(blobs(seed=3), keys())
    assert unchanged(net, before)


def test_training_moves_the_codebook_by_ema():
    net = quantizer(dead_share=0.0).train()
    step(net, (blobs(), keys()))
    book, size = net.codebook.clone(), net.vq._codebook.cluster_size[0].clone()
    total = net.vq._codebook.embed_avg[0].clone()
    z = F.normalize(blobs(seed=5), dim=-1)
    ((_, ids, _),) = step(net, (z, keys()))
    assert torch.equal(ids, (z @ book.T).argmax(-1))
    one_hot = F.one_hot(ids.flatten(), 8).float()
    torch.testing.assert_close(net.vq._codebook.cluster_size[0], 0.9 * size + 0.1 * one_hot.sum(0))
    wanted = F.normalize(0.9 * total + 0.1 * one_hot.T @ z.flatten(0, 1), dim=-1)
    torch.testing.assert_close(net.codebook, wanted, atol=1e-4, rtol=1e-4)


def test_an_unused_code_is_re_seeded_from_the_batch():
    net = quantizer().train()
    z = F.normalize(blobs(), dim=-1)
    step(net, (z, keys()))
    book = net.vq._codebook
    book.embed[0, 3] = -z[0, 0]  # nobody's direction
    book.embed_avg[0, 3] = -z[0, 0] * 1e-6
    book.cluster_size[0, 3] = 1e-6
    step(net, (z, keys()))
    nearest = (net.codebook[3] @ z.flatten(0, 1).T).max()
    assert nearest.item() == pytest.approx(1.0, abs=1e-5)


def test_autocast_leaves_the_codebook_float32():
    net = quantizer().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ((quantised, _, commitment),) = step(net, (blobs().bfloat16(), keys()))
    assert quantised.dtype == commitment.dtype == net.codebook.dtype == torch.float32


def test_perplexity_counts_evenly_used_codes():
    net = quantizer()
    net.vq._codebook.cluster_size[0] = torch.tensor([5.0] * 4 + [0.0] * 4)
    assert net.perplexity.item() == pytest.approx(4.0)


SPLITS = {(1, 1), (1, 8), (2, 1), (2, 4)}  # ranks, micro-batches a step


def train_part(rank: int, world: int, folder: Path) -> None:
    torch.manual_seed(100 + rank)  # each rank's own generator must not matter
    for micros in (m for w, m in sorted(SPLITS) if w == world):
        net = quantizer(dead_share=0.5, decay=0.99).train()
        for number in range(4):
            z, k = blobs(seed=number), keys(start=100 * number)
            parts = zip(z.chunk(world * micros), k.chunk(world * micros), strict=True)
            step(net, *list(parts)[rank * micros : (rank + 1) * micros])
            if number == 0:
                first = net.codebook.clone()
        torch.save(net.state_dict() | {"first": first}, folder / f"{world}.{micros}.{rank}.pt")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codebooks")
    train_part(0, 1, folder)
    together(train_part, 2, folder)
    return folder


@pytest.mark.parametrize(("world", "micros"), sorted(SPLITS - {(1, 1)}))
def test_ranks_and_micro_batches_learn_the_codebook_that_one_large_batch_would(split, world, micros):
    """Its k-means start, its decay and its dead codes, too."""
    whole = torch.load(split / "1.1.0.pt")
    ranks = [torch.load(split / f"{world}.{micros}.{rank}.pt") for rank in range(world)]
    for name, value in whole.items():
        assert all(torch.equal(rank[name], ranks[0][name]) for rank in ranks)
        torch.testing.assert_close(ranks[0][name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("micros", [1, 4, 8])
def test_the_count_of_an_unused_code_decays_once_a_step(micros):
    net = quantizer(decay=0.99, kmeans=False, dead_share=0.0).train()
    net.vq._codebook.cluster_size.fill_(100.0)
    z = torch.eye(4)[0].expand(64, 1, 4)  # all of one code
    step(net, *zip(z.chunk(micros), keys(64, 1).chunk(micros), strict=True))
    assert net.vq._codebook.cluster_size.min().item() == pytest.approx(99.0)
    assert net.vq._codebook.cluster_size.max().item() == pytest.approx(99.0 + 0.01 * 64)


def test_one_rank_and_one_micro_batch_learn_what_the_library_does():
    """Its own forward pass, k-means and update, fed with the same draws, bit by bit."""
    ours, theirs = quantizer(decay=0.99).train(), quantizer(decay=0.99).train()
    for number in range(5):
        z, k = blobs(seed=number), keys(start=100 * number)
        step(ours, (z, k))
        book = theirs.vq._codebook
        book.threshold_ema_dead_code = 0.1 * k.numel() / 8
        book.reset_cluster_size = 2 * book.threshold_ema_dead_code
        theirs._sampler.keys = k
        theirs.vq(F.normalize(z, dim=-1))
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in state(ours).items())


def test_a_forward_pass_alone_moves_nothing():
    net = quantizer().train()
    before = state(net)
    net(blobs(), keys())
    assert net.waits and unchanged(net, before)
    step(net, (blobs(), keys()))
    before = state(net)
    net(blobs(seed=1), keys())
    assert unchanged(net, before)
