"""Encoders of every origin: other people's classes, ONNX files and model folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal

from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from finetune.__main__ import main
from finetune.encoders.bundle import BundleEncoder
from finetune.encoders.opening import opened
from finetune.evaluation import vectors
from finetune.evaluation.choose import place
from finetune.evaluation.lengths import fit
from finetune.evaluation.vectors import VectorSource, cached_vectors
from finetune.task import load_task

PORT = '''
import numpy as np

class Bands:
    """Power in bands; `scale` and `bias` come with the address."""

    preprocessing = {"ppg": {"rate": 50, "window_s": 10, "band": [0.5, 8]}}

    def __init__(self, scale="1", weights=None):
        self.scale = float(scale) * (float(open(weights).read()) if weights else 1)

    def embed(self, x):
        power = np.abs(np.fft.rfft(x[:, 0])) ** 2
        return self.scale * np.log(power[:, :240].reshape(len(x), 12, 20).sum(-1) + 1e-9)

    def untrained(self, seed):
        return Bands(scale=1000 + seed)
'''


@pytest.fixture()
def port(tmp_path: Path) -> Path:
    path = tmp_path / "my_port.py"
    path.write_text(PORT)
    return path


def raw(n: int, seconds: float, rate: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (n, 1, round(seconds * rate))).cumsum(-1) + 2000


def test_a_class_in_a_file_is_an_encoder_with_the_preparation_that_it_declares(port: Path) -> None:
    encoder, x = opened(f"{port}:Bands?scale=2"), raw(70, 10, 125)
    sos = signal.butter(2, [0.5, 8], btype="bandpass", fs=125, output="sos")
    y = signal.resample(signal.sosfiltfilt(sos, x, axis=-1), 500, axis=-1)
    power = np.abs(np.fft.rfft(y[:, 0])) ** 2
    expected = 2 * np.log(power[:, :240].reshape(70, 12, 20).sum(-1))
    np.testing.assert_allclose(encoder.embed(x, 125), expected, rtol=1e-3, atol=1e-2)
    assert (encoder.dim, encoder.mode, encoder.name) == (12, "ppg", "Bands (ppg)")
    assert encoder.embed(x, 125).dtype == np.float32 and encoder.lineage == {}


def test_its_untrained_form_is_the_row_beside_it(port: Path) -> None:
    encoder, x = opened(f"{port}:Bands"), raw(3, 10, 125)
    prepared = encoder.prepare(x, 125)
    np.testing.assert_allclose(encoder.untrained(3)(prepared), 1003 * encoder(prepared), rtol=1e-5)


def test_its_hash_follows_code_arguments_and_weights(port: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.txt"
    weights.write_text("3")
    address = f"{port}:Bands?weights={weights}"
    first = opened(address).hash
    assert first == opened(address).hash and first != opened(f"{port}:Bands").hash
    weights.write_text("3.0")  # the same vectors, another file
    second = opened(address).hash
    port.write_text(PORT + "\n# a comment\n")
    assert len({first, second, opened(address).hash}) == 3


def test_a_module_on_the_path_and_a_neighbour_of_a_file_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "neighbour_port.py").write_text(PORT)
    (tmp_path / "uses_it.py").write_text("from neighbour_port import Bands as Same")
    assert opened(f"{tmp_path}/uses_it.py:Same").dim == 12
    monkeypatch.syspath_prepend(str(tmp_path))
    assert opened("neighbour_port:Bands").dim == 12


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return np.full((len(x), 4), np.nan)", "gives NaN or infinite vectors"),
        ("self.n = getattr(self, 'n', 3) + 1; return x[:, 0, :self.n]", "gives 4 numbers a window, then 5"),
        ("return x[:1, 0, :4]", r"gives \(1, 4\) for 3 windows: return \(3, dim\)"),
        ("return x[:, 0, :4] - x[:, 0, :4].mean(0)", "the same windows alone"),
        (
            "self.m = 0.9 * getattr(self, 'm', 0) + x[:, 0, :4].mean(0); return x[:, 0, :4] + self.m",
            "the same windows in another order .* no window may change another's vector",
        ),
        ("return [['a']] * len(x)", "not numbers"),
        ("return x[:, 7]", r"embed failed for ppg \(3, 1, 500\) at .*my_port.py:\d+: IndexError"),
    ],
)
def test_a_port_that_breaks_the_contract_is_refused_in_one_line(port: Path, body: str, said: str) -> None:
    port.write_text(PORT.partition("        power")[0] + f"        {body}\n")
    with pytest.raises(PlethoraError, match=said) as refused:
        opened(f"{port}:Bands")
    assert "\n" not in str(refused.value) and str(port) in str(refused.value)


def test_a_port_that_breaks_later_is_refused_then(port: Path) -> None:
    port.write_text(PORT + "\n    def embed(self, x):\n        return x[:, 0, :4 if len(x) < 4 else 5]\n")
    encoder = opened(f"{port}:Bands")
    assert encoder.dim == 4
    with pytest.raises(PlethoraError, match=r"gives \(10, 5\) for 10 windows, but it states 4"):
        encoder.embed(raw(10, 10, 125), 125)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"rate": 50, ', "", "rate"),
        ('"rate": 50', '"rate": -1', "rate"),
        ('{"ppg": {"rate": 50, "window_s": 10, "band": [0.5, 8]}}', "{}", "`preprocessing` must be"),
        (
            "import numpy",
            "import no_such_module_here",
            r"import failed at .*my_port.py:2: ModuleNotFoundError",
        ),
        (
            "self.scale = float(scale) *",
            "raise RuntimeError('Errors in loading:\\n  Missing key: a.weight')  #",
            r"Bands\(\) failed: RuntimeError: Errors in loading: Missing key: a.weight",
        ),
        ("self.scale = float(scale)", "self.scale = 1 / 0", r"Bands\(\) failed: ZeroDivisionError"),
        ("def embed", "def not_embed", "class Bands has no method `embed`"),
        ("class Bands", "class Other", r"no class Bands \(with `embed` it has Other\)"),
    ],
)
def test_a_port_that_cannot_be_opened_is_named(port: Path, old: str, new: str, said: str) -> None:
    port.write_text(PORT.replace(old, new, 1))
    with pytest.raises(PlethoraError, match=said) as refused:
        opened(f"{port}:Bands")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/no/such/file.py:Bands", "no file /no/such/file.py"),
        ("no_such_package.models:Bands", "there is no module no_such_package.*FILE.py:Class needs neither"),
        ("/no/such/file.onnx", "no file /no/such/file.onnx"),
        ("s3://bucket/file.onnx", "must be local"),
        ("/no/such/bundle", "no complete bundle is here"),
    ],
)
def test_an_address_that_leads_nowhere_is_named(address: str, said: str) -> None:
    with pytest.raises(PlethoraError, match=said):
        opened(address)


@pytest.fixture()
def graph(bundle: str, tmp_path: Path) -> Path:
    """A bundle's graph and preprocessing as two loose files."""
    opened_bundle = BundleEncoder(bundle).bundle
    path = tmp_path / "net.onnx"
    path.write_bytes(opened_bundle.path("ppg.onnx").read_bytes())
    (tmp_path / "preprocessing.json").write_text(json.dumps(opened_bundle.preprocessing))
    return path


