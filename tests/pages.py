"""What tests of the documents share: the pages, their fenced blocks and commands."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
WORKED = re.compile(r"^## (?:A w|W)orked example.*?\n(.*?)(?=^## |\Z)", re.M | re.S)


def fenced(page: str, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return blocks((ROOT / page).read_text(encoding="utf-8"), language)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def worked(page: str) -> str:
    """The section of a page with its worked example."""
    (section,) = WORKED.findall((ROOT / page).read_text(encoding="utf-8"))
    return str(section)


def commands(text: str) -> list[list[str]]:
    """Every complete `python -m …`, as words after `-m`; backticked bare modules count, too. What a job runs
    (after `--`) is a command of its own.
    """
    text = text.replace("\\\n", " ").replace(" -- python -m ", "\npython -m ")
    found = [shlex.split(line, comments=True) for line in re.findall(r"python -m ([^`\n]+)", text)]
    return [words for words in found if words]


def run(words: list[str], out: Path) -> Any:
    """A command of a page in this process, with `out/` at `out`. Returns what `--json` prints."""
    module, *rest = [re.sub(r"(^|=)out/", rf"\g<1>{out}/", word) for word in words]
    return importlib.import_module(f"{module}.__main__").main(rest)
