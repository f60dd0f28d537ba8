"""MOMENT: what is imported from its files, which input it takes, and its untrained form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import signal

from cluster import bundle as bundles
from datasets.signal import exact
from pretrain import publish
from pretrain.export import difference, export_onnx, lengths
from pretrain.importing.run import import_weights
from pretrain.layers import seeded
from pretrain.moment_net import Moment, bucket, sinusoids
from pretrain.recipes.released import MOMENTConfig
from tests.pretrain.golden.make import theirs
from tests.pretrain.test_import import refusal, without
from tests.pretrain.test_released import mapped, pulse, z

ATTENTION = "encoder.block.1.layer.0.SelfAttention"


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX files take most of an import's time."""
    monkeypatch.setattr(publish, "export_onnx", lambda mode, path: path.write_bytes(b""))


@pytest.mark.usefixtures("no_onnx")
def test_both_files_that_hugging_face_holds_give_the_same_bundle(tmp_path: Path) -> None:
    state = theirs("moment")
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    made = []
    for name in ("model.safetensors", "pytorch_model.bin"):
        uri = str(tmp_path / name.partition(".")[0] / "bundle")
        found = import_weights("moment", str(tmp_path / name), uri, [])
        assert found["modes"] == ["ppg"] and "encoder.embed_tokens.weight" in found["unused"]
        made.append(Path(uri))
    for name in ("model.safetensors", "preprocessing.json"):
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()


def test_every_key_that_does_not_match_is_named(tmp_path: Path) -> None:
    state = theirs("moment")
    lost, odd = f"{ATTENTION}.q.weight", f"{ATTENTION}.o.weight"
    broken, new = "encoder.final_layer_norm.weight", "decoder.block.0.layer.0.SelfAttention.q.weight"
    changed = {odd: torch.zeros(3), new: torch.zeros(2), broken: state[broken] * torch.nan}
    said = refusal(tmp_path, "moment", without(state, lost) | changed)
    for kind, key in (("missing", lost), ("of another shape", odd), ("with NaN or infinite values", broken)):
        assert f"{kind}: {key}" in said
    assert said.endswith(f"; not part of MOMENT: {new}")
    pe = "patch_embedding.position_embedding.pe"
    said = refusal(tmp_path, "moment", state | {pe: state[pe][:, :63]})
    assert f"of another shape: {pe} (1, 63, 16) instead of (1, 64, 16)" in said
    assert "--set depth=8: the checkpoint has 3" in refusal(tmp_path, "moment", state, "--set", "depth=8")


def test_a_window_of_more_than_512_samples_is_refused_with_what_to_do(tmp_path: Path) -> None:
    said = refusal(tmp_path, "moment", theirs("moment"), "--set", "window_s=10")
    assert "10 s at rate = 64 Hz are 640 samples, and MOMENT reads 512 at most: lower rate or" in said
    said = refusal(tmp_path, "moment", theirs("moment"), "--set", "min_s=0.1")
    assert "min_s = 0.1 are 6 samples, and a patch has 8" in said


@pytest.mark.usefixtures("no_onnx")
def test_at_another_rate_512_samples_are_another_time(tmp_path: Path) -> None:
    torch.save(theirs("moment"), tmp_path / "pytorch_model.bin")
    uri = str(tmp_path / "run" / "bundle")
    import_weights("moment", str(tmp_path / "pytorch_model.bin"), uri, ["rate=51.2", "window_s=10"])
    found = bundles.open(uri)
    assert found.preprocessing["ppg"]["rate"] == 51.2 and found.preprocessing["ppg"]["window_s"] == 10
    assert found.preprocessing["ppg"]["max_s"] == 10


@pytest.mark.parametrize("rate, up, down", [(125, 64, 125), (256, 1, 4), (50, 32, 25), (64, 1, 1)])
def test_it_reads_64_hz_by_polyphase_resampling_whatever_the_offset(rate: int, up: int, down: int) -> None:
    x = pulse(rate)
    found = exact(x[None], rate, MOMENTConfig().signal())[0, 0]
    np.testing.assert_allclose(found, signal.resample_poly(z(x[0]), up, down), atol=1e-9)
    np.testing.assert_allclose(exact(x[None] + 1e4, rate, MOMENTConfig().signal())[0, 0], found, atol=1e-6)


def test_its_onnx_file_takes_any_length_to_512_samples(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    mode: Any = mapped("moment")[0]
    assert lengths(mode) == [128, 512]
    path = tmp_path / "ppg.onnx"
    assert export_onnx(mode, path) < 1e-5
    for samples, batch in ((128, 1), (131, 5), (320, 2), (427, 3), (511, 1), (512, 4)):
        assert difference(mode, path, samples, batch) < 1e-5


def test_less_than_a_patch_at_the_start_enters_the_statistics_only() -> None:
    with seeded(3):
        net = Moment(16, 2, 2, 8, 24).eval()
    half = torch.randn(2, 1, 240, generator=torch.Generator().manual_seed(1))
    x = torch.cat([half, -half], dim=-1)  # of mean 0
    spread = x.square().mean(dim=-1, keepdim=True).sqrt()
    start = torch.tensor([1.0, -1.0, 1.0, -1.0]) * spread  # of the same mean and spread
    with torch.no_grad():
        wanted = net(x)
        torch.testing.assert_close(net(torch.cat([start, x], dim=-1)), wanted, atol=1e-5, rtol=0)
        assert (net(torch.cat([3 * start, x], dim=-1)) - wanted).abs().max() > 1e-3
        torch.testing.assert_close(net(x * 50 + 1000), wanted, atol=1e-3, rtol=0)
        assert torch.isfinite(net(torch.ones(1, 1, 200))).all()  # a flat window


def test_untrained_it_starts_as_t5_and_the_authors_code_do() -> None:
    place, part = np.arange(64)[:, None], np.arange(0, 16, 2) / 16
    wanted = sinusoids(64, 16).numpy()
    np.testing.assert_allclose(wanted[:, ::2], np.sin(place / 10000**part), atol=1e-5)
    np.testing.assert_allclose(wanted[:, 1::2], np.cos(place / 10000**part), atol=1e-5)
    assert [bucket(d, 32) for d in (-1, 0, 1, -7, 8, 16, 32, 63, 200)] == [1, 0, 17, 7, 24, 26, 28, 29, 31]
    with seeded(0):
        net = Moment(256, 1, 4, 32, 512)
    kernel = net.embed.weight
    torch.testing.assert_close(kernel.T @ kernel, 1.41**2 * torch.eye(8), atol=1e-4, rtol=0)
    spread = {name: getattr(net.blocks[0], name).weight.std().item() for name in ("q", "k", "proj", "down")}
    wanted_std = {"q": (256 * 32) ** -0.5, "k": 256**-0.5, "proj": 128**-0.5, "down": 512**-0.5}
    assert spread == pytest.approx(wanted_std, rel=0.05)
