"""An int8 bundle keeps the contract; who was held out, and what it lost, are reported as measured."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cluster import bundle as bundles
from cluster.errors import PlethoraError
from datasets.index import build
from datasets.schema import open_corpus
from datasets.split import Split, assign, corpus_subjects
from datasets.windows import WindowSpec
from finetune.commands.compress import Compress, run, student_run
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation import compression
from finetune.networks import int8, quantize
from finetune.networks.quantize import Graph, fidelity, quantised
from finetune.reports.sheet import write
from pretrain.trained import open_trained

WINDOW_S = 20.0
STUDENT = Path(__file__).parents[2] / "finetune" / "runs" / "distill" / "tiny.toml"


def compress(bundle: str, corpus: str, out: str, tasks: Any = (), **more: Any) -> dict[str, Any]:
    return write(run(Compress(bundle, corpus, out, tasks, **more)))


def edited(source: str, folder: Path, **changes: Any) -> str:
    """A copy of a bundle with other keys in config.json (under "run" where that has them)."""
    files = folder / "files"
    shutil.copytree(source, files, ignore=shutil.ignore_patterns("_COMPLETE", "SHA256SUMS"))
    config = json.loads((files / "config.json").read_text())
    for key, value in changes.items():
        (config if key in config else config["run"])[key] = value
    (files / "config.json").write_text(json.dumps(config))
    bundles.publish(files, str(folder / "run" / "bundle"))
    return str(folder / "run" / "bundle")


@pytest.fixture(scope="module")
def split(corpus: str) -> dict[str, float]:
    """One that puts people on all sides: names are made with this machine's key."""
    people = corpus_subjects(open_corpus(corpus))
    for seed in range(1000):
        chosen = {"seed": seed, "val": 0.2, "test": 0.5}
        sides = Counter(assign(person, Split(**chosen)) for person in people)
        if sides["test"] >= 5 and sides["val"] >= 2 and sides["train"] >= 3:
            return chosen
    raise AssertionError


@pytest.fixture(scope="module")
def original(bundle: str, split: dict[str, float], tmp_path_factory: pytest.TempPathFactory) -> str:
    return edited(bundle, tmp_path_factory.mktemp("original"), split=split)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "compressed"


@pytest.fixture(scope="module")
def results(ray_session: Any, original: str, corpus: str, out: Path) -> dict[str, Any]:
    return compress(original, corpus, str(out), ["heart_rate"], window_s=WINDOW_S, folds=2)


@pytest.fixture(scope="module")
def small(results: dict[str, Any], out: Path) -> bundles.Bundle:
    return bundles.open(str(out / "int8" / "bundle"))


def test_the_int8_bundle_keeps_the_contract_and_the_preprocessing(
    small: bundles.Bundle, original: str
) -> None:
    bundles.verify(small.uri)
    parent = bundles.open(original)
    assert small.preprocessing == parent.preprocessing
    assert small.config["modes"] == parent.config["modes"]
    assert small.config["run"]["name"] == "tiny-int8"
    assert small.config["run"]["recipe"] == parent.config["run"]["recipe"]
    assert BundleEncoder(small.uri).embed(np.random.default_rng(0).normal(size=(2, 1, 1000)), 100).shape == (
        2,
        24,
    )


def test_its_lineage_names_the_parent_and_only_whom_calibration_saw(
    small: bundles.Bundle, original: str, corpus: str, split: dict[str, float]
) -> None:
    (parent,) = small.lineage["parents"]
    assert parent == {"uri": original, "hash": (Path(original) / "_COMPLETE").read_text().strip()}
    (entry,) = small.lineage["corpora"]
    source = open_corpus(corpus)
    assert entry["hash"] == source.hash and entry["key_id"] == source.manifest["key_id"]
    sides = {assign(subject, Split(**split)) for subject in entry["subjects"]}
    assert sides == {"train", "val"}
    assert entry["windows"]["train"] <= int8.CALIBRATION and entry["windows"]["val"] <= int8.CHECK


