"""Fitted on one corpus, tested on another: what is fitted where, and what the verdict says."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from datasets.synthetic import synthesize
from finetune.commands.shift import Shift, run
from finetune.encoders.opening import opened
from finetune.evaluation.data import TaskData, task_data
from finetune.evaluation.entrant import entrants_of
from finetune.evaluation.options import Options
from finetune.evaluation.results import Counts, Protocol
from finetune.evaluation.shift import ShiftResult, ShiftRow, Side, outcome
from finetune.evaluation.transfer import SharedPeople, alike, same_classes, shared_demographics
from finetune.metrics import Difference, Interval
from finetune.reports import shift_report
from finetune.reports.sheet import Sheet, terminal, write
from finetune.task import load_task
from tests.finetune import made
from tests.finetune.run import compare

SEX = (
    'name = "sex"\ntitle = "Sex"\nkind = "binary"\nlabel = "sex"\npositive = "F"\n'
    'window_s = 30\nhop_s = 30\nmetrics = ["auroc", "auprc"]\n'
)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight other people, 20 minutes, a fifth of them in motion."""
    out = str(tmp_path_factory.mktemp("moving") / "synthetic")
    synthesize(out, hours=0.33, subjects=8, seed=5, rates={"ppg": 100.0}, motion=0.2)
    return out


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "shifted"


@pytest.fixture(scope="module")
def sheet(ray_session: Any, bundle: str, corpus: str, moving: str, out: Path) -> Sheet:
    task = out.parent / "sex.toml"
    task.write_text(SEX)
    tasks = ["heart_rate", str(task)]
    return run(Shift([bundle], corpus, moving, tasks, str(out), options(out.parent)))


@pytest.fixture(scope="module")
def results(sheet: Sheet) -> dict[str, Any]:
    return write(sheet)


def options(folder: Path) -> Options:
    return Options(cache=str(folder / "cache"))


def both(bundle: str, corpus: str, other: str, cache: Path) -> tuple[TaskData, TaskData]:
    entrants, asked = entrants_of([opened(bundle)]), [(load_task("heart_rate"), [])]
    found = [task_data(entrants, open_corpus(c), asked, options(cache))[0] for c in (corpus, other)]
    return found[0], found[1]


def rows(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in table["rows"]}


def test_a_figure_where_it_was_fitted_is_the_one_that_compare_gives(
    results: dict[str, Any], bundle: str, corpus: str, moving: str, out: Path, tmp_path: Path
) -> None:
    found, cache = rows(results["tasks"][0]), out.parent / "cache"
    for where, uri in (("inside", corpus), ("refitted", moving)):
        how = {"few_shot": False, "cache": str(cache)}
        alone = rows(compare([bundle], uri, ["heart_rate"], str(tmp_path / where), **how)["tasks"][0])
        del alone["tracker"]  # fits nothing that could be carried over
        assert [n for n in alone if n != "mean"] == [n for n in found if n != "mean"]
        for name in alone:
            for metric, expected in alone[name]["metrics"].items():
                figure = found[name][where][metric]
                assert figure["value"] == pytest.approx(expected["value"], nan_ok=True)
                if where == "inside":
                    assert figure == pytest.approx(expected, nan_ok=True)


