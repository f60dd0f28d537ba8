"""What a corpus as large as the papers' costs a worker beside its windows: seconds and bytes of choosing the
windows of a part, of planning them, and of the order of a pass.

The index is made up (shards, groups and rows as ingest writes them, hours in windows of 10 s, a subject each
hour); all that works on it is ours. Beside the order of a pass: the same order by one sort of all windows.

    python -m tests.benchmarks.scale [--hours 27800]
"""

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from datasets.index import Index
from datasets.judge import schema
from datasets.plan import Plan, Source, _Key, _pass_order
from datasets.windows import Signal, WindowSpec
from tests.benchmarks.table import show

WINDOWS = 360  # an hour
HOURS = 3  # a row group: 16 MB of PPG and ECG
SPEC = WindowSpec(
    signals=(Signal(modality="ppg", rate=125.0), Signal(modality="ecg", rate=500.0)), window_s=10.0
)


def made_up(hours: int) -> Index:
    """An index of `hours`, a fifth of whose windows are refused."""
    n = hours * WINDOWS
    window = np.arange(n)
    group = window // (HOURS * WINDOWS)
    names = pa.array([f"{hour * 0x9E3779B97F4A7C15 % 2**64:016x}{hour:016x}" for hour in range(hours)])
    refused = (np.random.default_rng(0).random(n) < 0.2).astype(np.int32)
    hour = (window // WINDOWS).astype(np.int32)
    columns: dict[str, Any] = {
        "shard": (group // 16).astype(np.int32),
        "group": (group % 16).astype(np.int32),
        "row": (window // WINDOWS % HOURS).astype(np.int32),
        "offset_s": window % WINDOWS * 10.0,
        "start_s": window % WINDOWS * 10.0,
        "subject": pa.DictionaryArray.from_arrays(hour, names),
        "record": pa.DictionaryArray.from_arrays(hour, names),
        "quality": np.ones(n, np.float32),
        "verdict": pa.DictionaryArray.from_arrays(refused, pa.array(["ok", "quality"])),
    }
    assert list(columns) == schema(SPEC).names
    corpus: Any = SimpleNamespace(hash="ab" * 32, uri="made-up")
    return Index(corpus, SPEC, pa.table(columns))


def one_sort(source: Source, seed: int, number: int, pass_: int) -> np.ndarray:
    """The order of a pass, by one sort of all its windows."""
    rng = np.random.default_rng([seed, 0, number, pass_])
    groups, inverse = np.unique(source.group, return_inverse=True)
    return np.lexsort((rng.random(len(source)), rng.permutation(len(groups))[inverse]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=int, default=27_800, help="10 million windows; AnyPPG's has 109,909")
    given = parser.parse_args()
    found = made_up(given.hours)
    rows: list[dict[str, Any]] = []

    def timed(what: str, work: Callable[[], Any], kept: Callable[[Any], int] = lambda _: 0) -> Any:
        began = time.perf_counter()
        out = work()
        rows.append({"what": what, "s": time.perf_counter() - began, "MB kept": kept(out) / 1e6})
        return out

    chosen = timed("windows of one part", lambda: found.select("train"), lambda x: x.nbytes)
    source, _ = timed(
        "their plan",
        lambda: found.source(chosen, 1.0),
        lambda x: sum(v.nbytes for part in x for v in vars(part).values() if isinstance(v, np.ndarray)),
    )
    plan = Plan((source,), 0, 512, 10**6, 1, 0, 4096, SPEC.bytes)
    mine = timed("the order of a pass", lambda: _pass_order(_Key(source), 0, 0, 0), lambda x: x.nbytes)
    same = timed("the order of a pass, by one sort", lambda: one_sort(source, 0, 0, 0), lambda x: x.nbytes)
    timed("a block, once there is an order", lambda: plan.rows(next(plan.blocks(0))))
    rows.append({"what": "the index, let go before training", "s": 0.0, "MB kept": found.table.nbytes / 1e6})
    took = {row["what"]: row["s"] for row in rows}
    show(
        f"scale ({len(found.table):,} windows, {len(source):,} to train on)",
        rows,
        {
            "one order, either way": np.array_equal(mine, same),
            "sooner than by one sort": took["the order of a pass"] < took["the order of a pass, by one sort"],
        },
    )


if __name__ == "__main__":
    main()
