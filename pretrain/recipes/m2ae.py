"""M2AE (arXiv 2605.09578): cross-modal masked autoencoder of PPG and ECG, "biosignal fingerprints".

There is no public code. In comments, "paper" is the paper, and "open" marks what it leaves undefined and
DESIGN 8.2 or we choose. Optimizer, batch and schedule are in the run files. Negatives come from a micro-batch
over all workers, so a run with accumulation has fewer than its ``batch``. Windows may lack a modality: it is
masked, and everything else trains.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cluster.config import Config
from datasets.windows import Signal, WindowSpec
from pretrain import figures, published
from pretrain.contrastive import Negatives, held_out, info_nce, spread, unit
from pretrain.layers import keyed_normal, keyed_uniform, seeded
from pretrain.losses import mean_where
from pretrain.m2ae_net import Fingerprint, M2AENet, Translate, scaled
from pretrain.recipe import Encoder, StepResult

NAMES = ("ppg", "ecg")
_SPANS, _NOISE, _DRIFT, _CROP, _VALIDATION = 1, 2, 3, 4, -1


class M2AEConfig(Config):
    """One stage over windows of PPG, ECG or both."""

    window_s: float = Field(10.0, gt=0)  # paper
    hop_s: float | None = None  # none: window_s
    rate: float = 125.0  # open, Hz, of both signals: they have the same length
    ppg_band: tuple[float, float] = (0.5, 8.0)  # open, Hz: Butterworth, zero-phase, at the native rate
    ecg_band: tuple[float, float] = (0.5, 40.0)  # open, Hz: below the mains frequency
    ppg_order: int = 3  # open
    ecg_order: int = 3  # open
    ecg_min_rate: float = 125.0  # open, Hz: ECG at lower rates is excluded
    max_flat: float = 0.25  # open: largest flat share of a window, either signal
    ecg_gate: bool = True  # open: unacceptable ECG is excluded (Zhao 2018)
    min_quality: float = 0.0  # open: no gate on the PPG
    paired: bool = False  # paper: modalities may be missing; true: only windows with both

    patch: int = Field(25, ge=2)  # open: 0.2 s; samples
    dim: int = 256  # open
    encoder_depth: int = Field(6, ge=1)  # open
    bottleneck_depth: int = Field(2, ge=1)  # open
    decoder_depth: int = Field(4, ge=1)  # open
    heads: int = 8  # open
    near: int = Field(9, ge=0)  # ours: width in patches of the positional convolution; odd, 0: none
    dropout: float = Field(0.0, ge=0, lt=1)  # open
    projection: int = 128  # open

    mask_ratio: float = Field(0.75, gt=0, lt=1)  # open: of one random modality; the other hides the rest
    span: int = Field(5, ge=1)  # open: patches hidden together, 1 s: longer than a beat
    weight: float = Field(1.0, ge=0)  # open: λ, weight of the reconstruction
    # open: Huber threshold of the reconstruction error. At 10 it is practically the square; 1 lowers the mean
    # absolute error of an ECG from a PPG but places its R peaks worse (docs/results.md)
    delta: float = Field(10.0, gt=0)
    temperature: float = Field(0.07, gt=0)  # open
    crop: float = Field(0.7, gt=0, le=1)  # open: shortest crop as a share of the window, same for both
    aug_noise: float = Field(0.1, ge=0)  # open: of the z-scored view
    aug_drift: float = Field(0.3, ge=0)  # open: largest amplitude of a slow sine in the view
    negatives: Negatives = "global"  # open
    same_subject_negatives: bool = False  # DESIGN 8.2: a subject's other windows are no negatives
    gallery: int = Field(64, ge=2)  # ours: held-out windows per retrieval gallery
    min_s: float = Field(2.0, gt=0)  # ours: shortest input of the published encoder

    @model_validator(mode="after")
    def _check(self) -> M2AEConfig:
        if self.near and self.near % 2 == 0:
            raise ValueError(f"near = {self.near} must be odd, or 0 for none")
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} does not divide by heads = {self.heads}")
        if max(self.shortest, self.patch) > self.samples:
            raise ValueError(
                f"a window of {self.samples} samples (window_s = {self.window_s:g}, {self.rate:g} Hz) is "
                f"shorter than min_s = {self.min_s:g} or a patch of {self.patch}"
            )
        return self

    @property
    def shortest(self) -> int:
        """``min_s`` in samples, as whole patches."""
        return -(-round(self.min_s * self.rate) // self.patch) * self.patch

    @property
    def samples(self) -> int:
        """Samples of a window at ``rate``, for either modality."""
        return round(self.window_s * self.rate)

    def signals(self) -> tuple[Signal, Signal]:
        """How windows are prepared; the network normalises them."""
        return (
            Signal(
                modality="ppg",
                rate=self.rate,
                band=self.ppg_band,
                order=self.ppg_order,
                max_flat=self.max_flat,
                required=self.paired,
            ),
            Signal(
                modality="ecg",
                rate=self.rate,
                band=self.ecg_band,
                order=self.ecg_order,
                upright=True,
                min_rate=self.ecg_min_rate,
                max_flat=self.max_flat,
                gate="ecg" if self.ecg_gate else "none",
                required=self.paired,
            ),
        )


class M2AE:
    """InfoNCE across modalities and views + λ · masked and cross-modal reconstruction."""

    Config = M2AEConfig

    def __init__(self, config: M2AEConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    @property
    def tokens(self) -> int:
        return len(NAMES) * (self.config.samples // self.config.patch)

    def windows(self) -> WindowSpec:
        c = self.config
        return WindowSpec(signals=c.signals(), window_s=c.window_s, hop_s=c.hop_s, min_quality=c.min_quality)

    def modules(self) -> dict[str, nn.Module]:
        c = self.config
        with seeded(self.seed):
            return {
                "m2ae": M2AENet(
                    NAMES,
                    c.patch,
                    c.samples // c.patch,
                    c.dim,
                    c.encoder_depth,
                    c.bottleneck_depth,
                    c.decoder_depth,
                    c.heads,
                    c.projection,
                    c.dropout,
                    c.near,
                )
            }

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        c, subject = self.config, batch["subject"]
        training = torch.is_grad_enabled()
        at = step if training else _VALIDATION
        has = {m: batch.get(f"has_{m}", torch.ones_like(subject, dtype=torch.bool)) for m in NAMES}
        masked = any(f"has_{m}" in batch for m in NAMES)
        length, start = stretches(batch["window"], c, self.seed, at)
        # stretching changes the delay between the signals, which must be learned unchanged
        as_is = length == 1
        clean = {m: scaled(stretched(batch[m], length, start), c.patch) for m in NAMES}
        masks = complementary(batch["window"], c, clean["ppg"].shape[1], has, self.seed, at)
        hidden = dict(zip(NAMES, masks, strict=True))
        whole, view = (
            {m: self._view(clean[m], batch["window"], at, 2 * i + j) for i, m in enumerate(NAMES)}
            for j in (0, 1)
        )
        out = modules["m2ae"](whole if training else clean, view, hidden, has if masked else None)

        # contrast one modality with the other, and each window with its view
        both = has["ppg"] & has["ecg"]
        pairs = {
            "cross": (out["print"]["ppg"], out["print"]["ecg"], both),
            **{m: (out["print"][m], out["print_view"][m], has[m]) for m in NAMES},
        }
        scale = 1 / c.temperature
        others = None if c.same_subject_negatives else subject
        log: dict[str, Tensor | float] = {"temperature": c.temperature, "scale": scale}
        counts: dict[str, Tensor] = {}  # [sum, windows] of values that some windows lack
        terms: dict[str, Tensor] = {}
        for name, (a, b, valid) in pairs.items():
            found: dict[str, Tensor] = {}
            if training:
                terms[name] = info_nce(a, b, scale, valid, others, c.negatives)
                if name == "cross":
                    log |= spread(unit(a.detach()), unit(b.detach()), valid)
            else:
                terms[name], found = held_out(a, b, scale, subject, c.gallery, valid)
            found = {_named(k): v for k, v in found.items() if name == "cross"}
            if "uniformity" in found:
                log["uniformity"] = found.pop("uniformity")
            for key, value in (found | {f"nce_{name}": terms[name].detach()}).items():
                counts[key] = torch.stack([value * valid.sum(), valid.sum().to(value)])
        contrast = terms["cross"] + (terms["ppg"] + terms["ecg"]) / 2

        rebuilt = contrast.new_zeros(())
        for m in NAMES:
            guess = torch.stack([out[k][m] for k in ("joint", "intra", "cross")])
            error = 2 * F.huber_loss(guess, clean[m].expand_as(guess), reduction="none", delta=c.delta)
            error = error.mean(dim=-1)  # (3, B, N)
            share = hidden[m].float()
            inside = (error * share).sum(dim=-1) / share.sum(dim=-1).clamp_min(1.0)
            kept = {"joint": has[m] & as_is, "intra": has[m], "cross": both & as_is}
            values = {"joint": inside[0], "intra": inside[1], "cross": error[2].mean(dim=-1)}
            for key, value in values.items():
                rebuilt = rebuilt + mean_where(value, kept[key], training) / (3 * len(NAMES))
                total = torch.where(kept[key], value.detach(), 0.0).sum()
                counts[f"error_{m}_{key}"] = torch.stack([total, kept[key].sum().to(total)])
        log["contrast"], log["reconstruction"] = contrast.detach(), rebuilt.detach()
        log |= {k: n[0] / n[1].clamp_min(1.0) for k, n in counts.items()} if training else {}
        drawn = {
            "retrieval": lambda: figures.retrieval(
                unit(out["print"]["ppg"][both]), unit(out["print"]["ecg"][both]), ("PPG", "ECG"), c.gallery
            ),
            "reconstruction": lambda: figures.reconstruction(clean, out, hidden, has, c.rate),
        }
        return StepResult(
            losses={"m2ae": contrast + c.weight * rebuilt},
            log=log,
            counts=counts,
            figures={} if training else drawn,
        )

    def _view(self, clean_bnp: Tensor, ids: Tensor, at: int, side: int) -> Tensor:
        """The augmented view of a z-scored window: noise and a slow drift, drawn separately per modality."""
        c, (b, n, p) = self.config, clean_bnp.shape
        u = keyed_uniform(ids, 3, self.seed, at, side, _DRIFT)[..., None]
        time = torch.linspace(0, 1, n * p, device=clean_bnp.device)
        drift = c.aug_drift * u[:, 0] * torch.sin(2 * torch.pi * (3 * u[:, 1] * time + u[:, 2]))
        noise = c.aug_noise * keyed_normal(ids, n * p, self.seed, at, side, _NOISE)
        return clean_bnp + (drift + noise).reshape(b, n, p)

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: float(total[0] / total[1].clamp_min(1.0)) for name, total in counts.items()}

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        c, net = self.config, modules["m2ae"]
        assert isinstance(net, M2AENet)
        spec = self.windows()
        modes = {
            "+".join(names): published.mode(
                spec, Fingerprint(net, names), c.dim, names, min_samples=c.shortest, step_samples=c.patch
            )
            for names in (("ppg",), ("ecg",), NAMES)
        }
        decoders = {
            f"{source}_to_{target}": published.decoder(
                spec,
                Translate(net, source, target),
                source,
                target,
                min_samples=c.shortest,
                step_samples=c.patch,
            )
            for source, target in (NAMES, NAMES[::-1])
        }
        return published.encoder(spec, modes, decoders=decoders)


def _named(figure: str) -> str:
    """The metric's name with modalities in place of a and b."""
    return figure.replace("_ab", "_ppg_ecg").replace("_ba", "_ecg_ppg")


