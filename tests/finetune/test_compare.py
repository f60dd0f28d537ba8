"""Encoders beside each other: the same windows, folds and people for all; one alone is an evaluation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import PlethoraError
from datasets.index import build
from datasets.schema import LABELS, open_corpus
from datasets.split import corpus_subjects
from datasets.windows import WindowSpec
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation import choose
from finetune.evaluation.entrant import Entrant, check_takes
from finetune.metrics import Difference
from finetune.task import load_task
from tests.finetune import made, tiny
from tests.finetune.run import compare, evaluate


@pytest.fixture(scope="module")
def sexes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task of two classes that the synthetic corpora can answer: one window a record."""
    path = tmp_path_factory.mktemp("task") / "sex.toml"
    path.write_text(
        'name = "sex"\ntitle = "Sex"\nkind = "binary"\nlabel = "sex"\npositive = "F"\n'
        'window_s = 10\nhop_s = 10\nmetrics = ["auroc", "auprc", "f1"]\n'
    )
    return str(path)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "compared"


@pytest.fixture(scope="module")
def results(
    ray_session: Any, pair_bundle: str, bundle: str, paired_corpus: str, sexes: str, out: Path
) -> dict[str, Any]:
    names = [f"{pair_bundle}#ecg", f"{pair_bundle}#ppg+ecg", bundle]
    return compare(names, paired_corpus, ["heart_rate", sexes], str(out))


def test_every_encoder_its_untrained_self_and_the_baselines_have_a_row(
    results: dict[str, Any], out: Path
) -> None:
    encoders = ["pair (ecg)", "pair (ppg+ecg)", "tiny (ppg)"]
    twins = [f"{name}, untrained" for name in encoders]
    near = [f"{name}, k-NN" for name in encoders]
    fused = [f"{name} + demographics" for name in encoders]
    for table in results["tasks"]:
        names = [row["name"] for row in table["rows"]]
        baselines = ["demographics", "demographics + handcrafted", "mean"]
        fused = fused if table["protocol"]["demographics"] else []
        baselines = baselines if fused else ["demographics", "mean"]
        rate = ["tracker"] if table["task"]["name"] == "heart_rate" else []
        baselines = ["handcrafted", *rate, *baselines]
        assert names == [*encoders, *twins, *near, *fused, *baselines]
        assert list(table["differences"]) == encoders
        assert len(table["verdict"]) == 3
        main = table["task"]["main"]
        for row in table["rows"]:
            if not row["note"]:
                found = row["metrics"][main]
                assert found["low"] <= found["value"] <= found["high"]
    names = {p.name for p in out.iterdir()}
    assert names == {
        "report.html",
        "tables.csv",
        "metrics.json",
        "compare.md",
        "results.json",
        "predictions.parquet",
        "intervals.png",
    }


def test_all_rows_are_predictions_of_the_same_windows(results: dict[str, Any], out: Path) -> None:
    table = pq.read_table(out / "predictions.parquet").to_pandas()
    for told in results["tasks"]:
        part = table[table["task"] == told["task"]["name"]]
        assert len(part) == told["counts"]["windows"] > 30
        for row in told["rows"]:
            if row["metrics"]:
                assert np.isfinite(part[row["name"]]).all()
        assert (part.groupby("subject")["fold"].nunique() == 1).all()


def test_a_comparison_of_one_equals_its_evaluation(
    ray_session: Any, bundle: str, corpus: str, tmp_path: Path
) -> None:
    one = compare([bundle], corpus, ["heart_rate"], str(tmp_path / "one"))["tasks"][0]
    alone = evaluate(bundle, corpus, "heart_rate", publish=False)
    assert [row["metrics"] for row in one["rows"]] == [row["metrics"] for row in alone["rows"]]
    for found, expected in zip(
        one["differences"]["tiny (ppg)"].values(), alone["differences"].values(), strict=True
    ):
        assert found == expected
    assert one["counts"] == alone["counts"] and one["refused"] == alone["refused"]


def test_whom_any_of_the_encoders_saw_is_left_out_for_all(
    ray_session: Any, bundle: str, corpus: str, tmp_path: Path
) -> None:
    found = open_corpus(corpus)
    people = sorted(corpus_subjects(found))
    uris = []
    for i, seen in enumerate((people[:3], people[2:5])):
        about = tiny.lineage(found.manifest, seen)
        uris.append(tiny.make_bundle(tmp_path / f"f{i}", str(tmp_path / f"r{i}" / "bundle"), about))
    (told,) = compare(uris, corpus, ["heart_rate"], str(tmp_path / "out"))["tasks"]
    assert told["overlap"]["shared_subjects"] == 5
    assert {name: own["shared_subjects"] for name, own in told["seen_by"].items()} == {
        "tiny (ppg)": 3,
        "tiny (ppg) 2": 3,
    }
    tested = set(pq.read_table(tmp_path / "out" / "predictions.parquet")["subject"].to_pylist())
    assert tested == set(people[5:])


