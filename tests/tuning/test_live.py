"""The terminal shows what a search found, what it spent and how long it will take."""

import time
from dataclasses import replace

import pytest

from cluster.cli import clock
from tests.tuning import drawn
from tuning import live
from tuning.record import Record


def part_way(ended: int = 10, running: int = 2) -> Record:
    """A search of 24 of which `ended` are over and `running` at work, 5 s each."""
    given = drawn.search()
    work = [replace(t, state="running", why="", spent_s=5.0) for t in given.trials[ended : ended + running]]
    info = replace(given.info, ended=None, spent_s=333.0)
    return replace(given, info=info, trials=(*given.trials[:ended], *work), result=None)


def with_budget(record: Record, **changes: float) -> Record:
    budget = record.search.budget.model_copy(update=changes)
    return replace(record, search=record.search.model_copy(update={"budget": budget}))


def test_the_headline_has_best_spent_and_left() -> None:
    record = part_way()
    best = record.best()
    assert best is not None
    line = live.headline(record)
    assert line.startswith("lora-rank: 10/24 trials · 2 running · ")
    assert f"best val/mae {best.at_end('val/mae'):.4g} ({best.trial})" in line
    assert "spent 5:33" in line
    left = live.eta(record)
    assert left is not None
    assert f"{clock(left)} left" in line


def test_what_is_left_follows_from_what_trials_cost_and_how_many_run_at_once() -> None:
    record = part_way()
    mean = sum(t.spent_s for t in record.having("done", "stopped")) / len(record.having("done", "stopped"))
    assert live.eta(record) == pytest.approx((2 * (mean - 5) + 12 * mean) / 2)
    assert live.eta(with_budget(record, concurrent=1)) == pytest.approx(2 * (mean - 5) + 12 * mean)


def test_no_more_is_left_than_the_budget_allows() -> None:
    record = part_way()
    assert live.eta(with_budget(record, hours=0.1)) == pytest.approx(360 - 333)


def test_there_is_no_time_left_before_a_trial_has_ended_or_after_all_have() -> None:
    assert live.eta(part_way(0)) is None
    assert live.eta(drawn.search()) is None


def test_a_best_trial_that_is_not_finished_is_marked() -> None:
    record = part_way(0)
    assert "at step" in live.headline(record)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_table_keeps_trial_and_figures_whole_at_any_width(width: int) -> None:
    from rich.console import Console

    record = part_way()
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(live.table(record, width))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    for trial in live.rows(record):
        value = trial.at_end("val/mae")
        row = next(line for line in lines if trial.trial in line.split())
        assert value is None or f"{value:.4g}" in row.split()


def test_running_trials_come_first_then_the_best() -> None:
    record = part_way()
    states = [t.state for t in live.rows(record)]
    assert states[:2] == ["running", "running"]
    done = [t.at_end("val/mae") for t in live.rows(record) if t.state == "done"]
    assert done == sorted(done)


def test_where_there_is_no_terminal_the_last_line_is_the_last_state(
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = [part_way(4), part_way(10)]
    with live.live(lambda: states[0]):
        time.sleep(0.05)
        states.pop(0)
    assert capsys.readouterr().err.splitlines() == [live.headline(part_way(10))]


def test_watching_ends_with_the_search(tmp_path) -> None:
    home = drawn.write(drawn.search(6), tmp_path / "s")
    found = live.watch(home, 0.01)
    assert found == {"search": home, "best": drawn.search(6).result.best}
