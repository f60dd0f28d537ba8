from pathlib import Path

import pytest
import torch
from torch import nn

from cluster.errors import PlethoraError
from pretrain.export import difference, export_onnx, lengths
from pretrain.layers import seeded
from pretrain.net1d import Net1D
from pretrain.recipe import Mode
from pretrain.recipes.sigma import Masked, MaskedConfig, Tokenizer, TokenizerConfig

ROOT = Path(__file__).resolve().parents[2]
INPUT = {"name": "ppg", "modality": "ppg", "rate": 50.0, "channels": 1}


@pytest.mark.parametrize("stage", ["masked", "tokenizer"])
def test_onnx_equals_torch_at_1_to_120_patches_and_any_batch(tmp_path, stage):
    torch.set_num_threads(1)
    small = {"dim": 24, "depth": 2, "heads": 2, "codebook_size": 8}
    recipe = (
        Masked(MaskedConfig(**small), 0)
        if stage == "masked"
        else Tokenizer(TokenizerConfig(**small, decoder_dim=24, decoder_depth=1, decoder_heads=2), 0)
    )
    mode = recipe.encoder(recipe.modules()).modes["ppg"]
    assert lengths(mode) == [100, 150, 300, 1500, 12000]
    path = tmp_path / "ppg.onnx"
    assert export_onnx(mode, path) < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["ppg.onnx"]  # weights inside
    assert str(ROOT).encode() not in path.read_bytes()  # no stack traces of the machine that exported it
    for patches, batch in ((1, 5), (3, 2), (15, 1), (120, 2), (77, 1)):
        assert difference(mode, path, 100 * patches, batch) < 1e-4


class Fickle(nn.Module):
    """Answers something else each time, as a module with a forgotten dropout does."""

    calls = 0

    def forward(self, x_bct: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x_bct.mean(dim=-1) + self.calls


def test_an_export_that_differs_from_torch_is_refused(tmp_path):
    mode = Mode(Fickle(), [INPUT], dim=1, min_samples=10, step_samples=10, max_samples=40)
    with pytest.raises(PlethoraError, match=r"ppg\.onnx differs from torch"):
        export_onnx(mode, tmp_path / "ppg.onnx")


class Large(nn.Module):
    """Vectors around a million, as a network without a last norm may give."""

    def forward(self, x_bct: torch.Tensor) -> torch.Tensor:
        return 1e6 + torch.linspace(1.1, 1.2, 64) * x_bct.cumsum(dim=-1).std(dim=-1) * 1e5


def test_large_vectors_are_compared_by_their_own_scale(tmp_path):
    mode = Mode(Large(), [INPUT], dim=64, min_samples=10, step_samples=10, max_samples=40)
    assert export_onnx(mode, tmp_path / "ppg.onnx") < 1e-5


@pytest.mark.parametrize("samples", [300, 301])
def test_a_convolutional_network_of_one_length_is_exported_exactly(tmp_path, samples):
    """onnxruntime's optimisation of a fixed length: findings/onnxruntime_pad_before_maxpool.sh."""
    with seeded(0):
        net = Net1D(1, (16, 32, 64), (1, 1, 1), 3, 16, 8, 0.0).eval()
    given = [{"name": "ppg", "modality": "ppg", "rate": 50.0, "channels": 1}]
    assert export_onnx(Mode(net, given, net.dim, samples, samples, samples), tmp_path / "ppg.onnx") < 1e-5


class Looked(nn.Module):
    """A table's rows: the exporter calls what an `nn.Embedding` gives "embedding", as a bundle its vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(16, 8), nn.Linear(8, 8)

    def forward(self, x_bct: torch.Tensor) -> torch.Tensor:
        rows = (4 * x_bct[:, 0].abs()).long().clamp(0, 15)
        return self.last(self.table(rows).mean(dim=1))


def test_a_network_with_an_embedding_table_is_exported(tmp_path):
    mode = Mode(Looked().eval(), [INPUT], 8, 100, 1, 500)
    assert export_onnx(mode, tmp_path / "ppg.onnx") < 1e-5
