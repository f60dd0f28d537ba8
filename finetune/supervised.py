"""Recipes that learn from labels, through the one loop: `Vision` (images of PPG through a ViT, Vision4PPG,
facts in DESIGN 8.4) and `Tune` (any published encoder under an MLP head, alone or trained along).

Both give an adapter: what was trained, and the name and hash of what it sits upon.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cluster.config import Config
from cluster.errors import PlethoraError
from datasets.schema import Corpus
from datasets.windows import Signal, WindowSpec
from finetune import targets
from finetune.encoders.bundle import BundleEncoder
from finetune.networks.backbone import VisionConfig, VisionNet
from finetune.networks.tuned import Predictor, Tuned
from finetune.targets import Head
from finetune.task import load_task
from pretrain.layers import count, keyed_uniform
from pretrain.published import prepared
from pretrain.recipe import Encoder, Mode, StepResult
from pretrain.trained import open_trained

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

_AUGMENT = 7


class SupervisedConfig(Config):
    tasks: tuple[str, ...]  # of finetune/tasks, or TOML files: several share one network
    window_s: float | None = Field(None, gt=0)  # None: the tasks' own
    hop_s: float | None = Field(None, gt=0)  # None: the tasks' own overlap
    beta: float = Field(2.0, gt=0)  # knee of smooth L1 in the task's unit; Vision4PPG: 2 mmHg
    standardise: bool = True  # by mean and std of the training windows; Vision4PPG: off


class VisionRunConfig(SupervisedConfig, VisionConfig):
    """Windows are `imaging.window_s` long, at `imaging.rate`."""

    band: tuple[float, float | None] | None = None  # Hz; unstated in the paper
    order: int = 3


class TuneConfig(SupervisedConfig):
    encoder: str  # URI of a published bundle
    input: str = ""  # the bundle's mode; "": its only one
    mode: Literal["probe", "lora", "full"] = "probe"  # probe: the encoder is frozen, an MLP on it trains
    rank: int = Field(8, ge=1)  # of the adapters of mode "lora"
    hidden: int = Field(256, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class _Supervised(ABC):
    """What both recipes share. `heads` are known once the training targets are (`told`), or from a bundle."""

    config: Any

    def __init__(self, config: Any, seed: int) -> None:
        self.config, self.seed = config, seed
        self.tasks = targets.placed([load_task(n) for n in config.tasks], self._window_s(), config.hop_s)
        self.window_s = self.tasks[0].window_s
        self.heads: list[Head] = []
        self.classes: dict[str, list[str]] = {}

    # -- what differs

    def _window_s(self) -> float | None:
        return self.config.window_s

    @abstractmethod
    def signals(self) -> tuple[Signal, ...]: ...

    @abstractmethod
    def body(self, heads: Sequence[Head]) -> nn.Module: ...

    @abstractmethod
    def base(self, body: nn.Module) -> dict[str, Any]:
        """What the adapter sits upon: {"name", "source", "hash", …}."""

    @abstractmethod
    def lines(self, body: nn.Module) -> list[str]: ...

    @abstractmethod
    def preprocessing(self) -> dict[str, dict[str, Any]]: ...

    def more(self, batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """What the network takes in training beside the signals."""
        return {}

    @abstractmethod
    def check_corpus(self, corpus: Corpus) -> None:
        """PlethoraError when the corpus cannot give what the network takes."""

    # -- labels

    def targets(self, corpus: Corpus, table: pa.Table) -> np.ndarray:
        self.check_corpus(corpus)
        found = targets.read_labels(corpus, table, self.tasks)
        for name, names in found.classes.items():
            if self.classes.setdefault(name, names) != names:
                raise PlethoraError(
                    f"task {name} has classes {', '.join(names)} in {corpus.uri}, elsewhere "
                    f"{', '.join(self.classes[name])}: train on corpora with the same ones"
                )
        return found.values

    def told(self, targets_nk: np.ndarray) -> None:
        self.heads = targets.with_statistics(self.tasks, self.classes, targets_nk)

    def remember(self, tables: Sequence[Mapping[str, Any]], where: str) -> None:
        """The heads as a bundle's config.json has them."""
        self.heads = [targets.head_of(table, where) for table in tables]
        self.classes = {h.name: list(h.classes) for h in self.heads if h.classes}

    # -- the contract

    def windows(self) -> WindowSpec:
        one = self.tasks[0]
        return WindowSpec(signals=self.signals(), window_s=one.window_s, hop_s=one.hop_s, until_s=one.until_s)

    def _heads(self) -> list[Head]:
        return self.heads or [Head(task) for task in self.tasks]

    def modules(self) -> dict[str, nn.Module]:
        heads = self._heads()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return {"net": Predictor(self.body(heads), heads, self.config.standardise)}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        training = torch.is_grad_enabled()
        signals = [batch[s.modality] for s in self.signals()]
        y = modules["net"](*signals, **(self.more(batch, step) if training else {}))
        target = batch["target"]
        each = targets.task_losses(y, target, self.heads, self.config.beta, self.config.standardise)
        drawn = {"predicted": lambda: scatter(y, target, self.heads)}
        return StepResult(
            losses={"net": each.mean()},
            counts={"errors": targets.errors(y.detach(), target, self.heads)},
            figures={} if training else drawn,
        )

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        wrong, known = counts["errors"].tolist()
        return {
            f"{'error_rate' if h.classes else 'mae'}/{h.name}": w / n
            for h, w, n in zip(self.heads, wrong, known, strict=True)
            if n
        }

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        net = modules["net"]
        assert isinstance(net, Predictor)
        inputs = [
            {"name": s.modality, "modality": s.modality, "rate": s.rate, "channels": s.channels}
            for s in self.signals()
        ]
        samples = round(self.window_s * self.signals()[0].rate)
        whole = Mode(net, inputs, sum(h.columns for h in self.heads), samples, samples, samples)
        about = {"base": self.base(net.body), "targets": [h.table() for h in self.heads]}
        name = "+".join(s.modality for s in self.signals())
        return Encoder({name: whole}, "adapter", self.preprocessing(), about=about)

    def check(self) -> list[str]:
        """Build the network and send two windows forward and backward, so that what does not fit shows before
        the first step. Returns a run's first lines: which weights, what trains.
        """
        net = self.modules()["net"]
        shapes = [(2, s.channels, round(self.window_s * s.rate)) for s in self.signals()]
        try:
            net(*(torch.randn(shape) for shape in shapes)).sum().backward()
        except (RuntimeError, ValueError, AssertionError) as error:
            why = " ".join(str(error).split())[:200]
            raise PlethoraError(
                f"windows of {self.window_s:g} s ({' and '.join(map(str, shapes))}) do not go through the "
                f"network ({why}): set method.window_s (or method.imaging) to what it takes"
            ) from None
        assert isinstance(net, Predictor)
        return self.lines(net.body)


