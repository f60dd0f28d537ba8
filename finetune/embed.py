"""Write one vector per window as Parquet, from a corpus (through Ray Data) or from the arrays of an .npz."""

import io
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.cli import progress
from cluster.errors import PlethoraError
from datasets.index import Index, build
from datasets.readers.base import Refused
from datasets.readers.columns import check_zip
from datasets.schema import Corpus, open_corpus
from datasets.signal import HALF, Signal, length
from datasets.windows import WindowSpec, grid
from finetune.encoders.base import Encoder, Samples
from finetune.encoders.opening import opened

ACTORS = 2
TASK_WINDOWS = 256  # windows per Ray task: about 10 MB of prepared samples at 240 s


@dataclass(frozen=True)
class Embedded:
    """Contents of a Parquet file of vectors. `refused`: number of windows by reason; `subjects`: set for a
    corpus; `rows` and `unused_tail_s` (seconds at the end of each row that fill no window): set for an .npz.
    """

    windows: int
    dim: int
    window_s: float
    refused: Mapping[str, int] = field(default_factory=dict)
    subjects: int | None = None
    rows: int | None = None
    unused_tail_s: float | None = None


def _schema(keys: list[tuple[str, Any]], encoder: Encoder, window_s: float, hop_s: float) -> pa.Schema:
    about = {"bundle": encoder.uri, "mode": encoder.mode, "window_s": window_s, "hop_s": hop_s}
    return pa.schema(
        [*keys, ("embedding", pa.list_(pa.float32(), encoder.dim))],
        metadata={f"plethora.{name}": str(value) for name, value in about.items()},
    )


def _write(path: Path, schema: pa.Schema, parts: Iterable[tuple[list[pa.Array], np.ndarray]]) -> int:
    """Writes (key columns, (n, dim) vectors) parts as Parquet; returns the number of rows."""
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for keys, vectors in parts:
            flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
            lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
            writer.write_table(pa.Table.from_arrays([*keys, lists], schema=schema))
            rows += len(vectors)
    return rows


# ---------------------------------------------------------------- arrays


def read_signals(
    path: str, modalities: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, tuple[np.ndarray, float]]:
    """{modality: (samples (n, T) float64, rate in Hz)} from an .npz. The file holds an array per modality,
    (T,) or (n, T), and either `<modality>_rate` for each or one `rate` for all. `optional`: may be missing.
    """
    if storage.is_remote(path):
        raise PlethoraError(f"{path}: an .npz must be a local file: download it, or ingest a corpus")
    wants = " and ".join(modalities)
    if not os.path.exists(path):
        raise PlethoraError(f"no file {path}: --input takes a corpus or an .npz with {wants} and rate")
    try:
        check_zip(Path(path))
        with np.load(path, allow_pickle=False) as npz:
            modalities = [*modalities, *(m for m in optional if m in npz.files)]
            rate_of = {m: f"{m}_rate" if f"{m}_rate" in npz.files else "rate" for m in modalities}
            needed = dict.fromkeys([*modalities, *rate_of.values()])
            missing = [key for key in needed if key not in npz.files]
            if missing:
                many = len(modalities) > 1
                save = ", ".join(f"{m}=samples" for m in modalities)
                rates = ", ".join(f"{m}_rate=hertz" for m in modalities) if many else "rate=hertz"
                raise PlethoraError(
                    f"{path} has no {' and no '.join(missing)} (only {', '.join(npz.files) or 'nothing'}): "
                    f"save it with np.savez(path, {save}, {rates})"
                )
            found = {m: (npz[m], npz[rate_of[m]]) for m in modalities}
    except (ValueError, OSError, zipfile.BadZipFile, MemoryError, Refused) as broken:
        raise PlethoraError(f"{path} cannot be read as plain arrays: {broken}") from broken
    return {m: _numbers(path, m, *found[m]) for m in modalities}


def _numbers(path: str, modality: str, x: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, float]:
    numbers = all(np.issubdtype(a.dtype, np.number) and not np.iscomplexobj(a) for a in (x, rate))
    if not numbers or x.ndim not in (1, 2) or rate.size != 1 or x.size == 0:
        raise PlethoraError(f"{path}: {modality} must be (samples,) or (n, samples) numbers, rate one number")
    if not (np.isfinite(rate).all() and float(rate.item()) > 0):
        raise PlethoraError(f"{path}: rate {rate.item()} is not a sampling rate in Hz")
    return np.atleast_2d(np.asarray(x, np.float64)), float(rate.item())


