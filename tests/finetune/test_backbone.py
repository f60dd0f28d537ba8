"""VisionNet: what is read from the backbone, sizes, masks, what trains in which mode."""

import contextlib
import json
import re

import pytest
import timm
import torch
from torch import nn

from cluster.config import validate
from cluster.errors import PlethoraError
from finetune.imaging import Images
from finetune.networks.backbone import (
    NAMES,
    AttentionPool,
    Backbone,
    BackboneConfig,
    VisionConfig,
    VisionNet,
    create,
)

SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 2}
PREFIX = {"vit_tiny_patch16_224": 1, "vit_small_patch16_dinov3": 5, "siglip2": 0}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
TONE = {"vit_tiny_patch16_224": HALF, "vit_small_patch16_dinov3": IMAGENET, "siglip2": HALF}


def net(
    mode="lora", transform="stft", name="vit_tiny_patch16_224", seed=0, targets=None, fit="resize", **imaging
) -> VisionNet:
    table = {
        "imaging": {"transform": transform, "stride": 8, **imaging},
        "backbone": {"name": name, "weights": "random", "options": SMALL, "fit": fit},
        "mode": mode,
    }
    return VisionNet(validate(VisionConfig, table, "[method]"), targets or {"sbp": 1, "dbp": 1}, seed)


def backbone(name: str, fit="resize") -> Backbone:
    return Backbone(BackboneConfig(name=name, weights="random", options=SMALL, fit=fit), 0).eval()


def image(height: int, width: int) -> Images:
    draw = torch.Generator().manual_seed(height * width)
    return Images(
        torch.randn(2, 3, height, width, generator=draw), torch.ones(2, height, width, dtype=torch.bool)
    )


@pytest.mark.parametrize("name", PREFIX)
def test_normalisation_and_prefix_tokens_are_the_models_own(name):
    """Each model sees pixels on the mean and std that it was made with: with another's this fails."""
    found = backbone(name)
    seen: list[torch.Tensor] = []
    found.vit.patch_embed.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    shown = image(32, 48)
    tokens, valid = found(shown)
    mean, std = (torch.tensor(v)[:, None, None] for v in TONE[name])
    torch.testing.assert_close(seen[0], (shown.pixels - mean) / std)
    assert (found.base.mean, found.base.std) == TONE[name]
    assert found.prefix == PREFIX[name]
    whole = found.vit(seen[0])
    assert whole.shape[1] == PREFIX[name] + 6
    torch.testing.assert_close(tokens, whole[:, PREFIX[name] :])
    assert bool(valid.all()) and valid.shape == (2, 6)


def test_nobody_can_give_a_model_anothers_normalisation():
    for key in ("mean", "std"):
        with pytest.raises(PlethoraError, match=rf"\b{key}\b"):
            validate(BackboneConfig, {"name": "siglip2", key: list(IMAGENET[0])}, "[backbone]")
    with pytest.raises(PlethoraError, match="pretrained_cfg_overlay is set here"):
        create(NAMES["siglip2"], {"pretrained_cfg_overlay": {"mean": IMAGENET[0], "std": IMAGENET[1]}})
    with pytest.raises(PlethoraError, match="options"):
        create(NAMES["siglip2"], SMALL | {"mean": IMAGENET[0]})


@pytest.mark.parametrize(
    "name, patch, size, wanted",
    [
        ("siglip2", 16, (65, 76), (80, 80)),
        ("vit_small_patch16_dinov3", 16, (600, 600), (608, 608)),
        ("siglip2-so400m", 14, (65, 76), (70, 84)),
        ("siglip2-so400m", 14, (600, 600), (602, 602)),
    ],
)
def test_images_grow_to_the_next_multiple_of_the_models_own_patch(name, patch, size, wanted):
    found = backbone(name)
    assert found.patch == (patch, patch)
    assert found.fitted(*size) == wanted
    assert found.fitted(*wanted) == wanted