def test_its_card_tells_that_it_is_quantised_and_how(small: bundles.Bundle, original: str) -> None:
    card = (Path(small.uri) / "README.md").read_text()
    about = small.config["quantised"]
    assert f"**Quantised to int8** ({about['how']}) from mode `ppg` of `{original}`" in card
    assert f"{about['tried'][about['how']]['kept']:.1%} of their variance" in card
    assert "does not depend on what else is in its batch" in card
    assert "python -m finetune evaluate" in card


def test_its_weights_are_int8_with_a_scale_a_channel_and_near_the_originals(
    small: bundles.Bundle, original: str
) -> None:
    true = load_file(Path(original) / "model.safetensors")["net.filters.weight"]
    held = load_file(Path(small.uri) / "model.safetensors")
    whole, scale = held["filters.weight_quantized"], held["filters.weight_scale"]
    assert whole.dtype == np.int8 and scale.shape == (len(true),)
    again = whole.astype(np.float64) * scale[:, None, None]
    assert (np.abs(again - true) <= scale[:, None, None] / 2 * 1.001).all()
    assert (np.abs(whole).reshape(len(whole), -1).max(1) >= 126).all()  # each channel uses its whole range


def test_the_file_is_a_fraction_and_the_vectors_are_much_the_same(
    results: dict[str, Any], small: bundles.Bundle, original: str
) -> None:
    rows = {row["name"]: row for row in results["rows"]}
    assert rows["int8"]["bytes"] == (Path(small.uri) / "ppg.onnx").stat().st_size
    assert rows["int8"]["bytes"] < 0.6 * rows["original"]["bytes"]
    assert 0.9 < rows["int8"]["kept"] <= 1 and 0.99 < rows["int8"]["cosine"] <= 1
    assert all(row["ms"] > 0 for row in rows.values()) and rows["original"]["ms_ratio"] == 1
    assert "cosine" not in rows["original"]


