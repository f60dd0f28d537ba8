"""A row group in a bucket is one ranged request, eight are under way, what is not as written is told."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import ranges, s3, storage
from cluster.errors import PlethoraError
from datasets import footers
from datasets.ahead import REMOTE, Ahead
from datasets.schema import Corpus, open_corpus
from datasets.synthetic import synthesize
from tests.s3.counting import Counting

COLUMNS = ["subject", "start_s", "ppg", "ppg_rate", "ppg_channels"]


@pytest.fixture
def proxy(store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """A counting proxy before the store; the environment points at it."""
    with Counting(store["AWS_ENDPOINT_URL"]) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus to be cut into many row groups."""
    folder = tmp_path_factory.mktemp("made") / "corpus"
    synthesize(str(folder), hours=0.6, subjects=16, rates={"ppg": 50.0, "ecg": 125.0})
    return folder


def regrouped(folder: Path, to: Path) -> dict[str, Any]:
    """The shards of `folder`, a row group a row, written to `to`; what their manifest entries become."""
    opened = open_corpus(str(folder))
    entries = []
    for number, entry in enumerate(opened.shards):
        parts = [opened.read_row_group(number, g) for g in range(len(entry["row_groups"]))]
        table = pa.concat_tables(parts)
        target = to / entry["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table,
            target,
            row_group_size=1,
            compression="zstd",
            use_dictionary=["subject", "record"],
            write_statistics=False,
            write_page_checksum=True,
        )
        size = target.stat().st_size
        entries.append(dict(entry) | {"row_groups": [1] * len(table), "bytes": size, "sha256": None})
    return dict(opened.manifest) | {"shards": entries}


@pytest.fixture
def away(made: Path, proxy: Counting, tmp_path: Path) -> Corpus:
    """The corpus in a bucket, its footers collected, nothing counted yet. `tmp_path / "here"`: its shards."""
    manifest = regrouped(made, tmp_path / "here")
    uri = f"s3://plethora/{uuid.uuid4().hex}"
    storage.upload(tmp_path / "here", uri)
    corpus = Corpus(uri, manifest)
    corpus.footers = footers.collect(corpus, tmp_path / "footers")
    storage.filesystem(uri)
    proxy.reset()
    return corpus