def same_time(path: str, signals: dict[str, tuple[np.ndarray, float]]) -> float:
    """Seconds that all signals cover. Raises PlethoraError when they differ in the number of rows, or in
    duration by more than one sample.
    """
    seconds = {m: x.shape[1] / rate for m, (x, rate) in signals.items()}
    apart = max(seconds.values()) - min(seconds.values())
    slowest = min(rate for _, rate in signals.values())
    if len({len(x) for x, _ in signals.values()}) > 1 or apart > 1 / slowest:
        shown = ", ".join(f"{m} {len(x)} rows of {seconds[m]:g} s" for m, (x, _) in signals.items())
        raise PlethoraError(f"{path}: all signals must cover the same time, not {shown}: trim them to match")
    return min(seconds.values())


def places(signals: dict[str, tuple[np.ndarray, float]], width: float, hop: float) -> np.ndarray:
    """Start times (windows,) in s of the windows of `width` s that every signal fills (to within half a
    sample, as in a corpus).
    """
    seconds = min((x.shape[1] + HALF) / rate for x, rate in signals.values())
    return grid(seconds, WindowSpec(signals=(Signal(modality="any", rate=1),), window_s=width, hop_s=hop))


def cut(x: np.ndarray, rate: float, starts: np.ndarray, width: float) -> np.ndarray:
    """(rows, T) at `rate` Hz → windows (windows, rows, T') of `width` s that start at `starts` (s)."""
    size = int(length(width, rate))
    first = np.minimum(np.round(starts * rate).astype(int), x.shape[1] - size)
    return np.stack([x[:, s : s + size] for s in first])


def embed_arrays(
    encoder: Encoder, input: str, path: Path, window_s: float | None, hop_s: float | None
) -> Embedded:
    """Writes the vectors of all windows of an .npz as Parquet to `path`: row, start_s, embedding."""
    required = [s.modality for s in encoder.signals if s.required]
    optional = [s.modality for s in encoder.signals if not s.required]
    signals = read_signals(input, required, optional)
    total, rates = same_time(input, signals), {m: rate for m, (_, rate) in signals.items()}
    known = window_s  # None: each row is one window of any length
    if known is None and any(x.shape[1] >= encoder.max_s * r + 1 - 1e-6 for x, r in signals.values()):
        known = encoder.window_s
    width = total if known is None else known
    hop = width if hop_s is None else hop_s
    starts = np.zeros(1) if known is None else places(signals, known, hop)
    if not len(starts):
        raise PlethoraError(f"{input} holds {total:g} s per row, less than --window-s {width:g}")
    rows = len(next(iter(signals.values()))[0])
    schema = _schema([("row", pa.int64()), ("start_s", pa.float64())], encoder, width, hop)

    def parts() -> Iterable[tuple[list[pa.Array], np.ndarray]]:
        with progress(rows, "embed", "rows") as bar:
            for row in range(rows):
                windows = {
                    m: x[row, None, None] if known is None else cut(x[row, None], rate, starts, width)
                    for m, (x, rate) in signals.items()
                }
                keys = [pa.array(np.full(len(starts), row)), pa.array(starts)]
                try:
                    vectors = encoder.embed(windows, rates, known)
                except PlethoraError as problem:
                    raise PlethoraError(f"{input}, row {row}: {problem}") from problem
                yield keys, vectors
                bar.update()

    windows, unused = _write(path, schema, parts()), round(total - width - float(starts[-1]), 6)
    return Embedded(windows, encoder.dim, width, rows=rows, unused_tail_s=max(unused, 0.0))


# ---------------------------------------------------------------- corpora

Arrays = dict[str, np.ndarray]


class _Actor:
    """Embeds the windows of one task, in an actor."""

    def __init__(self, address: str, mode: str, corpus: Corpus, spec: WindowSpec) -> None:
        self.encoder, self.corpus = opened(address, mode, threads=1), corpus
        # reads whole encoder steps only, as an array is trimmed to whole steps before filtering
        whole_s = self.encoder.steps(spec.window_s) * self.encoder.step_s
        self.spec = spec.model_copy(update={"window_s": whole_s})

    def __call__(self, job: int, places: Arrays) -> Arrays:
        index = located(self.corpus, self.spec, places)
        return {"embedding": self.encoder(loaded(index, np.arange(index.table.num_rows)))}


def loaded(index: Index, rows: np.ndarray) -> Samples:
    """Prepared windows: (n, C, T), or a dict by modality where the index holds several."""
    found = index.load(rows)
    return found[index.spec.signals[0].modality] if len(index.spec.signals) == 1 else found


def planned(index: Index, rows: np.ndarray) -> Arrays:
    """Locations of these index rows: all that an actor needs, so that no actor loads the whole index."""
    part = index.table.take(pa.array(rows))
    return {"has": index.has(rows)} | {c: part[c].to_numpy() for c in ("shard", "group", "row", "offset_s")}