def test_the_probe_is_scikit_learns_on_the_first_corpus_alone(
    ray_session: Any, results: dict[str, Any], bundle: str, corpus: str, moving: str, out: Path
) -> None:
    here, there = both(bundle, corpus, moving, out.parent)
    table = pq.read_table(out / "predictions.parquet").to_pandas()
    table = table[table["task"] == "heart_rate"]
    assert np.array_equal(table["start_s"], there.windows.start_s)
    assert np.allclose(table["mean"], here.windows.target.mean())
    x, y = here.vectors["tiny (ppg)"].astype(float), here.windows.target
    models = [make_pipeline(StandardScaler(), Ridge(alpha=a)) for a in (0.1, 1, 10, 100)]
    inner = list(GroupKFold(5, shuffle=True, random_state=0).split(x, y, here.windows.subject))
    errors = [np.abs(cross_val_predict(m, x, y, cv=inner) - y).mean() for m in models]
    expected = models[int(np.argmin(errors))].fit(x, y).predict(there.vectors["tiny (ppg)"].astype(float))
    assert np.allclose(table["tiny (ppg)"], expected, rtol=1e-4)
    own = rows(results["tasks"][0])["tiny (ppg)"]["metrics"]["mae"]
    assert own["value"] == pytest.approx(np.abs(expected - there.windows.target).mean(), rel=1e-4)
    assert own["low"] < own["value"] < own["high"]


def test_loss_is_the_figure_there_less_the_figure_where_fitted(results: dict[str, Any]) -> None:
    for table in results["tasks"]:
        main = table["task"]["main"]
        for row in table["rows"]:
            if row["note"]:
                continue
            loss = row["loss"]
            assert loss["value"] == pytest.approx(
                row["metrics"][main]["value"] - row["inside"][main]["value"]
            )
            assert loss["low"] <= loss["value"] <= loss["high"]
            if row["refitted"]:
                apart = row["metrics"][main]["value"] - row["refitted"][main]["value"]
                assert row["fitting_there"]["value"] == pytest.approx(apart)
    assert results["tasks"][0]["between"]["kind"] == "none"


def test_everything_is_written(sheet: Sheet, results: dict[str, Any], out: Path) -> None:
    names = {"shift.md", "report.html", "results.json", "predictions.parquet", "shift.png"}
    assert {p.name for p in out.iterdir()} == names and results["out"] == str(out)
    verdicts = [line for task in results["tasks"] for line in task["verdict"]]
    page = (out / "shift.md").read_text()
    for words in ("shift loss", "8 subjects", "Sex", "not F", "refitted there", *verdicts):
        assert words in page
    printed = terminal(sheet)
    assert "People in both corpora: none" in printed
    assert "Heart rate: from synthetic to synthetic" in printed


@pytest.mark.parametrize(
    ("difference", "loss", "words"),
    [
        ((1.0, 0.5, 1.5), (9.0, 8.0, 9.9), "FAILS .*worse than handcrafted features .*; it loses \\+9.00"),
        (
            (-1.0, -1.5, -0.5),
            (9.0, 8.0, 9.9),
            "FAILS on X \\(MAE, bpm\\): it loses \\+9.00 \\[\\+8.00, \\+9.90\\] .*the mean loses \\+7.00",
        ),
        ((1.0, 0.5, 1.5), (0.1, -2.0, 2.0), "FAILS .*worse than handcrafted features \\(.*\\)\\.$"),
        ((1.0, -0.5, 2.5), (0.1, -2.0, 2.0), "no failure .*beats no baseline"),
        ((-1.0, -1.5, -0.5), (-5.0, -7.0, -3.0), "no failure .*beats handcrafted features"),
    ],
)
def test_a_claim_fails_where_a_baseline_is_better_or_the_loss_is_sure(
    difference: tuple, loss: tuple, words: str
) -> None:
    def mae(value: float) -> dict[str, Interval]:
        return {"mae": made.interval(value)}

    side = Side(replace(made.CORPUS, name="X"), Counts(60), made.NO_OVERLAP, {}, ())
    result = ShiftResult(
        task=load_task("heart_rate"),
        classes=(),
        rows=(
            ShiftRow("e", "E", mae(9.0), loss=Difference(*loss, p=0.01)),
            ShiftRow("handcrafted", "Handcrafted features", mae(8.0)),
            ShiftRow("mean", "Predict the mean", mae(7.0), loss=Difference(7.0, 6.0, 8.0, 0.01)),
        ),
        differences={"e": {"handcrafted": Difference(*difference, p=0.01)}},
        added={},
        fit=side,
        test=side,
        between=SharedPeople("none", "same key"),
        warnings=(),
        protocol=Protocol(5, 0, 2000),
    )
    (sentence,) = shift_report.verdicts(result)
    assert re.search(words, sentence), sentence


