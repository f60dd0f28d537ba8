"""A recipe and a bundle small enough for tests: filters whose pooled amplitude tells the heart rate."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from cluster import bundle
from cluster.config import Config
from datasets.windows import Signal, WindowSpec
from pretrain import card
from pretrain.recipe import Encoder, Mode, StepResult

RATE, STEP_S, WINDOW_S, TAPS = 50, 2, 60, 99


class Net(nn.Module):
    """Min-max → filters → pooled power → linear. Fresh filters are noise, `tune` makes them sines."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 2 * dim, TAPS, padding=TAPS // 2, bias=False)
        self.mix = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        x = (x - low) / (high - low + 1e-6)
        y = self.filters(x - x.mean(-1, keepdim=True))
        power = (y**2).mean(-1)
        pairs = power.reshape(power.shape[0], -1, 2).sum(-1)
        return self.mix(torch.log(pairs + 1e-4))

    @torch.no_grad()
    def tune(self) -> "Net":
        time = torch.arange(TAPS) / RATE
        for i, bpm in enumerate(torch.linspace(40, 200, self.mix.in_features)):
            angle = 2 * torch.pi * bpm / 60 * time
            self.filters.weight[2 * i, 0] = torch.cos(angle) / TAPS
            self.filters.weight[2 * i + 1, 0] = torch.sin(angle) / TAPS
        return self


