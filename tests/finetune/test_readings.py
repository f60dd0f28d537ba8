"""A reading is a row of a table: which windows and records share one, and that no two are averaged."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datasets.schema import LABELS
from finetune.evaluation import assess, bloodpressure, choose, groups, people
from finetune.evaluation.readings import reading_names, units
from finetune.evaluation.table import Options, Outcome, outcome
from finetune.reports import task_section
from finetune.task import Task, load_task
from tests.finetune import made
from tests.finetune.test_tasks import entrant

SBP = load_task("sbp")
Row = tuple[str, str, float | None, float | None, Any]  # subject, record, start, end, value


def labelled(rows: list[Row], name: str = "sbp") -> pa.Table:
    lines = [
        {
            "subject": s,
            "record": r,
            "start_s": a,
            "end_s": b,
            "name": name,
            "value": None if isinstance(v, str) else v,
            "text": v if isinstance(v, str) else None,
        }
        for s, r, a, b, v in rows
    ]
    return pa.Table.from_pylist(lines, schema=LABELS)


def chosen(
    task: Task, labels: pa.Table, places: list[tuple[str, str, float]], **manifest: Any
) -> choose.Windows:
    """The task's windows at (subject, record, start)."""
    rows = [{"subject": s, "record": r, "start_s": at, "verdict": "ok"} for s, r, at in places]
    index: Any = SimpleNamespace(
        table=pa.Table.from_pylist(rows), corpus=SimpleNamespace(uri="made up", manifest=manifest)
    )
    return choose.choose_windows(choose.Places(index, {"a": index}, None), task, labels, people.NOBODY, "b")


def judged(
    task: Task, values: dict[str, list[Any]], windows: int = 2, **manifest: Any
) -> tuple[dict[str, float], Outcome]:
    """{row: MAE or AUROC} and the outcome on people whose records have these values, for a vector that knows
    nothing about them.
    """
    rows: list[Row] = [(s, f"{s}_{k}", None, None, v) for s, own in values.items() for k, v in enumerate(own)]
    labels = labelled(rows, task.label)
    places = [(s, r, task.window_s * k) for s, r, *_ in rows for k in range(windows)]
    found = chosen(task, labels, places, **manifest)
    x = np.random.default_rng(0).normal(size=(len(found.subject), 2))
    one = outcome([entrant()], task, labels, found, {"a": x}, {}, Options(few_shot=False, folds=4))
    return {r.name: r.metrics[task.main].value for r in one.result.rows if r.metrics}, one


# ---------------------------------------------------------------- judged


def test_ten_readings_of_a_person_are_ten_rows_and_the_mean_is_as_wrong_as_it_is() -> None:
    values = {f"s{i}": [100.0 + 8 * k for k in range(10)] for i in range(8)}
    figures, found = judged(SBP, values)
    assert len(found.windows.target) == 80 == found.result.to_json()["counts"]["rows"]
    assert sorted(set(found.windows.target.tolist())) == values["s0"]
    assert figures["mean"] == pytest.approx(20)  # mean of |reading − 136|
    assert found.result.to_json()["counts"]["readings"] == {"fewest": 10, "most": 10}
    card = bloodpressure.cards(SBP, found.windows, found.predicted, LABELS.empty_table())["mean"]
    assert (card.free.values, card.free.subjects, card.readings) == (80, 8, 80)
    calibrated = card.calibrated.calibrated
    assert card.calibrated.why_not == "" and calibrated is not None and calibrated.values == 72
    assert calibrated.mae == pytest.approx(np.mean([8 * k for k in range(1, 10)]))


def test_intervals_are_over_people_however_many_readings_they_have() -> None:
    rng = np.random.default_rng(3)
    apart = [100.0 + 20 * float(x) for x in rng.normal(size=12)]
    few = judged(SBP, {f"s{i:02}": [x, x + 1] for i, x in enumerate(apart)})[1]
    many = judged(SBP, {f"s{i:02}": [x, x + 1] * 8 for i, x in enumerate(apart)}, readings={"sbp": "record"})[
        1
    ]
    widths = []
    for found in (few, many):
        mae = next(r for r in found.result.to_json()["rows"] if r["name"] == "mean")["metrics"]["mae"]
        widths.append(mae["high"] - mae["low"])
    assert len(many.windows.target) == 8 * len(few.windows.target)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_records_of_one_reading_are_one_row_as_in_ppg_bp() -> None:
    _, found = judged(SBP, {f"s{i}": [110.0 + 3 * i] * 3 for i in range(9)})
    assert len(found.windows.target) == 9
    each = found.windows.target - 110
    np.testing.assert_array_equal(each, 3 * np.arange(9))
    card = bloodpressure.cards(SBP, found.windows, found.predicted, LABELS.empty_table())["mean"]
    assert card.calibrated.why_not and card.readings == 9


def test_the_facts_say_how_many_readings_a_person_has() -> None:
    _, found = judged(SBP, {"a": [100.0], "b": [120.0, 121.0, 140.0], "c": [99.0, 98.0]})
    result = replace(found.result, corpus=made.CORPUS, overlap=made.NO_OVERLAP)
    line = next(line for line in task_section.facts(result) if line.startswith("One prediction a reading"))
    assert line.endswith(": 6; readings of a subject: 1 to 3")


