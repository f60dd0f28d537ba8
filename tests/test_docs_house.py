"""The documents are short, have an order, and name every environment variable that the source reads."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pages import DOCS, PAGES, WORKED

WIDTH, README_LINES, MOST_PAGES = 120, 120, 16
REFERENCE = {"glossary", "performance", "results"}  # pages that are looked up, not followed
BY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FAMILIES = r"(?:AWS|DS|PLETHORA|RAY|TORCH|TUNE|XDG)(?:_[A-Z0-9]+)+"


@BY_PAGE
def test_no_line_of_a_page_is_too_long_to_read_beside_code(page: Path) -> None:
    long, shell = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            shell = line == "```bash"
        free = shell or line.startswith(("|", "    ")) or "](" in line  # tables, commands, links
        if len(line) > WIDTH and not free:
            long.append(number)
    assert not long, f"{page.name}, lines over {WIDTH}: {long}"


def test_the_readme_and_the_number_of_pages_stay_small() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES
    assert len(list(DOCS.rglob("*.md"))) <= MOST_PAGES


def test_every_page_is_reached_from_the_readme() -> None:
    found, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        found.add(page)
        links = re.findall(r"\]\((?!https?:)([^)#]+\.md)", page.read_text(encoding="utf-8"))
        ahead += [to for link in links if (to := (page.parent / link).resolve()) not in found]
    assert {page.name for page in PAGES} <= {page.name for page in found}


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent == DOCS], ids=lambda page: page.stem)
def test_a_page_to_follow_has_a_worked_example_that_a_test_reads(page: Path) -> None:
    if page.stem in REFERENCE:
        return
    assert len(WORKED.findall(page.read_text(encoding="utf-8"))) == 1, f"{page.name}: ## Worked example"
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    assert re.search(rf'worked\("docs/{page.name}"\)|fenced\("docs/{page.name}"|/ "{page.name}"', tests)


def variables(source: str) -> set[str]:
    """Names of environment variables in Python source: what is asked of os.environ by a literal, and any
    literal that looks like one of those whose families we read.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and re.fullmatch(FAMILIES, str(node.value)):
            found.add(str(node.value))
        asked: ast.AST | None = None
        if isinstance(node, ast.Call) and node.args and re.search(r"environ|getenv", ast.unparse(node.func)):
            asked = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            asked = node.slice
        if isinstance(asked, ast.Constant) and re.fullmatch(r"[A-Z][A-Z0-9_]*", str(asked.value)):
            found.add(str(asked.value))
    return found


def test_a_variable_is_found_however_the_source_asks_for_it() -> None:
    asked = ('os.environ.get("A_B", "")', 'os.environ["C"] = "1"', 'os.getenv("D")', 'KEY = "PLETHORA_X"')
    source = "\n".join([*asked, 'environ.split(",")', 'os.sysconf("SC_Z")'])
    assert variables(source) == {"A_B", "C", "D", "PLETHORA_X"}


def test_every_environment_variable_that_the_source_reads_stands_on_the_page() -> None:
    page = (DOCS / "cluster.md").read_text(encoding="utf-8").split("## Environment variables")[1]
    named = set(re.findall(r"[A-Z][A-Z0-9_]{2,}", page))
    asked = {
        name: path.relative_to(ROOT)
        for folder in ("cluster", "datasets", "pretrain", "finetune", "tuning")
        for path in (ROOT / folder).rglob("*.py")
        for name in variables(path.read_text(encoding="utf-8"))
    }
    assert len(asked) > 30
    assert {name: str(path) for name, path in asked.items() if name not in named} == {}
