"""What every recipe owes the loop (DESIGN section 4), run over each of them."""

import copy
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch

from cluster.config import validate
from cluster.errors import PlethoraError
from finetune.supervised import Vision, VisionRunConfig
from pretrain import recipe as contract
from pretrain.export import export_onnx, take_no_rows
from pretrain.layers import stepped
from pretrain.net1d import Net1D
from pretrain.recipes.anyppg import AnyPPG, AnyPPGConfig
from pretrain.recipes.m2ae import M2AE, M2AEConfig
from pretrain.recipes.sigma import Masked, MaskedConfig, Tokenizer, TokenizerConfig, tokens
from pretrain.recipes.simclr import SimCLR, SimCLRConfig

WINDOW_S = 20.0
SMALL = {"window_s": WINDOW_S, "dim": 16, "depth": 2, "heads": 2, "codebook_size": 12}
STUDENT = {**SMALL, "max_patches": 12, "teacher_dim": 16, "teacher_depth": 1, "teacher_heads": 2}


def tokenizer_config(**more) -> TokenizerConfig:
    return TokenizerConfig(
        **{**SMALL, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "code_dim": 8, **more}
    )


def tokenizer(**more) -> Tokenizer:
    return Tokenizer(tokenizer_config(**more), seed=3)


def masked(**more) -> Masked:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = tokens(tokenizer_config(kmeans=False))
    return Masked(MaskedConfig(**{**STUDENT, **more}), seed=3, tokenizer=net)


NET = {"filters": (16, 32), "blocks": (1, 2), "width": 8, "stem": 16, "dropout": 0.0}
SIDES = {"window_s": WINDOW_S, "rate": 50.0, "projection": 16, "gallery": 4, "bn_momentum": 0.5}


