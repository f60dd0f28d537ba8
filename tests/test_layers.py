"""The house stands: imports run one way, networks stay bare, files stay small, nothing is pickled."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("cluster", "datasets", "pretrain", "finetune", "tuning")  # each may import those before it
BARE_THIRD_PARTY = {"torch", "numpy"}
MAX_LINES = 400
PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def _sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(source: str, package: str) -> Iterator[tuple[str, int]]:
    """(dotted module, line) of every import anywhere in `source`, of a module in `package` ("a.b").

    Late imports inside functions count, relative ones are resolved, and import_module and __import__ with a
    literal name count, too.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem, node.lineno
            for alias in node.names:
                yield f"{stem}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value), node.lineno


def _package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def _imports_of(path: Path) -> list[tuple[str, int]]:
    return list(imports(path.read_text(encoding="utf-8"), _package_of(path)))


def backward(source: str, layer: str, package: str) -> list[str]:
    """Imports in `source` of `layer` that run against the arrows."""
    later = {*LAYERS[LAYERS.index(layer) + 1 :], "tests", "infra"}
    return [f"{name} (line {line})" for name, line in imports(source, package) if name.split(".")[0] in later]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer: str) -> None:
    assert _sources(layer), f"no source in {layer}: the test would prove nothing"
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in _sources(layer)
        if (found := backward(path.read_text(encoding="utf-8"), layer, _package_of(path)))
    }
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import pretrain",
        "import os, finetune.probe",
        "from pretrain.loop import fit",
        "def late():\n    from tuning import search",
        "if True:\n    import finetune as f",
        "import importlib\nimportlib.import_module('pretrain.loop')",
        "__import__('tuning')",
        "from tuning.search import *",
    ],
)
def test_an_import_against_the_arrows_is_seen_wherever_it_hides(source: str) -> None:
    assert backward(source, "datasets", "datasets.readers")
    assert not backward(
        "from cluster import storage\nfrom . import wfdb\nimport ray", "datasets", "datasets.readers"
    )


def test_infra_holds_no_importable_python() -> None:
    assert not [
        path for path in _sources("infra") if path.name == "__init__.py" or path.parent == ROOT / "infra"
    ]


def networks() -> list[Path]:
    """The files that define networks and losses: they say that they import torch alone, so that they run on a
    GPU machine that has nothing else.
    """
    found = []
    for path in _sources("pretrain"):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if re.search(r"Imports torch\b.*\balone", about):
            found.append(path)
    return found


def needs(path: Path, seen: set[Path]) -> set[str]:
    """Packages that a file needs when it is imported, by what it imports of ours, too."""
    if path in seen:
        return set()
    seen.add(path)
    found: set[str] = set()
    for module, _ in _imports_of(path):
        ours = ROOT / Path(*module.split(".")).with_suffix(".py")
        if ours.is_file():
            found |= needs(ours, seen)
        elif module.split(".")[0] not in LAYERS:
            found.add(module.split(".")[0])
    return found


def test_networks_import_torch_alone() -> None:
    import sys

    found = networks()
    assert {path.stem for path in found} >= {"layers", "quantizer", "masking", "losses", "contrastive"}
    nets = {path.stem for path in _sources("pretrain") if path.stem.endswith("_net")} | {"net1d"}
    assert len(nets) > 2 and nets <= {path.stem for path in found}
    allowed = {"torch", "numpy", "vector_quantize_pytorch", *sys.stdlib_module_names}
    assert {path.stem: wrong for path in found if (wrong := needs(path, set()) - allowed)} == {}


# ---------------------------------------------------------------- circles, commands


def arrows(folder: str) -> dict[str, set[str]]:
    """{module: modules of the same folder that it imports}, late imports included, those for types alone
    (`if TYPE_CHECKING`) not.
    """
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in _sources(folder)}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        named = {module for module, _ in imports(ast.unparse(tree), _package_of(path))}
        # `from a.b import c` names a.b too; where c is a module, that one is meant
        parents = {m.rpartition(".")[0] for m in named if m in paths}
        found[name] = {m for m in named if m in paths and m not in parents} - {name}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; [] where there is none."""
    left = dict(graph)
    while free := [name for name, to in left.items() if not to & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("layer", LAYERS)
def test_no_modules_import_each_other_in_a_circle(layer: str) -> None:
    assert circle(arrows(layer)) == []


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_command_imports_a_command() -> None:
    commands = _sources("finetune/commands")
    assert len(commands) > 10
    wrong = {
        path.name: module
        for path in commands
        for module, _ in _imports_of(path)
        if module.startswith("finetune.commands.")
    }
    assert not wrong


def _tracked(*patterns: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]


def test_no_file_is_over_400_lines() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in _tracked("*.py")
    }
    assert lengths
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


def pickling(source: str, package: str) -> list[str]:
    """Places in `source` that write or read pickles: modules, torch.load without weights_only, NumPy's."""
    found = [
        f"{name} (line {line})" for name, line in imports(source, package) if name.split(".")[0] in PICKLERS
    ]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        words = {word.arg: word.value for word in node.keywords}
        called = ast.unparse(node.func)
        weights_only = words.get("weights_only")
        safe = isinstance(weights_only, ast.Constant) and weights_only.value is True
        if called in ("torch.load", "torch.serialization.load") and not safe:
            found.append(f"{called} without weights_only=True (line {node.lineno})")
        allow = words.get("allow_pickle")
        if allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False):
            found.append(f"{called} with allow_pickle (line {node.lineno})")
        if called.endswith(".read_pickle") or called.endswith(".to_pickle"):
            found.append(f"{called} (line {node.lineno})")
    return found


UNPICKLER = "datasets/readers/pickles.py"  # runs nothing of a file: tests/datasets/test_pickles.py


def test_no_source_uses_pickle_but_the_unpickler_of_arrays() -> None:
    wrong = {
        str(path.relative_to(ROOT)): found
        for layer in LAYERS
        for path in _sources(layer)
        if (found := pickling(path.read_text(encoding="utf-8"), _package_of(path)))
    }
    assert set(wrong) == {UNPICKLER} and [word.split()[0] for word in wrong[UNPICKLER]] == ["pickle"]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from cloudpickle import dumps",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import pandas as pd\npd.read_pickle('x')",
    ],
)
def test_a_pickle_is_seen_wherever_it_hides(source: str) -> None:
    assert pickling(source, "cluster")
    assert not pickling("import torch, json\ntorch.load('x', weights_only=True)", "cluster")
