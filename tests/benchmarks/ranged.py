"""Row groups from a bucket: how many a second, without and with a store that takes its time for each request.

Ours (one ranged request a row group, eight under way) and the older commit's (two under way, each a HEAD, the
footer and the data one after the other) read the same row groups in the same drawn order and do no more than
count the bytes. Between them and the store is a proxy in a process of its own, which counts, and delays each
request. Rounds alternate, the best of each counts. Collecting the footers comes before the clock starts (a
request a shard, once a machine). All share this machine's cores, with the store if it runs here, too.

    eval "$(shared/tools/object-store up DIR)"
    python -m tests.benchmarks.ranged --s3 s3://bucket/prefix [--delay-ms 30] [--rounds 3] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster import s3, storage
from cluster.errors import PlethoraError
from tests.benchmarks.older import told, worktree
from tests.benchmarks.streamed import LONG, write_corpus
from tests.benchmarks.table import ROOT, show

WARM = 24  # row groups before the clock starts: clients are made, and memory that is used again is touched
READ = """
import json, os, sys, time
import numpy as np
from datasets import ahead, memory
from datasets.schema import open_corpus

memory.keep_freed()
corpus = open_corpus({uri!r})
if {footers!r}:
    from datasets import footers
    corpus.footers = footers.there(corpus, {footers!r})
os.environ["AWS_ENDPOINT_URL"] = {proxy!r}
os.environ.pop("PLETHORA_S3_ENDPOINT", None)
there = [(s, g) for s, e in enumerate(corpus.shards) for g in range(len(e["row_groups"]))]
rng = np.random.default_rng(0)
count = {groups} + {warm}
drawn = [place for _ in range(-(-count // len(there))) for place in rng.permutation(there).tolist()]
places = [(corpus, shard, group, turn) for turn, (shard, group) in enumerate(drawn[:count])]
columns = ["subject", "record", "start_s", "duration_s"]
columns += ["ppg" + end for end in ("", "_rate", "_scale", "_offset", "_channels")]
read = ahead.Ahead(lambda corpus, shard, group, turn: corpus.read_row_group(shard, group, columns), 16)
sum(table.num_rows for table in read.each(places[:{warm}]))
began, spent = time.perf_counter(), time.process_time()
size = sum(table["ppg"].nbytes for table in read.each(places[{warm}:]))
taken, spent = time.perf_counter() - began, time.process_time() - spent
print(json.dumps({{"s": taken, "cpu_s": spent, "bytes": size}}))
"""


def ours(code: str) -> Any:
    """What `code`, run in a process of its own on this checkout, prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(older: str | None, uri: str, groups: int, delay_ms: float, footers: str) -> dict[str, Any]:
    """One run of ours (older: None), or of the older commit's: a row of the table."""
    command = [sys.executable, "-m", "tests.s3.counting", s3.endpoint() or "", "--delay-ms", str(delay_ms)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as proxy:
        assert proxy.stdout is not None
        url = proxy.stdout.readline().strip()
        code = READ.format(uri=uri, groups=groups, warm=WARM, proxy=url, footers="" if older else footers)
        found = ours(code) if older is None else told(older, code)
        seen = json.loads(proxy.communicate()[0])
    return {
        "what": "ours" if older is None else f"commit {older}",
        "delay ms": delay_ms,
        "row groups/s": groups / found["s"],
        "MB/s": found["bytes"] / 1e6 / found["s"],
        "requests a row group": seen["requests"] / (groups + WARM),
        "most under way": seen["most"],
        "CPU ms a row group": 1e3 * found["cpu_s"] / groups,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--s3", default=os.environ.get("PLETHORA_BENCH_S3"), help="where to put the corpus")
    parser.add_argument("--mb", type=float, default=480)
    parser.add_argument("--groups", type=int, default=90, help="row groups a run reads")
    parser.add_argument("--delay-ms", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--older", default="d1d4553", help="the commit to compare with")
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    if not given.s3 or not s3.endpoint():
        parser.error("name a bucket with --s3 (or PLETHORA_BENCH_S3) and its store with AWS_ENDPOINT_URL")
    worktree(given.older)
    best: dict[tuple[str | None, float], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        uri = storage.join(given.s3, "ranged")
        try:
            write_corpus(home / "corpus", given.mb, LONG)
            storage.upload(home / "corpus", uri)
            for _ in range(given.rounds):
                for delay_ms in (0.0, given.delay_ms):
                    for older in (given.older, None):
                        row = measured(older, uri, given.groups, delay_ms, str(home / "footers"))
                        print(row, file=sys.stderr)
                        before = best.get((older, delay_ms), row)
                        best[older, delay_ms] = max(before, row, key=lambda r: r["MB/s"])
        except PlethoraError as failed:
            sys.exit(f"error: {failed}")
        finally:
            storage.delete(uri)
    quick, slow = best[None, 0.0], best[None, given.delay_ms]
    share, older_share = slow["MB/s"] / quick["MB/s"], 0.0
    older_share = best[given.older, given.delay_ms]["MB/s"] / best[given.older, 0.0]["MB/s"]
    rows = [best[older, delay] for older in (given.older, None) for delay in (0.0, given.delay_ms)]
    for row, kept in zip(rows, (1.0, older_share, 1.0, share), strict=True):
        row["kept"] = kept
    goals = {
        "one request a row group": all(r["requests a row group"] == 1 for r in (quick, slow)),
        "8 to 16 under way": all(8 <= r["most under way"] <= 16 for r in (quick, slow)),
        f"with {given.delay_ms:g} ms a request at least 0.8 of the throughput without": share >= 0.8,
        f"above commit {given.older}, with and without": all(
            best[None, d]["MB/s"] > best[given.older, d]["MB/s"] for d in (0.0, given.delay_ms)
        ),
    }
    show("row groups from a bucket", rows, goals)


if __name__ == "__main__":
    main()
