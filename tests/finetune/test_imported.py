"""Bundles made from the authors' weights do what ours do: they open, train on, shrink and are judged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster import bundle as bundles
from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from datasets.windows import WindowSpec
from finetune.commands.compress import Compress
from finetune.commands.compress import run as compress
from finetune.commands.priors import open_masked
from finetune.commands.robustness import Robustness
from finetune.commands.robustness import run as robustness
from finetune.commands.vision import Vision
from finetune.commands.vision import run as tune_command
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation import inversion, priors
from finetune.evaluation import privacy as card
from finetune.evaluation.options import Options
from finetune.evaluation.people import seen_by
from finetune.networks.distill import Distill, DistillConfig
from finetune.networks.int8 import publish_int8
from finetune.reports.sheet import write
from finetune.supervised import Tune, TuneConfig
from finetune.translator import Translator
from pretrain import masking, publish
from pretrain.importing.run import import_weights
from pretrain.publish import write_bundle
from pretrain.recipes.sigma import Masked
from pretrain.trained import open_modules, open_trained
from tests.finetune.test_compress import STUDENT
from tests.finetune.test_privacy import scanned
from tests.pretrain import authors
from tests.pretrain.golden.make import theirs
from tests.pretrain.kit import Trainer
from tests.pretrain.test_import import clip, float32
from tests.pretrain.test_net1d import authors as net1d

PATCH, COUNT = 100, 10  # 20 s at 50 Hz
SIGMA = ["input_range=[-1,1]", f"window_s={PATCH * COUNT / 50}"]
FIRST = {  # each kind, and one of its modes
    **dict.fromkeys(("anyppg", "clip", "tokenizer", "student"), "ppg"),
    **dict.fromkeys(("papagei-s", "papagei-p", "pulse-ppg", "moment"), "ppg"),
    "ecgfounder": "ecg",
}
KINDS = tuple(FIRST)
MODES = (*(f"{kind}#{mode}" for kind, mode in FIRST.items()), "clip#ecg")


def checkpoint(kind: str, folder: Path) -> str:
    """A small network with random weights, saved as its authors do."""
    state: Any = {
        "anyppg": lambda: float32(net1d()),
        "clip": lambda: {"model_state_dict": clip()},
        "tokenizer": lambda: {"model": authors.tokenizer(PATCH, COUNT, 12, 4, 16, 6, False)},
        "student": lambda: {"model": authors.student(PATCH, COUNT, 12, 4, 16, 4)},
        "papagei-s": lambda: theirs(kind),
        "papagei-p": lambda: theirs(kind),
        "pulse-ppg": lambda: {"net": theirs(kind), "optimizer": {"state": {}}, "test_loss": 1.0, "epoch": 3},
        "ecgfounder": lambda: {"state_dict": theirs(kind)},
        "moment": lambda: theirs(kind),
    }[kind]()
    torch.save(state, folder / f"{kind}.pth")
    return str(folder / f"{kind}.pth")


def imported(kind: str, folder: Path) -> str:
    ours = {"clip": "anyppg", "tokenizer": "sigma-tokenizer", "student": "sigma-student"}
    sets = {"tokenizer": [*SIGMA, "heads=3", "decoder_heads=2"], "student": SIGMA}.get(kind, [])
    uri = str(folder / kind / "bundle")
    import_weights(ours.get(kind, kind), checkpoint(kind, folder), uri, sets)
    return uri


class Made(dict[str, str]):
    """{kind: its bundle}, imported when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, kind: str) -> str:
        self[kind] = imported(kind, self.folder)
        return self[kind]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.set_num_threads(1)
    return Made(tmp_path_factory.mktemp("imported"))


@pytest.fixture
def recordings(request: pytest.FixtureRequest, kind: str) -> str:
    """The URI of a corpus with what `kind` reads."""
    found: str = request.getfixturevalue("paired_corpus" if FIRST[kind] == "ecg" else "corpus")
    return found


def encoder_of(made: Made, name: str) -> BundleEncoder:
    kind, _, mode = name.partition("#")
    return BundleEncoder(made[kind], mode)


def usual(encoder: BundleEncoder) -> float:
    """Seconds of a window that every encoder takes at once."""
    return min(10.0, encoder.max_s)


def windows(encoder: BundleEncoder, n: int = 6, seconds: float | None = None) -> np.ndarray:
    """Prepared pulses (n, 1, T)."""
    seconds = seconds or usual(encoder)
    time = np.arange(round(seconds * encoder.signal.rate)) / encoder.signal.rate
    rng = np.random.default_rng(len(time))
    noise = 0.1 * rng.normal(size=(n, len(time)))
    return (np.sin(2 * np.pi * rng.uniform(0.8, 2, (n, 1)) * time) ** 3 + noise)[:, None].astype(np.float32)


