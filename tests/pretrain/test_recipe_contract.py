"""What every recipe owes the loop and those who use its bundles (DESIGN sections 4 and 6).

The house's own recipes are held to it, and any other: ``pytest tests/pretrain/test_recipe_contract.py
--recipe module:Class`` with ``--method key=value`` for what its [method] says (docs/adding_a_recipe.md).
"""

import math

import numpy as np
import pytest
import torch

from cluster.config import table_of, validate
from cluster.contract import check_preparation
from datasets.declared import IN_THE_MODEL
from pretrain import published
from pretrain.publish import describe
from pretrain.recipe import Recipe, build, has
from tests.pretrain.kit import Trainer, windows_of
from tests.pretrain.recipes import RECIPES

POLICIES = {"teacher"}  # modules whose loss is a policy gradient: its value does not have to fall
ALIKE = ("score.bias",)  # parameters that shift all scores of a softmax alike: they have no gradient


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recipe" in metafunc.fixturenames:
        given = metafunc.config.getoption("--recipe")
        metafunc.parametrize("recipe", given or list(RECIPES), indirect=True)


@pytest.fixture
def recipe(request: pytest.FixtureRequest) -> Recipe:
    torch.set_num_threads(1)
    if not request.config.getoption("--recipe"):
        return RECIPES[request.param]()
    found = build(request.param, table_of(request.config.getoption("--method")), seed=3)
    if has(found, "labels"):
        pytest.fail(f"{request.param} learns from labels, and this test has none for it")
    return found


def windows(recipe: Recipe, count: int = 8, start: int = 0) -> dict[str, torch.Tensor]:
    return windows_of(recipe.windows(), count, start)


def test_each_module_gets_one_finite_scalar_and_each_parameter_a_gradient(recipe):
    trainer = Trainer(recipe)
    trainer.step(windows(recipe, start=100), 0)  # a codebook starts on its first batch
    result = trainer.step(windows(recipe), 1)
    assert set(result.losses) == set(trainer.modules)
    for loss in result.losses.values():
        assert loss.shape == () and torch.isfinite(loss)
    for module in trainer.modules.values():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, name
                continue
            if name.endswith(ALIKE):
                continue
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 1e-9, name


def test_a_modules_loss_reaches_no_other_module(recipe):
    trainer = Trainer(recipe)
    trainer.step(windows(recipe, start=100), 0)
    result = trainer.losses(windows(recipe), 1)
    for name, loss in result.losses.items():
        for other, module in trainer.modules.items():
            own = [p for p in module.parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
            assert (other == name) or all(g is None for g in grads)


def test_the_config_survives_a_round_trip(recipe):
    config = recipe.config
    again = validate(type(recipe).Config, config.model_dump(mode="json"), "test")
    assert again == config
    with pytest.raises(ValueError, match="frozen"):
        config.dim = 3


def test_the_objective_improves_over_20_steps(recipe):
    trainer = Trainer(recipe, lr=3e-3)
    trainer.step(windows(recipe), 0)
    before = trainer.validate(windows(recipe)).losses
    for step in range(1, 21):
        trainer.step(windows(recipe), step)
    after = trainer.validate(windows(recipe)).losses
    for name in set(before) - POLICIES:
        assert after[name] < 0.97 * before[name]


def test_a_restored_state_takes_bitwise_the_same_next_step(recipe):
    trainer, again = Trainer(recipe), Trainer(recipe)
    for step in range(3):
        trainer.step(windows(recipe, start=10 * step), step)
    again.load(trainer.state())
    for each in (trainer, again):
        each.step(windows(recipe, start=50), 3)
    for name, module in trainer.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, again.modules[name].state_dict()[key]), key


def test_validation_changes_no_state_and_repeats_itself(recipe):
    trainer = Trainer(recipe)
    trainer.step(windows(recipe), 0)
    before = trainer.state()
    first, second = trainer.validate(windows(recipe), 1), trainer.validate(windows(recipe), 2)
    for name, module in trainer.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, before["modules"][name][key]), key
    for name, loss in first.losses.items():
        assert torch.equal(loss, second.losses[name])


