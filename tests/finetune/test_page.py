"""The report page: one file, well formed, that shows every figure, every warning, and nobody's markup."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.evaluation import maps
from finetune.evaluation.results import TaskResult
from finetune.evaluation.table import Outcome
from finetune.metrics import Difference
from finetune.pagekit.svg import THEME, inline, panel
from finetune.pagekit.template import TEMPLATES
from finetune.reports import comparison, forest, panels, sheet
from finetune.reports.figures import signed, with_interval
from finetune.reports.forest import forests
from finetune.reports.task_section import rivals
from tests.finetune import made

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Tags in order; fails where they do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self.open):
            self.words.append(data)


def rendered(*outcomes: Outcome) -> str:
    found = comparison.of_several(outcomes, made.INFO, None)
    return sheet.page(replace(found, pictures=()), Path())


@pytest.fixture(scope="module")
def full() -> tuple[str, list[TaskResult]]:
    """A page of two tasks with every part that a table may have."""
    outcomes = [made.everything(made.numbers()), made.binary()]
    return rendered(*outcomes), [outcome.result for outcome in outcomes]


def test_the_page_needs_no_other_file_and_no_network(full: tuple[str, list[Any]]) -> None:
    text, _ = full
    found = Reader(text).attributes
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in found}
    for tag, given in found:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            where = given.get(name, "#")
            assert where.startswith(("#", "data:image/png;base64,")) or (tag, name) == ("a", "href"), where
        assert not any(name.startswith("on") for name in given)
    assert "@import" not in text and set(re.findall(r"url\((.)", text)) <= {"#"}


def test_ids_are_unique_and_every_link_inside_leads_somewhere(full: tuple[str, list[Any]]) -> None:
    found = Reader(full[0]).attributes
    ids = Counter(given["id"] for _, given in found if "id" in given)
    assert ids.most_common(1)[0][1] == 1
    links = {v[1:] for _, given in found for k, v in given.items() if k.endswith("href") and v[:1] == "#"}
    assert links | set(re.findall(r"url\(#([\w-]+)\)", full[0])) <= set(ids)


def test_every_figure_of_the_main_tables_and_every_difference_is_on_the_page(
    full: tuple[str, list[TaskResult]],
) -> None:
    words = " ".join(Reader(full[0]).words).replace("−", "-")  # noqa: RUF001
    for result in full[1]:
        for row in result.rows:
            if row.metrics:
                assert with_interval(row.metrics[result.task.main]) in words
        for other in rivals(result, "a"):
            assert signed(result.differences["a"][other]) in words
        for sentence in result.verdict:
            assert sentence in words


def test_every_table_and_forest_of_a_task_carries_its_warnings(full: tuple[str, list[Any]]) -> None:
    text, (warned, clean) = full
    sections = re.split(r'<section id="', text)
    for section, result in zip(sections[1:], (warned, clean), strict=True):
        figures = re.findall(r'<figure class="(?:table|forest)">.*?</figure>', section, re.DOTALL)
        assert len(figures) >= 3
        for figure in figures:
            assert figure.count('class="warning"') == len(result.warnings)
    overview = re.findall(r'<figure class="table">.*?</figure>', sections[0], re.DOTALL)
    assert len(overview) == 1 and warned.warnings[0] in overview[0]


PARTS = (
    "Few labelled subjects",
    "Calibration",
    "Bland–Altman",  # noqa: RUF001
    "Error against the reference",
    "Embedding map",
    "SBP: no calibration",
    "SBP: calibrated",
    "SBP by hypertension stage",
    "By sex",
    "AUROC of each label",
    "As often published: a split by windows",
    "AUROC intervals checked",
    "How it was done",
    "Paired differences",
    "Calibration and ranking",
)


@pytest.mark.parametrize("title", PARTS)
def test_each_part_has_its_heading(full: tuple[str, list[Any]], title: str) -> None:
    assert re.search(f"<h[34]>{re.escape(title)}</h[34]>", full[0])


def test_a_table_with_none_of_the_optional_parts_makes_a_page_too() -> None:
    text = rendered(replace(made.numbers(subjects=4, each=3), vectors={}))
    Reader(text)
    for absent in ("Few labelled", "Embedding map", "hypertension", "By sex", 'class="warning"', "<nav"):
        assert absent not in text


def test_a_retrieval_has_rows_and_a_map_but_no_predictions() -> None:
    outcome = made.numbers(subjects=4, each=3)
    result = outcome.result
    changed = {"kind": "retrieval", "label": "", "metrics": ("rank1",)}
    rows = tuple(
        replace(row, metrics={"rank1": made.interval(0.5, 0.1)} if row.metrics else {}) for row in result.rows
    )
    retrieval = made.judged(
        replace(outcome, predicted={}),
        task=result.task.model_copy(update=changed),
        rows=rows,
        counts=replace(result.counts, gallery=4, left_out=0),
    )
    text = rendered(retrieval)
    assert "<h3>Embedding map</h3>" in text and "Calibration" not in text
    assert "Retrieval of subjects" in text and "A gallery of 4 subjects" in text and "Ridge" not in text


def test_names_are_shown_and_never_run() -> None:
    bad = '<script>alert("1")</script> & $x^2$ {{ 7 * 7 }}'
    outcome = made.numbers(task=made.SBP.model_copy(update={"title": bad}))
    rows = tuple(replace(row, label=row.label.replace("a", bad, 1)) for row in outcome.result.rows)
    reader = Reader(rendered(made.judged(outcome, rows=rows, warnings=(bad,))))
    assert "script" not in {tag for tag, _ in reader.attributes}
    words = " ".join(reader.words)
    assert bad in words and "49" not in words


def test_a_page_is_the_same_every_time() -> None:
    assert rendered(made.numbers(subjects=4, each=3)) == rendered(made.numbers(subjects=4, each=3))


def test_a_picture_has_the_pages_colours_and_no_size_of_its_own() -> None:
    with panel() as (figure, axis):
        for colour in THEME:
            axis.plot([0, 1], color=colour)
        axis.set_title("a < b & $c$")
        text = str(inline(figure, 'what "it" shows'))
    Reader(text)
    assert not re.search("|".join(THEME), text)
    assert all(f"var(--{name})" in text for name in THEME.values())
    assert 'width="' not in text.partition(">")[0] and "viewBox" in text and "a &lt; b &amp; $c$" in text
    sheet = (TEMPLATES / "report.css").read_text()
    light, dark = sheet.split("@media", 1)
    for name in THEME.values():
        assert f"--{name}:" in light and f"--{name}:" in dark


# ---------------------------------------------------------------- what is drawn


def test_a_forest_puts_differences_to_scale_with_zero_in_the_middle() -> None:
    result = made.numbers().result
    (one,) = forests(result, {"a": ["b", "handcrafted", "mean"]})
    values = np.array([result.differences["a"][n].value for n in ("b", "handcrafted", "mean")])
    places = np.array([line.value for line in one.lines])
    scale = (places - 50) / values
    assert one.zero == 50 and scale == pytest.approx(np.full(3, scale[0])) and scale[0] > 0
    assert all(0 <= line.low <= line.value <= line.high <= 100 for line in one.lines)
    assert (one.left, one.right) == ("encoder better", "encoder worse")
    (other,) = forests(made.binary().result, {"a": ["mean"]})
    assert (other.left, other.right) == ("encoder worse", "encoder better")
    assert other.lines[0].side == "better" and other.lines[0].value > 50


def test_differences_that_do_not_exist_are_left_out_of_a_forest() -> None:
    result, nan = made.numbers().result, float("nan")
    differences = result.differences["a"] | {"b": Difference(nan, nan, nan, 1.0)}
    (one,) = forests(replace(result, differences={"a": differences}), {"a": ["b", "mean"]})
    assert [line.label for line in one.lines] == ["Predict the mean"]
    assert forests(replace(result, differences={"a": differences}), {"a": ["b"]}) == ()


def test_ticks_are_round_numbers_inside_the_axis() -> None:
    for reach, step in ((0.0131, 0.01), (7.3, 5), (2.0, 2), (1.99, 1), (480, 200)):
        assert forest._nice(reach) == pytest.approx(step)


def test_a_map_is_the_first_two_principal_components() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    found = maps.flat(x)
    assert found is not None
    rows, places, kept = found
    z = (x - x.mean(0)) / x.std(0)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    assert rows.tolist() == list(range(60))
    np.testing.assert_allclose(np.abs(places), np.abs(u[:, :2] * s[:2]), atol=1e-8)
    np.testing.assert_allclose(kept, (s**2 / np.sum(s**2))[:2])


def test_a_map_leaves_out_what_is_not_a_number_and_says_none_where_there_is_nothing() -> None:
    x = np.random.default_rng(4).normal(size=(2000, 3))
    x[:600, 1] = np.nan
    found = maps.flat(x)
    assert found is not None and len(found[0]) == 1400 and found[0].min() == 600
    assert len(maps.flat(np.random.default_rng(4).normal(size=(2000, 3)))[0]) == maps.SHOWN  # type: ignore[index]
    assert maps.flat(x[:600]) is None and maps.flat(np.ones((50, 3))) is None


def test_the_joined_dots_are_means_of_equally_filled_bins() -> None:
    rng = np.random.default_rng(8)
    p, y = rng.normal(size=(2, 95))
    said, true = panels._binned(p, y)
    order = np.argsort(p)
    assert len(said) == panels.BINS
    assert said[0] == pytest.approx(p[order[:10]].mean()) and true[-1] == pytest.approx(y[order[-9:]].mean())
