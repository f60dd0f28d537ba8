"""tables.csv and metrics.json: every figure once, with its task's warnings."""

import csv
import json
from io import StringIO

import numpy as np
import pytest

from cluster import storage
from finetune.reports import bloodpressure, longform
from tests.finetune import told


def lines(results: dict) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(longform.as_csv(results))))


def test_every_interval_of_the_results_is_a_line_of_the_csv() -> None:
    pair = told.numbers()
    told.everything(pair[0])
    results, _ = told.comparison_of(pair, told.binary())
    found = lines(results)
    for table in results["tasks"]:
        mine = [line for line in found if line["task"] == table["task"]["name"]]
        for row in table["rows"]:
            for metric, figures in row["metrics"].items():
                (line,) = (
                    x for x in mine if (x["table"], x["row"], x["metric"]) == ("main", row["name"], metric)
                )
                for end in ("value", "low", "high"):
                    given = float(line[end]) if line[end] else float("nan")
                    np.testing.assert_equal(given, figures[end])
        pairs = {(x["row"], x["against"]): float(x["p"]) for x in mine if x["table"] == "difference"}
        assert pairs == {
            (e, n): d["p"] for e, others in table["differences"].items() for n, d in others.items()
        }
    rows = len(told.ROWS)
    count = {name: sum(x["table"] == name for x in found) for name in {x["table"] for x in found}}
    assert count["few_shot"] == 3 * rows and count["subgroup"] == 2 * rows and count["subgroup gap"] == rows
    assert count["published protocol (leaks)"] == rows and count["label"] == 2 and count["delong"] == 1
    assert {x["group"]: x["value"] for x in found if x["table"] == "labels above"} == {"0.7": "1", "0.8": "0"}


def test_every_line_carries_the_warnings_and_errors_their_unit() -> None:
    pair = told.numbers()
    pair[0]["warnings"] = ["one", "two"]
    results, _ = told.comparison_of(pair, told.binary())
    for line in lines(results):
        assert line["warnings"] == ("one; two" if line["task"] == "sbp" else "")
        assert line["unit"] == ("mmHg" if line["metric"] in ("mae", "rmse") else "")


def test_a_blood_pressure_card_is_told_part_by_part() -> None:
    table, outcome = told.numbers()
    free = bloodpressure.agreement(outcome.windows.target, outcome.predicted["a"], outcome.windows.subject)
    table["blood_pressure"] = {
        "a": {"free": free, "calibrated": {"why_not": "none"}, "stages": [{"name": "X"} | free]}
    }
    results, _ = told.comparison_of((table, outcome))
    found = [line for line in lines(results) if line["table"] == "blood pressure"]
    assert {line["group"] for line in found} == {"no calibration", "stage: X"}
    assert {line["metric"]: line["value"] for line in found}["bhs"] == free["bhs"]
    assert float(next(x["value"] for x in found if x["metric"] == "sd")) == pytest.approx(free["sd"])


def test_metrics_json_holds_the_same_by_name_and_says_which_rows_are_missing() -> None:
    results, _ = told.comparison_of(told.numbers(), told.binary())
    found = json.loads(storage.json_bytes(longform.as_json(results)))
    assert list(found["tasks"]) == ["sbp", "sex"] and found["version"] == 1
    one, table = found["tasks"]["sbp"], results["tasks"][0]
    assert one["missing"] == {"demographics": "the corpus has no age or sex"}
    for row in table["rows"]:
        if row["metrics"]:
            assert one["rows"][row["name"]]["mae"] == row["metrics"]["mae"]
    assert one["differences"]["a"]["mean"] == table["differences"]["a"]["mean"]
    assert "few_shot" not in one and one["main"] == "mae"
