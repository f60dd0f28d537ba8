"""Footers of a corpus in one file: what they say is what pyarrow says, and damage is one line."""

from __future__ import annotations

import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import ranges
from cluster.errors import PlethoraError
from datasets import footers, thrift
from datasets.schema import Corpus, open_corpus, row_schema
from datasets.synthetic import synthesize

MIB = 1 << 20


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "corpus"
    synthesize(str(folder), hours=0.1, subjects=3, rates={"ppg": 50.0, "ecg": 125.0})
    return folder


@pytest.fixture
def corpus(sound: Path, tmp_path: Path) -> Corpus:
    """An opened copy, to be damaged."""
    shutil.copytree(sound, tmp_path / "corpus")
    return open_corpus(str(tmp_path / "corpus"))


@pytest.fixture
def far(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """As if it lay in a bucket: its ranges come from the disk."""

    def get(where: str, places: list[tuple[int, int]]) -> tuple[list[bytes], int]:
        data = Path(where).read_bytes()
        return [data[first : first + size] for first, size in places], len(data)

    monkeypatch.setattr(ranges, "get", get)
    monkeypatch.setattr(Corpus, "remote", True)
    return corpus


def shard_of(corpus: Corpus) -> Path:
    return Path(corpus.uri, corpus.shards[0]["path"])


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))


def line(work: object) -> str:
    with pytest.raises(PlethoraError) as caught:
        work()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- what they say


def test_a_footer_comes_back_as_pyarrow_reads_it_from_the_shard(corpus: Corpus, tmp_path: Path) -> None:
    held = footers.collect(corpus, tmp_path / "footers")
    assert len(held) == len(corpus.shards) and held.corpus == corpus.hash
    assert held.of(0).equals(pq.read_metadata(shard_of(corpus)))
    assert held.size(0) == shard_of(corpus).stat().st_size
    assert [path.name for path in tmp_path.glob("footers*")] == ["footers"]  # nothing half-written is left
    travelled = pickle.loads(pickle.dumps(held))
    assert vars(travelled) == {"path": held.path} and travelled.of(0).equals(held.of(0))


def test_column_chunks_lie_where_pyarrow_says(corpus: Corpus, tmp_path: Path) -> None:
    held = footers.collect(corpus, tmp_path / "footers")
    about = pq.read_metadata(shard_of(corpus))
    for group in range(about.num_row_groups):
        columns = [about.row_group(group).column(i) for i in range(about.num_columns)]
        for column in columns:
            first = column.dictionary_page_offset or column.data_page_offset
            want = [(min(first, column.data_page_offset), column.total_compressed_size)]
            assert held.ranges(0, group, [column.path_in_schema]) == want
        low = min(held.ranges(0, group, [c.path_in_schema])[0][0] for c in columns)
        assert held.ranges(0, group) == [(low, sum(c.total_compressed_size for c in columns))]


@pytest.mark.parametrize("version", ["1.0", "2.6"])
@pytest.mark.parametrize("statistics", [True, False])
def test_footers_of_other_writers_are_understood(tmp_path: Path, version: str, statistics: bool) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({f"c{i}": rng.integers(0, 9, 1000) for i in range(20)} | {"b": ["x"] * 1000})
    pq.write_table(
        table,
        tmp_path / "x",
        version=version,
        write_statistics=statistics,
        row_group_size=300,
        write_page_index=True,
        sorting_columns=[pq.SortingColumn(0)],
    )
    data = (tmp_path / "x").read_bytes()
    length = struct.unpack("<I", data[-8:-4])[0]
    rows, chunks = thrift.chunks(data[-8 - length : -8], len(data))
    about = pq.read_metadata(tmp_path / "x")
    assert rows == [about.row_group(g).num_rows for g in range(about.num_row_groups)]
    for group, columns in enumerate(chunks):
        for i, (name, (first, size)) in enumerate(columns.items()):
            column = about.row_group(group).column(i)
            assert (name, size) == (column.path_in_schema, column.total_compressed_size)
            assert first == (column.dictionary_page_offset or column.data_page_offset)


def test_columns_far_apart_are_several_ranges_and_near_ones_are_one() -> None:
    near = [(4, 100), (104 + MIB, 100)]  # sparse, but the gap is not above a MiB
    assert footers.merged(near) == [(4, 200 + MIB)]
    far = [(3 * MIB, MIB), (4, 100)]
    assert footers.merged(far) == [(4, 100), (3 * MIB, MIB)]
    dense = [(4, 9 * MIB), (14 * MIB, MIB)]  # a wide gap, but more than half is wanted
    assert footers.merged(dense) == [(4, 15 * MIB - 4)]
    assert footers.merged([(4, 0)]) == []


def test_a_group_or_column_that_is_not_there_is_told(corpus: Corpus, tmp_path: Path) -> None:
    held = footers.collect(corpus, tmp_path / "footers")
    for group, columns in ((99, None), (-1, None), (0, ["abp"]), (0, ["ppg", "pgp"])):
        with pytest.raises(pa.ArrowInvalid):
            held.ranges(0, group, columns)


