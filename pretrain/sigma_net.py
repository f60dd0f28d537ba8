"""The three networks of SIGMA-PPG (arXiv 2601.21031): tokenizer, student, teacher.

Imports torch and the quantizer's package alone. B windows, T samples, N = T // patch patches, P samples per
patch, D features, V codes. Inputs are band-passed and resampled signals; each network first scales each
window by min-max onto its input range, so the scaling is part of the ONNX file.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.layers import (
    Block,
    PatchTransformer,
    Stepped,
    TemporalConv,
    full_precision,
    initialise,
    minmax,
    patches,
    sum_over_ranks,
)
from pretrain.losses import Distance, distance, spectrum
from pretrain.quantizer import Quantizer

Range = tuple[float, float]  # lowest and highest sample of a window as the network sees it
UNIT: Range = (0.0, 1.0)


class Tokens(Stepped):
    """Encoder -> codebook -> decoder of the spectrum."""

    def __init__(
        self,
        encoder: PatchTransformer,
        decoder: PatchTransformer,
        quantizer: Quantizer,
        patch: int,
        dim: int,
        decoder_dim: int,
        code_dim: int,
        kind: Distance,
        phase: bool,
        centre: bool,
        noise: float,
        consistency: float,
        stop_gradient: bool,
        input_range: Range = UNIT,
    ) -> None:
        super().__init__()
        self.patch, self.kind, self.noise, self.input_range = patch, kind, noise, input_range
        self.centre = centre
        self.consistency, self.stop_gradient = consistency, stop_gradient
        self.register_buffer("mean_spectrum", torch.zeros(patch))
        self.register_buffer("spectra_seen", torch.zeros(()))
        self.mean_spectrum: Tensor
        self.spectra_seen: Tensor
        self._spectra: list[Tensor] = []  # (P + 1,) per forward pass: amplitude sums, then count
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer
        self.to_code = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, code_dim))
        self.to_amplitude = _spectral_head(decoder_dim, patch)
        self.to_phase = _spectral_head(decoder_dim, patch) if phase else None
        for head in (self.to_code, self.to_amplitude, self.to_phase):
            if head is not None:
                head.apply(initialise)

    def features(self, x_bnp: Tensor) -> Tensor:
        """Scaled patches (B, N, P) -> continuous codes (B, N, code_dim) float32."""
        features = self.encoder(x_bnp)
        with full_precision(features):
            return self.to_code(features.float())

    @torch.no_grad()
    def codes(self, x_bct: Tensor) -> Tensor:
        """Windows (B, 1, T) -> code ids (B, N) int64, in full precision; changes no state."""
        with full_precision(x_bct):
            return self.quantizer.codes(self.features(patches(minmax(x_bct, self.input_range), self.patch)))

    def forward(
        self, x_bct: Tensor, scale_b1: Tensor, noise_bt: Tensor, keys_bn: Tensor, quantise: bool = True
    ) -> dict[str, Tensor]:
        """All terms of the loss, and values for monitoring.

        scale_b1, noise_bt: the augmented view is ``scale * x + self.noise * noise`` on the scaled signal.
        keys_bn: keyed uniforms for the quantizer. quantise: false while the features are still too immature
        for a codebook; the decoder then reads the unit features, and the commitment loss is 0.
        """
        x = minmax(x_bct, self.input_range)
        clean = patches(x, self.patch)
        view = patches(x * scale_b1[..., None] + self.noise * noise_bt[:, None], self.patch)
        z, z_view = self.features(torch.cat([clean, view])).chunk(2)
        if quantise:
            quantised, ids, commitment = self.quantizer(z, keys_bn)
        else:
            quantised, ids, commitment = F.normalize(z, dim=-1), self.quantizer.codes(z), z.new_zeros(())
        decoded = self.decoder(quantised)
        amplitude, phase = spectrum(clean)
        guess = self.to_amplitude(decoded) + self._centre(amplitude)
        spectral = distance(guess, amplitude, self.kind)
        if self.to_phase is not None:
            spectral = spectral + distance(self.to_phase(decoded), phase, self.kind)
        consistency = F.mse_loss(z_view, z.detach() if self.stop_gradient else z)
        return {
            "loss": commitment + spectral + self.consistency * consistency,
            "commitment": commitment.detach(),
            "spectral": spectral.detach(),
            "consistency": consistency.detach(),
            "perplexity": self.quantizer.perplexity,
            "codes": ids,
            "codes_view": self.quantizer.codes(z_view),
            "amplitude": amplitude,
            "guess": guess.detach().float(),
        }

    def _centre(self, amplitude_bnp: Tensor) -> Tensor:
        """The running mean spectrum, (P,), so that the decoder need not learn it; zeros with centre=False and
        in the first step."""
        if self.centre and self.training:
            total = amplitude_bnp.sum(dim=(0, 1))
            rows = total.new_full((1,), amplitude_bnp.shape[0] * amplitude_bnp.shape[1])
            self._spectra.append(torch.cat([total, rows]))
        return self.mean_spectrum.clone()  # a later update must not change this graph

    @torch.no_grad()
    def start(self) -> None:
        """Discard the collected spectra: the repeated step collects them again."""
        self._spectra = []

    @torch.no_grad()
    def move(self) -> None:
        """Update the running mean spectrum with one batch."""
        if not self._spectra:
            return
        total = sum_over_ranks(torch.stack(self._spectra).sum(dim=0))
        weight = torch.where(self.spectra_seen > 0, 0.01, 1.0)
        self.mean_spectrum.lerp_(total[:-1] / total[-1], weight)
        self.spectra_seen.fill_(1.0)
        self._spectra = []


def _spectral_head(dim: int, patch: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, patch))


class Student(nn.Module):
    """Predicts the codes of hidden patches."""

    def __init__(
        self, encoder: PatchTransformer, patch: int, dim: int, codes: int, input_range: Range = UNIT
    ) -> None:
        super().__init__()
        self.patch, self.input_range = patch, input_range
        self.encoder = encoder
        self.head = nn.Linear(dim, codes)
        self.head.apply(initialise)

    def forward(self, x_bct: Tensor, mask_bn: Tensor, at_m: Tensor, start_b: Tensor | None = None) -> Tensor:
        """(B, 1, T), hidden patches (B, N) bool -> logits (M, V) of the patches ``at_m``, int64 flat indices
        among all B * N. start_b (B,): each window's first position."""
        features = self.encoder(patches(minmax(x_bct, self.input_range), self.patch), mask_bn, start_b)
        return self.head(features.flatten(0, 1).index_select(0, at_m))