def test_vectors_are_compared_on_people_that_no_row_saw(
    results: dict[str, Any], small: bundles.Bundle, original: str, corpus: str, split: dict[str, float]
) -> None:
    encoders, source = [BundleEncoder(uri) for uri in (original, small.uri)], open_corpus(corpus)
    index = build(source, WindowSpec(signals=encoders[0].signals, window_s=WINDOW_S))
    rows, _ = compression.unseen_rows(index, encoders, source)
    people = {index.table["subject"][int(row)].as_py() for row in rows}
    assert {assign(subject, Split(**split)) for subject in people} == {"test"}
    assert results["held_out"] == {"windows": min(len(rows), compression.COMPARED), "subjects": len(people)}
    x = int8.sample(index, encoders[0], rows, compression.COMPARED).feed["ppg"]
    a, b = (encoder(x).astype(np.float64) for encoder in encoders)
    cosines = [u @ v / (np.sqrt(u @ u) * np.sqrt(v @ v)) for u, v in zip(a, b, strict=True)]
    row = results["rows"][1]
    assert row["cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert row["cosine_p5"] == pytest.approx(np.percentile(cosines, 5), abs=1e-6)


def test_what_tasks_lose_is_the_paired_difference_of_compare(results: dict[str, Any], out: Path) -> None:
    (table,) = results["tasks"]
    (whole,) = json.loads((out / "compare" / "results.json").read_text())["tasks"]
    assert table["differences"]["int8"] == pytest.approx(
        whole["differences"]["tiny-int8 (ppg)"]["tiny (ppg)"]
    )
    values = {row["name"]: row["metrics"] for row in whole["rows"]}
    assert table["rows"]["original"] == pytest.approx(values["tiny (ppg)"]["mae"])
    written = (out / "compress.md").read_text()
    for part in ("Original", "int8", "heart_rate, MAE", " original", "ms, one core", "variance kept"):
        assert part in written
    assert re.search(r"heart_rate: int8 .*; the interval allows a loss of \d+\.\d\d\.", written)
    assert json.loads((out / "results.json").read_text())["rows"][1]["uri"] == str(out / "int8" / "bundle")


def test_a_second_run_needs_resume_and_makes_nothing_anew(
    results: dict[str, Any], original: str, corpus: str, out: Path
) -> None:
    with pytest.raises(PlethoraError, match=r"exists: .* --resume"):
        compress(original, corpus, str(out))
    before = (out / "int8" / "bundle" / "_COMPLETE").stat().st_mtime_ns
    compress(original, corpus, str(out), window_s=WINDOW_S, resume=True)
    assert (out / "int8" / "bundle" / "_COMPLETE").stat().st_mtime_ns == before


def test_what_is_int8_is_neither_compressed_again_nor_opened_to_train(
    small: bundles.Bundle, corpus: str, tmp_path: Path
) -> None:
    with pytest.raises(PlethoraError, match="is int8 already"):
        compress(small.uri, corpus, str(tmp_path / "out"))
    with pytest.raises(PlethoraError, match="int8"):
        open_trained(small.uri)


# ---------------------------------------------------------------- the choice


def test_likeness_is_what_loops_in_float64_say() -> None:
    rng = np.random.default_rng(4)
    true = rng.normal([100, 0, 5, 7], [0.1, 1, 3, 0], (40, 4)).astype(np.float32)
    found = true + rng.normal(0, [0.05, 0.1, 1, 0.2], (40, 4)).astype(np.float32)
    cosines = [
        sum(float(a) * float(b) for a, b in zip(u, v, strict=True)) / np.sqrt(float(u @ u) * float(v @ v))
        for u, v in zip(true.astype(float), found.astype(float), strict=True)
    ]
    kept = []
    for k in range(3):  # the last never varies: there is no variance to keep
        column = true[:, k].astype(float)
        missed = sum((float(a) - float(b)) ** 2 for a, b in zip(true[:, k], found[:, k], strict=True))
        kept.append(1 - missed / sum((float(a) - column.mean()) ** 2 for a in true[:, k]))
    likeness = fidelity(true, found)
    assert likeness.cosine == pytest.approx(np.mean(cosines), abs=1e-9)
    assert likeness.kept == pytest.approx(np.mean(kept), abs=1e-6)
    assert likeness.cosine > 0.999 > 0.9 > likeness.kept  # why both are shown
    assert fidelity(true, true).kept == 1
    assert fidelity(true, np.tile(true.mean(0), (40, 1))).kept == pytest.approx(0, abs=1e-3)


@pytest.fixture(scope="module")
def waves() -> np.ndarray:
    time = np.arange(1000) / 50
    rates = np.random.default_rng(1).uniform(0.7, 2.5, (48, 1))
    noise = 0.05 * np.random.default_rng(2).normal(size=(48, 1000))
    return (np.sin(2 * np.pi * rates * time) ** 3 + noise)[:, None].astype(np.float32)


@pytest.mark.parametrize("how", list(quantize.HOW))
def test_a_window_with_a_glitch_leaves_the_vectors_of_its_batch_as_they_are(
    bundle: str, waves: np.ndarray, tmp_path: Path, how: str
) -> None:
    model = BundleEncoder(bundle).bundle.path("ppg.onnx")
    graph = Graph(quantised(model, how, {"ppg": waves[:32]}, tmp_path))
    feed, glitch = waves[32:], waves[32:].copy()
    glitch[3, 0, 500:510] = 1e4
    alone = graph({"ppg": feed}, batch=1)
    np.testing.assert_allclose(graph({"ppg": feed}), alone, atol=1e-5)
    others = np.arange(len(feed)) != 3
    np.testing.assert_allclose(graph({"ppg": glitch})[others], alone[others], atol=1e-5)
    assert not list(Path.cwd().glob("*.data")) and not list(Path.cwd().glob("sym_shape*"))


@pytest.mark.parametrize("how", list(quantize.HOW))
def test_every_weight_is_int8_with_a_scale_a_channel(
    bundle: str, waves: np.ndarray, tmp_path: Path, how: str
) -> None:
    """Of convolutions and of matrix products, stored either way round."""
    model = BundleEncoder(bundle).bundle.path("ppg.onnx")
    held = quantize.tensors(quantised(model, how, {"ppg": waves[:8]}, tmp_path))
    whole = {n.removesuffix("_quantized"): x for n, x in held.items() if x.dtype == np.int8 and x.ndim > 1}
    assert {x.ndim for x in whole.values()} == {2, 3} and len(whole) == 2
    true = quantize.tensors(model)
    for name, x in whole.items():
        scale = held[f"{name}_scale"]
        axis = next(i for i, size in enumerate(x.shape) if scale.shape == (size,))
        if x.ndim == 2:  # square: the axis on which the stored scale fits
            fits = [np.abs(x * np.expand_dims(scale, 1 - a) - true[name]).max() for a in (0, 1)]
            assert min(fits) <= scale.max() / 2 * 1.001 and np.ptp(scale) > 0
            continue
        assert (np.abs(x).max(axis=(1, 2)) >= 126).all() and axis == 0


def test_weights_alone_are_int8_only_where_static_loses_too_much(
    bundle: str, waves: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, quiet = BundleEncoder(bundle), {"ppg": 1e-3 * np.ones_like(waves[:8])}
    feed = {"ppg": waves}
    _, choice = quantize.choose(encoder, feed, feed, tmp_path)
    assert choice.how == "static" and choice.tried["static"].kept > quantize.ENOUGH
    path, choice = quantize.choose(encoder, quiet, feed, tmp_path)  # bounds of no signal at all
    assert choice.tried["static"].kept < quantize.ENOUGH < choice.tried["weights"].kept
    assert choice.how == "weights" and path.name == "weights.onnx"
    assert path.stat().st_size < 0.6 * encoder.bundle.path("ppg.onnx").stat().st_size
    monkeypatch.setattr(quantize, "ENOUGH", -np.inf)
    assert quantize.choose(encoder, quiet, feed, tmp_path)[1].how == "static"


def test_an_older_dynamic_bundle_is_read_and_its_windows_go_one_by_one(
    bundle: str, waves: np.ndarray, tmp_path: Path
) -> None:
    from onnxruntime.quantization import quantize_dynamic

    files = tmp_path / "files"
    shutil.copytree(bundle, files, ignore=shutil.ignore_patterns("_COMPLETE", "SHA256SUMS"))
    quantize_dynamic(str(Path(bundle) / "ppg.onnx"), str(files / "ppg.onnx"))
    config = json.loads((files / "config.json").read_text()) | {"quantised": {"how": "dynamic"}}
    (files / "config.json").write_text(json.dumps(config))
    bundles.publish(files, str(tmp_path / "bundle"))
    encoder = BundleEncoder(str(tmp_path / "bundle"))
    glitch = waves.copy()
    glitch[3, 0, 500:510] = 1e4
    others = np.arange(len(waves)) != 3
    np.testing.assert_array_equal(encoder(glitch)[others], encoder(waves)[others])


# ---------------------------------------------------------------- the student's run


def test_a_students_run_follows_its_teacher_where_the_file_says_nothing(
    original: str, split: dict[str, float], tmp_path: Path
) -> None:
    teacher = BundleEncoder(original)
    run = student_run(str(STUDENT), teacher, "/corpus", "/out", 30.0)
    assert run.method["teacher"] == original and run.method["mode"] == "ppg"
    assert run.method["window_s"] == 30 and run.corpus == "/corpus" and run.storage == "/out"
    assert run.split == Split(**split)
    file = tmp_path / "run.toml"
    file.write_text(STUDENT.read_text() + '\n[corpus]\n"/large" = 1.0\n\n[split]\nval = 0.3\n')
    run = student_run(str(file), teacher, "/corpus", "/out", 30.0, ["method.window_s=40", "steps=7"])
    assert run.corpus == {"/large": 1.0} and run.method["window_s"] == 40 and run.steps == 7
    assert run.split == Split(**{**split, "val": 0.3})


@pytest.mark.slow
def test_a_student_is_distilled_published_and_measured_beside_the_others(
    ray_session: Any, original: str, corpus: str, tmp_path: Path
) -> None:
    sets = ["steps=6", "batch=4", "validate_every=3", "method.hop_s=5.0", "engine.zero_stage=0"]
    more = {"student": str(STUDENT), "sets": sets, "window_s": WINDOW_S, "folds": 2}
    results = compress(original, corpus, str(tmp_path / "out"), ["heart_rate"], **more)
    assert [row["name"] for row in results["rows"]] == ["original", "int8", "student"]
    uri = str(tmp_path / "out" / "student-tiny" / "bundle")
    bundles.verify(uri)
    assert results["rows"][2]["uri"] == uri and set(results["tasks"][0]["differences"]) == {"int8", "student"}
    lineage = bundles.open(uri).lineage
    assert [parent["uri"] for parent in lineage["parents"]] == [original]
    student, teacher = BundleEncoder(uri), BundleEncoder(original)
    assert student.signals == teacher.signals and student.dim == teacher.dim
    for length in ("min_s", "window_s", "max_s"):
        assert getattr(student, length) == getattr(teacher, length)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"bundle": "/nowhere/bundle"}, "/nowhere/bundle"),
        ({"bundle": "PAIR"}, "choose one as BUNDLE#MODE"),
        ({"bundle": "PAIR#abp"}, "has no mode 'abp'"),
        ({"bundle": "PAIR#ecg"}, "has no ecg"),
        ({"tasks": ["heart_rat"]}, "heart_rat"),
        ({"sets": ["steps=3"]}, "give --student"),
        ({"window_s": 90.0}, "takes 2 to 60 s at once"),
        ({"student": "/nowhere.toml"}, "no such file"),
        ({"student": str(STUDENT), "sets": ["name=int8"]}, "is taken in"),
        ({"student": str(STUDENT), "sets": ["method.filter=3"]}, "filters"),
    ],
)
def test_a_mistake_is_one_line(
    changed: dict[str, Any], says: str, original: str, pair_bundle: str, corpus: str, tmp_path: Path
) -> None:
    given = {"bundle": original, "corpus": corpus, "out": str(tmp_path / "out")} | changed
    given["bundle"] = given["bundle"].replace("PAIR", pair_bundle)
    with pytest.raises(PlethoraError, match=says) as raised:
        compress(**given)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_a_bundle_of_decoders_alone_is_refused(bundle: str, corpus: str, tmp_path: Path) -> None:
    taken = [{"name": "ppg", "modality": "ppg", "rate": 50, "channels": 1}]
    given = {"modality": "ecg", "rate": 50, "channels": 1}
    decoder = {"file": "ppg.onnx", "inputs": taken, "output": given}
    bare = edited(bundle, tmp_path, modes={}, decoders={"ppg_to_ecg": decoder})
    config = json.loads((Path(bare) / "config.json").read_text())
    assert config["modes"] == {}
    with pytest.raises(PlethoraError, match="no mode that gives vectors"):
        compress(bare, corpus, str(tmp_path / "out"))


