"""The model card: its facts, and its own code run in a bare environment."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datasets.schema import row_schema
from datasets.signal import Signal
from datasets.signal import prepare as ours
from datasets.windows import WindowSpec, empty, extract, grid, lasts
from finetune.encoders.bundle import BundleEncoder
from pretrain import card
from pretrain.export import export_onnx
from pretrain.published import prepared
from tests.datasets.test_published_filters import ECGFOUNDER, FIR, PAPAGEI, PULSEPPG
from tests.finetune import tiny

# onnxruntime declares more; it runs without, as long as nobody imports its tools
ALLOWED = ("numpy", "numpy.libs", "scipy", "scipy.libs", "onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    return Path(tiny.make_bundle(folder / "files", str(folder / "run" / "bundle")))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of a Python that has numpy, scipy, onnxruntime and nothing else."""
    folder, site = tmp_path_factory.mktemp("bare"), Path(sysconfig.get_path("purelib"))
    for name in ALLOWED:
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    return {"BARE": str(folder), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}


def blocks(readme: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.S)


def run(code: str, cwd: Path, bare: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # -I ignores PYTHONPATH and the current folder, -S leaves site-packages out
    start = "import os, sys; sys.path.append(os.environ['BARE'])\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code], cwd=cwd, env=bare, capture_output=True, text=True
    )


def test_the_bare_environment_really_is_bare(bare: dict[str, str], tmp_path: Path) -> None:
    for name in ("torch", "datasets", "finetune", "sklearn", "pyarrow"):
        found = run(f"import {name}", tmp_path, bare)
        assert found.returncode and f"No module named '{name}'" in found.stderr
    assert run("import numpy, scipy.signal, onnxruntime", tmp_path, bare).returncode == 0


def test_the_cards_code_alone_equals_our_own_encoder(
    bundle: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    encoder = BundleEncoder(str(bundle))
    cases = [
        (125, 3750, 3),
        (250, 15000, 1),
        (125, 3751, 2),
        (125, 150, 2),
        (62.5, 100, 1),
        (50, 1000, 1),
        (1000, 2100, 1),
    ]
    for i, (_, samples, n) in enumerate(cases):
        np.save(tmp_path / f"{i}.npy", rng.normal(0, 1, (n, samples)).cumsum(1) * 40 + 3000)
    code = blocks(bundle / "README.md")[0] + (
        f"\nfor i, rate in enumerate({[c[0] for c in cases]!r}):\n"
        f"    np.save(f'{tmp_path}/out{{i}}.npy', embed(np.load(f'{tmp_path}/{{i}}.npy'), rate))\n"
    )
    done = run(code, bundle, bare)
    assert done.returncode == 0, done.stderr
    for i, (rate, _, _) in enumerate(cases):
        expected = encoder.embed(np.load(tmp_path / f"{i}.npy")[:, None], rate)
        np.testing.assert_allclose(np.load(tmp_path / f"out{i}.npy"), expected, atol=1e-4)


def test_a_copy_of_all_code_blocks_runs_as_it_stands(bundle: Path, bare: dict[str, str]) -> None:
    done = run("\n".join(blocks(bundle / "README.md")), bundle, bare)
    assert done.stdout.strip() == "(1, 24)", done.stderr


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("embed([1.0, float('nan')] * 200, 50)", "NaN"),
        ("embed(np.zeros(400), 15)", "cannot hold the band"),
        ("embed(np.zeros(50 * 61), 50)", "longer than the maximum"),
    ],
)
def test_the_cards_code_refuses_what_our_loader_refuses(
    bundle: Path, bare: dict[str, str], call: str, said: str
) -> None:
    done = run(blocks(bundle / "README.md")[0] + "\n" + call, bundle, bare)
    assert done.returncode and said in done.stderr