def test_an_onnx_file_with_its_preprocessing_gives_the_bundles_vectors(bundle: str, graph: Path) -> None:
    x, encoder = raw(5, 60, 125), opened(str(graph))
    np.testing.assert_allclose(encoder.embed(x, 125), BundleEncoder(bundle).embed(x, 125), atol=1e-6)
    assert encoder.name == "net (ppg)"
    with pytest.raises(PlethoraError, match=r"holds no recipe|has no `untrained"):
        encoder.untrained(0)


def test_an_onnx_file_that_lacks_something_is_named(graph: Path, tmp_path: Path) -> None:
    beside = tmp_path / "preprocessing.json"
    table = json.loads(beside.read_text())
    beside.write_text(json.dumps({"ppg": table["ppg"], "ecg": table["ppg"]}))
    with pytest.raises(PlethoraError, match=r"the graph takes ppg, preprocessing.json names ppg, ecg"):
        opened(str(graph))
    beside.unlink()
    with pytest.raises(PlethoraError, match=r"no preprocessing.json is beside it"):
        opened(str(graph))


def test_an_onnx_file_whose_weights_lie_elsewhere_is_refused(graph: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(graph))
    onnx.save(model, str(graph), save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(
        PlethoraError, match=r"net.onnx: the model's weights are in .* weights.bin, which is not there"
    ):
        opened(str(graph))


def test_a_hugging_face_folder_is_an_encoder(tmp_path: Path) -> None:
    from transformers import PatchTSTConfig, PatchTSTModel

    torch.manual_seed(0)
    config = PatchTSTConfig(
        num_input_channels=1, context_length=500, patch_length=50, patch_stride=50, d_model=16,
        num_attention_heads=2, num_hidden_layers=1, ffn_dim=16, do_mask_input=False,
    )  # fmt: skip
    net = PatchTSTModel(config).eval()
    net.save_pretrained(tmp_path)
    with pytest.raises(PlethoraError, match=r"no preprocessing.json is in it"):
        opened(str(tmp_path))
    entry = {"rate": 50, "window_s": 10, "min_s": 10, "multiple_s": 10, "short": "repeat"}
    (tmp_path / "preprocessing.json").write_text(json.dumps({"ppg": entry}))
    encoder, x = opened(str(tmp_path)), raw(3, 10, 50)
    with torch.inference_mode():
        hidden = net(past_values=torch.from_numpy(x.transpose(0, 2, 1)).float()).last_hidden_state
    np.testing.assert_allclose(encoder.embed(x, 50), hidden.mean((1, 2)), atol=1e-5)
    prepared = encoder.prepare(x, 50)
    fresh = encoder.untrained(1)(prepared)
    assert fresh.shape == (3, 16) and not np.allclose(fresh, encoder(prepared), atol=1e-3)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(PlethoraError, match="transformers cannot open this model"):
        opened(str(tmp_path))


def test_a_hugging_face_model_of_something_else_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    ).save_pretrained(tmp_path)
    entry = {"rate": 50, "window_s": 10, "min_s": 10, "multiple_s": 10, "short": "repeat"}
    (tmp_path / "preprocessing.json").write_text(json.dumps({"ppg": entry}))
    with pytest.raises(PlethoraError, match="the model takes input_ids, not input_values or past_values"):
        opened(str(tmp_path))