def test_only_the_parts_that_are_held_can_be_read() -> None:
    parts = footers.Parts([(10, b"abcdef"), (30, b"xyz")], 40)
    source = pa.PythonFile(parts, "r")
    assert source.size() == 40
    assert source.read_at(3, 12) == b"cde" and source.read_at(3, 30) == b"xyz"
    for place in (9, 14, 33):
        with pytest.raises(OSError, match="no part of what was asked for"):
            source.read_at(3, place)


def test_a_corpus_reads_the_same_with_them_and_takes_them_along(far: Corpus, tmp_path: Path) -> None:
    corpus, columns = far, ["subject", "ecg", "ecg_rate"]
    want = [corpus.read_row_group(0, 0), corpus.read_row_group(0, 0, columns)]
    corpus.footers = footers.Footers(tmp_path / "elsewhere" / "footers")  # this machine lacks the file
    travelled = pickle.loads(pickle.dumps(corpus))
    assert travelled._found is None  # another machine looks for itself
    assert travelled.read_row_group(0, 0).equals(want[0])
    assert Path(corpus.footers.path).exists()
    assert corpus.read_row_group(0, 0, columns).equals(want[1])


def test_a_machine_keeps_them_by_corpus(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    held = footers.there(corpus)
    assert Path(held.path) == tmp_path / "plethora" / "footers" / Path(held.path).name
    shard_of(corpus).unlink()
    assert footers.there(corpus).of(0).num_row_groups == len(corpus.shards[0]["row_groups"])
    other = Corpus(corpus.uri, corpus.manifest | {"hash": "0" * 64})
    assert "another corpus" in line(lambda: footers.there(other, held.path))


# ---------------------------------------------------------------- damage


def test_where_the_users_cache_cannot_be_written_to_the_temporary_folder_holds_them(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert footers.place(corpus).is_relative_to(tmp_path / "cache")
    for variables in ({"XDG_CACHE_HOME": str(blocked)}, {"XDG_CACHE_HOME": "", "HOME": str(blocked)}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert footers.place(corpus).parent.name.startswith("plethora-footers-")


def test_a_damaged_file_is_one_line(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "footers"
    held = footers.collect(corpus, path)
    whole, want, places = path.read_bytes(), held.of(0), held.ranges(0, 0)
    for place in range(0, len(whole), 7):
        flip(path, place, place % 8)
        found = footers.Footers(path)
        said = line(lambda found=found: (found.of(0), found.ranges(0, 0), found.size(0)))
        assert f"{path} is corrupt: delete it" in said
        path.write_bytes(whole)
    for length in (0, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "is corrupt" in line(lambda: footers.open(path))
    path.unlink()
    assert "no such file" in line(lambda: footers.open(path))
    assert held.of(0).equals(want) and held.ranges(0, 0) == places  # what is mapped stays


def test_a_shard_that_is_not_the_manifests_is_told_when_its_footer_is_read(
    corpus: Corpus, tmp_path: Path
) -> None:
    path = shard_of(corpus)
    whole = path.read_bytes()
    collect = lambda: footers.collect(corpus, tmp_path / "footers")
    path.write_bytes(whole + b"x")
    assert f"{path} is corrupt, or was replaced ({len(whole) + 1:,} bytes" in line(collect)
    path.write_bytes(whole[:-4] + b"PARE")
    assert f"{path} is corrupt (it is not a Parquet file)" in line(collect)
    path.write_bytes(whole[:-8] + struct.pack("<I", 2**31) + b"PAR1")
    assert f"{path} is corrupt (a footer of" in line(collect)
    assert not list(tmp_path.glob("footers*"))


def test_a_bit_flipped_in_a_footer_is_named_or_changes_nothing_and_never_ends_the_process(
    far: Corpus, tmp_path: Path
) -> None:
    corpus, where = far, tmp_path / "footers"
    path = shard_of(corpus)
    whole, want = path.read_bytes(), corpus.read_row_group(0, 0)
    length = struct.unpack("<I", whole[-8:-4])[0]
    seen = 0
    for place in np.random.default_rng().integers(8, length + 8, size=300).tolist():
        flip(path, len(whole) - place, place % 8)
        with_footers = Corpus(corpus.uri, corpus.manifest)
        try:
            with_footers.footers = footers.collect(corpus, where)
            with_footers.footers.ranges(0, 0, row_schema(["ppg", "ecg"]).names)
            assert with_footers.read_row_group(0, 0).equals(want), f"byte {place} from the end"
        except (PlethoraError, pa.ArrowInvalid) as error:
            assert "corrupt" in str(error) or "column" in str(error)
            assert "\n" not in str(error)
            seen += 1
        path.write_bytes(whole)
        where.unlink(missing_ok=True)
    assert seen > 30


def test_random_bytes_are_no_footer() -> None:
    rng = np.random.default_rng()
    for size in (0, 1, 10, 1000):
        for _ in range(100):
            with pytest.raises(pa.ArrowInvalid, match="its footer is not Parquet's"):
                thrift.chunks(rng.bytes(size), 1 << 30)
