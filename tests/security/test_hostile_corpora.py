"""Hostile corpora, sealed so that their hash agrees: each is refused with one line, and memory stays free."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import PlethoraError
from datasets import index, inspect, judge
from datasets.schema import LABELS, open_corpus
from datasets.split import Split
from datasets.synthetic import synthesize
from datasets.windows import Signal, WindowSpec
from tests.security import kit

NAN, INF = float("nan"), float("inf")
SPEC = WindowSpec(signals=(Signal(modality="ppg", rate=50, band=(0.5, 8)),), window_s=10)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("good") / "corpus"
    synthesize(str(out), hours=0.02, subjects=2, gaps=0, flats=0, clips=0, motion=0)
    return out


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil; beside it lies a folder with a sound shard of somebody else."""
    (tmp_path / "outside").mkdir()
    shutil.copy(next((good / "shards").iterdir()), tmp_path / "outside/0.parquet")
    return Path(shutil.copytree(good, tmp_path / "corpus"))


def use(uri: str) -> list[str]:
    """What indexing, training and people do with a corpus; the verdicts of its windows."""
    corpus = open_corpus(uri)
    inspect.describe(uri)
    verdicts: list[str] = []
    for shard, entry in enumerate(corpus.shards):
        for group in range(len(entry["row_groups"])):
            place = {"shard": np.array([shard]), "group": np.array([group])}
            table = index._scan(place, corpus, SPEC).cast(judge.schema(SPEC))
            found = index.Index(corpus, SPEC, table)
            rows = found.select(None)
            if len(rows):
                found.selection(None, Split()).source(1.0)
                found.load(rows[:2])
            verdicts += table["verdict"].to_pylist()
    corpus.labels()
    corpus.rejects()
    return verdicts


def refused(folder: Path, said: str) -> None:
    before = sorted(p for p in folder.parent.rglob("*"))
    with pytest.raises(PlethoraError) as caught:
        use(str(folder))
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 900
    assert sorted(p for p in folder.parent.rglob("*")) == before


def test_the_corpus_that_the_others_are_made_of_is_good(folder: Path) -> None:
    kit.edit_rows(folder, lambda rows: None)
    assert set(use(str(folder))) == {"ok"}


@pytest.mark.parametrize(
    "change",
    [
        {"ppg_scale": NAN},
        {"ppg_scale": 0.0},
        {"ppg_scale": 1e308},
        {"ppg_offset": INF},
        {"ppg_rate": NAN},
        {"ppg_rate": 0.0},
        {"ppg_rate": -125.0},
        {"ppg_rate": 1e18},
        {"ppg_rate": None},
        {"ppg_channels": 0},
        {"ppg_channels": -1},
        {"ppg_channels": 7},
        {"ppg_channels": 2 * 10**9},
        {"duration_s": 1e12},
        {"duration_s": NAN},
        {"duration_s": -5.0},
        {"start_s": NAN},
        {"ppg": b"\0" * 12345},
        {"ppg": b""},
        {"subject": "../../etc"},
        {"subject": None},
        {"subject": "p000020"},
    ],
    ids=lambda change: "-".join(f"{k}={str(v)[:12]}" for k, v in change.items()),
)
def test_a_row_of_nonsense_names_its_shard_and_column(folder: Path, change: dict[str, Any]) -> None:
    kit.edit_rows(folder, lambda rows: [row.update(change) for row in rows])
    refused(folder, "00000.parquet is corrupt (column '" + next(iter(change)).split("_")[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["shards"][0].update(path="../outside/0.parquet"), "shards.0.path"),
        (lambda m: m["shards"][0].update(path="/etc/passwd"), "shards.0.path"),
        (lambda m: m["shards"][0].update(path="shards/../../outside/0.parquet"), "shards.0.path"),
        (lambda m: m["shards"][0].update(row_groups=[1] * 10**5), "row groups hold"),
        (lambda m: m["shards"][0].update(row_groups=[-1]), "row_groups"),
        (lambda m: m["shards"][0].update(rates={"ppg": [NAN]}), "rates"),
        (lambda m: m["shards"][0].update(sha256="../x"), "sha256"),
        (lambda m: m.pop("shards"), "`shards` is missing"),
        (lambda m: m.update(shards={"a": 1}), "`shards`"),
        (lambda m: m.update(modalities=["../../x"]), "modalities"),
        (lambda m: m.update(modalities="ppg"), "modalities"),
        (lambda m: m.update(counts=5), "counts"),
        (lambda m: m.update(licence="\x1b]0;owned\x07"), "licence"),
        (lambda m: m.pop("licence"), "corpus.json lacks `licence`"),
        (lambda m: m.pop("hours_in"), "corpus.json lacks `hours_in`"),
        (lambda m: m.update(version=NAN), "version"),
    ],
)
def test_a_manifest_out_of_bounds_is_named(folder: Path, change: Callable[[Any], Any], said: str) -> None:
    kit.seal_corpus(folder, change)
    refused(folder, said)


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"a":' * 200_000, b"[]", b"5", b"\x80\x04.", b""])
def test_a_manifest_that_is_none_is_named(folder: Path, data: bytes) -> None:
    (folder / "corpus.json").write_bytes(data)
    refused(folder, "corpus.json")


