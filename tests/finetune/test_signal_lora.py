"""LoRA on encoders of signals: which layers, which rank, and nothing lost by merging."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from cluster.errors import PlethoraError
from finetune.networks import signal_lora
from pretrain.net1d import Net1D
from pretrain.recipes.m2ae import M2AE, M2AEConfig
from pretrain.recipes.sigma import Masked, MaskedConfig

SAMPLES = 500


def convolutions() -> nn.Module:
    """Plain and grouped convolutions, of stride 2 and padded by hand, with squeeze-and-excitation."""
    return Net1D(1, (16, 32), (1, 1), 3, 16, 8, 0.1)


def attention() -> nn.Module:
    recipe = Masked(MaskedConfig(window_s=10, patch=50, dim=16, depth=1, heads=2), 0)
    return recipe.encoder(recipe.modules()).modes["ppg"].module


def both() -> nn.Module:
    recipe = M2AE(M2AEConfig(dim=16, encoder_depth=1, bottleneck_depth=1, decoder_depth=1, heads=2), 0)
    return recipe.encoder(recipe.modules()).modes["ppg"].module


MADE: dict[str, Callable[[], nn.Module]] = {"net1d": convolutions, "sigma": attention, "m2ae": both}


@pytest.fixture(params=MADE)
def network(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MADE[request.param]().eval()


def x() -> torch.Tensor:
    return torch.randn(3, 1, SAMPLES, generator=torch.Generator().manual_seed(1))


def trained(network: nn.Module) -> None:
    """Adapters as training leaves them: B is no longer zero."""
    generator = torch.Generator().manual_seed(2)
    for name, p in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.2, generator=generator)


def test_fresh_adapters_change_nothing_trained_ones_do_and_merging_keeps_that(network: nn.Module) -> None:
    before, names, weights = network(x()), list(network.state_dict()), copy.deepcopy(network.state_dict())
    layers = signal_lora.add(network, [x()[:1]], 2)
    torch.testing.assert_close(network(x()), before)
    trained(network)
    after = network(x())
    assert (after - before).abs().max() > 1e-2 * before.abs().max()
    signal_lora.merge(network)
    torch.testing.assert_close(network(x()), after, atol=1e-5, rtol=1e-5)
    state = network.state_dict()
    assert list(state) == names
    changed = {name for name in names if not torch.equal(state[name], weights[name])}
    assert changed == {f"{layer}.weight" for layer in layers}


@pytest.mark.parametrize("rank", [1, 3])
def test_what_an_adapter_adds_to_a_weight_has_its_rank(network: nn.Module, rank: int) -> None:
    weights = copy.deepcopy(network.state_dict())
    layers = signal_lora.add(network, [x()[:1]], rank)
    trained(network)
    signal_lora.merge(network)
    ranks = set()
    for layer in layers:
        added = (network.get_submodule(layer).weight - weights[f"{layer}.weight"]).detach().double()
        sizes = torch.linalg.svdvals(added.flatten(1))
        ranks.add(int((sizes > 1e-5 * sizes[0]).sum()))
    assert max(ranks) == rank


def test_only_adapters_train_and_every_one_of_them_is_felt(network: nn.Module) -> None:
    signal_lora.add(network, [x()[:1]], 2)
    trained(network)
    network(x()).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.requires_grad == ("lora_" in name)
        if p.requires_grad:
            assert p.grad is not None and p.grad.abs().max() > 0, name


def test_convolutions_and_attention_are_adapted_and_what_the_mode_never_calls_is_not() -> None:
    found = signal_lora.passed(convolutions(), [x()[:1]])
    assert {"stem", "blocks.0.conv1", "blocks.1.conv3", "blocks.0.squeeze"} < set(found)
    assert "blocks.1.conv2" not in found  # grouped
    found = signal_lora.passed(attention(), [x()[:1]])
    assert any(name.endswith("attn.qkv") for name in found) and any(
        name.endswith("attn.proj") for name in found
    )
    found = signal_lora.passed(both(), [x()[:1]])
    assert any(".encoders.ppg." in name for name in found)
    assert not any("decoders" in name or ".encoders.ecg." in name for name in found)


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(PlethoraError, match=r"finds no linear layer .* in Flatten: train it whole"):
        signal_lora.add(nn.Flatten(), [x()], 2)
