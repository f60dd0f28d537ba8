"""Adapters: counts on the meta device, functions that stay the same, what is and is not adapted."""

import pytest
import torch
from torch import nn

from cluster.errors import PlethoraError
from finetune.networks import lora
from finetune.networks.backbone import NAMES, create
from finetune.networks.lora import LoRAConfig, SplitQKV

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}
FAMILIES = ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"]


@pytest.fixture(params=FAMILIES)
def vit(request) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = create(request.param, SMALL).eval()
        for name, p in found.named_parameters():  # timm starts biases at 0, which would hide a lost one
            if name.endswith("bias"):
                nn.init.normal_(p, std=0.1)
            if ".gamma_" in name:  # and DINOv3's branches at 1e-5, which would hide all else
                nn.init.ones_(p)
        return found


def trained(vit: nn.Module) -> nn.Module:
    """With adapters that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, p in vit.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.1)
    return vit


@pytest.mark.parametrize("name", ["dinov3", "siglip2"])
@pytest.mark.parametrize("preset, wanted", [("paper", 589_824), ("fused", 442_368)])
def test_a_base_size_vit_gets_the_papers_number_of_parameters_at_rank_8(name, preset, wanted):
    with torch.device("meta"):
        vit = create(NAMES[name], {})
        assert lora.add(vit, LoRAConfig(preset=preset)) == wanted
    assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == wanted


@pytest.mark.parametrize("r", [4, 16])
def test_parameters_grow_with_the_rank(r):
    with torch.device("meta"):
        assert lora.add(create(NAMES["siglip2"], {}), LoRAConfig(r=r)) == 442_368 * r // 8


@pytest.mark.parametrize("preset", ["paper", "fused"])
def test_fresh_adapters_change_nothing_trained_ones_do_and_merging_keeps_that(vit, preset):
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    names = set(vit.state_dict())
    with torch.no_grad():
        plain = vit(x)
        lora.add(vit, LoRAConfig(preset=preset, r=4))
        torch.testing.assert_close(vit.eval()(x), plain, atol=1e-6, rtol=1e-5)
        adapted = trained(vit)(x)
        assert float((adapted - plain).abs().max()) > 1e-2
        lora.merge(vit)
        torch.testing.assert_close(vit(x), adapted, atol=1e-5, rtol=1e-4)
    assert set(vit.state_dict()) == names
    assert not any("lora" in type(m).__module__ for m in vit.modules())


@pytest.mark.parametrize("preset", ["paper", "fused"])
def test_every_adapter_of_every_projection_is_felt(vit, preset):
    """None is passed by, as timm does where it adds biases to qkv itself."""
    lora.add(vit, LoRAConfig(preset=preset, r=2, dropout=0.0))
    trained(vit)(torch.randn(1, 3, 32, 32)).square().sum().backward()
    adapters = {n: p for n, p in vit.named_parameters() if p.requires_grad}
    per_block = 8 if preset == "paper" else 4
    assert len(adapters) == 2 * per_block
    for name, p in adapters.items():
        assert "lora_" in name and p.grad is not None and float(p.grad.abs().max()) > 0, name


def test_the_patch_embeddings_projection_is_left_alone(vit):
    lora.add(vit, LoRAConfig())
    assert isinstance(vit.patch_embed.proj, nn.Conv2d)
    assert all(".attn." in n for n, p in vit.named_parameters() if p.requires_grad)


def test_a_split_projection_is_the_fused_one():
    fused = nn.Linear(12, 36)
    split = SplitQKV(fused)
    x = torch.randn(5, 12)
    torch.testing.assert_close(split(x), fused(x))
    back = split.fused()
    assert torch.equal(back.weight, fused.weight) and torch.equal(back.bias, fused.bias)


def test_alpha_scales_what_the_adapter_adds():
    found = []
    for alpha in (16, 32):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vit = nn.Module()
            vit.blocks = nn.ModuleList([nn.Module()])
            vit.blocks[0].attn = nn.Module()
            vit.blocks[0].attn.qkv = nn.Linear(6, 18)
            vit.blocks[0].attn.proj = nn.Linear(6, 6)
            before = vit.blocks[0].attn.qkv.weight.detach().clone()
            lora.add(vit, LoRAConfig(alpha=alpha))
            trained(vit)
            lora.merge(vit)
            found.append(vit.blocks[0].attn.qkv.weight.detach() - before)
    torch.testing.assert_close(found[1], 2 * found[0])


def test_a_network_without_attention_is_refused():
    with pytest.raises(PlethoraError, match='mode = "probe" or "full"'):
        lora.add(nn.Sequential(nn.Linear(3, 3)), LoRAConfig())
