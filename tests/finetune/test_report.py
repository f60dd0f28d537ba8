"""The words under a table claim what the intervals allow, no more."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.reports import plots, report


def results(low: float, high: float, **changed: Any) -> dict[str, Any]:
    found = {"value": 3.0, "low": 2.0, "high": 4.0}
    shown = {m: found for m in ("mae", "rmse", "r2", "pearson")}
    names = ("encoder", "untrained", "handcrafted", "demographics", "mean")
    rows = [{"name": n, "label": n.title(), "metrics": shown, "note": ""} for n in names]
    difference = {"value": (low + high) / 2, "low": low, "high": high, "p": 0.04}
    out = {
        "task": {"title": "Heart rate", "unit": "bpm", "window_s": 30.0, "pieces": 1,
                 "metrics": ["mae", "rmse", "r2", "pearson"]},
        "bundle": {"uri": "b", "mode": "ppg", "dim": 4}, "corpus": {"uri": "c", "source": "somewhere"},
        "overlap": {"kind": "none", "why": ["same key"], "shared_subjects": 0,
                    "policy": "unseen", "left_out": {"subjects": 0, "windows": 0}},
        "counts": {"subjects": 4, "records": 5, "windows": 60}, "refused": {"no label": 3},
        "protocol": {"folds": 4, "folds_asked": 5, "seed": 0, "draws": 2000, "handcrafted": ["a"],
                     "demographics": ["age"]},
        "rows": rows, "differences": {n: difference for n in names[1:]},
    } | changed  # fmt: skip
    return out | {"verdict": report.verdicts(out)}


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-2.0, -0.5, "The encoder beats handcrafted features ("),
        (-2.0, 0.5, "does not beat handcrafted features: they cannot be told apart ("),
        (0.5, 2.0, "does not beat handcrafted features: it is worse ("),
    ],
)
def test_a_win_is_claimed_only_where_the_whole_interval_is_below_zero(
    low: float, high: float, said: str
) -> None:
    assert any(said in sentence for sentence in results(low, high)["verdict"])
    assert len(results(low, high)["verdict"]) == 4


def test_a_row_without_figures_says_why_and_stays_in_the_table() -> None:
    told = results(-2, -1)
    row = told["rows"][3]
    row["metrics"], row["note"] = {}, "the corpus has no age or sex"
    del told["differences"]["demographics"]
    told["verdict"] = report.verdicts(told)
    assert "Not compared with demographics alone: the corpus has no age or sex." in told["verdict"]
    for text in (report.terminal(told), report.markdown(told)):
        assert "Demographics: the corpus has no age or sex" in text


def test_refusals_and_lowered_folds_are_stated() -> None:
    text = report.terminal(results(-2, -1))
    assert "4 subjects, 5 records, 60 windows of 30 s" in text
    assert "Windows refused: no label 3" in text
    assert "(5 folds were asked for: there are only 4 subjects)" in text


def test_unknown_overlap_is_never_called_none() -> None:
    overlap = results(-2, -1)["overlap"] | {"kind": "unknown", "why": ["CinC publishes no ids"]}
    text = report.terminal(results(-2, -1, overlap=overlap))
    assert "UNKNOWN (CinC publishes no ids)" in text
    assert "pretraining: none" not in text


def test_evaluating_seen_subjects_carries_a_warning() -> None:
    overlap = results(-2, -1)["overlap"] | {"kind": "shared", "shared_subjects": 3, "policy": "all"}
    assert "WARNING: subjects that pretraining saw are NOT left out (3 known)" in report.terminal(
        results(-2, -1, overlap=overlap)
    )
    left = overlap | {"policy": "unseen", "left_out": {"subjects": 3, "windows": 40}}
    text = report.terminal(results(-2, -1, overlap=left))
    assert "Left out, seen by pretraining: 3 subjects, 40 windows" in text and "WARNING" not in text


def test_the_terminal_table_is_aligned_and_narrow_enough() -> None:
    lines = report.terminal(results(-2, -1)).splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("─")]
    table = lines[rules[0] : rules[2] + 1]
    assert max(map(len, table)) == len(lines[rules[0]]) <= 120
    assert len({line.index("3.00 [") for line in table if "3.00 [" in line}) == 1


def test_numbers_that_do_not_exist_are_dashes() -> None:
    assert report.number(float("nan")) == report.number(None) == "–"  # noqa: RUF001
    assert report.with_interval({"value": float("nan"), "low": 0, "high": 0}) == "–"  # noqa: RUF001


def test_of_classes_a_higher_auroc_wins_and_the_curve_is_drawn(tmp_path: Path) -> None:
    found = {"value": 0.8, "low": 0.7, "high": 0.9}
    shown = dict.fromkeys(("auroc", "auprc", "balanced_accuracy", "f1"), found)
    told = results(0.05, 0.2)
    told["task"] |= {"kind": "classification", "main": "auroc", "unit": "", "metrics": list(shown),
                     "classes": ["not it", "it"], "until_s": 300.0}  # fmt: skip
    told["counts"]["classes"] = {"not it": 40, "it": 20}
    for row in told["rows"]:
        row["metrics"] = shown
    said = report.verdicts(told)
    assert all(sentence.startswith("The encoder beats ") for sentence in said)
    assert any("predicting the prevalence (AUROC 0.80 against 0.80, difference" in s for s in said)
    told["verdict"] = said
    text = report.markdown(told)
    assert "Classes: 40 not it, 20 it" in text and "plots/roc.png" in text and "predicted.png" not in text
    rng = np.random.default_rng(0)
    predicted = {row["name"]: rng.uniform(size=(60, 1)) for row in told["rows"]}
    plots.draw_all(told, np.repeat([0.0, 1.0], [40, 20]), np.arange(60), predicted, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["roc.png"]


def test_a_roc_curve_takes_equal_scores_in_one_step() -> None:
    hot, score = np.array([True, False, True, False]), np.array([3.0, 1.0, 1.0, 0.0])
    false, true = plots.roc_points(hot, score)
    assert false.tolist() == [0, 0, 0.5, 1] and true.tolist() == [0, 0.5, 1, 1]


def test_a_report_links_only_pictures_that_its_kind_of_task_gets() -> None:
    told = results(-2, -1)
    assert "plots/bland_altman.png" in report.markdown(told)
    told["task"] |= {"kind": "retrieval"}
    assert "plots/" not in report.markdown(told)


def test_what_a_table_must_carry_stands_right_below_it() -> None:
    told = results(-2, -1, warnings=["3 subjects have no label"], adapted=["a: 3 pieces of 10 s each"])
    lines = report.terminal(told).splitlines()
    assert lines[lines.index("WARNING: 3 subjects have no label") - 1].startswith("─")
    assert "a: 3 pieces of 10 s each" in lines
    assert "- WARNING: 3 subjects have no label" in report.markdown(told)
