"""The house's recipes, small enough to train in a test."""

from collections.abc import Callable

import torch

from finetune.supervised import Vision, VisionRunConfig
from pretrain.net1d import Net1D
from pretrain.recipe import Recipe
from pretrain.recipes.anyppg import AnyPPG, AnyPPGConfig
from pretrain.recipes.m2ae import M2AE, M2AEConfig
from pretrain.recipes.sigma import Masked, MaskedConfig, Tokenizer, TokenizerConfig, tokens
from pretrain.recipes.simclr import SimCLR, SimCLRConfig
from tests.pretrain.kit import WINDOW_S, batch

SMALL = {"window_s": WINDOW_S, "dim": 16, "depth": 2, "heads": 2, "codebook_size": 12}
STUDENT = {**SMALL, "max_patches": 12, "teacher_dim": 16, "teacher_depth": 1, "teacher_heads": 2}


def tokenizer_config(**more) -> TokenizerConfig:
    return TokenizerConfig(
        **{**SMALL, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "code_dim": 8, **more}
    )


def tokenizer(**more) -> Tokenizer:
    return Tokenizer(tokenizer_config(**more), seed=3)


def masked(**more) -> Masked:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = tokens(tokenizer_config(kmeans=False))
    return Masked(MaskedConfig(**{**STUDENT, **more}), seed=3, tokenizer=net)


NET = {"filters": (16, 32), "blocks": (1, 2), "width": 8, "stem": 16, "dropout": 0.0}
SIDES = {"window_s": WINDOW_S, "rate": 50.0, "projection": 16, "gallery": 4, "bn_momentum": 0.5}


def anyppg(teacher: bool = False, **more) -> AnyPPG:
    ecg = {"ecg_rate": 50.0, "ecg_filters": (16, 32), "ecg_blocks": (1, 1), "embedding_dropout": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = Net1D(**NET) if teacher else None
    return AnyPPG(AnyPPGConfig(**{**NET, **SIDES, **ecg, **more}), seed=3, teacher=net)


def m2ae(**more) -> M2AE:
    depths = {"encoder_depth": 1, "bottleneck_depth": 1, "decoder_depth": 1}
    small = {"window_s": WINDOW_S, "rate": 50.0, "patch": 10, "dim": 16, "heads": 2, "projection": 16}
    return M2AE(M2AEConfig(**{**small, **depths, "gallery": 4, "ecg_band": (0.5, 20.0), **more}), seed=3)


def simclr() -> SimCLR:
    return SimCLR(SimCLRConfig(**NET, **SIDES), seed=3)


def vision(**more) -> Vision:
    imaging = {"rate": 50.0, "window_s": WINDOW_S, "transform": "fusion", "stride": 10, "spec_augment": True}
    vit = {"name": "vit_tiny_patch16_224", "weights": "random"}
    vit["options"] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    parts = {"imaging": imaging, "backbone": vit, "head": {"hidden": 16, "dropout": 0.0}}
    found = Vision(VisionRunConfig(tasks=("heart_rate", "sbp"), **parts, **more), seed=3)
    found.told(batch(64, 1000)["target"].numpy())
    return found


RECIPES: dict[str, Callable[[], Recipe]] = {
    "tokenizer": tokenizer,
    "tokenizer, as the code": lambda: tokenizer(
        distance="mse", phase=True, centre=False, stop_gradient=False, dead_share=0.0
    ),
    "masked": masked,
    "masked, random": lambda: masked(masking="random"),
    "masked, prior": lambda: masked(masking="prior"),
    "masked, adversarial": lambda: masked(masking="adversarial"),
    "masked, as the code": lambda: masked(alpha=0.0, policy="softmax_sum", mask_ratio=0.7),
    "masked, shown patches too": lambda: masked(visible=0.5, pool_blocks=1),
    "anyppg": anyppg,
    "anyppg, a frozen teacher": lambda: anyppg(teacher=True),
    "anyppg, other negatives": lambda: anyppg(negatives="local", same_subject_negatives=False),
    "m2ae": m2ae,
    "m2ae, local negatives": lambda: m2ae(negatives="local", same_subject_negatives=True),
    "simclr": simclr,
    "vision, LoRA": lambda: vision(lora={"dropout": 0.0}),
    "vision, probe": lambda: vision(mode="probe"),
    "vision, full": lambda: vision(mode="full"),
}
