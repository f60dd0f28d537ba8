"""search.html says what was found, needs nothing else, and can be made at any moment of a search."""

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.tuning import drawn
from tuning import parallel, report
from tuning.record import Record, Trial
from tuning.space import Spread

VOID = {"meta", "br", "hr", "img", "input", "link"}


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    """The page, not the forest, is tried here."""
    from tuning import importance

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance, "DRAWS", 4)
        patch.setattr(importance, "SHUFFLES", 2)
        yield


class Reader(HTMLParser):
    """Text of a page, its open elements, and what it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.wrong: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def record() -> Record:
    return drawn.search()


@pytest.fixture(scope="module")
def page(record: Record, few_draws: None) -> str:
    return report.render(record)


def page_of(record: Record | str) -> Reader:
    found = Reader(record if isinstance(record, str) else report.render(record))
    assert not found.wrong and not found.open
    return found


def test_the_page_needs_nothing_else(page: str) -> None:
    found = page_of(page)
    assert not found.fetched
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert "@import" not in page


def test_the_page_has_the_best_trial_its_test_figures_and_every_reason(record: Record, page: str) -> None:
    found, best = page_of(page), record.chosen()
    assert best is not None
    assert f"Best trial: {best.trial}" in found.text
    assert "8.31 [7.10, 9.62]" in found.text
    for trial in record.having("stopped", "failed"):
        assert trial.why in found.text
    for part in ("Importance", "Each key alone", "Learning curves", "Cost", "The full grid, 2,500 points"):
        assert part in found.text
    assert not report.warnings(record)


def test_every_command_can_be_copied_as_it_was_run(record: Record, page: str) -> None:
    blocks = re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    copied = [html.unescape(re.sub("<[^>]*>", "", block)) for block in blocks]
    best = record.chosen()
    assert best is not None
    assert copied == [best.command, *(t.command for t in record.trials)]


def test_names_from_a_file_stay_text(record: Record) -> None:
    bad = "<script>alert(1)</script>"
    trials = tuple(replace(t, why=bad, command=bad, values=t.values | {"a": bad}) for t in record.trials)
    space = record.search.space | {"a": Spread(kind="choice", choices=(bad, "x"))}
    trials = (replace(trials[0], values=trials[0].values | {"a": "x"}), *trials[1:])
    search = record.search.model_copy(update={"name": bad, "space": space})
    page = report.render(replace(record, trials=trials, search=search))
    assert "script" not in Reader(page).tags
    assert html.escape(bad) in page


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_the_page_can_be_made_while_the_search_runs(record: Record, count: int) -> None:
    trials = [replace(t, state="running", curve=t.curve[:1]) for t in record.trials[:count]]
    info = replace(record.info, ended=None)
    found = page_of(replace(record, trials=tuple(trials), result=None, info=info))
    assert "the search is not finished" in found.text
    assert ("0 of" in found.text or "no trial yet" in found.text) == (count == 0)


def test_a_search_in_which_all_failed_says_so(record: Record) -> None:
    trials = tuple(replace(t, state="failed", why="no room", objective=None, curve=()) for t in record.trials)
    found = page_of(replace(record, trials=trials, result=None))
    assert "24 of 24 trials failed" in found.text
    assert "no room" in found.text


def test_two_objectives_have_a_front_that_no_trial_lies_below() -> None:
    record = drawn.search(20, 1, 2)
    members = record.front()
    assert members
    for trial in record.having("done"):
        mae, cost = trial.at_end("val/mae"), trial.at_end("cost")
        others = [m for m in members if m is not trial]
        beaten = any(m.at_end("val/mae") <= mae and m.at_end("cost") <= cost for m in others)
        assert (trial in members) != beaten
    found = page_of(record)
    assert "On the front" in found.text
    assert all(m.trial in found.text for m in members)


def test_a_scaling_search_shows_its_law() -> None:
    found = page_of(drawn.scaled(0.0))
    assert re.search(r"parameters / 1e\+06\)\^.0\.30", found.text)
    assert re.search(r"would come to 1\.[12]", found.text)
    few = drawn.scaled()
    few = replace(few, trials=few.trials[:3])
    assert "No curve" in page_of(few).text


def test_the_page_lies_beside_the_record(tmp_path: Path, record: Record) -> None:
    home = drawn.write(record, tmp_path / "s")
    where = report.report(home)
    assert where == f"{home}/search.html"
    assert "Search lora-rank" in Path(where).read_text(encoding="utf-8")


def test_a_line_of_the_parallel_plot_goes_through_the_values_of_its_trial() -> None:
    space = {
        "lr": Spread(kind="loguniform", low=1e-4, high=1e-2),
        "kind": Spread(kind="choice", choices=("a", "b", "c")),
    }
    trials = [
        Trial("t0", "done", values={"lr": 1e-3, "kind": "a"}),
        Trial("t1", "done", values={"lr": 1e-2, "kind": "c"}),
        Trial("t2", "done", values={"lr": 1e-4}),
    ]
    lr, kind, loss = parallel.axes_of(space, trials, [("loss", [1.0, 2.0, None], "stopped")])
    assert lr.places == [pytest.approx(0.5), pytest.approx(1.0), pytest.approx(0.0)]
    assert kind.places == [0.0, 1.0, None] and kind.absent == parallel.ABSENT
    assert loss.places == [0.0, 1.0, None] and loss.absent == "stopped"
    assert [label for _, label in lr.ticks] == ["0.0001", "0.001", "0.01"]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.064, 0.0697), (-3.0, 250.0), (5.0, 5.0), (1e6, 3e6)]
)
def test_ticks_are_round_and_within_the_axis(low: float, high: float) -> None:
    found = parallel.ticks(low, high, False)
    places = [place for place, _ in found]
    assert 1 <= len(places) <= 7
    assert all(low - 1e-9 * abs(low) <= p <= high + 1e-9 * abs(high) for p in places)
    assert [float(label) for _, label in found] == pytest.approx(places, rel=1e-3, abs=1e-12)
