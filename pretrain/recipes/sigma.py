"""SIGMA-PPG (Guo et al., arXiv 2601.21031) as two recipes: ``Tokenizer``, then ``Masked``.

Defaults follow the paper. In comments, "code" is the authors' release (ZonghengGuo/SigmaPPG) where it differs
(`runs/sigma/*_code.toml` set those values), and "ours" marks what neither states. Optimizer, batch and
schedule are in the run files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cluster import storage
from cluster.errors import PlethoraError
from datasets.windows import WindowSpec
from pretrain import figures, masking
from pretrain.layers import keyed_normal, keyed_uniform, minmax, patches, seeded
from pretrain.losses import Distance, advantage, masked_cross_entropy, reinforce
from pretrain.quantizer import Quantizer
from pretrain.recipe import Encoder, StepResult
from pretrain.recipes.sigma_windows import Windows
from pretrain.sigma_net import Pooled, Student, Teacher, Tokens, code_decoder, conv_encoder
from pretrain.trained import open_modules

log = logging.getLogger(__name__)

# the purpose of a keyed draw: the second part of its key, after the seed
_SCALE, _NOISE, _CODEBOOK, _GUMBEL, _UNMASK, _START, _RANDOM = range(1, 8)
_VALIDATION = -1  # replaces the step: every validation pass draws the same numbers
_COMMON = 0.5  # share that the random masks of validation hide, independent of the run's mask_ratio


class TokenizerConfig(Windows):
    """Stage 1: the tokenizer, which assigns a code to each patch."""

    conv_channels: int = 8  # code
    dim: int = 200  # paper
    depth: int = 12  # paper
    heads: int = 10  # code
    decoder_dim: int = 200  # code
    decoder_depth: int = 3  # paper
    decoder_heads: int = 10  # code
    codebook_size: int = Field(4096, ge=2)  # paper
    code_dim: int = 64  # paper
    final_norms: Literal[1, 2] = 1  # LayerNorms after the encoder; code: 2
    decay: float = 0.99  # paper: EMA of the codebook
    kmeans: bool = True  # code: --quantize_kmeans_init
    codebook_start: int = 0  # ours: steps before quantisation; without them, small runs start from noise
    dead_share: float = 0.03  # ours: re-seed codes used below this share of the uniform rate; code: 0, never
    distance: Distance = "l1"  # paper; code: "mse"
    phase: bool = False  # optional in the code: also reconstruct the phase
    centre: bool = True  # ours: the decoder predicts the difference from a running mean spectrum; code: false
    consistency: float = 0.5  # paper
    stop_gradient: bool = True  # paper: the clean view is the target; code: false
    aug_scale: float = 0.1  # code: scale U(0.9, 1.1)
    aug_noise: float = 0.05  # code: N(0, 0.05)
    min_patches: int = Field(1, ge=1)  # shortest input of the published encoder; code: 2


class MaskedConfig(Windows):
    """Stage 2: prediction of the codes of hidden patches."""

    tokenizer: str = ""  # URI of the published tokenizer bundle
    codebook_size: int = Field(4096, ge=2)  # the tokenizer's
    max_patches: int = 120  # longest input of the encoder; shorter windows train at random positions
    conv_channels: int = 8  # code: 12 for pro
    dim: int = 200  # base; paper's ladder: 200, 360, 512, 800
    depth: int = 12
    heads: int = 10
    mlp_ratio: float = 4.0  # paper
    pool_blocks: int | None = Field(None, ge=1)  # ours: pool after this many blocks; code: all, and the norm
    layer_scale: float = 0.1  # code
    dropout: float = 0.08  # code
    attn_dropout: float = 0.08  # code
    drop_path: float = 0.15  # code's model default; its trainer passes 0.1
    mask_ratio: float = Field(0.5, gt=0, lt=1)  # paper; code: 0.7, of which 0.3 are shown again
    unmask: float = Field(0.3, ge=0, lt=1)  # code: "punch ratio"
    max_run: int = Field(5, ge=1)  # code: longest hidden run, patches
    visible: float = Field(0.0, ge=0)  # ours: weight of the same loss on visible patches; paper: none
    masking: Literal["random", "prior", "adversarial", "both"] = "both"  # paper: both
    alpha: float = 2.0  # paper: weight of the prior's z-score; code's documented command omits it
    beta: float = 0.5  # paper: share of the amplitude prior
    policy: Literal["plackett_luce", "softmax_sum"] = "plackett_luce"  # ours, unbiased; code: softmax_sum
    teacher_dim: int = 64  # paper; code's trainer: 128
    teacher_depth: int = 2  # paper; code's trainer: 3
    teacher_heads: int = 4  # paper; code's trainer: 8


class Tokenizer:
    """Spectrum-aware VQ-VAE over patches: commitment + spectral distance + 0.5 consistency."""

    Config = TokenizerConfig

    def __init__(self, config: TokenizerConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    @property
    def tokens(self) -> int:
        return self.config.patches

    def windows(self) -> WindowSpec:
        return self.config.spec()

    def modules(self) -> dict[str, nn.Module]:
        with seeded(self.seed):
            return {"tokenizer": tokens(self.config)}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        c, x, ids = self.config, batch["ppg"], batch["window"]
        at = step if torch.is_grad_enabled() else _VALIDATION
        scale = 1.0 + c.aug_scale * (2.0 * keyed_uniform(ids, 1, self.seed, _SCALE, at) - 1.0)
        noise = keyed_normal(ids, x.shape[-1], self.seed, _NOISE, at)
        keys = keyed_uniform(ids, x.shape[-1] // c.patch, self.seed, _CODEBOOK, at)
        out = modules["tokenizer"](x, scale, noise, keys, quantise=step >= c.codebook_start)
        kept = (out["codes"] == out["codes_view"]).float()
        names = ("commitment", "spectral", "consistency", "perplexity")
        return StepResult(
            losses={"tokenizer": out["loss"]},
            log={**{name: out[name] for name in names}, "index_consistency": kept.mean()},
            counts={"codes": _histogram(out["codes"], c.codebook_size), "kept": _share(kept)},
            figures={"spectra": lambda: figures.spectra(x, out["amplitude"], out["guess"], c.patch, c.rate)},
        )

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        codes = counts["codes"].double()
        share = codes / codes.sum()
        usage = float((codes > 0).double().mean())
        if usage < 0.9 and int((codes > 0).sum()) > 1:  # one code: the codebook has not started
            log.warning("%.0f %% of the codebook is unused on the validation windows", 100 * (1 - usage))
        return {
            "codebook_usage": usage,
            "codebook_perplexity": float(torch.exp(-torch.xlogy(share, share).sum())),
            "index_consistency": _ratio(counts["kept"]),
            "unigram_rate": float(share.max()),
        }

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        c, net = self.config, modules["tokenizer"]
        assert isinstance(net, Tokens)
        pooled = Pooled(net.encoder, c.patch, input_range=c.input_range)
        return c.encoder(pooled, c.dim, c.patches, "tokenizer", c.min_patches)


class Masked:
    """Masked prediction of code ids, with masks drawn by a teacher that is rewarded for hard ones.

    ``tokenizer``: the frozen tokenizer, instead of the bundle that ``config.tokenizer`` names.
    """

    Config = MaskedConfig

    def __init__(self, config: MaskedConfig, seed: int, tokenizer: Tokens | None = None) -> None:
        if config.patches > config.max_patches:
            raise PlethoraError(
                f"windows of {config.patches} patches (window_s = {config.window_s:g}) exceed "
                f"max_patches = {config.max_patches}: shorten the window or raise max_patches"
            )
        self.config, self.seed, self._tokenizer = config, seed, tokenizer
        self.has_teacher = config.masking in ("adversarial", "both")
        self.alpha = config.alpha if config.masking in ("prior", "both") else 0.0

    @property
    def tokens(self) -> int:
        return self.config.patches

    def windows(self) -> WindowSpec:
        return self.config.spec()

    def modules(self) -> dict[str, nn.Module]:
        c = self.config
        with seeded(self.seed):
            encoder = conv_encoder(
                c.patch,
                c.conv_channels,
                c.dim,
                c.depth,
                c.heads,
                c.max_patches,
                mlp_ratio=c.mlp_ratio,
                qk_norm=True,
                layer_scale=c.layer_scale,
                drop=c.dropout,
                attn_drop=c.attn_dropout,
                drop_path=c.drop_path,
                maskable=True,
            )
            modules: dict[str, nn.Module] = {
                "student": Student(encoder, c.patch, c.dim, c.codebook_size, c.input_range)
            }
            if self.has_teacher:
                # in the code, the teacher's convolutions have as many channels as its width
                d, patches_ = c.teacher_dim, c.patches
                net = conv_encoder(c.patch, d, d, c.teacher_depth, c.teacher_heads, patches_, bias=True)
                modules["teacher"] = Teacher(net, c.patch, d, c.input_range)
        return modules

    def frozen(self) -> dict[str, nn.Module]:
        if self._tokenizer is None:
            self._tokenizer = open_tokenizer(self.config.tokenizer, self.config)
        return {"tokenizer": self._tokenizer.eval().requires_grad_(False)}

    def foreseen(self) -> str:
        """The tokenizer's hash, the patch size and the priors' weight; "" without a published tokenizer."""
        if not self.config.tokenizer:
            return ""
        mark = storage.join(self.config.tokenizer, "_COMPLETE")
        known = storage.read_bytes(mark).decode() if storage.exists(mark) else self.config.tokenizer
        return f"{known}/{self.config.patch}/{self.config.beta}"

    def foresee(self, frozen: Mapping[str, nn.Module], batch: dict) -> dict[str, Tensor]:
        """{"codes" (B, N) int32, "prior" (B, N) float32}, which stay the same over training."""
        tokenizer, x = frozen["tokenizer"], batch["ppg"]
        assert isinstance(tokenizer, Tokens)
        prior = masking.priors(
            patches(minmax(x, self.config.input_range), self.config.patch), self.config.beta
        )
        return {"codes": tokenizer.codes(x).int(), "prior": prior}

    def rehearsal(self) -> Masked:
        """Itself, or, if no tokenizer is named yet, a copy with the paper's tokenizer, untrained: the cost is
        the same."""
        if self._tokenizer is not None or self.config.tokenizer:
            return self
        shared = {name: getattr(self.config, name) for name in Windows.model_fields}
        paper = TokenizerConfig(**shared, codebook_size=self.config.codebook_size, kmeans=False)
        with seeded(self.seed):
            return Masked(self.config, self.seed, tokens(paper))

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        c, x, ids = self.config, batch["ppg"], batch["window"]
        training = torch.is_grad_enabled()
        at = step if training else _VALIDATION
        foreseen = batch if "codes" in batch else self.foresee(frozen, batch)
        targets, prior = foreseen["codes"].long(), foreseen["prior"]
        logits = self.alpha * masking.zscore(prior)
        if self.has_teacher:
            logits = logits + modules["teacher"](x).float()
        order = self._draw(logits, ids, _GUMBEL, at)
        mask = self._edit(order, ids, _UNMASK, at)
        everywhere = torch.arange(mask.numel(), device=x.device)
        wanted = masking.places(order, mask.shape[1]) if c.visible == 0 else everywhere
        guess = modules["student"](x, mask, wanted, self._start(ids, at) if training else None)
        per_window, loss = masked_cross_entropy(guess, targets, mask, wanted)
        losses = {"student": loss}
        if c.visible > 0:
            losses["student"] = loss + c.visible * masked_cross_entropy(guess, targets, ~mask, wanted)[1]
        if self.has_teacher:
            exact = c.policy == "plackett_luce"
            log_prob = masking.plackett_luce_log_prob if exact else masking.softmax_sum_log_prob
            reward = advantage(per_window, leave_one_out=exact, over_ranks=training)
            losses["teacher"] = reinforce(log_prob(logits, order), reward)

        hit = _hits(guess, targets, mask, wanted)
        peaked = mask & (prior > prior.mean(dim=1, keepdim=True))
        shares = {
            "accuracy": _share(hit, mask),
            "accuracy_peaked": _share(hit, peaked),
            "accuracy_flat": _share(hit, mask & ~peaked),
        }
        counts = {**shares, "codes": _histogram(targets, c.codebook_size, mask)}
        log: dict[str, Tensor | float] = {name: s[0] / s[1].clamp_min(1) for name, s in shares.items()}
        log["loss_hidden"] = loss.detach()
        log["hidden"] = mask.float().mean()
        log["hidden_prior"] = torch.where(mask, prior, 0.0).sum() / mask.sum() - prior.mean()
        if self.has_teacher:
            log["teacher_entropy"] = masking.entropy(logits.detach()).mean()
            log["reward_std"] = per_window.detach().std(unbiased=False)
        if not training:
            # a mask independent of masking mode and ratio, so that runs can be compared
            order = self._draw(torch.zeros_like(prior), ids, _RANDOM, at, _COMMON)
            common = self._edit(order, ids, _RANDOM, at - 1)
            wanted = masking.places(order, common.shape[1])
            plain = modules["student"](x, common, wanted)
            log["loss_random_mask"] = masked_cross_entropy(plain, targets, common, wanted)[1]
            counts["accuracy_random_mask"] = _share(_hits(plain, targets, common, wanted), common)
            counts["codes_random_mask"] = _histogram(targets, c.codebook_size, common)
        return StepResult(
            losses=losses,
            log=log,
            counts=counts,
            figures={"masks": lambda: figures.masks(x, prior, mask, hit, logits, c.patch, c.rate)},
        )

    def _draw(self, logits: Tensor, ids: Tensor, purpose: int, at: int, ratio: float | None = None) -> Tensor:
        n = logits.shape[1]
        k = max(1, int(n * (ratio or self.config.mask_ratio)))
        return masking.draw(logits.detach(), keyed_uniform(ids, n, self.seed, purpose, at), k)

    def _edit(self, order: Tensor, ids: Tensor, purpose: int, at: int) -> Tensor:
        n = self.config.patches
        uniform = keyed_uniform(ids, n, self.seed, purpose, at)
        return masking.edit(masking.to_mask(order, n), uniform, self.config.unmask, self.config.max_run)

    def _start(self, ids: Tensor, at: int) -> Tensor | None:
        """Random first positions, so that all ``max_patches`` positions train; None if a window fills
        them."""
        free = self.config.max_patches - self.config.patches
        if free == 0:
            return None
        return (keyed_uniform(ids, 1, self.seed, _START, at)[:, 0] * (free + 1)).long()

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        out = {name: _ratio(n) for name, n in counts.items() if name.startswith("accuracy")}
        for name in ("codes", "codes_random_mask"):
            if name in counts:  # accuracy of always guessing the most common target
                rate = float(counts[name].max() / counts[name].sum())
                out[name.replace("codes", "unigram_rate")] = rate
        return out

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        c, net = self.config, modules["student"]
        assert isinstance(net, Student)
        pooled = Pooled(net.encoder, c.patch, c.pool_blocks, c.input_range)
        return c.encoder(pooled, c.dim, c.max_patches, "encoder")


def tokens(c: TokenizerConfig) -> Tokens:
    """The tokenizer's network with fresh weights."""
    encoder = conv_encoder(c.patch, c.conv_channels, c.dim, c.depth, c.heads, c.patches, bias=True)
    if c.final_norms == 2:
        twice = (nn.LayerNorm(c.dim, eps=1e-6) for _ in range(2))
        encoder.add_module("norm", nn.Sequential(*twice))
    decoder = code_decoder(c.code_dim, c.decoder_dim, c.decoder_depth, c.decoder_heads, c.patches)
    quantizer = Quantizer(c.code_dim, c.codebook_size, c.decay, c.kmeans, c.dead_share)
    return Tokens(
        encoder,
        decoder,
        quantizer,
        c.patch,
        c.dim,
        c.decoder_dim,
        c.code_dim,
        c.distance,
        c.phase,
        c.centre,
        c.aug_noise,
        c.consistency,
        c.stop_gradient,
        c.input_range,
    )