def test_resizing_is_bilinear_and_padding_leaves_the_image_alone():
    shown = image(20, 30)
    for fit in ("resize", "pad"):
        found = backbone("vit_tiny_patch16_224", fit)
        seen: list[torch.Tensor] = []
        found.vit.patch_embed.register_forward_pre_hook(
            lambda module, given, seen=seen: seen.append(given[0])
        )
        found(shown)
        plain = (shown.pixels - 0.5) / 0.5
        if fit == "resize":
            grown = nn.functional.interpolate(plain, (32, 32), mode="bilinear", align_corners=False)
            torch.testing.assert_close(seen[0], grown)
        else:
            torch.testing.assert_close(seen[0][:, :, :20, :30], plain)
            assert float(seen[0][:, :, 20:].abs().max()) == float(seen[0][..., 30:].abs().max()) == 0


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_a_token_without_a_valid_pixel_is_masked(fit):
    shown = image(40, 48)
    shown.valid[0, :, 17:] = False  # of three columns of patches the last shows nothing
    _, valid = backbone("vit_tiny_patch16_224", fit)(shown)
    assert valid[0].reshape(3, 3).tolist() == [[True, True, False]] * 3
    assert bool(valid[1].all())


def test_pooling_is_a_softmax_over_valid_tokens_alone():
    pool = AttentionPool(8)
    x = torch.randn(2, 5, 8)
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    found = pool(x, valid)
    score = x[0, :3] @ pool.score.weight[0] + pool.score.bias
    wanted = (score.softmax(0)[:, None] * x[0, :3]).sum(0)
    torch.testing.assert_close(found[0], wanted)
    x[0, 3:] = 100.0
    torch.testing.assert_close(pool(x, valid)[0], wanted)
    assert bool(pool(x, torch.zeros_like(valid)).isfinite().all())


@pytest.mark.parametrize("transform", ["stft", "complex", "recurrence", "fusion"])
@pytest.mark.parametrize("mode", ["probe", "lora", "full"])
def test_what_trains_has_a_gradient_and_the_rest_has_none(mode, transform):
    found = net(mode, transform).train()
    y = found(torch.randn(3, 1, 1200))
    assert y.shape == (3, 2) and y.dtype == torch.float32
    y.square().sum().backward()
    trains = {name for name, p in found.named_parameters() if p.requires_grad}
    assert {name for name, p in found.named_parameters() if p.grad is not None} == trains
    of_backbone = {name for name in trains if name.startswith("backbone.")}
    if mode == "probe":
        assert not of_backbone and not found.backbone.training
    elif mode == "lora":
        assert of_backbone and all("lora_" in name for name in of_backbone)
    else:
        assert trains == {name for name, _ in found.named_parameters()}
    assert ("fusion.score.weight" in trains) == (transform == "fusion")


def test_fusion_weighs_the_three_vectors_of_one_backbone_by_a_learned_score():
    found = net("probe", "fusion").eval()
    x = torch.randn(2, 1, 1200)
    single = [net("probe", name).eval() for name in ("stft", "complex", "recurrence")]
    for other in single:
        state = {k: v for k, v in found.state_dict().items() if not k.startswith("fusion.")}
        other.load_state_dict(state)
    vectors = torch.stack([other.embed(x) for other in single], dim=1)
    assert found.fusion is not None
    weight = found.fusion.score(vectors).softmax(dim=1)
    torch.testing.assert_close(found.embed(x), (weight * vectors).sum(dim=1))


def test_a_shorter_window_works_and_its_padding_leaves_no_trace():
    found = net(fit="pad").eval()
    x = torch.randn(2, 1, 1200)
    assert found(x[..., :700]).shape == (2, 2)
    samples = torch.tensor([1200, 700])
    other = x.clone()
    other[1, :, 700:] = float("nan")
    with torch.no_grad():
        torch.testing.assert_close(found(x, samples), found(other, samples))
        assert not torch.allclose(found(x, samples)[1], found(x)[1])
        torch.testing.assert_close(found(x, torch.tensor([1200, 1200])), found(x), atol=1e-5, rtol=1e-4)


def test_specaugment_acts_in_training_alone_and_as_its_draws_say():
    found = net("full", transform="fusion", spec_augment=True)
    for module in found.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x, draw = torch.randn(2, 1, 1200), torch.full((2, 4), 0.9)
    with torch.no_grad():
        plain = found.eval()(x, uniform_b4=draw)
        found.train()
        torch.testing.assert_close(found(x, uniform_b4=torch.zeros(2, 4)), plain)  # width 0
        assert not torch.allclose(found(x, uniform_b4=draw), plain)
        torch.testing.assert_close(found(x, uniform_b4=draw), found(x, uniform_b4=draw))


