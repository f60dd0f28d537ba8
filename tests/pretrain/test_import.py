"""Weights under their authors' names become bundles that compute what a plain reference does."""

import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster import bundle
from cluster.errors import PlethoraError
from finetune.encoders.bundle import BundleEncoder, untrained
from finetune.evaluation.people import seen_by_pretraining
from pretrain.__main__ import main
from pretrain.importing import sigma
from pretrain.importing.checkpoint import read
from pretrain.importing.names import Names
from pretrain.trained import open_modules
from tests.pretrain import authors
from tests.pretrain.test_net1d import authors as net1d
from tests.pretrain.test_net1d import by_hand

PATCH, COUNT, DIM, CODES, CODE_DIM, HEADS = 24, 5, 12, 16, 6, 3
SETS = {"heads": HEADS, "decoder_heads": 2, "input_range": [0, 1]}
UNIT = ("--set", "input_range=[0,1]")


def float32(state: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def tokenizer(channels: int = 8, phase: bool = False) -> authors.State:
    return authors.tokenizer(PATCH, COUNT, DIM, channels, CODES, CODE_DIM, phase)


def student() -> authors.State:
    return authors.student(PATCH, COUNT, DIM, 8, CODES, DIM // HEADS)


def clip() -> dict[str, torch.Tensor]:
    """AnyPPG's whole module: both encoders, both projectors, the scale."""
    state = float32(net1d(), "ppg_encoder.") | float32(net1d(16), "ecg_encoder.")
    w = authors.Writer(3)
    for name in ("ppg_projector", "ecg_projector"):
        w.linear(f"{name}.0", 16, 16)
        w.norm(f"{name}.1", 16)
        w.put(f"{name}.1.running_mean", 16)
        w.state[f"{name}.1.running_var"] = torch.linspace(0.5, 2, 16)
        w.state[f"{name}.1.num_batches_tracked"] = torch.tensor(3)
        w.linear(f"{name}.3", 10, 16)
    return state | w.state | {"clip_loss.logit_scale": torch.tensor(2.5)}


def signal(samples: int, n: int = 2) -> np.ndarray:
    return np.random.default_rng(samples).normal(3, 5, (n, 1, samples)).astype(np.float32)


def brought_in(folder: Path, kind: str, state: object, *more: str) -> tuple[str, dict]:
    torch.set_num_threads(1)
    torch.save(state, folder / "theirs.pth")
    uri = str(folder / "run" / "bundle")
    told = main(["import", kind, str(folder / "theirs.pth"), "--out", uri, *more])
    assert told is not None and told["bundle"] == uri
    assert bundle.verify(uri)["files"] > 6
    return uri, told


@pytest.mark.parametrize("channels, phase", [(8, True), (4, False)])  # with and without a projection
def test_the_tokenizer_computes_what_the_reference_does(channels: int, phase: bool) -> None:
    state = tokenizer(channels, phase)
    assert ("encoder.patch_proj.weight" in state) == (channels == 8)
    names = Names(state)
    encoder, modules, config = sigma.tokenizer(names, SETS)
    net, reference = modules["tokenizer"], authors.Reference(state)
    assert config.phase == phase and config.samples == PATCH * COUNT
    assert "quantize.embedding.embed_avg" in names.unused
    for count in (2, COUNT):
        x = signal(PATCH * count)
        features = [reference.tokens(w, PATCH, HEADS) for w in authors.unit_range(x.astype(float))[:, 0]]
        codes = [reference.codes(f) for f in features]
        with torch.no_grad():
            found = net.codes(torch.from_numpy(x))
            decoded = net.decoder(net.quantizer.codebook[found])
            spectra = [(net.to_amplitude, "decode_task_layer")]
            spectra += [(net.to_phase, "decode_task_layer_angle")] * phase
            for head, name in spectra:
                wanted = [reference.decoded(c, 2, name) for c in codes]
                np.testing.assert_allclose(head(decoded), wanted, atol=1e-4)
            pooled = encoder.modes["ppg"].module(torch.from_numpy(x))
        np.testing.assert_array_equal(found, codes)
        np.testing.assert_allclose(pooled, np.mean(features, axis=1), atol=1e-4)


def test_a_published_tokenizer_embeds_and_names_codes(tmp_path: Path) -> None:
    state = tokenizer()
    given = {"model": state, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    uri, told = brought_in(
        tmp_path, "sigma-tokenizer", given, *UNIT, "--set", f"heads={HEADS}", "--set", "decoder_heads=2"
    )
    assert told["kind"] == "tokenizer" and "quantize.embedding.cluster_size" in told["unused"]
    encoder, reference, x = BundleEncoder(uri), authors.Reference(state), signal(PATCH * 4)
    wanted = [reference.tokens(w, PATCH, HEADS).mean(0) for w in authors.unit_range(x.astype(float))[:, 0]]
    np.testing.assert_allclose(encoder(x), wanted, atol=1e-4)
    assert encoder.min_s == pytest.approx(2 * PATCH / 50)  # theirs gives a single patch no position

    from pretrain.recipes.sigma import MaskedConfig, open_tokenizer

    needs = MaskedConfig(window_s=PATCH * COUNT / 50, patch=PATCH, codebook_size=CODES, tokenizer=uri)
    torch.testing.assert_close(
        open_tokenizer(uri, needs).codes(torch.from_numpy(x)),
        sigma.tokenizer(Names(state), SETS)[1]["tokenizer"].codes(torch.from_numpy(x)),
    )


def test_the_student_computes_what_the_reference_does_also_of_hidden_patches() -> None:
    state = student()
    names = Names(state)
    _, modules, _ = sigma.student(names, {"patch": PATCH, "input_range": [0, 1]})
    net, reference = modules["student"], authors.Reference(state)
    x = signal(PATCH * COUNT)
    hidden = np.array([[True, False, True, False, False], [False, False, False, True, True]])
    at = torch.from_numpy(hidden.flatten().nonzero()[0])
    with torch.no_grad():
        found = net(torch.from_numpy(x), torch.from_numpy(hidden), at)
    wanted = []
    for w, h in zip(authors.unit_range(x.astype(float))[:, 0], hidden, strict=True):
        wanted.append(reference._linear("lm_head", reference.student(w, PATCH, HEADS, h))[h])
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-4)
    heads = ("projection_head.0", "student.lm_head")
    assert names.unused == [f"{head}.{part}" for head in heads for part in ("bias", "weight")]


def test_a_published_student_embeds_can_be_rebuilt_and_says_whose_it_is(tmp_path: Path) -> None:
    state = student()
    uri, told = brought_in(
        tmp_path, "sigma-student", {"model": state}, *UNIT, "--set", f"window_s={PATCH * COUNT / 50}"
    )
    assert told["kind"] == "encoder"
    encoder, reference, x = BundleEncoder(uri), authors.Reference(state), signal(PATCH * 3)
    nothing = np.zeros(3, bool)
    wanted = [
        reference.student(w, PATCH, HEADS, nothing).mean(0) for w in authors.unit_range(x.astype(float))[:, 0]
    ]
    np.testing.assert_allclose(encoder(x), wanted, atol=1e-4)
    fresh = untrained(encoder.bundle.config, "ppg", 0)(x)
    assert fresh.shape == (2, DIM) and np.abs(fresh - encoder(x)).max() > 0.01

    found = bundle.open(uri)
    seen = seen_by_pretraining(found, None)  # no corpus is looked at when none is known
    assert seen.kind == "unknown" and "names no corpus" in seen.why[0]
    imported = found.lineage["imported"]
    assert imported["file"] == "theirs.pth"
    assert imported["sha256"] == hashlib.sha256((tmp_path / "theirs.pth").read_bytes()).hexdigest()
    card = Path(uri, "README.md").read_text()
    assert imported["sha256"] in card and "training data are unknown" in card and "MIMIC-III" in card
    with pytest.raises(PlethoraError, match=r"complete bundle, and bundles never change"):
        brought_in(tmp_path, "sigma-student", {"model": state})


@pytest.mark.parametrize("low", [0, -1])
def test_sigmas_input_range_is_that_of_its_release_and_both_twins_and_the_card_have_it(
    low: int, tmp_path: Path
) -> None:
    state, chosen = student(), ("--set", f"input_range=[{low},1]", "--set", f"window_s={PATCH * COUNT / 50}")
    uri, _ = brought_in(tmp_path, "sigma-student", state, *chosen)
    encoder, reference, x = BundleEncoder(uri), authors.Reference(state), signal(PATCH * 3)
    scaled = authors.unit_range(x.astype(float))[:, 0] * (1 - low) + low
    wanted = [reference.student(w, PATCH, HEADS, np.zeros(3, bool)).mean(0) for w in scaled]
    np.testing.assert_allclose(encoder(x), wanted, atol=1e-4)

    config = encoder.bundle.config
    assert config["input_range"] == config["run"]["method"]["input_range"] == [low, 1]
    assert f"by min-max onto [{low}, 1]" in Path(uri, "README.md").read_text()
    _, recipe, modules = open_modules(uri)
    moved = x * 0.001 + 7  # the range does not depend on the unit
    with torch.no_grad():
        again = recipe.encoder(modules).modes["ppg"].module.eval()(torch.from_numpy(moved))
    np.testing.assert_allclose(again, wanted, atol=1e-2)
    other = config | {
        "run": config["run"] | {"method": config["run"]["method"] | {"input_range": [-1 - low, 1]}}
    }
    assert np.abs(untrained(config, "ppg", 0)(x) - untrained(other, "ppg", 0)(x)).max() > 1e-3


def test_sigmas_tokenizer_names_the_codes_of_its_release(tmp_path: Path) -> None:
    state, x = tokenizer(), signal(PATCH * COUNT, 8)
    reference, unit = (
        authors.Reference(state),
        authors.unit_range(signal(PATCH * COUNT, 8).astype(float))[:, 0],
    )
    found = {}
    for low in (0, -1):
        net = sigma.tokenizer(Names(state), SETS | {"input_range": [low, 1]})[1]["tokenizer"]
        found[low] = net.codes(torch.from_numpy(x)).numpy()
        scaled = unit * (1 - low) + low
        wanted = [reference.codes(reference.tokens(w, PATCH, HEADS)) for w in scaled]
        np.testing.assert_array_equal(found[low], wanted)
    assert (found[0] != found[-1]).mean() > 0.1


def test_anyppgs_ppg_encoder_becomes_one_mode(tmp_path: Path) -> None:
    state = net1d()
    uri, told = brought_in(tmp_path, "anyppg", float32(state))
    assert told["modes"] == ["ppg"]
    x = signal(250)
    encoder = BundleEncoder(uri)
    wanted = [by_hand(state, (w - w.mean()) / (w.std() + 1e-5)) for w in x.astype(float)]
    np.testing.assert_allclose(encoder(x), wanted, atol=1e-4)
    assert encoder.signal.rate == 125 and encoder.signal.band == (0.5, 8.0)
    assert untrained(encoder.bundle.config, "ppg", 0)(x).shape == (2, 16)


def test_anyppgs_whole_module_becomes_two_modes_and_its_projectors_are_kept(tmp_path: Path) -> None:
    state = clip()
    uri, told = brought_in(
        tmp_path, "anyppg", {"model_state_dict": {f"module.{k}": v for k, v in state.items()}}
    )
    assert told["modes"] == ["ppg", "ecg"]
    for modality, kernel, rate in (("ppg", 3, 125), ("ecg", 16, 500)):
        encoder, x = BundleEncoder(uri, modality), signal(2 * rate + 1)
        wanted = [by_hand(net1d(kernel), (w - w.mean()) / (w.std() + 1e-5)) for w in x.astype(float)]
        np.testing.assert_allclose(encoder(x), wanted, atol=1e-4)
        assert encoder.signal.rate == rate

    from pretrain.recipes.anyppg import AnyPPG, AnyPPGConfig

    found = bundle.open(uri)
    pair = AnyPPG(AnyPPGConfig(**found.config["run"]["method"]), 0).modules()["pair"].eval()
    from safetensors.torch import load_file

    weights = load_file(found.path("model.safetensors"))
    pair.load_state_dict({k.removeprefix("pair."): v for k, v in weights.items()})
    assert float(pair.scale().detach()) == pytest.approx(np.exp(2.5), rel=1e-5)
    z = np.random.default_rng(0).normal(size=(3, 16))
    s = {k: v.double().numpy() for k, v in state.items()}
    for head, name in ((pair.ppg_head, "ppg_projector"), (pair.ecg_head, "ecg_projector")):
        y = z @ s[f"{name}.0.weight"].T + s[f"{name}.0.bias"] - s[f"{name}.1.running_mean"]
        y = y / np.sqrt(s[f"{name}.1.running_var"] + 1e-5) * s[f"{name}.1.weight"] + s[f"{name}.1.bias"]
        wanted = authors.gelu(y) @ s[f"{name}.3.weight"].T + s[f"{name}.3.bias"]
        np.testing.assert_allclose(head(torch.from_numpy(z).float()).detach(), wanted, atol=1e-4)


def refusal(folder: Path, kind: str, state: object, *more: str) -> str:
    path = folder / "theirs.pth"
    torch.save(state, path)
    with pytest.raises(PlethoraError) as told:
        main(["import", kind, str(path), "--out", str(folder / "bundle"), *more])
    assert "\n" not in str(told.value) and not (folder / "bundle").exists()
    return str(told.value)


def without(state: dict, *names: str) -> dict:
    return {k: v for k, v in state.items() if k not in names}


def test_all_that_does_not_match_is_named_at_once(tmp_path: Path) -> None:
    sets = (*UNIT, "--set", f"patch={PATCH}")
    state = without(student(), "student.norm.bias", "student.blocks.1.mlp.fc2.bias")
    state |= {"student.mask_token": torch.zeros(1, 1, 3), "student.blocks.0.attn.q_bias": torch.zeros(DIM)}
    said = refusal(tmp_path, "sigma-student", state, *sets)
    assert "missing: student.blocks.1.mlp.fc2.bias, student.norm.bias;" in said
    assert "of another shape: student.mask_token (1, 1, 3) instead of (1, 1, 12);" in said
    assert said.endswith("not part of the student: student.blocks.0.attn.q_bias")

    twice = student() | {"student.patch_embed_seq.1.bias": torch.zeros(DIM)}
    assert "should be one tensor and differ" in refusal(tmp_path, "sigma-student", twice, *sets)
    said = refusal(
        tmp_path, "anyppg", without(clip(), "ppg_projector.3.bias") | {"head.weight": torch.zeros(2)}
    )
    assert said.endswith("missing: ppg_projector.3.bias; not part of AnyPPG's CLIP module: head.weight")


def test_what_no_shape_tells_is_asked_for_and_what_they_tell_cannot_be_set(tmp_path: Path) -> None:
    said = refusal(tmp_path, "sigma-tokenizer", tokenizer(), *UNIT)
    assert "no shape tells the heads at a width of 12: --set heads=N" in said
    both = (*UNIT, "--set", "heads=3", "--set", "decoder_heads=2")
    said = refusal(tmp_path, "sigma-tokenizer", tokenizer(), *both, "--set", "dim=24")
    assert "--set dim=24: the checkpoint has 12" in said
    assert "nearest known one is `heads`" in refusal(
        tmp_path, "sigma-tokenizer", tokenizer(), "--set", "haeds=3"
    )
    for kind, state in (("sigma-tokenizer", tokenizer()), ("sigma-student", student())):
        for more in ((), ("--set", "input_range=[0,2]")):
            said = refusal(tmp_path, kind, state, *more)
            assert '--set "input_range=[LOW,HIGH]" ([-1, 1] for its first release (b1cc8d9), [0, 1]' in said
    assert "do not fit patches of 2400 samples" in refusal(tmp_path, "sigma-student", student(), *UNIT)


def test_a_codebook_that_theirs_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    sets = (*UNIT, "--set", "heads=3", "--set", "decoder_heads=2")
    fresh = tokenizer() | {"quantize.embedding.initted": torch.zeros(1)}
    assert "never started" in refusal(tmp_path, "sigma-tokenizer", fresh, *sets)
    long = tokenizer()
    long["quantize.embedding.weight"][:2] *= 2
    assert "2 of 16 codes" in refusal(tmp_path, "sigma-tokenizer", long, *sets)
    broken = tokenizer()
    broken["encoder.norm.bias"][0] = torch.nan
    assert "NaN or infinite values: encoder.norm.bias" in refusal(tmp_path, "sigma-tokenizer", broken, *sets)


def test_a_checkpoint_of_another_method_is_told_from_its_names(tmp_path: Path) -> None:
    kinds = {"anyppg": clip(), "sigma-tokenizer": tokenizer(), "sigma-student": student()}
    for kind in kinds:
        for other, state in kinds.items():
            if other != kind:
                said = refusal(tmp_path, kind, state)
                assert (
                    f"is no {kind}: its names are those of {other}: python -m pretrain import {other}" in said
                )
        said = refusal(tmp_path, kind, {"fc.weight": torch.zeros(2)})
        assert f"is no {kind}: no name in it begins with" in said and "it has fc.weight" in said
    said = refusal(tmp_path, "anyppg", float32(net1d()) | {"dense.weight": torch.zeros(3, 16)})
    assert "is no anyppg: its names are those of ecgfounder: python -m pretrain import ecgfounder" in said


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    said = refusal(tmp_path, "anyppg", {"model": float32(net1d()), "extra": Code(tmp_path / "ran")})
    assert "it asks for posix.system and only weights are read" in said
    assert not (tmp_path / "ran").exists()


def test_a_file_without_weights_is_one_line(tmp_path: Path) -> None:
    assert "no state dict in it, only: epoch" in refusal(tmp_path, "anyppg", {"epoch": 3})
    said = refusal(tmp_path, "anyppg", {"state_dict": {"a": torch.zeros(2), "b": 3}})
    assert "holds more than tensors: b" in said
    (tmp_path / "junk.pth").write_bytes(b"no weights")
    torch.save(float32(net1d()), tmp_path / "whole.pth")
    save_file(float32(net1d()), tmp_path / "whole.safetensors")
    for suffix in ("pth", "safetensors"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "junk.safetensors").write_bytes(b"no weights")
    for name, says in (
        ("junk.pth", "cut off, or neither"),
        ("junk.safetensors", "neither"),
        ("half.pth", "cut off, or neither"),
        ("half.safetensors", "cut off, or neither"),
        ("absent.pth", "no such file"),
        ("s3://bucket/a.pth", "give a local file"),
    ):
        with pytest.raises(PlethoraError, match=says) as told:
            read(name if "://" in name else str(tmp_path / name))
        assert "\n" not in str(told.value)


def test_safetensors_and_half_precision_are_read(tmp_path: Path) -> None:
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in clip().items()}
    save_file(state, tmp_path / "theirs.safetensors")
    assert json.dumps(sorted(read(str(tmp_path / "theirs.safetensors")))) == json.dumps(sorted(state))
    from pretrain.importing.anyppg import anyppg

    _, modules, _ = anyppg(Names(read(str(tmp_path / "theirs.safetensors"))), {})
    mean = state["ppg_projector.1.running_mean"].float() - state["ppg_projector.0.bias"].float()
    assert torch.equal(modules["pair"].ppg_head[1].running_mean, mean)  # not rounded to bfloat16 again
