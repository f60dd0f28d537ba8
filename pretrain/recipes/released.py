"""Encoders whose weights their authors published and whose training is not here: PaPaGei, Pulse-PPG,
ECGFounder, MOMENT.

Each class is a recipe as far as a bundle needs one: the windows, the network, the encoder to publish.
``check`` and ``losses`` refuse to pretrain it. In comments, "code" is the authors' release and "ours" marks
what it does not state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import NoReturn

from pydantic import Field, model_validator
from torch import Tensor, nn

from cluster.config import Config
from cluster.errors import PlethoraError
from datasets.windows import Signal, WindowSpec
from pretrain import published
from pretrain.layers import seeded
from pretrain.moment_net import SAMPLES, Moment
from pretrain.net1d import Net1D, zscore_all
from pretrain.recipe import Encoder, StepResult
from pretrain.resnet1d import PaPaGei as PaPaGeiNet
from pretrain.resnet1d import PulsePPG as PulsePPGNet
from pretrain.resnet1d import ResNet1D

Net = PaPaGeiNet | PulsePPGNet | Net1D | Moment


class ReleasedConfig(Config):
    """One encoder of one signal."""

    window_s: float = Field(10.0, gt=0)
    hop_s: float | None = Field(None, gt=0)  # none: window_s
    min_quality: float = 0.0
    min_s: float = Field(2.0, gt=0)  # ours: shortest input
    max_s: float | None = Field(None, gt=0)  # longest input; none: window_s

    @model_validator(mode="after")
    def _check(self) -> ReleasedConfig:
        if not self.min_s <= self.window_s <= self.longest_s:
            raise ValueError(
                f"window_s = {self.window_s:g} is not between min_s = {self.min_s:g} and "
                f"max_s = {self.longest_s:g}"
            )
        return self

    @property
    def longest_s(self) -> float:
        return self.window_s if self.max_s is None else self.max_s

    @abstractmethod
    def net(self) -> Net:
        """The network with fresh weights: (B, C, T) prepared samples -> (B, dim)."""

    @abstractmethod
    def signal(self) -> Signal:
        """How the authors prepare what the network reads."""

    def spec(self) -> WindowSpec:
        return WindowSpec(
            signals=(self.signal(),), window_s=self.window_s, hop_s=self.hop_s, min_quality=self.min_quality
        )

    def encoder(self, net: Net) -> Encoder:
        """What is published of ``net``. It takes any length from ``min_s`` to the longest."""
        spec, signal = self.spec(), self.signal()
        least, most = (round(seconds * signal.rate) for seconds in (self.min_s, self.longest_s))
        mode = published.mode(spec, net, net.dim, (signal.modality,), min_samples=least, max_samples=most)
        return published.encoder(spec, {signal.modality: mode})


class Released:
    """What the recipes of this file share; ``name`` is that of the importer."""

    name = ""

    def __init__(self, config: ReleasedConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def windows(self) -> WindowSpec:
        return self.config.spec()

    def modules(self) -> dict[str, nn.Module]:
        with seeded(self.seed):
            return {"net": self.config.net()}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def check(self) -> list[str]:
        self._refuse()

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise PlethoraError(
            f"{type(self).__name__} is not pretrained here: import its weights (python -m pretrain import "
            f"{self.name}), then tune or distil the bundle"
        )

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        net = modules["net"]
        assert isinstance(net, Net)
        return self.config.encoder(net)


class PaPaGeiConfig(ReleasedConfig):
    """PaPaGei-S and -P (Pillai et al., arXiv 2410.20542; code: Nokia-Bell-Labs/papagei-foundation-model,
    0c537da)."""

    filters: int = Field(32, ge=1)  # code, README.md "Load the PaPaGei-S Model": of the stem
    kernel: int = Field(3, ge=2)  # code
    blocks: int = Field(18, ge=1, le=64)  # code
    dim: int = Field(512, ge=1)  # code: n_classes
    dropout: float = Field(0.5, ge=0, lt=1)  # code, models/resnet.py

    def net(self) -> PaPaGeiNet:
        return PaPaGeiNet(ResNet1D(1, self.filters, self.kernel, self.blocks, self.dropout), self.dim)

    def signal(self) -> Signal:
        """pyPPG's filter on the recording (preprocessing/ppg.py, ``preprocess_one_ppg_signal``), then z-score
        and polyphase resampling of each segment, in this order (dataset.py, ``PPGDatasetLabelsArray``;
        linearprobing/feature_extraction_papagei.py, ``compute_signal_embeddings``). Here, as for every
        encoder, the filter runs on the window."""
        return _pyppg(125.0, ("filter", "normalise", "resample"))


class PaPaGei(Released):
    """PaPaGei-S or -P: the vectors are those of the ``dense`` layer, the first output of both networks."""

    Config, name = PaPaGeiConfig, "papagei-s or papagei-p"


class PulsePPGConfig(ReleasedConfig):
    """Pulse-PPG (Saha, Xu et al., arXiv 2502.01108; code: maxxu05/pulseppg, 716eaf9)."""

    max_s: float | None = Field(240.0, gt=0)  # code, README.md: pretrained on four minutes
    filters: int = Field(128, ge=1)  # code, experiments/configs/PulsePPG_expconfigs.py
    kernel: int = Field(11, ge=2)  # code
    blocks: int = Field(12, ge=1, le=64)  # code
    dropout: float = Field(0.5, ge=0, lt=1)  # code, nets/ResNet1D/ResNet1D_Net.py

    def net(self) -> PulsePPGNet:
        return PulsePPGNet(ResNet1D(1, self.filters, self.kernel, self.blocks, self.dropout))

    def signal(self) -> Signal:
        """As the authors' evaluations prepare recordings (data/process/PPGBP.py, SDB.py and PPGDALIA.py,
        ``process_data``): z-score, pyPPG's filter, polyphase resampling to 50 Hz. Its pretraining scaled by
        the statistics of each wearer and did not filter; a new recording has no such statistics. Here, as for
        every encoder, all steps run on the window."""
        return _pyppg(50.0, ("normalise", "filter", "resample"))


class PulsePPG(Released):
    """Pulse-PPG: the maximum over time of the last block."""

    Config, name = PulsePPGConfig, "pulse-ppg"


class ECGFounderConfig(ReleasedConfig):
    """ECGFounder (Li et al., arXiv 2410.04133; code: PKUDigitalHealth/ECGFounder, 04edac7).

    Its code builds batch norms and never calls them (``use_bn=False`` in finetune_model.py and in
    ptbxl_eval.py), and z-scores all leads of a window together (dataset.py), which the network does here.
    """

    channels: int = Field(12, ge=1, le=64)  # code: leads I, II, III, aVR, aVL, aVF, V1 to V6; or lead I alone
    filters: tuple[int, ...] = (64, 160, 160, 400, 400, 1024, 1024)  # code
    blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 4, 4)  # code
    kernel: int = Field(16, ge=2)  # code
    width: int = Field(16, ge=1)  # code: channels per group
    stem: int = Field(64, ge=1)  # code

    def net(self) -> Net1D:
        return Net1D(
            self.channels,
            self.filters,
            self.blocks,
            self.kernel,
            self.width,
            self.stem,
            0.0,
            None,
            zscore_all,
        )

    def signal(self) -> Signal:
        """util.py, ``filter_bandpass``: at 500 Hz a notch at 50 Hz, a Butterworth band-pass of 0.67 to 40 Hz,
        and less the running median of 0.4 s. dataset.py resamples other rates linearly; the lowest rate is
        ours, that of the band. Here notch and band are one pass."""
        return Signal(
            modality="ecg",
            rate=500.0,
            channels=self.channels,
            band=(0.67, 40.0),
            order=4,
            notch=50.0,
            baseline_s=0.4,
            resample="linear",
            sequence=("resample", "filter", "normalise"),
            min_rate=100.0,
        )


class ECGFounder(Released):
    """ECGFounder, of one or of twelve leads: the mean over time before its 150 classes."""

    Config, name = ECGFounderConfig, "ecgfounder"


class MOMENTConfig(ReleasedConfig):
    """MOMENT (Goswami et al., arXiv 2402.03885; code: moment-timeseries-foundation-model/moment, 38f7310).
    Sizes: those of MOMENT-1-small (its config.json)."""

    rate: float = Field(64.0, gt=0)  # ours, as PPG-Bench 0.1.0 feeds it: MOMENT itself knows samples alone
    window_s: float = Field(8.0, gt=0)  # ours: 512 samples
    dim: int = Field(512, ge=2)
    depth: int = Field(8, ge=1, le=64)
    heads: int = Field(6, ge=1)
    head_dim: int = Field(64, ge=1)
    hidden: int = Field(1024, ge=1)
    patch: int = Field(8, ge=1, le=SAMPLES)
    buckets: int = Field(32, ge=4)
    dropout: float = Field(0.1, ge=0, lt=1)  # code: patch_dropout, and T5's dropout_rate

    @model_validator(mode="after")
    def _fits(self) -> MOMENTConfig:
        if (most := round(self.longest_s * self.rate)) > SAMPLES:
            raise ValueError(
                f"{self.longest_s:g} s at rate = {self.rate:g} Hz are {most} samples, and MOMENT reads "
                f"{SAMPLES} at most: lower rate or window_s (evaluations cut longer windows into pieces)"
            )
        if (least := round(self.min_s * self.rate)) < self.patch:
            raise ValueError(f"min_s = {self.min_s:g} are {least} samples, and a patch has {self.patch}")
        return self

    def net(self) -> Moment:
        return Moment(
            self.dim,
            self.depth,
            self.heads,
            self.head_dim,
            self.hidden,
            self.patch,
            self.buckets,
            self.dropout,
        )

    def signal(self) -> Signal:
        """No filter, polyphase resampling. The z-score before it is ours: the resampler takes what lies
        beyond a window as zero, and the network normalises what it reads anyway."""
        return Signal(
            modality="ppg",
            rate=self.rate,
            resample="polyphase",
            normalise="zscore",
            sequence=("normalise", "filter", "resample"),
        )


class MOMENT(Released):
    """MOMENT: the mean over patches of the encoder's last norm, its code's embedding."""

    Config, name = MOMENTConfig, "moment"


def _pyppg(rate: float, sequence: tuple[str, ...]) -> Signal:
    """pyPPG's filter (``Preprocess.get_signals`` of 1.0.41, 0.5 to 12 Hz), which both PPG encoders use."""
    return Signal.model_validate(
        {
            "modality": "ppg",
            "rate": rate,
            "band": (0.5, 12.0),
            "filter": "chebyshev2",
            "order": 4,
            "attenuation": 20.0,
            "smooth_s": 0.05,
            "smooth_from": 75.0,
            "resample": "polyphase",
            "normalise": "zscore",
            "sequence": sequence,
        }
    )
