"""`finetune reconstruct`: an M2AE bundle's decoder on a corpus and on arrays; what cannot be rebuilt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from datasets.synthetic import synthesize
from finetune.__main__ import main
from finetune.commands.reconstruct import Reconstruct, run
from finetune.evaluation.reconstruction import Pairs, references, table
from finetune.reports import sheet
from finetune.translator import Translator
from pretrain.config import RunConfig
from pretrain.publish import Trained, publish
from pretrain.recipes.m2ae import M2AE, M2AEConfig
from tests.finetune import tiny

METHOD = {
    "dim": 16,
    "encoder_depth": 1,
    "bottleneck_depth": 1,
    "decoder_depth": 1,
    "heads": 2,
    "projection": 8,
    "ecg_gate": False,
}


def reconstruct(bundle: str, input: str, source: str, target: str, out: Path) -> dict[str, Any]:
    return sheet.write(run(Reconstruct(bundle, input, source, target, str(out))))


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> str:
    """8 people with PPG at 125 Hz and ECG at 250 Hz."""
    out = str(tmp_path_factory.mktemp("corpus") / "paired")
    synthesize(out, hours=0.3, subjects=8, seed=2, rates={"ppg": 125.0, "ecg": 250.0})
    return out


@pytest.fixture(scope="module")
def m2ae(tmp_path_factory: pytest.TempPathFactory, paired: str) -> str:
    """An untrained M2AE, published by the loop's own code; its lineage says that it saw three of them."""
    folder = tmp_path_factory.mktemp("m2ae")
    recipe = M2AE(M2AEConfig(**METHOD), seed=0)
    config = RunConfig(
        recipe="pretrain.recipes.m2ae:M2AE",
        corpus=paired,
        storage=str(folder),
        name="m2ae",
        steps=1,
        batch=2,
        method=METHOD,
    )
    corpus = open_corpus(paired)
    seen = sorted(set(corpus.read_row_group(0, 0, ["subject"])["subject"].to_pylist()))[:3]
    about = tiny.lineage(corpus.manifest, seen)["corpora"]
    weights = {name: module.state_dict() for name, module in recipe.modules().items()}
    return publish(config, recipe, Trained(weights, about, recipe.windows(), [], {}, {}))


