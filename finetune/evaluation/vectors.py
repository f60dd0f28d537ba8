"""Windows → vectors for every row of a table (encoders, their untrained copies, handcrafted features):
computed once by Ray Data actors, and cached under a key of all their inputs.
"""

import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.cli import progress
from cluster.errors import PlethoraError
from datasets.index import Index
from datasets.schema import Corpus
from datasets.windows import WindowSpec
from finetune.embed import Arrays, by_actors, loaded, located, planned
from finetune.encoders.base import Encoder, Run, Samples
from finetune.encoders.opening import opened
from finetune.evaluation import features
from finetune.evaluation.choose import HANDCRAFTED, Places
from finetune.evaluation.lengths import Fit, run_fitted

CHUNK = 256  # windows in one call of an actor
ACTORS = 2
PATIENCE_S = 20.0  # two actors that import torch start in some 10 to 20 s
ROOT = Path(__file__).resolve().parents[2]
CODE = (
    "datasets",
    "pretrain",
    "finetune/encoders",
    *(f"finetune/evaluation/{m}.py" for m in ("features", "lengths")),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VectorSource:
    """How a row's vectors are computed: by an encoder, by its network before training, or (without
    an address) as handcrafted features. `view` names the encoder whose windows are used.
    """

    row: str
    view: str = ""
    uri: str = ""
    mode: str = ""
    hash: str = ""  # of the bundle
    fit: Fit | None = None
    untrained: bool = False
    seed: int = 0

    def key(self, corpus: Corpus, spec: WindowSpec) -> str:
        """Cache key: a hash of the bundle, the corpus, the windows and the code that computes the vectors."""
        fields = asdict(self)
        for name in ("row", "view", "uri"):
            del fields[name]
        parts = {**fields, "corpus": corpus.hash, "windows": spec.hash, "code": code()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def code() -> str:
    """Hash of the code from samples to vectors: a changed filter or network never reuses old vectors."""
    digest = hashlib.sha256()
    for name in CODE:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def cache_folder() -> str:
    """Default folder of cached vectors: private to this user, beside the fetched bundles."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plethora" / "vectors"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return str(folder)


def cached_vectors(
    places: Places, rows: np.ndarray, sources: Sequence[VectorSource], cache: str
) -> dict[str, np.ndarray]:
    """{row name: vectors (n, d)} of these index rows; handcrafted features are NaN where a window has no PPG.
    Vectors missing from `cache` (a URI) are computed and added to it.
    """
    record, start = _names(places.index, rows)
    found: dict[str, np.ndarray] = {}
    groups: dict[str, list[VectorSource]] = {}
    kept: dict[str, dict[tuple[str, float], int]] = {}
    files, known = {}, {}
    for source in sources:
        view = _view(places, source)
        files[source.row] = storage.join(cache, f"{source.key(view.corpus, view.spec)}.parquet")
        kept[source.row], known[source.row] = _read(files[source.row])
        groups.setdefault(view.spec.hash + str(source.view == ""), []).append(source)
    rest = list(zip(record, start, strict=True))
    jobs: list[Job] = []
    for group in groups.values():
        view = _view(places, group[0])
        there = _usable(view, rows)
        lacking = [
            s for s in group if any(t and n not in kept[s.row] for n, t in zip(rest, there, strict=True))
        ]
        if lacking:
            new = [i for i, n in enumerate(rest) if there[i] and any(n not in kept[s.row] for s in lacking)]
            jobs.append(Job(view, np.asarray(new), tuple(lacking)))
    for job, made in zip(jobs, _computed(jobs, rows), strict=True):
        for source, vectors in zip(job.sources, made, strict=True):
            labels = [*kept[source.row], *(rest[i] for i in job.new)]
            if kept[source.row]:
                vectors = np.concatenate([known[source.row], vectors])
            _write(files[source.row], labels, vectors)
            kept[source.row] = {name: i for i, name in enumerate(labels)}
            known[source.row] = vectors
    for source in sources:
        there = _usable(_view(places, source), rows)
        x = np.full((len(rows), known[source.row].shape[1]), np.nan, known[source.row].dtype)
        at = [kept[source.row][n] for n, t in zip(rest, there, strict=True) if t]
        x[there] = known[source.row][at]
        found[source.row] = x
    return found


def _usable(view: Index, rows: np.ndarray) -> np.ndarray:
    """(n,) bool: which of these windows hold what the view takes."""
    verdict = view.table["verdict"].take(pa.array(rows))
    return verdict.to_numpy(zero_copy_only=False) == "ok"


def _names(index: Index, rows: np.ndarray) -> tuple[list[str], list[float]]:
    part = index.table.take(pa.array(rows))
    return part["record"].to_pylist(), np.round(part["start_s"].to_numpy(), 6).tolist()


def _view(places: Places, source: VectorSource) -> Index:
    if source.view:
        return places.views[source.view]
    assert places.pulses is not None
    return places.pulses


# ---------------------------------------------------------------- computing


@dataclass(frozen=True)
class Job:
    """Windows of one view (`new`: which of the asked rows) whose vectors these sources lack."""

    view: Index
    new: np.ndarray
    sources: tuple[VectorSource, ...]


class _Actor:
    """Embeds the windows of a task for all sources of its job, in an actor; windows load once."""

    def __init__(self, jobs: Sequence[tuple[Corpus, WindowSpec, tuple[VectorSource, ...]]]) -> None:
        self.jobs = jobs
        self.runs: dict[int, list[Run]] = {}
        self.opened: dict[tuple[str, str], Encoder] = {}  # a source and its untrained twin share one

    def __call__(self, job: int, places: Arrays) -> Arrays:
        corpus, spec, sources = self.jobs[job]
        if job not in self.runs:
            self.runs[job] = [self._run(source) for source in sources]
        index = located(corpus, spec, places)
        prepared = loaded(index, np.arange(index.table.num_rows))
        return {
            str(number): run_fitted(run, prepared, source.fit) if source.fit else run(prepared)
            for number, (source, run) in enumerate(zip(sources, self.runs[job], strict=True))
        }

    def _run(self, source: VectorSource) -> Run:
        """The function from prepared windows to a source's vectors."""
        if not source.uri:
            return lambda x: features.handcrafted(np.asarray(x)[:, 0], HANDCRAFTED.rate)
        key = (source.uri, source.mode)
        if key not in self.opened:
            self.opened[key] = opened(*key, threads=1)
        encoder = self.opened[key]
        return encoder.untrained(source.seed) if source.untrained else encoder


def _computed(jobs: Sequence[Job], rows: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Vectors (n, d) of each job's windows by each of its sources, job by job."""
    for number, parts in itertools.groupby(_parts(jobs, rows), lambda part: part[0]):
        made = [found for _, found in parts]
        yield [np.concatenate([m[str(i)] for m in made]) for i in range(len(jobs[number].sources))]


def _parts(jobs: Sequence[Job], rows: np.ndarray) -> Iterator[tuple[int, Arrays]]:
    """(job number, vectors of some of its windows), in order. This process, which has the networks loaded
    already, begins; if the rest would take it longer than actors take to start, they do the rest.
    """
    arguments = [(job.view.corpus, job.view.spec, job.sources) for job in jobs]
    here, began, done = _Actor(arguments), time.perf_counter(), 0
    todo = [(n, job, low) for n, job in enumerate(jobs) for low in range(0, len(job.new), CHUNK)]
    total = sum(len(job.new) for job in jobs)
    with progress(total, "embed", "windows") as bar:
        for number, job, low in todo:
            if done and (time.perf_counter() - began) / done * (total - done) > PATIENCE_S:
                break
            part = rows[job.new[low : low + CHUNK]]
            yield number, here(number, planned(job.view, part))
            done += len(part)
            bar.update(len(part))
        else:
            return
    left = [rows[j.new] if n > number else rows[:0] for n, j in enumerate(jobs)]
    left[number] = rows[job.new[low:]]
    work = [(j.view, r) for j, r in zip(jobs, left, strict=True)]
    yield from ((n, made) for n, _, made in by_actors(work, CHUNK, _Actor, (arguments,), ACTORS))


# ---------------------------------------------------------------- the cache


def _read(file: str) -> tuple[dict[tuple[str, float], int], np.ndarray]:
    """{(record, start_s): row} and the vectors (n, d) of a cache file; both empty if it does not exist."""
    import pyarrow.parquet as pq

    if not storage.exists(file):
        return {}, np.zeros((0, 0))
    try:
        source = pa.BufferReader(storage.read_bytes(file))
        table = pq.read_table(source, page_checksum_verification=True).combine_chunks()
        width = table.schema.field("embedding").type.list_size
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        names = zip(table["record"].to_pylist(), table["start_s"].to_pylist(), strict=True)
    except (pa.ArrowException, OSError, KeyError) as broken:
        raise PlethoraError(f"{file} is corrupt: delete it, the next run makes it again") from broken
    return {name: i for i, name in enumerate(names)}, flat.reshape(-1, width)


def _write(file: str, names: list[tuple[str, float]], vectors: np.ndarray) -> None:
    import pyarrow.parquet as pq

    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    table = pa.table(
        {
            "record": pa.array([name for name, _ in names], pa.string()),
            "start_s": pa.array([start for _, start in names], pa.float64()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    storage.write_bytes(file, sink.getvalue().to_pybytes())


# ---------------------------------------------------------------- in this process


def vectors_at(
    places: Places, rows: np.ndarray, runs: Mapping[str, Mapping[str, Run]]
) -> dict[str, np.ndarray]:
    """{row name: vectors (n, d)} of these index rows: each of `runs` ({encoder: {row name: run}}) on its
    encoder's view, and handcrafted features (NaN where a window has no PPG). Memory is bounded. Runs in this
    process without a cache, for windows that differ from the corpus (damaged ones).
    """
    found: dict[str, list[np.ndarray]] = {name: [] for by_row in runs.values() for name in by_row}
    if places.pulses is not None:
        found["handcrafted"] = []
    with progress(len(rows), "embed", "windows") as bar:
        for low in range(0, len(rows), CHUNK):
            part = rows[low : low + CHUNK]
            prepared: dict[int, Samples] = {}
            for encoder, by_row in runs.items():
                view = places.views[encoder]
                if id(view) not in prepared:
                    prepared[id(view)] = loaded(view, part)
                for name, run in by_row.items():
                    found[name].append(run(prepared[id(view)]))
            if places.pulses is not None:
                found["handcrafted"].append(_handcrafted(places.pulses, part))
            bar.update(len(part))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _handcrafted(pulses: Index, rows: np.ndarray) -> np.ndarray:
    found = np.full((len(rows), len(features.NAMES)), np.nan)
    verdict = pulses.table["verdict"].take(pa.array(rows)).to_numpy()
    there = np.flatnonzero(verdict == "ok")
    if len(there):
        waves = pulses.load(rows[there])["ppg"][:, 0]
        found[there] = features.handcrafted(waves, HANDCRAFTED.rate)
    return found