def test_a_persons_different_ages_and_classes_are_rows_of_their_own_and_a_line_says_so() -> None:
    age = load_task("age")
    values: dict[str, list[Any]] = {f"s{i}": [40.0 + i] * 2 for i in range(6)} | {"s6": [45.0, 46.0]}
    _, found = judged(age, values)
    assert len(found.windows.target) == 8 and {45.0, 46.0} <= set(found.windows.target.tolist())
    assert 45.5 not in found.windows.target
    (line,) = groups.several_values(found.windows, age, [])
    assert line.startswith("1 of 7 subjects have more than one value of label age (one has 45, 46)")
    sick = load_task("hypertension")
    stages: dict[str, list[Any]] = {f"s{i}": [("Normal", "hypertension")[i % 2]] * 3 for i in range(8)}
    stages["s8"] = ["Normal", "hypertension", "hypertension"]  # a vote would make it hypertension
    _, found = judged(sick, stages)
    assert found.windows.target[found.windows.subject == "s8"].tolist() == [0, 1]
    (line,) = groups.several_values(found.windows, sick, ["no", "yes"])
    assert "(one has no, yes)" in line
    assert (
        groups.several_values(judged(sick, stages | {"s8": ["Normal"]})[1].windows, sick, ["no", "yes"]) == []
    )


def test_an_adapter_is_judged_reading_by_reading_too() -> None:
    y, who = np.array([100.0, 100, 140, 90]), np.array(list("aaab"))
    record = np.array(["a1", "a1", "a2", "b1"])
    for level in ("reading", "subject", "record"):
        target, p, subject = assess.pooled(level, y, np.array([1.0, 3, 5, 7]), who, record, record)
        assert (target.tolist(), p.tolist(), subject.tolist()) == ([100, 140, 90], [2, 5, 7], ["a", "a", "b"])


# ---------------------------------------------------------------- which windows share a reading


def names(rows: list[Row], places: list[tuple[str, str, float]], **manifest: Any) -> list[str]:
    found = chosen(SBP, labelled(rows), places, **manifest)
    assert found.reading is not None and len(found.reading) == len(places)
    return found.reading.tolist()


@pytest.mark.parametrize(
    ("known", "values", "rows"),
    [
        ("record", [120.0, 120, 120], 3),  # three cuff readings, equal by chance
        ("record", [120.0, 120, 130], 3),
        ("value", [120.0, 120, 130], 2),  # two rows of the sheet, one of which serves two records
        (None, [120.0, 120, 120], 1),  # a corpus that does not say: one value, one reading
        (None, [120.0, 120, 130], 3),
    ],
)
def test_which_records_share_a_reading(known: str | None, values: list[float], rows: int) -> None:
    told: list[Row] = [("s", f"r{k}", None, None, v) for k, v in enumerate(values)]
    places = [("s", f"r{k}", at) for k in range(3) for at in (0.0, 10.0)]
    manifest = {} if known is None else {"readings": {"sbp": known}}
    windows = chosen(SBP, labelled(told), places, **manifest)
    assert windows.reading is not None
    first, group = units("reading", windows.target, windows.subject, windows.record, windows.reading)
    assert len(first) == rows and group.tolist() == sorted(group.tolist())
    assert set(windows.target[first]) == set(values)


def test_windows_under_one_label_of_a_stretch_are_one_reading_and_two_stretches_are_two() -> None:
    told: list[Row] = [
        ("s", "r", 0.0, 33.0, 120.0),
        ("s", "r", 33.0, 60.0, 120.0),
        ("s", "r", 60.0, 90.0, 135.0),
    ]
    found = names(told, [("s", "r", 10.0 * k) for k in range(9)])
    assert len(set(found)) == 3
    assert found[0] == found[1] == found[2] == found[2] and found[4] == found[5]
    assert found[3] == found[4]  # 3 s of the first, 7 of the second
    assert found[6] == found[7] == found[8] != found[5]


def test_a_window_belongs_to_the_reading_that_gave_its_target() -> None:
    told: list[Row] = [("s", "r", 0.0, 16.0, 120.0), ("s", "r", 16.0, 60.0, 130.0)]
    windows = chosen(SBP, labelled(told), [("s", "r", 10.0 * k) for k in range(4)])
    assert windows.target.tolist() == [120, 120, 130, 130]
    assert windows.reading is not None and len(set(windows.reading[:2])) == len(set(windows.reading)) - 1 == 1


def test_readings_of_two_people_are_never_one() -> None:
    told: list[Row] = [(s, s + r, None, None, 120.0) for s in "ab" for r in "12"]
    table = labelled(told)
    record, who = np.array([r for _, r, *_ in told]), np.array([s for s, *_ in told])
    found = reading_names(table, record, who, np.zeros(4), np.full(4, 120.0), SBP, {})
    assert len(set(found)) == 2 and found[0] == found[1] and found[2] == found[3]


def test_several_labels_of_a_window_keep_people_with_other_labels_apart() -> None:
    target = np.array([[1.0, 0], [1, 0], [1, 1]])
    first, group = units("subject", target, np.array(list("aaa")), np.array(list("xyz")))
    assert first.tolist() == [0, 2] and group.tolist() == [0, 0, 1]
