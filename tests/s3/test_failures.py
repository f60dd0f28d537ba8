"""A store that cuts, crawls, says 503 or says no: one clear line or recovery, and nothing torn."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster import bundle, s3, storage
from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from datasets.synthetic import synthesize
from datasets.write import ParquetFile
from tests.s3.proxy import Proxy

SMALL = {"hours": 0.05, "subjects": 2, "rates": {"ppg": 125.0}}


@pytest.fixture
def proxy(store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the store; the environment points at it."""
    with Proxy(store["AWS_ENDPOINT_URL"]) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon, so that the end of patience can be tested."""
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setattr(s3, "PATIENCE_S", 1.0)
    monkeypatch.setattr(s3, "PYARROW_ATTEMPTS", 2)


@pytest.fixture
def home() -> str:
    return f"s3://plethora/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "corpus"
    synthesize(str(folder), **SMALL)  # type: ignore[arg-type]
    return folder


def content(uri: str | Path) -> dict[str, str]:
    """{name: sha256} of all files under a URI."""
    names = storage.listing(uri)
    return {name: hashlib.sha256(storage.read_bytes(storage.join(uri, name))).hexdigest() for name in names}


def folder_of(tmp_path: Path, size: int = 3 << 20) -> Path:
    """A folder that may be published as an evaluation: one file of noise, one of JSON."""
    folder = tmp_path / "made"
    folder.mkdir(exist_ok=True)
    (folder / "noise.parquet").write_bytes(np.random.default_rng(0).bytes(size))
    (folder / "metrics.json").write_text("{}")
    return folder


def line(work: Callable[[], object]) -> str:
    """The one line of the PlethoraError that `work` must raise."""
    with pytest.raises(PlethoraError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- cut


def test_an_upload_that_is_cut_is_sent_again(proxy: Proxy, home: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    storage.exists(home)
    proxy.cut(1 << 20, times=2)
    storage.publish(folder, home, "_COMPLETE", b"sum")
    assert proxy.cuts == 2
    assert content(home) | {"_COMPLETE": ""} == content(folder) | {"_COMPLETE": ""}


def test_a_shard_whose_multipart_upload_is_cut_arrives_whole(proxy: Proxy, home: str) -> None:
    table = pa.table({"x": pa.array([np.random.default_rng(0).bytes(1 << 20)] * 14, pa.binary())})
    uri = storage.join(home, "shard.parquet")
    storage.exists(home)
    proxy.cut(3 << 20, times=2)
    with ParquetFile(uri, table.schema) as file:
        for row in range(table.num_rows):
            file.write(table.slice(row, 1))
    assert proxy.cuts == 2
    assert hashlib.sha256(storage.read_bytes(uri)).hexdigest() == file.sha256


@pytest.mark.usefixtures("impatient")
def test_a_publish_whose_every_upload_is_cut_shows_no_bundle_and_can_be_repeated(
    proxy: Proxy, home: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path)
    uri = storage.join(home, "run/bundle")
    proxy.cut(1 << 20, times=10**6)
    said = line(lambda: bundle._publish(folder, ["metrics.json", "noise.parquet"], uri))
    assert said.startswith(uri.rpartition("/")[0]) and proxy.url in said
    assert proxy.cuts
    proxy.cut(0, times=0)
    assert "no complete bundle" in line(lambda: bundle.verify(uri))
    bundle._publish(folder, ["metrics.json", "noise.parquet"], uri)
    assert bundle.verify(uri)["files"] == 2


def test_downloads_that_are_cut_are_fetched_again(proxy: Proxy, home: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    storage.upload(folder, home)
    want = (folder / "noise.parquet").read_bytes()
    uri = storage.join(home, "noise.parquet")
    proxy.cut(1 << 20, times=1, down=True)
    assert storage.read_bytes(uri) == want
    proxy.cut(1 << 20, times=1, down=True)
    storage.download(home, tmp_path / "back")
    assert (tmp_path / "back" / "noise.parquet").read_bytes() == want
    proxy.cut(1 << 20, times=1, down=True)
    files, path = storage.filesystem(uri)
    with storage.clear_errors(uri), files.open_input_file(path) as source:
        assert source.read() == want
    assert proxy.cuts == 3


def test_a_corpus_made_over_a_line_that_breaks_is_the_same_corpus(
    proxy: Proxy, home: str, unbroken: Path
) -> None:
    storage.exists(home)
    proxy.cut(20_000, times=2)
    synthesize(home, **SMALL)  # type: ignore[arg-type]
    assert proxy.cuts >= 1
    assert content(home) == content(unbroken)


# ---------------------------------------------------------------- slow


def test_a_slow_connection_only_takes_longer(proxy: Proxy, home: str, unbroken: Path) -> None:
    proxy.slow(200_000)
    start = time.monotonic()
    synthesize(home, **SMALL)  # type: ignore[arg-type]
    assert time.monotonic() - start > storage.sizes(unbroken)["shards/00000.parquet"] / 200_000
    assert content(home) == content(unbroken)


# ---------------------------------------------------------------- 503

OUTAGES = [
    pytest.param(3.0, id="short"),
    pytest.param(float(os.environ.get("PLETHORA_TEST_OUTAGE_S", "30")), id="30s", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("seconds", OUTAGES)
def test_an_outage_is_waited_out_by_writers_and_readers(
    proxy: Proxy, home: str, unbroken: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ParquetFile.write
    begun = threading.Event()

    def write(self: ParquetFile, table: pa.Table) -> None:
        if not begun.is_set():  # the outage begins while the first shard is open
            begun.set()
            proxy.outage(seconds)
        real(self, table)

    monkeypatch.setattr(ParquetFile, "write", write)
    synthesize(home, **SMALL)  # type: ignore[arg-type]
    assert begun.is_set() and proxy.refused >= 1
    assert content(home) == content(unbroken)
    refused = proxy.refused
    proxy.outage(seconds)
    group = open_corpus(home).read_row_group(0, 0)
    assert group.equals(open_corpus(str(unbroken)).read_row_group(0, 0))
    assert proxy.refused > refused


def test_a_reader_with_an_open_corpus_waits_an_outage_out(proxy: Proxy, home: str) -> None:
    synthesize(home, **SMALL)  # type: ignore[arg-type]
    corpus = open_corpus(home)
    rows = corpus.read_row_group(0, 0).num_rows
    proxy.outage(2.0)
    assert corpus.read_row_group(0, 0).num_rows == rows
    assert proxy.refused >= 1


@pytest.mark.usefixtures("impatient")
def test_an_outage_beyond_all_patience_is_one_line_and_leaves_no_half_corpus(
    proxy: Proxy, home: str, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ParquetFile.write

    def write(self: ParquetFile, table: pa.Table) -> None:
        proxy.outage(3600)
        real(self, table)

    with monkeypatch.context() as patched:
        patched.setattr(ParquetFile, "write", write)
        said = line(lambda: synthesize(home, **SMALL))  # type: ignore[arg-type]
    assert "unavailable" in said and "when it is up" in said
    assert "unavailable" in line(lambda: open_corpus(home))
    proxy.outage(0)
    assert "no corpus at" in line(lambda: open_corpus(home))
    synthesize(home, **SMALL)  # type: ignore[arg-type]
    assert content(home) == content(unbroken)


def test_a_store_that_goes_away_after_it_has_answered_is_waited_for(
    store: dict[str, str], home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PATIENCE_S", 20.0)
    with Proxy(store["AWS_ENDPOINT_URL"]) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        storage.write_bytes(storage.join(home, "a"), b"1")
        port = int(between.url.rpartition(":")[2])
    again = Proxy(store["AWS_ENDPOINT_URL"], port)
    threading.Timer(4.0, again.__enter__).start()
    storage.write_bytes(storage.join(home, "b"), b"2")
    assert storage.listing(home) == ["a", "b"]
    again.__exit__()