def line(work: Callable[[], object]) -> str:
    with pytest.raises(PlethoraError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(corpus: Corpus) -> int:
    return len(corpus.shards[0]["row_groups"])


def test_a_row_group_is_one_ranged_request_and_what_pyarrow_reads(
    away: Corpus, proxy: Counting, tmp_path: Path
) -> None:
    shard = pq.ParquetFile(tmp_path / "here" / away.shards[0]["path"])
    rng = np.random.default_rng()
    for number in range(20):
        group = int(rng.integers(rows_of(away)))
        names = [*shard.schema_arrow.names]
        columns = sorted(rng.choice(names, int(rng.integers(1, len(names) + 1)), replace=False).tolist())
        found = away.read_row_group(0, group, None if number == 0 else columns)
        want = shard.read_row_group(group, columns=None if number == 0 else columns)
        assert found.equals(want)
        assert len(proxy.requests) == number + 1
        last = proxy.requests[-1]
        assert last.method == "GET" and last.range.startswith("bytes=") and "shards" in last.path


def test_a_footer_is_one_request_and_a_long_one_two(
    away: Corpus, proxy: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footers, "TAIL", 1 << 20)
    held = footers.collect(away, tmp_path / "again")
    assert [r.range for r in proxy.requests] == [f"bytes=-{footers.TAIL}"] * len(away.shards)
    proxy.reset()
    monkeypatch.setattr(footers, "TAIL", 100)
    short = footers.collect(away, tmp_path / "short")
    assert len(proxy.requests) == 2 * len(away.shards)
    assert short.of(0).equals(held.of(0))


def test_columns_far_apart_are_requests_at_the_same_time(
    away: Corpus, proxy: Counting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ranges, "GAP", 100)
    proxy.delay_s = 0.2
    columns = ["subject", "ppg_rate", "ecg_channels"]
    found = away.read_row_group(0, 0, columns)
    assert len(proxy.requests) == proxy.most > 1
    shard = pq.ParquetFile(tmp_path / "here" / away.shards[0]["path"])
    assert found.equals(shard.read_row_group(0, columns=columns))


def test_eight_row_groups_are_under_way(away: Corpus, proxy: Counting) -> None:
    proxy.delay_s = 0.3
    ahead = Ahead(lambda corpus, shard, group: corpus.read_row_group(shard, group, COLUMNS), 64)
    count = min(24, rows_of(away))
    assert count > REMOTE
    for group in range(count):
        ahead.begin(away, 0, group)
    assert [ahead(away, 0, group).num_rows for group in range(count)] == [1] * count
    assert proxy.most == REMOTE and len(proxy.requests) == count


def test_a_shard_replaced_by_one_of_another_size_is_told(
    away: Corpus, proxy: Counting, tmp_path: Path
) -> None:
    name = away.shards[0]["path"]
    where, here = storage.join(away.uri, name), tmp_path / "here" / name
    whole = here.read_bytes()
    for other in (whole + b"more", whole[:-5], whole[:50]):
        s3.put(where, other)
        proxy.reset()
        for group in (0, rows_of(away) - 1):
            said = line(lambda group=group: away.read_row_group(0, group, COLUMNS))  # type: ignore[misc]
            assert said.startswith(f"{where} is corrupt, or was replaced (")
            assert f"corpus.json states {len(whole):,}): ingest it again" in said
        assert len(proxy.requests) == 2
    s3.remove(where)
    assert f"{where}: no such file" in line(lambda: away.read_row_group(0, 0, COLUMNS))


def test_a_damaged_page_is_refused_by_its_checksum(away: Corpus, tmp_path: Path) -> None:
    name = away.shards[0]["path"]
    whole = bytearray((tmp_path / "here" / name).read_bytes())
    assert away.footers is not None
    ((first, size),) = away.footers.ranges(0, 2, ["ppg"])
    whole[first + size // 2] ^= 1
    s3.put(storage.join(away.uri, name), bytes(whole))
    assert f"{name} is corrupt (" in line(lambda: away.read_row_group(0, 2, COLUMNS))
    assert away.read_row_group(0, 1, COLUMNS).num_rows == 1


def test_an_answer_that_breaks_off_is_asked_for_again(away: Corpus, proxy: Counting, tmp_path: Path) -> None:
    want = away.read_row_group(0, 0)
    proxy.reset()
    proxy.cut = 2
    assert away.read_row_group(0, 0).equals(want)
    assert proxy.cut == 0 and len(proxy.requests) == 3
    proxy.cut = 1
    assert len(footers.collect(away, tmp_path / "again")) == len(away.shards) and proxy.cut == 0
    proxy.cut = 10**6
    said = line(lambda: away.read_row_group(0, 0))
    assert said.startswith(f"{away.uri}/shards/") and proxy.url in said


def test_a_bucket_or_key_that_is_refused_is_one_line(away: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Corpus("s3://no-such-bucket-here/corpus", away.manifest)
    assert "no bucket `no-such-bucket-here`" in line(lambda: ranges.tail(f"{other.uri}/x", 10))
    assert "no such file" in line(lambda: ranges.tail(f"{away.uri}/shards/none.parquet", 10))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "AWS_SECRET_ACCESS_KEY" in line(lambda: away.read_row_group(0, 0))


def test_many_threads_read_what_one_reads(away: Corpus) -> None:
    want = [away.read_row_group(0, group) for group in range(rows_of(away))]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for group in np.random.default_rng(seed).permutation(rows_of(away)).tolist():
            if not away.read_row_group(0, group).equals(want[group]):
                wrong.append(group)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
