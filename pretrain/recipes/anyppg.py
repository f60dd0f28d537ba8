"""AnyPPG (Nie et al., arXiv 2511.01747): a PPG encoder trained to identify the simultaneous ECG.

Defaults follow the paper. In comments, "code" is the authors' release (PKUDigitalHealth/AnyPPG), and "ours"
marks what neither states. Optimizer, batch and schedule are in the run files. Negatives come from a
micro-batch over all workers, so a run with accumulation has fewer than its ``batch``.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import partial

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cluster import storage
from cluster.config import Config
from cluster.errors import PlethoraError
from datasets import declared
from datasets.signal import LATEST
from datasets.windows import Signal, WindowSpec
from pretrain import figures, published
from pretrain.contrastive import Negatives, Scale, held_out, info_nce, metrics, unit
from pretrain.importing import checkpoint
from pretrain.layers import seeded
from pretrain.net1d import Net1D, Norm, Projector, from_authors
from pretrain.recipe import Encoder, StepResult
from pretrain.sync_bn import BatchNorm
from pretrain.trained import open_trained

log = logging.getLogger(__name__)

CHECKPOINTS = (".pth", ".pt", ".safetensors")  # suffixes of local checkpoints; anything else is a bundle


class AnyPPGConfig(Config):
    """One contrastive stage over pairs of PPG and ECG."""

    window_s: float = Field(10.0, gt=0)  # paper
    hop_s: float | None = None  # none: window_s
    rate: float = 125.0  # paper, Hz, of the PPG
    band: tuple[float, float] = (0.5, 8.0)  # paper, Hz: Butterworth, zero-phase, at the native rate
    order: int = 3  # code
    ecg_rate: float = 500.0  # paper, Hz
    ecg_low: float = 0.5  # code, Hz: high-pass
    ecg_high: float | None = None  # code: no low-pass; a teacher may need one, Hz
    ecg_order: int = 5  # code
    ecg_notch: float = Field(50.0, ge=0)  # code; 60 for 60 Hz mains, 0 for no notch
    ecg_min_rate: float = 125.0  # Hz; the lowest in the paper (PulseDB): lower rates are refused
    max_flat: float = 0.25  # code: largest flat share of a window, either signal
    ecg_gate: bool = True  # paper: windows with unacceptable ECG are excluded; code: Zhao 2018
    min_quality: float = 0.0  # code: no quality gate on the PPG

    filters: tuple[int, ...] = (64, 160, 160, 400, 400, 512)  # code; paper's v1: last 1024
    blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 1)  # code
    kernel: int = 3  # code
    width: int = 16  # code: channels per group
    stem: int = 64  # code
    dropout: float = Field(0.5, ge=0, lt=1)  # code
    embedding_dropout: float = Field(0.2, ge=0, lt=1)  # code, for the PPG; its run script sets 0
    sync_bn: bool = True  # ours; code: statistics per worker
    bn_momentum: float = Field(0.1, gt=0, le=1)  # code: torch's

    ecg_teacher: str = ""  # URI of a bundle with mode "ecg", or local checkpoint of ECGFounder; "": train one
    ecg_filters: tuple[int, ...] = (64, 160, 160, 400, 400, 512)  # ours, when trained jointly
    ecg_blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 1)  # ours
    ecg_kernel: int = 16  # code: the teacher's
    ecg_dropout: float = Field(0.0, ge=0, lt=1)  # code: the teacher has none

    projection: int = 128  # code
    temperature: float = Field(0.07, gt=0)  # code: where the learnable scale starts
    max_scale: float = Field(100.0, gt=1)  # CLIP; code: unbounded
    negatives: Negatives = "global"  # ours; code: "local"
    same_subject_negatives: bool = True  # code; false: a subject's other windows are no negatives
    gallery: int = Field(64, ge=2)  # ours: held-out windows per retrieval gallery
    min_s: float = Field(2.0, gt=0)  # ours: shortest input of the published encoder

    @model_validator(mode="after")
    def _check(self) -> AnyPPGConfig:
        if self.min_s > self.window_s:
            raise ValueError(f"min_s = {self.min_s:g} is longer than window_s = {self.window_s:g}")
        return self

    def norm(self) -> Norm:
        return partial(BatchNorm, sync=self.sync_bn, momentum=self.bn_momentum)

    def net(self) -> Net1D:
        """The PPG encoder with fresh weights."""
        return Net1D(
            1, self.filters, self.blocks, self.kernel, self.width, self.stem, self.dropout, self.norm()
        )

    def ecg_net(self) -> Net1D:
        """The ECG encoder that is trained jointly."""
        return Net1D(
            1,
            self.ecg_filters,
            self.ecg_blocks,
            self.ecg_kernel,
            self.width,
            self.stem,
            self.ecg_dropout,
            self.norm(),
        )

    def signals(self) -> tuple[Signal, Signal]:
        """How windows are prepared; the networks normalise them."""
        return (
            Signal(modality="ppg", rate=self.rate, band=self.band, order=self.order, max_flat=self.max_flat),
            Signal(
                modality="ecg",
                rate=self.ecg_rate,
                band=(self.ecg_low, self.ecg_high),
                order=self.ecg_order,
                notch=self.ecg_notch or None,
                upright=True,
                min_rate=self.ecg_min_rate,
                max_flat=self.max_flat,
                gate="ecg" if self.ecg_gate else "none",
            ),
        )

    def spec(self) -> WindowSpec:
        return WindowSpec(
            signals=self.signals(), window_s=self.window_s, hop_s=self.hop_s, min_quality=self.min_quality
        )

    def encoder(self, nets: Mapping[str, Net1D]) -> Encoder:
        """The published encoder of the trained ``nets``, by modality. Each accepts any length from ``min_s``
        on and z-scores its input."""
        spec = self.spec()
        rates = {s.modality: s.rate for s in spec.signals}
        modes = {
            m: published.mode(spec, net, net.dim, (m,), min_samples=round(self.min_s * rates[m]))
            for m, net in nets.items()
        }
        return published.encoder(spec, modes)


class Pair(nn.Module):
    """The trainable module: encoders, projectors and the scale.

    (B, 1, T) PPG and either ECG samples or, if ``ecg`` is None, a teacher's features (B, ``ecg_dim``) ->
    (B, D) for both sides, and the scale (). ``valid_b`` bool: rows that are pairs; other rows are not
    encoded, do not enter batch statistics, and give zeros. None: all.
    """

    def __init__(self, ppg: Net1D, ecg: Net1D | None, ecg_dim: int, config: AnyPPGConfig) -> None:
        super().__init__()
        self.ppg, self.ecg = ppg, ecg
        self.drop = nn.Dropout(config.embedding_dropout)
        self.ppg_head = Projector(ppg.dim, config.projection, config.norm())
        self.ecg_head = Projector(ecg_dim, config.projection, config.norm())
        self.scale = Scale(config.temperature, config.max_scale)

    def forward(
        self, ppg: Tensor, ecg: Tensor, valid_b: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if valid_b is not None:
            ppg, ecg = ppg[valid_b], ecg[valid_b]
        a = self.ppg_head(self.drop(self.ppg(ppg)))
        b = self.ecg_head(ecg if self.ecg is None else self.ecg(ecg))
        if valid_b is not None:
            a, b = (z.new_zeros(len(valid_b), z.shape[1]).index_put((valid_b,), z) for z in (a, b))
        return a, b, self.scale()


class AnyPPG:
    """Symmetric InfoNCE between PPG and simultaneous ECG.

    ``teacher``: the frozen ECG encoder, (B, 1, T) -> (B, D), instead of ``config.ecg_teacher``.
    """

    Config = AnyPPGConfig

    def __init__(self, config: AnyPPGConfig, seed: int, teacher: nn.Module | None = None) -> None:
        self.config, self.seed, self._teacher = config, seed, teacher

    def windows(self) -> WindowSpec:
        return self.config.spec()

    def modules(self) -> dict[str, nn.Module]:
        c, teacher = self.config, self._open_teacher()
        with seeded(self.seed):
            ecg = c.ecg_net() if teacher is None else None
            wide = ecg.dim if ecg is not None else self._width(teacher)
            return {"pair": Pair(c.net(), ecg, wide, c)}

    def frozen(self) -> dict[str, nn.Module]:
        teacher = self._open_teacher()
        return {} if teacher is None else {"ecg": teacher.eval().requires_grad_(False)}

    def _open_teacher(self) -> nn.Module | None:
        if self._teacher is None and self.config.ecg_teacher:
            with torch.device("cpu"):  # also when "meta" counts parameters: it loads weights
                self._teacher = open_teacher(self.config.ecg_teacher, self)
        return self._teacher

    @torch.no_grad()
    def _width(self, teacher: nn.Module | None) -> int:
        """The teacher's number of features, found by running one window."""
        assert teacher is not None
        with torch.device("cpu"):
            window = torch.zeros(1, 1, round(self.config.window_s * self.config.ecg_rate))
            return teacher.eval().cpu()(window).shape[1]

    def foreseen(self) -> str:
        """The hash or URI of the frozen ECG encoder; "" if none is named and one is trained jointly."""
        uri = self.config.ecg_teacher
        if not uri:
            return ""
        if uri.lower().endswith(CHECKPOINTS):
            return hashlib.sha256(storage.read_bytes(uri)).hexdigest()
        mark = storage.join(uri, "_COMPLETE")
        return storage.read_bytes(mark).decode() if storage.exists(mark) else uri

    def foresee(self, frozen: Mapping[str, nn.Module], batch: dict) -> dict[str, Tensor]:
        """{"ecg_features": (B, D) float32}: the frozen encoder's features, which stay the same over training.
        Computing them takes two thirds of a step's arithmetic."""
        return {"ecg_features": frozen["ecg"](batch["ecg"]).float()}

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        c, subject = self.config, batch["subject"]
        valid = valid_pairs(batch)
        ecg = batch["ecg"]
        if "ecg" in frozen:
            with torch.no_grad():
                foreseen = batch if "ecg_features" in batch else self.foresee(frozen, batch)
            ecg = foreseen["ecg_features"]
        a, b, scale = modules["pair"](batch["ppg"], ecg, valid)
        if not torch.is_grad_enabled():
            loss, found = held_out(a, b, scale, subject, c.gallery, valid)
            found = {
                name.replace("_ab", "_ppg_ecg").replace("_ba", "_ecg_ppg"): v for name, v in found.items()
            }
            return StepResult(
                losses={"pair": loss},
                log={**found, "scale": scale},
                figures={"retrieval": lambda: figures.retrieval(unit(a), unit(b), ("PPG", "ECG"), c.gallery)},
            )
        others = None if c.same_subject_negatives else subject
        loss = info_nce(a, b, scale, valid, others, c.negatives)
        rows = slice(None) if valid is None else valid
        found = metrics(unit(a.detach()[rows]), unit(b.detach()[rows]))
        logged: dict[str, Tensor | float] = {name: found[name] for name in ("alignment", "uniformity")}
        return StepResult(losses={"pair": loss}, log={**logged, "scale": scale.detach()})

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        pair = modules["pair"]
        assert isinstance(pair, Pair)
        nets = {"ppg": pair.ppg, "ecg": pair.ecg}
        return self.config.encoder({name: net for name, net in nets.items() if net is not None})


