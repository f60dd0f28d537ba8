"""What `python -m tests.cases` says where it cannot run: one line, before Ray starts."""

import sys
from contextlib import nullcontext

import pytest

from tests import cases
from tests.cases_kit import Case, Check


def called(monkeypatch, *words, session=None):
    """`main` with these words; without `session` it fails where it would start Ray."""

    def none(**_):
        pytest.fail("Ray is started")

    monkeypatch.setattr(sys, "argv", ["cases", *map(str, words)])
    monkeypatch.setattr(cases, "session", session or none)
    return cases.main()


def usage_error(monkeypatch, capsys, *words):
    with pytest.raises(SystemExit) as caught:
        called(monkeypatch, *words)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_name_that_no_case_has_is_answered_with_the_names_there_are(monkeypatch, capsys, tmp_path):
    line = usage_error(monkeypatch, capsys, "--cases", tmp_path, "--only", "clock_drfit")
    assert "no case is called like 'clock_drfit'; there are " in line
    assert all(name in line for name in cases.CASES)


def test_a_folder_that_is_not_there_is_named_with_the_option(monkeypatch, capsys, tmp_path):
    line = usage_error(monkeypatch, capsys, "--cases", tmp_path / "none")
    assert line.endswith(f"no cases at {tmp_path / 'none'}: name their folder with --cases")


@pytest.mark.parametrize("words", [[], ["--only", "clock_drift"], ["--only", "stack/"]])
def test_a_folder_without_the_cases_is_named_with_the_option(monkeypatch, capsys, tmp_path, words):
    (tmp_path / "something_else").mkdir()
    line = usage_error(monkeypatch, capsys, "--cases", tmp_path, *words)
    assert line.endswith(f"none of these cases lies in {tmp_path}: name their folder with --cases")


def without_ray(**_):
    return nullcontext()


@pytest.mark.parametrize("name", ["bp_readings_averaged", "odd_rate_windows"])
def test_a_case_without_its_bundle_is_missed_and_says_how_to_get_one(monkeypatch, capsys, tmp_path, name):
    (tmp_path / name).mkdir()
    monkeypatch.setenv("BUNDLE", str(tmp_path / "none"))
    assert called(monkeypatch, "--cases", tmp_path, "--only", name, session=without_ray) == 1
    line, _, last = capsys.readouterr().out.splitlines()
    assert line.startswith(f"MISSED {name}") and last == "1 missed"
    assert "none: run `make demo`, or name a bundle's folder in BUNDLE" in line


OWN = [n for n in cases.CASES if "/" in n and n != "stack/submit_of_an_ignored_run_file"]  # of one program


@pytest.mark.parametrize("name", OWN)
def test_a_case_whose_program_is_gone_is_missed(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="the case has no"):
        list(cases.CASES[name](Case(tmp_path, tmp_path)))


def test_one_missed_value_among_right_ones_is_the_exit_status(monkeypatch, capsys, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    right, wrong = Check("a", "1", "1", True), Check("b", "1", "2", False)
    monkeypatch.setattr(cases, "CASES", {"one": lambda _: [right], "two": lambda _: [right, wrong]})
    assert called(monkeypatch, "--cases", tmp_path, "--only", "one", session=without_ray) == 0
    assert "all right" in capsys.readouterr().out
    assert called(monkeypatch, "--cases", tmp_path, session=without_ray) == 1
    assert "1 missed" in capsys.readouterr().out
