"""All benchmarks one after another, each in a process of its own; what they found in one file.

    python -m tests.benchmarks [--full] [--only stream,step] [--out out/bench.json]

The quick form takes under 15 minutes on two cores; `gpu` is among them where there is a GPU, `ranged` where
PLETHORA_BENCH_S3 names a place in a bucket. A missed goal is told and ends nothing; a benchmark that breaks
does, after the others, with exit 1.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.table import ROOT


@dataclass(frozen=True)
class Form:
    """Arguments of a benchmark's quick and full runs."""

    quick: tuple[tuple[str, ...], ...]
    full: tuple[tuple[str, ...], ...]


ALL = {
    "ingest": Form((("--quick",),), ((),)),
    "stream": Form((("--quick",),), ((), ("--paired",))),
    "step": Form(
        (("--quick",),), tuple(("--recipe", name) for name in ("sigma", "m2ae", "anyppg", "simclr"))
    ),
    "scale": Form(((),), ((),)),
    "device": Form((("--rounds", "3"),), ((),)),
    "start": Form((("--rounds", "1"),), (("--rounds", "3"), ("--rounds", "3", "--workers", "2"))),
    "imaging": Form((("--seconds", "2"),), ((),)),
    "evaluate": Form(((),), ((),)),
}
if shutil.which("nvidia-smi"):
    ALL["gpu"] = Form((("--nets", "pro", "--rounds", "1"),), ((),))
if os.environ.get("PLETHORA_BENCH_S3"):
    ALL["ranged"] = Form((("--rounds", "1"),), ((),))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the long form of each")
    parser.add_argument("--only", default=",".join(ALL), help="names, separated by commas")
    parser.add_argument("--out", default="out/bench.json", type=Path)
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := sorted(set(names) - set(ALL)):
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(ALL)}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    broken: list[str] = []
    for name in names:
        for arguments in ALL[name].full if given.full else ALL[name].quick:
            command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments]
            began = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            one = _last(done.stdout)
            if one is None:
                broken.append(" ".join(command[2:]))
                continue
            found.append({"arguments": list(arguments), "seconds": time.perf_counter() - began, **one})
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{'seconds':>8}  benchmark", file=sys.stderr)
    for one in found:
        print(f"{one['seconds']:8.0f}  {one['benchmark']}", file=sys.stderr)
        for goal, met in one["goals"].items():
            print(f"{'':8}  {'met   ' if met else 'MISSED'}  {goal}", file=sys.stderr)
    for command_line in broken:
        print(f"{'':8}  BROKEN  {command_line}", file=sys.stderr)
    print(f"tables: {given.out}", file=sys.stderr)
    sys.exit(bool(broken))


def _last(text: str) -> dict[str, Any] | None:
    """The JSON object that ends a benchmark's output; None where it ended before."""
    lines = text.splitlines()
    try:
        one = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return one if isinstance(one, dict) and "goals" in one else None


if __name__ == "__main__":
    main()