BESIDE = '''
import numpy as np

class Beside:
    """PPG, and ECG where it is there."""

    preprocessing = {
        "ppg": {"rate": 50, "window_s": 10, "band": [0.5, 8]},
        "ecg": {"rate": 50, "window_s": 10, "band": [0.5, 20], "required": False},
    }

    def embed(self, x):
        assert (x["ecg"][~x["has_ecg"]] == 0).all()
        return np.stack([x["ppg"].std((1, 2)), x["ecg"].std((1, 2)), x["has_ecg"]], 1)
'''


def test_an_input_that_may_be_missing_is_zero_and_the_port_is_told(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(BESIDE)
    encoder, x = opened(f"{tmp_path}/beside.py:Beside"), raw(3, 10, 100)
    with_ecg = encoder.embed({"ppg": x, "ecg": 2 * x}, 100.0)
    without = encoder.embed({"ppg": x}, 100.0)
    np.testing.assert_array_equal(with_ecg[:, 0], without[:, 0])
    assert (with_ecg[:, 2] == 1).all() and (with_ecg[:, 1] > 0).all() and (without[:, 1:] == 0).all()
    with pytest.raises(PlethoraError, match="no ppg is given"):
        encoder.embed({"ecg": x}, 100.0)


def test_corpora_with_and_without_the_optional_input_are_embedded(
    ray_session: Any, corpus: str, paired_corpus: str, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "beside.py").write_text(BESIDE)
    found = {}
    for name, source in {"alone": corpus, "paired": paired_corpus}.items():
        out = tmp_path / f"{name}.parquet"
        main(["embed", "--bundle", f"{tmp_path}/beside.py:Beside", "--input", source, "--out", str(out)])
        found[name] = np.stack(pq.read_table(out)["embedding"].to_pylist())
    assert (found["alone"][:, 1:] == 0).all()
    there = found["paired"][:, 2] == 1
    assert there.mean() > 0.5 and (found["paired"][there, 1] > 0).all()
    assert (found["paired"][~there, 1] == 0).all()


def test_the_optional_input_reaches_a_comparison_through_pieces_and_actors(
    ray_session: Any, paired_corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text(BESIDE)
    address = f"{tmp_path}/beside.py:Beside"
    task = load_task("heart_rate")  # windows of 30 s: three pieces
    places = place(open_corpus(paired_corpus), {"a": opened(address)}, task)
    rows = places.views["a"].select(None)
    source = VectorSource("a", "a", address, "ppg+ecg", "hash", fit(opened(address), task.window_s))
    monkeypatch.setattr(vectors, "CHUNK", 16)
    monkeypatch.setattr(vectors, "PATIENCE_S", -1.0)
    found = cached_vectors(places, rows, [source], str(tmp_path))["a"]
    there = places.views["a"].has(rows) & 2 > 0
    np.testing.assert_array_equal(found[:, 2], there)
    assert there.any() and len(found) > 16


def test_a_misspelt_key_of_an_image_encoder_is_named_with_the_known_ones() -> None:
    with pytest.raises(PlethoraError, match=r"unknown key `imge`: known are image, weights"):
        opened("vision:vit_tiny_patch16_224?imge=stft")