def test_demographics_count_only_where_both_corpora_know_them(
    ray_session: Any, bundle: str, corpus: str, moving: str, out: Path
) -> None:
    here, there = both(bundle, corpus, moving, out.parent)
    there.windows.record = here.windows.record[: len(there.windows.record)].copy()  # the same names, others
    ages = {}
    for of, shift_by in ((here, 0.0), (there, 40.0)):
        of.labels = here.labels
        table = of.labels.to_pandas()
        age = table["name"] == "age"
        table.loc[age, "value"] += shift_by
        of.labels = of.labels.from_pandas(table, schema=of.labels.schema, preserve_index=False)
        known = dict(zip(table["record"][age], table["value"][age], strict=True))
        ages[id(of)] = [known[r] for r in of.windows.record]
    found = shared_demographics(here, there)
    assert np.allclose(found[:, 0], [*ages[id(here)], *ages[id(there)]]) and found.shape[1] == 2
    there.labels = there.labels.filter(np.asarray(there.labels["name"]) != "age")
    assert shared_demographics(here, there).shape[1] == 1
    there.labels = there.labels.filter(np.asarray(there.labels["name"]) != "sex")
    assert shared_demographics(here, there).shape == (len(found), 0)


def test_what_cannot_be_shifted_is_one_clear_line(
    ray_session: Any, bundle: str, corpus: str, moving: str, out: Path, tmp_path: Path
) -> None:
    same = str(tmp_path / "same")
    synthesize(same, hours=0.1, subjects=3, seed=5, rates={"ppg": 100.0})
    for given, tasks, words in (
        ((moving, moving), ["heart_rate"], "are one corpus .*use compare"),
        ((moving, same), ["heart_rate"], "share 3 subjects"),
        ((corpus, moving), [], "names no task"),
        ((corpus, moving), ["identity"], "is retrieval: shift takes numbers and classes"),
    ):
        with pytest.raises(PlethoraError, match=words):
            run(Shift([bundle], *given, tasks, str(tmp_path / "out"), options(tmp_path)))
    here, there = both(bundle, corpus, moving, out.parent)
    two = np.flatnonzero(np.isin(there.windows.subject, np.unique(there.windows.subject)[:2]))
    few = replace(there, windows=there.windows.at(two), vectors={n: x[two] for n, x in there.vectors.items()})
    with pytest.raises(PlethoraError, match=r"2 subjects of .* are left .* at least 3"):
        outcome([], here, few, SharedPeople("none", ""), options(tmp_path))
    sexes = load_task("sex")
    labels = open_corpus(corpus).labels(["sex"])
    text = np.where(np.asarray(labels["text"]) == "F", "female", "M")
    other = labels.set_column(labels.column_names.index("text"), "text", [text.tolist()])
    plain = sexes.model_copy(update={"kind": "multi-class", "positive": None})
    pair = replace(here, task=plain, labels=labels), replace(there, task=plain, labels=other)
    with pytest.raises(PlethoraError, match=r"has the classes F, M in .* and M, female in .*: a probe"):
        same_classes(*pair)


def test_a_task_is_asked_alike_of_both(corpus: str, moving: str) -> None:
    here, there = open_corpus(corpus), open_corpus(moving)
    pressure = load_task("sbp")
    one, other = alike(pressure, here, there, None)
    assert one[0].window_s == other[0].window_s == 10 and one[0].level == other[0].level == "window"
    assert alike(pressure, here, there, 4.0)[1][0].window_s == 4
    age = alike(load_task("age"), here, there, None)
    assert age[0][0].level == age[1][0].level == load_task("age").level
