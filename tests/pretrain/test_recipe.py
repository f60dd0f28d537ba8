"""How a recipe is named and found, and how what it publishes follows from its windows."""

import hashlib
import sys
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch

from cluster.errors import PlethoraError
from datasets.windows import Signal, WindowSpec
from pretrain import published
from pretrain import recipe as contract
from pretrain.config import RunConfig
from pretrain.export import export_onnx, take_no_rows
from pretrain.publish import Trained, describe, publish
from pretrain.recipes.sigma import Masked
from tests.pretrain.kit import Trainer, batch
from tests.pretrain.recipes import RECIPES
from tests.pretrain.toy import Toy, ToyConfig


@pytest.mark.parametrize("name", ["tokenizer", "masked", "anyppg", "m2ae", "simclr", "vision, probe"])
def test_its_onnx_file_gives_no_vectors_for_no_rows_and_nothing_else_for_rows(name, tmp_path):
    torch.set_num_threads(1)
    recipe = RECIPES[name]()
    encoder = recipe.encoder(recipe.modules())
    mode = list(encoder.modes.values())[-1]  # of several inputs where there is such a one
    path = tmp_path / "mode.onnx"
    export_onnx(mode, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (0, 1, 3):
        feed = {i["name"]: np.zeros((rows, i["channels"], mode.max_samples), np.float32) for i in mode.inputs}
        (found,) = session.run(None, feed)
        assert found.shape == (rows, mode.dim)
    before = path.read_bytes()
    take_no_rows(path)
    assert path.read_bytes() == before


def test_load_finds_a_recipe_by_name():
    assert contract.load("pretrain.recipes.sigma:Masked") is Masked


@pytest.mark.parametrize(
    "name, says",
    [
        ("Masked", "no recipe name"),
        ("pretrain.recipes.sigmoid:Masked", "no module pretrain.recipes.sigmoid"),
        ("nowhere.at.all:Masked", "no module nowhere.at.all"),
        ("pretrain.recipes.sigma:Mask", "it has Tokenizer, Masked"),
        ("pretrain.recipes.sigma:Windows", "lacks Config, windows"),
    ],
)
def test_a_wrong_recipe_name_says_what_is_wrong(name, says):
    with pytest.raises(PlethoraError, match=says):
        contract.load(name)


@pytest.mark.parametrize(
    "parts, says",
    [
        ({"foresee": None}, 'lacks foreseen of the hook "materialise"'),
        ({"targets": None}, 'lacks told of the hook "labels"'),
    ],
)
def test_a_hook_that_is_there_in_part_is_refused(parts, says, monkeypatch):
    module = ModuleType("half")
    monkeypatch.setitem(sys.modules, "half", module)
    monkeypatch.setattr(module, "Half", type("Half", (Toy,), parts), raising=False)
    with pytest.raises(PlethoraError, match=says):
        contract.load("half:Half")


def test_a_recipe_has_the_hooks_whose_methods_it_has():
    found = {name: [h for h in contract.HOOKS if contract.has(RECIPES[name](), h)] for name in RECIPES}
    assert found["tokenizer"] == ["tokens"] == found["m2ae"]
    assert found["masked"] == ["materialise", "plan", "tokens"]
    assert found["anyppg"] == ["materialise"] and found["simclr"] == []
    assert found["vision, LoRA"] == ["labels", "check"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_houses_recipes_draw_at_validation_and_sum_up_shares_or_counts(name):
    torch.set_num_threads(1)
    recipe = RECIPES[name]()
    trainer = Trainer(recipe)
    trainer.step(batch(), 0)
    result = trainer.validate(batch())
    assert result.figures
    for figure, value in recipe.summary(result.counts).items():
        assert 0 <= value <= getattr(recipe.config, "codebook_size", 1e6), figure


STATE = {  # of the names of all weights; published bundles and checkpoints hold them
    "tokenizer": "5a5b290c",
    "masked": "abd0fc74",
    "anyppg": "22b6b3bd",
    "m2ae": "e67da214",
    "simclr": "b09e849b",
    "vision, LoRA": "eac9f453",
}


@pytest.mark.parametrize("name", STATE)
def test_weights_keep_the_names_that_published_bundles_hold(name):
    modules = RECIPES[name]().modules()
    names = sorted(f"{n}.{key}" for n, module in modules.items() for key in module.state_dict())
    found = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    assert found == STATE[name], "bundles of before would no longer open: keep the names, or convert old ones"


# ---------------------------------------------------------------- what is published, from the windows

PPG = Signal(modality="ppg", rate=50.0, band=(0.5, 8.0))
ECG = Signal(modality="ecg", rate=50.0, band=(0.5, None), order=5, notch=60.0, upright=True, min_rate=125.0)
SPEC = WindowSpec(signals=(PPG, ECG), window_s=10.0)


def described(spec: WindowSpec = SPEC, **more) -> contract.Encoder:
    net = torch.nn.Identity()
    modes = {
        "+".join(names): published.mode(spec, net, 4, names, min_samples=100, step_samples=30)
        for names in (("ppg",), ("ppg", "ecg"))
    }
    return published.encoder(spec, modes, **more)


def test_rate_band_and_lengths_come_from_the_windows():
    found = described()
    assert found.modes["ppg"].inputs == [{"name": "ppg", "modality": "ppg", "rate": 50.0, "channels": 1}]
    assert [i["modality"] for i in found.modes["ppg+ecg"].inputs] == ["ppg", "ecg"]
    assert found.modes["ppg"].max_samples == 480  # whole steps of a window of 500
    common = {
        "rate": 50.0,
        "kind": "butterworth",
        "filter": "butterworth",
        "phase": "zero (sosfiltfilt)",
        "resample": "fft",
        "sequence": ["cut", "filter at the native rate", "resample"],
        "window_s": 10.0,
        "min_s": 2.0,
        "short": "reflect",
        "normalise": "in the model",
        "unit": "any",
    }
    turned = {"sequence": [*common["sequence"], "turn upright"], "upright": True}
    assert found.preprocessing == {
        "ppg": common | {"band": [0.5, 8.0], "order": 2},
        "ecg": common | {"band": [0.5, None], "order": 5, "notch": 60.0, "min_rate": 125.0} | turned,
    }
    assert described(short="refuse", unit="mV").preprocessing["ecg"]["unit"] == "mV"


def test_a_notch_on_a_pulse_wave_is_published_too():
    spec = WindowSpec(signals=(PPG.model_copy(update={"notch": 50.0}),), window_s=10.0)
    found = published.encoder(spec, {"ppg": published.mode(spec, torch.nn.Identity(), 4, min_samples=50)})
    assert found.preprocessing["ppg"]["notch"] == 50.0 and "upright" not in found.preprocessing["ppg"]


@pytest.mark.parametrize(
    "trained, says",
    [
        ({"band": (0.5, 4.0)}, "ppg: band is (0.5, 8.0), in training (0.5, 4.0)"),
        ({"band": None}, "ppg: band is (0.5, 8.0), in training None"),
        ({"order": 3}, "ppg: order is 2, in training 3"),
        ({"notch": 50.0}, "ppg: notch is None, in training 50.0"),
        ({"upright": True}, "ppg: upright is False, in training True"),
        ({"min_rate": 100.0}, "ppg: min_rate is 0.0, in training 100.0"),
        ({"channels": 2}, "ppg: channels of ppg is 1, in training 2"),
        ({"normalise": "zscore"}, "ppg: normalise is none, in training zscore"),
        ({"smooth_s": 0.05}, "ppg: smooth_s is None, in training 0.05"),
        ({"resample": "linear"}, "ppg: resample is fft, in training linear"),
        (
            {"filter": "chebyshev2", "attenuation": 20.0},
            "ppg: filter is butterworth, in training chebyshev2",
        ),
        ({"rate": 40.0}, "ppg: rate is 50.0, in training 40.0"),
        ({"modality": "abp"}, "ppg takes ppg, but no window holds it"),
    ],
)
def test_a_description_of_other_windows_is_told_by_what_differs(trained, says):
    assert published.differences(described(), SPEC) == []
    other = SPEC.model_copy(update={"signals": (PPG.model_copy(update=trained), ECG)})
    assert says in published.differences(described(), other)


def test_lengths_that_no_window_has_and_a_shortest_one_typed_again_are_told():
    short = SPEC.model_copy(update={"window_s": 1.0})
    assert "ppg: ppg takes 100 to 480 samples, in training a window has 30" in published.differences(
        described(), short
    )
    again = described()
    again.preprocessing["ppg"]["min_s"] = 3.0
    assert published.differences(again, SPEC)[0] == "ppg: min_s is 3.0, ppg takes 100 samples"
    del again.preprocessing["ecg"]
    assert "ppg+ecg takes ecg, but preprocessing does not describe it" in published.differences(again, SPEC)


def test_windows_normalised_outside_the_network_are_published_as_such():
    outside = SPEC.model_copy(update={"signals": (PPG.model_copy(update={"normalise": "zscore"}), ECG)})
    found = described(outside)
    assert found.preprocessing["ppg"]["normalise"] == "zscore"
    assert found.preprocessing["ppg"]["sequence"][-1] == "normalise"
    assert found.preprocessing["ecg"]["normalise"] == "in the model"
    assert published.differences(found, outside) == []
    assert describe(found)["ppg"]["normalise"] == "zscore"


def test_what_a_recipe_wrote_by_hand_is_completed_or_refused_by_name():
    by_hand = described()
    by_hand.preprocessing["ppg"] = {
        "rate": 50.0,
        "band": [0.5, 8.0],
        "order": 2,
        "window_s": 10.0,
        "min_s": 2.0,
    }
    told = describe(by_hand)["ppg"]
    assert (told["filter"], told["phase"], told["max_s"]) == ("butterworth", "zero (sosfiltfilt)", 9.6)
    by_hand.preprocessing["ppg"]["filtre"] = "fir"
    with pytest.raises(
        PlethoraError, match=r"the recipe's encoder, ppg: unknown key `filtre`: did you mean `fil"
    ):
        describe(by_hand)


def test_what_the_bundle_contract_does_not_allow_is_refused():
    mixed = SPEC.model_copy(update={"signals": (PPG, ECG.model_copy(update={"rate": 250.0}))})
    with pytest.raises(PlethoraError, match="ppg has 50 Hz, ecg has 250 Hz"):
        described(mixed)
    with pytest.raises(PlethoraError, match="windows hold ppg, ecg and no resp"):
        published.mode(SPEC, torch.nn.Identity(), 4, ("resp",), min_samples=100)
    modes = {
        n: published.mode(SPEC, torch.nn.Identity(), 4, min_samples=m) for n, m in (("a", 50), ("b", 60))
    }
    with pytest.raises(PlethoraError, match="mode b has min_samples = 60"):
        published.encoder(SPEC, modes)


def test_a_run_whose_recipe_describes_another_band_publishes_nothing(tmp_path):
    class Narrow(Toy):
        def encoder(self, modules):
            found = super().encoder(modules)
            found.preprocessing["ppg"]["band"] = [0.5, 4.0]
            return found

    run = RunConfig(recipe="narrow:Narrow", corpus="c", storage=str(tmp_path), name="x", steps=1, batch=2)
    recipe = Narrow(ToyConfig(), 0)
    weights = {name: module.state_dict() for name, module in recipe.modules().items()}
    trained = Trained(weights, [], recipe.windows(), [], {}, {})
    with pytest.raises(PlethoraError, match=r"narrow:Narrow .*ppg: band is \(0.5, 4.0\), in training None"):
        publish(run, recipe, trained)
    assert not (tmp_path / "x" / "bundle").exists()


# ---------------------------------------------------------------- preprocessing in a run file


class Given(Toy):
    """A recipe whose run file states the signal."""

    class Config(ToyConfig):
        signal: Signal


def test_a_run_file_may_state_all_of_a_signals_preprocessing(monkeypatch):
    monkeypatch.setattr(contract, "load", lambda name: Given)
    fir = {"modality": "ppg", "rate": 50.0, "band": [0.5, 8.0], "filter": "fir", "taps": 101}
    made = contract.build("x:Given", {"signal": fir | {"resample": "polyphase"}}, 0)
    assert made.config.signal == Signal(**fir, resample="polyphase")
    for change, says in (
        ({"taps": 100}, r"^\[method\]: `signal`: ppg: taps must be odd"),
        (
            {"sequence": ["resample", "filter", "normalise"], "band": [0.5, 30.0]},
            "30 Hz does not fit a signal of 50",
        ),
        ({"tapps": 5}, "unknown key `signal.tapps`, the nearest known one is `signal.taps`"),
        ({"filter": "bessel"}, r"`signal.filter`: input should be 'butterworth', 'chebyshev2' or 'fir'"),
    ):
        with pytest.raises(PlethoraError, match=says) as told:
            contract.build("x:Given", {"signal": fir | change}, 0)
        assert "\n" not in str(told.value)
