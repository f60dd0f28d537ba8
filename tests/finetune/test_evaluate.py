"""The whole way from a bundle and a corpus to a table, and who is left out of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster import bundle as bundles
from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from datasets.split import corpus_subjects
from finetune.evaluation.people import seen_by_pretraining
from tests.finetune import tiny
from tests.finetune.run import evaluate

ROOT = Path(__file__).parents[2]
ROWS = [
    "encoder",
    "untrained",
    "encoder, k-NN",
    "encoder + demographics",
    "handcrafted",
    "tracker",
    "demographics",
    "demographics + handcrafted",
    "mean",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "report"


@pytest.fixture(scope="module")
def results(ray_session: Any, bundle: str, corpus: str, out: Path) -> dict[str, Any]:
    return evaluate(bundle, corpus, "heart_rate", str(out))


def other(tmp_path: Path, name: str, about: dict[str, Any]) -> str:
    return tiny.make_bundle(tmp_path / f"{name}-files", str(tmp_path / name / "bundle"), about)


def test_all_rows_have_every_metric_with_its_interval(results: dict[str, Any]) -> None:
    assert [row["name"] for row in results["rows"]] == ROWS
    for row in results["rows"]:
        assert row["note"] == ""
        for name in ("mae", "rmse"):
            found = row["metrics"][name]
            assert found["low"] <= found["value"] <= found["high"]
    assert set(results["differences"]) == set(ROWS) - {"encoder"}


def test_an_encoder_that_hears_the_pulse_beats_the_mean_and_so_do_handcrafted_features(
    results: dict[str, Any],
) -> None:
    mae = {row["name"]: row["metrics"]["mae"]["value"] for row in results["rows"]}
    assert mae["encoder"] < 0.5 * mae["mean"] and mae["handcrafted"] < 0.25 * mae["mean"]
    assert mae["tracker"] < 0.25 * mae["mean"]
    assert results["rows"][ROWS.index("tracker")]["label"] == "Spectral tracker (PPG, whole record)"
    assert results["differences"]["mean"]["high"] < 0
    assert any("beats predicting the mean" in sentence for sentence in results["verdict"])


def test_counts_are_those_of_the_predictions_and_refusals_have_reasons(
    results: dict[str, Any], out: Path, corpus: str
) -> None:
    table = pq.read_table(out / "predictions.parquet")
    assert results["counts"]["windows"] == table.num_rows > 50
    assert results["counts"]["subjects"] == len(set(table["subject"].to_pylist())) == 12
    assert set(results["refused"]) <= {"signal: flat", "signal: nan", "label coverage", "no label"}
    mae = np.abs(np.asarray(table["encoder"]) - np.asarray(table["target"])).mean()
    assert results["rows"][0]["metrics"]["mae"]["value"] == pytest.approx(mae)


def test_the_report_lies_in_the_folder_and_beside_the_bundle(
    results: dict[str, Any], out: Path, bundle: str
) -> None:
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    pictures = {"plots/predicted.png", "plots/bland_altman.png", "plots/subjects.png"}
    tables = {"tables.csv", "metrics.json", "results.json", "predictions.parquet"}
    assert names == {"report.md", "report.html"} | tables | pictures
    beside = {p.name for p in Path(results["published"]).rglob("*")}
    assert "report.md" in beside and not {"report.html", "tables.csv"} & beside  # no place beside a bundle
    assert bundles.verify(results["published"])["kind"] == "evaluation"
    assert Path(results["published"]).parent == Path(bundle).parent / "evaluations"
    assert bundles.verify(bundle)["kind"] == "encoder"
    assert json.loads((out / "results.json").read_text())["verdict"] == results["verdict"]


def test_the_same_evaluation_twice_is_one_evaluation(
    ray_session: Any, results: dict[str, Any], bundle: str, corpus: str
) -> None:
    assert evaluate(bundle, corpus, "heart_rate")["published"] == results["published"]


def test_subjects_that_pretraining_saw_are_left_out_and_counted(
    ray_session: Any, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = open_corpus(corpus)
    people = sorted(corpus_subjects(found))
    uri = other(tmp_path, "seen", tiny.lineage(found.manifest, people[:5]))
    results = evaluate(uri, corpus, "heart_rate", str(tmp_path / "out"), publish=False)
    assert results["counts"]["subjects"] == 7
    assert results["overlap"]["left_out"]["subjects"] == 5
    assert results["overlap"]["kind"] == "shared"
    tested = set(pq.read_table(tmp_path / "out" / "predictions.parquet")["subject"].to_pylist())
    assert tested == set(people[5:])
    assert "left out as seen: 5 subjects" in capsys.readouterr().out
    everyone = evaluate(uri, corpus, "heart_rate", publish=False, allow_overlap=True, few_shot=False)
    assert everyone["counts"]["subjects"] == 12
    assert "NOT left out (5 known)" in everyone["warnings"][0]
    assert "WARNING" in capsys.readouterr().out


def test_a_corpus_that_pretraining_saw_whole_is_refused(
    ray_session: Any, corpus: str, tmp_path: Path
) -> None:
    found = open_corpus(corpus)
    uri = other(tmp_path, "all", tiny.lineage(found.manifest, sorted(corpus_subjects(found))))
    with pytest.raises(PlethoraError, match=r"saw all 12 subjects.*--allow-overlap"):
        evaluate(uri, corpus, "heart_rate")


def test_two_subjects_are_too_few(ray_session: Any, corpus: str, tmp_path: Path) -> None:
    found = open_corpus(corpus)
    uri = other(tmp_path, "most", tiny.lineage(found.manifest, sorted(corpus_subjects(found))[:10]))
    with pytest.raises(PlethoraError, match="2 subjects left to evaluate"):
        evaluate(uri, corpus, "heart_rate")


def test_overlap_follows_parents_and_is_unknown_where_one_cannot_be_read(corpus: str, tmp_path: Path) -> None:
    found = open_corpus(corpus)
    people = sorted(corpus_subjects(found))
    parent = other(tmp_path, "parent", tiny.lineage(found.manifest, people[:2]))
    child = tiny.lineage(found.manifest, people[2:3]) | {"parents": [{"uri": parent, "hash": ""}]}
    seen = seen_by_pretraining(bundles.open(other(tmp_path, "child", child)), found)
    assert (seen.kind, seen.subjects) == ("shared", frozenset(people[:3]))

    imported = other(tmp_path, "imported", tiny.lineage(found.manifest) | {"corpora": []})
    child = tiny.lineage(found.manifest, people[2:3]) | {"parents": [{"uri": imported, "hash": ""}]}
    seen = seen_by_pretraining(bundles.open(other(tmp_path, "of-imported", child)), found)
    assert (seen.kind, seen.subjects) == ("unknown", frozenset(people[2:3]))

    orphan = tiny.lineage(found.manifest, people[2:3]) | {
        "parents": [{"uri": str(tmp_path / "gone"), "hash": ""}]
    }
    seen = seen_by_pretraining(bundles.open(other(tmp_path, "orphan", orphan)), found)
    assert (seen.kind, seen.subjects) == ("unknown", frozenset(people[2:3]))
    assert "cannot be read" in seen.why[0]

    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")
    child = tiny.lineage(found.manifest, people[2:3]) | {"parents": [{"uri": str(weights), "hash": ""}]}
    seen = seen_by_pretraining(bundles.open(other(tmp_path, "of-weights", child)), found)
    assert seen.kind == "unknown" and seen.why == (f"the weights file {weights} names no corpus",)


def test_other_keys_and_unpublished_ids_make_the_overlap_unknown(corpus: str, tmp_path: Path) -> None:
    found = open_corpus(corpus)
    for i, changed in enumerate(({"key_id": "another"}, {"subjects_published": False})):
        uri = other(tmp_path, f"unknown{i}", tiny.lineage(found.manifest, ["a"], **changed))
        assert seen_by_pretraining(bundles.open(uri), found).kind == "unknown"


def test_the_very_files_of_pretraining_give_their_subjects_away_even_without_published_ids(
    corpus: str, tmp_path: Path
) -> None:
    found = open_corpus(corpus)
    people = sorted(corpus_subjects(found))
    about = tiny.lineage(found.manifest, people[:4], subjects_published=False, hash=found.hash)
    seen = seen_by_pretraining(bundles.open(other(tmp_path, "same", about)), found)
    assert (seen.kind, seen.subjects) == ("unknown", frozenset(people[:4]))


def test_a_corpus_of_another_kind_of_people_has_none_in_common(bundle: str, corpus: str) -> None:
    assert seen_by_pretraining(bundles.open(bundle), open_corpus(corpus)).kind == "none"


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finetune", *argv], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_users_mistakes_are_one_line_each(bundle: str, tmp_path: Path) -> None:
    done = command("evaluate", "--bundle", bundle, "--corpus", str(tmp_path), "--task", "heart_rate")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no corpus at") and done.stderr.count("\n") == 1
    done = command("evaluate", "--bundle", str(tmp_path), "--corpus", "x", "--task", "heart_rate")
    assert done.returncode == 1
    assert "no complete bundle is here" in done.stderr and done.stderr.count("\n") == 1
    assert command("evaluate", "--task", "heart_rate").returncode == 2


def test_help_needs_no_heavy_package() -> None:
    code = "import sys, finetune.__main__ as m; m.parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "sklearn", "pyarrow", "matplotlib", "onnxruntime"} & set(done.stdout.split())
