"""One process at a time owns a folder, on a disk and in a bucket, and a dead one is followed."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import owner, storage
from cluster.errors import PlethoraError
from tests.conftest import BUCKET, ROOT

TAKEN = "belongs to a run under way on .* wait for it or stop it, or give another name"


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "run")
    request.getfixturevalue("moto")
    return f"s3://{BUCKET}/{tmp_path.name}/run"


def told(folder: str) -> owner.Owner:
    found = owner._last(folder)
    assert found is not None
    return found[1]


def left_by(folder: str, **changes: object) -> None:
    """Let the folder's owner be another one."""
    number, held = owner._last(folder) or (0, None)
    assert held is not None
    storage.write_json(owner._file(folder, number), held.model_copy(update=changes).model_dump())


def test_a_folder_that_is_owned_is_refused_and_one_given_back_is_not(folder: str) -> None:
    with owner.owned(folder) as token:
        assert owner.holds(folder, token)
        with pytest.raises(PlethoraError, match=TAKEN), owner.owned(folder):
            pytest.fail("two own it")
        assert owner.holds(folder, token)
    with owner.owned(folder) as other:
        assert owner.holds(folder, other) and not owner.holds(folder, token)


def test_of_many_that_start_at_once_one_owns_the_folder(folder: str) -> None:
    ready, over = threading.Barrier(8), threading.Event()
    storage.exists(folder)  # a client is there

    def one() -> str:
        ready.wait(60)
        try:
            with owner.owned(folder) as token:
                over.wait(60)
                return token
        except PlethoraError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(one) for _ in range(8)]
        until = time.monotonic() + 60
        while sum(each.done() for each in tries) < 7 and time.monotonic() < until:
            time.sleep(0.01)
        held = told(folder).token
        over.set()
    said = [each.result() for each in tries]
    assert sum("belongs to a run under way" in line for line in said) == 7 and held in said, said


def test_an_owner_that_was_killed_is_followed_at_once(tmp_path: Path) -> None:
    code = f"import os, signal\nfrom cluster import owner\nwith owner.owned({str(tmp_path)!r}):\n"
    code += "    print(flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    killed = told(str(tmp_path))
    assert not killed.given_back
    began = time.monotonic()
    with owner.owned(str(tmp_path)) as token:
        assert time.monotonic() - began < 5 and token != killed.token


def test_a_process_that_has_a_dead_owners_id_is_not_it(tmp_path: Path) -> None:
    with owner.owned(str(tmp_path)):
        left_by(str(tmp_path), born=told(str(tmp_path)).born - 100)
        with owner.owned(str(tmp_path)):
            pass


def test_an_owner_elsewhere_is_dead_once_it_gives_no_sign(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(owner, "SILENT_S", 1.0)
    with owner.owned(folder) as first:
        left_by(folder, machine="elsewhere")
        with owner.owned(folder) as token:
            assert owner.holds(folder, token) and not owner.holds(folder, first)
    assert "watching for up to 1 s for a sign of life" in capsys.readouterr().err
    assert not storage.exists(folder), "the first one gives nothing back that it lost"


def test_what_an_owner_leaves_is_a_word_beside_its_files_and_nothing_where_there_are_none(
    folder: str,
) -> None:
    with owner.owned(folder):
        pass
    assert not storage.exists(folder)
    with owner.owned(folder):
        storage.write_bytes(storage.join(folder, "file"), b"x")
    assert storage.listing(folder) == ["file", "owner/000001.json"] and told(folder).given_back
    with owner.owned(folder):
        assert not told(folder).given_back
    assert storage.listing(folder) == ["file", "owner/000002.json"]


def test_what_was_removed_under_its_owner_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "SIGN_S", 0.1)
    with owner.owned(str(tmp_path / "run")) as token:
        storage.delete(tmp_path / "run")
        time.sleep(0.5)
        assert not owner.holds(str(tmp_path / "run"), token) and not (tmp_path / "run").exists()


def test_an_owner_elsewhere_that_gives_signs_is_alive(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "SIGN_S", 0.2)
    monkeypatch.setattr(owner, "SILENT_S", 5.0)
    monkeypatch.setattr(owner, "_machine", lambda: "here" if threading.current_thread().name == "o" else "x")

    def hold() -> None:
        with owner.owned(folder):
            taken.set()
            over.wait(60)

    taken, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, name="o")
    thread.start()
    assert taken.wait(60)
    try:
        with pytest.raises(PlethoraError, match=TAKEN), owner.owned(folder):
            pytest.fail("two own it")
    finally:
        over.set()
        thread.join()


def test_an_owner_elsewhere_without_a_sign_for_long_is_not_watched(tmp_path: Path) -> None:
    with owner.owned(str(tmp_path)):
        left_by(str(tmp_path), machine="elsewhere", sign=time.time() - 2 * owner.LONG_S)
        began = time.monotonic()
        with owner.owned(str(tmp_path)):
            assert time.monotonic() - began < 5
