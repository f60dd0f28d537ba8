"""AnyPPG: workers together train as one, absent modalities, teachers, what is published."""

import hashlib
import tomllib
from pathlib import Path

import pytest
import torch

from cluster.config import load, validate
from cluster.errors import PlethoraError
from pretrain.config import RunConfig
from pretrain.driver import located
from pretrain.layers import count
from pretrain.publish import parents
from pretrain.recipe import build
from pretrain.recipes.anyppg import AnyPPG, AnyPPGConfig, valid_pairs
from tests.pretrain.group import same, together, trained
from tests.pretrain.test_net1d import authors

RUNS = Path(__file__).parents[2] / "pretrain" / "runs"
STEPS, ROWS = 5, 8
SMALL = {
    "window_s": 4.0,
    "rate": 50.0,
    "ecg_rate": 100.0,
    "filters": (16, 32),
    "blocks": (1, 2),
    "width": 8,
    "stem": 16,
    "ecg_filters": (16, 32),
    "ecg_blocks": (1, 1),
    "projection": 16,
    "gallery": 4,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
}


def recipe(**more) -> AnyPPG:
    return AnyPPG(AnyPPGConfig(**{**SMALL, **more}), seed=0)


def batch(step: int, masked: bool = False) -> dict[str, torch.Tensor]:
    """PPG at 50 Hz and ECG at 100 Hz of the same beats. Masked steps: mixed, PPG alone in the second half (a
    rank's whole share), ECG alone throughout."""
    draw = torch.Generator().manual_seed(step)
    rate, phase = (torch.rand(ROWS, 1, 1, generator=draw) for _ in range(2))
    ppg, ecg = (torch.sin(6.283 * ((rate + 0.8) * torch.arange(4 * r) / r + phase)) for r in (50, 100))
    ppg = ppg + 0.3 * torch.randn(ppg.shape, generator=draw)
    window = torch.arange(ROWS) + 1000 * step
    out = {"ppg": ppg, "ecg": ecg**7, "window": window, "subject": window % 5}
    if masked:
        has = torch.ones(2, ROWS, dtype=torch.bool)
        has[0, [1, 6]], has[1, [2, 3, 6]] = step != 1, step != 1
        has[1, ROWS // 2 :] &= step != 2
        has[0] &= step != 3
        out |= {"has_ppg": has[0], "has_ecg": has[1]}
        for name, there in zip(("ppg", "ecg"), has, strict=True):
            out[name] = out[name] * there[:, None, None]
    return out


# name: (config, are some signals absent, ZeRO stage)
RUNS_OF_TWO: dict[str, tuple[dict, bool, int]] = {
    "ddp": ({}, False, 0),
    "zero": ({}, False, 1),
    "masked": ({"same_subject_negatives": False}, True, 0),
    "masked zero": ({"same_subject_negatives": False}, True, 1),
    "local": ({"negatives": "local"}, False, 0),
}


def worker(rank: int, world: int, folder: Path) -> None:
    out = {}
    for name, (more, masked, stage) in RUNS_OF_TWO.items():
        if world > 1 or not stage:
            batches = [batch(step, masked) for step in range(STEPS)]
            out[name] = trained(recipe(**more), batches, stage, rank, world, lr=1e-3)
    if rank == 0:
        torch.save(out, folder / f"{world}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict]:
    folder = tmp_path_factory.mktemp("anyppg")
    for world in (1, 2):
        together(worker, world, folder)
    return {w: torch.load(folder / f"{w}.pt", weights_only=True) for w in (1, 2)}


@pytest.mark.parametrize("name", ["ddp", "zero", "masked", "masked zero"])
def test_two_workers_have_the_losses_gradient_norms_and_weights_of_one(found, name: str) -> None:
    one = found[1][name.replace(" zero", "").replace("zero", "ddp")]
    same(one, found[2][name])  # of the weights are the running batch statistics, too
    assert one["steps"][:, 0].max() - one["steps"][:, 0].min() > 0.1


def test_local_negatives_make_two_workers_differ_from_one(found) -> None:
    one, two = (found[world]["local"]["steps"][:, 0] for world in (1, 2))
    assert ((one - two).abs() > 0.02 * one).all()


def test_a_step_without_any_pair_is_a_loss_of_zero(found) -> None:
    for world in (1, 2):
        assert found[world]["masked"]["steps"][3].tolist() == [0.0, 0.0]


def test_absent_signals_change_neither_loss_nor_statistics() -> None:
    whole, rows = batch(1, masked=True), torch.tensor([0, 4, 5, 7])
    assert valid_pairs(whole).nonzero()[:, 0].tolist() == rows.tolist()
    alone = {k: v[rows] for k, v in whole.items() if not k.startswith("has_")}
    losses, states = [], []
    for data in (whole, alone):
        method = recipe()
        modules = method.modules()
        losses.append(method.losses(modules, {}, data, 0).losses["pair"])
        states.append(modules["pair"].state_dict())
    torch.testing.assert_close(losses[0], losses[1])
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])


