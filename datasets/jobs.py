"""One shard, one task: in Ray Data, or in this process where starting Ray would take longer than the work."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from cluster.cli import progress
from datasets.write import ShardReport

T = TypeVar("T")


def run(
    work: Callable[[T], ShardReport], tasks: Sequence[T], label: str, in_process: bool = False
) -> list[ShardReport]:
    """`work(task)` for each task, one Ray Data task each, in any order; progress on stderr."""
    with progress(len(tasks), label, "shards") as bar:
        reports = []
        for report in map(work, tasks) if in_process else _distributed(work, tasks):
            reports.append(report)
            bar.update(1, records=sum(r.records_in for r in reports))
    return reports


def _distributed(work: Callable[[T], ShardReport], tasks: Sequence[T]) -> Iterator[ShardReport]:
    from cluster import session

    with session.session():
        import ray.data

        session.data_context()

        def one(row: dict[str, Any]) -> dict[str, Any]:
            return {"report": pickle.dumps(work(pickle.loads(row["task"])))}

        rows = [{"task": pickle.dumps(task)} for task in tasks]
        planned = ray.data.from_items(rows, override_num_blocks=len(rows))
        for row in planned.map(one).iter_rows():
            yield pickle.loads(row["report"])
