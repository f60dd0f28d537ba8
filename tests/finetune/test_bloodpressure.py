"""The blood pressure card against limits and grades as published, and against sums done by hand."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from datasets.schema import LABELS
from finetune.evaluation import bloodpressure
from finetune.evaluation.choose import Windows
from finetune.task import Task
from tests.finetune import made

SBP = Task(
    name="sbp", title="Systolic pressure", kind="regression", label="sbp", unit="mmHg", window_s=10,
    hop_s=10, metrics=("mae",),
)  # fmt: skip


def labelled(*rows: tuple[str, str, float | str]) -> pa.Table:
    """Whole-record labels (record, name, value or text)."""
    made = [
        {"subject": "s", "record": record, "name": name}
        | ({"text": value} if isinstance(value, str) else {"value": value, "unit": "mmHg"})
        for record, name, value in rows
    ]
    return pa.Table.from_pylist(made, schema=LABELS)


def windows(target: list[float], subject: list[str], record: list[str] | None = None) -> Windows:
    who, rows = np.array(subject), np.arange(len(target))
    return Windows(rows, np.array(target), who, np.array(record or subject), 10.0 * rows)


@pytest.mark.parametrize(
    ("within", "grade"),
    [
        ((60, 85, 95), "A"), ((59.9, 85, 95), "B"), ((50, 75, 90), "B"), ((60, 85, 89.9), "C"),
        ((40, 65, 85), "C"), ((40, 64.9, 85), "D"),
        ((58, 85, 95), "B"), ((71, 91, 96), "A"),  # Colin 8800C, systolic and diastolic (PMC3970705, table 2)
    ],
)  # fmt: skip
def test_the_bhs_grade_needs_all_three_published_shares(within: tuple[float, ...], grade: str) -> None:
    assert bloodpressure.bhs_grade(within) == grade


@pytest.mark.parametrize(
    ("mae", "grade"), [(5.0, "A"), (5.01, "B"), (5.99, "B"), (6.0, "C"), (6.99, "C"), (7.0, "D")]
)
def test_the_ieee_grade_is_by_mean_absolute_error(mae: float, grade: str) -> None:
    assert bloodpressure.ieee_grade(mae) == grade


@pytest.mark.parametrize(
    ("me", "sd", "subjects", "said"),
    [
        (3.9, 6.7, 96, "pass"), (-2.1, 6.1, 96, "pass"),  # Colin 8800C again
        (5.0, 8.0, 85, "pass"), (-5.0, 8.0, 84, "too few subjects"), (5.01, 8.0, 85, "fail"),
        (-5.01, 1.0, 500, "fail"), (0.0, 8.01, 85, "fail"), (9.0, 1.0, 3, "fail"),
        (0.0, float("nan"), 1, "fail"),
    ],
)  # fmt: skip
def test_aami_passes_only_within_both_limits_and_on_85_subjects(
    me: float, sd: float, subjects: int, said: str
) -> None:
    assert bloodpressure.aami(me, sd, subjects) == said


def test_aami_asks_for_three_readings_a_subject() -> None:
    assert (
        bloodpressure.aami(0.0, 5.0, 85, 254) == "too few readings" == bloodpressure.aami_2(0.0, 5.0, 85, 254)
    )
    assert bloodpressure.aami(0.0, 5.0, 85, 255) == "pass" == bloodpressure.aami_2(0.0, 5.0, 85, 255)
    assert (
        bloodpressure.aami(0.0, 5.0, 84, 999) == "too few subjects" == bloodpressure.aami_2(0.0, 5.0, 84, 999)
    )


@pytest.mark.parametrize(
    ("me", "sd", "said"),
    [(0.0, 6.95, "pass"), (0.0, 6.96, "fail"), (-2.04, 6.65, "pass"), (2.06, 6.63, "fail"),
     (5.0, 4.79, "pass"), (-5.0, 4.8, "fail"), (5.2, 0.1, "fail"),
     (0.0, float("nan"), "fail"), (float("nan"), 1.0, "fail")],
)  # fmt: skip
def test_criterion_2_allows_what_table_1_of_iso_81060_2_does(me: float, sd: float, said: str) -> None:
    assert bloodpressure.aami_2(me, sd, 85, 255) == said


def test_table_1_is_the_sd_at_which_85_percent_of_errors_lie_within_10_mmhg() -> None:
    for step, sd in enumerate(bloodpressure.SD_TABLE):
        low, high = stats.norm.cdf([-10, 10], loc=step / 10, scale=sd)
        assert high - low == pytest.approx(0.85, abs=0.002)


def test_criterion_2_is_of_subjects_means_however_many_readings_each_has() -> None:
    error = np.array([3.0, 5, 7, -4, -4, 1])
    found = bloodpressure.agreement(np.full(6, 120.0), 120 + error, np.array(list("aaabbc")))
    assert found.sd_subjects == pytest.approx(np.std([5, -4, 1], ddof=1))


def test_two_equal_readings_are_two_where_the_task_is_about_readings() -> None:
    given = windows([120, 120, 90, 97], list("aabb"), ["a1", "a2", "b1", "b2"])
    task = SBP.model_copy(update={"level": "reading"})
    card = bloodpressure.cards(task, given, {"mean": np.full(4, 115.0)}, LABELS.empty_table())["mean"]
    assert card.readings == 4
    assert card.calibrated.calibrated.mae == pytest.approx(np.mean([0, 7]))


def test_figures_equal_sums_done_by_hand() -> None:
    reference = np.array([100.0, 120, 140, 160])
    found = bloodpressure.agreement(reference, reference + np.array([4, -6, 11, -1]), np.array(list("aabb")))
    assert (found.values, found.subjects) == (4, 2)
    assert found.mae == 5.5 and found.me == 2.0
    assert found.sd == pytest.approx(np.sqrt((4 + 64 + 81 + 9) / 3))
    assert found.within == {"5": 50.0, "10": 75.0, "15": 100.0}
    assert (found.aami, found.bhs, found.ieee) == ("too few subjects", "B", "B")


def test_the_slope_of_the_error_is_scipys_and_minus_one_for_a_constant() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(130, 20, 300)
    predicted = 130 + 0.4 * (reference - 130) + rng.normal(0, 8, 300)
    found = bloodpressure.agreement(reference, predicted, np.arange(300))
    assert found.slope == pytest.approx(stats.linregress(reference, predicted - reference).slope)
    assert bloodpressure.agreement(reference, np.full(300, 131.0), np.arange(300)).slope == pytest.approx(-1)
    assert np.isnan(bloodpressure.agreement(np.full(3, 120.0), np.arange(3), np.arange(3)).slope)


def test_a_value_that_stands_for_many_windows_or_records_is_one_reading() -> None:
    given = windows([120, 120, 130, 120, 111, 111], list("aaaabb"), ["x", "x", "x", "y", "p", "q"])
    found = bloodpressure.readings(given.target, given.subject, given.record, given.start_s)
    assert found.tolist() == [0, 0, 1, 2, 0, 0]
    shuffled = np.array([4, 2, 0, 3, 1, 5])
    again = bloodpressure.readings(
        *(x[shuffled] for x in (given.target, given.subject, given.record, given.start_s))
    )
    assert again.tolist() == found[shuffled].tolist()


def test_calibration_shifts_by_the_first_reading_and_tests_on_the_later_ones() -> None:
    target = np.array([120.0, 120, 130, 125, 110, 140])
    predicted = np.array([100.0, 104, 118, 104, 150, 150])
    subject = np.array(list("aaaabc"))
    rows, shifted = bloodpressure.calibrated(target, predicted, subject, np.array([0, 0, 1, 2, 0, 0]))
    assert rows.tolist() == [2, 3]  # of b and c nothing is left to test
    assert shifted.tolist() == [136.0, 122.0]  # the offset is the mean of −20 and −16


def test_a_constant_calibrated_is_the_earlier_reading_repeated() -> None:
    given = windows([120, 131, 90, 97, 95], list("aabbb"))
    card = bloodpressure.cards(SBP, given, {"mean": np.full(5, 115.0)}, LABELS.empty_table())["mean"]
    found = card.calibrated
    assert found.calibrated.mae == pytest.approx(np.mean([11, 7, 5]))
    assert found.same_uncalibrated.mae == pytest.approx(np.mean([16, 18, 20]))
    assert found.calibrated.subjects == 2 and found.subjects_with_one_reading == 0


def test_without_two_separate_readings_of_anyone_no_calibration_is_claimed() -> None:
    given = windows([120, 120, 90, 90], list("aabb"), ["a1", "a2", "b1", "b2"])
    card = bloodpressure.cards(SBP, given, {"x": np.full(4, 100.0)}, LABELS.empty_table())["x"]
    assert "no subject has two separate reference readings" in card.calibrated.why_not
    assert card.calibrated.calibrated is None and card.readings == 2


def test_jnc_7_stages_go_by_the_higher_of_the_two_pressures() -> None:
    sbp = np.array([119.0, 120, 139, 140, 110, 160, 110])
    dbp = np.array([79.0, 70, 79, 70, 90, 60, np.nan])
    normal, pre, one, two = bloodpressure.STAGES
    assert bloodpressure.stages(sbp, dbp).tolist() == [normal, pre, pre, one, one, two, normal]
    assert bloodpressure.stages(None, np.array([79.0, 80, 90, 100])).tolist() == [normal, pre, one, two]


def test_stages_are_the_corpuss_own_where_it_has_them_else_from_both_pressures() -> None:
    given, values = windows([110, 150], ["a", "b"]), {"x": np.array([112.0, 140.0])}
    own = labelled(("a", "hypertension", "Normal"), ("b", "dbp", 80.0))
    card = bloodpressure.cards(SBP, given, values, own)["x"]
    assert [s.name for s in card.stages] == ["Normal", "not stated"]
    assert card.stages_by == "the corpus's label 'hypertension'"
    card = bloodpressure.cards(SBP, given, values, labelled(("a", "dbp", 101.0)))["x"]
    assert [s.name for s in card.stages] == ["Stage 1 hypertension", "Stage 2 hypertension"]
    assert card.stages_by == "reference SBP and DBP, JNC 7 (by SBP alone for 1 without the other)"
    card = bloodpressure.cards(SBP, given, values, LABELS.empty_table())["x"]
    assert "SBP alone" in card.stages_by and [s.mae for s in card.stages] == [2.0, 10.0]


def test_the_plausible_range_of_one_pressure_does_not_hide_the_other() -> None:
    own = SBP.model_copy(update={"aggregate": SBP.aggregate.model_copy(update={"valid": (60.0, 260.0)})})
    _, how = bloodpressure.staged(own, windows([110], ["a"]), labelled(("a", "dbp", 48.0)))
    assert how == "reference SBP and DBP, JNC 7"


def test_a_card_is_attached_to_results_of_pressures_only() -> None:
    asked: list[list[str]] = []

    def labels(names: list[str]) -> pa.Table:
        asked.append(names)
        return labelled(("a", "dbp", 70.0), ("b", "dbp", 95.0))

    given, values = windows([110, 150], ["a", "b"]), {"x": np.array([112.0, 140.0])}
    source, result = SimpleNamespace(labels=labels), made.numbers().result
    found = bloodpressure.with_cards(result, given, values, source)  # type: ignore[arg-type]
    assert asked == [["hypertension", "dbp"]] and found.blood_pressure is not None
    assert [s.name for s in found.blood_pressure["x"].stages] == ["Normal", "Stage 1 hypertension"]
    rate = made.of_one().result
    assert bloodpressure.with_cards(rate, given, values, source) is rate  # type: ignore[arg-type]


def test_only_tasks_about_a_pressure_in_mmhg_get_a_card() -> None:
    cases = (
        ("sbp", "mmHg", "sbp"),
        ("dbp_derived", "mmHg", "dbp"),
        ("hr", "bpm", None),
        ("sbp", "kPa", None),
    )
    for label, unit, expected in (*cases, ("map", "mmHg", None)):
        task = SBP.model_copy(update={"label": label, "unit": unit})
        assert bloodpressure.pressure_of(task) == expected
    assert bloodpressure.other_label("sbp_derived") == "dbp_derived"
