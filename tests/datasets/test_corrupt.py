"""Damaged files and newer versions: named in one line, and the run stops rather than train on noise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster import bundle
from cluster.errors import PlethoraError, user_message
from datasets import index, stream
from datasets.plan import Plan
from datasets.schema import content_hash, open_corpus
from datasets.signal import Signal
from datasets.split import Split
from datasets.synthetic import synthesize
from datasets.windows import WindowSpec

SPEC = WindowSpec(signals=(Signal(modality="ppg", rate=10.0),), window_s=10.0)
SHARD = "shards/00000.parquet"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "corpus"
    synthesize(str(folder), hours=0.1, subjects=3, rates={"ppg": 50.0})
    return folder


@pytest.fixture
def corpus(sound: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(sound, tmp_path / "corpus")
    return tmp_path / "corpus"


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))


def waveform_place(path: Path) -> int:
    """A byte in the middle of the PPG column's pages."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    ppg = next(column for column in columns if column.path_in_schema == "ppg")
    return int(ppg.data_page_offset + ppg.total_compressed_size // 2)


@pytest.mark.parametrize("name", [SHARD, "labels.parquet", "rejects.parquet"])
def test_a_flipped_bit_anywhere_is_named_or_changes_nothing(corpus: Path, name: str) -> None:
    path = corpus / name
    opened = open_corpus(str(corpus))
    read = {SHARD: lambda: opened.read_row_group(0, 0), "labels.parquet": opened.labels}.get(
        name, opened.rejects
    )
    whole, want = path.read_bytes(), read()
    rng = np.random.default_rng()
    seen = 0
    for place, bit in zip(rng.integers(len(whole), size=300), rng.integers(8, size=300), strict=True):
        flip(path, int(place), int(bit))
        try:
            assert read().equals(want), f"byte {place}, bit {bit}: other content, and no error"
        except PlethoraError as error:
            assert f"{path} is corrupt" in str(error) and "\n" not in str(error), str(error)
            seen += 1
        path.write_bytes(whole)
    assert seen > 100


def test_an_index_stops_at_a_damaged_shard_and_names_it(ray_session: Any, corpus: Path) -> None:
    flip(corpus / SHARD, waveform_place(corpus / SHARD))
    with pytest.raises(Exception) as caught:
        index.build(open_corpus(str(corpus)), SPEC)
    said = user_message(caught.value)
    assert said and f"{corpus / SHARD} is corrupt" in said and "\n" not in said


def test_a_stream_stops_at_a_shard_that_was_damaged_after_indexing(ray_session: Any, corpus: Path) -> None:
    opened = open_corpus(str(corpus))
    found = index.build(opened, SPEC)
    selection = found.selection(None, Split())
    plan = Plan((selection.source(1.0),), seed=0, batch=8, steps=3)
    flip(corpus / SHARD, waveform_place(corpus / SHARD))
    batches = stream.batches(plan, 0, [selection], SPEC, 8, 1, stream.Actors(1, self_read_mb=0))
    with pytest.raises(Exception) as caught:
        list(batches)
    said = user_message(caught.value)
    assert said and f"{corpus / SHARD} is corrupt" in said and "\n" not in said


def test_a_damaged_cached_index_is_named(ray_session: Any, corpus: Path, tmp_path: Path) -> None:
    opened = open_corpus(str(corpus))
    index.build(opened, SPEC, str(tmp_path / "cache"))
    (cached,) = (tmp_path / "cache").iterdir()
    for file in sorted(cached.iterdir()):
        whole = file.read_bytes()
        flip(file, len(whole) // 3)
        with pytest.raises(PlethoraError, match=rf"{cached.name} is corrupt: delete it") as caught:
            index.build(opened, SPEC, str(tmp_path / "cache"))
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)
    index.build(opened, SPEC, str(tmp_path / "cache"))


# ---------------------------------------------------------------- newer versions


def test_a_corpus_of_a_newer_version_is_one_line_that_says_what_to_do(corpus: Path) -> None:
    manifest = json.loads((corpus / "corpus.json").read_text()) | {"version": 2}
    (corpus / "corpus.json").write_text(json.dumps(manifest | {"hash": content_hash(manifest)}))
    with pytest.raises(PlethoraError, match=r"version 2, this Plethora reads version 1: update") as caught:
        open_corpus(str(corpus))
    assert "\n" not in str(caught.value)


def test_a_bundle_of_a_newer_version_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    folder, uri = tmp_path / "made", str(tmp_path / "bundle")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"version": 3, "kind": "hologram"}))
    for name in ("preprocessing.json", "metrics.json", "lineage.json"):
        (folder / name).write_text("{}")
    bundle._publish(folder, ["config.json", "preprocessing.json", "metrics.json", "lineage.json"], uri)
    for read in (bundle.open, bundle.verify):
        with pytest.raises(PlethoraError, match=r"bundle version 3 is newer than ours \(2\)") as caught:
            read(uri)
        assert "\n" not in str(caught.value) and "update Plethora" in str(caught.value)
