"""The reader of docs/adding_a_reader.md reads its files and survives damaged ones."""

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from datasets.readers import READERS
from tests.datasets import test_fuzz

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adding_a_reader.md").read_text(encoding="utf-8")
READER, TESTS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
(DESCRIPTOR,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
WRITTEN = re.findall(r"^def (test_\w+)\(tmp_path\)", TESTS, re.M)


def code(name: str, text: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the page, as if it lay where the page puts it."""
    module = ModuleType(name)
    patch.setitem(sys.modules, name, module)
    exec(compile(text, name, "exec"), vars(module))
    return module


@pytest.fixture
def guide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The page's tests, with its reader in place and its descriptor in the current folder."""
    monkeypatch.setitem(READERS, "pulse", code("datasets.readers.pulse", READER, monkeypatch))
    (tmp_path / "watch.toml").write_text(DESCRIPTOR, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return code("test_pulse", TESTS, monkeypatch)


@pytest.mark.parametrize("name", WRITTEN)
def test_each_test_of_the_guide_passes(name, guide, tmp_path):
    (tmp_path / "root").mkdir()
    getattr(guide, name)(tmp_path / "root")


def test_no_second_is_lost_and_nothing_escapes_when_its_files_are_damaged(guide, tmp_path, monkeypatch):
    import numpy as np

    def watch(folder):
        t = np.arange(640) / 64
        wave = 500 * np.sin(2 * np.pi * 1.2 * t)
        guide.write(folder / "p1_1.pls", np.stack([wave, -wave], axis=1).round())
        return DESCRIPTOR

    try:
        test_fuzz.survives(watch, [])
        for at in range(0, 32):  # the header, byte by byte
            for how in (1, 64, 128, 255):
                test_fuzz.survives(watch, [(0, ("flip", 4 * at, how))])
        for harm in (("cut", 4 * 700, 0), ("cut", 4 * 20, 0), ("drop", 4 * 40, 100), ("gone", 0, 0)):
            test_fuzz.survives(watch, [(0, harm)])
    finally:
        shutil.rmtree(test_fuzz.template(watch)[1].parent)
