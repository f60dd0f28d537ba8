"""Attention is torch's fused one everywhere, without a mask where every token may be seen: a mask would turn
the flash kernel off.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.layers import Attention
from tests.pretrain.kit import Trainer, batch
from tests.pretrain.recipes import RECIPES

FLASH = "_scaled_dot_product_flash_attention_for_cpu"


class Named(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def masks(name: str, data: dict, monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """The mask of every attention of a step after the first, which starts the tokenizer's codebook, too."""
    trainer = Trainer(RECIPES[name]())
    trainer.step(data, 3)
    seen: list[Tensor | None] = []
    fused = F.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        seen.append(attn_mask)
        return fused(*args, attn_mask=attn_mask, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    trainer.step(data, 4)
    return seen


@pytest.mark.parametrize("name, times", [("tokenizer", 3), ("masked", 5), ("m2ae", 7)])
def test_every_block_attends_through_torch_without_a_mask(name, times, monkeypatch) -> None:
    assert masks(name, batch(), monkeypatch) == [None] * times


def test_windows_that_may_lack_a_modality_need_one_in_the_bottleneck_alone(monkeypatch) -> None:
    data = batch() | {"has_ppg": torch.ones(8, dtype=torch.bool), "has_ecg": torch.arange(8) > 2}
    assert sum(mask is not None for mask in masks("m2ae", data, monkeypatch)) == 1


@pytest.mark.parametrize("drop, flash", [(0.0, True), (0.1, False)])
def test_torch_takes_its_flash_kernel_on_a_cpu_unless_there_is_dropout(drop: float, flash: bool) -> None:
    """A GPU's has dropout inside; `tests.benchmarks.gpu` tells which kernel it takes there."""
    net = Attention(16, 2, bias=False, qk_norm=True, drop=0.0, attn_drop=drop)
    with Named() as told:
        net(torch.randn(2, 5, 16))
    assert (FLASH in told.names) == flash


def test_a_window_that_lacks_nothing_is_encoded_as_if_nobody_had_asked() -> None:
    trainer, data = Trainer(RECIPES["m2ae"]()), batch()
    there = {f"has_{m}": torch.ones(8, dtype=torch.bool) for m in ("ppg", "ecg")}
    a, b = (trainer.losses(each, 3).losses["m2ae"] for each in (data, data | there))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
