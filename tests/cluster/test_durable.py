"""What Ray writes of a run: whole on a disk, patient with a bucket."""

import pickle
import subprocess
from pathlib import Path

import pyarrow.fs
import pytest

from cluster import storage
from cluster.durable import durable
from cluster.errors import PlethoraError


def test_a_file_on_a_disk_appears_whole_when_it_is_closed(tmp_path: Path) -> None:
    found, path = durable(str(tmp_path))
    there = pickle.loads(pickle.dumps(found))  # as Ray sends it to its controller
    (tmp_path / "list.json").write_text("old")
    with there.open_output_stream(f"{path}/list.json") as file:
        file.write(b"new")
        assert (tmp_path / "list.json").read_text() == "old"
    assert (tmp_path / "list.json").read_text() == "new"


def test_a_file_whose_writer_fails_stays_as_it_was(tmp_path: Path) -> None:
    found, path = durable(str(tmp_path))
    (tmp_path / "list.json").write_text("old")
    with pytest.raises(ValueError, match="half"), found.open_output_stream(f"{path}/list.json") as file:
        file.write(b"ne")
        raise ValueError("half")
    assert (tmp_path / "list.json").read_text() == "old"


@pytest.fixture
def small_disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A disk of 64 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_keeps_the_old_file_and_is_told_in_one_line(small_disk: Path) -> None:
    found, path = durable(str(small_disk))
    with found.open_output_stream(f"{path}/list.json") as file:
        file.write(b"old" * 1000)
    with (
        pytest.raises(PlethoraError, match=r"list.json: No space left on device"),
        found.open_output_stream(f"{path}/list.json") as file,
    ):
        file.write(b"x" * 200_000)
    assert (small_disk / "list.json").read_bytes() == b"old" * 1000
    assert [p.name for p in small_disk.iterdir()] == ["list.json"]


def test_what_others_meet_on_a_full_disk_is_known_for_it(small_disk: Path) -> None:
    stream = pyarrow.fs.LocalFileSystem().open_output_stream(str(small_disk / "x"))
    with pytest.raises(OSError) as caught:
        stream.write(b"x" * 200_000)
    assert storage.is_full_or_away(caught.value)
    assert not storage.is_full_or_away(FileNotFoundError(2, "no such file"))


def test_a_bucket_s_filesystem_travels_with_its_patience(moto: dict[str, str]) -> None:
    from tests.s3.proxy import Proxy

    with Proxy(moto["AWS_ENDPOINT_URL"]) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        found, path = durable("s3://plethora/durable")
        there = pickle.loads(pickle.dumps(found))
        proxy.outage(4)  # pyarrow's own three attempts give up within a second
        with there.open_output_stream(f"{path}/list.json") as file:
            file.write(b"whole")
        assert proxy.refused >= 3
        assert storage.read_bytes("s3://plethora/durable/list.json") == b"whole"