def open_tokenizer(uri: str, needs: MaskedConfig) -> Tokens:
    """The published tokenizer at ``uri``. Errors: PlethoraError when it does not exist, is of another kind,
    or was trained on other windows than ``needs`` specifies."""
    from cluster import bundle

    if not uri:
        raise PlethoraError("method.tokenizer is empty: set it to the URI of a trained tokenizer's bundle")
    if (kind := bundle.open(uri).config["kind"]) != "tokenizer":
        raise PlethoraError(f"{uri} is a bundle of kind {kind}: give a tokenizer's")
    _, theirs, modules = open_modules(uri)
    for name in ("window_s", "rate", "band", "order", "patch", "input_range", "codebook_size"):
        trained, ours = getattr(theirs.config, name), getattr(needs, name)
        if trained != ours:
            raise PlethoraError(
                f"method.{name} = {ours} but the tokenizer {uri} was trained with {trained}: set the same"
            )
    net: Tokens = modules["tokenizer"]
    return net


def _hits(guess_mv: Tensor, targets_bn: Tensor, mask_bn: Tensor, at_m: Tensor) -> Tensor:
    """(B, N) float32: 1 where a hidden patch was predicted correctly; at_m as in ``masked_cross_entropy``."""
    right = (guess_mv.argmax(dim=-1) == targets_bn.flatten()[at_m]).float()
    return mask_bn * right.new_zeros(mask_bn.numel()).index_copy(0, at_m, right).view_as(mask_bn)


def _histogram(ids: Tensor, size: int, among: Tensor | None = None) -> Tensor:
    """(size,) int64. Not ``bincount``, whose output length forces a host synchronisation on a GPU."""
    ones = torch.ones_like(ids) if among is None else among.to(ids.dtype)
    return ids.new_zeros(size).index_add(0, ids.flatten(), ones.flatten())


def _share(hits: Tensor, among: Tensor | None = None) -> Tensor:
    """(2,): the number of hits and of trials."""
    if among is None:
        return torch.stack([hits.sum(), hits.new_full((), hits.numel())])
    return torch.stack([torch.where(among, hits, 0.0).sum(), among.sum().to(hits.dtype)])


def _ratio(share: Tensor) -> float:
    return float(share[0] / share[1]) if share[1] > 0 else float("nan")