@pytest.mark.parametrize("name", MODES)
def test_its_network_opens_and_gives_the_vectors_of_its_onnx_file(made: Made, name: str) -> None:
    encoder = encoder_of(made, name)
    x = windows(encoder)
    found, opened = open_trained(encoder.bundle.uri)
    assert set(opened.modes) == set(found.config["modes"])
    with torch.no_grad():
        np.testing.assert_allclose(
            opened.modes[encoder.mode].module(torch.from_numpy(x)), encoder(x), atol=1e-5
        )


def test_it_says_which_modules_it_holds_and_holds_no_others(made: Made) -> None:
    held = {kind: bundles.open(made[kind]).config["modules"] for kind in KINDS}
    assert held == {
        "anyppg": ["pair.ppg"],
        "clip": ["pair"],
        "tokenizer": ["tokenizer"],
        "student": ["student"],
        **{kind: ["net"] for kind in ("papagei-s", "papagei-p", "pulse-ppg", "ecgfounder", "moment")},
    }
    assert list(open_modules(made["student"])[2]) == ["student"]
    pair = open_modules(made["anyppg"])[2]["pair"]
    assert [name for name, _ in pair.named_children()] == ["ppg"]


@pytest.mark.parametrize("kind", KINDS)
def test_exported_again_it_is_the_same_encoder(made: Made, kind: str, tmp_path: Path) -> None:
    found, recipe, modules = open_modules(made[kind])
    nets = torch.nn.ModuleDict(modules).eval()
    weights = {name: nets.get_submodule(name).state_dict() for name in found.config["modules"]}
    again = str(tmp_path / "run" / "bundle")
    write_bundle(
        again,
        recipe.encoder(modules),
        weights,
        {},
        found.config["run"],
        {"corpora": [], "parents": []},
        {},
        {},
    )
    assert bundles.open(again).preprocessing == found.preprocessing
    assert bundles.open(again).config.get("input_range") == found.config.get("input_range")
    for mode in found.config["modes"]:
        first, second = BundleEncoder(made[kind], mode), BundleEncoder(again, mode)
        np.testing.assert_allclose(second(windows(first)), first(windows(first)), atol=1e-5)
    open_trained(again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_import_gives_the_same_files(
    made: Made, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made[kind]
    # ONNX files follow from these files, and take most of an import's time
    monkeypatch.setattr(publish, "export_onnx", lambda mode, path: path.write_bytes(b""))
    again = imported(kind, tmp_path)
    for name in ("model.safetensors", "config.json", "preprocessing.json"):
        assert (Path(again) / name).read_bytes() == (Path(first) / name).read_bytes()
    with pytest.raises(PlethoraError, match="bundles never change"):
        imported(kind, tmp_path)


@pytest.mark.parametrize("mode", ["probe", "full"])
@pytest.mark.parametrize("name", MODES)
def test_it_is_tuned(made: Made, name: str, mode: str) -> None:
    encoder = encoder_of(made, name)
    config = {"encoder": encoder.bundle.uri, "input": encoder.mode, "mode": mode, "window_s": 20.0}
    recipe = Tune(TuneConfig(tasks=("heart_rate",), hidden=8, **config), seed=1)
    recipe.told(np.linspace(50, 120, 30)[:, None])
    assert any("parameters train" in line for line in recipe.check())
    trainer = Trainer(recipe)
    net = trainer.modules["net"]
    before = {key: x.clone() for key, x in net.body.encode.named_parameters()}
    x = torch.from_numpy(windows(encoder, 4, 20.0))
    batch = {encoder.modality: x, "target": torch.linspace(50, 120, 4)[:, None], "window": torch.arange(4)}
    assert torch.isfinite(trainer.step(batch, 0).losses["net"])
    moved = [key for key, x in net.body.encode.named_parameters() if not torch.equal(x, before[key])]
    assert bool(moved) == (mode == "full")


@pytest.mark.parametrize("name", MODES)
def test_it_teaches_a_student(made: Made, name: str) -> None:
    encoder = encoder_of(made, name)
    config = {
        "teacher": encoder.bundle.uri,
        "mode": encoder.mode,
        "filters": (16,),
        "blocks": (1,),
        "stem": 16,
    }
    trainer = Trainer(Distill(DistillConfig(**config, gallery=4), seed=3), lr=3e-3)
    x = torch.from_numpy(windows(encoder, 8))
    with torch.no_grad():
        np.testing.assert_allclose(trainer.frozen["teacher"](x), encoder(x.numpy()), atol=1e-5)
    losses = [trainer.step({encoder.modality: x}, step).losses["student"].item() for step in range(10)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_it_becomes_int8(made: Made, kind: str, recordings: str, tmp_path: Path) -> None:
    encoder, source = BundleEncoder(made[kind], FIRST[kind]), open_corpus(recordings)
    uri = str(tmp_path / "bundle")
    window_s = usual(encoder)
    index = scanned(source, WindowSpec(signals=encoder.signals, window_s=window_s))
    publish_int8(encoder, source, index, uri, window_s)
    small, x = BundleEncoder(uri), windows(encoder)
    assert small.bundle.config.get("input_range") == encoder.bundle.config.get("input_range")
    assert 0 < np.linalg.norm(small(x) - encoder(x)) < 0.1 * np.linalg.norm(encoder(x))


@pytest.mark.parametrize("kind", KINDS)
def test_it_gets_a_privacy_card_beside_its_untrained_twin(
    made: Made, kind: str, recordings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inversion, "STEPS", 5)
    encoder, source = BundleEncoder(made[kind], FIRST[kind]), open_corpus(recordings)
    index = scanned(source, WindowSpec(signals=encoder.signals, window_s=10))
    seen = seen_by([encoder.bundle], source)
    assert seen.kind == "unknown" and "names no corpus" in seen.why[0]
    found = card.outcome(encoder, index, seen, [2], folds=2, seed=0)
    rows = json.dumps(found.result.to_json())
    assert '"untrained"' in rows and "cannot be rebuilt" not in rows


def test_all_are_judged_on_damaged_windows_beside_their_untrained_twins(
    ray_session: Any, made: Made, corpus: str, tmp_path: Path
) -> None:
    names = [f"{made[kind]}#ppg" for kind, mode in FIRST.items() if mode == "ppg"]
    how = Options(folds=2, cache=str(tmp_path / "cache"))
    found = write(
        robustness(Robustness(names, corpus, "heart_rate", str(tmp_path / "out"), ["inverted"], how))
    )
    rows = {row["name"]: row for row in found["rows"]}
    own = [name for name in rows if "imported" in name]
    assert len(own) == 2 * len(names)
    for name in own:
        assert np.isfinite(rows[name]["metrics"]["mae"]["value"]) and rows[name]["damaged"]["inverted"]


def test_priors_of_a_student_are_on_its_own_range_and_without_the_teacher_that_it_lacks(
    made: Made,
) -> None:
    recipe, modules = open_masked(made["student"])
    x = windows(BundleEncoder(made["student"]), 3, 20.0)
    found = priors.measured(x, recipe, modules, draws=4, seed=0)
    assert set(found.hidden) == {"random", "prior"} and found.prior.shape == (3, COUNT)
    assert isinstance(recipe, Masked) and recipe.config.input_range == (-1, 1)
    scaled = (x - x.min(-1, keepdims=True)) / np.ptp(x, axis=-1, keepdims=True) * 2 - 1
    wanted, of_unit = (
        masking.priors(torch.from_numpy(y).reshape(3, COUNT, PATCH), recipe.config.beta)
        for y in (scaled, (scaled + 1) / 2)
    )
    np.testing.assert_allclose(found.prior, wanted, atol=1e-6)
    assert (of_unit - wanted).abs().max() > 5e-5
    for kind in ("anyppg", "clip", "tokenizer"):
        with pytest.raises(PlethoraError, match="priors are SIGMA's; give a bundle of its masked stage"):
            open_masked(made[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_it_rebuilds_no_signal_and_says_so(made: Made, kind: str) -> None:
    with pytest.raises(PlethoraError, match="has no decoder from ppg to ecg"):
        Translator(made[kind], "ppg", "ecg")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_tune_it_and_make_it_small(
    ray_session: Any, made: Made, kind: str, recordings: str, tmp_path: Path
) -> None:
    short = ["steps=4", "batch=8", "validate_every=2", "validate_windows=16", "checkpoint_every=4"]
    sets = [*short, "optim.warmup_steps=0"]
    out = str(tmp_path / "small")
    found = write(
        compress(
            Compress(
                f"{made[kind]}#{FIRST[kind]}",
                recordings,
                out,
                student=str(STUDENT),
                sets=sets,
                window_s=usual(BundleEncoder(made[kind], FIRST[kind])),
            )
        )
    )
    assert [row["name"] for row in found["rows"]] == ["original", "int8", "student"]
    own = [f"corpus={recordings}", f"storage={tmp_path}"]
    own += [f"method.encoder={made[kind]}", f"method.input={FIRST[kind]}"]
    run = str(Path(STUDENT).parents[1] / "tune.toml")
    tuned = write(tune_command(Vision(run, [*sets, *own], out=str(tmp_path / "tuned"))))
    assert bundles.verify(tuned["bundle"])["kind"] == "adapter"
