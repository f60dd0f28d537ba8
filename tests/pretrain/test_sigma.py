import json
from pathlib import Path

import pytest
import torch

from cluster import bundle
from cluster.config import load, read_toml, validate
from cluster.errors import PlethoraError
from pretrain.config import RunConfig
from pretrain.layers import count
from pretrain.recipe import build
from pretrain.recipes.sigma import Masked, MaskedConfig, Tokenizer, TokenizerConfig, open_tokenizer, tokens
from tests.pretrain.kit import Trainer, batch
from tests.pretrain.recipes import STUDENT, masked, tokenizer_config

RUNS = Path(__file__).parents[2] / "pretrain" / "runs" / "sigma"
NAMES = sorted(path.stem for path in RUNS.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_run_file_is_a_run_whose_method_the_recipe_takes(name):
    run = load(f"{RUNS}/{name}.toml", RunConfig, ["corpus=somewhere"])
    assert build(run.recipe, run.method, run.seed).windows().signals[0].modality == "ppg"


@pytest.mark.parametrize(
    "name, millions, within",
    # base and pro as published; large as the design has it; huge: shape inferred, the paper says 350
    [("base", 5.8, 0.05), ("pro", 28.0, 0.05), ("large", 78.0, 0.05), ("huge", 370.0, 0.02)],
)
def test_the_encoder_that_downstream_gets_has_the_published_size(name, millions, within, capsys):
    recipe = Masked(validate(MaskedConfig, read_toml(f"{RUNS}/{name}.toml")["method"], name), 0)
    with torch.device("meta"):
        modules = recipe.modules()
    student, teacher = modules["student"], modules["teacher"]
    encoder = recipe.encoder(modules).modes["ppg"].module
    with capsys.disabled():
        print(
            f"\n{name}: encoder {count(encoder) / 1e6:.2f} M, head {count(student.head) / 1e6:.2f} M, "
            f"teacher {count(teacher) / 1e6:.2f} M"
        )
    assert count(encoder) == pytest.approx(millions * 1e6, rel=within)
    assert count(student) == count(encoder) + count(student.head)


def masks(recipe: Masked, data: dict, step: int, training: bool) -> torch.Tensor:
    """The mask that the student was called with."""
    trainer = Trainer(recipe)
    seen = []
    trainer.modules["student"].register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.set_grad_enabled(training):
        trainer.losses(data, step)
    return seen[0]


def test_masks_follow_the_window_whatever_batch_it_comes_in():
    data = batch(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = {name: x[order][:5] for name, x in data.items()}
    whole = masks(masked(), data, 4, training=True)
    assert torch.equal(masks(masked(), mixed, 4, training=True), whole[order][:5])
    assert not torch.equal(masks(masked(), data, 5, training=True), whole)


def test_validation_hides_the_same_patches_at_every_step():
    assert torch.equal(masks(masked(), batch(), 4, False), masks(masked(), batch(), 9, False))


def test_runs_are_compared_on_the_same_masks_whatever_they_train_with():
    """Else hiding little would look like knowing much."""
    data, seen = batch(12), []
    for config in ({"mask_ratio": 0.3, "masking": "random"}, {"mask_ratio": 0.8, "masking": "both"}):
        trainer = Trainer(masked(**config))
        student, taken = trainer.modules["student"].eval(), []
        student.register_forward_pre_hook(lambda module, args, to=taken: to.append(args[1]))
        with torch.no_grad():
            trainer.losses(data, 0)
        seen.append(taken)
    (hid_little, common), (hid_much, also_common) = seen
    assert hid_little.float().mean() < hid_much.float().mean() and torch.equal(common, also_common)


def test_the_masking_mode_decides_who_chooses():
    with_teacher = {"student", "teacher"}
    expected = {
        "random": {"student"},
        "prior": {"student"},
        "adversarial": with_teacher,
        "both": with_teacher,
    }
    data, leaning = batch(64), {}
    for mode, names in expected.items():
        recipe = masked(masking=mode, alpha=6.0)
        assert set(recipe.modules()) == names
        leaning[mode] = float(Trainer(recipe).validate(data).log["hidden_prior"])
    assert abs(leaning["random"]) < 0.02 and abs(leaning["adversarial"]) < 0.02
    assert leaning["prior"] > 0.03 and leaning["both"] > 0.03  # patches that say more are hidden more


def test_the_teacher_learns_to_hide_what_is_hard():
    """Codes of the first half of each window are constant, of the second half random: hard."""
    recipe = masked(masking="adversarial", dropout=0.0, attn_dropout=0.0, drop_path=0.0)

    class Halves(type(recipe.frozen()["tokenizer"])):
        def codes(self, x_bct):
            n = x_bct.shape[-1] // 100
            ids = (x_bct[:, 0, ::100] * 1e4).long().abs() % 12
            return torch.where(torch.arange(n) < n // 2, 0, ids)

    trainer = Trainer(recipe, lr=3e-3)
    trainer.frozen["tokenizer"].__class__ = Halves
    trainer.recipe = recipe

    def share_of_hard(step: int) -> float:
        seen = []
        hook = trainer.modules["student"].register_forward_pre_hook(lambda m, args: seen.append(args[1]))
        trainer.validate(batch(64, start=5000), step)
        hook.remove()
        return float(seen[0][:, 5:].sum() / seen[0].sum())

    before = share_of_hard(0)
    for step in range(60):
        trainer.step(batch(32, start=32 * step), step)
    assert share_of_hard(60) > before + 0.15


def test_windows_shorter_than_the_encoder_train_all_its_positions():
    recipe = masked()
    trainer = Trainer(recipe)
    trainer.step(batch(64), 0)
    positions = trainer.modules["student"].encoder.positions
    assert recipe.config.max_patches > recipe.config.patches
    assert (positions.grad.abs().amax(dim=-1) > 0).all()


def test_a_window_longer_than_the_encoder_is_refused():
    with pytest.raises(PlethoraError, match="exceed max_patches = 4"):
        masked(max_patches=4)


def publish(folder, kind: str, config: TokenizerConfig, net: torch.nn.Module) -> str:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file({f"tokenizer.{k}": v for k, v in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "ppg.onnx").write_bytes(b"onnx")
    inputs = [{"name": "ppg", "modality": "ppg", "rate": 50, "channels": 1}]
    described = {
        "version": 1,
        "kind": kind,
        "modes": {"ppg": {"file": "ppg.onnx", "inputs": inputs, "dim": 16}},
        "run": {"recipe": "pretrain.recipes.sigma:Tokenizer", "method": config.model_dump(mode="json")},
    }
    (folder / "config.json").write_text(json.dumps(described))
    for name in ("lineage", "metrics", "preprocessing"):
        (folder / f"{name}.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    uri = str(folder.parent / f"{kind}-bundle")
    bundle.publish(folder, uri)
    return uri


def test_the_masked_stage_reads_the_published_tokenizer(tmp_path):
    config = tokenizer_config(kmeans=False)
    net = tokens(config).eval()
    uri = publish(tmp_path / "t", "tokenizer", config, net)
    frozen = Masked(MaskedConfig(**STUDENT, tokenizer=uri), 0).frozen()["tokenizer"]
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    x = batch()["ppg"]
    assert torch.equal(frozen.codes(x), net.codes(x))
    assert len(frozen.codes(x).unique()) > 1


def test_a_tokenizer_of_other_windows_is_refused(tmp_path):
    config = tokenizer_config(kmeans=False)
    uri = publish(tmp_path / "t", "tokenizer", config, tokens(config))
    with pytest.raises(PlethoraError, match=r"method\.patch = 50 but the tokenizer .* with 100"):
        open_tokenizer(uri, MaskedConfig(**STUDENT, patch=50))
    with pytest.raises(PlethoraError, match=r"method\.codebook_size = 64"):
        open_tokenizer(uri, MaskedConfig(**{**STUDENT, "codebook_size": 64}))


def test_a_bundle_that_is_no_tokenizer_is_refused(tmp_path):
    config = tokenizer_config(kmeans=False)
    uri = publish(tmp_path / "t", "encoder", config, tokens(config))
    with pytest.raises(PlethoraError, match="kind encoder"):
        open_tokenizer(uri, MaskedConfig(**STUDENT))
    with pytest.raises(PlethoraError, match=r"method\.tokenizer is empty"):
        Masked(MaskedConfig(**STUDENT), 0).frozen()


def test_before_the_codebook_starts_nothing_commits_and_no_code_moves():
    recipe = Tokenizer(tokenizer_config(codebook_start=2), 0)
    trainer = Trainer(recipe)
    for step in range(2):
        result = trainer.step(batch(start=10 * step), step)
        assert result.log["commitment"] == 0 and not trainer.modules["tokenizer"].quantizer.started
    trainer.step(batch(start=20), 2)
    assert trainer.modules["tokenizer"].quantizer.started


def test_an_unused_codebook_is_warned_about_and_counted(caplog):
    recipe = Tokenizer(tokenizer_config(), 0)
    codes = torch.tensor([6, 2] + [0] * 10)
    found = recipe.summary({"codes": codes, "kept": torch.tensor([3.0, 4.0])})
    assert found["codebook_usage"] == pytest.approx(2 / 12)
    assert found["codebook_perplexity"] == pytest.approx(2 ** (2 - 0.75 * 1.5849625))
    assert found["unigram_rate"] == 0.75 and found["index_consistency"] == 0.75
    assert "83 % of the codebook is unused" in caplog.text


def test_autocast_keeps_the_losses_and_the_frozen_codes_float32():
    recipe = masked()
    trainer = Trainer(recipe)
    wanted = trainer.frozen["tokenizer"].codes(batch()["ppg"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(trainer.frozen["tokenizer"].codes(batch()["ppg"]), wanted)
        losses = trainer.losses(batch(), 0).losses
        tokenizer = Trainer(Tokenizer(tokenizer_config(), 0))
        losses |= tokenizer.losses(batch(), 0).losses
    assert all(loss.dtype == torch.float32 for loss in losses.values())