def test_held_out_figures_say_how_well_partners_are_found() -> None:
    method = recipe()
    modules = method.modules()
    modules["pair"].eval()
    with torch.no_grad():
        log = method.losses(modules, {}, batch(0), 0).log
    recalls = {f"recall{k}_{way}" for k in (1, 5) for way in ("ppg_ecg", "ecg_ppg")}
    assert set(log) == recalls | {"chance", "alignment", "uniformity", "scale"}
    assert log["chance"] == pytest.approx(1 / 4) and log["scale"] == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_jointly_trained_ecg_encoder_is_published_and_can_teach(tmp_path: Path, monkeypatch) -> None:
    """A bundle's `ecg` mode as the next run's teacher, weights and all."""
    from safetensors.torch import save_file

    from cluster import bundle
    from pretrain.publish import describe

    first = recipe()
    modules = first.modules()
    encoder = first.encoder({"pair": modules["pair"].eval()})
    assert set(encoder.modes) == {"ppg", "ecg"}
    save_file(
        {f"pair.{k}": v for k, v in modules["pair"].state_dict().items()}, tmp_path / "model.safetensors"
    )

    class Opened:
        config = {
            "kind": "encoder",
            "run": {
                "recipe": "pretrain.recipes.anyppg:AnyPPG",
                "method": first.config.model_dump(mode="json"),
            },
            "modes": dict.fromkeys(encoder.modes),
        }
        preprocessing = describe(encoder)

        def path(self, name: str) -> Path:
            return tmp_path / name

    monkeypatch.setattr(bundle, "open", lambda uri: Opened())
    second = recipe(ecg_teacher="s3://somewhere/bundle")
    teacher = second.frozen()["ecg"]
    x = torch.randn(2, 1, 400)
    assert torch.equal(teacher(x), encoder.modes["ecg"].module(x))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert set(second.encoder(second.modules()).modes) == {"ppg"}
    with pytest.raises(PlethoraError, match=r"other ECG than this run gives: set ecg_rate = 100.0$"):
        recipe(ecg_teacher="s3://somewhere/bundle", ecg_rate=200.0).modules()
    with pytest.raises(PlethoraError, match=r"other ECG than this run gives: set ecg_notch = 50.0$"):
        recipe(ecg_teacher="s3://somewhere/bundle", ecg_notch=60.0).modules()
    taken = Opened.preprocessing["ecg"]
    Opened.preprocessing = {"ecg": taken | {"band": [0.5, 40.0], "order": 3, "notch": None}}  # as M2AE's
    with pytest.raises(PlethoraError, match=r"set ecg_high = 40.0, ecg_order = 3, ecg_notch = 0.0$"):
        recipe(ecg_teacher="s3://somewhere/bundle").modules()
    same = recipe(ecg_teacher="s3://somewhere/bundle", ecg_high=40.0, ecg_order=3, ecg_notch=0.0)
    assert same.modules()["pair"].ecg is None
    Opened.preprocessing = {"ecg": taken | {"filter": "chebyshev2", "attenuation": 20.0}}
    with pytest.raises(PlethoraError, match=r"ECG with filter chebyshev2, not butterworth, attenuation 20"):
        recipe(ecg_teacher="s3://somewhere/bundle").modules()
    Opened.config["modes"] = {"ppg": None}  # as of an imported PPG encoder, which has no ECG weights
    with pytest.raises(PlethoraError, match=r"has no mode ecg \(it has ppg\)"):
        recipe(ecg_teacher="s3://somewhere/bundle").modules()


