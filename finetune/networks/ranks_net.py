"""LoRA adapters of several ranks trained at once on one copy of a frozen backbone.

Images are made once, the backbone's layers run once over every adapter's samples, adapter after adapter along
the sample axis, and each adapter learns as it would alone: from the same initial weights and dropout masks,
with an optimizer, a clipping norm and (`optim_of`) a learning rate of its own. K adapters, B windows, N
patches, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from finetune.imaging import Images
from finetune.networks import lora as adapters
from finetune.networks.backbone import VisionConfig, VisionNet, fused
from finetune.networks.lora import LoRAConfig

Adapter = Mapping[str, Tensor]  # what `VisionNet.adapter` names


class SharedLinear(nn.Module):
    """A frozen linear layer under K adapters: (K·B, …, in) -> (K·B, …, out). All have the same dropout, so
    that alone each would draw the same mask: it is drawn once."""

    def __init__(self, base: nn.Module, dropout: float) -> None:
        super().__init__()
        self.base, self.dropout = base, dropout
        self.down = self.up = torch.empty(0)  # (K, in, R), (K, R, out)

    def adapt(self, down: Sequence[Tensor], up: Sequence[Tensor], scales: Sequence[float]) -> None:
        """Until the next call: (r, in) and (out, r) of each adapter, padded with zeros to the largest r."""
        most = max(len(a) for a in down)
        self.down = torch.stack([F.pad(a, (0, 0, 0, most - len(a))) for a in down]).transpose(1, 2)
        wide = [F.pad(b * s, (0, most - b.shape[1])) for b, s in zip(up, scales, strict=True)]
        self.up = torch.stack(wide).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        many = len(self.down)
        y = self.base(x)
        shared = x.reshape(many, -1, x.shape[-1])
        if self.training and self.dropout:
            one = x[: len(x) // many]
            shared = shared * F.dropout(torch.ones_like(one), self.dropout).reshape(1, -1, x.shape[-1])
        return torch.baddbmm(y.reshape(many, -1, y.shape[-1]), shared @ self.down, self.up).view_as(y)


class Readout(nn.Module):
    """What a network has behind its backbone: tokens (B, N, D) and their validity, an entry an image, ->
    (B, columns) float32. Parameters are called as the network's."""

    def __init__(self, net: VisionNet) -> None:
        super().__init__()
        self.pool, self.fusion, self.heads = net.pool, net.fusion, net.heads

    def forward(self, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        vector = fused([self.pool(tokens, valid) for tokens, valid in seen], self.fusion)
        return torch.cat([head(vector) for head in self.heads], dim=1).float()


class Together(nn.Module):
    """One frozen backbone for K adapters, whose tensors come with each call. `start`: {name: its initial
    tensors}, those that `VisionNet(config with that LoRA, targets, seed)` has."""

    def __init__(
        self, config: VisionConfig, members: Mapping[str, LoRAConfig], targets: Mapping[str, int], seed: int
    ) -> None:
        super().__init__()
        self.scales = [c.alpha / c.r for c in members.values()]
        self.start: dict[str, dict[str, Tensor]] = {}
        net: VisionNet | None = None
        for name, lora in members.items():
            own = config.model_copy(update={"mode": "lora", "lora": lora})
            net = VisionNet(own, targets, seed, net)
            self.start[name] = {key: tensor.clone() for key, tensor in net.adapter().items()}
            adapters.take_out(net.backbone.vit)
        assert net is not None
        self.net, vit = net.requires_grad_(False), net.backbone.vit
        self.layers: dict[str, SharedLinear] = {}
        for key in self.start[name]:
            if key.endswith(".lora_A.default.weight"):
                path = key.removesuffix(".lora_A.default.weight")
                inside = path.removeprefix("backbone.vit.")
                self.layers[path] = SharedLinear(vit.get_submodule(inside), lora.dropout)
                adapters.replace(vit, inside, self.layers[path])
        many = len(members)  # until the first block, samples are the same for all
        vit.blocks[0].register_forward_pre_hook(lambda _, x: (x[0].repeat(many, 1, 1), *x[1:]))
        self.read = Readout(net)

    def forward(
        self, given: Sequence[Adapter], x_bct: Tensor, uniform_b4: Tensor | None = None
    ) -> list[Tensor]:
        """(B, columns) float32 of each adapter, as `VisionNet.forward` gives of it alone."""
        self.train(torch.is_grad_enabled())
        for path, layer in self.layers.items():
            down, up = (
                [a[f"{path}.lora_{which}.default.weight"] for a in given] for which in ("A", "B")
            )  # fmt: skip
            layer.adapt(down, up, self.scales)
        seen = [self._tokens(image) for image in self.net.images(x_bct, None, uniform_b4)]
        state, found = _random_state(x_bct.device), []
        for number, own in enumerate(given):
            _set_random_state(x_bct.device, state)  # alone, each goes on where the backbone left off
            here = {key: own[key] for key in own if not key.startswith("backbone.")}
            mine = [(tokens[number], valid) for tokens, valid in seen]
            found.append(functional_call(self.read, here, (mine,)))
        return found

    def _tokens(self, image: Images) -> tuple[Tensor, Tensor]:
        """(K, B, N, D), (B, N)."""
        tokens, valid = self.net.backbone(image)
        return tokens.reshape(len(self.scales), -1, *tokens.shape[1:]), valid


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
