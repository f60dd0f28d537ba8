"""What is read ahead is read once, in order, and fails where it is asked for."""

import threading
import time
from dataclasses import dataclass

import pytest

from datasets.ahead import REMOTE, THREADS, Ahead


@dataclass(frozen=True)
class Place:
    """What has a URI, as a corpus has."""

    uri: str


def test_each_gives_what_load_gives_in_the_order_of_the_places() -> None:
    ahead = Ahead(lambda a, b: (time.sleep(0.01 * (a % 3)), 10 * a + b)[1], 8)
    places = [(a, 1) for a in (4, 2, 9, 2, 0, 5)]
    assert list(ahead.each(places)) == [41, 21, 91, 21, 1, 51]


def test_what_is_held_or_under_way_is_not_loaded_again() -> None:
    loaded, go = [], threading.Event()

    def load(a: int) -> int:
        go.wait(5)
        loaded.append(a)
        return a

    ahead = Ahead(load, 2)
    for _ in range(3):
        ahead.begin(1)
    go.set()
    assert [ahead(1), ahead(1), ahead(2)] == [1, 1, 2] and loaded == [1, 2]


def test_only_the_last_results_are_held() -> None:
    loaded: list[int] = []
    ahead = Ahead(lambda a: loaded.append(a), 2)
    for a in (1, 2, 1, 3, 1, 2):
        ahead(a)
    assert loaded == [1, 2, 3, 2]


def test_the_next_places_are_under_way_while_the_caller_works() -> None:
    begun = [threading.Event() for _ in range(6)]
    ahead = Ahead(lambda a: begun[a].set(), 8)
    for a, _ in enumerate(ahead.each([(a,) for a in range(6)])):
        assert all(begun[b].wait(5) for b in range(a, min(a + 1 + THREADS, 6)))


def test_a_failed_load_is_raised_where_it_is_asked_for_and_tried_again() -> None:
    away = threading.Event()

    def load(a: int) -> int:
        if away.is_set() and a == 1:
            raise OSError("away")
        return a

    ahead = Ahead(load, 4)
    away.set()
    given = ahead.each([(0,), (1,), (2,)])
    assert next(given) == 0
    with pytest.raises(OSError, match="away"):
        next(given)
    away.clear()
    assert ahead(1) == 1


def test_what_exceeds_the_room_is_spilled_and_what_is_let_go_makes_room() -> None:
    spilled: list[int] = []

    def spill(found: int, room: float) -> tuple[int, int]:
        if found <= room:
            return found, found
        spilled.append(found)
        return found, 0

    ahead = Ahead(lambda a: 10 * a, 8, spill, room=60)
    assert [ahead(a) for a in (1, 2, 4, 3)] == [10, 20, 40, 30] and spilled == [40]
    ahead.keep([(1,), (4,)])
    assert [ahead(4), ahead(5), ahead(2)] == [40, 50, 20] and spilled == [40, 20]


def test_only_what_is_kept_is_not_loaded_again() -> None:
    loaded: list[int] = []
    ahead = Ahead(lambda a: loaded.append(a), 8)
    for a in (1, 2, 3):
        ahead(a)
    ahead.keep([(2,), (9,)])
    for a in (1, 2, 3):
        ahead(a)
    assert loaded == [1, 2, 3, 1, 3]


@pytest.mark.parametrize(
    ("uri", "given", "threads"),
    [("/disk/corpus", None, THREADS), ("s3://bucket/corpus", None, REMOTE), ("/disk/corpus", 5, 5)],
)
def test_as_many_loads_are_under_way_as_the_place_calls_for(
    uri: str, given: int | None, threads: int
) -> None:
    together = threading.Barrier(threads)
    ahead = Ahead(lambda where, a: together.wait(5), 64, threads=given)
    corpus = Place(uri)
    for a in range(threads):
        ahead.begin(corpus, a)
    assert sorted(ahead(corpus, a) for a in range(threads)) == list(range(threads))
    assert [pool._max_workers for pool in ahead._pools.values()] == [threads]


def test_what_is_under_way_is_never_dropped_before_its_turn() -> None:
    loaded: list[int] = []
    ahead = Ahead(lambda where, a: (loaded.append(a), a)[1], 8)
    corpus = Place("s3://bucket/corpus")
    assert list(ahead.each([(corpus, a) for a in range(40)])) == list(range(40))
    assert sorted(loaded) == list(range(40))
