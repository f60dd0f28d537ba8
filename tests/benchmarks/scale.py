"""What a plan costs on a corpus as large as the papers', beside the plan of an older commit (a git worktree):
bytes that each process holds, seconds for an order, how often a row group is read, people in a batch.

The corpus is made up as ingest would lay out AnyPPG's: windows of 10 s of PPG at 125 Hz and ECG at 500 Hz,
1,280 of them in a row group of 16 MB, people who stay 20 hours. Reads are counted over a whole pass of a
tenth of the corpus, by a worker that holds what its plan says is open (the older one: its last 8 row groups).
Its index is put together out of made-up parts, opened and looked up (tests/benchmarks/kept.py).

    python -m tests.benchmarks.scale [--windows 40000000] [--older d1d4553]
"""

import argparse
import os
import pickle
import time
from dataclasses import replace
from typing import Any

import numpy as np

from datasets.plan import CorpusShare, Plan
from tests.benchmarks import kept as files
from tests.benchmarks import older
from tests.benchmarks.table import show

GROUP, STAY = 1280, 7200  # windows of a row group, and of a person
BATCH, WINDOW_BYTES = 2048, 25_000
WORLDS = (1, 4, 8, 16, 64)
OLDER = """
import json, pickle, sys, time
import numpy as np
from collections import OrderedDict
from datasets.plan import Plan, CorpusShare
n, group, stay, batch, size, worlds = json.loads({given!r})
shuffle = int(128e6 / size)
source = CorpusShare((np.arange(n) // group).astype(np.int32), np.arange(n))
plan = Plan((source,), 0, batch, n // batch, 1, 0, shuffle, size)
held = sum(x.nbytes for x in vars(source).values() if isinstance(x, np.ndarray))
began = time.perf_counter()
block = next(plan.blocks())
rows = plan.rows(block)
first = time.perf_counter() - began
people = np.unique(rows.position[rows.step == block.first] // stay)
count = np.bincount(rows.position[rows.step == block.first] // stay)
pairs = float((count * (count - 1)).sum() / (batch * (batch - 1)))
few = n // 10
reads = []
for world in worlds:
    source = CorpusShare((np.arange(few) // group).astype(np.int32), np.arange(few))
    plan = Plan((source,), 0, batch, few // batch, world, 0, shuffle, size)
    kept, fetched = OrderedDict(), 0
    for block in plan.blocks(0):
        for g in np.unique(source.group[plan.rows(block).position]).tolist():
            fetched += g not in kept
            kept[g] = None
            kept.move_to_end(g)
            while len(kept) > 8:
                kept.popitem(last=False)
    reads.append(fetched * world / (few / group))
out = dict(held=held, order_s=first, order_bytes=4 * n, people=len(people), pairs=pairs, reads=reads)
print(json.dumps(out))
"""


