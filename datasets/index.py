"""Which windows of a corpus pass, and why the others do not: judged once by Ray Data, then stored in files
named by corpus and spec hash (datasets.catalogue).
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.cli import progress
from cluster.errors import PlethoraError
from cluster.scratch import filling, scratch
from datasets import catalogue, memory, parts, selection
from datasets.ahead import MOST_OPEN, Ahead
from datasets.catalogue import FILES, MARK, OK, VERSION, Catalogue
from datasets.join import join
from datasets.judge import VERDICTS, judge, schema
from datasets.raw import Part
from datasets.schema import Corpus
from datasets.selection import Choice, Selection, Windows
from datasets.split import Split
from datasets.windows import WindowSpec, empty, extract, grid, lasts, present

__all__ = ["Index", "Selection", "Windows", "build", "few", "gather", "row_groups"]

log = logging.getLogger(__name__)
_PLACE = ["shard", "group", "row", "offset_s"]  # a window's place in its corpus


@dataclass(frozen=True)
class Index:
    """The windows of one corpus under one spec, sorted by place. `given`: a table (`judge.schema`), or the
    catalogue that `build` made, which is pickled as the names of its files.
    """

    corpus: Corpus
    spec: WindowSpec
    given: pa.Table | Catalogue

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # derived values are derived again

    @property
    def windows(self) -> int:
        """Number of windows, accepted or not."""
        return len(self.given)

    @cached_property
    def table(self) -> pa.Table:
        """All windows, as `judge.schema`, strings as dictionaries: about 50 bytes per window, for
        evaluation."""
        return self.given if isinstance(self.given, pa.Table) else catalogue.to_table(self.given, self.spec)

    def tables(self) -> Iterator[pa.Table]:
        """The rows of `table`, about `catalogue.CHUNK` at a time: never all in memory."""
        if isinstance(self.given, pa.Table) or not len(self.given):
            yield self.table
            return
        for a, b in self.given.stretches():
            yield catalogue.to_table(self.given.part(a, b), self.spec)

    @cached_property
    def kept(self) -> Catalogue:
        """All windows, compact."""
        return (
            self.given if isinstance(self.given, Catalogue) else catalogue.from_table(self.given, self.spec)
        )

    def select(self, part: str | None, split: Split | None = None) -> np.ndarray:
        """Row numbers of the accepted windows whose subject is in `part` of `split` (None: all subjects)."""
        choice = Choice(selection.side(self.kept, part, split or Split()))
        return np.flatnonzero(choice.mask(self.kept, 0, self.windows)) if self.windows else np.empty(0, int)

    def selection(self, part: str | None, split: Split, target: np.ndarray | None = None) -> Selection:
        """The windows that `select` finds; with a `target` (windows, k), only those with a label. Takes no
        memory per window.
        """
        choice = Choice(selection.side(self.kept, part, split), target)
        return selection.select(self.corpus, self.spec, self.kept, choice)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """(n,) uint8: bit i says whether signal i of the spec is used in these windows."""
        if isinstance(self.given, Catalogue):
            return selection.has(self.given, self.spec, rows)
        bits = np.zeros(len(rows), np.uint8)
        for number, sig in enumerate(self.spec.signals):
            used = np.ones(len(rows), bool)
            if not sig.required:
                verdict = self.given[f"verdict_{sig.modality}"].take(pa.array(rows))
                used = pc.equal(verdict, "ok").to_numpy(zero_copy_only=False)
            bits |= used.astype(np.uint8) << number
        return bits

    def summary(self) -> dict[str, dict[str, int]]:
        """Windows by verdict: {"windows": …}, for each optional modality {"ecg": …}, and {"inverted ecg": …}
        over the windows that use it, if the signal is turned upright.
        """
        windows = self.kept.windows

        def counts(column: str) -> dict[str, int]:
            found = pc.value_counts(windows.column(column)).to_pylist()
            return dict(sorted((VERDICTS[v["values"]], v["counts"]) for v in found))

        out = {"windows": counts("verdict")} | {m: counts(f"verdict_{m}") for m in self.spec.optional}
        for sig in self.spec.signals:
            if sig.upright:
                used = pc.equal(windows.column("verdict"), OK)
                if not sig.required:
                    used = pc.and_(used, pc.equal(windows.column(f"verdict_{sig.modality}"), OK))
                turned = pc.sum(pc.and_(used, windows.column(f"inverted_{sig.modality}"))).as_py() or 0
                left = (pc.sum(used).as_py() or 0) - turned
                out[f"inverted {sig.modality}"] = {"yes": turned, "no": left}
        return out

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64 window ids, the same in every run over this corpus."""
        return selection.ids(self.corpus, rows)

    def load(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Prepared windows of these rows of the table, in this process: {modality: (n, channels, samples)},
        and the masks of optional modalities.
        """
        if isinstance(self.given, Catalogue):
            kept, run = self.given, self.given.run_of(rows)
            shard, group, row = (kept.run(c)[run] for c in _PLACE[:3])
            offset_s = kept.offsets(rows, run)
        else:  # such a table may hold only the windows' places
            part = self.given.select(_PLACE).take(pa.array(rows))
            shard, group, row, offset_s = (part[c].to_numpy() for c in _PLACE)
        source = np.zeros(len(rows), int)
        parts = opened([self.corpus], source, shard, group, row, offset_s, self.has(rows), self.spec, few)
        return gather(parts, len(rows), self.spec)


def opened(
    corpora: list[Corpus],
    source: np.ndarray,
    shard: np.ndarray,
    group: np.ndarray,
    row: np.ndarray,
    offset_s: np.ndarray,
    has: np.ndarray,
    spec: WindowSpec,
    read: Ahead[pa.Table],
) -> Iterator[Part]:
    """The row groups of windows at the given places, (n,) each, with the windows that each holds. Each is
    read once, by `read`, however its windows are scattered over the order; bit i of `has` says whether signal
    i is used.
    """
    places, inverse = np.unique(np.stack([source, shard, group]), axis=1, return_inverse=True)
    wanted = [(corpora[s], sh, g, spec) for s, sh, g in places.T.tolist()]
    for number, table in enumerate(read.each(wanted)):
        which = np.flatnonzero(inverse.ravel() == number)
        used = (has[which] >> np.arange(len(spec.signals))[:, None] & 1) == 1
        yield table, row[which], offset_s[which], which, used


def gather(parts: Iterable[Part], n: int, spec: WindowSpec) -> dict[str, np.ndarray]:
    """The `n` windows of `opened`, prepared: {modality: (n, channels, samples) float32} in their order, zeros
    where a signal is not used, and `has_<m>` (n,) bool for each optional modality. (Raw: `raw.gather`.)
    """
    out = empty(n, spec)
    for table, row, offset_s, at, used in parts:
        extract(table, row, offset_s, spec, out, at, used)
    return out


def _read(corpus: Corpus, shard: int, group: int, spec: WindowSpec) -> pa.Table:
    """The rows of a row group that `spec` can use: those with all its required modalities and at least one,
    joined across boundaries that only other modalities cause. The index counts rows of this table.
    """
    there = [s.modality for s in spec.signals if s.modality in corpus.modalities]
    lacking = [s.modality for s in spec.signals if s.modality not in there]
    columns = [c for c in spec.columns if c.split("_")[0] not in lacking]
    return join(corpus.read_row_group(shard, group, columns), there, [m for m in spec.optional if m in there])


def _spill(table: pa.Table, room: float) -> tuple[pa.Table, int]:
    """The table in memory or, if it does not fit, in an unnamed file that is mapped."""
    if table.nbytes <= room:
        return table, table.nbytes
    with tempfile.NamedTemporaryFile(prefix="plethora-", suffix=".arrow") as file:
        with pa.ipc.new_file(file.name, table.schema) as out:
            out.write_table(table.combine_chunks())
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all(), 0


# About 16 MiB each. `few`: the last ones. `row_groups`: those open in a worker's lanes, until `Reader`
# releases them; beyond `ahead.ROOM` on disk. Two caches, so that neither evicts the other's.
few = Ahead(_read, 8)
row_groups = Ahead(_read, MOST_OPEN, _spill)


def build(corpus: Corpus, spec: WindowSpec, cache: str | None = None) -> Index:
    """The index of a corpus: from `cache` (a URI) if it is there, else judged by Ray Data and stored there. A
    build that was killed resumes with what it has judged.
    """
    for line in _lacks(corpus, spec):
        log.warning("%s: its windows come without", line)
    corpus.ranged = True  # readers of the index's windows will read many row groups
    hop = spec.hop_s or spec.window_s
    home = storage.join(cache, f"{corpus.hash[:16]}-{spec.hash}-v{VERSION}") if cache else ""
    if home and storage.exists(storage.join(home, MARK)):
        if storage.listing(f"{home}-parts"):
            # Parts of a build that was killed after it published. A live one no longer needs them: it opens
            # the published index once a part is missing.
            storage.delete(f"{home}-parts")
        return Index(corpus, spec, catalogue.opened(home, hop))
    with scratch("index") as temporary:
        where = f"{home}-parts" if home else f"{temporary}/parts"
        merged = Path(temporary, "merged")
        merged.mkdir()
        try:
            count = _judge_all(corpus, spec, where)
            with filling(Path(temporary)):
                windows, runs = parts.merge(where, count, spec, merged)
            if not home:
                return Index(corpus, spec, catalogue.in_memory(merged, hop))
            sums = dict(zip(FILES, catalogue.checksums_of(merged), strict=True))
            mark = {"version": VERSION, "windows": windows, "runs": runs, "sha256": sums}
            storage.publish(merged, home, MARK, storage.json_bytes(mark))
        except PlethoraError:
            if not home or not storage.exists(storage.join(home, MARK)):
                raise  # else another process was first and removed the parts
        storage.delete(where)
    return Index(corpus, spec, catalogue.opened(home, hop))


def _lacks(corpus: Corpus, spec: WindowSpec) -> list[str]:
    """A line for each optional modality that the corpus lacks, or holds at too low a rate. PlethoraError if
    one is required, or if none is left.
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


def _judge_all(corpus: Corpus, spec: WindowSpec, folder: str) -> int:
    """Make sure that every part of the index is in `folder` (a URI): missing ones are judged. Returns the
    number of parts.
    """
    there = set(storage.listing(folder))
    cuts = parts.cut(len(_groups(corpus)))
    wanted = [number for number in range(len(cuts)) if parts.name(number) not in there]
    total, missing = sum(map(len, cuts)), sum(len(cuts[n]) for n in wanted)
    with progress(total, f"index {corpus.uri.rstrip('/').rpartition('/')[2]}", "row group") as bar:
        bar.update(total - missing)
        for number, data in _judged(corpus, spec, wanted) if wanted else ():
            storage.write_bytes(storage.join(folder, parts.name(number)), data)
            bar.update(len(cuts[number]))
    return len(cuts)


def _judged(corpus: Corpus, spec: WindowSpec, wanted: list[int]) -> Iterator[tuple[int, bytes]]:
    """(number, file) of each of these parts of the index."""
    import ray

    from cluster.session import data_context

    data_context()
    judge_part: Any = _judge_part  # Ray's annotation does not cover functions with arguments
    found = ray.data.from_items([{"part": n} for n in wanted], override_num_blocks=len(wanted)).map_batches(
        judge_part, batch_size=None, fn_kwargs={"corpus": corpus, "spec": spec}
    )
    batch: Any
    for batch in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from zip(batch["part"].to_pylist(), batch["data"].to_pylist(), strict=True)


def _judge_part(batch: dict[str, np.ndarray], corpus: Corpus, spec: WindowSpec) -> pa.Table:
    """One row per part: its table as a file, which Ray Data can neither split nor merge."""
    groups, data = _groups(corpus), []
    for number in batch["part"].tolist():
        its = parts.cut(len(groups))[number]
        place = np.array([groups[i] for i in its])
        data.append(parts.encode(_scan({"shard": place[:, 0], "group": place[:, 1]}, corpus, spec)))
    return pa.table({"part": batch["part"], "data": pa.array(data, pa.binary())})


def _groups(corpus: Corpus) -> list[tuple[int, int]]:
    """(shard, row group in it) of every row group, in order of place."""
    return [(s, g) for s, e in enumerate(corpus.shards) for g in range(len(e["row_groups"]))]


def _scan(batch: dict[str, np.ndarray], corpus: Corpus, spec: WindowSpec) -> pa.Table:
    """Verdicts of every window of the row groups named in `batch`."""
    memory.keep_freed()
    found = []
    for shard, group in zip(batch["shard"].tolist(), batch["group"].tolist(), strict=True):
        if group == 0:
            corpus.check_shard(shard)  # page checksums find accidents, this finds a replaced file
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
    few.clear()  # Ray keeps the process alive, maybe without work
    memory.give_back()
    return pa.concat_tables(found)