def test_a_local_checkpoint_teaches_and_a_wrong_one_is_one_line(tmp_path: Path) -> None:
    state = {k: v.float() if v.is_floating_point() else v for k, v in authors(16).items()}
    torch.save({"state_dict": state}, tmp_path / "founder.pth")
    method = recipe(ecg_teacher=str(tmp_path / "founder.pth"))
    pair = method.modules()["pair"]
    assert pair.ecg is None and pair.ecg_head[0].in_features == 16
    result = method.losses({"pair": pair}, method.frozen(), batch(0), 0)
    assert torch.isfinite(result.losses["pair"])
    with torch.device("meta"):  # as the driver counts parameters
        assert count(recipe(ecg_teacher=str(tmp_path / "founder.pth")).modules()["pair"]) == count(pair)
    (tmp_path / "none.pth").write_bytes(b"no weights")
    for name, says in (("none.pth", "holds no weights"), ("absent.pth", "no such file")):
        with pytest.raises(PlethoraError, match=says) as told:
            recipe(ecg_teacher=str(tmp_path / name)).modules()
        assert "\n" not in str(told.value)


def test_a_checkpoint_is_found_by_workers_elsewhere_and_told_as_a_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "founder.pth").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    given = RunConfig(
        recipe="pretrain.recipes.anyppg:AnyPPG",
        corpus="corpus",
        storage="runs",
        name="x",
        steps=1,
        batch=2,
        method={"ecg_teacher": "founder.pth", "negatives": "local"},
    )
    found = located(given)
    assert found.method == {"ecg_teacher": str(tmp_path / "founder.pth"), "negatives": "local"}
    told = parents(found)
    assert told == [{"uri": str(tmp_path / "founder.pth"), "hash": hashlib.sha256(b"weights").hexdigest()}]


def run(name: str) -> RunConfig:
    path = RUNS / f"{name}.toml"
    assert tomllib.loads(path.read_text())["name"]
    return load(path, RunConfig, ["corpus=somewhere"])


@pytest.mark.parametrize(
    "name", [f"{p.parent.name}/{p.stem}" for k in ("anyppg", "simclr") for p in RUNS.glob(f"{k}/*.toml")]
)
def test_every_run_file_names_a_recipe_that_builds(name: str) -> None:
    config = run(name)
    method = build(config.recipe, config.method, config.seed)
    assert method.windows().signals[0].modality == "ppg"
    assert config.accumulation == 1  # fewer negatives else


def test_the_presets_have_the_published_sizes() -> None:
    sizes = {}
    for name in ("v1", "v3"):
        config = run(f"anyppg/{name}")
        pair = AnyPPG(validate(AnyPPGConfig, config.method, name), 0).modules()["pair"]
        sizes[name] = pair.ppg.dim, count(pair.ppg)
        assert pair.ppg_head[-1].out_features == 128
    assert sizes["v3"][0] == 512 and sizes["v3"][1] == pytest.approx(4.04e6, rel=0.01)
    assert sizes["v1"][0] == 1024


def test_windows_are_prepared_as_the_paper_says() -> None:
    ppg, ecg = AnyPPG(AnyPPGConfig(), 0).windows().signals
    assert (ppg.modality, ppg.rate, ppg.band, ppg.order) == ("ppg", 125, (0.5, 8.0), 3)
    assert (ecg.modality, ecg.rate, ecg.band, ecg.order) == ("ecg", 500, (0.5, None), 5)
    assert ecg.notch == 50 and ecg.upright and ecg.gate == "ecg" and ecg.max_flat == ppg.max_flat == 0.25
    assert ppg.required and ecg.required and ppg.normalise == ecg.normalise == "none"


def test_a_step_on_foreseen_features_of_a_frozen_ecg_encoder_asks_it_nothing_and_has_its_loss() -> None:
    config = AnyPPGConfig.model_validate(SMALL)
    method = AnyPPG(config, 0, teacher=config.ecg_net())
    modules, teacher, data = method.modules(), method.frozen(), batch(0)
    few = {name: x[:6] for name, x in data.items()}
    asked = method.losses(modules, teacher, few, 3).losses["pair"]
    with torch.no_grad():
        told = {name: x[:6] for name, x in method.foresee(teacher, data).items()}
    assert told["ecg_features"].shape == (6, 32) and told["ecg_features"].dtype == torch.float32
    given = method.losses(modules, {"ecg": torch.nn.Identity()}, few | told, 3).losses["pair"]
    torch.testing.assert_close(given, asked, rtol=1e-5, atol=1e-5)


def test_features_are_named_by_the_encoder_they_come_from(tmp_path) -> None:
    for name, content in (("a.pt", b"one"), ("b.pt", b"two"), ("c.pt", b"one")):
        (tmp_path / name).write_bytes(content)
    teachers = [str(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt")]
    names = [AnyPPG(AnyPPGConfig(ecg_teacher=uri), 0).foreseen() for uri in teachers]
    assert names[0] == names[2] != names[1] and all(names)
    assert AnyPPG(AnyPPGConfig(), 0).foreseen() == ""