def test_a_batch_counts_as_its_halves_do(recipe):
    trainer = Trainer(recipe)
    trainer.step(windows(recipe), 0)
    whole = windows(recipe, start=30)
    halves = [{name: x[part] for name, x in whole.items()} for part in (slice(4, 8), slice(0, 4))]
    results = [trainer.validate(data) for data in (whole, *halves)]
    for name in set(results[0].losses) - POLICIES:
        a, b, c = (result.losses[name] for result in results)
        torch.testing.assert_close(a, (b + c) / 2, atol=1e-5, rtol=1e-5)
    for name, total in results[0].counts.items():
        torch.testing.assert_close(total, results[1].counts[name] + results[2].counts[name])


def test_the_summary_is_finite_figures_and_the_figures_draw(recipe, tmp_path):
    trainer = Trainer(recipe)
    trainer.step(windows(recipe), 0)
    result = trainer.validate(windows(recipe))
    for name, value in recipe.summary(result.counts).items():
        assert math.isfinite(value), name
    for value in result.log.values():
        assert torch.isfinite(torch.as_tensor(value))
    for name, draw in result.figures.items():
        draw().savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_what_is_published_describes_the_windows_that_were_trained_on(recipe):
    spec = recipe.windows()
    assert recipe.windows() == spec, "windows() gives another answer the second time"
    encoder = recipe.encoder(recipe.modules())
    assert encoder.kind in ("encoder", "tokenizer", "adapter")
    assert not published.differences(encoder, spec)
    known = describe(encoder)
    check_preparation(known, [s.modality for s in spec.signals], "preprocessing.json")
    for modality, about in known.items():
        assert about["window_s"] == spec.window_s, modality


def test_the_encoder_takes_every_length_it_promises(recipe):
    modules = recipe.modules()
    encoder = recipe.encoder(modules)
    for name, mode in encoder.modes.items():
        module = mode.module.eval()
        for given in mode.inputs:
            assert set(given) == {"name", "modality", "rate", "channels"}
            spec = encoder.preprocessing[given["modality"]]
            assert spec["min_s"] * given["rate"] == mode.min_samples
            assert spec["short"] in ("reflect", "repeat", "refuse")
        between = min(mode.min_samples + 7, mode.max_samples)
        for samples in (mode.min_samples, between, mode.max_samples):
            x = [torch.randn(3, given["channels"], samples) for given in mode.inputs]
            with torch.no_grad():
                y = module(*x)
                cut = samples // mode.step_samples * mode.step_samples
                assert torch.equal(y, module(*[part[..., :cut] for part in x])), name
            assert y.shape == (3, mode.dim) and y.dtype == torch.float32 and torch.isfinite(y).all()


def test_a_vector_depends_on_its_own_window_alone_and_on_no_unit_but_the_stated_one(recipe):
    encoder, data = recipe.encoder(recipe.modules()), windows(recipe, 4)
    for name, mode in encoder.modes.items():
        module = mode.module.eval()
        names = [given["modality"] for given in mode.inputs]
        x = [data[m][..., : mode.max_samples] for m in names]
        with torch.no_grad():
            vectors = module(*x)
            alone = torch.cat([module(*[part[i : i + 1] for part in x]) for i in range(4)])
        torch.testing.assert_close(alone, vectors, atol=1e-4, rtol=1e-3, msg=name)
        known = [about for m, about in describe(encoder).items() if m in names]
        if all(about["unit"] == "any" and about["normalise"] == IN_THE_MODEL for about in known):
            with torch.no_grad():
                scaled = module(*[50 * part for part in x])
            torch.testing.assert_close(scaled, vectors, atol=1e-3, rtol=1e-2, msg=f"{name}: unit is any")


