"""Validates a corpus: its manifest as types, its rows for plausible values, its row groups for their memory.

A corpus may come from a stranger: a value out of bounds would cause a crash, a full memory, or nonsense
windows later. All checks work on whole columns.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from cluster.errors import PlethoraError
from cluster.session import memory_bytes

MODALITIES = ("ppg", "ecg", "abp", "resp", "acc")
MOST_BYTES = 2 * 2**30  # of a decoded row group; ours have about 16 MiB
MOST_ROWS = 10**6  # in a row group
MOST_CHANNELS = 1024
LABEL_BYTES = 64  # approximate memory per row of labels or rejects

Hertz = Annotated[float, pydantic.Field(gt=0, le=1e6, allow_inf_nan=False)]
Hours = dict[str, float]
Words = Annotated[str, pydantic.Field(pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$")]  # printed on terminals


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="allow")


class Shard(_Part):
    path: str = pydantic.Field(pattern=r"^shards/[A-Za-z0-9_][A-Za-z0-9_.-]*\.parquet$")
    rows: int = pydantic.Field(ge=0)
    row_groups: tuple[Annotated[int, pydantic.Field(ge=0, le=MOST_ROWS)], ...]
    bytes: int = pydantic.Field(default=0, ge=0)
    sha256: str | None = pydantic.Field(default=None, pattern="^[0-9a-f]{64}$")
    rates: dict[str, tuple[Hertz, ...]] = {}
    hours: Hours = {}

    @pydantic.model_validator(mode="after")
    def _adds_up(self) -> Shard:
        if sum(self.row_groups) != self.rows:
            raise ValueError(f"{self.path}: its row groups hold {sum(self.row_groups)} rows, not {self.rows}")
        return self


class Manifest(_Part):
    """The fields of corpus.json that readers rely on; whoever reads a missing key reports it."""

    modalities: tuple[Literal["ppg", "ecg", "abp", "resp", "acc"], ...]
    shards: tuple[Shard, ...]
    hash: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    name: Words = ""
    source: Words = ""
    licence: Words = ""
    terms: Words = ""
    citation: Words = ""
    access: Words = "unknown"
    key_id: Words = ""
    id_space: Words = ""
    subjects_published: bool = False
    rates: dict[str, tuple[Hertz, ...]] = {}
    counts: dict[str, Any] = {}
    hours_in: Hours = {}
    hours_refused: Hours = {}
    rejects: dict[str, Hours] = {}
    bridged_gaps: dict[str, dict[str, float]] = {}
    moved: dict[str, dict[str, float]] = {}
    labels: dict[str, Any] = {}
    readings: dict[str, Literal["record", "value"]] = {}
    rejects_file: dict[str, Any] = {}


def corrupt(where: str, why: object) -> PlethoraError:
    """The error line for a file of a corpus that is not as written."""
    return PlethoraError(f"{where} is corrupt ({str(why).splitlines()[0]}): ingest it again, with --force")


def replaced(where: str, size: int | None, vouched: int) -> PlethoraError:
    """The error line for a shard whose size (None: unknown) differs from the manifest's."""
    found = "another size" if size is None else f"{size:,} bytes"
    return PlethoraError(
        f"{where} is corrupt, or was replaced ({found} where corpus.json states {vouched:,}): "
        f"ingest it again, with --force"
    )


# ---------------------------------------------------------------- Parquet


