"""Several ranks on one backbone: each learns, and is published, as it would alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import PlethoraError
from finetune.ranks import Ranks, RanksConfig
from tests.finetune.test_supervised import BATCH, IMAGING, batch
from tests.pretrain.group import EPS, together

RANKS = (2, 3, 8)
FAMILIES = {
    "fused": ("vit_tiny_patch16_224", {}),
    "rotary, q, k and v apart": ("vit_small_patch16_dinov3", {"lora": {"preset": "paper"}}),
    "qkv bias, three images": ("vit_small_patch16_dinov3_qkvb", {"imaging": {"transform": "fusion"}}),
}


def ranks(family: str = "fused", dropout: float = 0.2, **more: Any) -> Ranks:
    name, own = FAMILIES[family]
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    method = {
        "tasks": ("heart_rate",),
        "imaging": {**IMAGING, "stride": 20, "spec_augment": True, **own.get("imaging", {})},
        "backbone": {"name": name, "weights": "random", "options": options},
        "head": {"hidden": 8, "dropout": dropout},
        "lora": {"alpha": 4, "dropout": dropout, **own.get("lora", {})},
    }
    found = Ranks(RanksConfig(**{**method, "ranks": RANKS, **more}), seed=1)
    found.told(np.linspace(50, 120, 30)[:, None])
    return found


def awake(net: torch.nn.Module) -> torch.nn.Module:
    """DINOv3 starts its branches at 1e-5, which would hide all that goes on in them."""
    for name, p in net.named_parameters():
        if ".gamma_" in name:
            torch.nn.init.ones_(p)
    return net


def first_step(recipe: Any, modules: Any, frozen: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    losses = recipe.losses(modules, frozen, batch(0), 0).losses
    for loss in losses.values():
        loss.backward()
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_first_gradients_are_those_of_each_rank_alone_dropout_included(family: str) -> None:
    recipe = ranks(family)
    modules = recipe.modules()
    frozen = {"net": awake(recipe.frozen()["net"])}
    losses = first_step(recipe, modules, frozen)
    for name, module in modules.items():
        alone = recipe.alone(name)[2]
        net = awake(alone.modules()["net"])
        found = first_step(alone, {"net": net}, {})["net"]
        torch.testing.assert_close(losses[name], found, atol=1e-5, rtol=1e-5)
        trained = {k: p for k, p in net.named_parameters() if p.requires_grad}
        assert [f"body.{k}" for k in module.names] == list(trained)
        for own, (key, p) in zip(module.tensors, trained.items(), strict=True):
            assert torch.equal(own, p), f"{key} starts elsewhere"
            torch.testing.assert_close(own.grad, p.grad, atol=1e-5, rtol=1e-5)
        assert max(p.grad.abs().max() for k, p in trained.items() if "lora_B" in k) > 1e-4
    assert all(p.grad is None and not p.requires_grad for p in frozen["net"].parameters())


def test_the_encoder_of_a_rank_holds_its_own_weights() -> None:
    recipe = ranks()
    modules = recipe.modules()
    with torch.no_grad():
        for p in modules["r3"].parameters():
            p.add_(0.05)
    encoder = recipe.encoder({"r3": modules["r3"]})
    net = recipe.alone("r3")[2].modules()["net"]
    trained = [p for p in net.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, own in zip(trained, modules["r3"].tensors, strict=True):
            p.copy_(own)
        x = batch(0)["ppg"]
        torch.testing.assert_close(encoder.modes["ppg"].module.eval()(x), net.eval()(x))
        plain = recipe.encoder({"r3": recipe.modules()["r3"]}).modes["ppg"].module.eval()(x)
    assert not torch.allclose(net(x), plain)


def test_the_backbone_is_there_once_and_images_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ranks()
    modules, frozen = recipe.modules(), recipe.frozen()
    whole = sum(p.numel() for p in recipe.alone("r2")[2].modules()["net"].parameters() if not p.requires_grad)
    own = sum(p.numel() for p in modules["r8"].parameters())
    held = {p.data_ptr(): p.numel() for p in frozen["net"].parameters()}
    assert whole <= sum(held.values()) <= whole + own
    seen: list[int] = []
    frozen["net"].body.net.backbone.vit.patch_embed.register_forward_hook(
        lambda module, given, out: seen.append(len(out))
    )
    first_step(recipe, modules, frozen)
    assert seen == [BATCH]


def test_wrong_ranks_are_told() -> None:
    for more, said in (({"ranks": (2, 2)}, "each once"), ({"alphas": (1,)}, "one for each of the 3 ranks"),
                       ({"mode": "full"}, "has none")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            ranks(**more)
    assert {n: m.alpha for n, m in ranks(alphas=(4, 6, 16)).config.members.items()} == {
        "r2": 4,
        "r3": 6,
        "r8": 16,
    }
    module = ranks().modules()["r2"]
    module.tensors[0].data = torch.empty(0)  # as ZeRO-3 leaves it
    with pytest.raises(PlethoraError, match="zero_stage to 0, 1 or 2"):
        module()


def test_figures_are_each_ranks_and_the_best_ones() -> None:
    recipe = ranks()
    with torch.no_grad():
        result = recipe.losses(recipe.modules(), recipe.frozen(), batch(0), 0)
    found = recipe.summary(result.counts)
    each = [found[f"mae/heart_rate/r{r}"] for r in RANKS]
    assert found["mae/heart_rate"] == min(each)
    assert found["loss/net"] == pytest.approx(min(float(x) for x in result.losses.values()))
    history = {"step": 3.0, "loss/r3": 0.5, "loss/r2": 0.1, **found}
    alone = recipe.figures_alone("r3", history)
    assert alone == {"step": 3.0, "loss/net": 0.5, "mae/heart_rate": each[1]}


# ---------------------------------------------------------------- engines

STEPS = 3


def worker(rank: int, world: int, folder: Path) -> None:
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap
    from pretrain.loop import optimize

    device, out = torch.device("cpu"), {}

    def trained(recipe: Any, stage: int, rates: dict[str, float]) -> dict[str, Any]:
        engines = {
            name: wrap(
                name, module, Optim(eps=EPS), Engine(zero_stage=stage, clip=0.05), BATCH // world, 1, device
            )
            for name, module in recipe.modules().items()
        }
        frozen = recipe.frozen()
        for step in range(STEPS):
            mine = {k: v.chunk(world)[rank] for k, v in batch(step).items()}
            applied, _, _ = optimize(recipe, engines, frozen, [mine], step, rates, 0, rank)
            assert applied
        return {name: engine.weights() for name, engine in engines.items()}

    recipe = ranks()
    rates = {"r2": 1e-2, "r3": 3e-3, "r8": 1e-2}
    for stage in (0, 1):
        found = trained(recipe, stage, rates)
        out[f"{stage}"] = {n: recipe.weights_alone(n, w)["net"] for n, w in found.items()}
    out["alone"] = {n: trained(recipe.alone(n)[2], 0, {"net": rates[n]})["net"] for n in found}
    if rank == 0:
        torch.save(out, folder / "out.pt")


def test_after_some_steps_each_rank_is_where_it_would_be_alone_with_its_own_clipping_and_rate(
    tmp_path: Path,
) -> None:
    together(worker, 2, tmp_path)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    start = ranks().alone("r2")[2].modules()["net"].state_dict()
    for name, alone in found["alone"].items():
        for stage in ("0", "1"):
            assert found[stage][name].keys() == alone.keys()
            for key, value in alone.items():
                if key.endswith("pool.score.bias"):  # softmax takes it away: its gradient is rounding
                    continue
                torch.testing.assert_close(found[stage][name][key], value, atol=2e-4, rtol=2e-3)
    assert not torch.allclose(found["alone"]["r2"]["body.pool.score.weight"], start["body.pool.score.weight"])


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def finished(ray_session: Any, corpus: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    from finetune.commands.vision import Vision, run
    from finetune.reports.sheet import write

    home = tmp_path_factory.mktemp("runs")
    file = home / "run.toml"
    file.write_text(
        f"""
        recipe = "finetune.ranks:Ranks"
        corpus = "{corpus}"
        storage = "{home / "storage"}"
        name = "many"
        steps = 12
        batch = 16
        validate_every = 4
        checkpoint_every = 12
        split = {{ val = 0.25, test = 0.3 }}
        select = {{ metric = "loss/*" }}
        engine = {{ zero_stage = 0 }}
        [method]
        tasks = ["heart_rate"]
        ranks = [2, 4]
        backbone = {{ name = "vit_tiny_patch16_224", weights = "random", options = {{ embed_dim = 16, depth = 1, num_heads = 2 }} }}
        [optim]
        lr = 3e-3
        eps = 1e-3
        [optim_of.r4]
        lr = 1e-2
        """  # noqa: E501
    )
    return write(run(Vision(run=str(file)))) | {"home": home / "storage", "file": str(file)}


def test_each_rank_has_a_bundle_of_its_own_and_the_best_is_the_runs(finished: dict) -> None:
    from cluster import bundle as bundles
    from finetune.adapter import open_adapter

    uris = {name: str(finished["home"] / "many" / name / "bundle") for name in ("r2", "r4")}
    told = bundles.open(finished["bundle"]).metrics["selected"]
    assert told["beside"].keys() == uris.keys() and told["module"] == min(
        told["beside"], key=told["beside"].get
    )
    state = open_adapter(finished["bundle"]).net.state_dict()
    for name, uri in uris.items():
        assert bundles.verify(uri)["kind"] == "adapter"
        opened = bundles.open(uri)
        run, selected = opened.config["run"], opened.metrics["selected"]
        assert run["recipe"] == "finetune.supervised:Vision" and run["optim_of"] == {}
        assert (
            f"r{run['method']['lora']['r']}" == name and run["optim"]["lr"] == {"r2": 3e-3, "r4": 1e-2}[name]
        )
        best = min(opened.metrics["history"], key=lambda found: found["loss/net"])
        assert (
            selected["step"] == best["step"] and selected["value"] == best["loss/net"] == told["beside"][name]
        )
        own = open_adapter(uri).net.state_dict()
        same = own.keys() == state.keys() and all(torch.equal(own[k], state[k]) for k in own)
        assert same == (name == told["module"])
    assert finished["held_out"][0]["tasks"][0]["rows"][0]["name"] == "model"


@pytest.mark.slow
def test_a_run_of_one_rank_gives_the_bundle_that_all_at_once_gave_it(finished: dict) -> None:
    from safetensors.torch import load_file

    from cluster import bundle as bundles
    from cluster import config
    from pretrain import driver
    from pretrain.config import RunConfig

    sets = ['recipe="finetune.supervised:Vision"', "name=alone", "optim.lr=1e-2", "select.metric=loss/net"]
    run = config.load(finished["file"], RunConfig, sets)
    method = {k: v for k, v in run.method.items() if k != "ranks"} | {"lora": {"r": 4}}
    alone = bundles.open(driver.launch(run.model_copy(update={"method": method, "optim_of": {}}))["bundle"])
    ours = bundles.open(str(finished["home"] / "many" / "r4" / "bundle"))
    for a, b in zip(alone.metrics["history"], ours.metrics["history"], strict=True):
        assert a.keys() == b.keys()
        assert a["loss/net"] == pytest.approx(b["loss/net"], rel=1e-4)
    a, b = (load_file(found.path("model.safetensors")) for found in (alone, ours))
    assert a.keys() == b.keys()
    for key in a.keys() - {"net.body.pool.score.bias"}:  # softmax takes it away: its gradient is rounding
        torch.testing.assert_close(a[key], b[key], atol=1e-4, rtol=1e-3)
