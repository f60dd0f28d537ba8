"""Low-rank adapters on an encoder of signals, through peft (Hu et al., arXiv 2106.09685): on the linear
layers and the convolutions that its vector passes through.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cluster.errors import PlethoraError
from finetune.networks.lora import replace
from pretrain.net1d import SameConv


class Padded(nn.Module):
    """A `SameConv` as its padding and a plain convolution with the same weights: peft gives an adapter the
    kernel and stride of a convolution, and could not know of the padding.
    """

    def __init__(self, same: SameConv) -> None:
        super().__init__()
        self.same = [same]  # in a list: no module of its own, its weights are those of `conv`
        self.conv = nn.Conv1d(
            same.in_channels,
            same.out_channels,
            same.kernel_size[0],
            stride=same.stride[0],
            bias=same.bias is not None,
            device="meta",
        )
        self.conv.weight, self.conv.bias = same.weight, same.bias

    def forward(self, x_bct: Tensor) -> Tensor:
        return self.conv(self.same[0].padded(x_bct))


def passed(module: nn.Module, signals: Sequence[Tensor]) -> list[str]:
    """Names of the linear layers and convolutions that `module` calls for `signals`. Grouped convolutions are
    left out: peft cannot merge an adapter into one.
    """
    names, hooks = [], []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv1d) and layer.groups == 1):
            hooks.append(layer.register_forward_hook(lambda *_, name=name: names.append(name)))
    try:
        with torch.no_grad():
            module(*signals)
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(set(names))


def add(module: nn.Module, signals: Sequence[Tensor], rank: int) -> list[str]:
    """Puts adapters of this rank into `module`, in place, and freezes the rest; the function stays the same
    until they are trained. `signals`: input of its mode, which finds the layers. Returns their names.

    PlethoraError: there is none.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = passed(module, signals)
    if not names:
        raise PlethoraError(
            f"LoRA finds no linear layer and no plain convolution in {type(module).__name__}: train it whole"
        )
    targets = []
    for name in names:
        layer = module.get_submodule(name)
        if isinstance(layer, SameConv):
            replace(module, name, Padded(layer))
        targets.append(f"{name}.conv" if isinstance(layer, SameConv) else name)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # what an adapter adds is not scaled by its rank
        lora_dropout=0.0,
        target_modules="|".join(re.escape(name) for name in targets),
        bias="none",
    )
    inject_adapter_in_model(config, module)
    for name, p in module.named_parameters():
        p.requires_grad_("lora_" in name)
    return names


def merge(module: nn.Module) -> None:
    """Adds the adapters to the weights that they adapt and takes them out, in place: the module's own names
    and shapes again, the same function (in eval mode).
    """
    from peft.tuners.lora.layer import LoraLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            replace(module, name, layer.get_base_layer())
    for name, layer in list(module.named_modules()):
        if isinstance(layer, Padded):
            same = layer.same[0]
            same.weight, same.bias = layer.conv.weight, layer.conv.bias
            replace(module, name, same)
