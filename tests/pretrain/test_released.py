"""Imported encoders compute what their authors' own networks do, and read what their code prepares."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

from cluster.errors import PlethoraError
from datasets.signal import exact
from pretrain.importing.kinds import KINDS, check
from pretrain.importing.names import Names
from pretrain.layers import count
from pretrain.recipes.released import (
    MOMENT,
    ECGFounder,
    ECGFounderConfig,
    MOMENTConfig,
    PaPaGei,
    PaPaGeiConfig,
    PulsePPG,
    PulsePPGConfig,
)
from tests.pretrain import test_import
from tests.pretrain.golden.make import NETWORKS, golden, theirs, windows
from tests.pretrain.test_import import refusal, without

RESNETS = ("papagei-s", "papagei-p", "pulse-ppg")


def kind_of(name: str) -> str:
    return name.removesuffix("-12")  # ECGFounder of twelve leads


def mapped(name: str, state: dict[str, torch.Tensor] | None = None) -> tuple[Any, Any, Names]:
    """The only mode of an imported network, its config, and the names with what it did not use."""
    names = Names(theirs(name) if state is None else state)
    encoder, _, config = KINDS[kind_of(name)].load()(names, {})
    (mode,) = encoder.modes.values()
    mode.module.eval()
    return mode, config, names


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_authors_network_does(name: str) -> None:
    mode, _, _ = mapped(name)
    for samples, vectors in golden(name)["vectors"].items():
        wanted = np.array(vectors)
        with torch.no_grad():
            found = mode.module(windows(mode.inputs[0]["channels"], int(samples))).numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert np.abs(wanted[0] - wanted[1]).max() > 1e-2 * np.abs(wanted).max()  # else it would show little


def test_the_released_sizes_are_the_defaults() -> None:
    nets = {net.dim: count(net) for net in (PulsePPGConfig().net(), ECGFounderConfig().net())}
    assert nets == {512: 28_493_952, 1024: 30_598_896}
    assert (MOMENTConfig().net().dim, count(MOMENTConfig().net())) == (512, 18_887_360)
    assert (PaPaGeiConfig().net().dim, count(PaPaGeiConfig().net())) == (512, 4_989_984)


def test_what_their_forward_pass_never_reads_is_told_and_changes_nothing() -> None:
    for name, unused in (
        ("papagei-s", ("basicblock_list.0.bn1.", "expert_layers_", "gating_network_")),
        ("papagei-p", ("basicblock_list.0.bn1.",)),
        ("ecgfounder", ("dense.", "first_bn.", *(f"bn{n}." for n in (1, 2, 3)))),
        ("moment", ("head.linear.", "encoder.embed_tokens.", "patch_embedding.mask_embedding")),
    ):
        mode, _, names = mapped(name)
        inner = [
            part.rpartition("block_list.0.")[2] if name == "ecgfounder" else part for part in names.unused
        ]
        assert inner and all(any(mark in part for mark in unused) for part in inner)
        state = theirs(name)
        other = mapped(name, state | {part: state[part] + 1 for part in names.unused})[0]
        x = windows(1, 250)
        with torch.no_grad():
            assert torch.equal(mode.module(x), other.module(x))


def states() -> dict[str, dict[str, torch.Tensor]]:
    rest = {"sigma-tokenizer": test_import.tokenizer(), "sigma-student": test_import.student()}
    return {name: theirs(name) for name in NETWORKS} | rest | {"anyppg": test_import.clip()}


def test_a_checkpoint_is_told_from_those_of_all_other_kinds() -> None:
    for name, state in states().items():
        for kind in KINDS:
            if kind == kind_of(name):
                check(kind, state, "theirs.pth")
                continue
            with pytest.raises(
                PlethoraError, match=f"theirs.pth is no {kind}: its names are those of"
            ) as told:
                check(kind, state, "theirs.pth")
            assert str(told.value).endswith(f"python -m pretrain import {kind_of(name)} theirs.pth …")


def test_a_checkpoint_that_is_none_says_what_tells_so(tmp_path: Any) -> None:
    said = refusal(tmp_path, "papagei-p", without(theirs("papagei-p"), "dense.weight", "dense.bias"))
    assert said.endswith("is no papagei-p: it has no dense.*")
    said = refusal(
        tmp_path, "pulse-ppg", {"final_bn.weight": torch.zeros(2), "basicblock_list.x": torch.zeros(2)}
    )
    assert said.endswith("is no pulse-ppg: it has final_bn.weight")
    said = refusal(tmp_path, "ecgfounder", {"fc.weight": torch.zeros(2)})
    assert said.endswith("no name in it begins with stage_list. (it has fc.weight …)")


@pytest.mark.parametrize("name", ["papagei-s", "papagei-p", "pulse-ppg", "ecgfounder"])
def test_every_key_that_does_not_match_is_named(name: str, tmp_path: Any) -> None:
    state = theirs(name)
    lost = next(key for key in state if key.endswith("1.conv1.conv.weight"))
    odd = next(key for key in state if key.endswith("0.conv2.conv.bias"))
    broken = next(key for key in state if key.endswith("1.conv2.conv.bias"))
    changed = {odd: torch.zeros(3), "head.weight": torch.zeros(2), broken: state[broken] * torch.nan}
    said = refusal(tmp_path, name, without(state, lost) | changed)
    for kind, key in (("missing", lost), ("of another shape", odd), ("with NaN or infinite values", broken)):
        assert f"{kind}: {key}" in said
    assert said.endswith("head.weight") and "; not part of " in said


@pytest.mark.parametrize("name", RESNETS)
def test_a_network_of_another_shape_is_refused_before_it_is_built(name: str, tmp_path: Any) -> None:
    state = theirs(name)
    said = refusal(tmp_path, name, state | {"basicblock_list.63.conv2.conv.weight": torch.zeros(16, 16, 3)})
    assert said.endswith("block 63 has 16 filters, and 64 blocks from 4 end at 131072")
    stem = state["first_block_conv.conv.weight"]
    said = refusal(tmp_path, name, state | {"first_block_conv.conv.weight": stem.repeat(1, 2, 1)})
    assert said.endswith("it takes 2 channels, and one is wanted")
    assert "--set filters=8: the checkpoint has 4" in refusal(tmp_path, name, state, "--set", "filters=8")


def pulse(rate: float, channels: int = 1) -> np.ndarray:
    """(channels, samples): ten seconds of beats, drift and noise, with an offset."""
    time = np.arange(round(10 * rate)) / rate
    beats = np.sin(2 * np.pi * 1.3 * time) + 0.4 * np.sin(2 * np.pi * 2.6 * time + 1)
    noise = np.random.default_rng(7).normal(size=(channels, len(time)))
    return 2 + beats + 0.3 * np.sin(2 * np.pi * 0.2 * time) + 0.05 * noise


def by_pyppg(x: np.ndarray, rate: float) -> np.ndarray:
    """pyPPG's preprocessing, with second-order sections for its numerator and denominator."""
    y = signal.sosfiltfilt(signal.cheby2(4, 20, [0.5, 12], "bandpass", output="sos", fs=rate), x)
    width = round(rate * 50 / 1000)
    return signal.filtfilt(np.ones(width) / width, 1, y) if rate >= 75 else y