class Teacher(nn.Module):
    """Scores how likely each patch is to be hidden."""

    def __init__(self, encoder: PatchTransformer, patch: int, dim: int, input_range: Range = UNIT) -> None:
        super().__init__()
        self.patch, self.input_range = patch, input_range
        self.encoder = encoder
        # no final biases: they would shift all patches equally, which a softmax over patches ignores
        self.encoder.norm = nn.LayerNorm(dim, eps=1e-6, bias=False)
        self.head = nn.Linear(dim, 1, bias=False)
        self.head.apply(initialise)

    def forward(self, x_bct: Tensor) -> Tensor:
        """(B, 1, T) -> logits (B, N)."""
        return self.head(self.encoder(patches(minmax(x_bct, self.input_range), self.patch)))[..., 0]


class Pooled(nn.Module):
    """The published encoder: (B, 1, T) -> (B, D), the mean over all patches, none hidden, of the features
    after ``blocks`` blocks (None: after all blocks and the last norm)."""

    def __init__(
        self,
        encoder: PatchTransformer,
        patch: int,
        blocks: int | None = None,
        input_range: Range = UNIT,
    ) -> None:
        super().__init__()
        self.encoder, self.patch, self.blocks, self.input_range = encoder, patch, blocks, input_range

    def forward(self, x_bct: Tensor) -> Tensor:
        n = x_bct.shape[-1] // self.patch
        x_bnp = patches(minmax(x_bct[..., : n * self.patch], self.input_range), self.patch)
        return self.encoder(x_bnp, blocks=self.blocks).mean(dim=1)


def conv_encoder(
    patch: int,
    channels: int,
    dim: int,
    depth: int,
    heads: int,
    max_patches: int,
    *,
    mlp_ratio: float = 4.0,
    bias: bool = False,
    qk_norm: bool = False,
    layer_scale: float = 0.0,
    drop: float = 0.0,
    attn_drop: float = 0.0,
    drop_path: float = 0.0,
    maskable: bool = False,
) -> PatchTransformer:
    """Temporal convolutions, then a transformer: (B, N, P) -> (B, N, dim)."""
    block = _block(dim, heads, mlp_ratio, bias, qk_norm, layer_scale, drop, attn_drop)
    embed = TemporalConv(patch, channels, dim)
    return PatchTransformer(embed, dim, depth, max_patches, block, drop, drop_path, maskable)


def code_decoder(code_dim: int, dim: int, depth: int, heads: int, max_patches: int) -> PatchTransformer:
    """Codes -> features of the spectral head: (B, N, code_dim) -> (B, N, dim)."""
    block = _block(dim, heads, 4.0, True, False, 0.0, 0.0, 0.0)
    return PatchTransformer(nn.Linear(code_dim, dim), dim, depth, max_patches, block)


def _block(
    dim: int,
    heads: int,
    mlp_ratio: float,
    bias: bool,
    qk_norm: bool,
    layer_scale: float,
    drop: float,
    attn_drop: float,
) -> Callable[[float], Block]:
    return lambda rate: Block(dim, heads, mlp_ratio, bias, qk_norm, layer_scale, drop, attn_drop, rate)
