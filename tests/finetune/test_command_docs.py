"""The page on adding a command, followed to the letter."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from datasets.synthetic import synthesize
from finetune import __main__ as command_line

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_command.md"


def test_the_command_of_the_page_runs_and_writes_its_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, arguments = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("finetune.commands.hours")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(command, "hours.py", "exec"), vars(module))
    monkeypatch.setattr(command_line, "COMMANDS", dict(command_line.COMMANDS))
    exec(compile(arguments, "__main__.py", "exec"), vars(command_line))
    corpus, out = str(tmp_path / "corpus"), tmp_path / "out"
    synthesize(corpus, hours=0.5, subjects=3)
    results = command_line.main(["hours", "--corpus", corpus, "--out", str(out)])
    assert sum(results["hours"].values()) == pytest.approx(0.5, rel=0.05) and len(results["hours"]) == 3
    assert {path.name for path in out.iterdir()} == {"hours.md", "report.html", "results.json"}
    assert json.loads((out / "results.json").read_text()) == {"hours": results["hours"]}
    assert "3 subjects" in capsys.readouterr().out
