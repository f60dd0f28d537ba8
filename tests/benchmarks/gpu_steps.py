"""The networks that `gpu` times and one optimizer step of each, out of torch and our network files alone.

`Sigma.losses` and `Anyppg.losses` compute what the recipes do (a test holds them to it), without what they
log; `plain` is what one would write with torch's own layers, of the same shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import layers, masking
from pretrain.contrastive import Scale, info_nce
from pretrain.losses import advantage, masked_cross_entropy, reinforce
from pretrain.net1d import Net1D, Projector
from pretrain.sigma_net import Student, Teacher, conv_encoder
from pretrain.sync_bn import BatchNorm

GUMBEL, UNMASK = 4, 5  # what the recipe's keyed draws are for
SEED = 0


@dataclass(frozen=True)
class Shape:
    """SIGMA's masked stage: pretrain/runs/sigma/*.toml and the recipe's defaults."""

    dim: int
    depth: int
    heads: int
    channels: int
    batch: int  # windows a backward pass
    patch: int = 100
    patches: int = 120
    codes: int = 4096
    drop: float = 0.08
    drop_path: float = 0.15
    teacher: int = 64

    @property
    def drawn(self) -> int:
        """Patches of a window that the teacher draws."""
        return self.patches // 2


SIGMA = {
    "base": Shape(200, 12, 10, 8, 256),
    "pro": Shape(360, 18, 12, 12, 256),
    "large": Shape(512, 24, 8, 16, 128),
}
FILTERS, BLOCKS = (64, 160, 160, 400, 400, 512), (2, 2, 2, 3, 3, 1)
PAIRS = 512  # of AnyPPG's batch of 2,048 on four GPUs
PPG, ECG, PROJECTION = 1250, 5000, 128  # samples; features that are compared


class Step(ABC):
    """Modules, an AdamW each, and a batch that stays."""

    modules: dict[str, nn.Module]
    window_s: float
    batch: int

    @abstractmethod
    def losses(self, step: int) -> dict[str, Tensor]:
        """One scalar a module."""

    def prepare(self, device: torch.device, fused: bool = False) -> None:
        for module in self.modules.values():
            module.to(device)
        self.device = device
        way = {"fused": True} if fused else {"foreach": True}
        self.optimizers = {
            name: torch.optim.AdamW(m.parameters(), 1e-4, weight_decay=0.05, **way)  # type: ignore[arg-type]
            for name, m in self.modules.items()
        }

    def called(self, name: str, *args: Tensor | None):
        """The module's forward pass under bfloat16 autocast, as an engine calls it."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.modules[name](*args)

    def run(self, step: int, read: bool = True) -> list[Tensor]:
        """One optimizer step; ``read``: the host reads the gradient norms, as engines do."""
        norms = []
        losses = self.losses(step)
        for loss in losses.values():
            loss.backward()
        for name, optimizer in self.optimizers.items():
            norm = nn.utils.clip_grad_norm_(self.modules[name].parameters(), 1.0)
            if not read or float(norm) < float("inf"):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            norms.append(norm)
        return norms


