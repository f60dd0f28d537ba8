"""VisionNet: PPG windows -> images -> a timm ViT -> attention pooling -> a head a target.

Vision4PPG (arXiv 2510.10366; facts in DESIGN 8.4). Normalisation, prefix tokens and patch size are read from
the backbone, never typed. B windows, T samples, N patches, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cluster.config import Config
from cluster.errors import PlethoraError
from finetune.imaging import Images, Imaging, checked, images, spec_augment
from finetune.networks import lora as adapters
from finetune.networks.lora import LoRAConfig
from finetune.networks.weights import Base, fill
from pretrain.layers import count, full_precision

NAMES = {
    "dinov3": "vit_base_patch16_dinov3.lvd1689m",  # paper
    "siglip2": "vit_base_patch16_siglip_256.v2_webli",  # paper
    "siglip2-so400m": "vit_so400m_patch14_siglip_224.v2_webli",  # patch 14: no base-size SigLIP-2 has it
}
OWN = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "num_classes", "global_pool", "in_chans"}
OWN |= {"dynamic_img_size", "img_size", "features_only", "cache_dir", "checkpoint_path", "scriptable"}
MAX_PATCHES = 4096  # an image of 1,024 x 1,024: attention grows with the square


class BackboneConfig(Config):
    name: str = "dinov3"  # one of NAMES, or any ViT of timm by its name
    weights: str = "hub"  # "hub", a path (.safetensors, .pth), or "random"
    fit: Literal["resize", "pad"] = "resize"  # up to a multiple of the patch; code: resize
    options: dict[str, Any] = {}  # of timm's model (embed_dim, depth, …): for sizes of your own


class HeadConfig(Config):
    hidden: int = Field(default=256, ge=1)  # paper
    dropout: float = Field(default=0.1, ge=0, lt=1)  # paper


class VisionConfig(Config):
    """A network of Vision4PPG."""

    imaging: Imaging = Imaging()
    backbone: BackboneConfig = BackboneConfig()
    mode: Literal["probe", "lora", "full"] = "lora"  # probe: the backbone is frozen
    lora: LoRAConfig = LoRAConfig()
    head: HeadConfig = HeadConfig()


class Backbone(nn.Module):
    """Images -> the last layer's patch tokens, without class and register tokens.

    patch (rows, columns), dim, mean, std: the model's own. `base` records the weights.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(self, c: BackboneConfig, seed: int) -> None:
        super().__init__()
        name = NAMES.get(c.name, c.name)
        self.fit = c.fit
        self.vit = create(name, c.options)
        self.patch: tuple[int, int] = tuple(self.vit.patch_embed.patch_size)
        self.prefix = int(self.vit.num_prefix_tokens)
        self.dim = int(self.vit.num_features)
        self.base: Base = fill(self.vit, name, c.weights, seed)
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(getattr(self.base, key))[:, None, None], persistent=False)

    def forward(self, found: Images) -> tuple[Tensor, Tensor]:
        """-> tokens (B, N, D) row by row, and which of them show a valid pixel (B, N) bool."""
        pixels = (found.pixels - self.mean) / self.std * found.valid[:, None]
        valid = found.valid[:, None].to(pixels.dtype)
        size = self.fitted(pixels.shape[-2], pixels.shape[-1])
        if self.fit == "pad":
            around = (0, size[1] - pixels.shape[-1], 0, size[0] - pixels.shape[-2])
            pixels, valid = F.pad(pixels, around), F.pad(valid, around)
        elif size != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
            valid = F.interpolate(valid, size=size, mode="nearest")
        # a distilled DeiT pools its class and distillation tokens whatever it is asked
        tokens = self.vit.forward_features(pixels) if hasattr(self.vit, "dist_token") else self.vit(pixels)
        return tokens[:, self.prefix :], F.max_pool2d(valid, self.patch).flatten(1) > 0

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """Size up to which an image is resized or padded: the next multiple of the patch."""
        rows, columns = self.patch
        return -(-height // rows) * rows, -(-width // columns) * columns


class AttentionPool(nn.Module):
    """(B, N, D), (B, N) bool -> (B, D): tokens weighted by a softmax over one score each (a 1 x 1 convolution
    in the paper); padding scores -1e4, so nothing where all is padding is still finite."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x_bnd: Tensor, valid_bn: Tensor) -> Tensor:
        score = self.score(x_bnd).float()[..., 0].masked_fill(~valid_bn, -1e4)
        return (score.softmax(dim=1).to(x_bnd.dtype)[..., None] * x_bnd).sum(dim=1)


def fused(pooled: list[Tensor], fusion: nn.Module | None) -> Tensor:
    """(B, D) vectors, one an image, as one."""
    if fusion is None:
        return pooled[0]
    vectors = torch.stack(pooled, dim=1)
    return fusion(vectors, vectors.new_ones(vectors.shape[:2], dtype=torch.bool))


class VisionNet(nn.Module):
    """(B, 1, T) prepared windows, not normalised here -> (B, columns) float32.

    targets: {name: columns} in their order (1 for a number or a yes/no, k for k classes); a head each, on one
    backbone. Initial weights are a pure function of config, targets and seed. Parameters that do not train
    have requires_grad False. PlethoraError: unknown backbone, weights that cannot be had, images that are too
    small or too large.
    """

    def __init__(self, config: VisionConfig, targets: Mapping[str, int], seed: int) -> None:
        super().__init__()
        if not targets or min(targets.values()) < 1:
            raise PlethoraError("a network needs at least one target, each of at least one column")
        self.config, self.targets = config, dict(targets)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = Backbone(config.backbone, seed)
            self.sizes = sizes(self.backbone, config.imaging)
            dim = self.backbone.dim
            self.pool = AttentionPool(dim)
            # the paper's open question 1: which image to heed is learned, by a score for each
            self.fusion = AttentionPool(dim) if len(self.sizes) > 1 else None
            self.heads = nn.ModuleList([_head(dim, n, config.head) for n in targets.values()])
            if config.mode == "lora":
                adapters.add(self.backbone.vit, config.lora)
            elif config.mode == "probe":
                self.backbone.requires_grad_(False)

    def forward(
        self, x_bct: Tensor, samples_b: Tensor | None = None, uniform_b4: Tensor | None = None
    ) -> Tensor:
        """samples_b (B,) int64: samples that are there, from the start (None: all). uniform_b4 (B, 4): what
        SpecAugment draws in training (None: from the global generator)."""
        vector = self.embed(x_bct, samples_b, uniform_b4)
        return torch.cat([head(vector) for head in self.heads], dim=1).float()

    def embed(
        self, x_bct: Tensor, samples_b: Tensor | None = None, uniform_b4: Tensor | None = None
    ) -> Tensor:
        """As `forward`, up to the pooled vector (B, D)."""
        pooled = []
        for image in self.images(x_bct, samples_b, uniform_b4):
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.mode != "probe"):
                tokens, valid = self.backbone(image)
            pooled.append(self.pool(tokens, valid))
        return fused(pooled, self.fusion)

    def images(
        self, x_bct: Tensor, samples_b: Tensor | None = None, uniform_b4: Tensor | None = None
    ) -> list[Images]:
        """What the backbone is shown, an entry a transform; in training with SpecAugment where it is on."""
        c = self.config.imaging
        with full_precision(x_bct):
            found = images(x_bct[:, 0], c, samples_b)
        if not (c.spec_augment and self.training):
            return found
        if uniform_b4 is None:
            uniform_b4 = torch.rand(len(x_bct), 4, device=x_bct.device)
        return [
            image if name == "recurrence" else spec_augment(image, c, uniform_b4)
            for name, image in zip(c.transforms, found, strict=True)
        ]

    def columns(self, y_bk: Tensor) -> dict[str, Tensor]:
        """{target: its columns} of what `forward` gives, or of targets laid out alike."""
        return dict(zip(self.targets, y_bk.split(list(self.targets.values()), dim=1), strict=True))

    def train(self, mode: bool = True) -> VisionNet:
        super().train(mode)
        if self.config.mode == "probe":
            self.backbone.eval()
        return self

    @property
    def base(self) -> Base:
        """The weights that the backbone started from."""
        return self.backbone.base

    def lines(self) -> list[str]:
        """A run's first lines: backbone, weights, images, what trains."""
        sizes = [f"{n} {h}x{w} → {H}x{W}" for n, (h, w), (H, W) in self.sizes]
        whole = sum(p.numel() for p in self.parameters())
        mean, std = (", ".join(f"{v:g}" for v in x) for x in (self.base.mean, self.base.std))
        return [
            self.base.line(),
            f"images {', '.join(sizes)} by {self.config.backbone.fit}; patch {self.backbone.patch[0]}, "
            f"mean {mean}, std {std}",
            f"mode {self.config.mode}: {count(self):,} of {whole:,} parameters train",
        ]

    def adapter(self) -> dict[str, Tensor]:
        """{name: tensor} of what trains: small, but for mode "full"; for `load_adapter`."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_adapter(self, state: Mapping[str, Tensor]) -> None:
        """PlethoraError when the tensors are not exactly those of `adapter`."""
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        odd = set(own) ^ set(state) | {k for k in set(own) & set(state) if own[k].shape != state[k].shape}
        if odd:
            raise PlethoraError(f"the adapter does not fit this network: {', '.join(sorted(odd)[:5])}")
        for name, p in own.items():
            p.copy_(state[name])

    def merge(self) -> None:
        """Adds LoRA's adapters to the backbone, in place; the same function in eval mode."""
        if self.config.mode == "lora":
            adapters.merge(self.backbone.vit)


def sizes(backbone: Backbone, c: Imaging) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
    """(transform, (H, W) of its images of whole windows, (H, W) that the backbone sees). PlethoraError: so
    large that they make more than MAX_PATCHES.
    """
    found: list[tuple[str, tuple[int, int], tuple[int, int]]] = []
    for name, size in zip(c.transforms, checked(c, c.samples), strict=True):
        fitted = backbone.fitted(*size)
        patches = fitted[0] // backbone.patch[0] * (fitted[1] // backbone.patch[1])
        if patches > MAX_PATCHES:
            more = "stride" if name == "recurrence" else "hop"
            raise PlethoraError(
                f"[imaging] {name} images of {size[0]} x {size[1]} make {patches:,} patches, more than "
                f"{MAX_PATCHES:,}: raise {more} (now {getattr(c, more)}) or take shorter windows"
            )
        found.append((name, size, fitted))
    return found


def _head(dim: int, columns: int, c: HeadConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, c.hidden),
        nn.GELU(),
        nn.Dropout(c.dropout),
        nn.Linear(c.hidden, columns),
    )


