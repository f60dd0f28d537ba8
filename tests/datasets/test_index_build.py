"""Builds of an index that end early or meet another one: what the next build finds, and what it removes."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from datasets import index
from datasets.schema import Corpus, open_corpus
from tests.datasets.test_index_files import ROOT, here, judging
from tests.datasets.test_stream import SPEC, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return open_corpus(write_corpus(tmp_path / "corpus"))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return judging(monkeypatch)


def test_a_killed_build_judges_only_what_is_left(corpus: Corpus, judged: list[int], tmp_path: Path) -> None:
    """Killed as by `kill -9` while it writes its fourth part."""
    cache = str(tmp_path / "cache")
    program = f"""
import os, signal
from cluster import storage
from datasets import index
from datasets.schema import open_corpus
from tests.datasets.test_index_files import SPEC, here
index._judged = here
write, written = storage.write_bytes, []
def dying(uri, data):
    written.append(uri)
    if len(written) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    write(uri, data)
storage.write_bytes = dying
index.build(open_corpus({corpus.uri!r}), SPEC, {cache!r})
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    found = index.build(corpus, SPEC, cache)
    assert judged == [3, 4, 5]
    assert found.table.equals(index.build(corpus, SPEC).table)
    assert len(list(Path(cache).iterdir())) == 1  # the parts are gone


def test_a_build_that_was_killed_while_it_published_judges_nothing_again(
    corpus: Corpus, judged: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "publish", dying)
        index.build(corpus, SPEC, str(tmp_path / "cache"))
    judged.clear()
    assert index.build(corpus, SPEC, str(tmp_path / "cache")).windows == 72 and not judged


def test_a_second_builder_that_was_first_does_not_harm(
    corpus: Corpus, judged: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, once = str(tmp_path / "cache"), index._judged

    def overtaken(*what: Any) -> Iterator[tuple[int, bytes]]:
        yield from here(*what)
        monkeypatch.setattr(index, "_judged", once)
        index.build(corpus, SPEC, cache)

    monkeypatch.setattr(index, "_judged", overtaken)
    assert index.build(corpus, SPEC, cache).windows == 72
    assert len(list(Path(cache).iterdir())) == 1


@pytest.mark.parametrize("killed", ["before", "after"])
def test_parts_left_by_a_build_that_was_killed_once_published_are_removed_and_no_others(
    corpus: Corpus, judged: list[int], tmp_path: Path, killed: str
) -> None:
    """Killed as by `kill -9` just before it removes its parts, or once it has removed one of them."""
    cache = tmp_path / "cache"
    program = f"""
import os, shutil, signal
from cluster import storage
from datasets import index
from datasets.schema import open_corpus
from tests.datasets.test_index_files import SPEC, here
index._judged = here
def dying(uri):
    if {killed!r} == "after":
        os.unlink(os.path.join(uri, sorted(os.listdir(uri))[0]))
    os.kill(os.getpid(), signal.SIGKILL)
storage.delete = dying
index.build(open_corpus({corpus.uri!r}), SPEC, {str(cache)!r})
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    (left,) = cache.glob("*-parts")
    another = cache / left.name.replace(SPEC.hash, "another")
    another.mkdir()
    (another / "000000.parquet").touch()
    assert len(list(left.iterdir())) == (6 if killed == "before" else 5)
    assert index.build(corpus, SPEC, str(cache)).windows == 72 and not judged
    assert sorted(cache.iterdir()) == sorted([another, cache / left.name.removesuffix("-parts")])


def test_a_build_whose_parts_another_one_removes_finds_the_index(
    corpus: Corpus, judged: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second build publishes while the first one judges; later ones remove the parts that the first one has
    written since.
    """
    cache, once = tmp_path / "cache", index._judged

    def overtaken(*what: Any) -> Iterator[tuple[int, bytes]]:
        monkeypatch.setattr(index, "_judged", once)
        index.build(corpus, SPEC, str(cache))
        for part in here(*what):
            yield part
            index.build(corpus, SPEC, str(cache))

    monkeypatch.setattr(index, "_judged", overtaken)
    assert index.build(corpus, SPEC, str(cache)).windows == 72
    assert len(list(cache.iterdir())) == 1