class Vision(_Supervised):
    Config: type[VisionRunConfig] = VisionRunConfig

    def _window_s(self) -> float:
        c = self.config
        if c.window_s is not None and c.window_s != c.imaging.window_s:
            raise PlethoraError(
                f"method.window_s = {c.window_s:g}, but method.imaging.window_s = {c.imaging.window_s:g}: "
                "set the latter alone"
            )
        return c.imaging.window_s

    def signals(self) -> tuple[Signal, ...]:
        c = self.config
        return (Signal(modality="ppg", rate=c.imaging.rate, band=c.band, order=c.order),)

    def body(self, heads: Sequence[Head]) -> nn.Module:
        return VisionNet(self.config, {h.name: h.columns for h in heads}, self.seed)

    def base(self, body: nn.Module) -> dict[str, Any]:
        assert isinstance(body, VisionNet)
        return body.base.table()

    def lines(self, body: nn.Module) -> list[str]:
        assert isinstance(body, VisionNet)
        return body.lines()

    def preprocessing(self) -> dict[str, dict[str, Any]]:
        (signal,) = self.signals()
        return {"ppg": prepared(signal, self.window_s, self.window_s) | {"short": "refuse"}}

    def more(self, batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        if not self.config.imaging.spec_augment:
            return {}
        return {"uniform_b4": keyed_uniform(batch["window"], 4, self.seed, step, _AUGMENT)}

    def check_corpus(self, corpus: Corpus) -> None:
        if "ppg" not in corpus.modalities:
            there = ", ".join(corpus.modalities)
            raise PlethoraError(f"{corpus.uri} has no ppg (it has {there}): use another corpus")


class Tune(_Supervised):
    Config = TuneConfig

    @cached_property
    def source(self) -> BundleEncoder:
        if not self.config.encoder:
            raise PlethoraError("method.encoder is empty: set it to the URI of a published encoder")
        return BundleEncoder(self.config.encoder, self.config.input or None, threads=1)

    def signals(self) -> tuple[Signal, ...]:
        return self.source.signals

    def body(self, heads: Sequence[Head]) -> nn.Module:
        name = self.source.mode  # first: its error names a missing encoder
        mode = open_trained(self.config.encoder)[1].modes[name]
        pieces, columns = self.source.pieces(self.window_s), sum(h.columns for h in heads)
        samples = round(self.window_s * self.source.signal.rate)
        c = self.config
        return Tuned(mode, pieces, samples, columns, c.mode, c.rank, c.hidden, c.dropout)

    def base(self, body: nn.Module) -> dict[str, Any]:
        bundle = self.source.bundle
        name = bundle.config.get("run", {}).get("name", "")
        return {"name": name, "source": f"bundle: {bundle.uri}#{self.source.mode}", "hash": bundle.hash}

    def lines(self, body: nn.Module) -> list[str]:
        base, whole, c = self.base(body), sum(p.numel() for p in body.parameters()), self.config
        assert isinstance(body, Tuned)
        on = f" (rank {c.rank}, on {len(body.adapted)} layers)" if c.mode == "lora" else ""
        return [
            f"encoder {base['name']}; weights {base['source']}, hash {base['hash'][:16]}",
            f"mode {c.mode}{on}: {count(body):,} of {whole:,} parameters train",
        ]

    def preprocessing(self) -> dict[str, dict[str, Any]]:
        window = {"window_s": self.window_s, "min_s": self.window_s, "short": "refuse"}
        known = self.source.bundle.preprocessing
        return {m: known[m] | window for m in self.source.modalities}

    def check_corpus(self, corpus: Corpus) -> None:
        self.source.check(corpus)


def scatter(y_bo: Tensor, target_bk: Tensor, heads: Sequence[Head]) -> Figure:
    """Predicted against true, a panel a task; of classes the first column's probability."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(heads), 3.4), layout="constrained")
    axes = figure.subplots(1, len(heads), squeeze=False)[0]
    predicted = targets.predicted(y_bo.detach().float().cpu(), heads)
    for axis, head, p, t in zip(axes, heads, predicted, target_bk.cpu().T, strict=True):
        shown = p if p.ndim == 1 else p[:, 0]
        axis.plot(t, shown, ".", color="#1f6f8b", alpha=0.6)
        if not head.classes:
            axis.axline((head.mean, head.mean), slope=1, color="#888888", linewidth=1)
        axis.set_title(f"{head.task.title}, held-out subjects", fontsize=9, loc="left")
        axis.set_xlabel(f"true{f', {head.task.unit}' if head.task.unit else ''}", fontsize=9)
        axis.set_ylabel("predicted", fontsize=9)
        axis.grid(alpha=0.25)
    return figure