def anyppg(teacher: bool = False, **more) -> AnyPPG:
    ecg = {"ecg_rate": 50.0, "ecg_filters": (16, 32), "ecg_blocks": (1, 1), "embedding_dropout": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = Net1D(**NET) if teacher else None
    return AnyPPG(AnyPPGConfig(**{**NET, **SIDES, **ecg, **more}), seed=3, teacher=net)


def m2ae(**more) -> M2AE:
    depths = {"encoder_depth": 1, "bottleneck_depth": 1, "decoder_depth": 1}
    small = {"window_s": WINDOW_S, "rate": 50.0, "patch": 10, "dim": 16, "heads": 2, "projection": 16}
    return M2AE(M2AEConfig(**{**small, **depths, "gallery": 4, "ecg_band": (0.5, 20.0), **more}), seed=3)


def simclr() -> SimCLR:
    return SimCLR(SimCLRConfig(**NET, **SIDES), seed=3)


def vision(**more) -> Vision:
    imaging = {"rate": 50.0, "window_s": WINDOW_S, "transform": "fusion", "stride": 10, "spec_augment": True}
    vit = {"name": "vit_tiny_patch16_224", "weights": "random"}
    vit["options"] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    parts = {"imaging": imaging, "backbone": vit, "head": {"hidden": 16, "dropout": 0.0}}
    found = Vision(VisionRunConfig(tasks=("heart_rate", "sbp"), **parts, **more), seed=3)
    found.told(batch(64, 1000)["target"].numpy())
    return found


RECIPES: dict[str, Callable[[], contract.Recipe]] = {
    "tokenizer": tokenizer,
    "tokenizer, as the code": lambda: tokenizer(
        distance="mse", phase=True, centre=False, stop_gradient=False, dead_share=0.0
    ),
    "masked": masked,
    "masked, random": lambda: masked(masking="random"),
    "masked, prior": lambda: masked(masking="prior"),
    "masked, adversarial": lambda: masked(masking="adversarial"),
    "masked, as the code": lambda: masked(alpha=0.0, policy="softmax_sum", mask_ratio=0.7),
    "masked, shown patches too": lambda: masked(visible=0.5, pool_blocks=1),
    "anyppg": anyppg,
    "anyppg, a frozen teacher": lambda: anyppg(teacher=True),
    "anyppg, other negatives": lambda: anyppg(negatives="local", same_subject_negatives=False),
    "m2ae": m2ae,
    "m2ae, local negatives": lambda: m2ae(negatives="local", same_subject_negatives=True),
    "simclr": simclr,
    "vision, LoRA": lambda: vision(lora={"dropout": 0.0}),
    "vision, probe": lambda: vision(mode="probe"),
    "vision, full": lambda: vision(mode="full"),
}
POLICIES = {"teacher"}  # modules whose loss is a policy gradient: its value does not have to fall


def batch(count: int = 8, start: int = 0) -> dict[str, torch.Tensor]:
    """Pulse-like windows, each with its own rate and depth, and the ECG of the same beats; 50 Hz."""
    draw = torch.Generator().manual_seed(start)
    t = torch.arange(round(WINDOW_S * 50)) / 50
    rate = 0.8 + 1.2 * torch.rand(count, 1, generator=draw)
    slow = 1 + 0.5 * torch.sin(2 * torch.pi * 0.1 * t + rate)
    x = slow * torch.sin(2 * torch.pi * rate * t) ** 3 + 0.05 * torch.randn(count, len(t), generator=draw)
    ecg = slow * torch.cos(torch.pi * (rate * t - 0.1)).square() ** 20
    ids = torch.arange(start, start + count)
    target = torch.cat([60 * rate, 100 + 30 * rate], dim=1)
    target[ids % 4 == 0, 1] = torch.nan  # only some have every label
    signals = {"ppg": x[:, None].float(), "ecg": ecg[:, None].float()}
    return {**signals, "target": target, "window": ids, "subject": ids, "step": torch.zeros_like(ids)}


class Trainer:
    """The smallest loop: an optimizer a module, all losses before any step."""

    def __init__(self, recipe: contract.Recipe, lr: float = 1e-3) -> None:
        self.recipe, self.modules, self.frozen = recipe, recipe.modules(), recipe.frozen()
        self.optimizers = {n: torch.optim.AdamW(m.parameters(), lr=lr) for n, m in self.modules.items()}

    def losses(self, data: dict, step: int) -> contract.StepResult:
        torch.manual_seed(step)
        return self.recipe.losses(self.modules, self.frozen, data, step)

    def step(self, data: dict, step: int) -> contract.StepResult:
        for module in self.modules.values():
            module.train()
        result = self.losses(data, step)
        parts = [part for module in self.modules.values() for part in stepped(module)]
        if any(part.waits for part in parts):
            for part in parts:
                part.start()
            result = self.losses(data, step)
        for name, loss in result.losses.items():
            self.optimizers[name].zero_grad()
            loss.backward()
        for part in parts:
            part.move()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return result

    def validate(self, data: dict, step: int = 0) -> contract.StepResult:
        for module in self.modules.values():
            module.eval()
        with torch.no_grad():
            return self.losses(data, step)

    def state(self) -> dict:
        parts = {"modules": self.modules, "optimizers": self.optimizers}
        return copy.deepcopy({k: {n: v.state_dict() for n, v in part.items()} for k, part in parts.items()})

    def load(self, state: dict) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])


@pytest.fixture(params=RECIPES)
def recipe(request) -> contract.Recipe:
    torch.set_num_threads(1)
    return RECIPES[request.param]()


def test_each_module_gets_one_finite_scalar_and_each_parameter_a_gradient(recipe):
    trainer = Trainer(recipe)
    trainer.step(batch(start=100), 0)  # a codebook starts on its first batch
    result = trainer.step(batch(), 1)
    assert set(result.losses) == set(trainer.modules)
    for loss in result.losses.values():
        assert loss.shape == () and torch.isfinite(loss)
    for module in trainer.modules.values():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, name
                continue
            if name.endswith("score.bias"):  # shifts all scores of a softmax alike
                continue
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 1e-9, name


def test_a_modules_loss_reaches_no_other_module(recipe):
    trainer = Trainer(recipe)
    trainer.step(batch(start=100), 0)
    result = trainer.losses(batch(), 1)
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
    trainer.step(batch(), 0)
    before = trainer.validate(batch()).losses
    for step in range(1, 21):
        trainer.step(batch(), step)
    after = trainer.validate(batch()).losses
    for name in set(before) - POLICIES:
        assert after[name] < 0.97 * before[name]


