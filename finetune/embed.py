"""Recordings → one vector a window, as Parquet: a corpus through Ray Data, or the arrays of one .npz."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from finetune.encoder import BundleEncoder

ACTORS = 2
TASK_WINDOWS = 256  # windows a Ray task: some 10 MB of prepared samples at 240 s


@dataclass(frozen=True)
class Embedded:
    """What a Parquet file of vectors holds. `refused`: windows by reason; `subjects` of a corpus, `rows` of
    an .npz, and the seconds at the end of each that fill no window.
    """

    windows: int
    dim: int
    window_s: float
    refused: Mapping[str, int] = field(default_factory=dict)
    subjects: int | None = None
    rows: int | None = None
    unused_tail_s: float | None = None


def _schema(keys: list[tuple[str, Any]], encoder: BundleEncoder, window_s: float, hop_s: float) -> pa.Schema:
    about = {"bundle": encoder.bundle.uri, "mode": encoder.mode, "window_s": window_s, "hop_s": hop_s}
    return pa.schema(
        [*keys, ("embedding", pa.list_(pa.float32(), encoder.dim))],
        metadata={f"plethora.{name}": str(value) for name, value in about.items()},
    )


def _write(path: Path, schema: pa.Schema, parts: Iterable[tuple[list[pa.Array], np.ndarray]]) -> int:
    """Parquet from (key columns, (n, dim) vectors) parts; the number of rows."""
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


def read_signals(path: str, modalities: Sequence[str]) -> dict[str, tuple[np.ndarray, float]]:
    """{modality: samples (n, T) float64, rate in Hz} of an .npz that holds the samples of each, (T,) or
    (n, T), and `<modality>_rate`, or one `rate` for all.
    """
    if storage.is_remote(path):
        raise PlethoraError(
            f"{path}: an .npz is read from this machine only: download it, or ingest a corpus"
        )
    wants = " and ".join(modalities)
    if not os.path.exists(path):
        raise PlethoraError(f"no file {path}: --input takes a corpus or an .npz with {wants} and rate")
    try:
        check_zip(Path(path))
        with np.load(path, allow_pickle=False) as held:
            rate_of = {m: f"{m}_rate" if f"{m}_rate" in held.files else "rate" for m in modalities}
            needed = dict.fromkeys([*modalities, *rate_of.values()])
            missing = [key for key in needed if key not in held.files]
            if missing:
                many = len(modalities) > 1
                save = ", ".join(f"{m}=samples" for m in modalities)
                rates = ", ".join(f"{m}_rate=hertz" for m in modalities) if many else "rate=hertz"
                raise PlethoraError(
                    f"{path} has no {' and no '.join(missing)} (only {', '.join(held.files) or 'nothing'}): "
                    f"save it with np.savez(path, {save}, {rates})"
                )
            found = {m: (held[m], held[rate_of[m]]) for m in modalities}
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


def same_time(path: str, held: dict[str, tuple[np.ndarray, float]]) -> float:
    """Seconds that every signal covers. PlethoraError: they differ in their number of rows, or in length by
    more than a sample.
    """
    seconds = {m: x.shape[1] / rate for m, (x, rate) in held.items()}
    apart = max(seconds.values()) - min(seconds.values())
    if len({len(x) for x, _ in held.values()}) > 1 or apart > 1 / min(rate for _, rate in held.values()):
        shown = ", ".join(f"{m} {len(x)} rows of {seconds[m]:g} s" for m, (x, _) in held.items())
        raise PlethoraError(f"{path}: the signals must be of the same time, not {shown}: cut them alike")
    return min(seconds.values())


def places(held: dict[str, tuple[np.ndarray, float]], width: float, hop: float) -> np.ndarray:
    """Seconds (windows,) at which windows of `width` s begin, such that every signal fills them (to half a
    sample, as in a corpus).
    """
    seconds = min((x.shape[1] + HALF) / rate for x, rate in held.values())
    return grid(seconds, WindowSpec(signals=(Signal(modality="any", rate=1),), window_s=width, hop_s=hop))


def cut(x: np.ndarray, rate: float, starts: np.ndarray, width: float) -> np.ndarray:
    """(rows, T) at `rate` Hz → (windows, rows, T'): those of `width` s that begin at `starts`."""
    size = int(length(width, rate))
    first = np.minimum(np.round(starts * rate).astype(int), x.shape[1] - size)
    return np.stack([x[:, s : s + size] for s in first])


def embed_arrays(
    encoder: BundleEncoder, input: str, path: Path, window_s: float | None, hop_s: float | None
) -> Embedded:
    """The vectors of every window of an .npz as Parquet at `path`: row, start_s, embedding."""
    held = read_signals(input, encoder.modalities)
    total, rates = same_time(input, held), {m: rate for m, (_, rate) in held.items()}
    known = window_s  # None: each row is one window, however long it is
    if known is None and any(x.shape[1] >= encoder.max_s * r + 1 - 1e-6 for x, r in held.values()):
        known = encoder.window_s
    width = total if known is None else known
    hop = width if hop_s is None else hop_s
    starts = np.zeros(1) if known is None else places(held, known, hop)
    if not len(starts):
        raise PlethoraError(f"{input} holds {total:g} s a row, less than --window-s {width:g}")
    rows = len(next(iter(held.values()))[0])
    schema = _schema([("row", pa.int64()), ("start_s", pa.float64())], encoder, width, hop)

    def parts() -> Iterable[tuple[list[pa.Array], np.ndarray]]:
        with progress(rows, "embed", "rows") as bar:
            for row in range(rows):
                windows = {
                    m: x[row, None, None] if known is None else cut(x[row, None], rate, starts, width)
                    for m, (x, rate) in held.items()
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


class _Actor:
    """A Ray Data actor: one task (the places of some windows) → their vectors."""

    def __init__(self, bundle: str, mode: str, corpus: Corpus, spec: WindowSpec) -> None:
        self.encoder, self.corpus, self.spec = BundleEncoder(bundle, mode, threads=1), corpus, spec

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        task = {name: np.asarray(column[0]) for name, column in batch.items()}
        rows = task.pop("rows")
        # only whole steps are read: what an array's end is cut to before it is filtered
        whole_s = self.encoder.steps(self.spec.window_s) * self.encoder.step_s
        spec = self.spec.model_copy(update={"window_s": whole_s})
        prepared = Index(self.corpus, spec, pa.table(task)).load(np.arange(len(rows)))
        return {"row": rows, "embedding": self.encoder(prepared)}


def planned(index: Index, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Where these rows of the index lie: all that an actor needs, so that no actor holds the whole index."""
    part = index.table.take(pa.array(rows))
    return {"rows": rows, **{c: part[c].to_numpy() for c in ("shard", "group", "row", "offset_s")}}


def by_actors(
    index: Index, rows: np.ndarray, together: int, actor: type, arguments: tuple, actors: int
) -> Iterator[dict[str, np.ndarray]]:
    """What `actor(*arguments)` makes of these rows of an index, `together` of them at a time, in their order,
    with a progress bar; each batch names its rows in "row". Ray must be running.
    """
    import ray.data

    from cluster.session import data_context

    data_context()
    tasks = [planned(index, rows[i : i + together]) for i in range(0, len(rows), together)]
    result = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(tasks))),
    )
    done = 0
    with progress(len(rows), "embed", "windows") as bar:
        for batch in result.iter_batches(batch_size=None, batch_format="numpy"):
            if not np.array_equal(batch["row"], rows[done : done + len(batch["row"])]):
                raise RuntimeError("windows came back in another order than was planned")
            done += len(batch["row"])
            yield batch
            bar.update(len(batch["row"]))
    if done != len(rows):
        raise RuntimeError(f"{len(rows)} windows were planned, {done} came back")


def embed_corpus(
    encoder: BundleEncoder, input: str, path: Path, window_s: float | None, hop_s: float | None
) -> Embedded:
    """The vectors of every window of a corpus as Parquet at `path`: subject, record, start_s, embedding."""
    from cluster.session import session

    corpus = open_corpus(input)
    window_s = encoder.window_s if window_s is None else window_s
    if window_s > encoder.max_s + 1e-6:
        raise PlethoraError(f"--window-s {window_s:g} is longer than the encoder takes ({encoder.max_s:g} s)")
    encoder.pieces(window_s)  # refuses windows under the minimum
    encoder.check(corpus)
    spec = WindowSpec(signals=encoder.signals, window_s=window_s, hop_s=hop_s)
    with session(actors=ACTORS):
        index = build(corpus, spec)
        refused = Counter(v for v in index.table["verdict"].to_pylist() if v != "ok")
        rows = index.select(None)
        if not len(rows):
            reasons = ", ".join(f"{r} {n}" for r, n in sorted(refused.items())) or "no stretch is long enough"
            raise PlethoraError(f"{input}: no window of {window_s:g} s can be embedded ({reasons})")
        keys = [("subject", pa.string()), ("record", pa.string()), ("start_s", pa.float64())]
        schema = _schema(keys, encoder, window_s, hop_s or window_s)

        def parts() -> Iterable[tuple[list[pa.Array], np.ndarray]]:
            arguments = (encoder.bundle.uri, encoder.mode, corpus, spec)
            for batch in by_actors(index, rows, TASK_WINDOWS, _Actor, arguments, ACTORS):
                table = index.table.take(pa.array(batch["row"]))
                yield [table[name].combine_chunks() for name, _ in keys], batch["embedding"]

        windows = _write(path, schema, parts())
    subjects = len(set(index.table["subject"].to_pylist()))
    return Embedded(windows, encoder.dim, window_s, dict(sorted(refused.items())), subjects)
