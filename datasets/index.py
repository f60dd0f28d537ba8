"""Which windows of a corpus pass, one row a window: built once by Ray Data, cached by corpus and spec
hash.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.cli import progress
from cluster.errors import PlethoraError
from datasets import memory
from datasets.ahead import MOST_OPEN, Ahead
from datasets.join import join
from datasets.judge import judge, schema
from datasets.plan import Source
from datasets.raw import Part
from datasets.schema import Corpus
from datasets.split import Split, assign
from datasets.windows import WindowSpec, empty, extract, grid, lasts, present

log = logging.getLogger(__name__)
VERSION = 2  # of what an index says of a window: one of other code is made again
_PLACE = ["shard", "group", "row", "offset_s"]  # a window's place in its corpus


@dataclass(frozen=True)
class Shelf:
    """Where the windows of a `plan.Source` lie, in the same order: all (n,). `subject` is a 64-bit name,
    `has` (uint8) tells in bit i whether signal i of the spec is used. `target` (n, k) float32, NaN where
    unknown: what a method that learns from labels wants of each window. `prepared`, with each window's
    `place` (n,) in its file: read materialised windows (datasets.prepared) in place of the corpus.
    """

    corpus: Corpus
    shard: np.ndarray
    group: np.ndarray
    row: np.ndarray
    offset_s: np.ndarray
    subject: np.ndarray
    has: np.ndarray
    target: np.ndarray | None = None
    prepared: Any = None
    place: np.ndarray | None = None


@dataclass(frozen=True)
class Index:
    """The windows of one corpus under one spec. `table` (see `schema`; its strings as dictionaries) is sorted
    by place.
    """

    corpus: Corpus
    spec: WindowSpec
    table: pa.Table

    def select(self, part: str | None, split: Split | None = None) -> np.ndarray:
        """Row numbers of the accepted windows whose subject `split` puts into `part` (None: all subjects)."""
        ok = pc.equal(self.table["verdict"], "ok").to_numpy(zero_copy_only=False)
        if part is not None:
            codes = self.table["subject"].combine_chunks().dictionary_encode()
            side = np.array([assign(s, split or Split()) == part for s in codes.dictionary.to_pylist()], bool)
            ok = ok & side[codes.indices.to_numpy()] if len(side) else ok
        return np.flatnonzero(ok)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """(n,) uint8: in bit i, whether signal i of the spec is used in these windows."""
        bits = np.zeros(len(rows), np.uint8)
        for number, sig in enumerate(self.spec.signals):
            used = np.ones(len(rows), bool)
            if not sig.required:
                verdict = self.table[f"verdict_{sig.modality}"].take(pa.array(rows))
                used = pc.equal(verdict, "ok").to_numpy(zero_copy_only=False)
            bits |= used.astype(np.uint8) << number
        return bits

    def summary(self) -> dict[str, dict[str, int]]:
        """Windows by verdict: {"windows": …}, of each optional modality {"ecg": …}, and {"inverted ecg": …}
        over the windows that use it, where a signal is turned upright.
        """

        def counts(column: str) -> dict[str, int]:
            found = self.table[column].value_counts().to_pylist()
            return dict(sorted((v["values"], v["counts"]) for v in found))

        out = {"windows": counts("verdict")} | {m: counts(f"verdict_{m}") for m in self.spec.optional}
        ok = self.select(None)
        has = self.has(ok)
        for number, sig in enumerate(self.spec.signals):
            if sig.upright:
                used = ok[(has >> number & 1) == 1]
                turned = pc.sum(self.table[f"inverted_{sig.modality}"].take(pa.array(used))).as_py() or 0
                out[f"inverted {sig.modality}"] = {"yes": turned, "no": len(used) - turned}
        return out

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64 names of windows, the same in every run over this corpus: splitmix64 of hash and row."""
        x = rows.astype(np.uint64) + np.uint64(int(self.corpus.hash[:16], 16))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return (x ^ (x >> np.uint64(31))).view(np.int64)

    def source(self, rows: np.ndarray, weight: float) -> tuple[Source, Shelf]:
        """What the plan orders and what the readers open, for these rows of the table."""
        part = self.table.select([*_PLACE, "subject"]).take(pa.array(rows))
        shard, group = part["shard"].to_numpy(), part["group"].to_numpy()
        names = part["subject"].combine_chunks().dictionary_encode()
        known = np.array([int(s[:16], 16) for s in names.dictionary.to_pylist()], np.uint64).view(np.int64)
        shelf = Shelf(
            self.corpus,
            shard,
            group,
            part["row"].to_numpy(),
            part["offset_s"].to_numpy(),
            known[names.indices.to_numpy()],
            self.has(rows),
        )
        place = shard.astype(np.int64) << 32 | group  # rising, as the table is
        counts = np.diff(np.flatnonzero(np.diff(place, prepend=-1, append=-1)))
        return Source(counts, self.ids(rows), weight), shelf

    def load(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Prepared windows of these rows of the table, in this process: {modality: (n, channels, samples)},
        and the masks of optional modalities.
        """
        part = self.table.select(_PLACE).take(pa.array(rows))
        shard, group, row, offset_s = (part[c].to_numpy() for c in _PLACE)
        source = np.zeros(len(rows), int)
        return gather([self.corpus], source, shard, group, row, offset_s, self.spec, self.has(rows))


def gather(
    corpora: list[Corpus],
    source: np.ndarray,
    shard: np.ndarray,
    group: np.ndarray,
    row: np.ndarray,
    offset_s: np.ndarray,
    spec: WindowSpec,
    has: np.ndarray,
    read: Ahead[pa.Table] | None = None,
) -> dict[str, np.ndarray]:
    """Prepared windows at the given places, (n,) each: {modality: (n, channels, samples) float32} in their
    order, zeros where bit i of `has` says that signal i is not used, and `has_<m>` (n,) bool for each
    optional modality.

    Each row group is read once, however its windows are scattered over the order, by `read` (None: the one of
    this module, which holds few).
    """
    out = empty(len(row), spec)
    for table, rows, starts, at, used in opened(
        corpora, source, shard, group, row, offset_s, spec, has, read
    ):
        extract(table, rows, starts, spec, out, at, used)
    return out


def opened(
    corpora: list[Corpus],
    source: np.ndarray,
    shard: np.ndarray,
    group: np.ndarray,
    row: np.ndarray,
    offset_s: np.ndarray,
    spec: WindowSpec,
    has: np.ndarray,
    read: Ahead[pa.Table] | None = None,
) -> Iterator[Part]:
    """The row groups of windows (see `gather`), each with those of them that it holds."""
    places, inverse = np.unique(np.stack([source, shard, group]), axis=1, return_inverse=True)
    wanted = [(corpora[s], sh, g, spec) for s, sh, g in places.T.tolist()]
    for number, table in enumerate((read or few).each(wanted)):
        which = np.flatnonzero(inverse.ravel() == number)
        used = (has[which] >> np.arange(len(spec.signals))[:, None] & 1) == 1
        yield table, row[which], offset_s[which], which, used


def _read(corpus: Corpus, shard: int, group: int, spec: WindowSpec) -> pa.Table:
    """The rows of a row group as `spec` sees them: those with all its required modalities and at least one,
    joined across borders that only other modalities make. The index counts rows of this table.
    """
    there = [s.modality for s in spec.signals if s.modality in corpus.modalities]
    lacking = [s.modality for s in spec.signals if s.modality not in there]
    columns = [c for c in spec.columns if c.split("_")[0] not in lacking]
    return join(corpus.read_row_group(shard, group, columns), there, [m for m in spec.optional if m in there])


def _spill(table: pa.Table, room: float) -> tuple[pa.Table, int]:
    """The table in memory, or, where it does not fit there, in a file that has no name and is mapped."""
    if table.nbytes <= room:
        return table, table.nbytes
    with tempfile.NamedTemporaryFile(prefix="plethora-", suffix=".arrow") as file:
        with pa.ipc.new_file(file.name, table.schema) as out:
            out.write_table(table.combine_chunks())
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all(), 0


# Some 16 MiB each. `few`: the last ones. `held`: what a worker's lanes have open, until `Reader` lets go;
# beyond `ahead.ROOM` on disk. Two of them, so that neither crowds out the other.
few = Ahead(_read, 8)
held = Ahead(_read, MOST_OPEN, _spill)


def build(corpus: Corpus, spec: WindowSpec, cache: str | None = None) -> Index:
    """The index of a corpus, from `cache` (a URI) when it is there, else made by Ray Data and put there."""
    for line in _lacks(corpus, spec):
        log.warning("%s: its windows come without", line)
    file = cache and storage.join(cache, f"{corpus.hash[:16]}-{spec.hash}-v{VERSION}.parquet")
    if file and storage.exists(file):
        try:
            return Index(corpus, spec, _decode(storage.read_bytes(file)))
        except (pa.ArrowException, OSError) as broken:
            raise PlethoraError(f"{file} is corrupt: delete it, the next run makes it again") from broken
    table = pa.concat_tables([_coded(schema(spec).empty_table()), *map(_coded, _scan_all(corpus, spec))])
    written = _encode(table.unify_dictionaries())
    if file:
        storage.write_bytes(file, written)
    # decoded again, cached or not: a first run holds what the next one will
    return Index(corpus, spec, _decode(written))


def _lacks(corpus: Corpus, spec: WindowSpec) -> list[str]:
    """A line for each optional modality that the whole corpus lacks or holds too slowly. PlethoraError when
    one is required, or when none is left.
    """
    lines = []
    for sig in spec.signals:
        m = sig.modality
        rates = {rate for shard in corpus.shards for rate in shard.get("rates", {}).get(m, ())}
        if m not in corpus.modalities:
            lines.append(f"{corpus.uri} has no {m} (it has {', '.join(corpus.modalities)})")
        elif rates and max(rates) < sig.min_rate:
            lines.append(f"{corpus.uri} has {m} at {max(rates):g} Hz at most, {sig.min_rate:g} Hz is needed")
        else:
            continue
        if sig.required or len(lines) == len(spec.signals):
            raise PlethoraError(f"{lines[-1]}: use another corpus or method")
    return lines


def _scan_all(corpus: Corpus, spec: WindowSpec) -> Iterator[pa.Table]:
    """The windows of all row groups, in the order of their places (Ray Data keeps it, see `data_context`)."""
    import ray

    from cluster.session import data_context

    data_context()
    places = [
        {"shard": s, "group": g} for s, e in enumerate(corpus.shards) for g in range(len(e["row_groups"]))
    ]
    if not places:
        return
    scan: Any = _scan  # Ray's annotation does not know functions with arguments
    found = ray.data.from_items(places, override_num_blocks=len(places)).map_batches(
        scan, batch_size=None, fn_kwargs={"corpus": corpus, "spec": spec}
    )
    with progress(len(places), f"index {corpus.uri.rstrip('/').rpartition('/')[2]}", "row group") as bar:
        batch: Any
        for batch in found.iter_batches(batch_size=None, batch_format="pyarrow"):
            bar.update(len(set(zip(batch["shard"].to_pylist(), batch["group"].to_pylist(), strict=True))))
            yield batch.cast(schema(spec))


def _scan(batch: dict[str, np.ndarray], corpus: Corpus, spec: WindowSpec) -> pa.Table:
    """Verdicts of every window of the row groups named in `batch`."""
    memory.keep_freed()
    found = []
    for shard, group in zip(batch["shard"].tolist(), batch["group"].tolist(), strict=True):
        if group == 0:
            corpus.check_shard(shard)  # page checksums tell accidents, this tells another file
        table = few(corpus, shard, group, spec)
        there = present(table, spec)
        required = there[[s.required for s in spec.signals]]
        usable = np.logical_and(np.any(there, axis=0), np.all(required, axis=0))
        starts = [
            grid(d, spec, s) if u else grid(0, spec)
            for s, d, u in zip(table["start_s"].to_pylist(), lasts(table, spec).tolist(), usable, strict=True)
        ]
        row = np.repeat(np.arange(len(table)), [len(s) for s in starts])
        offset = np.concatenate([*starts, np.empty(0)])
        found.append(
            pa.table(
                {
                    "shard": np.full(len(row), shard, np.int32),
                    "group": np.full(len(row), group, np.int32),
                    "row": row.astype(np.int32),
                    "offset_s": offset,
                    "start_s": table["start_s"].to_numpy()[row] + offset,
                    "subject": table["subject"].take(pa.array(row)),
                    "record": table["record"].take(pa.array(row)),
                    **judge(table, row, offset, spec),
                },
                schema=schema(spec),
            )
        )
    few.clear()  # Ray keeps the process, maybe without work
    memory.give_back()
    return pa.concat_tables(found)


def _coded(table: pa.Table) -> pa.Table:
    """Names and verdicts as codes of four bytes: as text they would be most of the table, and more than an
    array of Arrow's can hold (2 GiB) from 67 million windows on.
    """
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(number, field.name, table[field.name].dictionary_encode())
    return table


def _encode(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _decode(data: bytes) -> pa.Table:
    """The table that `_encode` wrote; text stays codes."""
    import pyarrow.parquet as pq

    source = pa.BufferReader(data)
    strings = [f.name for f in pq.read_schema(source) if pa.types.is_string(f.type)]
    table = pq.read_table(source, page_checksum_verification=True, read_dictionary=strings)
    return table.unify_dictionaries().combine_chunks()