def test_a_restored_state_takes_bitwise_the_same_next_step(recipe):
    trainer, again = Trainer(recipe), Trainer(recipe)
    for step in range(3):
        trainer.step(batch(start=10 * step), step)
    again.load(trainer.state())
    for each in (trainer, again):
        each.step(batch(start=50), 3)
    for name, module in trainer.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, again.modules[name].state_dict()[key]), key


def test_validation_changes_no_state_and_repeats_itself(recipe):
    trainer = Trainer(recipe)
    trainer.step(batch(), 0)
    before = trainer.state()
    first, second = trainer.validate(batch(), 1), trainer.validate(batch(), 2)
    for name, module in trainer.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, before["modules"][name][key]), key
    for name, loss in first.losses.items():
        assert torch.equal(loss, second.losses[name])


def test_a_batch_counts_as_its_halves_do(recipe):
    trainer = Trainer(recipe)
    trainer.step(batch(), 0)
    whole = batch(start=30)
    halves = [{name: x[part] for name, x in whole.items()} for part in (slice(4, 8), slice(0, 4))]
    results = [trainer.validate(data) for data in (whole, *halves)]
    for name in set(results[0].losses) - POLICIES:
        a, b, c = (result.losses[name] for result in results)
        torch.testing.assert_close(a, (b + c) / 2, atol=1e-5, rtol=1e-5)
    for name, total in results[0].counts.items():
        torch.testing.assert_close(total, results[1].counts[name] + results[2].counts[name])


def test_the_summary_is_finite_figures_and_the_figures_draw(recipe, tmp_path):
    trainer = Trainer(recipe)
    trainer.step(batch(), 0)
    result = trainer.validate(batch())
    for name, value in recipe.summary(result.counts).items():
        assert 0 <= value <= getattr(recipe.config, "codebook_size", 1e6), name
    for value in result.log.values():
        assert torch.isfinite(torch.as_tensor(value))
    assert result.figures
    for name, draw in result.figures.items():
        draw().savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_the_encoder_takes_every_length_it_promises(recipe):
    modules = recipe.modules()
    encoder = recipe.encoder(modules)
    assert encoder.kind in ("encoder", "tokenizer", "adapter")
    window_s = recipe.windows().window_s
    for name, mode in encoder.modes.items():
        module = mode.module.eval()
        for given in mode.inputs:
            assert set(given) == {"name", "modality", "rate", "channels"}
            assert mode.max_samples >= window_s * given["rate"]
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


@pytest.mark.parametrize("name", ["tokenizer", "masked", "anyppg", "m2ae", "simclr", "vision, probe"])
def test_its_onnx_file_gives_no_vectors_for_no_rows_and_nothing_else_for_rows(name, tmp_path):
    torch.set_num_threads(1)
    recipe = RECIPES[name]()
    encoder = recipe.encoder(recipe.modules())
    mode = list(encoder.modes.values())[-1]  # of several inputs where there is such a one
    path = tmp_path / "mode.onnx"
    export_onnx(mode, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (0, 1, 3):
        feed = {i["name"]: np.zeros((rows, i["channels"], mode.max_samples), np.float32) for i in mode.inputs}
        (found,) = session.run(None, feed)
        assert found.shape == (rows, mode.dim)
    before = path.read_bytes()
    take_no_rows(path)
    assert path.read_bytes() == before


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


def test_load_finds_a_recipe_by_name():
    assert contract.load("pretrain.recipes.sigma:Masked") is Masked


@pytest.mark.parametrize(
    "name, says",
    [
        ("Masked", "no recipe name"),
        ("pretrain.recipes.sigmoid:Masked", "no module pretrain.recipes.sigmoid"),
        ("nowhere.at.all:Masked", "no module nowhere.at.all"),
        ("pretrain.recipes.sigma:Mask", "it has Tokenizer, Masked"),
        ("pretrain.recipes.sigma:Windows", "lacks Config, windows"),
    ],
)
def test_a_wrong_recipe_name_says_what_is_wrong(name, says):
    with pytest.raises(PlethoraError, match=says):
        contract.load(name)
