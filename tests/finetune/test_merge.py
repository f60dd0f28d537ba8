"""Adapters added to the weights of their base: one ONNX file that predicts what the two do."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from cluster import bundle as bundles
from finetune.adapter import open_adapter
from finetune.commands.vision import Vision, run
from finetune.reports.sheet import write
from pretrain.publish import write_bundle
from tests.finetune.test_supervised import IMAGING, batch, tune, vision
from tests.finetune.tiny import lineage


def test_a_merged_bundle_predicts_in_onnx_what_the_adapter_does(tmp_path: Path) -> None:
    """Images inside: from prepared samples to the task's unit, with the card's own code."""
    recipe = vision(imaging=IMAGING | {"transform": "fusion", "stride": 20})
    net = recipe.modules()["net"].eval()
    with torch.no_grad():  # as if it had been trained
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) / 4)
    method = recipe.config.model_dump(mode="json")
    about = {"recipe": "finetune.supervised:Vision", "method": method, "seed": 1, "name": "v", "split": {}}
    state = {"net": {k: v for k, v in net.state_dict().items() if "lora_" in k or ".vit." not in k}}
    metrics: dict[str, Any] = {"first": {}, "last": {}, "history": []}
    uri, encoder = str(tmp_path / "run" / "bundle"), recipe.encoder({"net": net})
    write_bundle(uri, encoder, state, {"net": 1}, about, lineage(), metrics, {})
    merged = write(run(Vision(merge=uri, out=str(tmp_path / "merged"))))
    assert merged["columns"] == ["heart_rate"] and bundles.verify(merged["bundle"])["kind"] == "encoder"
    x = batch(0)["ppg"].numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "merged" / "ppg.onnx"))
    (found,) = session.run(None, {"ppg": x})
    with torch.no_grad():
        np.testing.assert_allclose(found, net(torch.from_numpy(x)).numpy(), atol=1e-3)


def test_an_encoders_adapter_is_small_and_merges_into_one_onnx(bundle: str, tmp_path: Path) -> None:
    recipe = tune(bundle, mode="lora", rank=2, window_s=60.0)
    assert "mode lora (rank 2, on 2 layers): " in recipe.check()[1]
    net = recipe.modules()["net"].eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # as if it had been trained
        for p in net.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator) / 4)
    about = {
        "recipe": "finetune.supervised:Tune",
        "method": recipe.config.model_dump(mode="json"),
        "seed": 1,
        "name": "t",
        "split": {},
    }
    state = {"net": {k: v for k, v in net.state_dict().items() if ".encode." not in k or "lora_" in k}}
    metrics: dict[str, Any] = {"first": {}, "last": {}, "history": []}
    uri = str(tmp_path / "run" / "bundle")
    write_bundle(uri, recipe.encoder({"net": net}), state, {"net": 1}, about, lineage(), metrics, {})
    x = torch.randn(3, 1, 3000, generator=generator)
    wanted = net(x).detach()
    torch.testing.assert_close(open_adapter(uri).net(x), wanted)
    write(run(Vision(merge=uri, out=str(tmp_path / "merged"))))
    assert bundles.verify(str(tmp_path / "merged"))["kind"] == "encoder"
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "merged" / "ppg.onnx")).run(
        None, {"ppg": x.numpy()}
    )
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-3)