def test_input_that_is_too_short_is_padded_as_is_said_and_gives_finite_vectors(recipe):
    encoder, data = recipe.encoder(recipe.modules()), windows(recipe, 3)
    for name, mode in encoder.modes.items():
        ways = {encoder.preprocessing[given["modality"]]["short"] for given in mode.inputs}
        assert len(ways) == 1, f"{name}: its inputs are padded in different ways"
        (short,) = ways
        if short == "refuse":
            continue
        x = [data[given["modality"]][..., : max(mode.min_samples // 2, 2)].numpy() for given in mode.inputs]
        missing = ((0, 0), (0, 0), (0, mode.min_samples - x[0].shape[-1]))
        how = "reflect" if short == "reflect" else "wrap"
        with torch.no_grad():
            y = mode.module.eval()(*[torch.from_numpy(np.pad(part, missing, mode=how)) for part in x])
        assert y.shape == (3, mode.dim) and torch.isfinite(y).all(), name


def test_decoders_give_the_signal_that_they_say(recipe):
    encoder, data = recipe.encoder(recipe.modules()), windows(recipe, 3)
    for name, decoder in encoder.decoders.items():
        x = [data[given["modality"]][..., : decoder.max_samples] for given in decoder.inputs]
        with torch.no_grad():
            y = decoder.module.eval()(*x)
        assert y.shape == (3, decoder.output["channels"], decoder.max_samples), name
        assert torch.isfinite(y).all() and decoder.output["rate"] == decoder.inputs[0]["rate"]


def test_windows_may_lack_what_is_not_required(recipe):
    optional = recipe.windows().optional
    trainer, data = Trainer(recipe), windows(recipe)
    trainer.step(windows(recipe, start=100), 0)
    for number, modality in enumerate(optional):
        gone = torch.arange(8) % (len(optional) + 1) == number
        data[f"has_{modality}"] = ~gone
        data[modality] = torch.where(gone[:, None, None], 0.0, data[modality])
    for loss in trainer.step(data, 1).losses.values():
        assert torch.isfinite(loss)
    for module in trainer.modules.values():
        for name, parameter in module.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def test_a_seed_gives_the_same_losses_again_and_another_seed_other_weights(recipe):
    first, second = Trainer(recipe), Trainer(recipe)
    for step in range(3):
        losses = [t.step(windows(recipe, start=10 * step), step).losses for t in (first, second)]
        for name in losses[0]:
            assert torch.equal(losses[0][name], losses[1][name]), name


def test_the_names_and_shapes_of_the_state_stay_as_training_goes_on(recipe):
    def shapes(modules):
        return {n: {k: v.shape for k, v in m.state_dict().items()} for n, m in modules.items()}

    trainer = Trainer(recipe)
    before = shapes(trainer.modules)
    trainer.step(windows(recipe), 0)
    trainer.validate(windows(recipe))
    recipe.encoder(trainer.modules)
    assert shapes(trainer.modules) == before == shapes(recipe.modules())


def test_its_optional_hooks_give_what_the_loop_takes(recipe):
    modules = recipe.modules()
    if has(recipe, "tokens"):
        assert isinstance(recipe.tokens, int) and recipe.tokens > 0
    if has(recipe, "check"):
        assert all(isinstance(line, str) for line in recipe.check())
    if has(recipe, "plan"):
        assert set(recipe.rehearsal().modules()) == set(modules)
    if has(recipe, "materialise"):
        assert isinstance(recipe.foreseen(), str)
        trainer, data = Trainer(recipe), windows(recipe)
        if not trainer.frozen:
            return
        with torch.no_grad():
            columns = recipe.foresee(trainer.frozen, data)
        assert all(len(column) == 8 for column in columns.values())
        plain, given = trainer.validate(data).losses, trainer.validate(data | columns).losses
        for name in plain:
            torch.testing.assert_close(given[name], plain[name], atol=1e-5, rtol=1e-5)


def test_modules_are_a_pure_function_of_the_seed(recipe):
    torch.manual_seed(1)
    first = recipe.modules()
    torch.manual_seed(2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    second = recipe.modules()
    assert torch.equal(torch.rand(1), drawn)  # and they leave the global generator alone
    for name, module in first.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, second[name].state_dict()[key])
