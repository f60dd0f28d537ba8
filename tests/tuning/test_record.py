"""The record of a search is read as it was written, at any moment."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import PlethoraError
from tests.tuning import drawn
from tuning import record


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    given = drawn.search(objectives=2)
    found = record.read(drawn.write(given, tmp_path / "s"))
    assert found.trials == given.trials
    assert (found.search, found.info) == (given.search, given.info)
    assert found.result == given.result


def test_a_record_of_another_version_is_read_without_the_keys_that_it_has_more(tmp_path: Path) -> None:
    given = drawn.search(6)
    home = drawn.write(given, tmp_path / "s")
    raw = json.loads((tmp_path / "s/search.json").read_text())
    raw["future"] = 1
    raw["scheduler"]["rungs"] = [10, 20]
    raw["space"]["optim.lr"]["log"] = True
    raw["budget"].pop("retries")
    (tmp_path / "s/search.json").write_text(json.dumps(raw))
    found = record.read(home)
    assert (found.search, found.info) == (given.search, given.info)


def test_of_a_trial_the_newest_line_counts(tmp_path: Path) -> None:
    given = drawn.search()
    home = drawn.write(given, tmp_path / "s", events=True)
    lines = (tmp_path / "s/trials.jsonl").read_bytes().splitlines()
    assert len(lines) == 2 * len(given.trials)
    assert [t.state for t in record.read(home).trials] == [t.state for t in given.trials]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    home = drawn.write(drawn.search(8), tmp_path / "s", events=False)
    path = tmp_path / "s/trials.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert len(record.read(home).trials) == 7


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{broken\n", "line 2: not JSON"),
        (b'{"trial": "t1", "state": "lost"}\n', "line 2: unknown state 'lost'"),
        (b'{"state": "done"}\n', "line 2: .*trial"),
        (b"[1]\n", "line 2: expected a table"),
    ],
)
def test_a_broken_line_is_reported_with_its_number(tmp_path: Path, line: bytes, words: str) -> None:
    home = drawn.write(drawn.search(8), tmp_path / "s", events=False)
    path = tmp_path / "s/trials.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + line + b"".join(lines[1:]))
    with pytest.raises(PlethoraError, match=words):
        record.read(home)


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlethoraError, match=r"no search\.json there"):
        record.read(str(tmp_path))


def test_a_figure_that_is_not_finite_is_no_value(tmp_path: Path) -> None:
    given = drawn.search(6)
    trial = replace(given.trials[0], objective={"val/mae": float("nan")})
    home = drawn.write(replace(given, trials=(trial, *given.trials[1:])), tmp_path / "s")
    assert json.loads((tmp_path / "s/trials.jsonl").read_bytes().splitlines()[1])["objective"] == {
        "val/mae": None
    }
    assert record.read(home).trials[0].at_end("val/mae") is None


def test_the_best_is_a_finished_trial_where_there_is_one() -> None:
    given = drawn.search()
    best = given.best()
    assert best is not None and best.state == "done"
    ended = [t.at_end("val/mae") for t in given.having("done")]
    assert best.at_end("val/mae") == min(ended)
    ahead = replace(given.having("stopped")[0], objective={"val/mae": 0.0})
    early = replace(given, trials=(ahead, *given.trials))
    assert early.best() == best
    assert replace(early, trials=(ahead, *given.having("stopped"))).best() == ahead


def test_a_larger_figure_is_better_where_the_objective_says_so() -> None:
    given = drawn.search()
    goal = given.search.objective[0].model_copy(update={"mode": "max"})
    best = replace(given, search=given.search.model_copy(update={"objective": (goal,)})).best()
    assert best is not None
    assert best.at_end("val/mae") == max(t.at_end("val/mae") for t in given.having("done"))
