"""The only writer of shards: runs in a task and writes a shard and its parts of the two side tables.

A shard's bytes depend only on its records. `assemble.finish` makes a corpus of the shards.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from datasets import schema
from datasets.readers.base import Labels, Recording
from datasets.segment import Segments, segment
from datasets.validity import Limits

SHARD_BYTES = 256 * 2**20
ROW_GROUP_BYTES = 16 * 2**20
PARTS_DIR = "parts"


@dataclass
class Entry:
    """One record to be written: accepted (`recording`), partly refused (`refused`: modality ->
    (seconds, reason)) or refused whole (`recording` is None). `detail` explains the reason."""

    record: str
    subject: str
    recording: Recording | None
    refused: dict[str, tuple[Fraction, str]] = field(default_factory=dict)
    detail: str | None = None


@dataclass
class ShardReport:
    """The result of one task: its shard entry (None if all were refused) and its part of the ledger."""

    index: int
    shard: dict[str, Any] | None = None
    subjects: list[str] = field(default_factory=list)
    records: int = 0
    records_in: int = 0
    seconds_in: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    refused: dict[str, dict[str, float]] = field(default_factory=dict)
    bridged: dict[str, list[float]] = field(default_factory=dict)
    moved: dict[str, tuple[int, float]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)


class _Hashing:
    """A file object for pyarrow that forwards bytes to `uri` and hashes them."""

    def __init__(self, uri: str) -> None:
        self.uri, self.digest, self.size, self.closed = uri, hashlib.sha256(), 0, False
        fs, path = storage.filesystem(uri)
        with storage.clear_errors(uri):
            if not storage.is_remote(uri):
                fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
            self.sink = fs.open_output_stream(path)

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        with storage.clear_errors(self.uri):
            self.sink.write(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.sink.flush()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with storage.clear_errors(self.uri):
                self.sink.close()


class ParquetFile:
    """A Parquet writer for a URI, with our encoding; `bytes` and `sha256` are final after close."""

    def __init__(self, uri: str, columns: pa.Schema) -> None:
        words = [f.name for f in columns if pa.types.is_string(f.type)]
        self._file = _Hashing(uri)
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._file, mode="w"),
            columns,
            compression="zstd",
            use_dictionary=words,  # a dictionary of waveforms would be larger than the waveforms
            write_statistics=[f.name for f in columns if not pa.types.is_binary(f.type)],
            write_page_checksum=True,  # a flipped bit in a waveform would decompress to another waveform
        )
        self.groups: list[int] = []

    def write(self, table: pa.Table) -> None:
        """Add `table` as one row group."""
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.groups.append(table.num_rows)

    def __enter__(self) -> "ParquetFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._writer.close()
        self._file.close()

    @property
    def bytes(self) -> int:
        return self._file.size

    @property
    def sha256(self) -> str:
        return self._file.digest.hexdigest()


def write_shard(
    out: str,
    index: int,
    entries: Iterable[Entry],
    modalities: Sequence[str],
    limits: Limits,
    segment_s: float,
    tick: Callable[[], None] = lambda: None,
) -> ShardReport:
    """Write shard `index` of the corpus at `out` from `entries` (rows of a subject must be contiguous).

    `tick` is called after each record.
    """
    report = ShardReport(index)
    name = f"{schema.SHARDS_DIR}/{index:05d}.parquet"
    columns = schema.row_schema(modalities)
    pending: list[dict[str, Any]] = []
    labels: list[pa.Table] = []
    rejects: list[dict[str, Any]] = []
    rates: dict[str, set[float]] = {}
    weight = 0
    writer: ParquetFile | None = None

    def flush() -> None:
        nonlocal writer, weight
        if pending:
            writer = writer or ParquetFile(storage.join(out, name), columns)
            writer.write(pa.Table.from_pylist(pending, schema=columns))
            pending.clear()
            weight = 0

    for entry in entries:
        cut = _cut(entry, limits, segment_s)
        _account(report, entry, cut, rates)
        rejects += _rejects(entry.record, cut)
        if cut.rows and entry.recording:
            labels.append(label_table(entry.subject, entry.record, entry.recording.labels))
        heavy = sum(_bytes(row) for row in cut.rows)
        if weight + heavy > ROW_GROUP_BYTES:
            flush()
        for row in cut.rows:
            if weight >= ROW_GROUP_BYTES:
                flush()
            pending.append({"subject": entry.subject, **row})
            weight += _bytes(row)
        tick()
    flush()
    table = pa.concat_tables(labels) if labels else schema.LABELS.empty_table()
    report.labels = _write_part(part_uri(out, schema.LABELS_FILE, index), table, _LABEL_ORDER)
    table = pa.Table.from_pylist(rejects, schema=schema.REJECTS)
    _write_part(part_uri(out, schema.REJECTS_FILE, index), table, _REJECT_ORDER)
    if writer is not None:
        with writer:
            pass
        report.shard = {
            "path": name,
            "rows": sum(writer.groups),
            "bytes": writer.bytes,
            "sha256": writer.sha256,
            "row_groups": writer.groups,
            "rates": {m: sorted(r) for m, r in sorted(rates.items())},
            "hours": {m: round(s / 3600, 9) for m, s in sorted(report.kept.items())},
        }
    return report


def _bytes(row: Mapping[str, Any]) -> int:
    return sum(len(v) for v in row.values() if isinstance(v, bytes))


def _cut(entry: Entry, limits: Limits, segment_s: float) -> Segments:
    signals = entry.recording.signals if entry.recording else {}
    cut = segment(entry.record, signals, limits, segment_s)
    for m, (seconds, reason) in sorted(entry.refused.items()):
        cut.seconds_in[m] = seconds
        cut.refuse(m, Fraction(0), seconds, reason)
    cut.check(entry.record)
    return cut


def _account(report: ShardReport, entry: Entry, cut: Segments, rates: dict[str, set[float]]) -> None:
    report.records_in += 1
    if cut.rows:
        report.records += 1
        if not report.subjects or report.subjects[-1] != entry.subject:
            report.subjects.append(entry.subject)
    for row in cut.rows:
        for key in [k for k in row if k.endswith("_rate")]:
            rates.setdefault(key.removesuffix("_rate"), set()).add(row[key])
    for m, seconds in cut.seconds_in.items():
        report.seconds_in[m] = report.seconds_in.get(m, 0.0) + float(seconds)
    for m, seconds in cut.kept.items():
        report.kept[m] = report.kept.get(m, 0.0) + float(seconds)
    for m, reasons in cut.refused.items():
        for reason, seconds in reasons.items():
            mine = report.refused.setdefault(m, {})
            mine[reason] = mine.get(reason, 0.0) + float(seconds)
    for m, (gaps, seconds) in cut.bridged.items():
        have = report.bridged.setdefault(m, [0, 0.0])
        have[0] += gaps
        have[1] += float(seconds)
    for m, farthest in entry.recording.moved.items() if entry.recording and cut.rows else ():
        records, so_far = report.moved.get(m, (0, 0.0))
        report.moved[m] = records + 1, max(so_far, farthest)
    details = [*([entry.detail] if entry.detail else []), *cut.words]
    details += entry.recording.problems if entry.recording else []
    report.problems += [{"record": entry.record, "detail": detail} for detail in details]
    notes = entry.recording.notes if entry.recording else []
    report.notes += [{"record": entry.record, "detail": note} for note in notes]


def label_table(subject: str, record: str, labels: Iterable[Labels]) -> pa.Table:
    """The labels of one record as rows of `schema.LABELS`."""
    tables = []
    for label in labels:
        n = len(label.values)
        words = isinstance(label.values, list)
        nulls = pa.nulls(n, pa.float64())
        tables.append(
            pa.Table.from_arrays(
                [
                    nulls if label.start_s is None else pa.array(label.start_s, pa.float64()),
                    nulls if label.end_s is None else pa.array(label.end_s, pa.float64()),
                    pa.repeat(label.name, n),
                    nulls if words else pa.array(np.asarray(label.values, float)),
                    pa.array(label.values, pa.string()) if words else pa.nulls(n, pa.string()),
                    pa.nulls(n, pa.string()) if label.unit is None else pa.repeat(label.unit, n),
                ],
                schema=_OF_A_RECORD,
            )
        )
    if not tables:
        return schema.LABELS.empty_table()
    table = pa.concat_tables(tables)
    whose = [pa.repeat(subject, len(table)), pa.repeat(record, len(table))]
    return pa.Table.from_arrays([*whose, *table.columns], schema=schema.LABELS)


def _rejects(record: str, cut: Segments) -> list[dict[str, Any]]:
    return [
        {"record": record, "modality": m, "start_s": float(a), "duration_s": float(n), "reason": reason}
        for m, a, n, reason in cut.rejects
    ]


_OF_A_RECORD = pa.schema([f for f in schema.LABELS if f.name not in ("subject", "record")])
_LABEL_ORDER = [(key, "ascending") for key in ("name", "subject", "record", "start_s")]
_REJECT_ORDER = [(key, "ascending") for key in ("record", "modality", "start_s")]


def _write_part(uri: str, table: pa.Table, order: list[tuple[str, str]]) -> list[str]:
    """Write one task's sorted rows of a side table, one row group per label name; returns the names."""
    table = table.sort_by(order)
    names: list[str] = pc.unique(table["name"]).to_pylist() if "name" in table.column_names else []
    with ParquetFile(uri, table.schema) as part:
        for name in names:  # `assemble` reads one name at a time
            part.write(table.filter(pc.equal(table["name"], name)))
        if not names:
            part.write(table)
    return names


def part_uri(out: str, file: str, index: int) -> str:
    return storage.join(out, PARTS_DIR, f"{file.removesuffix('.parquet')}-{index:05d}.parquet")
