"""Read-ahead: the next items load in threads while the caller works on the current one."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import update_wrapper
from threading import Lock
from typing import Generic, TypeVar

from cluster import storage
from cluster.session import memory_bytes

THREADS = 2  # concurrent loads: one decompresses while the other waits for the disk
REMOTE = 8  # from a bucket: waiting for a request takes longer than decompressing its result
MOST_OPEN = 4096  # results, for callers that release them (`Ahead.keep`)
ROOM = 1 / 8  # share of this machine's memory for the results held there
T = TypeVar("T")


def threads_for(what: tuple) -> int:
    """Concurrent loads for `what`, depending on where it lies: the `uri` of its first element (a corpus, a
    folder of materialised windows) decides.
    """
    return REMOTE if what and storage.is_remote(getattr(what[0], "uri", "")) else THREADS


class Ahead(Generic[T]):
    """The last `size` results of `load`, each loaded once, whichever thread asks for it.

    A failed load is raised to every caller that waits for it, and retried at the next request. `spill(result,
    room)` may move a result out of memory if the results held take more than `room` bytes: it returns a
    replacement, and the bytes that this takes. `threads`: concurrent background loads (None: `threads_for`
    the arguments of each load).
    """

    def __init__(
        self,
        load: Callable[..., T],
        size: int,
        spill: Callable[[T, float], tuple[T, int]] = lambda found, _: (found, 0),
        room: float | None = None,
        threads: int | None = None,
    ) -> None:
        self.load, self.size, self.spill, self.threads = load, size, spill, threads
        self.room = ROOM * memory_bytes() if room is None else room
        update_wrapper(self, load)
        self._results: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._bytes: dict[Hashable, int] = {}
        self._lock = Lock()
        self._pools: dict[
            int, ThreadPoolExecutor
        ] = {}  # by thread count: disk loads do not queue behind a bucket

    def keep(self, wanted: Collection[Hashable]) -> None:
        """Release all results but these, each named by the arguments of `load`."""
        with self._lock:
            for what in self._results.keys() - set(wanted):
                del self._results[what]
                self._bytes.pop(what, None)

    def __call__(self, *what: Hashable) -> T:
        """load(*what): a kept result, one in progress, or loaded in the caller's thread."""
        future, ours = self._place(what)
        if ours:
            self._run(what, future)
        return future.result()

    def begin(self, *what: Hashable) -> None:
        """Start loading in the background unless it is kept or in progress."""
        future, ours = self._place(what)
        if ours:
            threads = self.threads or threads_for(what)
            with self._lock:
                pool = self._pools.get(threads) or ThreadPoolExecutor(threads, "ahead")
                self._pools[threads] = pool
            pool.submit(self._run, what, future)

    def each(self, places: Sequence[tuple]) -> Iterator[T]:
        """load(*place) for each of `places` in order, with the next ones in progress: as many as there are
        threads, or fewer if only that many can be kept besides the current and the previous one.
        """
        for number, what in enumerate(places):
            under_way = max(1, min(self.threads or threads_for(what), self.size - 2))
            for later in places[number + 1 : number + 1 + under_way]:
                self.begin(*later)
            yield self(*what)

    def clear(self) -> None:
        with self._lock:
            self._results.clear()
            self._bytes.clear()

    def _place(self, what: tuple) -> tuple[Future[T], bool]:
        """The entry for `what`, and whether the caller must load it."""
        with self._lock:
            if what in self._results:
                self._results.move_to_end(what)
                return self._results[what], False
            future: Future[T] = Future()
            self._results[what] = future
            if len(self._results) > self.size:
                self._bytes.pop(self._results.popitem(last=False)[0], None)
            return future, True

    def _run(self, what: tuple, future: "Future[T]") -> None:
        try:
            found = self.load(*what)
            with self._lock:
                room = self.room - sum(self._bytes.values())
            found, size = self.spill(found, room)
            with self._lock:
                if self._results.get(what) is future:
                    self._bytes[what] = size
            future.set_result(found)
        except BaseException as failed:
            with self._lock:
                self._results.pop(what, None)
            future.set_exception(failed)
