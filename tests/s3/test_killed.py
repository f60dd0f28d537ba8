"""kill -9 at many moments: no reader sees half of anything, and the same command again completes it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import bundle, s3, storage
from cluster.errors import PlethoraError
from datasets import ingest, jobs
from datasets.schema import open_corpus
from tests.cluster.test_bundle import make_folder
from tests.datasets import recordings
from tests.s3 import killing

MOMENTS = 20
KEY = {"PLETHORA_SUBJECT_KEY": "a test's key"}


@pytest.fixture(params=["local", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """An empty prefix on each kind of storage, and the environment that reaches it."""
    if request.param == "local":
        return str(tmp_path / "store"), KEY
    store = request.getfixturevalue("store")
    return f"s3://plethora/{uuid.uuid4().hex}", KEY | store


def moments(calls: int) -> list[int]:
    """MOMENTS of the 1 … `calls` calls, the first and the last among them, drawn afresh in every run."""
    inner = range(2, calls)
    return sorted({1, calls, *random.sample(inner, min(MOMENTS - 2, len(inner)))})


def content(uri: str | Path) -> dict[str, str]:
    names = storage.listing(uri)
    return {name: hashlib.sha256(storage.read_bytes(storage.join(uri, name))).hexdigest() for name in names}


def whole_corpus(uri: str) -> str | None:
    """The content hash of the corpus at `uri` after reading every byte of it, or None when there is none."""
    try:
        corpus = open_corpus(uri)
    except PlethoraError as error:
        assert "no corpus at" in str(error), error
        return None
    found = content(uri)
    for shard in corpus.shards:
        assert found[shard["path"]] == shard["sha256"], f"half a corpus: {shard['path']}"
    assert found["labels.parquet"] == corpus.manifest["labels"]["sha256"]
    assert found["rejects.parquet"] == corpus.manifest["rejects_file"]["sha256"]
    return corpus.hash


def whole_bundle(uri: str) -> int | None:
    """Files of the bundle at `uri` after reading every byte of it, or None when readers see none."""
    seen = bundle.find(uri.rpartition("/")[0])
    try:
        files: int = bundle.verify(uri)["files"]
    except PlethoraError as error:
        assert "no complete bundle" in str(error), error
        assert seen == []
        return None
    bundle.open(uri)
    return files


@contextlib.contextmanager
def watched(look: Callable[[], object]) -> Iterator[list[object]]:
    """Look again and again from a thread beside the block; what was seen, and any half of it raises."""
    seen: list[object] = []
    over = threading.Event()
    torn: list[BaseException] = []

    def watch() -> None:
        while not over.is_set():
            try:
                seen.append(look())
            except BaseException as error:
                torn.append(error)
                return
            time.sleep(0.03)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    if torn:
        raise torn[0]


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str]:
    known, root = recordings.little(tmp_path)
    return str(known), str(root)


@pytest.fixture
def again(sources: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """The same ingest as the children's, in this process (a child needs half a second to reach S3)."""
    monkeypatch.setenv(*next(iter(KEY.items())))
    monkeypatch.setattr(jobs, "run", functools.partial(jobs.run, in_process=True))
    monkeypatch.setattr(ingest.plan, "__defaults__", (killing.SHARD_BYTES,))
    return lambda out: ingest.ingest(*sources, out)


def test_an_ingest_killed_at_any_moment_is_completed_by_a_rerun_to_the_same_bytes(
    home: tuple[str, dict[str, str]], sources: tuple[str, str], again: Callable[[str], object]
) -> None:
    store, env = home
    unbroken = storage.join(store, "unbroken")
    calls = killing.run(env, "ingest", *sources, unbroken)
    assert calls and calls > MOMENTS
    want, hash_ = content(unbroken), whole_corpus(unbroken)
    assert "shards/00001.parquet" in want
    killed_whole = 0
    for moment in moments(calls):
        out = storage.join(store, f"killed-{moment}")
        with watched(lambda out=out: whole_corpus(out)) as seen:  # type: ignore[misc]
            assert killing.run(env, "ingest", *sources, out, kill_at=moment) is None
        assert set(seen) <= {None, hash_}
        killed_whole += whole_corpus(out) is not None
        again(out)
        assert content(out) == want, f"killed at call {moment} of {calls}"
    assert killed_whole <= 2  # only a death after the manifest is there leaves a corpus


