"""What `tests/cases.py` works with: a case of `../shared/cases`, and what an ingest made of it."""

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cluster.errors import PlethoraError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Check:
    """One value of a case: what it is, the right one, the one that came out."""

    what: str
    right: str
    got: str
    good: bool


@dataclass(frozen=True)
class Wave:
    """One row of a corpus: `x` (samples, channels), physical."""

    record: str
    modality: str
    start_s: float
    rate: float
    x: np.ndarray


@dataclass
class Corpus:
    """What an ingest made, read back with pyarrow alone. `error`: why it made nothing."""

    waves: list[Wave] = field(default_factory=list)
    labels: list[tuple[str, str, float | None, float | None, float | None]] = field(default_factory=list)
    rejects: list[tuple[str, str, float, float, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hours_in: dict[str, float] = field(default_factory=dict)
    hours: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)  # the largest correction of a clock, in s
    error: str = ""

    def seconds(self, record: str, modality: str = "ppg") -> float:
        """Seconds kept of one record."""
        found = [w for w in self.waves if (w.record, w.modality) == (record, modality)]
        return sum(len(w.x) / w.rate for w in found)

    def peak(self, record: str, modality: str) -> float:
        """When the largest sample of a record is, in s."""
        found = [w for w in self.waves if (w.record, w.modality) == (record, modality)]
        if not found:
            return float("nan")
        best = max(found, key=lambda w: float(w.x[:, 0].max()))
        return best.start_s + int(np.argmax(best.x[:, 0])) / best.rate

    def said(self, record: str) -> str:
        """The lines about a record; the error where there is no corpus."""
        return " | ".join(line for line in self.problems if line.startswith(record)) or self.error


@dataclass
class Case:
    """A folder of `../shared/cases`, with a place to work in."""

    folder: Path
    work: Path

    def make(self, *names: str) -> Path:
        """Run the case's make.py; returns the folder of its recordings."""
        into = self.work / "in"
        into.mkdir(exist_ok=True)
        subprocess.run([sys.executable, str(self.folder / "make.py"), str(into), *names], check=True)
        return into

    def ingest(self, root: Path, descriptor: str = "d.toml", change: Callable[[str], str] = str) -> Corpus:
        """The corpus that the case's descriptor makes of `root`; `change` edits its text first."""
        from datasets.ingest import ingest

        text = change((self.folder / descriptor).read_text())
        out = Path(tempfile.mkdtemp(dir=self.work))
        (out / "d.toml").write_text(text)
        try:
            made = ingest(out / "d.toml", str(root), str(out / "corpus"))
        except PlethoraError as why:
            return Corpus(error=str(why))
        found = Corpus(hours_in=made["hours_in"], hours=made["counts"]["hours"])
        found.moved = {m: moved["largest_s"] for m, moved in made.get("moved", {}).items()}
        found.problems = [f"{p['record']}: {p['detail']}" for p in made["problems"]]
        modalities = list(tomllib.loads(text)["signals"])
        for shard in sorted((out / "corpus").glob("shards/*.parquet")):
            for row in pq.read_table(shard).to_pylist():
                for m in modalities:
                    if row[m] is not None:
                        x = np.frombuffer(row[m], "<i2").reshape(-1, row[f"{m}_channels"])
                        x = x * row[f"{m}_scale"] + row[f"{m}_offset"]
                        found.waves.append(Wave(row["record"], m, row["start_s"], row[f"{m}_rate"], x))
        for r in pq.read_table(out / "corpus" / "rejects.parquet").to_pylist():
            found.rejects.append((r["record"], r["modality"], r["start_s"], r["duration_s"], r["reason"]))
        for r in pq.read_table(out / "corpus" / "labels.parquet").to_pylist():
            found.labels.append((r["record"], r["name"], r["start_s"], r["end_s"], r["value"]))
        return found

    def script(self, name: str, *words: str) -> str:
        """What one of the case's own programs prints."""
        if not (self.folder / name).is_file():  # Python's own words about it could pass for an answer
            raise FileNotFoundError(f"the case has no {self.folder / name}")
        env = {**os.environ, "PLETHORA": str(ROOT)}
        done = subprocess.run(
            [sys.executable, str(self.folder / name), *words],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
        )
        return done.stdout + done.stderr

    def command(self, *words: str) -> None:
        """One of our commands; an error ends the case."""
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, capture_output=True, text=True)


def published_bundle() -> str:
    """The bundle in BUNDLE, else the one that `make demo` publishes."""
    path = os.environ.get("BUNDLE") or str(ROOT / "out/demo/runs/sigma/bundle")
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no bundle at {path}: run `make demo`, or name a bundle's folder in BUNDLE")
    return path


def near(what: str, got: float, right: float, within: float, unit: str = "") -> Check:
    return Check(what, f"{right:g} {unit}".strip(), f"{got:.6g}", abs(got - right) <= within)


def says(what: str, line: str, *words: str) -> Check:
    """A line that names each of `words`."""
    return Check(what, " and ".join(words), line[:160] or "nothing", all(w in line for w in words))


Checks = Iterator[Check]