class DropPath(nn.Module):
    """`layers.DropPath` with its rate in a tensor: blocks that differ in it alone compile to one graph
    (torch 2.13 makes a graph for every float: 18 of pro's blocks, 2 with this)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.drops = p > 0.0
        self.register_buffer("p", torch.tensor(p), persistent=False)
        self.register_buffer("kept", torch.tensor(1.0 - p), persistent=False)

    def forward(self, x_bnd: Tensor) -> Tensor:
        if not self.drops or not self.training:
            return x_bnd
        keep = torch.rand(x_bnd.shape[0], 1, 1, device=x_bnd.device) >= self.p
        return x_bnd * keep.to(x_bnd.dtype) / self.kept.to(x_bnd.dtype)


def sigma_nets(s: Shape) -> dict[str, nn.Module]:
    """The student and the teacher with fresh weights."""
    encoder = conv_encoder(
        s.patch,
        s.channels,
        s.dim,
        s.depth,
        s.heads,
        s.patches,
        qk_norm=True,
        layer_scale=0.1,
        drop=s.drop,
        attn_drop=s.drop,
        drop_path=s.drop_path,
        maskable=True,
    )
    net = conv_encoder(s.patch, s.teacher, s.teacher, 2, 4, s.patches, bias=True)
    student = Student(encoder, s.patch, s.dim, s.codes)
    return {"student": student, "teacher": Teacher(net, s.patch, s.teacher)}


class Sigma(Step):
    window_s = 240.0

    def __init__(self, shape: Shape, device: torch.device, fused: bool = False) -> None:
        s = self.shape = shape
        self.batch = s.batch
        torch.manual_seed(SEED)
        self.modules = sigma_nets(s)
        self.prepare(device, fused)
        self.x = torch.randn(s.batch, 1, s.patch * s.patches, device=device).cumsum(-1)
        self.ids = torch.arange(s.batch, device=device)
        self.targets = torch.randint(0, s.codes, (s.batch, s.patches), device=device)
        self.prior = masking.priors(layers.patches(layers.minmax(self.x), s.patch))

    def losses(self, step: int) -> dict[str, Tensor]:
        n = self.shape.patches
        logits = 2.0 * masking.zscore(self.prior) + self.called("teacher", self.x).float()
        uniform = layers.keyed_uniform(self.ids, n, SEED, GUMBEL, step)
        order = masking.draw(logits.detach(), uniform, self.shape.drawn)
        again = layers.keyed_uniform(self.ids, n, SEED, UNMASK, step)
        mask = masking.edit(masking.to_mask(order, n), again, 0.3, 5)
        at = masking.places(order, n)
        guess = self.called("student", self.x, mask, at, None)
        per_window, loss = masked_cross_entropy(guess, self.targets, mask, at)
        log_prob = masking.plackett_luce_log_prob(logits, order)
        return {"student": loss, "teacher": reinforce(log_prob, advantage(per_window, True))}


class Pair(nn.Module):
    """AnyPPG's two encoders with their heads."""

    def __init__(self, filters: tuple[int, ...], blocks: tuple[int, ...], norm: Callable[..., nn.Module]):
        super().__init__()
        given: dict = {"filters": filters, "blocks": blocks, "norm": norm}
        self.ppg, self.ecg = Net1D(kernel=3, **given), Net1D(kernel=16, dropout=0.0, **given)
        self.drop = nn.Dropout(0.2)
        self.ppg_head = Projector(self.ppg.dim, PROJECTION, norm)  # type: ignore[arg-type]
        self.ecg_head = Projector(self.ecg.dim, PROJECTION, norm)  # type: ignore[arg-type]
        self.scale = Scale()

    def forward(self, ppg: Tensor, ecg: Tensor, _: None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.ppg_head(self.drop(self.ppg(ppg))), self.ecg_head(self.ecg(ecg)), self.scale()


class Anyppg(Step):
    window_s = 10.0

    def __init__(
        self,
        batch: int,
        device: torch.device,
        filters: tuple[int, ...] = FILTERS,
        blocks: tuple[int, ...] = BLOCKS,
        norm: Callable[..., nn.Module] = BatchNorm,
        fused: bool = False,
    ) -> None:
        torch.manual_seed(SEED)
        self.batch, self.modules = batch, {"pair": Pair(filters, blocks, norm)}
        self.prepare(device, fused)
        self.ppg = torch.randn(batch, 1, PPG, device=device)
        self.ecg = torch.randn(batch, 1, ECG, device=device)

    def losses(self, step: int) -> dict[str, Tensor]:
        return {"pair": info_nce(*self.called("pair", self.ppg, self.ecg))}


class _Stack(nn.Module):
    """torch's own layers in the shape of a student or a teacher."""

    def __init__(self, s: Shape, dim: int, depth: int, heads: int, channels: int, out: int) -> None:
        super().__init__()
        self.embed = layers.TemporalConv(s.patch, channels, dim)
        self.first = nn.Parameter(torch.zeros(1, s.patches + 1, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, s.drop, F.gelu, 1e-6, True, True)
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, out)

    def forward(self, x_bnp: Tensor, at_m: Tensor) -> Tensor:
        x = F.pad(self.embed(x_bnp), (0, 0, 1, 0)) + self.first
        return self.head(self.blocks(x)[:, 1:].flatten(0, 1).index_select(0, at_m))


class PlainSigma(Step):
    """A stack that names patches and one that scores them: no masks, draws or policy."""

    window_s = 240.0

    def __init__(self, shape: Shape, device: torch.device) -> None:
        s = shape
        self.batch = s.batch
        self.modules = {
            "student": _Stack(s, s.dim, s.depth, s.heads, s.channels, s.codes),
            "teacher": _Stack(replace(s, drop=0.0), s.teacher, 2, 4, s.teacher, 1),
        }
        self.prepare(device, fused=device.type == "cuda")
        self.x = torch.rand(s.batch, s.patches, s.patch, device=device)
        self.all = torch.arange(s.batch * s.patches, device=device)
        self.at = self.all.view(s.batch, -1)[:, : s.drawn].flatten()
        self.targets = torch.randint(0, s.codes, (len(self.at),), device=device)

    def losses(self, step: int) -> dict[str, Tensor]:
        guess = self.called("student", self.x, self.at).float()
        score = self.called("teacher", self.x, self.all).float()
        return {"student": F.cross_entropy(guess, self.targets), "teacher": score.logsumexp(0).mean()}


class PlainAnyppg(Anyppg):
    """The same convolutions with torch's batch norm and a bare cross-entropy both ways."""

    def __init__(self, batch: int, device: torch.device, filters: tuple[int, ...], blocks: tuple[int, ...]):
        super().__init__(batch, device, filters, blocks, nn.BatchNorm1d, fused=device.type == "cuda")
        self.own = torch.arange(batch, device=device)

    def losses(self, step: int) -> dict[str, Tensor]:
        a, b, scale = self.called("pair", self.ppg, self.ecg)
        logits = scale * F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T
        both = F.cross_entropy(logits, self.own) + F.cross_entropy(logits.T, self.own)
        return {"pair": both / 2}
