"""A student of a bundle owes the loop what every recipe does, and answers in its teacher's space."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import PlethoraError
from finetune.encoders.bundle import BundleEncoder, untrained
from finetune.networks.distill import Distill, DistillConfig, Standard
from pretrain import recipe as contract
from pretrain.export import export_onnx
from pretrain.recipe import build
from pretrain.trained import open_trained
from tests.finetune import tiny
from tests.pretrain.kit import WINDOW_S, Trainer, batch
from tests.pretrain.test_recipe_contract import (  # noqa: F401  (collected here, over the `recipe` below)
    test_a_batch_counts_as_its_halves_do,
    test_a_modules_loss_reaches_no_other_module,
    test_a_restored_state_takes_bitwise_the_same_next_step,
    test_each_module_gets_one_finite_scalar_and_each_parameter_a_gradient,
    test_modules_are_a_pure_function_of_the_seed,
    test_the_config_survives_a_round_trip,
    test_the_encoder_takes_every_length_it_promises,
    test_the_objective_improves_over_20_steps,
    test_the_summary_is_finite_figures_and_the_figures_draw,
    test_validation_changes_no_state_and_repeats_itself,
)

SMALL = {"filters": (16, 32), "blocks": (1, 1), "stem": 16, "window_s": WINDOW_S, "gallery": 4}


def student(uri: str, **more) -> Distill:
    return Distill(DistillConfig(teacher=uri, bn_momentum=0.5, **{**SMALL, **more}), seed=3)


@pytest.fixture(params=["one input", "two inputs"])
def recipe(request: pytest.FixtureRequest, bundle: str, pair_bundle: str) -> contract.Recipe:
    torch.set_num_threads(1)
    return student(bundle) if request.param == "one input" else student(pair_bundle, mode="ppg+ecg")


def test_the_frozen_teacher_gives_the_vectors_of_its_bundle(bundle: str) -> None:
    x = batch()["ppg"]
    with torch.no_grad():
        found = student(bundle).frozen()["teacher"](x).numpy()
    np.testing.assert_allclose(found, BundleEncoder(bundle)(x.numpy()), atol=1e-4)


def test_targets_are_standardised_by_all_rows_that_training_has_shown() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(1000, [0.01, 1, 50], (90, 3))
    standard = Standard(3)
    for part in np.split(rows, [7, 30, 31]):
        standard(torch.from_numpy(part))
    standard.eval()
    found = standard(torch.from_numpy(rows)).numpy()
    seen = rows.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(standard.mean, seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(standard.deviation, seen.std(0), rtol=1e-2)
    np.testing.assert_allclose(found.std(0)[1:], 1, rtol=1e-3)
    assert standard.count == 90


def test_a_number_that_never_varies_stays_finite() -> None:
    standard = Standard(2)
    assert torch.isfinite(standard(torch.ones(5, 2))).all()


def test_the_published_student_speaks_in_its_teachers_space(bundle: str) -> None:
    trainer = Trainer(student(bundle), lr=3e-3)
    data = batch(32)
    for step in range(60):
        trainer.step(data, step)
    trainer.validate(data)
    module = trainer.recipe.encoder(trainer.modules).modes["ppg"].module
    with torch.no_grad():
        found, wanted = module(data["ppg"]).numpy(), trainer.frozen["teacher"](data["ppg"]).numpy()
    missed = ((found - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
    assert missed < 0.5
    logged = trainer.recipe.summary(trainer.validate(data).counts)["unexplained"]
    standard = trainer.modules["student"].standard
    mean, deviation = (x.numpy() for x in (standard.mean, standard.deviation))
    apart = (((found - wanted) / deviation) ** 2).sum() / (((wanted - mean) / deviation) ** 2).sum()
    assert logged == pytest.approx(apart, rel=1e-3)


def test_the_student_is_published_with_its_teachers_preprocessing_and_its_own_twin(bundle: str) -> None:
    made, teacher = student(bundle), BundleEncoder(bundle)
    assert made.encoder(made.modules()).preprocessing == teacher.bundle.preprocessing
    assert made.windows().signals == teacher.signals
    method = {"teacher": bundle, "filters": [16, 32], "blocks": [1, 1], "stem": 16}
    run = untrained({"run": {"recipe": "finetune.networks.distill:Distill", "method": method}}, "ppg", 0)
    assert run(np.random.default_rng(0).normal(size=(3, 1, 500)).astype(np.float32)).shape == (3, teacher.dim)


def test_students_of_one_and_of_two_inputs_become_onnx_files(recipe: Distill, tmp_path: Path) -> None:
    (mode,) = recipe.encoder(recipe.modules()).modes.values()
    assert export_onnx(mode, tmp_path / "student.onnx") < 1e-4


def test_parameters_can_be_counted_without_memory(bundle: str) -> None:
    with torch.device("meta"):
        net = student(bundle).modules()["student"]
        student(bundle).frozen()
    assert 1000 < sum(p.numel() for p in net.parameters()) < 20_000


@pytest.mark.parametrize(
    "method, says",
    [
        ({}, "method.teacher is empty"),
        ({"teacher": "/nowhere/bundle"}, "/nowhere/bundle"),
        ({"teacher": "PAIR"}, "has 3 modes"),
        ({"teacher": "PAIR", "mode": "ppg", "window_s": 90.0}, "takes 2 to 60 s"),
    ],
)
def test_a_student_without_a_teacher_that_fits_is_refused(method: dict, says: str, pair_bundle: str) -> None:
    given = {k: pair_bundle if v == "PAIR" else v for k, v in method.items()}
    with pytest.raises(PlethoraError, match=says):
        build("finetune.networks.distill:Distill", given, 0).windows()


def test_a_bundle_whose_weights_do_not_fit_its_recipe_cannot_teach(
    bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, encoder = open_trained(bundle)
    assert found.uri == bundle and not encoder.modes["ppg"].module.training
    made = tiny.Net.__init__
    monkeypatch.setattr(tiny.Net, "__init__", lambda self, dim: made(self, dim + 2))
    with pytest.raises(PlethoraError, match="does not fit the networks of tests"):
        open_trained(bundle)
