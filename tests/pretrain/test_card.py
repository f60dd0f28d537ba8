"""The model card: its facts, and its own code run in a bare environment."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from finetune.encoder import BundleEncoder
from pretrain import card
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
    assert (
        '{"ppg": prepare(raw["ppg"], rate["ppg"], PPG), "ecg": prepare(raw["ecg"], rate["ecg"], ECG)}' in code
    )


def test_a_source_without_subject_ids_is_said_to_have_none(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    text = card.render(config, tiny.PREPROCESSING, tiny.lineage(subjects_published=False, subjects=["a"]), {})
    assert "publishes no subject ids" in text


@pytest.mark.parametrize("rate", [125, 250, 500])
def test_the_cards_ecg_code_filters_and_turns_as_ours_does(rate: int) -> None:
    """High-pass, notch and inversion, of a mode that asks for them."""
    from datasets.signal import Signal, prepare
    from pretrain.recipes.anyppg import AnyPPGConfig, prepared

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
    expected = prepare(40 * x[:, None] + 900, rate, signal)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    middle = slice(1000, 3000)  # at the ends filters start
    at = np.interp(np.arange(4000) / 500, t, beats)[middle]
    assert all(np.corrcoef(row[0, middle], at)[0, 1] > 0.5 for row in found)  # both point up
    with pytest.raises(ValueError, match=r"100 Hz is under the 125"):
        names["prepare"](x, 100, names["ECG"])
    assert "high-pass 0.5 Hz, order 5" in card._signal("ecg", known)
    assert "notch at 50 Hz" in card._signal("ecg", known)
