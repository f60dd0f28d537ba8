"""The words under a table claim what the intervals allow, no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.results import Counts, LeftOut, Overlap
from finetune.metrics import Interval
from finetune.pagekit.parts import Group, Table
from finetune.reports import figures, plots
from finetune.reports.sheet import Section, Sheet, markdown, terminal, write
from finetune.reports.task_section import of_result
from tests.finetune import made


@contextmanager
def plt_of_tests() -> Iterator[Any]:
    plt = plots.pyplot()
    yield plt
    plt.close("all")


def printed(**changed: object) -> str:
    return terminal(made.sheet_of(made.of_one(**changed)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (-2.0, -0.5, "The encoder beats handcrafted features ("),
        (-2.0, 0.5, "does not beat handcrafted features: they cannot be told apart ("),
        (0.5, 2.0, "does not beat handcrafted features: it is worse ("),
    ],
)
def test_a_win_is_claimed_only_where_the_whole_interval_is_below_zero(
    low: float, high: float, sentence: str
) -> None:
    verdict = made.of_one(low, high).result.verdict
    assert any(sentence in line for line in verdict) and len(verdict) == 4


def test_a_row_without_figures_says_why_and_stays_in_the_table() -> None:
    outcome = made.of_one(absent="demographics")
    expected = "Not compared with demographics alone: the corpus has no age or sex."
    assert expected in outcome.result.verdict
    for text in (terminal(made.sheet_of(outcome)), markdown(made.sheet_of(outcome))):
        assert "Demographics: the corpus has no age or sex" in text


def test_refusals_and_lowered_folds_are_stated() -> None:
    text = printed()
    assert "4 subjects, 5 records, 60 windows of 30 s" in text
    assert "Windows refused: no label 3" in text
    assert "(5 folds were asked for: there are only 4 subjects)" in text


def test_unknown_overlap_is_never_called_none() -> None:
    text = printed(overlap=Overlap("unknown", ("CinC publishes no ids",), "unseen", 0, LeftOut()))
    assert "UNKNOWN (CinC publishes no ids)" in text
    assert "pretraining: none" not in text


def test_subjects_left_out_because_pretraining_saw_them_are_counted() -> None:
    text = printed(overlap=Overlap("shared", ("one corpus",), "unseen", 3, LeftOut(3, 40)))
    assert "left out as seen: 3 subjects, 40 windows" in text and "WARNING" not in text


def test_the_terminal_table_is_aligned_and_narrow_enough() -> None:
    lines = printed().splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("─")]
    table = lines[rules[0] : rules[2] + 1]
    assert max(map(len, table)) == len(lines[rules[0]]) <= 120
    assert len({line.index("3.00 [") for line in table if "3.00 [" in line}) == 1


def test_numbers_that_do_not_exist_are_dashes() -> None:
    assert figures.number(float("nan")) == figures.number(None) == "–"  # noqa: RUF001
    assert figures.with_interval(Interval(float("nan"), 0, 0)) == "–"  # noqa: RUF001


def test_of_classes_a_higher_auroc_wins_and_the_curve_is_drawn(tmp_path: Path) -> None:
    shown = dict.fromkeys(("auroc", "auprc", "balanced_accuracy", "f1"), Interval(0.8, 0.7, 0.9))
    before = made.of_one(0.05, 0.2)
    outcome = made.judged(
        before,
        task=made.SEX.model_copy(update={"until_s": 300.0, "hop_s": None}),
        classes=("not it", "it"),
        counts=Counts(60, subjects=4, records=5, classes={"not it": 40, "it": 20}),
        rows=tuple(replace(row, metrics=shown) for row in before.result.rows),
    )
    verdict = outcome.result.verdict
    assert all(sentence.startswith("The encoder beats ") for sentence in verdict)
    assert any("predicting the prevalence (AUROC 0.80 against 0.80, difference" in s for s in verdict)
    assert "Classes: 40 not it, 20 it" in markdown(made.sheet_of(outcome))
    rng = np.random.default_rng(0)
    windows = replace(outcome.windows, target=np.repeat([0.0, 1.0], [40, 20]), subject=np.arange(60))
    predicted = {row.name: rng.uniform(size=(60, 1)) for row in outcome.result.rows}
    (picture,) = plots.task_pictures(replace(outcome, windows=windows, predicted=predicted))
    picture.draw(tmp_path / "roc.png")
    assert picture.file == "plots/roc.png" and (tmp_path / "roc.png").stat().st_size > 10_000


def test_a_roc_curve_takes_equal_scores_in_one_step() -> None:
    hot, score = np.array([True, False, True, False]), np.array([3.0, 1.0, 1.0, 0.0])
    false, true = plots.roc_points(hot, score)
    assert false.tolist() == [0, 0, 0.5, 1] and true.tolist() == [0, 0.5, 1, 1]


def test_a_report_links_only_pictures_that_its_kind_of_task_gets() -> None:
    regression = made.of_one()
    identity = made.SBP.model_copy(update={"kind": "retrieval", "label": ""})
    files = {picture.file for picture in plots.task_pictures(regression)}
    assert "plots/bland_altman.png" in files
    retrieval = replace(regression, result=replace(regression.result, task=identity))
    assert plots.task_pictures(retrieval) == ()
    whole = replace(of_result(regression.result), pictures=plots.task_pictures(regression))
    text = markdown(Sheet("report", "Evaluation", (), (whole,), {}))
    assert all(f"]({file})" in text for file in files)


def test_what_a_table_must_carry_stands_right_below_it() -> None:
    outcome = made.of_one(warnings=("3 subjects have no label",), adapted=("a: 3 pieces of 10 s each",))
    lines = terminal(made.sheet_of(outcome)).splitlines()
    assert lines[lines.index("WARNING: 3 subjects have no label") - 1].startswith("─")
    assert "a: 3 pieces of 10 s each" in lines
    assert "- **WARNING**: 3 subjects have no label" in markdown(made.sheet_of(outcome))


def test_panels_share_the_names_of_their_rows_only_where_these_are_the_same() -> None:
    numbers, classes = made.numbers().result, made.binary().result
    prevalence = replace(classes.row("mean"), label="Predict the prevalence")
    other = [prevalence if row.name == "mean" else row for row in classes.rows]
    with plt_of_tests() as plt:
        _, axes = plots.row_grid(plt, [numbers.rows, other], (3.0, 2.0), (0.3, 1.0))
        for axis, task, rows in zip(axes.flat, (made.SBP, made.SEX), (numbers.rows, other), strict=True):
            plots.label_rows(axis, task, rows)
        names = [[label.get_text() for label in axis.get_yticklabels()] for axis in axes.flat]
        assert [each[-1] for each in names] == ["Predict the mean", "Predict the prevalence"]
        _, shared = plots.row_grid(plt, [numbers.rows, numbers.rows], (3.0, 2.0), (0.3, 1.0))
        assert shared.flat[0].get_shared_y_axes().joined(*shared.flat)


@pytest.mark.parametrize("tables", [(), (Table("more", ["", "x"], [["a", "1"]], printed=False),)])
def test_a_warning_is_not_lost_where_no_table_is_printed(tables: tuple[Table, ...]) -> None:
    section = Section("Nothing to tabulate", warnings=("figures may flatter",), tables=tables)
    sheet = Sheet("report", "Evaluation", (), (section,), {})
    assert terminal(sheet).count("WARNING: figures may flatter") == 1
    assert markdown(sheet).count("**WARNING**: figures may flatter") == 1


def test_pictures_of_a_page_are_drawn_only_where_a_page_is_written(tmp_path: Path) -> None:
    drawn: list[str] = []

    def groups() -> list[Group]:
        drawn.append("once")
        return []

    section = Section("Heart rate", groups=groups)
    write(Sheet("report", "Evaluation", (), (section,), {}))
    assert not drawn
    write(Sheet("report", "Evaluation", (), (section,), {}, out=str(tmp_path / "out")))
    assert drawn == ["once"]
