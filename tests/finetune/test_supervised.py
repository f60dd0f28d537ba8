"""Supervised recipes: what trains and what stays, over every engine, and what a published adapter holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import PlethoraError
from finetune.encoders.base import pooled
from finetune.encoders.bundle import BundleEncoder
from finetune.supervised import Tune, TuneConfig, Vision, VisionRunConfig
from tests.pretrain.group import EPS, together

VIT = {
    "name": "vit_tiny_patch16_224",
    "weights": "random",
    "options": {"embed_dim": 16, "depth": 1, "num_heads": 2},
}
IMAGING = {"rate": 20.0, "window_s": 10.0, "n_fft": 32, "hop": 8}
STEPS, BATCH = 4, 8


def vision(**more: Any) -> Vision:
    parts = {"imaging": IMAGING, "backbone": VIT, "head": {"hidden": 8, "dropout": 0.0}}
    lora = {"r": 4, "dropout": 0.0}
    found = Vision(VisionRunConfig(**{"tasks": ("heart_rate",), **parts, "lora": lora, **more}), seed=1)
    found.told(np.linspace(50, 120, 30)[:, None])
    return found


def tune(uri: str, **more: Any) -> Tune:
    found = Tune(TuneConfig(**{"tasks": ("heart_rate",), "encoder": uri, "dropout": 0.0, **more}), seed=1)
    found.told(np.linspace(50, 120, 30)[:, None])
    return found


def batch(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    rate = 50 + 70 * torch.rand(BATCH, 1, generator=generator)
    t = torch.arange(200) / 20
    x = torch.sin(2 * torch.pi * rate / 60 * t) + 0.1 * torch.randn(BATCH, 200, generator=generator)
    return {"ppg": x[:, None], "target": rate, "window": torch.arange(BATCH) + 100 * step}


def test_a_frozen_encoder_gives_its_bundles_vectors_whatever_the_training_does(bundle: str) -> None:
    recipe = tune(bundle, window_s=90.0)
    net = recipe.modules()["net"].train()
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert trained and all(n.startswith("body.head.") for n in trained)
    x = np.random.default_rng(0).normal(size=(3, 1, 4500)).astype(np.float32)
    source = BundleEncoder(bundle)
    assert source.pieces(90.0) == 2  # the encoder takes 60 s
    with torch.no_grad():
        found = net.body._vector(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, pooled(source, x, 2, source.samples_step), atol=1e-4)


def test_a_full_fine_tune_trains_all_that_the_vector_depends_on_and_starts_from_the_bundle(
    bundle: str,
) -> None:
    recipe = tune(bundle, mode="full", window_s=60.0)
    net = recipe.modules()["net"]
    assert all(p.requires_grad for p in net.parameters())
    net.body.encode.idle = torch.nn.Linear(3, 3)  # as a pretext head would be
    net.body._freeze_idle([torch.randn(2, 1, 3000)])
    idle = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert idle == {"body.encode.idle.weight", "body.encode.idle.bias"}
    assert recipe.base(net.body)["hash"] == BundleEncoder(bundle).bundle.hash


def test_predictions_start_at_the_training_mean_in_the_tasks_unit(bundle: str) -> None:
    net = tune(bundle).modules()["net"].eval()
    assert net.mean.item() == pytest.approx(85) and net.std.item() == pytest.approx(20.9, abs=0.1)
    plain = tune(bundle, standardise=False).modules()["net"]
    assert plain.mean.item() == 0 and plain.std.item() == 1


def test_shapes_that_do_not_fit_are_told_before_the_first_step_with_what_to_set(bundle: str) -> None:
    assert any("parameters train" in line for line in vision().check())
    with pytest.raises(PlethoraError, match=r"under the encoder's minimum of 2 s"):
        tune(bundle, window_s=1.0).check()
    with pytest.raises(PlethoraError, match=r"method.imaging.window_s = 10: set the latter alone"):
        vision(window_s=5.0)
    odd = vision()
    odd.body = lambda heads: torch.nn.Linear(7, 1)  # type: ignore[method-assign]
    with pytest.raises(PlethoraError, match=r"windows of 10 s .* do not go through .* set method.window_s"):
        odd.check()


def test_the_first_lines_say_which_weights() -> None:
    lines = vision().check()
    assert "random: seed 1" in lines[0] and "has seen no image" in lines[0]
    assert lines[-1].startswith("mode lora: ")


def test_an_adapter_holds_its_base_and_its_targets_and_comes_back_from_them() -> None:
    recipe = vision()
    encoder = recipe.encoder(recipe.modules())
    assert encoder.kind == "adapter" and encoder.about["base"]["source"] == "random: seed 1"
    again = Vision(recipe.config, 1)
    again.remember(encoder.about["targets"], "test")
    assert again.heads == recipe.heads
    for a, b in zip(*(list(r.modules()["net"].state_dict().values()) for r in (recipe, again)), strict=True):
        assert torch.equal(a, b)


FILES = sorted((Path(__file__).parents[2] / "finetune" / "runs").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_file_is_complete_but_for_its_corpus(path: Path) -> None:
    from cluster import config
    from pretrain.config import RunConfig
    from pretrain.recipe import build

    run = config.load(path, RunConfig, ["corpus=x"])
    if run.recipe.endswith(":Tune"):
        with pytest.raises(PlethoraError, match=r"method\.encoder is empty"):
            build(run.recipe, run.method, 0).check()
    else:
        assert any("which has seen no image" in line for line in build(run.recipe, run.method, 0).check())


# ---------------------------------------------------------------- engines


def worker(rank: int, world: int, folder: Path) -> None:
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap
    from pretrain.loop import optimize

    out: dict[str, Any] = {}
    device = torch.device("cpu")
    for stage in (0, 2, 3):

        def started(stage: int = stage) -> tuple[Any, Any]:
            recipe = vision()
            ((name, module),) = recipe.modules().items()
            return recipe, wrap(
                name, module, Optim(eps=EPS), Engine(zero_stage=stage), BATCH // world, 1, device
            )

        def steps(recipe: Any, engine: Any, first: int, last: int) -> None:
            for step in range(first, last):
                mine = {k: v.chunk(world)[rank] for k, v in batch(step).items()}
                applied, _, _ = optimize(recipe, {"net": engine}, {}, [mine], step, {"net": 1e-2}, 0, rank)
                assert applied

        recipe, engine = started()
        steps(recipe, engine, 0, STEPS // 2)
        saved = folder / f"stage{stage}"
        saved.mkdir(exist_ok=True)
        engine.save(saved)
        torch.distributed.barrier()
        steps(recipe, engine, STEPS // 2, STEPS)
        out[f"{stage}"] = engine.weights()
        recipe, engine = started()
        engine.load(saved, world)
        steps(recipe, engine, STEPS // 2, STEPS)
        out[f"{stage} resumed"] = engine.weights()
    if rank == 0:
        torch.save(out, folder / "out.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("engines")
    together(worker, 2, folder)
    sizes = {p.name: sum(f.stat().st_size for f in p.rglob("*")) for p in folder.glob("stage*")}
    return torch.load(folder / "out.pt", weights_only=True) | {"sizes": sizes}


@pytest.mark.parametrize("stage", [2, 3])
def test_lora_under_zero_gives_the_weights_of_ddp_with_two_workers(found: dict, stage: int) -> None:
    a, b = found["0"], found[str(stage)]
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_lora_resumes_bitwise_from_a_checkpoint_without_the_frozen_backbone(found: dict, stage: int) -> None:
    whole, resumed = found[str(stage)], found[f"{stage} resumed"]
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_weights_are_those_that_train_and_they_have_moved(found: dict) -> None:
    net = vision().modules()["net"]
    start = {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}
    assert set(found["0"]) == set(start) | {"mean", "std"}
    assert any("lora_A" in n for n in start) and not any("patch_embed" in n for n in start)
    still = [n for n, p in start.items() if torch.equal(found["0"][n], p) and not n.endswith("score.bias")]
    assert not still


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def finished(ray_session: Any, corpus: str, bundle: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    from finetune.commands.vision import Vision, run
    from finetune.reports.sheet import write

    home = tmp_path_factory.mktemp("runs")
    file = home / "run.toml"
    file.write_text(
        f"""
        recipe = "finetune.supervised:Tune"
        corpus = "{corpus}"
        storage = "{home / "storage"}"
        name = "probe"
        steps = 60
        batch = 16
        validate_every = 10
        checkpoint_every = 20
        split = {{ val = 0.25, test = 0.3 }}
        select = {{ metric = "loss/net", patience = 3 }}
        engine = {{ zero_stage = 0 }}
        [method]
        tasks = ["heart_rate"]
        encoder = "{bundle}"
        [optim]
        lr = 1e-2
        """
    )
    results = write(run(Vision(run=str(file), out=str(home / "out"))))
    return results | {"home": home, "file": str(file)}


def test_a_run_publishes_a_small_adapter_that_verifies_and_names_its_base(
    finished: dict, bundle: str
) -> None:
    from safetensors.torch import load_file

    from cluster import bundle as bundles

    assert bundles.verify(finished["bundle"])["kind"] == "adapter"
    opened = bundles.open(finished["bundle"])
    assert opened.config["modes"] == {} and opened.config["base"]["hash"] == bundles.open(bundle).hash
    held = load_file(opened.path("model.safetensors"))
    assert held and all(k.startswith(("net.body.head.", "net.mean", "net.std")) for k in held)
    assert opened.lineage["parents"][0]["uri"] == bundle
    selected, history = opened.metrics["selected"], opened.metrics["history"]
    best = min(history, key=lambda h: h["loss/net"])
    assert selected["step"] == best["step"] and selected["value"] == best["loss/net"]


def test_predictions_are_for_test_subjects_alone_and_beat_the_mean(finished: dict, corpus: str) -> None:
    import json

    import pyarrow.parquet as pq

    from datasets.split import Split, assign

    out = finished["home"] / "out"
    table, split = pq.read_table(out / "predictions.parquet"), json.loads((out / "split.json").read_text())
    assert table.column_names == ["subject", "record", "start_s", "heart_rate"]
    subjects = set(table["subject"].to_pylist())
    assert subjects == set(split["test"]) and not subjects & set(split["train"])
    assert all(assign(s, Split(val=0.25, test=0.3)) == "test" for s in subjects)
    (task,) = finished["held_out"][0]["tasks"]
    rows = {row["name"]: row["metrics"]["mae"]["value"] for row in task["rows"]}
    # one of three test subjects has a heart rate beyond all that training shows: no more can be asked
    assert rows["model"] < rows["mean"] and finished["metrics"]["mae/heart_rate"] < 6


def test_windows_without_a_label_are_in_no_part_and_targets_reach_the_batch_by_window(
    finished: dict, ray_session: Any
) -> None:
    from cluster import config
    from datasets.stream import batches
    from pretrain.config import RunConfig
    from pretrain.data import open_data
    from pretrain.recipe import build

    run = config.load(finished["file"], RunConfig)
    recipe = build(run.recipe, run.method, run.seed)
    data = open_data(run, recipe)
    assert data.targets is not None
    data.targets[0][::2] = np.nan  # as if every second window had no label
    data._selections.clear()  # chosen by the labels that there were
    rows = data.rows(0, "train")
    assert len(rows) and (rows % 2 == 1).all()
    known = dict(zip(data.indexes[0].ids(rows).tolist(), data.targets[0][rows, 0].tolist(), strict=True))
    plan, selections = data.plan(0, 1)
    stream = batches(plan, 0, selections, data.spec, run.micro, 1)
    given = [next(stream) for _ in range(3)]
    for each in given:
        assert each["target"].dtype == torch.float32 and each["target"].shape == (16, 1)
        assert each["target"][:, 0].tolist() == [known[i] for i in each["window"].tolist()]
    assert data.validation(0, 1)["target"].shape[1] == 1


def test_a_windows_target_is_the_same_whichever_other_windows_are_asked_for(finished: dict) -> None:
    from cluster import config
    from pretrain.config import RunConfig
    from pretrain.data import open_data
    from pretrain.recipe import build

    run = config.load(finished["file"], RunConfig)
    recipe = build(run.recipe, run.method, run.seed)
    (found,) = open_data(run, recipe).indexes
    parts = [found.table.slice(low, 7) for low in range(0, found.windows, 7)]
    whole = recipe.targets(found.corpus, found.table)
    assert len(parts) > 3 and np.isfinite(whole).any()
    each = [recipe.targets(found.corpus, part) for part in parts]
    np.testing.assert_array_equal(np.concatenate(each), whole)


def test_an_adapter_is_judged_on_another_corpus_as_it_is(finished: dict, paired_corpus: str) -> None:
    from finetune.commands.vision import Vision, run
    from finetune.reports.sheet import write

    found = write(run(Vision(transfer=finished["bundle"], corpus=paired_corpus)))
    (task,) = found["tasks"]
    assert task["counts"]["subjects"] > 3 and Path(found["published"]).is_dir()
    rows = {row["name"]: row["metrics"]["mae"]["value"] for row in task["rows"]}
    assert rows["model"] < rows["mean"]


@pytest.mark.slow
def test_a_run_that_overfits_ends_early_says_so_and_resumes_to_the_same_bundle(
    finished: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from safetensors.torch import load_file

    from cluster import bundle as bundles
    from cluster import config
    from pretrain import driver
    from pretrain.config import RunConfig

    more = ["name=over", "steps=2000", "validate_every=5", "checkpoint_every=500", "select.patience=2"]
    run = config.load(finished["file"], RunConfig, [*more, "optim.lr=0.03", "optim.weight_decay=0"])
    first = driver.launch(run)
    assert "overfitting: loss/net of validation" in first["stopped"]
    assert "run over: overfitting" in capsys.readouterr().err
    opened = bundles.open(first["bundle"])
    selected, history = opened.metrics["selected"], opened.metrics["history"]
    assert selected["step"] < history[-1]["step"] < 2000 and selected["stopped"] == first["stopped"]
    assert sum(opened.lineage["windows_seen"].values()) == 16 * history[-1]["step"]
    weights = load_file(opened.path("model.safetensors"))
    shutil.rmtree(first["bundle"])  # as if it had been killed before it was published
    again = driver.launch(run, resume=True)
    found = load_file(bundles.open(again["bundle"]).path("model.safetensors"))
    assert again["stopped"] == first["stopped"] and found.keys() == weights.keys()
    assert all(torch.equal(found[k], weights[k]) for k in found)
