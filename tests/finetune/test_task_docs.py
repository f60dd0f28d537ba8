"""The task of docs/adding_a_task.md is one, and an evaluation asks it."""

import re
from pathlib import Path
from typing import Any

import pytest

from finetune.__main__ import main
from finetune.task import load_task

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adding_a_task.md").read_text(encoding="utf-8")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    path = tmp_path / "af_strip.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_guides_task_asks_what_the_guide_says(task: Path) -> None:
    found = load_task(str(task))
    assert (found.kind, found.window_s, found.main) == ("binary", 10.0, "auroc")
    assert found.aggregate.coverage == 0.8


def test_a_variant_states_only_what_differs(task: Path) -> None:
    variant = task.with_name("af_minute.toml")
    variant.write_text('extends = "af_strip.toml"\nname = "af_minute"\nwindow_s = 60.0\n', encoding="utf-8")
    found = load_task(str(variant))
    assert found.window_s == 60.0 and found.positives == load_task(str(task)).positives


def test_the_guides_task_gives_a_table_beside_its_baselines(
    ray_session: Any, bundle: str, corpus: str, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", "--bundle", bundle, "--corpus", corpus, "--task", str(task), "--no-publish"])
    said = capsys.readouterr().out
    assert "Atrial fibrillation in a 10-s strip" in said
    assert "AUROC" in said and "Demographics" in said