def made_up(windows: int) -> CorpusShare:
    counts = np.full(-(-windows // GROUP), GROUP)
    counts[-1] -= counts.sum() - windows
    return CorpusShare(counts, np.empty(0, np.int64))


def reads(windows: int, world: int) -> float:
    """How often a row group is read in a pass, all workers together, by what the first of them reads."""
    plan = Plan((made_up(windows),), 0, BATCH, windows // BATCH, world, window_bytes=WINDOW_BYTES)
    kept: set[int] = set()
    fetched = 0
    for block in plan.blocks(0):
        used = set(np.unique(plan.rows(block).position // GROUP).tolist())
        fetched += len(used - kept)
        kept = {group for _, group in plan.still_open(block)}
    return fetched * world / (windows / GROUP)


def company(plan: Plan) -> tuple[int, float]:
    """Means over ten batches of a pass: people in one, and the share of its pairs that are of one person."""
    people, pairs = [], []
    for step in np.linspace(plan.steps * 0.05, plan.steps * 0.95, 10).astype(int).tolist():
        rows = plan.rows(next(replace(plan, start=step).blocks()))
        count = np.bincount(rows.position[rows.step == step] // STAY)
        people.append((count > 0).sum())
        pairs.append((count * (count - 1)).sum() / (BATCH * (BATCH - 1)))
    return int(np.mean(people)), float(np.mean(pairs))


def held(plan: Plan) -> int:
    """Bytes of the plan and of the orders that it keeps."""
    return len(pickle.dumps((plan, plan._orders)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=40_000_000, help="AnyPPG's 109,909 h are 40 million")
    parser.add_argument("--older", default="d1d4553", help="the commit beside it; '' for none")
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    if given.windows < 10 * BATCH:
        parser.error(f"--windows {given.windows}: give {10 * BATCH:,} or more")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    before: dict[str, Any] = {}
    if given.older:
        sizes = f"[{given.windows}, {GROUP}, {STAY}, {BATCH}, {WINDOW_BYTES}, {list(WORLDS)}]"
        before = older.told(given.older, OLDER.format(given=sizes))
    plan = Plan((made_up(given.windows),), 0, BATCH, given.windows // BATCH, 1, window_bytes=WINDOW_BYTES)
    began = time.perf_counter()
    plan.order(0, 0)
    order_s = time.perf_counter() - began
    for block, _ in zip(plan.blocks(), range(20), strict=False):
        plan.rows(block)
    people, pairs = company(plan)
    kept = held(plan)
    then = [""] * 4
    if before:  # eight orders of passes were kept
        mb = (before["held"] + 8 * before["order_bytes"]) / 1e6
        then = [mb, 1e3 * before["order_s"], before["people"], 100 * before["pairs"]]
    what = [
        "plan and orders, MB a process",
        "order of a pass, ms",
        f"people in a batch of {BATCH:,}",
        "pairs of one person, %",
    ]
    now = [kept / 1e6, 1e3 * order_s, people, 100 * pairs]
    rows = [{"what": w, "here": h, "older": o} for w, h, o in zip(what, now, then, strict=True)]
    again = {world: reads(given.windows // 10, world) for world in WORLDS}
    rows += [
        {"what": f"reads of a row group, {world} workers", "here": n, "older": old}
        for (world, n), old in zip(again.items(), before.get("reads", [""] * len(WORLDS)), strict=True)
    ]
    index = files.measured(given.windows, GROUP, STAY, BATCH, WINDOW_BYTES)
    rows += [
        {"what": "index on disk, bytes a window", "here": index["bytes"], "older": ""},
        {"what": "index put together: the driver's peak, MB", "here": index["merge_mb"], "older": ""},
        {"what": "index put together, s", "here": index["merge_s"], "older": ""},
        {"what": "index opened and its row groups counted, s", "here": index["plan_s"], "older": ""},
        {"what": "plan, orders and selection, MB a process", "here": index["kept"] / 1e6, "older": ""},
        {
            "what": "a process that looked up 20 blocks has grown by, MB",
            "here": index["grown_mb"],
            "older": "",
        },
        {"what": "a window looked up, us", "here": index["look_us"], "older": ""},
        {"what": "ledger that a run ends with, s", "here": index["ledger_s"], "older": ""},
    ]
    goals = {
        "plan and orders: at most 5 MB a process": kept <= 5e6,
        "order of a pass: under 50 ms": order_s < 0.05,
        f"at least 100 people in a batch of {BATCH:,}": people >= 100,
        "at most 1 % of pairs of one person": pairs <= 0.01,
        "a row group is read at most 1.1 times": max(again.values()) <= 1.1,
        "index: at most 12 bytes a window on disk": index["bytes"] <= 12,
        "index put together in less than 1 GB": index["merge_mb"] < 1000,
        "plan, orders and selection: at most 5 MB a process": index["kept"] <= 5e6,
    }
    show(f"scale ({given.windows:,} windows)", rows, goals)


if __name__ == "__main__":
    main()
