"""The house stands: imports run one way, networks stay bare, files stay small, nothing is pickled."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("cluster", "datasets", "pretrain", "finetune", "tuning")  # each may import those before it
BARE = ("layers", "quantizer", "masking", "losses")  # networks: run on a GPU machine with torch alone
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


@pytest.mark.parametrize("name", BARE)
def test_networks_import_torch_alone(name: str) -> None:
    import sys

    path = ROOT / "pretrain" / f"{name}.py"
    if not path.is_file():
        pytest.skip(f"pretrain/{name}.py is not there")
    allowed = BARE_THIRD_PARTY | set(sys.stdlib_module_names)
    if name == "quantizer":
        allowed = allowed | {"vector_quantize_pytorch"}
    ours = {f"pretrain.{other}" for other in BARE}
    wrong = []
    for module, line in _imports_of(path):
        of_ours = module == "pretrain" or any(
            module == each or module.startswith(f"{each}.") for each in ours
        )
        if module.split(".")[0] not in allowed and not of_ours:
            wrong.append(f"{module} (line {line})")
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


def test_no_source_uses_pickle() -> None:
    wrong = {
        str(path.relative_to(ROOT)): found
        for layer in LAYERS
        for path in _sources(layer)
        if (found := pickling(path.read_text(encoding="utf-8"), _package_of(path)))
    }
    assert not wrong


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