def z(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / x.std()


@pytest.mark.parametrize("rate, up, down", [(64, 125, 64), (250, 1, 2), (125, 1, 1)])
def test_papagei_reads_what_its_code_prepares(rate: int, up: int, down: int) -> None:
    x = pulse(rate)
    wanted = signal.resample_poly(z(by_pyppg(x[0], rate)), up, down)
    np.testing.assert_allclose(exact(x[None], rate, PaPaGeiConfig().signal())[0, 0], wanted, atol=1e-9)


@pytest.mark.parametrize("rate, up, down", [(64, 25, 32), (250, 1, 5), (50, 1, 1)])
def test_pulse_ppg_reads_what_its_code_prepares(rate: int, up: int, down: int) -> None:
    x = pulse(rate)
    wanted = signal.resample_poly(by_pyppg(z(x[0]), rate), up, down)
    np.testing.assert_allclose(exact(x[None], rate, PulsePPGConfig().signal())[0, 0], wanted, atol=1e-9)


@pytest.mark.parametrize("leads", [1, 12])
def test_ecgfounder_reads_what_its_code_prepares_and_normalises_all_leads_together(leads: int) -> None:
    x = pulse(500, leads) * np.arange(1, leads + 1)[:, None]
    b, a = signal.iirnotch(50, 30, 500)
    sos = np.vstack([signal.tf2sos(b, a), signal.butter(4, [0.67, 40], "bandpass", output="sos", fs=500)])
    y = signal.sosfiltfilt(sos, x)
    wanted = y - np.stack([ndimage.median_filter(lead, 201, mode="constant") for lead in y])
    found = exact(x[None], 500, ECGFounderConfig(channels=leads).signal())
    np.testing.assert_allclose(found[0], wanted, atol=1e-9 * np.ptp(wanted))
    scaled = ECGFounderConfig(channels=leads).net().scale(torch.from_numpy(found))
    np.testing.assert_allclose(scaled[0], z(wanted), atol=1e-6)


def test_none_of_them_is_pretrained_here() -> None:
    for recipe in (
        PaPaGei(PaPaGeiConfig(), 0),
        PulsePPG(PulsePPGConfig(), 0),
        ECGFounder(ECGFounderConfig(), 0),
        MOMENT(MOMENTConfig(), 0),
    ):
        with pytest.raises(
            PlethoraError, match=r"is not pretrained here: import its weights .*, then tune or"
        ):
            recipe.check()
        with pytest.raises(PlethoraError, match="is not pretrained here"):
            recipe.losses({}, {}, {}, 0)
    with pytest.raises(ValueError, match="window_s = 1 is not between min_s = 2 and max_s = 240"):
        PulsePPGConfig(window_s=1)