def valid_pairs(batch: Mapping[str, Tensor]) -> Tensor | None:
    """(B,) bool: windows with both signals; None if the batch has no masks and therefore only pairs."""
    masks = [batch[name] for name in ("has_ppg", "has_ecg") if name in batch]
    if not masks:
        return None
    return torch.stack(masks).all(dim=0)


def open_teacher(uri: str, recipe: AnyPPG) -> nn.Module:
    """The ECG encoder at ``uri``, (B, 1, T) at ``ecg_rate`` -> (B, D): a bundle's mode "ecg", or a local
    checkpoint with the state dict of the authors' Net1D (ECGFounder's file), opened as weights only.

    Errors: PlethoraError when it does not exist, is not an ECG encoder, or needs other samples.
    """
    if uri.lower().endswith(CHECKPOINTS):
        return _checkpoint(uri)
    from cluster import bundle

    found = bundle.open(uri)
    if "ecg" not in (names := found.config["modes"]):
        raise PlethoraError(
            f"method.ecg_teacher = {uri} has no mode ecg (it has {', '.join(names)}): give an ECG encoder"
        )
    wants = declared.signal_of("ecg", found.preprocessing["ecg"], f"{uri}/preprocessing.json")
    gives = recipe.config.signals()[1]
    low, high = wants.band or (None, None)
    asked = {
        "ecg_rate": wants.rate,
        "ecg_low": low,
        "ecg_high": high,
        "ecg_order": wants.order,
        "ecg_notch": wants.notch or 0.0,
    }
    other = [f"{key} = {value}" for key, value in asked.items() if value != getattr(recipe.config, key)]
    if other:
        raise PlethoraError(f"the teacher {uri} takes other ECG than this run gives: set {', '.join(other)}")
    if not wants.upright:
        raise PlethoraError(f"the teacher {uri} takes ECG as recorded, AnyPPG turns it upright: give another")
    apart = declared.differences(wants, gives)
    rest = [f"{key} {a}, not {b}" for key, (a, b) in apart.items() if key in ("normalise", *LATEST)]
    if rest:
        raise PlethoraError(f"the teacher {uri} takes ECG with {', '.join(rest)}: give another")
    teacher = open_trained(uri)[1].modes["ecg"]
    samples, least, most = (
        round(recipe.config.window_s * wants.rate),
        teacher.min_samples,
        teacher.max_samples,
    )
    if not least <= samples <= most:
        raise PlethoraError(
            f"the teacher {uri} takes {least} to {most} samples of ECG, a window has {samples}: "
            f"set method.window_s"
        )
    return teacher.module


def _checkpoint(path: str) -> nn.Module:
    try:
        net, unused = from_authors(checkpoint.read(path))
    except (ValueError, PlethoraError) as error:
        raise PlethoraError(
            f"method.ecg_teacher = {path} holds no weights of the authors' Net1D: {error}"
        ) from error
    log.info("%s: %s not used", path, ", ".join(unused) or "nothing is")
    return net