def check_group(footer: pq.FileMetaData, group: int, columns: list[str] | None) -> None:
    """ArrowInvalid if a row group is missing or would not fit into memory.

    Compressed size says nothing about decoded size: zeros shrink ten thousandfold, and one dictionary value
    can occur in every row.
    """
    if not 0 <= group < footer.num_row_groups:
        raise pa.ArrowInvalid(f"it has {footer.num_row_groups} row groups, number {group} is asked for")
    about = footer.row_group(group)
    if about.num_rows > MOST_ROWS:
        raise pa.ArrowInvalid(f"a row group of {about.num_rows:,} rows")
    if about.total_byte_size * max(about.num_rows, 1) <= MOST_BYTES:
        return  # pyarrow aborts the process over some damaged column metadata: read it only where needed
    total = 0
    for i in range(about.num_columns):
        column = about.column(i)
        if columns is None or column.path_in_schema in columns:
            words = column.physical_type == "BYTE_ARRAY" and any("DICT" in e for e in column.encodings)
            total += column.total_uncompressed_size * (about.num_rows if words and _heavy(column) else 1)
    if total > MOST_BYTES:
        raise pa.ArrowInvalid(f"a row group that unpacks to {total / 2**30:,.1f} GiB")


def _heavy(column: Any) -> bool:
    """Waveforms; only our own writer makes dictionaries of words."""
    return column.path_in_schema in MODALITIES or column.total_uncompressed_size > 2**20


def check_table(file: pq.ParquetFile) -> None:
    """ArrowInvalid if labels or rejects would take more than half of this machine's memory."""
    rows = file.metadata.num_rows
    if rows * LABEL_BYTES > memory_bytes() / 2:
        raise pa.ArrowInvalid(f"{rows:,} rows, more than this machine's memory can take")


# ---------------------------------------------------------------- rows


def check_rows(table: pa.Table) -> None:
    """ArrowInvalid names the first column of a row group (see `schema.row_schema`) with invalid values.

    For the columns present: subjects are 16 to 64 hex digits; times are finite; where a modality is present,
    its rate, scale and offset are finite, rate and scale not 0, and its samples last as long as the row says
    (to one and a half samples).
    """
    there = set(table.column_names)
    if "subject" in there:
        good = pc.match_substring_regex(table["subject"], "^[0-9a-f]{16,64}$")
        _all("subject", pc.fill_null(good, False).to_numpy(zero_copy_only=False))
    start, duration = (_numbers(table, name) if name in there else None for name in ("start_s", "duration_s"))
    if start is not None:
        _all("start_s", np.isfinite(start) & (np.abs(start) < 1e12))
    if duration is not None:
        _all("duration_s", np.isfinite(duration) & (duration >= 0) & (duration < 1e9))
    for m in MODALITIES:
        _check_modality(table, m, there, duration)


def _check_modality(table: pa.Table, m: str, there: set[str], duration: np.ndarray | None) -> None:
    if m in there:
        valid = table[m].is_valid().to_numpy(zero_copy_only=False)
    elif f"{m}_rate" in there:
        valid = table[f"{m}_rate"].is_valid().to_numpy(zero_copy_only=False)
    else:
        return
    found = {
        p: _numbers(table, m + p)[valid]
        for p in ("_rate", "_scale", "_offset", "_channels")
        if m + p in there
    }
    if "_rate" in found:
        _all(f"{m}_rate", np.isfinite(found["_rate"]) & (found["_rate"] > 0) & (found["_rate"] <= 1e6))
    if "_scale" in found:
        size = np.abs(found["_scale"])
        _all(f"{m}_scale", np.isfinite(size) & (size > 0) & (size < 1e30))
    if "_offset" in found:
        _all(f"{m}_offset", np.isfinite(found["_offset"]) & (np.abs(found["_offset"]) < 1e30))
    if "_channels" in found:
        _all(f"{m}_channels", (found["_channels"] >= 1) & (found["_channels"] <= MOST_CHANNELS))
    if m in there and "_channels" in found:
        size = _numbers(pa.table({m: pc.binary_length(table[m])}), m)[valid]
        frame = 2 * found["_channels"]
        _all(m, size % frame == 0)
        if "_rate" in found and duration is not None:
            _all(m, np.abs(size / frame - found["_rate"] * duration[valid]) <= 1.5)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column as (rows,) float64, NaN where null."""
    return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)


def _all(column: str, good: np.ndarray) -> None:
    if not good.all():
        raise pa.ArrowInvalid(f"column {column!r} holds an invalid value in row {int(np.argmin(good))}")
