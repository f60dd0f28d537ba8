"""A run's reports: progress from the workers, TensorBoard, JSON lines, Prometheus gauges."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cluster import gauges, storage
from cluster.cli import Progress, plain, progress
from cluster.gauges import Gauges
from cluster.mirror import Mirror

if TYPE_CHECKING:
    import matplotlib.figure

JSONL = "metrics.jsonl"
PUT_EVERY_S = 0.5
FLUSH_EVERY_S = 2.0


class _Slot:
    """The latest report of a run's rank 0; lives in an actor."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def put(self, state: dict[str, Any]) -> None:
        self.state = state

    def get(self) -> dict[str, Any]:
        return self.state


class Board:
    """Carries progress from a run's rank 0 to the driver's terminal; Ray can send it to the workers.

    Made by `make_board` in the driver, which shows it with ``with board.render("tokenizer", steps):``.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._put_at = 0.0

    def put(self, step: int, total: int | None, shown: dict[str, Any] | None = None) -> None:
        """Report that `step` of `total` is done; `shown` (loss, share of time waiting for data) appears
        beside the bar.

        Cheap enough for every step: at most two reports a second are sent, and only the last is waited for.
        """
        now = time.monotonic()
        if now - self._put_at < PUT_EVERY_S and step != total:
            return
        self._put_at = now
        sent = self._actor.put.remote({"step": int(step), "total": total, "shown": plain(shown or {})})
        if step == total:
            import ray

            ray.wait([sent], timeout=5)  # otherwise the run may end before its last report is shown

    @contextlib.contextmanager
    def render(self, label: str, total: int | None, unit: str = "steps") -> Iterator[None]:
        """Show the board on stderr while the block runs."""
        over = threading.Event()
        with progress(total, label, unit) as bar:
            bar.note = "workers are starting"
            watcher = threading.Thread(target=self._watch, args=(bar, over), daemon=True)
            watcher.start()
            try:
                yield
            finally:
                over.set()
                watcher.join()

    def _watch(self, bar: Progress, over: threading.Event) -> None:
        import ray

        started = False
        while True:
            last = over.wait(PUT_EVERY_S)
            try:
                state = ray.get(self._actor.get.remote(), timeout=5)
            except ray.exceptions.GetTimeoutError:
                state = {}
            except ray.exceptions.RayError:
                return  # the cluster or the actor has ended: there is nothing left to show
            if state and not started:
                bar.total = state["total"] or bar.total
                bar.begin(state["step"])
                started = True
            bar.set(state["step"] if state else bar.done, **(state["shown"] if state else {}))
            if last:
                return


def make_board() -> Board:
    """A board in its own actor, which takes no CPU; Ray must be running."""
    import ray

    return Board(ray.remote(_Slot).options(num_cpus=0).remote())


def put(board: Board | None, step: int, total: int | None, shown: dict[str, Any] | None = None) -> None:
    """`board.put`; a no-op without a board."""
    if board is not None:
        board.put(step, total, shown)


class Telemetry:
    """The writer of a run's numbers and figures: TensorBoard and metrics.jsonl under `uri`, and gauges.

    Opened by one process (rank 0). On resume, `start_step` is the first step to be reported again: lines at
    or after it, left by a lost attempt, are dropped, so that each step appears once. For S3 it writes through
    a temporary folder, every 30 s and at `flush`: call `flush` before a checkpoint is committed.
    """

    def __init__(self, uri: str, start_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._mirror = Mirror(uri)
        self.uri, self._folder = self._mirror.uri, self._mirror.folder
        self._lines = self._folder / JSONL
        self._lines.write_bytes(_kept(self.uri, start_step))
        self._file = self._lines.open("r+b")
        self._file.seek(0, 2)
        self._last: tuple[int, int, dict[str, Any]] | None = None  # step, offset, content of the last line
        self._events = SummaryWriter(str(self._folder), purge_step=start_step or None)
        self.gauges = Gauges(self.uri.split("/")[-2])
        self._flushed_at = time.monotonic()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Report numbers at `step`; a second call at the same step adds to its line."""
        numbers = {name: float(value) for name, value in values.items()}
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)
            gauge, labels = gauges.of(name)
            self.gauges.set(gauge, value, **labels)
        if self._last is not None and self._last[0] == step:
            _, offset, line = self._last
            self._file.seek(offset)
            self._file.truncate()
        else:
            offset, line = self._file.tell(), {"step": int(step), "time": round(time.time(), 3)}
        line |= numbers
        self._file.write((json.dumps(plain(line)) + "\n").encode())
        self._file.flush()
        self._last = (step, offset, line)
        self._maybe_send()

    def figure(self, step: int, name: str, figure: matplotlib.figure.Figure) -> None:
        """Report a matplotlib figure at `step`, and close it."""
        self._events.add_figure(name, figure, step, close=True)

    def flush(self) -> None:
        """Upload everything; when this returns, all reports are on the storage."""
        self._events.flush()
        self._mirror.flush()

    def close(self) -> None:
        """Flush and stop; the writer cannot be used afterwards."""
        self._events.close()
        self._file.close()
        self.gauges.close()
        self._mirror.close()

    def _maybe_send(self) -> None:
        now = time.monotonic()
        if now - self._flushed_at >= FLUSH_EVERY_S:
            self._flushed_at = now
            self._events.flush()
        self._mirror.tick()


def _kept(uri: str, start_step: int) -> bytes:
    """The lines of an earlier attempt before `start_step`; a truncated last line is dropped."""
    where = storage.join(uri, JSONL)
    if start_step <= 0 or not storage.exists(where):
        return b""
    kept = []
    for line in storage.read_bytes(where).splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if step < start_step:
            kept.append(line + b"\n")
    return b"".join(kept)
