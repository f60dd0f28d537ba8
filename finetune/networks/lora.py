"""Low-rank adapters on a timm ViT's attention, through peft (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cluster.config import Config
from cluster.errors import PlethoraError

# A plain "proj" would hit the patch embedding's convolution, too.
FUSED = r".*blocks\.\d+\.attn\.(qkv|proj)"
SEPARATE = r".*blocks\.\d+\.attn\.(qkv\.[qkv]|[qkv]_proj|proj)"  # of `SplitQKV`, or of timm's own


class LoRAConfig(Config):
    preset: Literal["fused", "paper"] = "fused"  # paper: q, k, v, o have an adapter each
    r: int = Field(default=8, ge=1)  # paper
    alpha: int = Field(default=16, ge=1)  # paper
    dropout: float = Field(default=0.05, ge=0, lt=1)  # paper


class SplitQKV(nn.Module):
    """Three linear layers in the place of a fused one: the same function, (…, D) -> (…, 3 · inner)."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        inner = fused.out_features // 3
        where = {"device": "meta", "dtype": fused.weight.dtype}  # values come from `fused`: none are drawn
        for number, name in enumerate("qkv"):
            layer = nn.Linear(fused.in_features, inner, bias=fused.bias is not None, **where)
            at = slice(number * inner, (number + 1) * inner)
            layer.weight = nn.Parameter(fused.weight.detach()[at].clone())
            if fused.bias is not None:
                layer.bias = nn.Parameter(fused.bias.detach()[at].clone())
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.children()], dim=-1)

    @torch.no_grad()
    def fused(self) -> nn.Linear:
        """The one layer that it is."""
        parts = [layer for layer in self.children() if isinstance(layer, nn.Linear)]
        first = parts[0]
        where = {"device": first.weight.device, "dtype": first.weight.dtype}
        whole = nn.Linear(first.in_features, 3 * first.out_features, bias=first.bias is not None, **where)
        whole.weight.copy_(torch.cat([layer.weight for layer in parts]))
        if whole.bias is not None:
            whole.bias.copy_(torch.cat([layer.bias for layer in parts]))
        return whole


def add(vit: nn.Module, c: LoRAConfig) -> int:
    """Puts adapters into `vit`, in place, and freezes the rest; the function stays the same until they are
    trained. Returns how many parameters they have. PlethoraError when there is no attention to adapt."""
    from peft import LoraConfig, inject_adapter_in_model

    attentions = [(n, m) for n, m in vit.named_modules() if n.endswith(".attn")]
    for name, module in attentions:
        if getattr(module, "q_bias", None) is not None:
            module.qkv_bias_separate = True  # timm then calls qkv; else it reads its weight, past the adapter
        fused = getattr(module, "qkv", None)
        if c.preset == "paper" and isinstance(fused, nn.Linear):
            replace(vit, f"{name}.qkv", SplitQKV(fused))
    apart = any(isinstance(getattr(m, "q_proj", None), nn.Linear) for _, m in attentions)
    config = LoraConfig(
        r=c.r,
        lora_alpha=c.alpha,
        lora_dropout=c.dropout,
        target_modules=SEPARATE if apart or c.preset == "paper" else FUSED,
        bias="none",
    )
    try:
        inject_adapter_in_model(config, vit)
    except ValueError:
        raise PlethoraError(
            f"LoRA finds no attention blocks in {type(vit).__name__}: it wants modules named "
            'blocks.<n>.attn.(qkv|proj); take another backbone, or mode = "probe" or "full"'
        ) from None
    found = {name: p for name, p in vit.named_parameters() if "lora_" in name}
    for name, p in vit.named_parameters():
        p.requires_grad_(name in found)
    return sum(p.numel() for p in found.values())


def merge(vit: nn.Module) -> None:
    """Adds the adapters to the weights they adapt and takes them out, in place: timm's own names and shapes
    again, the same function (in eval mode)."""
    from peft.tuners.lora import Linear

    for name, module in list(vit.named_modules()):
        if isinstance(module, Linear):
            module.merge()
            replace(vit, name, module.get_base_layer())
    for name, module in list(vit.named_modules()):
        if isinstance(module, SplitQKV):
            replace(vit, name, module.fused())


def replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)
