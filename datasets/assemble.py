"""Shards and parts → a corpus: prepares the folder, then writes side tables, checks the ledger and writes the
manifest. corpus.json is written last, so an interrupted run leaves no corpus.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import PlethoraError
from cluster.redact import printable
from datasets import schema
from datasets.write import PARTS_DIR, ParquetFile, ShardReport, part_uri

_OURS = (f"{schema.SHARDS_DIR}/", f"{PARTS_DIR}/", schema.LABELS_FILE, schema.REJECTS_FILE, schema.MANIFEST)
_OF_A_KILLED_WRITE = (f".{schema.MANIFEST}.",)


def prepare(out: str, force: bool = False) -> dict | None:
    """Prepare `out`: returns the manifest of a finished corpus there (which stays), else None.

    Removes the leftovers of an unfinished corpus and, with `force`, a finished one. Raises PlethoraError if
    the folder holds foreign files.
    """
    there = storage.listing(out)
    strange = [name for name in there if not name.startswith(_OURS + _OF_A_KILLED_WRITE)]
    if strange:
        raise PlethoraError(
            f"{out} is not empty and holds {strange[0]}: choose an empty folder for the corpus"
        )
    if schema.MANIFEST in there:
        if not force:
            return storage.read_json(storage.join(out, schema.MANIFEST))
        storage.delete(storage.join(out, schema.MANIFEST))  # first: half a corpus must not look complete
    if there or storage.is_remote(out):  # a bucket may hold uploads that no listing shows
        storage.delete(out)
    return None


def finish(
    out: str, reports: Iterable[ShardReport], about: Mapping[str, Any]
) -> tuple[dict, dict[str, list[dict[str, str]]]]:
    """Merge the parts, check the ledger, write corpus.json; returns the manifest, and the problems and notes
    per record.

    `about`: the manifest's descriptive keys (source, licence, …, modalities, key_id, id_space, …).
    """
    ordered = sorted(reports, key=lambda r: r.index)
    labels = _merge(out, schema.LABELS_FILE, ordered, schema.LABELS)
    rejects = _merge(out, schema.REJECTS_FILE, ordered, schema.REJECTS)
    storage.delete(storage.join(out, PARTS_DIR))
    shards = [r.shard for r in ordered if r.shard]
    if not shards:
        raise PlethoraError(_nothing(out, ordered))
    hours_in = _hours(r.seconds_in for r in ordered)
    hours = _hours(r.kept for r in ordered)
    modalities = [m for m in about["modalities"] if m in hours_in]
    reasons = {m: _hours(r.refused.get(m, {}) for r in ordered) for m in modalities}
    refused = _hours({m: math.fsum(r.refused.get(m, {}).values()) for m in modalities} for r in ordered)
    for m in modalities:
        missing = hours_in[m] - hours.get(m, 0.0) - refused[m]
        if abs(missing) > 1e-6:
            raise RuntimeError(f"the ledger of {m} does not add up: {missing:+.9f} h")
    manifest: dict[str, Any] = {
        **about,
        "version": schema.VERSION,
        "modalities": modalities,
        "rates": {m: sorted({x for s in shards for x in s["rates"].get(m, [])}) for m in modalities},
        "counts": {
            "subjects": len({s for r in ordered for s in r.subjects}),
            "records": sum(r.records for r in ordered),
            "records_in": sum(r.records_in for r in ordered),
            "rows": sum(s["rows"] for s in shards),
            "labels": sum(labels["rows"].values()),
            "hours": {m: hours.get(m, 0.0) for m in modalities},
        },
        "hours_in": {m: hours_in[m] for m in modalities},
        "hours_refused": {m: refused[m] for m in modalities},
        "rejects": {m: reasons[m] for m in modalities if reasons[m]},
        "bridged_gaps": _bridged(ordered),
        **({"moved": moved} if (moved := _moved(ordered)) else {}),
        "labels": labels,
        "rejects_file": {"sha256": rejects["sha256"], "rows": sum(rejects["rows"].values())},
        "shards": shards,
    }
    manifest["hash"] = schema.content_hash(manifest)
    storage.write_json(storage.join(out, schema.MANIFEST), manifest)
    words = {
        "problems": [p for r in ordered for p in r.problems],
        "notes": [n for r in ordered for n in r.notes],
    }
    return manifest, words


def _nothing(out: str, reports: Sequence[ShardReport], shown: int = 10) -> str:
    causes = folded([problem for report in reports for problem in report.problems])
    more = [f"{len(causes) - shown} other causes"] if len(causes) > shown else []
    records = sum(report.records_in for report in reports)
    reasons = f": {'; '.join(causes[:shown] + more)}" if causes else ""
    return f"nothing to keep for {out}: every record was refused ({records:,} in all){reasons}"


def folded(problems: Iterable[Mapping[str, str]]) -> list[str]:
    """One line per detail, with the first record that has it and the number of others."""
    causes: dict[str, dict[str, str]] = {}
    for problem in problems:  # details that differ only by the record's name are one cause
        record, detail = problem["record"], problem["detail"]
        cause = re.sub(rf"(?<!\w){re.escape(record)}(?!\w)", "\0", detail)
        causes.setdefault(cause, {}).setdefault(record, detail)
    lines = []
    for details in causes.values():
        record, detail = next(iter(details.items()))
        others = len(details) - 1
        more = f" and {others:,} more record{'s' * (others > 1)}" if others else ""
        lines.append(f"{printable(record, 80)}{more}: {printable(detail)}")
    return lines


def _hours(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    known = list(parts)
    keys = sorted({key for part in known for key in part})
    return {key: round(math.fsum(part.get(key, 0.0) for part in known) / 3600, 9) for key in keys}


def _bridged(reports: Sequence[ShardReport]) -> dict[str, dict[str, float]]:
    names = sorted({m for r in reports for m in r.bridged})
    sums = {m: [sum(r.bridged.get(m, [0, 0])[i] for r in reports) for i in (0, 1)] for m in names}
    return {m: {"gaps": int(gaps), "seconds": round(seconds, 6)} for m, (gaps, seconds) in sums.items()}


def _moved(reports: Sequence[ShardReport]) -> dict[str, dict[str, float]]:
    """Modality -> the number of records in which samples were resampled to follow their clock, and the
    largest drift."""
    names = sorted({m for r in reports for m in r.moved})
    found = {m: [r.moved[m] for r in reports if m in r.moved] for m in names}
    return {
        m: {"records": sum(n for n, _ in each), "largest_s": round(max(s for _, s in each), 6)}
        for m, each in found.items()
    }


def _merge(out: str, file: str, reports: Sequence[ShardReport], columns: pa.Schema) -> dict[str, Any]:
    """One side table from its parts; labels get row groups by name, so that one name reads fast."""
    by_name = file == schema.LABELS_FILE
    rows: dict[str, int] = {}
    with ParquetFile(storage.join(out, file), columns) as merged:
        for name in sorted({name for r in reports for name in r.labels}) if by_name else ["rows"]:
            for report in reports:
                if by_name and name not in report.labels:
                    continue
                part = part_uri(out, file, report.index)
                fs, path = storage.filesystem(part)
                with storage.clear_errors(part), fs.open_input_file(path) as source:
                    side = pq.ParquetFile(source)
                    table = side.read_row_group(report.labels.index(name)) if by_name else side.read()
                if table.num_rows:
                    merged.write(table.cast(columns))
                    rows[name] = rows.get(name, 0) + table.num_rows
    return {"sha256": merged.sha256, "rows": rows}
