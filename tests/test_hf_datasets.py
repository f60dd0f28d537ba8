"""Hugging Face's `datasets` is installed beside our folder of that name, and breaks nothing that we use."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = str(ROOT / "datasets" / "__init__.py")


def _run(program: str, folder: Path, *arguments: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments, "-c", program],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_hugging_faces_datasets_is_truly_installed_and_found_from_elsewhere(tmp_path: Path) -> None:
    program = (
        "import datasets; print(datasets.__file__);"
        "print(datasets.Dataset.from_dict({'x': [1, 2]}).map(lambda row: {'y': row['x'] * 2})['y'][1])"
    )
    where, value = _run(program, tmp_path).split()
    assert where != OURS
    assert "site-packages" in where
    assert value == "4"
    assert importlib.metadata.version("datasets")


def test_from_the_checkout_root_datasets_is_ours_and_all_that_we_use_works_beside_it(tmp_path: Path) -> None:
    program = """
import importlib.metadata
importlib.metadata.version("datasets")  # Hugging Face's distribution is there: libraries will ask for it
import datasets
print(datasets.__file__)
import timm, peft, deepspeed, ray.data, ray.train, vector_quantize_pytorch, torch

torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=2, num_classes=3)
where = r".*blocks\\.\\d+\\.attn\\.(qkv|proj)"
net = peft.get_peft_model(vit, peft.LoraConfig(r=4, lora_alpha=8, target_modules=where))
before = {name: value.detach().clone() for name, value in net.named_parameters()}
optimizer = torch.optim.SGD([value for value in net.parameters() if value.requires_grad], lr=0.5)
for _ in range(2):
    optimizer.zero_grad()
    net(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
assert moved and all("lora_" in name for name in moved), moved

quantized, ids, _ = vector_quantize_pytorch.VectorQuantize(dim=8, codebook_size=16)(torch.randn(2, 5, 8))
assert quantized.shape == (2, 5, 8) and ids.shape == (2, 5)
assert deepspeed.initialize and ray.train.ScalingConfig and ray.data.from_items
assert datasets.__file__.endswith("datasets/__init__.py")
import sys
assert sys.modules["datasets"] is datasets
"""
    assert _run(program, ROOT).splitlines()[0] == OURS


def test_our_package_is_not_installed(tmp_path: Path) -> None:
    program = (
        "import importlib.util as u; print([u.find_spec(n) for n in ('cluster', 'pretrain', 'finetune')])"
    )
    assert _run(program, tmp_path).strip() == "[None, None, None]"