def test_a_forced_ingest_killed_at_any_moment_leaves_the_old_corpus_or_none(
    sources: tuple[str, str], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    calls = killing.run(KEY, "ingest", *sources, out)
    want = content(out)
    forced = killing.run(KEY, "ingest", *sources, out, True)
    assert calls and forced and forced > calls
    for moment in moments(forced)[::2]:
        assert killing.run(KEY, "ingest", *sources, out, True, kill_at=moment) is None
        whole_corpus(out)
        killing.run(KEY, "ingest", *sources, out)
        assert content(out) == want


def test_a_publish_killed_at_any_moment_shows_no_torn_bundle_and_can_be_repeated(
    home: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, env = home
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = make_folder(tmp_path / "made")
    for number in range(6):
        (made / "plots" / f"{number}.png").write_bytes(bytes([number]) * 5000)
    unbroken = storage.join(store, "unbroken", "bundle")
    calls = killing.run(env, "publish", str(made), unbroken)
    assert calls and calls > MOMENTS
    want, files = content(unbroken), whole_bundle(unbroken)
    for moment in moments(calls):
        uri = storage.join(store, f"killed-{moment}", "bundle")
        with watched(lambda uri=uri: whole_bundle(uri)) as seen:  # type: ignore[misc]
            assert killing.run(env, "publish", str(made), uri, kill_at=moment) is None
        assert set(seen) <= {None, files}
        if whole_bundle(uri) is None:
            bundle.publish(made, uri)
        assert whole_bundle(uri) == files
        assert content(uri) == want, f"killed at call {moment} of {calls}"


@pytest.mark.slow
def test_an_ingest_killed_by_the_clock_is_completed_by_a_rerun_to_the_same_bytes(
    home: tuple[str, dict[str, str]], sources: tuple[str, str]
) -> None:
    store, env = home
    unbroken = storage.join(store, "unbroken")
    killing.run(env, "ingest", *sources, unbroken)
    begun = time.monotonic()
    killing.run(env, "ingest", *sources, storage.join(store, "timed"))
    usual = time.monotonic() - begun
    want, hash_ = content(unbroken), whole_corpus(unbroken)
    killed = turn = 0
    while killed < MOMENTS:
        turn += 1
        assert turn < 10 * MOMENTS, f"only {killed} of {turn} were still at work when they were to die"
        out = storage.join(store, f"turn-{turn}")
        with watched(lambda out=out: whole_corpus(out)) as seen:  # type: ignore[misc]
            child, _ = killing.start(env, "ingest", *sources, out)
            time.sleep(usual * random.random())  # that one was slow or fast for reasons of the machine's
            child.kill()
            child.join()
        killed += child.exitcode == -signal.SIGKILL
        assert set(seen) <= {None, hash_}
        killing.run(env, "ingest", *sources, out)
        assert content(out) == want


# ---------------------------------------------------------------- what a death leaves


def test_parts_and_temporary_files_of_a_killed_ingest_are_collected_by_the_next(
    sources: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    (out / "parts/labels-00007.parquet").write_bytes(b"half")
    (out / "shards").mkdir()
    (out / "shards/00099.parquet").write_bytes(b"half")
    (out / ".corpus.json.abcd1234.part").write_bytes(b"{")
    killing.run(KEY, "ingest", *sources, str(out))
    assert sorted(content(out)) == [
        "corpus.json",
        "labels.parquet",
        "rejects.parquet",
        "shards/00000.parquet",
        "shards/00001.parquet",
    ]


def test_stages_of_a_killed_publish_are_ignored_at_once_and_collected_after_an_hour(tmp_path: Path) -> None:
    made, run = make_folder(tmp_path / "made"), tmp_path / "store/run"
    old, young = run / ".bundle.0000aaaa.part", run / ".bundle.0000bbbb.part"
    for stage in (old, young):
        shutil.copytree(made, stage)
        (stage / "_COMPLETE").write_text("0" * 64)
    os.utime(old, (0, time.time() - 3700))
    assert bundle.find(str(run)) == []
    bundle.publish(made, str(run / "bundle"))
    assert not old.exists()
    assert young.exists()  # its writer may be at work
    assert bundle.find(str(tmp_path / "store")) == [str(run / "bundle")]


def test_temporary_files_of_killed_writes_are_collected_by_a_later_write_of_that_file(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".f.1.part", ".f.2.part", ".g.1.part"))
    for left in (old, young, other):
        left.write_bytes(b"half")
        os.utime(left, (0, time.time() - (10 if left == young else 3700)))
    storage.write_bytes(tmp_path / "f", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".f.2.part", ".g.1.part", "f"]


def _begin_upload(uri: str) -> str:
    """What a writer leaves that dies inside a multipart upload of `uri`; the upload's id."""
    key = s3.split(uri)[1]
    upload = s3.call("create_multipart_upload", uri, Key=key)["UploadId"]
    s3.call("upload_part", uri, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * (5 << 20))
    return str(upload)


def _unfinished(uri: str) -> list[str]:
    page = s3.call("list_multipart_uploads", uri, Prefix=s3.split(uri)[1])
    return [upload["Key"] for upload in page.get("Uploads") or []]


def test_unfinished_uploads_are_no_files_and_the_next_run_aborts_its_own(
    store: dict[str, str], sources: tuple[str, str], tmp_path: Path
) -> None:
    home = f"s3://plethora/{uuid.uuid4().hex}"
    out, run = storage.join(home, "corpus"), storage.join(home, "run/bundle")
    for name in ("corpus/shards/00000.parquet", "run/bundle/model.safetensors", "run/bundle-2/x.json"):
        _begin_upload(storage.join(home, name))
    assert storage.listing(home) == []
    assert not storage.exists(out) and not storage.exists(run)
    assert whole_corpus(out) is None and whole_bundle(run) is None
    killing.run(KEY | store, "ingest", *sources, out)
    bundle.publish(make_folder(tmp_path / "made"), run)
    assert whole_corpus(out) and whole_bundle(run)
    assert _unfinished(home) == [s3.split(home)[1] + "/run/bundle-2/x.json"]
    storage.delete(storage.join(home, "run"))
    assert _unfinished(home) == []


def test_half_a_bundle_without_its_mark_is_no_bundle(store: dict[str, str], tmp_path: Path) -> None:
    made = make_folder(tmp_path / "made")
    uri = f"s3://plethora/{uuid.uuid4().hex}/run/bundle"
    storage.upload(made, uri)
    assert whole_bundle(uri) is None
    storage.write_bytes(storage.join(uri, "left.json"), json.dumps({}).encode())
    bundle.publish(made, uri)
    assert "left.json" not in storage.listing(uri)
    assert whole_bundle(uri)
