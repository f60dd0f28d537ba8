"""The bundle contract: what is published verifies, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import bundle, storage
from cluster.errors import PlethoraError

CONFIG: dict[str, Any] = {
    "version": 1,
    "kind": "encoder",
    "modes": {
        "ppg": {
            "file": "ppg.onnx",
            "inputs": [{"name": "x", "modality": "ppg", "rate": 50, "channels": 1}],
            "dim": 64,
        }
    },
    "run": {"seed": 0},
}


def make_folder(folder: Path, config: dict[str, Any] = CONFIG) -> Path:
    """A finished bundle folder, its heavy files stood in for by a few bytes."""
    (folder / "plots").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("preprocessing", "metrics", "lineage"):
        (folder / f"{name}.json").write_text(json.dumps({"of": name}))
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "ppg.onnx").write_bytes(b"graph")
    (folder / "README.md").write_text("# card\n")
    (folder / "plots/loss.png").write_bytes(b"picture")
    return folder


@pytest.fixture(params=["local", "s3"])
def published(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a bundle published on each kind of storage."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "s3":
        request.getfixturevalue("store")
        uri = f"s3://plethora/{uuid.uuid4().hex}/run/bundle"
    else:
        uri = str(tmp_path / "store/run/bundle")
    bundle.publish(make_folder(tmp_path / "made"), uri)
    return uri


def test_a_published_bundle_verifies_and_opens(published: str) -> None:
    assert bundle.verify(published) == {
        "uri": published,
        "files": 8,
        "bytes": sum(
            size for name, size in storage.sizes(published).items() if name not in ("SHA256SUMS", "_COMPLETE")
        ),
        "kind": "encoder",
    }
    opened = bundle.open(published)
    assert opened.config == CONFIG
    assert (opened.preprocessing, opened.metrics, opened.lineage) == (
        {"of": "preprocessing"},
        {"of": "metrics"},
        {"of": "lineage"},
    )
    assert opened.path("model.safetensors").read_bytes() == b"weights" * 1000
    assert opened.path("plots/loss.png").suffix == ".png"
    sums = storage.read_bytes(storage.join(published, "SHA256SUMS"))
    assert (
        storage.read_bytes(storage.join(published, "_COMPLETE")).decode().strip()
        == hashlib.sha256(sums).hexdigest()
    )
    listed = dict(reversed(line.split("  ")) for line in sums.decode().splitlines())
    assert listed["ppg.onnx"] == hashlib.sha256(b"graph").hexdigest()


def _change(name: str) -> Callable[[str], None]:
    def damage(uri: str) -> None:
        content = bytearray(storage.read_bytes(storage.join(uri, name)))
        content[0] ^= 1
        storage.write_bytes(storage.join(uri, name), bytes(content))

    return damage


def _remove(name: str) -> Callable[[str], None]:
    return lambda uri: storage.delete(storage.join(uri, name))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_remove("_COMPLETE"), "no complete bundle is here: _COMPLETE is missing"),
        (_change("model.safetensors"), "`model.safetensors` is damaged or was changed"),
        (_change("README.md"), "`README.md` is damaged or was changed"),
        (_change("SHA256SUMS"), "SHA256SUMS is not the one that _COMPLETE vouches for"),
        (_remove("SHA256SUMS"), "SHA256SUMS: no such file"),
        (_remove("ppg.onnx"), "`ppg.onnx` is listed in SHA256SUMS and missing"),
        (
            lambda uri: storage.write_bytes(storage.join(uri, "extra.json"), b"{}"),
            "`extra.json` is not listed",
        ),
        (
            lambda uri: storage.write_bytes(storage.join(uri, "plots/x.pkl"), b"x"),
            "`plots/x.pkl` is not listed",
        ),
    ],
)
def test_a_damaged_bundle_is_refused_by_one_line_naming_the_file(
    published: str, damage: Callable[[str], None], said: str
) -> None:
    damage(published)
    with pytest.raises(PlethoraError) as caught:
        bundle.verify(published)
    assert said in str(caught.value)
    assert published in str(caught.value)
    assert "\n" not in str(caught.value)


def test_opening_refuses_a_changed_file_at_the_time_of_use(published: str) -> None:
    opened = bundle.open(published)
    _change("model.safetensors")(published)
    with pytest.raises(PlethoraError, match="damaged or was changed"):
        opened.path("model.safetensors")
    _change("config.json")(published)
    with pytest.raises(PlethoraError, match=r"`config\.json` is damaged"):
        _without_cache(published)


def _without_cache(uri: str) -> None:
    import shutil

    shutil.rmtree(bundle._cache(), ignore_errors=True)
    bundle.open(uri)


def test_a_damaged_file_in_the_cache_is_fetched_again(
    store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"s3://plethora/{uuid.uuid4().hex}/bundle"
    bundle.publish(make_folder(tmp_path / "made"), uri)
    cached = bundle.open(uri).path("model.safetensors")
    cached.write_bytes(b"rot")
    assert bundle.open(uri).path("model.safetensors").read_bytes() == b"weights" * 1000


def test_an_unlisted_file_cannot_be_opened(published: str) -> None:
    with pytest.raises(PlethoraError, match=r"no file `\.\./made/README\.md` in this bundle"):
        bundle.open(published).path("../made/README.md")


def _vouched(folder: Path, sums: str) -> str:
    """A folder whose `_COMPLETE` vouches for the given SHA256SUMS text."""
    folder.mkdir()
    (folder / "SHA256SUMS").write_text(sums)
    (folder / "_COMPLETE").write_text(hashlib.sha256(sums.encode()).hexdigest())
    return str(folder)


@pytest.mark.parametrize(
    "name", ["model.pkl", "weights.pt", "../config.json", "/etc/config.json", "a.json.bin"]
)
def test_a_bundle_that_lists_a_foreign_file_is_refused_even_when_its_sums_agree(
    tmp_path: Path, name: str
) -> None:
    uri = _vouched(tmp_path / "b", f"{'0' * 64}  {name}\n")
    for read in (bundle.verify, bundle.open):
        with pytest.raises(PlethoraError, match="no bundle may hold"):
            read(uri)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "lineage.json").unlink(), r"`lineage\.json` is missing"),
        (lambda folder: (folder / "model.pkl").write_bytes(b""), r"`model\.pkl` has no place"),
        (lambda folder: (folder / "checkpoint.pt").write_bytes(b""), r"`checkpoint\.pt` has no place"),
        (lambda folder: (folder / "metrics.json").write_text("{"), r"metrics\.json: not a JSON file"),
        (lambda folder: (folder / "ppg.onnx").unlink(), r"mode `ppg` names `ppg\.onnx`"),
    ],
)
def test_a_folder_outside_the_contract_is_not_published(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    folder = make_folder(tmp_path / "made")
    spoil(folder)
    with pytest.raises(PlethoraError, match=said):
        bundle.publish(folder, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "optimizer"}, "`kind`"),
        ({"version": 3}, "newer than ours"),
        ({"version": "1"}, "`version`"),
        ({"modes": {"ppg": {"file": "ppg.onnx", "inputs": [], "dim": 4}}}, r"`modes\.ppg\.inputs`"),
        ({"modes": {"ppg": {"file": "ppg.onnx", "dim": 4}}}, r"`modes\.ppg\.inputs` is missing"),
    ],
)
def test_a_config_outside_the_contract_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = make_folder(tmp_path / "made", {**CONFIG, **change})
    with pytest.raises(PlethoraError, match=said):
        bundle.publish(folder, str(tmp_path / "out"))


def test_a_complete_bundle_is_never_overwritten(published: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "second")
    (folder / "README.md").write_text("another card")
    with pytest.raises(PlethoraError, match="already published"):
        bundle.publish(folder, published)
    assert storage.read_bytes(storage.join(published, "README.md")) == b"# card\n"
    bundle.verify(published)


def test_an_evaluation_lies_beside_the_bundle_verifies_and_is_written_once(
    published: str, tmp_path: Path
) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "metrics.json").write_text('{"mae": 3.1}')
    uri = bundle.write_evaluation(published, folder)
    run = published.rpartition("/")[0]
    assert uri.startswith(f"{run}/evaluations/")
    assert bundle.write_evaluation(published, folder) == uri
    assert bundle.verify(uri)["kind"] == "evaluation"
    bundle.verify(published)
    (folder / "metrics.json").write_text('{"mae": 3.2}')
    assert bundle.write_evaluation(published, folder) != uri


def test_find_lists_complete_bundles_only(published: str, tmp_path: Path) -> None:
    root = published.removesuffix("/run/bundle")
    other = storage.join(root, "other/bundle")
    bundle.publish(make_folder(tmp_path / "again"), other)
    storage.write_bytes(storage.join(root, "half/bundle/config.json"), b"{}")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/report.json").write_text("{}")
    bundle.write_evaluation(published, tmp_path / "e")
    assert bundle.find(root) == sorted([published, other])
    assert bundle.find(published) == [published]
    storage.delete(storage.join(other, "_COMPLETE"))
    assert bundle.find(root) == [published]