def stretches(ids_b: Tensor, c: M2AEConfig, seed: int, at: int) -> tuple[Tensor, Tensor]:
    """(B,) length and start of each window's crop, as shares of the window. Half of the windows are not
    cropped; in validation, none is."""
    u = keyed_uniform(ids_b, 3, seed, at, _CROP)
    whole = (u[:, 0] < 0.5) | (at == _VALIDATION)
    length = torch.where(whole, 1.0, c.crop + (1 - c.crop) * u[:, 1])
    return length, (1 - length) * u[:, 2]


def stretched(x_bct: Tensor, length_b: Tensor, start_b: Tensor) -> Tensor:
    """Each window's crop stretched linearly to the full length, which changes the heart rate. Windows whose
    length is 1 stay unchanged."""
    at = start_b[:, None] + length_b[:, None] * torch.linspace(0, 1, x_bct.shape[-1], device=x_bct.device)
    grid = torch.stack([2 * at - 1, torch.zeros_like(at)], dim=-1)[:, None]
    y = F.grid_sample(x_bct[:, :, None].float(), grid, align_corners=True)[:, :, 0]
    return torch.where((length_b == 1)[:, None, None], x_bct.float(), y)


def complementary(
    ids_b: Tensor, c: M2AEConfig, n: int, has: Mapping[str, Tensor], seed: int, at: int
) -> tuple[Tensor, Tensor]:
    """Hidden patches (B, n) bool of the PPG and of the ECG; each patch is hidden in exactly one of them.

    Patches form runs of ``c.span`` with a random offset. One random modality hides ``c.mask_ratio`` of the
    runs and the other hides the rest. A window with one modality hides ``c.mask_ratio`` of it.
    """
    spans = -(-n // c.span) + 1  # the random offset shortens the first and the last
    u = keyed_uniform(ids_b, spans + 3, seed, at, _SPANS)
    count = (c.mask_ratio * spans + u[:, 2]).long().clamp(1, spans - 1)  # the ratio, on average
    chosen = u[:, 3:].argsort(dim=1).argsort(dim=1) < count[:, None]
    start = (u[:, 0] * c.span).long()
    where = (torch.arange(n, device=u.device) + start[:, None]) // c.span
    more = chosen.gather(1, where)  # mask_ratio of the patches
    ppg_has_more = (u[:, 1] < 0.5) & has["ppg"] | ~has["ecg"]
    side = ppg_has_more[:, None]
    return torch.where(side, more, ~more), torch.where(side, ~more, more)