def test_heads_share_a_backbone_and_keep_their_columns():
    found = net(targets={"sbp": 1, "stage": 4, "dbp": 1}).eval()
    y = found(torch.randn(3, 1, 1200))
    parts = found.columns(y)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "sbp": (3, 1),
        "stage": (3, 4),
        "dbp": (3, 1),
    }
    torch.testing.assert_close(torch.cat(list(parts.values()), dim=1), y)
    widths = [layer.out_features for layer in found.heads[1].modules() if isinstance(layer, nn.Linear)]
    assert widths == [256, 4]
    with pytest.raises(PlethoraError, match="at least one target"):
        net(targets={"sbp": 0})


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = net(seed=1), net(seed=1), net(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.pool.score.weight, other.pool.score.weight)
    assert one.base.hash == same.base.hash != other.base.hash


def test_an_adapter_on_the_same_base_is_the_network_and_merging_keeps_it():
    found, fresh = net(), net()
    with torch.no_grad():
        for p in found.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
    state = found.adapter()
    assert all("lora_" in name or name.startswith(("pool.", "heads.")) for name in state)
    fresh.load_adapter(state)
    x = torch.randn(2, 1, 1200)
    with torch.no_grad():
        wanted = found.eval()(x)
        torch.testing.assert_close(fresh.eval()(x), wanted)
        found.merge()
        torch.testing.assert_close(found(x), wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(PlethoraError, match=r"does not fit this network: .*heads"):
        fresh.load_adapter({k: v for k, v in state.items() if "heads" not in k})


def test_the_first_lines_say_weights_sizes_and_what_trains():
    weights, sizes, trains = net(transform="fusion").lines()
    assert "which has seen no image; weights random: seed 0" in weights
    assert "stft 65x76 → 80x80, complex 65x76 → 80x80, recurrence 150x150 → 160x160 by resize" in sizes
    assert "patch 16, mean 0.5, 0.5, 0.5" in sizes
    assert re.search(r"mode lora: [\d,]+ of [\d,]+ parameters train", trains)
    assert json.loads(json.dumps(net().base.table()))["name"] == "vit_tiny_patch16_224"


def test_what_does_not_fit_is_told_before_the_first_step_with_what_to_do():
    with pytest.raises(PlethoraError, match=r"make 5,625 patches.*raise stride \(now 1\)"):
        net(transform="recurrence", stride=1)
    with pytest.raises(PlethoraError, match=r"1\.5|too few for n_fft"):
        net(window_s=1.5)
    with pytest.raises(PlethoraError, match=r"timm has no model 'vit_bse.*did you mean"):
        create("vit_bse_patch16_dinov3", {})
    for name in ("resnet18", "beit_base_patch16_224"):
        with pytest.raises(PlethoraError, match=rf"{name}"):
            create(name, {})


def test_a_distilled_deit_gives_its_patch_tokens_without_class_and_distillation_tokens():
    found = backbone("deit_tiny_distilled_patch16_224")
    tokens, valid = found(image(32, 48))
    assert found.prefix == 2 and tokens.shape == (2, 6, found.dim) and valid.shape == (2, 6)
    given = (image(32, 48).pixels - found.mean) / found.std
    torch.testing.assert_close(
        tokens,
        found.vit.forward_intermediates(
            given, norm=True, indices=1, output_fmt="NLC", intermediates_only=True
        )[-1],
    )


@pytest.mark.parametrize("name", timm.list_models(module="vision_transformer_hybrid"))
def test_a_hybrid_vit_is_refused_in_a_line_that_says_what_to_take(name: str):
    with pytest.raises(PlethoraError, match=r"is a hybrid.*take a plain ViT") as refused:
        create(name, {})
    assert "\n" not in str(refused.value)


def test_options_that_fit_no_model_are_one_line():
    with pytest.raises(PlethoraError, match=r"backbone\.name = 'vit_tiny_patch16_224'.*num_heads"):
        create("vit_tiny_patch16_224", {"embed_dim": 30, "num_heads": 4})


def test_every_vit_of_these_families_is_made_or_refused_in_one_line():
    families = ("vision_transformer", "deit", "eva", "vision_transformer_hybrid")
    for name in (name for family in families for name in timm.list_models(module=family)):
        with contextlib.suppress(PlethoraError), torch.device("meta"):
            create(name, {"depth": 1})
