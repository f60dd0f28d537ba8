"""What preparing windows costs the host where the filter runs on it, and where it runs on the device.

Microseconds of one core a window, over all windows of the first row group of each corpus (real recordings,
PLETHORA_DATA), for SIGMA's and AnyPPG's windows. read: Parquet to Arrow, joined. extract: cut, filter, all
of it (`windows.extract`). gather: cut and copied as int16 (`raw.gather`), all that is left where the filter
runs on a device. prepare: `windows.transform` of cuts that lie ready; torch: `device.batch_on` of raw windows
that lie ready, on this CPU. All in one process on one thread, in turn, each at its best.

    python -m tests.benchmarks.device [--records 20] [--rounds 9] [--profile]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("PLETHORA_SUBJECT_KEY", "benchmark")
import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import profile

from datasets import device, memory, raw
from datasets.schema import Corpus
from datasets.windows import cut, empty, extract, transform
from tests.benchmarks import ingest
from tests.benchmarks.table import ROOT, show
from tests.benchmarks.transform import SPECS, best, selection

QUARTER, TIMES = 0.25, 1.3  # goals: the host's share of read + extract; how much faster torch's filter is
PRESETS = {"sigma": 64, "anyppg": 512}  # windows: a multiple of device.TOGETHER, drawn again from fewer


def row(corpus: Corpus, name: str, rounds: int, told: bool) -> dict[str, Any]:
    spec, n, cpu = SPECS[name], PRESETS[name], torch.device("cpu")
    at = selection(corpus, spec, 1 << 30)
    table, held = at.table(), len(at.row)
    rows, offset, place = np.resize(at.row, n), np.resize(at.offset, n), np.arange(n)
    cuts = [cut(table, rows, offset, sig, spec.window_s) for sig in spec.signals]
    out, carried = empty(n, spec), raw.gather([(table, rows, offset, place, None)], n, spec)

    def prepare() -> None:
        for sig, (some, gains) in zip(spec.signals, cuts, strict=True):
            transform(some, *gains, sig, out[sig.modality], place)

    read, whole, gather, ours, theirs = best(
        [
            at.table,
            lambda: extract(table, rows, offset, spec, out, place),
            lambda: raw.gather([(table, rows, offset, place, None)], n, spec),
            prepare,
            lambda: device.batch_on(cpu, spec, carried),
        ],
        rounds,
    )
    if told:
        with profile() as seen:
            device.batch_on(cpu, spec, carried)
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=12), file=sys.stderr)
    read, whole, gather, ours, theirs = (
        1e6 * s / count
        for s, count in zip((read, whole, gather, ours, theirs), (held, n, n, n, n), strict=True)
    )
    found = {
        "what": name,
        "corpus": corpus.manifest["name"],
        "read": read,
        "extract": whole,
        "gather": gather,
    }
    found |= {"host's share": (read + gather) / (read + whole), "without read": gather / whole}
    return found | {"prepare": ours, "torch": theirs, "times": ours / theirs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="torch's operations, too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    memory.keep_freed()
    data = Path(os.environ.get("PLETHORA_DATA", ROOT.parent / "shared" / "data"))
    if not data.is_dir():
        parser.exit(1, f"no recordings at {data}: set PLETHORA_DATA to their folder\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("bidmc", "cinc2015"):
            root = ingest.some_of(str(data / name), name, Path(folder) / f"{name}-records", asked.records)
            corpus = ingest.ours(root, name, f"{folder}/{name}")
            rows += [row(corpus, what, asked.rounds, asked.profile) for what in PRESETS]
    share, times = max(r["host's share"] for r in rows), min(r["times"] for r in rows)
    goals = {
        f"the host's side at most {QUARTER:g} of read and extract ({share:.2f})": share <= QUARTER,
        f"torch's filter at least {TIMES:g} times as fast on a CPU ({times:.2f})": times >= TIMES,
    }
    show("device", rows, goals)


if __name__ == "__main__":
    main()