def located(corpus: Corpus, spec: WindowSpec, places: Arrays) -> Index:
    """The index of the windows that `planned` located."""
    table, has = dict(places), places["has"]
    for number, signal in enumerate(spec.signals):
        if not signal.required:
            table[f"verdict_{signal.modality}"] = np.where(has >> number & 1, "ok", "absent")
    return Index(corpus, spec, pa.table({n: pa.array(x) for n, x in table.items() if n != "has"}))


class _Packed:
    """Runs `kind(*arguments)` in an actor. Tasks and results are single rows: Ray Data compares the columns
    of its blocks, and those of different jobs differ.
    """

    def __init__(self, kind: Callable[..., Callable[[int, Arrays], Arrays]], arguments: tuple) -> None:
        self.work = kind(*arguments)

    def __call__(self, batch: Arrays) -> Arrays:
        task = {name: np.asarray(column[0]) for name, column in batch.items()}
        sink, number, job = io.BytesIO(), task.pop("task"), int(task.pop("job"))
        made: dict[str, Any] = self.work(job, task)
        np.savez(sink, **made)
        return {"task": number[None], "made": np.array([sink.getvalue()], object)}


def by_actors(
    jobs: Sequence[tuple[Index, np.ndarray]], together: int, kind: type, arguments: tuple, actors: int
) -> Iterator[tuple[int, np.ndarray, Arrays]]:
    """Runs `kind(*arguments)(job number, locations)` over each job's rows of its index, `together` rows at a
    time, with a progress bar. All jobs share the actors, which start once.

    Yields (job number, rows, result) in the order of jobs and rows. Ray must be running.
    """
    parts = [
        (number, rows[i : i + together])
        for number, (_, rows) in enumerate(jobs)
        for i in range(0, len(rows), together)
    ]
    if not parts:
        return
    import ray.data

    from cluster.session import data_context

    data_context()
    tasks = [
        {"task": np.array(i), "job": np.array(number), **planned(jobs[number][0], rows)}
        for i, (number, rows) in enumerate(parts)
    ]
    result = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _Packed,
        fn_constructor_args=(kind, arguments),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(tasks))),
    )
    made = result.iter_batches(batch_size=1, batch_format="numpy")
    with progress(sum(len(rows) for _, rows in parts), "embed", "windows") as bar:
        for i, ((number, rows), batch) in enumerate(zip(parts, made, strict=True)):
            if batch["task"][0] != i:
                raise RuntimeError("windows came back out of order")
            with np.load(io.BytesIO(batch["made"][0])) as arrays:
                yield number, rows, dict(arrays)
            bar.update(len(rows))


def embed_corpus(
    encoder: Encoder, input: str, path: Path, window_s: float | None, hop_s: float | None
) -> Embedded:
    """Writes the vectors of all windows of a corpus as Parquet to `path`: subject, record, start_s,
    embedding.
    """
    from cluster.session import session

    corpus = open_corpus(input)
    window_s = encoder.window_s if window_s is None else window_s
    if window_s > encoder.max_s + 1e-6:
        raise PlethoraError(f"--window-s {window_s:g} is longer than the encoder takes ({encoder.max_s:g} s)")
    encoder.pieces(window_s)  # raises for windows shorter than the minimum
    encoder.check(corpus)
    spec = WindowSpec(signals=encoder.signals, window_s=window_s, hop_s=hop_s)
    with session(actors=ACTORS):
        index = build(corpus, spec)
        refused = Counter(v for v in index.table["verdict"].to_pylist() if v != "ok")
        rows = index.select(None)
        if not len(rows):
            reasons = ", ".join(f"{r} {n}" for r, n in sorted(refused.items())) or "no segment is long enough"
            raise PlethoraError(f"{input}: no window of {window_s:g} s can be embedded ({reasons})")
        keys = [("subject", pa.string()), ("record", pa.string()), ("start_s", pa.float64())]
        schema = _schema(keys, encoder, window_s, hop_s or window_s)

        def parts() -> Iterable[tuple[list[pa.Array], np.ndarray]]:
            arguments = (encoder.uri, encoder.mode, corpus, spec)
            for _, part, made in by_actors([(index, rows)], TASK_WINDOWS, _Actor, arguments, ACTORS):
                table = index.table.take(pa.array(part))
                yield [table[name].combine_chunks() for name, _ in keys], made["embedding"]

        windows = _write(path, schema, parts())
    subjects = len(set(index.table["subject"].to_pylist()))
    return Embedded(windows, encoder.dim, window_s, dict(sorted(refused.items())), subjects)
