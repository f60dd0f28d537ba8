"""Labels and subjects from sheets and annotation files beside the recordings, the same for all readers."""

import dataclasses
import re
import string
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import PlethoraError
from datasets.descriptor import Column, Descriptor, Events, LabelTable, Lookup
from datasets.readers import fields, label_times, marks, sheets
from datasets.readers.base import Labels, RecordFile, Recording, Refused, Root
from datasets.readers.wfdb_header import read_header


def names(source: RecordFile) -> dict[str, str]:
    """Values for `{…}` in a file name or a match: the groups of `records`, subject, record, stem."""
    return {"stem": source.stem, **source.groups, "subject": source.subject, "record": source.record}


def shared(descriptor: Descriptor) -> list[str]:
    """Files that serve all records: those without `{…}` in their names."""
    return [
        f for f in _patterns(descriptor) if not any(field for _, field, *_ in string.Formatter().parse(f))
    ]


def _patterns(descriptor: Descriptor) -> list[str]:
    found = [rule.file for rule in descriptor.tables] + [rule.file for rule in descriptor.events]
    found += [descriptor.subject.table.file] if descriptor.subject.table else []
    return list(dict.fromkeys(found))


def complete(sources: Sequence[RecordFile], root: Root, descriptor: Descriptor) -> list[RecordFile]:
    """`sources` with their label files added, and with their subject if a sheet gives it."""
    if group := descriptor.subject.group:
        sources = [_grouped(s, group) for s in sources]
    patterns = _patterns(descriptor)
    if not patterns:
        return list(sources)
    rule = descriptor.subject.table
    with tempfile.TemporaryDirectory() as scratch:
        folder = root.fetch([rule.file], Path(scratch)) if rule else Path(scratch)
        try:
            return [s if s.broken else _complete(s, patterns, rule, root, folder) for s in sources]
        except KeyError as unknown:
            raise PlethoraError(
                f"{descriptor.name}: `records` has no group for {{{unknown.args[0]}}} of a file name or match"
            ) from None


def _grouped(source: RecordFile, group: str) -> RecordFile:
    if group in source.groups:
        return dataclasses.replace(source, subject=source.groups[group])
    return dataclasses.replace(source, broken=source.broken or ("no_subject", f"its path has no {group}"))


def _complete(
    source: RecordFile, patterns: Iterable[str], rule: Lookup | None, root: Root, folder: Path
) -> RecordFile:
    known = names(source)
    have = {name for name, _ in source.files}
    more = [name for p in patterns if (name := p.format(**known)) in root.sizes and name not in have]
    source = dataclasses.replace(source, files=(*source.files, *((n, root.sizes[n]) for n in more)))
    if rule is None:
        return source
    try:
        sheet = sheets.read(folder / rule.file, rule.header, rule.delimiter)
        rows = sheets.rows_by_key(sheet, rule.key).get(rule.match.format(**known), [])
        found = {sheet.column(rule.column)[i] for i in rows}
        if len(found) != 1 or found == {""}:
            raise Refused(
                "no_subject",
                f"{rule.file} names {len(found - {''})} subjects for {rule.match.format(**known)}",
            )
        return dataclasses.replace(source, subject=found.pop())
    except Refused as why:
        return dataclasses.replace(source, subject="", broken=("no_subject", why.detail))


def add(recording: Recording, source: RecordFile, folder: Path, common: Path, descriptor: Descriptor) -> None:
    """Add the labels of sheets and annotation files to `recording`; unreadable ones go to its problems.

    `folder` holds the record's own files, `common` those of `shared`.
    """
    everyones = set(shared(descriptor))
    label_times.shift(recording.labels, descriptor)
    rules: list[LabelTable | Events] = list(descriptor.tables)
    for rule in rules + list(descriptor.events):
        path = (common if rule.file in everyones else folder) / rule.file.format(**names(source))
        try:
            if isinstance(rule, LabelTable):
                labels, problems = _from_table(rule, path, source, recording)
                recording.problems += problems
            else:
                labels = [_events(rule, path, recording)]
            recording.labels += labels
            recording.problems += label_times.outside(labels, recording, path.name)
        except Refused as why:
            recording.problems.append(f"labels of {path.name}: {why.reason} ({why.detail})")


def _from_table(
    rule: LabelTable, path: Path, source: RecordFile, recording: Recording
) -> tuple[list[Labels], list[str]]:
    sheet = sheets.read(path, rule.header, rule.delimiter, rule.sheet, rule.skip)
    rows = list(range(sheet.length))
    timed = rule.timed
    who = rule.match.format(**names(source))
    if rule.key is not None:
        rows = sheets.rows_by_key(sheet, rule.key).get(who, [])
    if not rows:
        raise Refused("no_row", f"nothing for {who}")
    start, end = label_times.of_rows(rule, sheet, rows, path, recording) if timed else (None, None)
    labels, problems = [], []
    for title, column in rule.columns.items():
        cells = sheet.column(title)
        try:
            found = _label(column, [cells[i] for i in rows], start, end)
            labels += found if timed else [_whole(label, f"{len(rows)} rows for {who}") for label in found]
        except Refused as why:
            problems.append(f"label {column.name} of {path.name}: {why.reason} ({why.detail})")
        except ValueError as wrong:
            problems.append(f"label {column.name} of {path.name}: {wrong}")
    return labels, problems


