"""Distillation: a small network learns to give the vectors of a bundle that is trained already.

The teacher is any bundle's mode; the student takes the same prepared samples and answers in the teacher's
space, so that it can stand in its place. What it regresses is the teacher's vector with each number
standardised over all windows seen (hints, Romero et al. 2015, arXiv 1412.6550, on the last layer): numbers of
small variance count as much as large ones, as they do for a probe behind a StandardScaler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cluster.config import Config
from cluster.errors import PlethoraError
from datasets.windows import WindowSpec
from pretrain import figures
from pretrain.contrastive import unit
from pretrain.layers import sum_over_ranks
from pretrain.net1d import Net1D
from pretrain.recipe import Encoder, Mode, StepResult
from pretrain.sync_bn import BatchNorm
from pretrain.trained import open_trained

if TYPE_CHECKING:
    from finetune.encoders.bundle import BundleEncoder


class DistillConfig(Config):
    """One student of one mode of one teacher. All is ours: no paper has this student."""

    teacher: str = ""  # URI of the bundle
    mode: str = ""  # of the teacher; "": its only one
    window_s: float | None = Field(None, gt=0)  # none: the teacher's own
    hop_s: float | None = Field(None, gt=0)  # none: window_s
    min_quality: float = 0.0
    filters: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (1, 1, 1)
    kernel: int = 3
    width: int = 16
    stem: int = 32
    dropout: float = Field(0.0, ge=0, lt=1)
    sync_bn: bool = True
    bn_momentum: float = Field(0.1, gt=0, le=1)
    gallery: int = Field(64, ge=2)  # held-out windows among which the figure shows a window's own vector


class Standard(nn.Module):
    """(B, D) -> the same, each number standardised by mean and variance over all rows of all ranks that
    training has shown it so far; without gradient."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("m2", torch.zeros(dim))  # sum of squared deviations from the mean

    count: Tensor
    mean: Tensor
    m2: Tensor

    @property
    def deviation(self) -> Tensor:
        """(D,); 1 where nothing is known or nothing varies."""
        variance = self.m2 / self.count.clamp_min(1)
        return torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.training:
            self._track(x)
        return (x - self.mean) / self.deviation

    def _track(self, x: Tensor) -> None:
        """Chan's update: exact also where the mean is far larger than the spread."""
        total = sum_over_ranks(torch.cat([x.sum(0), x.new_tensor([float(len(x))])]))
        rows = total[-1]
        mean = total[:-1] / rows
        m2 = sum_over_ranks((x - mean).square().sum(0))
        whole, step = self.count + rows, mean - self.mean
        self.m2.add_(m2 + step.square() * self.count * rows / whole)
        self.mean.add_(step * rows / whole)
        self.count.copy_(whole)


class Student(nn.Module):
    """What trains: prepared signals [(B, C, T)] and the teacher's vectors (B, D) -> the student's and the
    teacher's, both standardised, (B, D) each."""

    def __init__(self, net: Net1D, dim: int) -> None:
        super().__init__()
        self.net, self.head = net, nn.Linear(net.dim, dim)
        self.standard = Standard(dim)

    def forward(self, signals: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.net(torch.cat(list(signals), dim=1))), self.standard(target)


class Answer(nn.Module):
    """What is published: prepared signals (B, C, T) of the teacher's mode, one or two in its order -> (B, D)
    in the teacher's space."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.net, self.head, self.standard = student.net, student.head, student.standard

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = x if other is None else torch.cat([x, other], dim=1)
        return self.head(self.net(x)) * self.standard.deviation + self.standard.mean


class Distill:
    """Embedding regression to a frozen bundle."""

    Config = DistillConfig

    def __init__(self, config: DistillConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    @cached_property
    def teacher(self) -> BundleEncoder:
        """What preprocessing.json and config.json say of the teacher."""
        from finetune.encoders.bundle import BundleEncoder

        c = self.config
        if not c.teacher:
            raise PlethoraError("method.teacher is empty: set it to the URI of a trained bundle")
        found = BundleEncoder(c.teacher, c.mode or None)
        window_s = c.window_s or found.window_s
        if not found.min_s <= window_s <= found.max_s:
            raise PlethoraError(
                f"method.window_s = {window_s:g}: the teacher {c.teacher} takes {found.min_s:g} to "
                f"{found.max_s:g} s"
            )
        return found

    def windows(self) -> WindowSpec:
        c = self.config
        return WindowSpec(
            signals=self.teacher.signals,
            window_s=c.window_s or self.teacher.window_s,
            hop_s=c.hop_s,
            min_quality=c.min_quality,
        )

    def modules(self) -> dict[str, nn.Module]:
        c, channels = self.config, sum(given.channels for given in self.teacher.inputs)
        norm = partial(BatchNorm, sync=c.sync_bn, momentum=c.bn_momentum)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = Net1D(channels, c.filters, c.blocks, c.kernel, c.width, c.stem, c.dropout, norm)
            return {"student": Student(net, self.teacher.dim)}

    def frozen(self) -> dict[str, nn.Module]:
        _, encoder = open_trained(self.config.teacher)
        return {"teacher": encoder.modes[self.teacher.mode].module.requires_grad_(False)}

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        signals = [batch[modality] for modality in self.teacher.modalities]
        with torch.no_grad():
            target = frozen["teacher"](*signals)
        found, wanted = modules["student"](signals, target)
        found = found.float()
        loss = F.mse_loss(found, wanted)
        if torch.is_grad_enabled():
            return StepResult(losses={"student": loss})
        missed = torch.stack([(found - wanted).square().sum(), wanted.square().sum()])
        names, size = ("student", "teacher"), self.config.gallery
        return StepResult(
            losses={"student": loss},
            log={"cosine": F.cosine_similarity(found, wanted).mean()},
            counts={"missed": missed},
            figures={"retrieval": lambda: figures.retrieval(unit(found), unit(wanted), names, size)},
        )

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """The share of the teacher's variance, each number alike, that the student does not tell."""
        missed, power = counts["missed"].tolist()
        return {"unexplained": missed / power if power else float("nan")}

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        student, teacher = modules["student"], self.teacher
        assert isinstance(student, Student)
        rate = teacher.signal.rate
        mode = Mode(
            module=Answer(student),
            inputs=[given.model_dump() for given in teacher.inputs],
            dim=teacher.dim,
            min_samples=round(teacher.min_s * rate),
            step_samples=1,
            max_samples=round(teacher.max_s * rate),
        )
        preprocessing = {m: teacher.bundle.preprocessing[m] for m in teacher.modalities}
        return Encoder({teacher.mode: mode}, "encoder", preprocessing)
