"""Task files, labels → one target a window, demographics → columns."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import PlethoraError
from datasets.schema import LABELS
from finetune import task as tasks


def labels(*rows: tuple) -> pa.Table:
    """Rows of (record, start, end, name, value or text, unit)."""
    return pa.Table.from_pylist(
        [
            {
                "subject": "s" + r,
                "record": r,
                "start_s": a,
                "end_s": b,
                "name": name,
                "unit": unit,
                "value": None if isinstance(v, str) else v,
                "text": v if isinstance(v, str) else None,
            }
            for r, a, b, name, v, unit in rows
        ],
        schema=LABELS,
    )


def seconds(record: str, values: list[float | None], start: float = 0.0) -> list[tuple]:
    return [(record, start + i, start + i + 1, "hr", v, "bpm") for i, v in enumerate(values)]


@pytest.fixture
def task() -> tasks.Task:
    return tasks.load_task("heart_rate").model_copy(update={"window_s": 10.0, "hop_s": 10.0})


def test_the_target_is_the_median_of_the_seconds_inside_the_window(task) -> None:
    values = [60.0] * 10 + [70.0, 71, 72, 73, 74, 75, 76, 77, 78, 200]
    target, refusal = tasks.window_targets(labels(*seconds("a", values)), ["a", "a"], [0.0, 10.0], task)
    assert target.tolist() == [60, 74.5]
    assert refusal.tolist() == ["", ""]


def test_labels_count_by_the_time_that_they_share_with_the_window(task) -> None:
    table = labels(("a", 0.0, 6.0, "hr", 60.0, "bpm"), ("a", 6.0, 30.0, "hr", 90.0, "bpm"))
    target, _ = tasks.window_targets(table, ["a"] * 3, [0.0, 2.0, 20.0], task)
    assert target.tolist() == [60, 90, 90]


def test_a_label_with_the_windows_own_times_is_its_target_whatever_overlaps_it(task) -> None:
    table = labels(*(("a", 2.0 * i, 2.0 * i + 10, "hr", 60.0 + i**2, "bpm") for i in range(6)))
    target, _ = tasks.window_targets(table, ["a"] * 3, [0.0, 2.0, 10.0004], task)
    assert target.tolist() == [60, 61, 85]


def test_the_mean_is_weighted_by_time(task) -> None:
    mean = task.model_copy(update={"aggregate": task.aggregate.model_copy(update={"how": "mean"})})
    table = labels(("a", 0.0, 6.0, "hr", 60.0, "bpm"), ("a", 6.0, 30.0, "hr", 90.0, "bpm"))
    assert tasks.window_targets(table, ["a"], [0.0], mean)[0][0] == pytest.approx(72)


def test_a_label_without_times_covers_its_whole_record_and_no_other(task) -> None:
    target, refusal = tasks.window_targets(
        labels(("a", None, None, "hr", 66.0, "bpm")), ["a", "b"], [50.0, 0.0], task
    )
    assert target[0] == 66
    assert refusal.tolist() == ["", "no label"]


def test_every_refusal_has_its_reason(task) -> None:
    values = [70.0] * 4 + [None] * 6 + [0.0] * 10 + [70.0] * 5 + [0.0] * 5
    starts = [0.0, 10.0, 20.0, 30.0]
    target, refusal = tasks.window_targets(labels(*seconds("a", values)), ["a"] * 4, starts, task)
    assert refusal.tolist() == ["label coverage", "implausible label", "", "no label"]
    assert np.isnan(target[[0, 1, 3]]).all() and target[2] == 70


def test_times_are_those_of_the_record_not_of_the_row(task) -> None:
    table = labels(*seconds("a", [50.0] * 10, start=100.0))
    target, refusal = tasks.window_targets(table, ["a", "a"], [100.0, 0.0], task)
    assert target[0] == 50 and refusal[1] == "no label"


def test_the_weighted_median_equals_numpys_where_weights_are_equal(task) -> None:
    rng = np.random.default_rng(0)
    for n in range(5, 11):
        values = rng.uniform(50, 90, n).tolist()
        found, _ = tasks.window_targets(labels(*seconds("a", values)), ["a"], [0.0], task)
        assert found[0] == pytest.approx(np.median(values))


def test_a_missing_label_and_a_foreign_unit_are_one_clear_line(task) -> None:
    with pytest.raises(PlethoraError, match=r"no label 'hr', which task heart_rate needs.*it has age"):
        tasks.window_targets(labels(("a", None, None, "age", 60.0, "years")), ["a"], [0.0], task)
    with pytest.raises(PlethoraError, match="in Hz, task heart_rate expects bpm"):
        tasks.window_targets(labels(("a", None, None, "hr", 1.1, "Hz")), ["a"], [0.0], task)


def test_an_unknown_task_names_the_nearest_and_a_misspelled_key_too(tmp_path: Path) -> None:
    with pytest.raises(PlethoraError, match="did you mean 'heart_rate'"):
        tasks.load_task("hart_rate")
    path = tmp_path / "mine.toml"
    path.write_text((tasks.FOLDER / "heart_rate.toml").read_text().replace("coverage", "covrage"))
    with pytest.raises(PlethoraError, match="coverage"):
        tasks.load_task(str(path))


def test_every_shipped_task_loads() -> None:
    for path in tasks.FOLDER.glob("*.toml"):
        assert tasks.load_task(path.stem).name == path.stem


def test_demographics_become_columns_and_what_is_unknown_is_said() -> None:
    table = labels(
        ("a", None, None, "age", 50.0, "years"),
        ("b", None, None, "age", 70.0, "years"),
        ("a", None, None, "sex", "F", None),
        ("c", None, None, "sex", "M", None),
    )
    x, names = tasks.demographics(table, ["a", "b", "c", "a"], ("age", "sex"))
    assert names == ["age", "age unknown", "sex = M", "sex unknown"]
    np.testing.assert_array_equal(x[:, 0], [50, 70, np.nan, 50])
    np.testing.assert_array_equal(x[:, 1:], [[0, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]])


def test_a_corpus_without_demographics_gives_no_columns() -> None:
    x, names = tasks.demographics(labels(*seconds("a", [60.0])), ["a"], ("age", "sex"))
    assert x.shape == (1, 0) and names == []


# ---------------------------------------------------------------- several labels of a whole record


CODES = labels(
    *(("a", None, None, "dx", code, None) for code in ("I10", "E11", "I10")),
    ("b", None, None, "dx", "G20", None),
    *((r, None, None, "age", v, "year") for r, v in (("a", 45.0), ("a", 46.0), ("b", 50.0), ("b", 50.0))),
)


def test_values_that_contradict_each_other_give_a_window_no_target(task) -> None:
    age = task.model_copy(update={"label": "age", "unit": "year"})
    target, refusal = tasks.window_targets(CODES, ["a", "b"], [0.0, 0.0], age)
    assert np.isnan(target[0]) and target[1] == 50
    assert refusal.tolist() == ["several values of the label", ""]


def test_a_record_with_several_texts_is_it_or_not_only_where_all_agree() -> None:
    asked = tasks.load_task("diabetes").model_copy(update={"label": "dx", "positive": "E11"})
    target, refusal = tasks.window_targets(CODES, ["a", "b"], [0.0, 0.0], asked)
    assert np.isnan(target[0]) and target[1] == 0 and refusal[0] == "several values of the label"
    neither = tasks.window_targets(
        CODES, ["a", "b"], [0.0, 0.0], asked.model_copy(update={"positive": "G20"})
    )
    assert neither[0].tolist() == [0, 1]
    both = asked.model_copy(update={"positive": ("I10", "E11")})
    assert tasks.window_targets(CODES, ["a"], [0.0], both)[0].tolist() == [1]


def test_conditions_groups_and_demographics_know_records_with_several_texts() -> None:
    where = tasks.load_task("alarm_truth").model_copy(
        update={"where": (tasks.Where(label="dx", equals="E11"),)}
    )
    assert tasks.excluded(CODES, ["a", "b"], where).tolist() == ["", "dx is not E11"]
    assert tasks.whole_record(CODES, "dx") == {"a": "several values", "b": "G20"}
    assert tasks.whole_record(CODES, "age") == {"a": "several values", "b": 50.0}
    x, names = tasks.demographics(CODES, ["a", "b"], ("dx", "age"))
    assert names == ["dx = E11", "dx = G20", "dx = I10", "age", "age unknown"]
    np.testing.assert_array_equal(x, [[1, 0, 1, np.nan, 1], [0, 1, 0, 50, 0]])


# ---------------------------------------------------------------- classes


ALARMS = labels(
    ("a", None, None, "alarm", "Asystole", None),
    ("a", None, None, "alarm_true", 1.0, None),
    ("b", None, None, "alarm", "Tachycardia", None),
    ("b", None, None, "alarm_true", 1.0, None),
    ("c", None, None, "alarm", "Asystole", None),
    ("c", None, None, "alarm_true", 0.0, None),
    ("d", None, None, "alarm", "Asystole", None),
)


def test_a_text_is_turned_into_this_kind_or_not_among_the_records_asked_about() -> None:
    asystole = tasks.load_task("alarm_asystole")
    target, refusal = tasks.window_targets(ALARMS, ["a", "b", "c", "d"], [290.0] * 4, asystole)
    assert target[:2].tolist() == [1, 0] and np.isnan(target[2:]).all()
    assert refusal.tolist() == ["", "", "alarm_true is not 1", "no label alarm_true"]
    assert tasks.classes(ALARMS, asystole) == ["not Asystole", "Asystole"]
    true, _ = tasks.window_targets(ALARMS, ["a", "b", "c"], [290.0] * 3, tasks.load_task("alarm_truth"))
    assert true.tolist() == [1, 1, 0]
    assert tasks.classes(ALARMS, tasks.load_task("alarm_truth")) == ["alarm_true is not 1", "alarm_true is 1"]


def test_without_a_positive_every_value_is_a_class_and_the_longest_in_a_window_counts() -> None:
    rhythm = tasks.Task(
        name="rhythm",
        title="Rhythm",
        kind="multi-class",
        label="rhythm",
        window_s=10,
        hop_s=10,
        metrics=("auroc",),
    )
    table = labels(
        ("a", 0.0, 6.0, "rhythm", "sinus", None),
        ("a", 6.0, 40.0, "rhythm", "af", None),
        ("b", 0.0, 40.0, "rhythm", "paced", None),
    )
    assert tasks.classes(table, rhythm) == ["af", "paced", "sinus"]
    target, _ = tasks.window_targets(table, ["a", "a", "b"], [0.0, 10.0, 0.0], rhythm)
    assert target.tolist() == [2, 0, 1]


def test_labels_that_a_class_task_cannot_use_are_one_clear_line() -> None:
    flutter = tasks.load_task("alarm_vtach")
    with pytest.raises(PlethoraError, match=r"no label 'alarm' of the corpus is Ventricular_Tachycardia"):
        tasks.classes(ALARMS, flutter)
    timed = labels(
        ("a", 0.0, 9.0, "alarm_true", 1.0, None),
        ("a", None, None, "alarm", "Asystole", None),
    )
    with pytest.raises(PlethoraError, match="'alarm_true' is about stretches of records"):
        tasks.window_targets(timed, ["a"], [0.0], tasks.load_task("alarm_asystole"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hop_s": 10.0}, "either hop_s .* or until_s"),
        ({"until_s": 5.0}, "until_s = 5 leaves no room"),
        ({"metrics": ("mae",)}, "metrics of a binary are auroc"),
        ({"kind": "regression", "metrics": ("mae",)}, "positive is for kind"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(changed: dict, said: str) -> None:
    told = tasks.load_task("alarm_truth").model_dump() | changed
    with pytest.raises(ValueError, match=said):
        tasks.Task.model_validate(told)


def test_the_task_of_the_evaluation_page_is_the_one_that_is_shipped(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    assert tasks.load_task(str(tmp_path / "mine.toml")) == tasks.load_task("alarm_asystole")