def _label(rule: Column, words: list[str], start: Any, end: Any) -> list[Labels]:
    """The label of one column, without empty cells. ValueError: a cell is not a number."""
    if rule.split is not None:
        parts = [fields.split_words(word, rule.split) for word in words]
        if start is not None:
            start, end = (np.repeat(times, [len(p) for p in parts]) for times in (start, end))
        words = [word for part in parts for word in part]
    words = [rule.words.get(word, word) for word in words]
    nothing = ("",) if rule.text else marks.NOTHING
    kept = [
        i
        for i, w in enumerate(words)
        if w in rule.values or not (w in rule.missing or w.casefold() in nothing)
    ]
    if not kept:
        return []
    if rule.text:
        values: Any = [words[i] for i in kept]
    else:
        numbers = {i: rule.values[w] if (w := words[i]) in rule.values else sheets.number(w) for i in kept}
        kept = [i for i in kept if np.isfinite(numbers[i])]
        values = np.array([numbers[i] for i in kept])
    if start is None:
        return [Labels(rule.name, values, rule.unit)] if kept else []
    return [Labels(rule.name, values, rule.unit, start[kept], end[kept])]


def _whole(label: Labels, rows: str) -> Labels:
    """A label of the whole record from several rows: its distinct texts, or the number in all of them.

    Refused (two_rows): the numbers differ.
    """
    if isinstance(label.values, list):
        return dataclasses.replace(label, values=list(dict.fromkeys(label.values)))
    different = np.unique(label.values)
    if len(different) > 1:
        shown = ", ".join(f"{v:g}" for v in different[:5])
        raise Refused("two_rows", f"{rows} give {shown}, without times")
    return dataclasses.replace(label, values=different)


def readings(sources: Sequence[RecordFile], descriptor: Descriptor) -> dict[str, str]:
    """{label: "record" or "value"} for whole-record labels in sheets in which people have several rows:
    whether each row is of one record, or some serve several records, which then share its value.
    """
    found: dict[str, str] = {}
    for rule in descriptor.tables:
        if rule.timed:
            continue
        rows: dict[tuple[str, str], int] = {}
        try:
            for source in sources:
                known = names(source)
                row = (
                    source.subject or f"?{source.record}",
                    rule.file.format(**known) + "\0" + rule.match.format(**known),
                )
                rows[row] = rows.get(row, 0) + 1
        except KeyError:
            continue
        if len({subject for subject, _ in rows}) == len(rows):
            continue
        kind = "record" if max(rows.values()) == 1 else "value"
        found |= {column.name: kind for column in rule.columns.values()}
    return found


def _events(rule: Events, path: Path, recording: Recording) -> Labels:
    if rule.column is not None:
        sheet = sheets.read(path, rule.header, skip=rule.skip)
        empty = not rule.header and not sheet.length
        words = [] if empty else [w for w in sheet.column(" ".join(rule.column.split())) if w]
        if rule.rate is not None and rule.start_line is None and rule.clock != "record":
            at = label_times.samples(rule, words, rule.rate, path, recording)
        else:
            at = label_times.placed(rule, words, 1 / (rule.rate or 1.0), path, recording)
        texts = [rule.text or rule.column] * len(at)
    else:
        at, texts = _annotations(rule, path)
        at = at + rule.offset_s
    at_kept = np.isfinite(at)
    at, texts = at[at_kept], [t for t, keep in zip(texts, at_kept, strict=True) if keep]
    return Labels(rule.name, texts, None, at, at)


def _annotations(rule: Events, path: Path) -> tuple[np.ndarray, list[str]]:
    import wfdb

    if not path.is_file():
        raise Refused("missing_file", "it does not exist")
    try:
        found = wfdb.rdann(str(path.with_suffix("")), path.suffix[1:])
    except Exception as error:  # wfdb raises any error of its parsing
        raise Refused("corrupt", f"unreadable annotations ({error})") from error
    rate = rule.rate or _annotation_rate(path)
    if not rate:
        raise Refused("bad_rate", "neither the annotations nor the descriptor state their rate")
    notes = [note.strip("\0 ") for note in found.aux_note or []]
    words = [rule.text or note or symbol for note, symbol in zip(notes, found.symbol or [], strict=True)]
    kept = [i for i, symbol in enumerate(found.symbol or []) if not rule.symbols or symbol in rule.symbols]
    return np.asarray(found.sample, float)[np.array(kept, int)] / float(rate), [words[i] for i in kept]


def _annotation_rate(path: Path) -> float | None:
    """Ticks per second of an annotation file: as it states, else the record's frame rate."""
    stated = re.search(rb"## time resolution: ?([0-9.eE+-]+)", path.read_bytes()[:4096])
    try:
        return float(stated[1]) if stated else float(read_header(path.with_suffix(".hea")).rate or 0)
    except (Refused, ValueError):
        return None