@pytest.mark.parametrize(
    ("names", "tasks", "said"),
    [
        (["{b}", "{b}"], ["heart_rate"], "is named twice"),
        (["{b}#ecg"], ["heart_rate"], "no mode 'ecg': it has ppg"),
        (["{p}"], ["heart_rate"], r"3 modes .*choose one as BUNDLE#MODE"),
        (["{b}"], ["hart_rate"], "did you mean 'heart_rate'"),
        (["{b}"], [], "--tasks names no task"),
        (["{b}"], ["heart_rate", "finetune/tasks/heart_rate.toml"], "are both named heart_rate: rename one"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(
    bundle: str, pair_bundle: str, corpus: str, tmp_path: Path, names: list[str], tasks: list[str], said: str
) -> None:
    given = [name.format(b=bundle, p=pair_bundle) for name in names]
    with pytest.raises(PlethoraError, match=said):
        compare(given, corpus, tasks, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_sentence_names_what_an_encoder_beats_and_no_other_ones_untrained_self() -> None:
    def apart(low: float, high: float) -> Difference:
        return Difference(0.0, low, high, 0.5)

    differences = {
        "a": {
            "b": apart(-1, 1),
            "a, untrained": apart(0.1, 1),
            "b, untrained": apart(0.1, 1),
            "handcrafted": apart(-1, -0.1),
            "mean": apart(0.1, 1),
        },
        "b": {"a": apart(-1, 1)},
    }
    verdict = made.judged(made.binary(), differences=differences).result.verdict
    assert verdict == (
        "a beats its untrained self and predicting the prevalence; cannot be told apart from b; is worse "
        "than handcrafted features.",
        "b cannot be told apart from a.",
    )
    verdict = made.judged(made.numbers(), differences=differences).result.verdict
    assert verdict[0].startswith("a beats handcrafted features; cannot")


# ---------------------------------------------------------------- windows, without Ray


def told(table: pa.Table) -> Any:
    return SimpleNamespace(table=table)


def test_a_window_counts_where_every_encoder_takes_it_and_each_ones_refusals_are_told() -> None:
    views = {
        "a": told(pa.table({"verdict": ["ok", "flat", "ok", "nan"]})),
        "b": told(pa.table({"verdict": ["ok", "ok", "absent", "flat"]})),
    }
    places = choose.Places(views["a"], views, None)
    assert places.verdicts() == ["ok", "flat", "absent", "nan"]
    assert places.refused_by() == {"a": {"flat": 1, "nan": 1}, "b": {"absent": 1, "flat": 1}}


def test_windows_of_both_signals_are_found_again_among_the_rows_of_one(
    ray_session: Any, paired_corpus: str, pair_bundle: str
) -> None:
    corpus, encoder = open_corpus(paired_corpus), BundleEncoder(pair_bundle, "ppg+ecg")
    index = build(corpus, WindowSpec(signals=encoder.signals, window_s=10))
    for number, signal in enumerate(encoder.signals):
        alone = choose.relocated(index, WindowSpec(signals=(signal,), window_s=10), judged=True)
        ok = np.flatnonzero(np.array(alone.table["verdict"].to_pylist()) == "ok")
        assert len(ok) > 100 and alone.table["start_s"].equals(index.table["start_s"])
        rows = ok[:: max(1, len(ok) // 40)]
        np.testing.assert_allclose(
            alone.load(rows)[signal.modality], index.load(rows)[signal.modality], atol=1e-5
        )
        assert number < 2


def test_the_window_of_an_alarm_ends_when_it_sounds() -> None:
    task = load_task("alarm_truth")
    assert (task.until_s, task.window_s, task.hop_s) == (300, 10, None)
    table = pa.Table.from_pylist(
        [{"subject": "s", "record": "r", "name": "alarm_true", "value": 1.0}], schema=LABELS
    )
    rows = pa.table({"subject": ["s"], "record": ["r"], "start_s": [290.0], "verdict": ["ok"]})
    index = SimpleNamespace(table=rows, corpus=SimpleNamespace(uri="c"))
    places = choose.Places(index, {"a": index}, None)  # type: ignore[arg-type]
    windows = choose.choose_windows(places, task, table)
    assert windows.start_s + task.window_s == [300.0] and windows.target == [1.0]


def test_a_task_about_a_signal_refuses_an_encoder_that_does_not_take_it(pair_bundle: str) -> None:
    task = load_task("heart_rate").model_copy(update={"modality": "ppg"})
    entrant = Entrant(BundleEncoder(pair_bundle, "ecg"), "a", "a", "b", "b")
    with pytest.raises(PlethoraError, match=r"about ppg itself, mode 'ecg' of .* takes ecg"):
        check_takes([entrant], task)
    check_takes([entrant], load_task("heart_rate"))
