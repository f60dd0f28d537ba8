"""Storage over a local folder and over an S3 endpoint that checks keys."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import s3, storage
from cluster.errors import PlethoraError


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty prefix on each kind of storage."""
    if request.param == "local":
        return str(tmp_path / "store")
    request.getfixturevalue("store")
    return f"s3://plethora/{uuid.uuid4().hex}"


def _tree(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_bytes_and_json_come_back_as_written(root: str) -> None:
    storage.write_bytes(storage.join(root, "a", "b.bin"), b"\x00\xff" * 1000)
    assert storage.read_bytes(storage.join(root, "a/b.bin")) == b"\x00\xff" * 1000
    storage.write_json(storage.join(root, "c.json"), {"z": 1.5, "a": [float("nan"), "é"]})
    assert storage.read_bytes(storage.join(root, "c.json")).decode().startswith('{\n  "a"')
    assert storage.read_json(storage.join(root, "c.json")) == {"a": [None, "é"], "z": 1.5}


def test_listing_is_sorted_recursive_and_without_folders(root: str) -> None:
    assert storage.listing(root) == []
    for name in ("b/2", "b/1", "a", "b-c"):
        storage.write_bytes(storage.join(root, name), b"12345")
    assert storage.listing(root) == ["a", "b-c", "b/1", "b/2"]
    assert storage.sizes(storage.join(root, "b")) == {"1": 5, "2": 5}


def test_listing_goes_past_one_page(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{index:04d}" for index in range(25)]
    for name in names:
        storage.write_bytes(storage.join(root, name), b"")
    real = s3.call
    monkeypatch.setattr(
        s3, "call", lambda method, uri, **arguments: real(method, uri, MaxKeys=10, **arguments)
    )
    assert storage.listing(root) == names


def test_exists_knows_files_and_folders_and_no_mere_beginnings_of_names(root: str) -> None:
    storage.write_bytes(storage.join(root, "run-1/x"), b"")
    storage.write_bytes(storage.join(root, "run/x"), b"")
    assert storage.exists(storage.join(root, "run/x"))
    assert storage.exists(storage.join(root, "run"))
    assert storage.exists(storage.join(root, "run-1"))
    assert not storage.exists(storage.join(root, "ru"))
    storage.delete(storage.join(root, "run"))
    assert not storage.exists(storage.join(root, "run"))
    assert storage.listing(root) == ["run-1/x"]


def test_deleting_what_is_not_there_is_no_error_and_deleting_everything_is_refused(root: str) -> None:
    storage.delete(storage.join(root, "nothing"))
    top = "s3://plethora" if storage.is_remote(root) else "/"
    with pytest.raises(PlethoraError, match="refusing to delete all"):
        storage.delete(top)


def test_deleting_a_folder_ends_also_where_others_delete_or_write_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a").touch()
    remove, met = shutil.rmtree, [errno.ENOTEMPTY, errno.ENOENT]

    def busy(path: str) -> None:
        if met:
            raise OSError(met.pop(), "another process was at work")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", busy)
    storage.delete(tmp_path / "parts")
    assert not (tmp_path / "parts").exists() and not met


def test_a_missing_file_is_one_line_that_names_it(root: str) -> None:
    storage.write_bytes(storage.join(root, "there"), b"")
    with pytest.raises(PlethoraError, match=r"absent\.json: no such file") as caught:
        storage.read_json(storage.join(root, "absent.json"))
    assert "\n" not in str(caught.value)


def test_folders_travel_up_and_down(root: str, tmp_path: Path) -> None:
    source = _tree(tmp_path / "in", a="1", deep__er__b="22")
    (tmp_path / "in" / "large").write_bytes(os.urandom(3 << 20))
    storage.upload(source, root)
    storage.download(root, tmp_path / "out")
    assert storage.sizes(tmp_path / "out") == storage.sizes(source)
    assert (tmp_path / "out/large").read_bytes() == (source / "large").read_bytes()
    with pytest.raises(PlethoraError, match="nothing is there"):
        storage.download(storage.join(root, "other"), tmp_path / "out2")


def test_pyarrow_reads_and_writes_parquet_on_the_same_uri(root: str) -> None:
    storage.write_bytes(storage.join(root, "marker"), b"")
    uri = storage.join(root, "t.parquet")
    files, path = storage.filesystem(uri)
    table = pa.table({"x": list(range(1000))})
    with storage.clear_errors(uri):
        pq.write_table(table, path, filesystem=files)
        assert pq.read_table(path, filesystem=files).equals(table)
    assert storage.listing(root) == ["marker", "t.parquet"]
    missing = storage.join(root, "no.parquet")
    files, path = storage.filesystem(missing)
    with pytest.raises(PlethoraError, match=r"no\.parquet: no such file"), storage.clear_errors(missing):
        pq.read_metadata(path, filesystem=files)


def test_publishing_writes_the_mark_last_and_refuses_a_second_time(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _tree(tmp_path / "in", a="1", deep__b="2")
    uri = storage.join(root, "run/bundle")
    storage.write_bytes(storage.join(uri, "left-over"), b"from a killed publish")
    storage.publish(source, uri, "_COMPLETE", b"sum")
    assert storage.listing(uri) == ["_COMPLETE", "a", "deep/b"]
    assert storage.read_bytes(storage.join(uri, "_COMPLETE")) == b"sum"
    with pytest.raises(PlethoraError, match="already published"):
        storage.publish(source, uri, "_COMPLETE", b"sum")
    assert storage.listing(storage.join(root, "run")) == ["bundle/_COMPLETE", "bundle/a", "bundle/deep/b"]


def test_a_publish_that_dies_midway_leaves_no_mark_and_can_be_repeated(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _tree(tmp_path / "in", **{f"f{index}": "x" for index in range(5)})
    uri = storage.join(root, "bundle")
    name = "put_file" if storage.is_remote(root) else "_copy"
    owner = s3 if storage.is_remote(root) else storage
    real = getattr(owner, name)

    def breaks_at_f3(*arguments: object) -> None:
        if str(arguments[0]).endswith("f3"):
            raise OSError("the cable was pulled")
        real(*arguments)

    monkeypatch.setattr(owner, name, breaks_at_f3)
    with pytest.raises(PlethoraError, match="cable was pulled"):
        storage.publish(source, uri, "_COMPLETE", b"sum")
    assert not storage.exists(storage.join(uri, "_COMPLETE"))
    monkeypatch.setattr(owner, name, real)
    storage.publish(source, uri, "_COMPLETE", b"sum")
    assert storage.listing(uri) == ["_COMPLETE", "f0", "f1", "f2", "f3", "f4"]


RACER = """
import sys, time
from pathlib import Path
from cluster import storage
uri, number, go = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
storage.exists(uri)  # connected before the start
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
print(int(storage.write_exclusive(uri, b"%d" % number * 1000)))
"""


def test_of_many_writers_of_one_mark_exactly_one_wins_and_its_content_stays(
    root: str, tmp_path: Path
) -> None:
    uri = storage.join(root, "mark")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, uri, str(number), str(tmp_path / "go")],
            cwd=Path(storage.__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(1, 6)
    ]
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 5
    (tmp_path / "go").touch()
    won = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert sorted(won) == ["0", "0", "0", "0", "1"]
    assert storage.read_bytes(uri) == b"%d" % (won.index("1") + 1) * 1000


def test_a_mark_that_a_lost_answer_made_us_send_twice_counts_as_ours(store: dict[str, str]) -> None:
    uri = f"s3://plethora/{uuid.uuid4().hex}"
    assert storage.write_exclusive(uri, b"mine")
    assert storage.write_exclusive(uri, b"mine")
    assert not storage.write_exclusive(uri, b"other")


def _refused(uri: str) -> list[str]:
    """What a read, a write, a listing and pyarrow say about `uri`."""
    said = []
    files, path = storage.filesystem(uri)

    def with_pyarrow() -> None:
        with storage.clear_errors(uri):
            pq.read_metadata(path, filesystem=files)

    for work in (
        lambda: storage.read_bytes(uri),
        lambda: storage.write_bytes(uri, b"x"),
        lambda: storage.listing(uri),
        lambda: storage.write_exclusive(uri, b"x"),
        with_pyarrow,
    ):
        with pytest.raises(PlethoraError) as caught:
            work()
        said.append(str(caught.value))
    assert all(line.startswith(uri) and "\n" not in line for line in said)
    return said


def test_a_missing_bucket_is_named(store: dict[str, str]) -> None:
    said = _refused("s3://no-such-bucket/x")
    assert all("no bucket `no-such-bucket`" in line for line in said[:4])
    assert "no such" in said[4] or "no bucket" in said[4]


def test_a_wrong_key_is_one_line_without_the_secret(
    store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret-value")
    said = _refused("s3://plethora/x")
    assert all("AWS_SECRET_ACCESS_KEY" in line or "denies access" in line for line in said)
    assert not any("a-wrong-secret-value" in line or store["AWS_ACCESS_KEY_ID"] in line for line in said)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODYKNOWSME")
    said = _refused("s3://plethora/x")
    assert all("AWS_ACCESS_KEY_ID" in line or "denies access" in line for line in said)


def test_an_endpoint_that_does_not_answer_is_named_without_its_password(
    store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setattr(s3, "PYARROW_ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert all("cannot reach http://127.0.0.1:9" in line for line in _refused("s3://plethora/x"))
    assert s3._without_user("http://me:secret@host:1/x") == "http://host:1/x"


def test_a_store_that_accepts_and_never_answers_is_given_up(
    store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setattr(s3, "PYARROW_ATTEMPTS", 1)
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        said = _refused("s3://plethora/x")
        monkeypatch.setattr(s3, "CONNECT_TIMEOUT_S", 0.1)
        monkeypatch.setattr(s3, "SLOWEST_BYTES_S", 1 << 26)
        with pytest.raises(PlethoraError, match="did not answer"):
            storage.write_bytes("s3://plethora/x", bytes(1 << 26))  # more than the sockets' buffers hold
    assert all("did not answer within 1 s" in line for line in said[:4])
    assert "cannot reach" in said[4]


def test_a_write_to_a_local_file_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "f"
    storage.write_bytes(target, b"old")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(PlethoraError, match="No space left"):
        storage.write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert storage.listing(tmp_path) == ["f"]


def test_uris_are_made_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("a/../b") == str(tmp_path / "b")
    assert storage.normalise(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a b"
    assert storage.normalise("s3://bucket//a/b/") == "s3://bucket/a/b"
    assert storage.join("s3://bucket", "a", "/b/") == "s3://bucket/a/b"
    assert storage.join(tmp_path, "a", "b") == str(tmp_path / "a" / "b")
    for wrong, why in (
        ("gs://x/y", "gs"),
        ("s3://k:v@b/x", "keys go in"),
        ("s3://b/../c", r"\.\."),
        ("", "empty"),
    ):
        with pytest.raises(PlethoraError, match=why) as caught:
            storage.normalise(wrong)
        assert "k:v" not in str(caught.value)
