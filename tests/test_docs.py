"""The documents tell the truth: their commands, files and code are those of this tree."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.pages import PAGES, commands, fenced

PACKAGES = ("cluster", "datasets", "pretrain", "finetune", "tuning", "infra", "tests", "docs", ".ci")
TO_WRITE = {  # what the guides let their readers write
    "pretrain/recipes/hidden.py",
    "datasets/readers/pulse.py",
    "tests/datasets/test_pulse.py",
    "finetune/tasks/af_strip.toml",
    "finetune/commands/hours.py",
    "tuning/searches/lr.toml",
}
COMMAND_TO_WRITE = "hours"  # of finetune: tests/finetune/test_command_docs.py follows its guide
BY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def help_of(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"python -m {' '.join(words)} --help: {done.stderr}"
    return done.stdout


def pretrain_runs(page: Path) -> list[tuple[str, list[str]]]:
    """(run file, --set values) of each `python -m pretrain FILE …` whose file lies in the tree."""
    runs = []
    for words in commands(page.read_text(encoding="utf-8")):
        if words[0] == "pretrain" and len(words) > 1 and words[1].startswith("pretrain/"):
            runs.append((words[1], [words[i + 1] for i, word in enumerate(words) if word == "--set"]))
    return runs


@BY_PAGE
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    for module, *rest in commands(page.read_text(encoding="utf-8")):
        if module.startswith("tests."):
            assert importlib.util.find_spec(module), f"{page.name}: no module {module}"
            continue
        verb = rest[:1] if rest and re.fullmatch(r"[a-z][a-z-]*", rest[0]) else []
        if verb == [COMMAND_TO_WRITE]:
            continue
        known = help_of(module, *verb)
        for option in (word.split("=")[0] for word in rest if word.startswith("--")):
            assert option in known, f"{page.name}: python -m {module} {' '.join(verb)} has no {option}"


@BY_PAGE
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [page.parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
    starts = "|".join(re.escape(name) for name in PACKAGES)
    # a path of the tree with at least one slash
    named = re.findall(rf"(?<![\w/.<>-])((?:{starts})/[\w./-]*)", text)
    paths = [ROOT / name.rstrip(".") for name in named if name not in TO_WRITE]
    missing = [str(path.relative_to(ROOT)) for path in [*links, *paths] if not path.exists()]
    assert not missing, f"{page.name} names {missing}"


@BY_PAGE
def test_every_make_target_that_a_page_names_is_in_the_makefile(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^ +)make ([a-z]+)", page.read_text(encoding="utf-8"), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), f"{page.name}: make {target}"


@BY_PAGE
def test_the_run_files_and_keys_of_a_page_are_right(page: Path) -> None:
    from cluster.config import load, validate
    from pretrain.config import RunConfig
    from pretrain.recipe import load as load_recipe

    runs = [run for run in pretrain_runs(page) if "$" not in f"{run}"]  # a shell's variables are not ours
    assert runs or page.name != "README.md"
    for path, sets in runs:
        run = load(ROOT / path, RunConfig, sets)
        validate(load_recipe(run.recipe).Config, run.method, path)


def test_the_mixtures_of_the_pages_are_of_the_same_two_corpora(tmp_path: Path) -> None:
    from cluster.config import load
    from pretrain.config import RunConfig

    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    given = re.findall(r"--set '(corpus=[^']+)'", pages)
    assert given
    (tmp_path / "run.toml").write_text('recipe = "a:B"\nname = "x"\nbatch = 2\nsteps = 1\n')
    for text in given:
        run = load(tmp_path / "run.toml", RunConfig, [text])
        assert set(run.corpora) == {"out/bidmc", "out/cinc2015"} and sum(run.corpora.values()) == 1


def test_the_descriptor_of_the_data_page_is_one(tmp_path: Path) -> None:
    from datasets.ingest import read_descriptor

    text, *_ = fenced("docs/data.md", "toml")  # the others: tests/datasets/test_data_docs.py
    (tmp_path / "ward7.toml").write_text(text, encoding="utf-8")
    descriptor = read_descriptor(tmp_path / "ward7.toml")
    found = re.fullmatch(descriptor.records, "p12_3.hea")
    assert found and found["record"] == "p12_3"
    searched = re.search(descriptor.subject.pattern, found["record"])
    assert searched and searched[1] == "p12"


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, Any]:
    """(recipe, run) of docs/adding_a_recipe.md, built from its two blocks as the loop builds them."""
    from cluster.config import load
    from pretrain.config import RunConfig
    from pretrain.recipe import build

    (code,), (table,) = fenced("docs/adding_a_recipe.md", "python"), fenced("docs/adding_a_recipe.md", "toml")
    module = ModuleType("pretrain.recipes.hidden")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    (tmp_path / "hidden.toml").write_text(table, encoding="utf-8")
    run = load(tmp_path / "hidden.toml", RunConfig)
    return build(run.recipe, run.method, run.seed), run


ANOTHER_BAND = """
from hidden import *

class AnotherBand(Hidden):
    def encoder(self, modules):
        found = super().encoder(modules)
        found.preprocessing["ppg"]["band"] = [0.5, 4.0]
        return found
"""


def test_the_recipe_of_the_recipe_page_keeps_the_contract_and_one_with_another_band_fails_it(tmp_path: Path):
    (code,) = fenced("docs/adding_a_recipe.md", "python")
    (tmp_path / "hidden.py").write_text(code, encoding="utf-8")
    (tmp_path / "another.py").write_text(ANOTHER_BAND, encoding="utf-8")
    file = "tests/pretrain/test_recipe_contract.py"
    words = ["--recipe", "hidden:Hidden", "--recipe", "another:AnotherBand", "--method", "dim=16", "-rA"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", file, *words, "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    failed = re.findall(r"^FAILED \S+::(\S+)", done.stdout, re.M)
    name = "test_what_is_published_describes_the_windows_that_were_trained_on"
    assert failed == [f"{name}[another:AnotherBand]"], done.stdout[-3000:] + done.stderr[-1000:]
    assert "ppg: band is (0.5, 4.0), in training (0.5, 8.0)" in done.stdout
    assert len(re.findall(r"^PASSED .*hidden:Hidden", done.stdout, re.M)) > 15


def test_the_code_of_the_readme_runs_what_the_recipe_page_publishes(hidden, tmp_path: Path) -> None:
    import torch

    from datasets.signal import prepare
    from pretrain.export import TOLERANCE, export_onnx
    from pretrain.publish import describe

    recipe, _ = hidden
    encoder = recipe.encoder(recipe.modules())
    mode, about = encoder.modes["ppg"], describe(encoder)
    assert about["ppg"]["max_s"] == recipe.windows().window_s
    assert export_onnx(mode, tmp_path / "ppg.onnx") <= TOLERANCE
    (tmp_path / "preprocessing.json").write_text(json.dumps(about))

    (code,) = fenced("README.md", "python")
    names: dict[str, Any] = {}
    exec(code.replace("bundles/plethora-small/bundle", str(tmp_path)), names)
    x = prepare(names["raw"][None, None], names["rate"], recipe.windows().signals[0])
    with torch.no_grad():
        np.testing.assert_allclose(names["vector"], mode.module(torch.from_numpy(x)), atol=TOLERANCE)


def test_the_citation_names_the_version_and_the_licence_of_the_project() -> None:
    import tomllib

    import yaml

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert not {"doi", "url", "repository-code"} & set(cited)  # until there is one
