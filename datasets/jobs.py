"""One task per shard: in Ray Data, or in this process if starting Ray would take longer than the work."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from cluster.cli import Progress, progress
from datasets.write import ShardReport

T = TypeVar("T")
Tick = Callable[[], None]  # called by a task after each record
EVERY_S = 0.5


def run(
    work: Callable[[T, Tick], ShardReport],
    tasks: Sequence[T],
    label: str,
    records: int,
    in_process: bool = False,
) -> list[ShardReport]:
    """`work(task, tick)` for each task, one Ray Data task each; reports in any order, progress on stderr."""
    with progress(records, label, "records") as bar:
        if in_process:
            return [work(task, lambda: bar.update(1)) for task in tasks]
        reports = list(_distributed(work, tasks, bar))
        bar.set(records)
    return reports


class _Count:
    """Records done by all tasks: an actor, because tasks run anywhere."""

    def __init__(self) -> None:
        self.done = 0

    def add(self, n: int) -> None:
        self.done += n

    def get(self) -> int:
        return self.done


class _Teller:
    """A task's tick: reports to the actor now and then, not at every record."""

    def __init__(self, count: Any) -> None:
        self.count, self.untold, self.last = count, 0, time.monotonic()

    def __call__(self) -> None:
        self.untold += 1
        if time.monotonic() - self.last > EVERY_S:
            self.count.add.remote(self.untold)
            self.untold, self.last = 0, time.monotonic()


def _distributed(
    work: Callable[[T, Tick], ShardReport], tasks: Sequence[T], bar: Progress
) -> Iterator[ShardReport]:
    from cluster import session

    with session.session() as ray:
        import ray.data

        session.data_context()
        count = ray.remote(num_cpus=0)(_Count).remote()

        def one(row: dict[str, Any]) -> dict[str, Any]:
            return {"report": json.dumps(asdict(work(tasks[row["task"]], _Teller(count))))}

        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(ray, count, bar, over), daemon=True)
        watcher.start()
        try:
            rows = [{"task": index} for index in range(len(tasks))]
            planned = ray.data.from_items(rows, override_num_blocks=len(rows))
            for row in planned.map(one).iter_rows():
                yield ShardReport(**json.loads(row["report"]))
        finally:
            over.set()
            watcher.join()


def _watch(ray: Any, count: Any, bar: Progress, over: threading.Event) -> None:
    while not over.wait(EVERY_S):
        try:
            bar.set(max(bar.done, ray.get(count.get.remote())))
        except ray.exceptions.RayError:  # cluster shutting down: reported where the tasks are awaited
            return