def test_the_card_tells_corpora_terms_and_that_nothing_is_evaluated_yet(bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    for fact in (
        "s3://elsewhere/corpus",
        "ODC-By 1.0",
        "cite it",
        "abc1234",
        "tests.finetune.tiny:Tiny",
        "loss",
    ):
        assert fact in text
    assert "**Not evaluated yet**" in text and "../evaluations/" in text
    assert "{" not in re.sub(r"```.*?```", "", text, flags=re.S)


def test_a_card_of_two_inputs_takes_them_by_name() -> None:
    ecg = tiny.PREPROCESSING["ppg"] | {"rate": 100, "band": None}
    both = {"ppg": tiny.PREPROCESSING["ppg"], "ecg": ecg}
    inputs = [{"name": m, "modality": m, "rate": both[m]["rate"], "channels": 1} for m in both]
    config = {
        "kind": "encoder",
        "run": {},
        "modes": {"ppg+ecg": {"file": "ppg+ecg.onnx", "inputs": inputs, "dim": 8}},
    }
    code = card.snippet("ppg+ecg", config, both)
    compile(code, "snippet", "exec")
    for name in both:
        assert f'"{name}": prepare(raw["{name}"], rate["{name}"], {name.upper()}, seconds)' in code


def test_a_source_without_subject_ids_is_said_to_have_none(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    text = card.render(config, tiny.PREPROCESSING, tiny.lineage(subjects_published=False, subjects=["a"]), {})
    assert "publishes no subject ids" in text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    milli=st.integers(16_500, 2_000_000),
    steps=st.integers(1, 30),
    more=st.sampled_from([-0.5, 0, 0.5]),
    seed=st.integers(0, 9),
)
@example(milli=124_945, steps=15, more=0, seed=0)  # MIMIC-IV: 3748.35 samples
@example(milli=124_950, steps=15, more=0, seed=0)  # 3748.5
@example(milli=124_950, steps=15, more=0.5, seed=0)
@example(milli=62_473, steps=30, more=-0.5, seed=0)  # the longest
@example(milli=16_777, steps=1, more=-0.5, seed=0)  # the shortest
def test_a_window_of_any_rate_reaches_the_network_whole_and_alike_from_corpus_arrays_and_card(
    bundle: Path, milli: int, steps: int, more: float, seed: int
) -> None:
    rate, seconds = milli / 1000, 2.0 * steps
    held = [
        n
        for n in (np.floor(seconds * rate + more), np.ceil(seconds * rate + more))
        if abs(n - seconds * rate) <= 0.5 + 1e-6
    ]
    x = np.random.default_rng(seed).integers(-3000, 3000, int(np.ceil(seconds * rate + 1))).cumsum() % 5000
    encoder, code = BundleEncoder(str(bundle)), blocks(bundle / "README.md")[0]
    names: dict = {}
    exec(code[: code.index("SESSION =")], names)
    spec = WindowSpec(signals=encoder.signals, window_s=seconds)
    for n in map(int, held):
        raw = x[:n].astype("<i2")
        row = {"subject": "s", "record": "r", "start_s": 0.0, "duration_s": n / rate, "ppg": raw.tobytes()}
        row |= {"ppg_rate": rate, "ppg_scale": 0.5, "ppg_offset": 3.0, "ppg_unit": "x", "ppg_channels": 1}
        table = pa.Table.from_pylist([row], row_schema(["ppg"]))
        starts = grid(lasts(table, spec)[0], spec)
        assert starts.tolist() == [0.0]
        corpus = empty(1, spec)
        extract(table, np.zeros(1, int), starts, spec, corpus, np.zeros(1, int))
        arrays = encoder.prepare(0.5 * raw[None, None] + 3.0, rate)
        card_s = names["prepare"](0.5 * raw + 3.0, rate, names["PPG"])
        assert arrays.shape == card_s.shape == corpus["ppg"].shape == (1, 1, 100 * steps)
        size = np.abs(arrays).max()
        np.testing.assert_allclose(corpus["ppg"], arrays, atol=1e-5 * size)
        np.testing.assert_allclose(card_s, arrays, atol=1e-4 * size)


def test_signals_of_different_odd_rates_reach_the_network_alike_from_card_and_encoder(
    tmp_path: Path,
) -> None:
    uri = tiny.make_pair_bundle(tmp_path / "files", str(tmp_path / "bundle"))
    encoder = BundleEncoder(uri, "ppg+ecg")
    code = card.snippet("ppg+ecg", encoder.bundle.config, encoder.bundle.preprocessing)
    names: dict = {}
    exec(code.replace('Path(".")', f'Path("{uri}")'), names)
    rng = np.random.default_rng(0)
    for rates, seconds in (((124.945, 249.89), 30), ((62.473, 499.903), 14), ((127.968, 100.007), 3.1)):
        rate = dict(zip(("ppg", "ecg"), rates, strict=True))
        x = {m: rng.normal(size=(2, round(seconds * r))).cumsum(1) for m, r in rate.items()}
        prepared = encoder.prepare({m: y[:, None] for m, y in x.items()}, rate)
        assert {y.shape[-1] for y in prepared.values()} == {int(seconds / 2) * 100}
        np.testing.assert_allclose(names["embed"](x, rate), encoder(prepared), atol=1e-4)
    x = {"ppg": np.zeros((1, 1000)), "ecg": np.zeros((1, 1600))}
    with pytest.raises(ValueError, match="not of the same time"):
        names["embed"](x, {"ppg": 100.0, "ecg": 200.0})


def test_no_windows_give_no_vectors_in_the_cards_code_too(tmp_path: Path) -> None:
    """Graphs of the exporter that publishes; tiny's own, of the older one, take no empty batch."""
    recipe = tiny.TinyPair(tiny.TinyPair.Config(), 0)
    encoder = recipe.encoder(recipe.modules())
    export_onnx(encoder.modes["ppg+ecg"], tmp_path / "ppg+ecg.onnx")
    entry = {"file": "ppg+ecg.onnx", "inputs": encoder.modes["ppg+ecg"].inputs, "dim": 24}
    names: dict = {}
    code = card.snippet("ppg+ecg", {"modes": {"ppg+ecg": entry}}, tiny.PAIR_PREPROCESSING)
    exec(code.replace('Path(".")', f'Path("{tmp_path}")'), names)
    for count in (0, 2):
        x = {"ppg": np.zeros((count, 1250)), "ecg": np.zeros((count, 2500))}
        assert names["embed"](x, {"ppg": 125.0, "ecg": 250.0}).shape == (count, 24)


@pytest.mark.parametrize("rate", [125, 250, 500])
def test_the_cards_ecg_code_filters_and_turns_as_ours_does(rate: int) -> None:
    """High-pass, notch and inversion, of a mode that asks for them."""
    from pretrain.recipes.anyppg import AnyPPGConfig

    wanted = AnyPPGConfig().signals()[1]
    known = prepared(wanted, 2.0, 10.0) | {"multiple_s": 1 / 500, "max_s": 10.0}
    inputs = [{"name": "ecg", "modality": "ecg", "rate": 500.0, "channels": 1}]
    config = {"modes": {"ecg": {"file": "ecg.onnx", "inputs": inputs, "dim": 8}}}
    code = card.snippet("ecg", config, {"ecg": known})
    names: dict = {}
    exec(code[: code.index("SESSION =")], names)
    t, draw = np.arange(8 * rate) / rate, np.random.default_rng(rate)
    beats = np.exp(-(((t + 0.4) % 0.8 - 0.4) ** 2) / 5e-4)
    x = np.stack([beats, -beats]) + 0.3 * np.sin(314.16 * t) + 0.05 * draw.normal(size=(2, len(t)))
    found = names["prepare"](40 * x + 900, rate, names["ECG"])
    signal = Signal(
        **{k: getattr(wanted, k) for k in ("modality", "rate", "band", "order", "notch", "upright")}
    )
    expected = ours(40 * x[:, None] + 900, rate, signal)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    middle = slice(1000, 3000)  # at the ends filters start
    at = np.interp(np.arange(4000) / 500, t, beats)[middle]
    assert all(np.corrcoef(row[0, middle], at)[0, 1] > 0.5 for row in found)  # both point up
    with pytest.raises(ValueError, match=r"100 Hz is under the 125"):
        names["prepare"](x, 100, names["ECG"])
    assert "high-pass 0.5 Hz, order 5" in card._signal("ecg", known)
    assert "notch at 50 Hz" in card._signal("ecg", known)


KINDS: dict[str, dict[str, Any]] = {
    "papagei": PAPAGEI,
    "ecgfounder": ECGFOUNDER | {"upright": True},
    "pulseppg": PULSEPPG,
    "fir": FIR | {"normalise": "minmax"},
    "delayed fir": FIR | {"taper": "kaiser", "beta": 5.0, "phase": "delayed", "normalise": "minmax_signed"},
    "high-pass fir": FIR | {"band": (0.5, None), "taper": "blackman"},
    "chebyshev high-pass": {
        "rate": 100.0,
        "band": (0.4, None),
        "filter": "chebyshev2",
        "order": 3,
        "attenuation": 40.0,
        "notch": 50.0,
    },
    "resampled first": {"rate": 50.0, "band": (0.5, 8.0), "sequence": ("resample", "filter", "normalise")},
    "normalised first": {
        "rate": 50.0,
        "band": (0.5, 8.0),
        "normalise": "zscore",
        "sequence": ("normalise", "filter", "resample"),
    },
    "scaled outside": {"rate": 50.0, "band": (0.5, 8.0), "normalise": "zscore"},
}


@pytest.mark.parametrize("rate", [64.0, 125.0, 250.0])
def test_the_cards_code_alone_prepares_every_declared_kind_as_ours_does(
    bare: dict[str, str], tmp_path: Path, rate: float
) -> None:
    made = {name: Signal(modality="ecg", **told) for name, told in KINDS.items()}
    signals = {name: s for name, s in made.items() if s.band is None or rate > 2 * max(filter(None, s.band))}
    x = np.random.default_rng(0).normal(size=(2, round(10 * rate))).cumsum(-1) + 1000
    np.save(tmp_path / "raw.npy", x)
    code = ""
    for name, signal in signals.items():
        known = prepared(signal, 1.0, 10.0) | {"multiple_s": 1.0, "max_s": 10.0}
        inputs = [{"name": "ecg", "modality": "ecg", "rate": signal.rate, "channels": 1}]
        block = card.snippet(
            "ecg", {"modes": {"ecg": {"file": "e", "inputs": inputs, "dim": 8}}}, {"ecg": known}
        )
        code += block[: block.index("SESSION =")]
        code += f"np.save('{name}.npy', prepare(np.load('raw.npy'), {rate}, ECG))\n"
    done = run(code, tmp_path, bare)
    assert done.returncode == 0, done.stderr
    for name, signal in signals.items():
        want = ours(x[:, None], rate, signal)
        got = np.load(tmp_path / f"{name}.npy")
        assert got.shape == want.shape and got.dtype == want.dtype
        span = np.ptp(want.astype(float), axis=-1, keepdims=True)
        assert (np.abs(got.astype(float) - want) <= 1e-6 * span).all(), name  # float32's last places


def test_the_card_of_several_channels_prepares_each_channel_as_ours_does() -> None:
    signal = Signal(modality="ecg", channels=3, **ECGFOUNDER)
    known = prepared(signal, 1.0, 10.0) | {"multiple_s": 1.0, "max_s": 10.0}
    inputs = [{"name": "ecg", "modality": "ecg", "rate": signal.rate, "channels": 3}]
    code = card.snippet("ecg", {"modes": {"ecg": {"file": "e", "inputs": inputs, "dim": 8}}}, {"ecg": known})
    names: dict = {}
    exec(code[: code.index("SESSION =")], names)
    x = np.random.default_rng(0).normal(size=(2, 3, 2500)).cumsum(-1)
    want = ours(x, 250.0, signal)
    np.testing.assert_allclose(names["prepare"](x, 250.0, names["ECG"]), want, atol=1e-5 * np.abs(want).max())
    np.testing.assert_array_equal(
        names["prepare"](x[0], 250.0, names["ECG"]), names["prepare"](x[:1], 250.0, names["ECG"])
    )
    with pytest.raises(ValueError, match="2 rows are no windows of 3 channels"):
        names["prepare"](x[0, :2], 250.0, names["ECG"])
    assert "Raw ECG (channels, samples) or (windows, channels, samples)" in code


def test_the_card_of_two_inputs_prepares_each_in_its_own_way() -> None:
    ways = {
        "ppg": Signal(modality="ppg", **PAPAGEI),
        "ecg": Signal(modality="ecg", rate=125.0, band=(0.5, 40.0)),
    }
    known = {m: prepared(s, 1.0, 10.0) | {"multiple_s": 1.0, "max_s": 10.0} for m, s in ways.items()}
    inputs = [{"name": m, "modality": m, "rate": 125.0, "channels": 1} for m in ways]
    code = card.snippet("both", {"modes": {"both": {"file": "b", "inputs": inputs, "dim": 8}}}, known)
    names: dict = {}
    exec(code[: code.index("SESSION =")], names)
    x = np.random.default_rng(0).normal(size=(2, 2500)).cumsum(-1)
    for m, signal in ways.items():
        want = ours(x[:, None], 250.0, signal)
        got = names["prepare"](x, 250.0, names[m.upper()])
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_the_card_says_in_words_what_is_declared() -> None:
    def said(told: dict[str, Any]) -> str:
        known = prepared(Signal(modality="ppg", **told), 1.0, 10.0) | {"multiple_s": 1.0, "max_s": 10.0}
        return card._signal("ppg", known)

    assert (
        "Chebyshev II band-pass 0.5–12 Hz, order 4, 20 dB, zero-phase, at the native rate "  # noqa: RUF001
        "(above 24 Hz); then a moving average of 0.05 s, forward and backward from 75 Hz on; then resample "
        "to 125 Hz, polyphase; then nothing else: the network normalises"
    ) in said(PAPAGEI)
    assert "subtract the running median of 0.4 s" in said(ECGFOUNDER)
    assert "then scale each window to mean 0 and standard deviation 1; then nothing else." in said(ECGFOUNDER)
    assert "FIR band-pass 0.5–8 Hz, 101 taps, hamming, zero-phase" in said(FIR)  # noqa: RUF001
    assert "one pass, delayed by half its taps" in said(FIR | {"phase": "delayed"})
    first = said(KINDS["resampled first"])
    assert first.index("resample to 50 Hz") < first.index("butterworth") and "at 50 Hz; the native" in first