@pytest.mark.parametrize("name", ["shards/00000.parquet", "labels.parquet"])
def test_a_link_out_of_the_corpus_is_not_followed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(folder.parent / "outside/0.parquet")
    kit.seal_corpus(folder)
    refused(folder, "leads out of its folder")


def test_another_shard_under_the_same_name_is_not_the_one_that_the_manifest_vouches_for(folder: Path) -> None:
    shard = next((folder / "shards").iterdir())
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[0]["ppg"] = bytes(len(rows[0]["ppg"]))
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    refused(folder, "its sha256 is not the manifest's")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("name", ["shards/00000.parquet", "labels.parquet", "rejects.parquet"])
def test_a_pickle_in_place_of_a_table_is_not_unpickled(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(_Evil()))
    if name.startswith("shards"):
        data = (folder / name).read_bytes()
        kit.seal_corpus(folder, lambda m: m["shards"][0].update(sha256=hashlib.sha256(data).hexdigest()))
    refused(folder, f"{Path(name).name} is corrupt")


def bomb(folder: Path, rows: int, size: int) -> int:
    """Replace the first shard by `rows` rows of `size` zeros each, kept once in a dictionary; its bytes."""
    shard = next((folder / "shards").iterdir())
    table = pq.read_table(shard)
    row = table.to_pylist()[0]
    row |= {m: None for m in ("ecg", "abp", "resp") if m in row}
    row |= {"ppg": bytes(size), "ppg_channels": 1, "duration_s": size / 2 / row["ppg_rate"]}
    made = pa.Table.from_pylist([row | {"ppg": b""}] * rows, schema=table.schema)
    zeros = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array([bytes(size)]))
    made = made.set_column(made.column_names.index("ppg"), "ppg", zeros)
    pq.write_table(made, shard, compression="zstd", row_group_size=rows, store_schema=False)
    data = shard.read_bytes()

    def told(manifest: dict[str, Any]) -> None:
        manifest["shards"] = manifest["shards"][:1]
        manifest["shards"][0] |= {
            "rows": rows,
            "row_groups": [rows],
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    kit.seal_corpus(folder, told)
    return len(data)


def test_a_row_group_that_would_unpack_to_gigabytes_is_refused_unread(folder: Path) -> None:
    assert bomb(folder, rows=120, size=2 * 10**7) < 10**5
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    refused(folder, "a row group that unpacks to")
    assert pool.bytes_allocated() - before < 10**8


def test_labels_of_which_there_are_more_than_memory_are_refused_unread(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus(str(folder))
    rows = corpus.labels().num_rows
    monkeypatch.setattr("datasets.trust.memory_bytes", lambda: rows * 64)  # a machine so small
    with pytest.raises(PlethoraError, match="rows, more than this machine's memory"):
        corpus.labels()


def test_labels_of_another_form_are_refused(folder: Path) -> None:
    pq.write_table(pa.table({"name": ["x"], "evil": [1]}), folder / "labels.parquet")
    kit.seal_corpus(folder)
    refused(folder, "labels.parquet is corrupt")
    assert LABELS.names and json.loads((folder / "corpus.json").read_text())["version"] == 1
