"""tables.csv and metrics.json: every figure once, with its task's warnings."""

import csv
import json
from collections import Counter
from io import StringIO

import numpy as np
import pytest

from cluster import storage
from finetune.evaluation import bloodpressure
from finetune.evaluation.results import Calibrated, PressureCard, Stage, TaskResult, to_json
from finetune.reports import longform
from tests.finetune import made


def lines(*results: TaskResult) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(longform.as_csv(results))))


def test_every_interval_of_the_results_is_a_line_of_the_csv() -> None:
    results = (made.everything(made.numbers()).result, made.binary().result)
    found = lines(*results)
    for result in results:
        mine = [line for line in found if line["task"] == result.task.name]
        for row in result.rows:
            for metric, interval in row.metrics.items():
                (line,) = (
                    x for x in mine if (x["table"], x["row"], x["metric"]) == ("main", row.name, metric)
                )
                for end in ("value", "low", "high"):
                    given = float(line[end]) if line[end] else float("nan")
                    np.testing.assert_equal(given, getattr(interval, end))
        pairs = {(x["row"], x["against"]): float(x["p"]) for x in mine if x["table"] == "difference"}
        assert pairs == {(e, n): d.p for e, others in result.differences.items() for n, d in others.items()}
    rows, count = len(made.ROWS), Counter(line["table"] for line in found)
    assert count["few_shot"] == 3 * rows and count["subgroup"] == 2 * rows and count["subgroup gap"] == rows
    assert count["published protocol (leaks)"] == rows and count["label"] == 2 and count["delong"] == 1
    assert {x["group"]: x["value"] for x in found if x["table"] == "labels above"} == {"0.7": "1", "0.8": "0"}


def test_every_line_carries_the_warnings_and_errors_their_unit() -> None:
    warned = made.judged(made.numbers(), warnings=("one", "two"))
    for line in lines(warned.result, made.binary().result):
        assert line["warnings"] == ("one; two" if line["task"] == "sbp" else "")
        assert line["unit"] == ("mmHg" if line["metric"] in ("mae", "rmse") else "")


def test_a_blood_pressure_card_has_lines_for_each_of_its_parts() -> None:
    outcome = made.numbers()
    windows = outcome.windows
    free = bloodpressure.agreement(windows.target, outcome.predicted["a"], windows.subject)
    card = PressureCard("SBP", free, Calibrated("none"), (Stage(**vars(free), name="X"),), "x", 72)
    result = made.judged(outcome, blood_pressure={"a": card}).result
    found = [line for line in lines(result) if line["table"] == "blood pressure"]
    assert {line["group"] for line in found} == {"no calibration", "stage: X"}
    assert {line["metric"]: line["value"] for line in found}["bhs"] == free.bhs
    assert float(next(x["value"] for x in found if x["metric"] == "sd")) == pytest.approx(free.sd)


def test_metrics_json_holds_the_same_by_name_and_says_which_rows_are_missing() -> None:
    results = [made.numbers().result, made.binary().result]
    found = json.loads(storage.json_bytes(longform.as_json(results, made.CORPUS, made.INFO)))
    assert list(found["tasks"]) == ["sbp", "sex"] and found["version"] == 1
    one, result = found["tasks"]["sbp"], results[0]
    assert one["missing"] == {"demographics": "the corpus has no age or sex"}
    for row in result.rows:
        if row.metrics:
            assert one["rows"][row.name]["mae"] == to_json(row.metrics["mae"])
    assert one["differences"]["a"]["mean"] == to_json(result.differences["a"]["mean"])
    assert "few_shot" not in one and one["main"] == "mae"
