"""Vision4PPG's claim, a row at a time: frozen, LoRA and full training x images x weights x seeds x corpora.

Each row is one `python -m finetune vision`, in a process of its own. What it found is appended to
OUT/rows.jsonl with its minutes; rows that are there are not run again, and a row that failed is tried again.
Its predictions and split stay in OUT/rows/, for `compare`; its checkpoints and bundle are removed. The table
at the end has the mean over seeds, and says what was not run.

    infra/image-weights out/dinov2
    python -m tests.benchmarks.vision_table --weights out/dinov2/model.safetensors --ppg-bp URI --bidmc URI \\
        --out out/vision_table [--only bidmc/stft] [--minutes 55]
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from tests.benchmarks.table import ROOT

BACKBONE = "vit_small_patch14_dinov2"
RUNS = {"ppg_bp": "finetune/runs/vision_ppg_bp.toml", "bidmc": "finetune/runs/vision_bidmc.toml"}
IMAGES = ("stft", "complex", "recurrence", "fusion")
MODES = ("probe", "lora4", "lora8", "lora16", "full")
WEIGHTS = ("given", "random")
SEEDS = (0, 1, 2)
NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    corpus: str
    image: str
    mode: str
    weights: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.corpus}/{self.image}/{self.mode}/{self.weights}/{self.seed}"

    def command(self, corpus: str, weights: str, out: Path) -> list[str]:
        mode, _, rank = self.mode.partition("lora")
        sets = {
            "corpus": corpus,
            "storage": str(out / "runs"),
            "name": self.name,
            "seed": self.seed,
            "split.val": 0.3,
            "method.mode": mode or "lora",
            "method.imaging.transform": self.image,
            "method.backbone.name": BACKBONE,
            "method.backbone.weights": "random" if self.weights == "random" else weights,
            "method.backbone.options": {},
            **({"method.lora.r": int(rank)} if rank else {}),
        }
        given = [f"--set={key}={value}" for key, value in sets.items()]
        folder = out / "rows" / self.name
        return [sys.executable, "-m", "finetune", "vision", RUNS[self.corpus], *given, "--out", str(folder)]


def rows() -> Iterator[Row]:
    """All rows, so that the first pass over all of them is of one seed."""
    for seed, corpus, image, mode, weights in itertools.product(SEEDS, RUNS, IMAGES, MODES, WEIGHTS):
        yield Row(corpus, image, mode, weights, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="model.safetensors of import-vision")
    for corpus in RUNS:
        parser.add_argument(f"--{corpus.replace('_', '-')}", metavar="URI", help="the ingested corpus")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument(
        "--only", default="", metavar="START", help="rows whose name starts so: bidmc/stft/probe"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no row after so many")
    given = parser.parse_args()
    began, found = time.monotonic(), read(given.out)
    for row in rows():
        corpus = getattr(given, row.corpus)
        if corpus is None or not row.name.startswith(given.only) or "tasks" in found.get(row.name, {}):
            continue
        if (time.monotonic() - began) / 60 > given.minutes:
            break
        found[row.name] = made(row, row.command(corpus, given.weights, given.out), given.out)
    for line in table(found):
        print(line)


def read(out: Path) -> dict[str, dict[str, Any]]:
    """{name of a row: what was found last}."""
    file = out / "rows.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {entry["row"]: entry for entry in map(json.loads, lines)}


def made(row: Row, command: Sequence[str], out: Path) -> dict[str, Any]:
    """Run a row, append what it found, or why it failed, and remove all but its figures."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    entry: dict[str, Any] = {"row": row.name, "minutes": round((time.monotonic() - started) / 60, 2)}
    results = out / "rows" / row.name / "results.json"
    if done.returncode == 0:
        entry["tasks"] = figures(json.loads(results.read_text(encoding="utf-8")))
    else:
        entry["error"] = (done.stderr.strip().splitlines() or ["no message"])[-1]
    shutil.rmtree(out / "runs" / row.name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(f"{row.name}: {entry['minutes']} min {entry.get('error', '')}", file=sys.stderr, flush=True)
    return entry


def figures(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{task: {"unit", row: {"value", "low", "high"} of the MAE}} of one run's results.json."""
    found: dict[str, dict[str, Any]] = {}
    for task in results["tasks"]:
        mae = {row["name"]: row["metrics"]["mae"] for row in task["rows"]}
        found[task["task"]["name"]] = {"unit": task["task"]["unit"], **mae}
    return found


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: a row a task, image and weights; a column a mode: the seeds' mean MAE, and how many seeds."""
    done = {name: entry["tasks"] for name, entry in found.items() if "tasks" in entry}
    lines = [
        f"| MAE, mean over seeds | image | weights | {' | '.join(MODES)} |",
        "|---" * (3 + len(MODES)) + "|",
    ]
    for corpus in RUNS:
        tasks = dict.fromkeys(t for name, of in done.items() if name.startswith(corpus) for t in of)
        for task, image, weights in itertools.product(tasks, IMAGES, WEIGHTS):
            cells = []
            for mode in MODES:
                names = [Row(corpus, image, mode, weights, seed).name for seed in SEEDS]
                values = [done[name][task]["model"]["value"] for name in names if name in done]
                cells.append(f"{mean(values):.2f} ({len(values)})" if values else NOT_RUN)
            lines.append(f"| {corpus}, {task} | {image} | {weights} | {' | '.join(cells)} |")
    every = list(rows())
    left = [row.name for row in every if row.name not in found]
    failed = [f"{name}: {entry['error']}" for name, entry in found.items() if "error" in entry]
    return [*lines, "", f"{len(done)} of {len(every)} rows run, {len(left)} not run", *failed]


if __name__ == "__main__":
    main()
