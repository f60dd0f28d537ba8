"""Hostile bundles, sealed so that their sums agree: each is refused with one line, and nothing of it runs."""

import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cluster import bundle, storage
from cluster.errors import PlethoraError
from finetune.encoders.bundle import BundleEncoder, untrained
from pretrain.trained import open_trained
from tests.finetune import tiny
from tests.security import kit

NAN, INF = float("nan"), float("inf")


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("good")
    return Path(tiny.make_bundle(home / "made", str(home / "bundle")))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil; beside it lies a folder that nothing may be written to."""
    (tmp_path / "outside").mkdir()
    return Path(shutil.copytree(good, tmp_path / "bundle"))


def use(uri: str) -> None:
    """All that we do with a bundle that somebody hands us."""
    bundle.verify(uri)
    encoder = BundleEncoder(uri, threads=1)
    encoder.embed(np.random.default_rng(0).normal(size=(2, 1, 1250)), 125)
    open_trained(uri)
    untrained(encoder.bundle.config, encoder.mode, 0)


def refused(folder: Path, said: str) -> None:
    home = folder.parent
    before = sorted(p for p in home.rglob("*"))
    with pytest.raises(PlethoraError) as caught:
        use(str(folder))
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 900
    assert sorted(p for p in home.rglob("*")) == before  # nothing written, nothing executed


def test_the_bundle_that_the_others_are_made_of_is_good(folder: Path) -> None:
    use(kit.seal_bundle(folder))


def graph(nodes: list[Any], initializers: list[Any]) -> bytes:
    x = helper.make_tensor_value_info("ppg", TensorProto.FLOAT, ["b", 1, "s"])
    y = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["b", None])
    made = helper.make_graph(nodes, "g", [x], [y], initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return bytes(model.SerializeToString())


def mean() -> Any:
    return helper.make_node("ReduceMean", ["ppg"], ["m"], axes=[2], keepdims=0)


def weights_elsewhere(place: str) -> bytes:
    weights = TensorProto(name="w", data_type=1, dims=[1, 24], data_location=TensorProto.EXTERNAL)
    entry = weights.external_data.add()
    entry.key, entry.value = "location", place
    return graph([mean(), helper.make_node("MatMul", ["m", "w"], ["embedding"])], [weights])


def forty_terabytes() -> bytes:
    shape = numpy_helper.from_array(np.array([10**7, 10**6]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        mean(),
        helper.make_node("Add", ["m", "sum"], ["embedding"]),
    ]
    return graph(nodes, [shape])


def unknown_operator() -> bytes:
    node = helper.make_node("Shell", ["ppg"], ["embedding"], domain="evil")
    model = onnx.load_from_string(graph([node], []))
    model.opset_import.append(helper.make_opsetid("evil", 1))
    return bytes(model.SerializeToString())


def test_weights_that_are_a_pickle_are_not_unpickled(folder: Path) -> None:
    data = pickle.dumps(_Evil(folder.parent / "outside/executed"))
    (folder / "model.safetensors").write_bytes(data)
    kit.seal_bundle(folder)
    refused(folder, "model.safetensors holds no weights")


@pytest.mark.parametrize("name", ["ppg.onnx", "config.json", "lineage.json", "model.pkl", "weights.pt"])
def test_a_pickle_under_any_name_is_not_unpickled(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(_Evil(folder.parent / "outside/executed")))
    kit.seal_bundle(folder)
    refused(folder, name)


@pytest.mark.parametrize(
    "name", ["../outside/x.json", "/etc/passwd.json", "a/../../outside/x.json", "..\\x.json"]
)
def test_a_listed_name_that_leads_out_is_refused(folder: Path, name: str) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    kit.seal_sums(folder, [*lines, f"{'0' * 64}  {name}"])
    refused(folder, "SHA256SUMS holds a line")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "plots"])
def test_a_link_is_refused_even_to_the_right_content(folder: Path, name: str) -> None:
    there, link = folder.parent / "outside" / name, folder / name
    if link.exists():
        shutil.move(link, there)
    else:
        there.mkdir()
        (there / "a.png").write_bytes(b"x")
    link.symlink_to(there)
    kit.seal_bundle(folder)
    if name == "plots":  # a walk does not enter it: its files are not seen
        (folder / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text() + f"{'0' * 64}  plots/a.png\n")
        kit.seal_sums(folder, (folder / "SHA256SUMS").read_text().splitlines())
        refused(folder, "plots/a.png")
        return
    refused(folder, "is a link")


def test_a_link_is_not_published_either(folder: Path, tmp_path: Path) -> None:
    (folder / "_COMPLETE").unlink()
    (tmp_path / "outside/secret.json").write_text("{}")
    (folder / "notes.json").symlink_to(tmp_path / "outside/secret.json")
    with pytest.raises(PlethoraError, match=r"`notes\.json` is a link"):
        bundle.publish(folder, str(tmp_path / "published"))


@pytest.mark.parametrize("size", [2**60, 2 * 10**8, 10**6])
def test_a_huge_header_of_weights_takes_no_memory(folder: Path, size: int) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    kit.seal_bundle(folder)
    refused(folder, "model.safetensors holds no weights")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("metrics.json", b"[" * 200_000),
        ("config.json", b'{"a":' * 200_000),
        ("preprocessing.json", b"{"),
        ("lineage.json", b"\xff\xfe{"),
        ("lineage.json", b"[]"),
        ("lineage.json", b'{"corpora": 5}'),
    ],
)
def test_a_document_that_is_none_is_named(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    kit.seal_bundle(folder)
    refused(folder, name)


@pytest.mark.parametrize(
    "change",
    [
        {"rate": NAN},
        {"rate": 0},
        {"rate": 1e300},
        {"rate": "../.."},
        {"band": [NAN, 8]},
        {"band": [-1, 8]},
        {"order": 10**9},
        {"min_s": 1e12},
        {"multiple_s": 0},
        {"window_s": INF},
        {"max_s": 1e6, "rate": 1e5},
        {"notch": NAN},
        {"short": "eval"},
        {"min_rate": -1},
    ],
    ids=str,
)
def test_a_number_that_would_crash_or_fill_the_memory_is_named(folder: Path, change: dict[str, Any]) -> None:
    kit.edit_json(folder / "preprocessing.json", lambda table: table["ppg"].update(change))
    kit.seal_bundle(folder)
    refused(folder, "preprocessing.json, ppg")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["modes"]["ppg"].update(dim=10**12), "modes.ppg.dim"),
        (lambda t: t["modes"]["ppg"]["inputs"][0].update(channels=10**9), "channels"),
        (lambda t: t["modes"]["ppg"]["inputs"][0].update(rate=NAN), "rate"),
        (lambda t: t["modes"]["ppg"].update(file="../../outside/x.onnx"), "not in the bundle"),
        (lambda t: t.update(run=[1]), "`run`"),
        (lambda t: t["run"].update(recipe={}), "names no recipe"),
        (lambda t: t["run"].update(method={"dim": 10**7}), "more than half of this machine's memory"),
    ],
)
def test_a_configuration_out_of_bounds_is_named(
    folder: Path, change: Callable[[Any], Any], said: str
) -> None:
    kit.edit_json(folder / "config.json", change)
    kit.seal_bundle(folder)
    refused(folder, said)


@pytest.mark.parametrize("recipe", ["antigravity:X", "os:system", "http.server:Server", "\x1b]0;x\x07:B"])
def test_a_bundle_has_no_module_imported_but_ours(
    folder: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.edit_json(folder / "config.json", lambda table: table["run"].update(recipe=recipe))
    kit.seal_bundle(folder)
    refused(folder, "is no part of this checkout")


def test_a_module_is_imported_once_the_environment_names_its_package(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text("from tests.finetune.tiny import Tiny as Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kit.edit_json(folder / "config.json", lambda table: table["run"].update(recipe="elsewhere:Mine"))
    kit.seal_bundle(folder)
    with pytest.raises(PlethoraError, match="PLETHORA_RECIPES=elsewhere"):
        open_trained(str(folder))
    monkeypatch.setenv("PLETHORA_RECIPES", "other, elsewhere")
    assert open_trained(str(folder))[0].uri == str(folder)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: b"graph", "cannot open this model"),
        (lambda: weights_elsewhere("../outside/w.bin"), "cannot open this model"),
        (lambda: weights_elsewhere("/etc/hostname"), "cannot open this model"),
        (unknown_operator, "cannot open this model"),
        (forty_terabytes, "does not run"),
        (
            lambda: graph([mean(), helper.make_node("Identity", ["m"], ["embedding"])], []),
            "it states 24",
        ),
    ],
    ids=[
        "no-graph",
        "weights-above",
        "weights-anywhere",
        "unknown-operator",
        "forty-terabytes",
        "other-size",
    ],
)
def test_a_graph_that_reaches_out_or_does_not_run_is_one_line(
    folder: Path, data: Callable[[], bytes], said: str
) -> None:
    (folder.parent / "outside/w.bin").write_bytes(bytes(96))
    (folder / "ppg.onnx").write_bytes(data())
    kit.seal_bundle(folder)
    refused(folder, said)


def test_a_wrong_hash_is_refused_before_the_file_is_used(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Evil(folder.parent / "outside/executed")))
    refused(folder, "`model.safetensors` is damaged or was changed")


def test_an_object_whose_name_leads_out_is_not_downloaded(tmp_path: Path) -> None:
    for name in ("../outside", "/etc/x", "a/../../x"):
        with pytest.raises(PlethoraError, match="leads out of its folder"):
            storage.inside(tmp_path / "here", name)
    assert storage.inside(tmp_path, "a/b..c/d") == tmp_path / "a/b..c/d"