class Tiny:
    """A recipe with nothing to learn; only what evaluation asks of one."""

    class Config(Config):
        dim: int = 24

    def __init__(self, config: Any, seed: int) -> None:
        self.config, self.seed = config, seed

    def windows(self) -> WindowSpec:
        return WindowSpec(signals=(Signal(modality="ppg", rate=RATE, band=(0.5, 8)),), window_s=WINDOW_S)

    def modules(self) -> dict[str, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return {"net": Net(self.config.dim)}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def losses(self, modules: Any, frozen: Any, batch: dict, step: int) -> StepResult:
        return StepResult({"net": modules["net"](batch["ppg"]).pow(2).mean()})

    def summary(self, counts: Any) -> dict[str, float]:
        return {}

    def encoder(self, modules: Any) -> Encoder:
        inputs = [{"name": "ppg", "modality": "ppg", "rate": RATE, "channels": 1}]
        mode = Mode(modules["net"], inputs, self.config.dim, STEP_S * RATE, STEP_S * RATE, WINDOW_S * RATE)
        return Encoder({"ppg": mode}, "encoder", PREPROCESSING)


PREPROCESSING: dict[str, Any] = {
    "ppg": {
        "rate": RATE,
        "band": [0.5, 8],
        "filter": "butterworth",
        "order": 2,
        "phase": "zero (sosfiltfilt)",
        "resample": "fft",
        "sequence": ["cut", "filter at native rate", "resample"],
        "window_s": WINDOW_S,
        "min_s": 2,
        "max_s": WINDOW_S,
        "multiple_s": STEP_S,
        "short": "reflect",
        "normalise": "in the model",
        "unit": "any",
    }
}


def lineage(corpus: dict | None = None, subjects: list[str] | None = None, **changed: Any) -> dict[str, Any]:
    """lineage.json of a bundle that saw `subjects` of the corpus with this manifest (or of another)."""
    entry = {
        "uri": "s3://elsewhere/corpus",
        "hash": "0" * 64,
        "source": "elsewhere",
        "licence": "ODC-By 1.0",
        "terms": "cite it",
        "citation": "",
        "key_id": "k",
        "id_space": "elsewhere",
        "subjects_published": True,
    }
    entry |= {k: corpus[k] for k in ("key_id", "id_space", "subjects_published")} if corpus else {}
    entry |= {"subjects": subjects or []} | changed
    return {
        "corpora": [entry],
        "git_commit": "abc1234",
        "versions": {"torch": "2"},
        "seeds": {"run": 0},
        "parents": [],
    }


def make_bundle(
    folder: Path,
    uri: str,
    about: dict[str, Any] | None = None,
    dim: int = 24,
    preprocessing: dict | None = None,
) -> str:
    """Publish a tuned Tiny at `uri` (files are made in `folder`); returns `uri`."""
    folder.mkdir(parents=True)
    net = Tiny(Tiny.Config(dim=dim), 0).modules()["net"].eval().tune()
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 500),),
        str(folder / "ppg.onnx"),
        input_names=["ppg"],
        output_names=["embedding"],
        dynamo=False,
        dynamic_axes={"ppg": {0: "batch", 2: "samples"}, "embedding": {0: "batch"}},
    )
    save_file({f"net.{k}": v.contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors")
    config = {
        "version": 1,
        "kind": "encoder",
        "parameters": {"net": sum(p.numel() for p in net.parameters())},
        "modes": {
            "ppg": {
                "file": "ppg.onnx",
                "dim": dim,
                "inputs": [{"name": "ppg", "modality": "ppg", "rate": RATE, "channels": 1}],
            }
        },
        "run": {"name": "tiny", "recipe": "tests.finetune.tiny:Tiny", "method": {"dim": dim}, "seed": 3},
    }
    metrics = {"first": {"loss": 2.0}, "last": {"loss": 1.0}, "history": []}
    parts = config, preprocessing or PREPROCESSING, about or lineage(), metrics
    for name, part in zip(("config", "preprocessing", "lineage", "metrics"), parts, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(part))
    (folder / "README.md").write_text(card.render(*parts))
    bundle.publish(folder, uri)
    return uri


class PairNet(nn.Module):
    """A net a signal; together the mean of their vectors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ppg, self.ecg = Net(dim), Net(dim)

    def forward(self, ppg: torch.Tensor, ecg: torch.Tensor) -> torch.Tensor:
        return (self.ppg(ppg) + self.ecg(ecg)) / 2


class TinyPair(Tiny):
    """The same for PPG and ECG, with a mode for each and one for both."""

    def windows(self) -> WindowSpec:
        ecg = Signal(modality="ecg", rate=RATE, band=(0.5, None), upright=True, min_rate=100)
        return WindowSpec(signals=(*super().windows().signals, ecg), window_s=WINDOW_S)

    def modules(self) -> dict[str, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return {"net": PairNet(self.config.dim)}

    def encoder(self, modules: Any) -> Encoder:
        net = modules["net"]
        found = {
            name: Mode(
                module,
                [{"name": m, "modality": m, "rate": RATE, "channels": 1} for m in name.split("+")],
                self.config.dim,
                STEP_S * RATE,
                STEP_S * RATE,
                WINDOW_S * RATE,
            )
            for name, module in (("ppg", net.ppg), ("ecg", net.ecg), ("ppg+ecg", net))
        }
        return Encoder(found, "encoder", PAIR_PREPROCESSING)


PAIR_PREPROCESSING: dict[str, Any] = PREPROCESSING | {
    "ecg": PREPROCESSING["ppg"] | {"band": [0.5, None], "notch": None, "upright": True, "min_rate": 100}
}


def make_pair_bundle(folder: Path, uri: str, about: dict[str, Any] | None = None, dim: int = 24) -> str:
    """Publish a tuned TinyPair at `uri`; returns `uri`."""
    folder.mkdir(parents=True)
    recipe = TinyPair(TinyPair.Config(dim=dim), 0)
    modules = recipe.modules()
    net = modules["net"].eval()
    net.ppg.tune(), net.ecg.tune()
    modes = {}
    for name, mode in recipe.encoder(modules).modes.items():
        inputs, file = [i["name"] for i in mode.inputs], f"{name}.onnx"
        torch.onnx.export(
            mode.module,
            tuple(torch.zeros(2, 1, 500) for _ in inputs),
            str(folder / file),
            input_names=inputs,
            output_names=["embedding"],
            dynamo=False,
            dynamic_axes={i: {0: "batch", 2: "samples"} for i in inputs} | {"embedding": {0: "batch"}},
        )
        modes[name] = {"file": file, "dim": dim, "inputs": mode.inputs}
    save_file({f"net.{k}": v.contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors")
    config = {
        "version": 1,
        "kind": "encoder",
        "parameters": {},
        "modes": modes,
        "run": {"name": "pair", "recipe": "tests.finetune.tiny:TinyPair", "method": {"dim": dim}, "seed": 3},
    }
    metrics = {"first": {"loss": 2.0}, "last": {"loss": 1.0}, "history": []}
    parts = config, PAIR_PREPROCESSING, about or lineage(), metrics
    for name, part in zip(("config", "preprocessing", "lineage", "metrics"), parts, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(part))
    (folder / "README.md").write_text(card.render(*parts))
    bundle.publish(folder, uri)
    return uri
