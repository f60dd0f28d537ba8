"""Many comparisons on one board: who shares a column, ranks and their intervals, and what is refused."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import rankdata

from finetune import metrics
from finetune.commands.leaderboard import Leaderboard, run
from finetune.evaluation.columns import names_of
from finetune.evaluation.leaderboard import mid_ranks
from finetune.evaluation.results import EncoderInfo, Overlap
from finetune.evaluation.table import Outcome
from finetune.evaluation.written import Seat, read_folder
from finetune.reports.leaderboard_report import wins
from finetune.reports.sheet import markdown, write
from tests.finetune import made, tiny
from tests.finetune.boards import board_of, called, folder, others, scored, two_folders
from tests.finetune.run import compare, evaluate

SEX = (
    'name = "sex"\ntitle = "Sex"\nkind = "binary"\nlabel = "sex"\npositive = "F"\n'
    'window_s = 10\nhop_s = 30\nmetrics = ["auroc", "auprc"]\n'
)


@pytest.fixture(scope="module")
def real(
    ray_session: Any, bundle: str, corpus: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """What `compare` wrote of two encoders with the same weights, and `evaluate` of the first."""
    here = tmp_path_factory.mktemp("board")
    (here / "sex.toml").write_text(SEX)
    twin = tiny.make_bundle(here / "files", str(here / "twin" / "bundle"))
    tasks = ["heart_rate", str(here / "sex.toml"), "identity"]
    compare([bundle, twin], corpus, tasks, str(here / "compared"), few_shot=False)
    evaluate(bundle, corpus, "heart_rate", str(here / "alone"), publish=False, few_shot=False)
    return str(here / "compared"), str(here / "alone")


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    return two_folders(tmp_path)


# ---------------------------------------------------------------- of real comparisons


def test_equal_encoders_share_a_rank_and_an_evaluation_joins_the_comparison(real: tuple[str, str]) -> None:
    found = board_of(*real)
    assert list(found.encoders) == ["tiny (ppg)", "tiny (ppg) 2"]
    assert [column.task.name for column in found.columns] == ["heart_rate", "sex", "identity"]
    assert [len(column.folders) for column in found.columns] == [2, 1, 1]
    for column in found.columns:
        ranks = {cell.row: cell.rank for cell in column.cells}
        for name in found.encoders:
            rank = ranks[name]
            drawn = column.task.name != "identity"
            assert rank.value == 1.5
            assert (rank.low, rank.high) == (1.5, 1.5) if drawn else np.isnan([rank.low, rank.high]).all()
    assert found.overall.columns == tuple(column.title for column in found.columns[:2])
    assert found.overall.mean_rank["tiny (ppg)"] == metrics.Interval(1.5, 1.5, 1.5)
    assert found.columns[0].seen["tiny (ppg)"].overlap.kind == "none"


def test_people_drawn_again_give_the_intervals_that_compare_wrote(real: tuple[str, str]) -> None:
    tables = read_folder(real[0])
    assert [table.result.task.kind for table in tables] == ["regression", "binary", "retrieval"]
    for table in tables[:2]:
        weights = metrics.draw_weights(len(table.people))
        assert len(table.scored.predicted) > 6
        for row in table.scored.predicted:
            again, told = metrics.interval(table.drawn(row, weights)), table.figure(row)
            assert np.allclose([again.value, again.low, again.high], [told.value, told.low, told.high])


def test_the_sheet_lists_every_row_and_its_files_hold_every_figure(
    real: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = run(Leaderboard(real, str(tmp_path / "out")))
    write(sheet)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "leaderboard.md",
        "leaderboard.csv",
        "leaderboard.png",
        "results.json",
        "report.html",
    }
    lines = list(csv.DictReader((tmp_path / "out" / "leaderboard.csv").open()))
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(lines) == sum(len(column["cells"]) for column in told["columns"]) + 2
    first = told["columns"][0]
    assert first["corpus"]["name"] == "synthetic" and first["title"] == "Heart rate, synthetic"
    of_first = {line["row"]: line for line in lines if line["column"] == first["title"]}
    for cell in first["cells"]:
        assert float(of_first[cell["row"]]["value"]) == cell["figure"]["value"]
    identity = next(line for line in lines if line["task"] == "identity" and line["row"] == "tiny (ppg)")
    assert identity["rank"] == "1.5" and identity["rank_low"] == ""
    said = capsys.readouterr().out
    assert "Handcrafted features" in said and "ranks there have no interval" in said
    assert "1.5 [1.5, 1.5]" in said


# ---------------------------------------------------------------- ranks


def test_ranks_are_those_of_a_loop_that_draws_people(two: tuple[str, str]) -> None:
    found = board_of(*two)
    (column,) = found.columns
    names = ["a", "b", "c", "d"]
    frames = [pq.read_table(f"{uri}/predictions.parquet").to_pandas() for uri in two]
    frame = frames[0].merge(frames[1][["record", "start_s", "c", "d"]], on=["record", "start_s"])
    assert len(frame) == 72
    people = sorted(set(frame["subject"]))
    of = {one: frame[frame["subject"] == one] for one in people}

    def ranks(chosen: list[str]) -> np.ndarray:
        errors = [
            np.mean([e for one in chosen for e in abs(of[one][name] - of[one]["target"])]) for name in names
        ]
        return np.asarray(rankdata(np.round(errors, 12), method="average"))

    rng = np.random.default_rng([0, 0xB007])
    picked = rng.integers(0, len(people), size=(60, len(people)))  # `made` has 60 draws
    drawn = np.stack([ranks([people[k] for k in draw]) for draw in picked])
    point = dict(zip(names, ranks(people), strict=True))
    assert point["a"] == point["c"]  # equals
    for k, name in enumerate(names):
        low, high = np.percentile(drawn[:, k], [2.5, 97.5])
        rank = column.rows[name].rank
        assert (rank.value, rank.low, rank.high) == (point[name], low, high)
        assert found.overall.mean_rank[name] == rank  # one column: the same draws
    assert len({column.rows[name].rank.low for name in names}) > 1


def test_a_baseline_has_the_place_that_it_would_take_among_the_encoders() -> None:
    errors = np.array([[1.0], [2.0], [2.0], [2.0], [0.5], [9.0]])
    assert mid_ranks(errors, 3, lower=True)[:, 0].tolist() == [1, 2.5, 2.5, 3, 1, 4]
    assert mid_ranks(errors, 3, lower=False)[:, 0].tolist() == [3, 1.5, 1.5, 2, 4, 1]


def test_a_draw_that_cannot_be_scored_has_no_ranks() -> None:
    errors = np.array([[1.0, np.nan], [2.0, np.nan]])
    assert np.isnan(mid_ranks(errors, 2, lower=True)[:, 1]).all()


def test_people_whom_columns_share_are_drawn_once_for_all_of_them(tmp_path: Path) -> None:
    """Two columns of the same people and predictions: the mean rank is as uncertain as one column's. With
    other people in the second it is as certain as the mean of two independent columns.
    """
    again = made.numbers(task=made.SBP.model_copy(update={"name": "again", "title": "Again"}))
    found = board_of(folder(tmp_path / "same", made.numbers(), again))
    assert found.overall.together == (("Systolic pressure, c", "Again, c"),)
    for name in found.encoders:
        assert found.overall.mean_rank[name] == found.columns[0].rows[name].rank
    strangers = np.array([f"other {one}" for one in again.windows.subject])
    apart = replace(again, windows=replace(again.windows, subject=strangers))
    uri = folder(tmp_path / "strangers", made.numbers(), apart)
    found = board_of(uri)
    assert found.overall.together == (("Systolic pressure, c",), ("Again, c",))
    first, second = read_folder(uri)
    drawn = []
    for table, seed in ((first, 0), (second, 1)):
        weights = metrics.draw_weights(12, 60, seed)
        drawn.append(np.stack([table.drawn(name, weights) for name in ("a", "b")]))
    ranks = np.mean([1 + (one[0] > one[1]) for one in drawn], axis=0)
    assert found.overall.mean_rank["a"] == metrics.interval(ranks)
    assert 1.5 in ranks  # a is first in one column and last in the other


def test_a_column_without_some_people_takes_its_part_of_the_common_draw(tmp_path: Path) -> None:
    """Two columns, the second of eight of twelve people: drawn from twelve."""
    whole = made.numbers()
    few = made.numbers(subjects=8, task=made.SBP.model_copy(update={"name": "few", "title": "Few"}))
    few = scored(few, made.ENCODERS)
    uri = folder(tmp_path / "few", whole, few)
    found = board_of(uri)
    assert found.overall.together == (("Systolic pressure, c", "Few, c"),)
    weights = metrics.draw_weights(12, 60, 0)
    first, second = read_folder(uri)
    assert list(second.people) == list(first.people[:8])
    ranks = [
        1.0
        + (
            table.drawn("a", weights[:, : len(table.people)])
            > table.drawn("b", weights[:, : len(table.people)])
        )
        for table in (first, second)
    ]
    assert found.overall.mean_rank["a"] == metrics.interval(np.mean(ranks, axis=0))


# ---------------------------------------------------------------- columns and names


def test_tables_of_the_same_windows_are_one_column_with_every_encoder(two: tuple[str, str]) -> None:
    (column,) = board_of(*two).columns
    assert column.title == "Systolic pressure, c" and column.folders == two
    assert [cell.row for cell in column.cells][4:] == ["handcrafted", "mean"]
    assert [(one.row, one.why) for one in column.absent] == [
        ("Demographics only", "the corpus has no age or sex")
    ]


def of(part: str, **changed: Any) -> Callable[[Outcome], Outcome]:
    """Changes fields of the windows, or of the protocol, corpus or task of the result."""

    def change(outcome: Outcome) -> Outcome:
        if part == "windows":
            return replace(outcome, windows=replace(outcome.windows, **changed))
        found = getattr(outcome.result, part)
        new = found.model_copy(update=changed) if part == "task" else replace(found, **changed)
        return replace(outcome, result=replace(outcome.result, **{part: new}))

    return change


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("windows", of("windows", start_s=1 + 10.0 * np.arange(72))),
        ("windows", of("windows", record=np.array([f"r{i:02}" for i in range(72)]))),
        ("windows", of("counts", windows=73, rows=72)),
        ("windows", lambda outcome: replace(outcome, fold=outcome.fold + 1)),
        ("protocol", of("protocol", folds_asked=6)),
        ("protocol", of("protocol", split="split.json")),
        ("task", of("task", hop_s=5.0)),
        ("corpus", of("corpus", hash="1" * 64, uri="/later/c")),
    ],
)
def test_tables_that_differ_are_columns_of_their_own_that_say_so(
    tmp_path: Path, what: str, change: Callable[[Outcome], Outcome]
) -> None:
    first = folder(tmp_path / "first", made.numbers())
    second = folder(tmp_path / "second", change(called(made.numbers(), a="c", b="d")), infos=others("c", "d"))
    found = board_of(first, second)
    titles = [column.title for column in found.columns]
    assert len(titles) == len(set(titles)) == 2
    assert all(title.startswith("Systolic pressure, c (7") for title in titles)
    whys = {one.row: one.why for one in found.columns[0].absent}
    elsewhere = f"it stands in the column “{titles[1]}”: {what} differ"
    assert whys["c"] == (f"not in {first}" if what == "corpus" else elsewhere)
    assert found.overall.columns == () and found.overall.mean_rank == {}
    assert "No mean rank: no column" in markdown(run(Leaderboard((first, second), str(tmp_path / "out"))))


def test_two_encoders_of_one_name_are_told_apart_by_where_they_lie(tmp_path: Path) -> None:
    first = folder(tmp_path / "first", made.numbers())
    again = {name: EncoderInfo(f"/later/{name}/bundle", "ppg", 6) for name in ("a", "b")}
    second = folder(tmp_path / "second", made.numbers(), infos=again)
    found = board_of(first, second)
    assert {name: info.uri for name, info in found.encoders.items()} == {
        "a, runs/a/bundle#ppg": "/runs/a/bundle",
        "b, runs/b/bundle#ppg": "/runs/b/bundle",
        "a, later/a/bundle#ppg": "/later/a/bundle",
        "b, later/b/bundle#ppg": "/later/b/bundle",
    }


def test_two_backbones_are_told_apart_by_what_their_addresses_ask_for() -> None:
    asked = ("image=stft&stride=8", "image=stft&preset=ppg_bp")
    infos = [EncoderInfo(f"vision:vit?weights=/far/w.pth&{a}", "ppg", 6) for a in asked]
    names = names_of([Seat("vit, stft (ppg)", "", "vit, stft (ppg)", info) for info in infos])
    assert list(names.values()) == ["vit, stft (ppg), stride=8#ppg", "vit, stft (ppg), preset=ppg_bp#ppg"]


def test_a_baseline_that_predicts_something_else_elsewhere_is_a_row_of_its_own(tmp_path: Path) -> None:
    first = folder(tmp_path / "first", scored(made.numbers(), made.ENCODERS))
    second = made.numbers()
    second = replace(second, predicted=second.predicted | {"handcrafted": second.predicted["a"] + 1})
    other = folder(tmp_path / "second", scored(second, made.ENCODERS))
    found = board_of(first, other)
    assert found.baselines == {
        "handcrafted": "Handcrafted features",
        "mean": "Predict the mean",
        "handcrafted, second": "Handcrafted features, second",
    }


# ---------------------------------------------------------------- beside the table


def test_wins_count_columns_whose_whole_interval_is_better(tmp_path: Path) -> None:
    outcome = made.numbers()
    apart = {
        "a": {
            "a, untrained": metrics.Difference(-1, -2, -0.1, 0.01),
            "handcrafted": metrics.Difference(-1, -2, 0.1, 0.1),
            "mean": metrics.Difference(1, 0.2, 2, 0.01),
        },
        "b": {},
    }
    outcome = replace(outcome, result=replace(outcome.result, differences=apart))
    found = board_of(folder(tmp_path / "one", outcome))
    assert {rival: (w.better, w.worse, w.columns) for rival, w in wins(found)["a"].items()} == {
        "untrained": (1, 0, 1),
        "handcrafted": (0, 0, 1),
        "mean": (0, 1, 1),
    }
    text = markdown(run(Leaderboard([str(tmp_path / "one")], str(tmp_path / "out"))))
    assert "3 paired comparisons" in text and "about 0.1 of them" in text


def test_what_was_seen_is_told_and_kept_people_are_a_warning(tmp_path: Path) -> None:
    outcome = made.numbers()
    kept = Overlap("shared", ("/c: 3 subjects are in both",), "all", 3)
    unknown = Overlap("unknown", ("/r: its lineage names no corpus",), "all", 0)
    result = replace(outcome.result, overlap=unknown, seen_by={"a": kept, "b": unknown})
    sheet = run(
        Leaderboard([folder(tmp_path / "one", replace(outcome, result=result))], str(tmp_path / "out"))
    )
    seen = next(section for section in sheet.sections if section.key == "seen")
    assert sorted(seen.tables[0].body) == [["a", "shared 3, kept"], ["b", "unknown, kept"]]
    assert seen.explained == ("a: /c: 3 subjects are in both", "b: /r: its lineage names no corpus")
    (warning,) = sheet.sections[0].warnings
    assert "a and b evaluated with --allow-overlap" in warning