def create(name: str, options: Mapping[str, Any]) -> Any:
    """timm's ViT called `name`, random, giving all tokens, for images of any size. Or PlethoraError."""
    import timm

    if taken := sorted(OWN & set(options)):
        raise PlethoraError(f"backbone.options: {', '.join(taken)} is set here, not by the user")
    if not timm.is_model(name.split(".")[0]):
        import difflib

        near = difflib.get_close_matches(name, [*NAMES, *timm.list_models(pretrained=True)], n=3, cutoff=0.0)
        raise PlethoraError(f"backbone.name: timm has no model {name!r}; did you mean {', '.join(near)}?")
    if name.split(".")[0] in timm.list_models(module="vision_transformer_hybrid"):
        raise PlethoraError(
            f"backbone.name = {name!r} is a hybrid: a convolutional network makes its patches, so it takes "
            "images of one size only; take a plain ViT, for example dinov3"
        )

    def made(pool: str) -> Any:
        return timm.create_model(
            name, pretrained=False, num_classes=0, global_pool=pool, dynamic_img_size=True, **options
        )

    try:
        vit = made("token" if name.split(".")[0] in timm.list_models("*_distilled_*", module="deit") else "")
    except (AssertionError, RuntimeError) as error:
        raise PlethoraError(f"backbone.name = {name!r}: {error}") from None
    except TypeError as error:
        raise PlethoraError(
            f"backbone.name = {name!r} with options {dict(options)}: {error}; a ViT that takes images of any "
            "size is needed: those of timm's vision_transformer and eva files are"
        ) from None
    parts = ("patch_embed", "num_prefix_tokens", "num_features", "blocks", "pretrained_cfg")
    if lacking := [part for part in parts if not hasattr(vit, part)]:
        raise PlethoraError(f"backbone.name = {name!r} is no ViT: it has no {', '.join(lacking)}")
    return vit