def test_a_corpus_without_people_to_spare_is_refused_before_anything_is_made(
    ray_session: Any, bundle: str, corpus: str, tmp_path: Path
) -> None:
    everyone = edited(bundle, tmp_path / "a", split={"val": 0.0, "test": 0.0})
    with pytest.raises(PlethoraError, match="nothing could be measured"):
        compress(everyone, corpus, str(tmp_path / "out"), window_s=WINDOW_S)
    nobody = edited(bundle, tmp_path / "b", split={"val": 0.0, "test": 0.5})
    with pytest.raises(PlethoraError, match="0 windows of 20 s of subjects on the val side"):
        compress(nobody, corpus, str(tmp_path / "out"), window_s=WINDOW_S)
    assert not (tmp_path / "out").exists()


def test_latency_takes_every_row_in_turn_and_gives_ratios_to_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked = [0.0], []

    def graph(name: str, seconds: float) -> Any:
        def run(feed: dict[str, np.ndarray]) -> None:
            assert feed["ppg"].shape == (1, 1, 5)
            asked.append(name)
            now[0] += seconds

        return SimpleNamespace(run=run)

    monkeypatch.setattr(compression.time, "perf_counter", lambda: now[0])
    found = compression.latency(
        {"a": graph("a", 0.002), "b": graph("b", 0.001)}, {"ppg": np.zeros((3, 1, 5))}
    )
    assert (found["a"].ms, found["a"].ms_ratio) == pytest.approx((2.0, 1.0))
    assert (found["b"].ms, found["b"].ms_ratio) == pytest.approx((1.0, 0.5))
    assert asked == ["a", "b"] * (compression.WARM + compression.ROUNDS)
