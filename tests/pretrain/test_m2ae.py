"""M2AE: complementary masks, absent modalities, workers together train as one, what is published."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.config import load
from pretrain.config import RunConfig
from pretrain.export import difference, export_onnx
from pretrain.layers import count
from pretrain.losses import mean_where
from pretrain.m2ae_net import Bottleneck, M2AENet, fuse, scaled
from pretrain.recipe import build
from pretrain.recipes.m2ae import M2AE, M2AEConfig, complementary, stretched, stretches
from tests.pretrain.group import same, together, trained
from tests.pretrain.test_anyppg import batch as paired

RUNS = Path(__file__).parents[2] / "pretrain" / "runs" / "m2ae"
STEPS, ROWS = 5, 8
SMALL = {
    "window_s": 4.0,
    "rate": 50.0,
    "ecg_band": (0.5, 20.0),
    "patch": 10,
    "dim": 16,
    "encoder_depth": 1,
    "bottleneck_depth": 1,
    "decoder_depth": 1,
    "heads": 2,
    "projection": 8,
    "gallery": 4,
}


def recipe(**more) -> M2AE:
    return M2AE(M2AEConfig(**{**SMALL, **more}), seed=0)


def batch(step: int, masked: bool = False) -> dict[str, torch.Tensor]:
    """As AnyPPG's, both at 50 Hz: mixed, PPG alone in a rank's whole share, ECG alone throughout."""
    out = paired(step, masked)
    return out | {"ecg": out["ecg"][..., ::2].contiguous()}


def there(ppg: bool, ecg: bool, n: int = 64) -> dict[str, torch.Tensor]:
    return {"ppg": torch.full((n,), ppg), "ecg": torch.full((n,), ecg)}


def test_what_is_hidden_in_one_modality_is_seen_in_the_other() -> None:
    c, ids = M2AEConfig(), torch.arange(400)
    ppg, ecg = complementary(ids, c, 50, there(True, True, 400), 0, 7)
    assert torch.equal(ppg, ~ecg)
    more = torch.maximum(ppg.float().mean(dim=1), ecg.float().mean(dim=1))
    assert abs(more.mean() - c.mask_ratio) < 0.02 and more.min() > 0.55 and more.max() < 0.95
    assert 0.4 < (ppg.float().mean(dim=1) > 0.5).float().mean() < 0.6
    changes = ppg.diff(dim=1).nonzero()
    gaps = [changes[changes[:, 0] == row, 1].diff() for row in range(400)]
    assert all((gap % c.span == 0).all() for gap in gaps)  # whole spans, from a drawn place on
    starts = torch.cat([changes[changes[:, 0] == row, 1][:1] for row in range(400)]) % c.span
    assert len(starts.unique()) == c.span


@pytest.mark.parametrize(("ppg", "ecg"), [(True, False), (False, True)])
def test_a_window_with_one_modality_hides_the_whole_ratio_of_it(ppg: bool, ecg: bool) -> None:
    hidden = complementary(torch.arange(64), M2AEConfig(), 50, there(ppg, ecg), 0, 1)
    share = hidden[0 if ppg else 1].float().mean(dim=1)
    assert share.min() > 0.55 and abs(share.mean() - 0.75) < 0.03


def test_masks_depend_on_window_and_step_and_on_no_neighbour() -> None:
    c = M2AEConfig()
    whole = complementary(torch.arange(64), c, 50, there(True, True), 0, 3)[0]
    part = complementary(torch.arange(20, 30), c, 50, there(True, True, 10), 0, 3)[0]
    other = complementary(torch.arange(64), c, 50, there(True, True), 0, 4)[0]
    assert torch.equal(part, whole[20:30]) and not torch.equal(other, whole)


def test_half_of_the_windows_are_stretched_both_signals_alike_and_none_in_validation() -> None:
    c, ids = M2AEConfig(crop=0.7), torch.arange(200)
    length, start = stretches(ids, c, 0, 5)
    moved = length < 1
    assert 0.4 < moved.float().mean() < 0.6
    assert length.min() >= 0.7 and length[moved].std() > 0.05 and ((start + length)[moved] <= 1).all()
    x = torch.randn(200, 1, 500, generator=torch.Generator().manual_seed(0))
    y = stretched(x, length, start)
    assert torch.equal(y[~moved], x[~moved])
    for i in moved.nonzero()[:5, 0].tolist():
        at = 499 * (float(start[i]) + float(length[i]) * np.linspace(0, 1, 500))
        np.testing.assert_allclose(y[i, 0], np.interp(at, np.arange(500), x[i, 0]), atol=1e-3)
    assert (stretches(ids, c, 0, -1)[0] == 1).all()
    assert (stretches(ids, M2AEConfig(crop=1.0), 0, 5)[0] == 1).all()


def test_a_stretched_window_is_not_rebuilt_from_the_other_signal() -> None:
    data, method = batch(1), recipe(crop=0.5)
    length, _ = stretches(data["window"], method.config, 0, 3)
    found = method.losses(method.modules(), {}, data, 3).counts
    assert 0 < (length == 1).sum() < ROWS
    for m in ("ppg", "ecg"):
        for key, count_ in (("cross", (length == 1).sum()), ("joint", (length == 1).sum()), ("intra", ROWS)):
            assert found[f"error_{m}_{key}"][1] == count_


def test_tokens_of_an_absent_modality_are_attended_by_nobody() -> None:
    torch.manual_seed(0)
    net = Bottleneck(("ppg", "ecg"), 16, 2, 2, 0.0)
    tokens = {m: torch.randn(4, 5, 16) for m in ("ppg", "ecg")}
    together_ = net(tokens, there(True, False, 4))
    alone = net({"ppg": tokens["ppg"]})["ppg"]
    torch.testing.assert_close(together_["ppg"], alone)
    torch.testing.assert_close(fuse(together_, there(True, False, 4)), alone)
    both = net(tokens, there(True, True, 4))
    assert (both["ppg"] - alone).abs().max() > 1e-3
    torch.testing.assert_close(fuse(both, there(True, True, 4)), (both["ppg"] + both["ecg"]) / 2)
    assert torch.isfinite(net(tokens, there(False, False, 4))["ppg"]).all()


@pytest.mark.parametrize("absent", ["ppg", "ecg"])
def test_samples_of_an_absent_modality_change_nothing(absent: str) -> None:
    data = batch(1) | {f"has_{absent}": torch.tensor([True] * 4 + [False] * 4)}
    method = recipe()
    modules = method.modules()
    losses, grads = [], []
    for fill in (0.0, 1.0):
        noise = torch.randn(4, *data[absent].shape[1:], generator=torch.Generator().manual_seed(1))
        data[absent] = torch.cat([data[absent][:4], fill * noise])
        loss = method.losses(modules, {}, data, 0).losses["m2ae"]
        losses.append(loss.detach())
        grads.append(torch.autograd.grad(loss, list(modules["m2ae"].parameters())))
    assert torch.equal(*losses)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("absent", ["ppg", "ecg"])
def test_a_batch_of_one_modality_trains_that_one(absent: str) -> None:
    present = "ecg" if absent == "ppg" else "ppg"
    data = batch(1) | {f"has_{absent}": torch.zeros(ROWS, dtype=torch.bool)}
    data[absent] = torch.zeros_like(data[absent])
    method = recipe()
    net = method.modules()["m2ae"]
    assert isinstance(net, M2AENet)
    result = method.losses({"m2ae": net}, {}, data, 0)
    result.losses["m2ae"].backward()
    sizes = {m: sum(p.grad.abs().sum() for p in net.encoders[m].parameters()) for m in ("ppg", "ecg")}
    assert sizes[present] > 0 and sizes[absent] == 0
    assert result.log["nce_cross"] == 0 and result.log[f"nce_{present}"] > 0


def test_mean_where_is_the_mean_of_what_is_kept() -> None:
    x, kept = torch.randn(9, dtype=torch.float64), torch.rand(9) < 0.5
    expected = sum(float(v) for v, k in zip(x, kept, strict=True) if k) / int(kept.sum())
    assert float(mean_where(x, kept, over_ranks=True)) == pytest.approx(expected)
    assert mean_where(x.fill_(torch.nan), torch.zeros(9, dtype=torch.bool), over_ranks=True) == 0


# name: (config, are some signals absent, ZeRO stage)
RUNS_OF_TWO: dict[str, tuple[dict, bool, int]] = {
    "ddp": ({}, False, 0),
    "zero": ({}, False, 1),
    "masked": ({}, True, 0),
    "masked zero": ({}, True, 1),
    "local": ({"negatives": "local"}, False, 0),
}


def worker(rank: int, world: int, folder: Path) -> None:
    out = {}
    for name, (more, masked, stage) in RUNS_OF_TWO.items():
        if world > 1 or not stage:
            batches = [batch(step, masked) for step in range(STEPS)]
            out[name] = trained(recipe(**more), batches, stage, rank, world, lr=1e-2)
    if rank == 0:
        torch.save(out, folder / f"{world}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict]:
    folder = tmp_path_factory.mktemp("m2ae")
    for world in (1, 2):
        together(worker, world, folder)
    return {w: torch.load(folder / f"{w}.pt", weights_only=True) for w in (1, 2)}


@pytest.mark.parametrize("name", ["ddp", "zero", "masked", "masked zero"])
def test_two_workers_have_the_losses_gradient_norms_and_weights_of_one(found, name: str) -> None:
    same(found[1][name.replace(" zero", "").replace("zero", "ddp")], found[2][name])
    fresh, trained_ = recipe().modules()["m2ae"].state_dict(), found[2][name]["weights"]
    assert all((trained_[key] - value).abs().max() > 1e-6 for key, value in fresh.items())  # every part


def test_local_negatives_make_two_workers_differ_from_one(found) -> None:
    one, two = (found[world]["local"]["steps"][:, 0] for world in (1, 2))
    assert ((one - two).abs() > 0.01 * one).all()


def test_what_is_published_is_what_was_trained() -> None:
    method = recipe()
    net = method.modules()["m2ae"].eval()
    data = batch(0)
    clean = {m: scaled(data[m], 10) for m in ("ppg", "ecg")}
    seen = {m: torch.zeros(clean[m].shape[:2], dtype=torch.bool) for m in clean}
    with torch.no_grad():
        out = net(clean, clean, seen, there(True, True, ROWS))
        encoder = method.encoder({"m2ae": net})
        for m in ("ppg", "ecg"):
            vector = encoder.modes[m].module(data[m])
            torch.testing.assert_close(net.projectors[m](vector), out["print"][m])
            other = "ecg" if m == "ppg" else "ppg"
            rebuilt = encoder.decoders[f"{m}_to_{other}"].module(data[m])
            torch.testing.assert_close(rebuilt[:, 0], out["cross"][other].flatten(1))
        both = encoder.modes["ppg+ecg"].module(data["ppg"], data["ecg"])
        tokens = net.bottleneck({m: net.encoders[m](clean[m]) for m in ("ppg", "ecg")})
        torch.testing.assert_close(both, torch.cat([tokens["ppg"], tokens["ecg"]], dim=1).mean(dim=1))


def test_modes_and_decoders_are_the_same_in_onnx(tmp_path) -> None:
    method = recipe()
    encoder = method.encoder(method.modules())
    assert list(encoder.modes) == ["ppg", "ecg", "ppg+ecg"]
    assert list(encoder.decoders) == ["ppg_to_ecg", "ecg_to_ppg"]
    for name in ("ppg+ecg", "ppg_to_ecg"):  # the two kinds; the others differ by name
        way = (encoder.modes | encoder.decoders)[name]
        export_onnx(way, tmp_path / "x.onnx")
        assert difference(way, tmp_path / "x.onnx", 153, 2) < 1e-4


def test_windows_without_a_pair_do_not_enter_the_recall() -> None:
    method = recipe()
    modules = {"m2ae": method.modules()["m2ae"].eval()}
    data = batch(2) | {"subject": torch.arange(ROWS)}
    alone = {k: v[:4] for k, v in data.items()}
    mixed = data | {"has_ecg": torch.arange(ROWS) < 4}
    with torch.no_grad():
        pairs, whole = (method.losses(modules, {}, d, 0).counts for d in (alone, mixed))
    for name in ("recall1_ppg_ecg", "chance", "nce_cross"):
        torch.testing.assert_close(whole[name], pairs[name])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"near": 4}, "near = 4 must be odd"),
        ({"dim": 15, "heads": 2}, "dim = 15 does not divide by heads = 2"),
        ({"min_s": 5.0}, "is shorter than min_s = 5"),
    ],
)
def test_sizes_that_fit_nothing_are_named_before_anything_runs(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recipe(**wrong)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 0.506), ("base", 17.9), ("large", 127.9)])
def test_run_files_make_networks_of_the_size_they_say(name: str, millions: float) -> None:
    run = load(str(RUNS / f"{name}.toml"), RunConfig, ["corpus=x", "storage=y"])
    assert count(build(run.recipe, run.method, 0).modules()["m2ae"]) / 1e6 == pytest.approx(millions, 0.01)