def test_a_corpus_gives_a_table_beside_references_pictures_and_waveforms(
    m2ae: str, paired: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    given = ["reconstruct", "--bundle", m2ae, "--input", paired, "--from", "ppg", "--to", "ecg"]
    results = main([*given, "--out", str(out), "--windows", "40", "--folds", "3"])
    assert results["counts"] == json.loads((out / "results.json").read_text())["counts"]
    printed = capsys.readouterr().out
    assert "Ridge regression from the window" in printed and "WARNING" not in printed
    assert [row["name"] for row in results["rows"]] == ["decoder", "mean_beat", "around", "ridge"]
    assert results["counts"]["subjects"] == 5 and results["counts"]["windows"] == 40
    assert results["counts"]["fitted_on_more"] > 0
    by = {row["name"]: row["metrics"]["pearson"]["value"] for row in results["rows"]}
    assert by["decoder"] < 0.2 < by["around"]  # untrained, on pulses whose beats are easy to find
    rebuilt = pq.read_table(out / "rebuilt.parquet")
    assert rebuilt.num_rows == 40 and len(rebuilt["rebuilt"][0]) == 1250
    assert (out / "reconstruction.png").stat().st_size > 30_000
    for name in ("reconstruction.md", "report.html"):
        text = (out / name).read_text()
        assert "Mean beat, at the median delay" in text and "Heart rate could be read in" in text


def test_subjects_that_pretraining_saw_are_kept_only_on_request_and_every_table_says_so(
    m2ae: str, paired: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["reconstruct", "--bundle", m2ae, "--input", paired, "--from", "ppg", "--to", "ecg"]
    results = main([*given, "--out", str(tmp_path), "--windows", "16", "--folds", "3", "--allow-overlap"])
    assert results["counts"]["subjects"] == 8 and results["counts"]["fitted_on_more"] == 0
    assert results["overlap"]["policy"] == "all"
    warning = "subjects that pretraining saw are NOT left out (3 known): figures may flatter"
    assert results["warnings"] == [warning]
    tables = 2  # rows, differences
    assert capsys.readouterr().out.count(f"WARNING: {warning}") == tables
    assert (tmp_path / "reconstruction.md").read_text().count(f"**WARNING**: {warning}") == tables


def test_no_row_gains_by_leaving_windows_out() -> None:
    draw = np.random.default_rng(3)
    who = np.repeat(["a", "b", "c"], 4)
    full, part = draw.normal(size=(2, 12))
    part[:5] = np.nan
    (decoder, ridge), differences = table({"decoder": {"mae": full}, "ridge": {"mae": part}}, who, 0)
    assert decoder.metrics["mae"].value == pytest.approx(full[5:].mean())
    assert decoder.found["mae"] == 1 and ridge.found["mae"] == pytest.approx(7 / 12)
    assert differences["ridge"]["mae"].value == pytest.approx((full - part)[5:].mean())


def test_rebuilt_windows_are_the_networks_own(m2ae: str) -> None:
    x = torch.randn(3, 1, 1250, generator=torch.Generator().manual_seed(0))
    translator = Translator(m2ae, "ecg", "ppg")
    recipe = M2AE(M2AEConfig(**METHOD), seed=0)
    net = recipe.modules()["m2ae"].eval()
    with torch.no_grad():
        expected = recipe.encoder({"m2ae": net}).decoders["ecg_to_ppg"].module(x)[:, 0]
    np.testing.assert_allclose(translator(x.numpy()), expected.numpy(), atol=1e-4)


def test_references_never_see_the_subject_that_they_are_tested_on() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 30, 250)).cumsum(-1)
    who = np.repeat([f"s{i}" for i in range(6)], 5)
    nobody = Pairs(np.zeros((0, 250)), np.zeros((0, 250)), who[:0])
    first = references(Pairs(x, y, who), nobody, 125.0, "ppg", "ecg", 6, 0)
    changed = np.where((who == "s2")[:, None], -3 * y[::-1], y)
    second = references(Pairs(x, changed, who), nobody, 125.0, "ppg", "ecg", 6, 0)
    for name in first:
        assert np.array_equal(first[name][who == "s2"], second[name][who == "s2"])
        assert not np.array_equal(first[name][who != "s2"], second[name][who != "s2"])


def test_arrays_give_arrays_and_figures_where_the_truth_is_there(m2ae: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    ppg, ecg = draw.normal(size=(2, 2, 25 * 250)).cumsum(-1)
    np.savez(tmp_path / "both.npz", ppg=ppg, ecg=ecg, rate=250)
    np.savez(tmp_path / "one.npz", ppg=ppg, rate=250)
    both = reconstruct(m2ae, str(tmp_path / "both.npz"), "ppg", "ecg", tmp_path / "a")
    one = reconstruct(m2ae, str(tmp_path / "one.npz"), "ppg", "ecg", tmp_path / "b")
    assert both["metrics"].keys() >= {"mae", "pearson"} and one["metrics"] == {}
    with np.load(tmp_path / "b" / "rebuilt.npz") as held:
        assert held["ecg"].shape == (2, 2, 1250) and held["start_s"].tolist() == [0, 10]
        direct = Translator(m2ae, "ppg", "ecg")
        second = direct(direct.source.prepare(ppg[:, None, 2500:5000], 250.0))
        np.testing.assert_allclose(held["ecg"][:, 1], second, atol=1e-5)


def test_a_bundle_without_decoders_and_an_unknown_way_are_one_line(
    bundle: str, m2ae: str, corpus: str, tmp_path: Path
) -> None:
    with pytest.raises(PlethoraError, match=r"no decoder from ppg to ecg \(it has none\)"):
        reconstruct(bundle, corpus, "ppg", "ecg", tmp_path)
    with pytest.raises(PlethoraError, match=r"from ppg to abp \(it has ecg_to_ppg, ppg_to_ecg\)"):
        reconstruct(m2ae, corpus, "ppg", "abp", tmp_path)
    with pytest.raises(PlethoraError, match="has no ecg"):
        reconstruct(m2ae, corpus, "ppg", "ecg", tmp_path)
