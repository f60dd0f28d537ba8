"""A frozen vision backbone as an encoder: the vectors of `finetune vision`, by address, in bounded memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.config import validate
from cluster.errors import PlethoraError
from finetune.encoders.base import Encoder
from finetune.encoders.opening import opened
from finetune.evaluation.lengths import fit, run_fitted
from finetune.imaging import Imaging
from finetune.networks import frozen as module
from finetune.networks.backbone import Backbone, BackboneConfig, VisionConfig, VisionNet, create
from finetune.networks.frozen import frozen

NAME = "vit_tiny_patch16_224"
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}
OPTIONS = "".join(f"&options.{key}={value}" for key, value in SMALL.items())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        path = tmp_path_factory.mktemp("weights") / "w.safetensors"
        save_file(create(NAME, SMALL).state_dict(), path)
    return path


def address(image: str, weights: Path | str, more: str = "") -> str:
    return f"vision:{NAME}?image={image}&stride=8&weights={weights}{OPTIONS}{more}"


def windows(n: int, samples: int = 1200) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(n, 1, samples)).cumsum(-1).astype(np.float32)


@pytest.mark.parametrize("image", ["stft", "complex", "recurrence", "fusion"])
@pytest.mark.parametrize("samples", [1200, 400])
def test_vectors_are_those_of_finetune_vision_in_mode_probe_before_it_learns_what_to_heed(
    image: str, samples: int, weights: Path
) -> None:
    table = {
        "imaging": {"transform": image, "stride": 8},
        "backbone": {"name": NAME, "weights": str(weights), "options": SMALL},
        "mode": "probe",
    }
    net = VisionNet(validate(VisionConfig, table, ""), {"sbp": 1}, 0).eval()
    with torch.no_grad():
        for pool in (net.pool, net.fusion):
            if pool is not None:
                pool.score.weight.zero_()
        wanted = net.embed(torch.from_numpy(windows(5, samples)))
    found = opened(address(image, weights))(windows(5, samples))
    assert found.shape == (5, 48) and found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-5, rtol=1e-5)


def test_few_windows_are_worked_on_at_once_and_each_keeps_its_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone(BackboneConfig(name=NAME, weights="random", options=SMALL), 0)
    seen: list[int] = []
    backbone.vit.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    run = frozen(backbone, validate(Imaging, {"transform": "recurrence", "stride": 8}, ""))
    whole = run(windows(9))
    monkeypatch.setattr(module, "PATCHES", 400)  # an image of 150 x 150 makes 100 patches
    parts = run(windows(9))
    assert seen == [9, 4, 4, 1]
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert np.array_equal(run(windows(9)), parts)
    assert run(windows(0)).shape == (0, 48)


def test_the_backbone_stays_as_it_was_and_asks_for_no_gradient(weights: Path) -> None:
    backbone = Backbone(BackboneConfig(name=NAME, weights=str(weights), options=SMALL), 0).train()
    frozen(backbone, Imaging())(windows(2))
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())


def test_the_untrained_twin_is_the_same_backbone_with_random_weights(weights: Path) -> None:
    found = opened(address("stft", weights))
    x = windows(3)
    twin, again, other = (found.untrained(seed)(x) for seed in (0, 0, 1))
    assert np.array_equal(twin, again) and not np.allclose(twin, other, atol=1e-3)
    np.testing.assert_allclose(twin, opened(address("stft", "random"))(x), atol=1e-6)
    assert not np.allclose(found(x), twin, atol=1e-3)


def test_its_name_and_hash_tell_images_and_weights_apart(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "w.safetensors"
    copy.write_bytes(weights.read_bytes())
    found = [opened(address(i, w)) for i, w in (("stft", copy), ("complex", copy), ("stft", "random"))]
    assert [e.name for e in found] == [
        f"{NAME}, stft (ppg)",
        f"{NAME}, complex (ppg)",
        f"{NAME}, stft, random weights (ppg)",
    ]
    assert len({e.hash for e in found}) == 3
    save_file(load_file(copy), copy, metadata={"another": "file"})  # the same vectors
    assert opened(address("stft", copy)).hash != found[0].hash


def _lengths(encoder: Encoder) -> tuple[float, float, float]:
    return encoder.signal.rate, encoder.min_s, encoder.max_s


def test_windows_of_any_length_that_makes_an_image_go_in(weights: Path) -> None:
    found = opened(address("stft", weights))
    assert _lengths(found) == (40, pytest.approx(65 / 40), 30)
    short, long = run_fitted(found, windows(2, 84), fit(found, 2.1)), windows(2, 2400)
    assert short.shape == (2, 48)
    halves = (found(long[..., :1200]) + found(long[..., 1200:])) / 2
    np.testing.assert_allclose(run_fitted(found, long, fit(found, 60)), halves, atol=1e-5)
    assert _lengths(opened(address("recurrence", weights)))[1] == pytest.approx(9 / 40)
    assert _lengths(opened(address("stft", weights, "&preset=ppg_bp")))[2] == pytest.approx(2.1)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("&imagee=stft", r"vision:.*imagee"),
        ("&image=wavelet", r"vision:.*transform"),
        ("&hop=0", r"vision:.*hop"),
        ("&stride=1", r"make 5,625 patches.*raise stride"),
        ("&weights=/nowhere.safetensors", "there is no such file"),
        ("&options.depth=1", "holds no weights of"),
    ],
)
def test_a_mistake_in_the_address_is_one_line(more: str, said: str, weights: Path) -> None:
    with pytest.raises(PlethoraError, match=said) as refused:
        opened(address("recurrence", weights, more))
    assert "\n" not in str(refused.value)
    with pytest.raises(PlethoraError, match="timm has no model 'vit_smol'"):
        opened("vision:vit_smol?weights=random")
