"""Times of labels: cells of a sheet → seconds from the record's first sample, whatever clock they use."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from datasets.descriptor import Clocked, Descriptor, LabelTable
from datasets.readers import moments, sheets
from datasets.readers.base import Labels, Recording, Refused
from datasets.readers.moments import DAY_S, EPOCH_S, Moments
from datasets.readers.sheets import Sheet, delimiter_of


def of_rows(
    rule: LabelTable, sheet: Sheet, rows: Sequence[int], path: Path, recording: Recording
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each of `rows`, s. Refused: bad_time, corrupt, bad_rate, missing_column."""

    def column(name: str) -> np.ndarray:
        cells = sheet.column(name)
        return placed(rule, [cells[i] for i in rows], rule.unit_s, path, recording, name)

    step_s = rule.step_s
    if rule.rate_line is not None:
        hz = float(moments.stated(path, rule.rate_line, delimiter_of(path.name, rule.delimiter)).s[0])
        if not 0 < hz < 1e9:
            raise Refused("bad_rate", f"line {rule.rate_line} says {hz:g} Hz: correct `rate_line`")
        step_s = 1 / hz
    if rule.start is not None:
        start = column(rule.start)
    else:
        begins = rule.offset_s + (_begins(rule, path, recording) or 0.0)
        start = np.arange(len(rows)) * (step_s or 0.0) + begins
    end = column(rule.end) if rule.end is not None else start + (rule.window_s or step_s or 0.0)
    if not (np.isfinite(start).all() and (end >= start).all()):
        raise Refused("bad_time", "a label ends before it starts")
    return start, end


def samples(rule: Clocked, cells: Sequence[str], rate: float, path: Path, recording: Recording) -> np.ndarray:
    """Sample numbers in `cells`, counted from the record's first, as seconds. Refused."""
    counted = rule.model_copy(update={"clock": "start", "offset_s": 0.0})
    return placed(counted, cells, 1.0, path, recording) / rate + rule.offset_s


def placed(
    rule: Clocked, cells: Sequence[str], unit_s: float, path: Path, recording: Recording, column: str = ""
) -> np.ndarray:
    """The times in `cells` as seconds from the record's first sample; NaN for empty cells. Refused."""
    try:
        found = moments.read(pa.array(cells, pa.string()), unit_s)
    except Refused as why:
        where = f"column {column}" if column else "its times"
        for cell in cells:
            if sheets.DECIMAL_COMMA.fullmatch(cell):
                raise Refused("corrupt", f"{where}: {cell!r} has a decimal comma: write a point") from why
        raise Refused(why.reason, f"{where}, {why.detail}") from why
    if (begins := _begins(rule, path, recording)) is not None and found.kind == "number":
        return found.s + begins + rule.offset_s
    return _on_record(rule, found, recording) + rule.offset_s


def _begins(rule: Clocked, path: Path, recording: Recording) -> float | None:
    """The start of a label file that states one, s from the record's first sample."""
    if rule.start_line is None:
        return None
    delimiter = delimiter_of(path.name, getattr(rule, "delimiter", None))
    found = moments.stated(path, rule.start_line, delimiter)
    return float(_on_record(rule.model_copy(update={"clock": "record"}), found, recording)[0])


def _on_record(rule: Clocked, found: Moments, recording: Recording) -> np.ndarray:
    """Times as seconds from the record's first sample. Refused (bad_time): the record has no such clock."""
    origin = recording.origin
    if rule.clock == "start" or not len(found.s):
        if found.kind == "date":
            raise Refused("bad_time", 'dates do not count from the record\'s start: drop clock = "start"')
        return found.s
    if found.kind == "number" and rule.clock is None:
        own = origin is not None and recording.kind == "number" and origin < EPOCH_S
        if not own and not (np.nan_to_num(found.s) >= EPOCH_S).any():
            return found.s
    if origin is None:
        raise Refused(
            "bad_time",
            "the record states no time to which these could refer: give times from its start "
            '(clock = "start")',
        )
    dated = recording.kind == "date" or (recording.kind == "number" and origin >= EPOCH_S)
    if found.kind == "clock":
        if not dated and recording.kind != "clock":
            raise Refused(
                "bad_time", 'times of day, but the record\'s clock shows none: is it clock = "start"?'
            )
        # a record of a day or less: its labels are within a day of its start
        return np.round((found.s - origin - (recording.zone_s or 0.0)) % DAY_S, 6)
    if found.kind == "date" and not dated:
        raise Refused("bad_time", "dates, but the record's clock shows none: give times from its start")
    at = found.s
    if found.kind == "date" and recording.kind == "date":
        if recording.zone_s is None and found.zone_s is not None:
            at = at + found.zone_s  # both as shown by the wall clock
        elif recording.zone_s is not None and found.zone_s is None:
            at = at - recording.zone_s
    return np.round(at - origin, 6)


def shift(labels: Iterable[Labels], descriptor: Descriptor) -> None:
    """Add `offset_s` to the labels that the reader itself made: numerics and traces."""
    by_name = {trace.name: trace.offset_s for trace in descriptor.traces if trace.offset_s}
    if (numerics := descriptor.numerics) and numerics.offset_s:
        by_name |= {named.name: numerics.offset_s for named in numerics.channels.values()}
    for label in labels:
        if label.name in by_name and label.start_s is not None and label.end_s is not None:
            label.start_s, label.end_s = (t + by_name[label.name] for t in (label.start_s, label.end_s))


def outside(labels: Iterable[Labels], recording: Recording, file: str) -> list[str]:
    """Messages about labels that lie entirely before the record's first sample or after its last."""
    if not recording.signals:
        return []
    whole = max(len(s.x_tc) / float(s.rate) for s in recording.signals.values())
    found = []
    for label in labels:
        if label.start_s is None or label.end_s is None or not len(label.start_s):
            continue
        off = (label.end_s < 0) | (label.start_s >= whole)
        if off.any():
            found.append(
                f"label {label.name} of {file}: {int(off.sum()):,} of {len(off):,} lie outside the record (0 "
                f"to {whole:g} s; one at {label.start_s[off][0]:g} s): are `clock`, `offset_s` and the "
                "unit of its times right?"
            )
    return found
