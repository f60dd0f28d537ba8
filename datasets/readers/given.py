"""Labels and subjects beside the recordings, in sheets and annotation files: the same for all readers."""

import dataclasses
import string
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import PlethoraError
from datasets.descriptor import Column, Descriptor, Events, LabelTable, Lookup
from datasets.readers import marks, sheets
from datasets.readers.base import Labels, Recording, Refused, Root, Source
from datasets.readers.sheets import Sheet


def names(source: Source) -> dict[str, str]:
    """What `{…}` in a file name or a match may stand for: the groups of `records`, subject, record, stem."""
    return {"stem": source.stem, **source.groups, "subject": source.subject, "record": source.record}


def shared(descriptor: Descriptor) -> list[str]:
    """Files that serve all records: those whose name holds no `{…}`."""
    return [
        f for f in _patterns(descriptor) if not any(field for _, field, *_ in string.Formatter().parse(f))
    ]


def _patterns(descriptor: Descriptor) -> list[str]:
    found = [rule.file for rule in descriptor.tables] + [rule.file for rule in descriptor.events]
    found += [descriptor.subject.table.file] if descriptor.subject.table else []
    return list(dict.fromkeys(found))


def complete(sources: Sequence[Source], root: Root, descriptor: Descriptor) -> list[Source]:
    """`sources` with their label files among their files, and their subject where a sheet knows it."""
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


def _grouped(source: Source, group: str) -> Source:
    if group in source.groups:
        return dataclasses.replace(source, subject=source.groups[group])
    return dataclasses.replace(source, broken=source.broken or ("no_subject", f"its path has no {group}"))


def _complete(
    source: Source, patterns: Iterable[str], rule: Lookup | None, root: Root, folder: Path
) -> Source:
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


def add(recording: Recording, source: Source, folder: Path, common: Path, descriptor: Descriptor) -> None:
    """Put the labels of sheets and annotation files into `recording`; what cannot be read into its problems.

    `folder` holds the record's own files, `common` those of `shared`.
    """
    everyones = set(shared(descriptor))
    rules: list[LabelTable | Events] = list(descriptor.tables)
    for rule in rules + list(descriptor.events):
        path = (common if rule.file in everyones else folder) / rule.file.format(**names(source))
        try:
            if isinstance(rule, LabelTable):
                labels, problems = _from_table(rule, path, source)
                recording.labels += labels
                recording.problems += problems
            else:
                recording.labels.append(_events(rule, path))
        except Refused as why:
            recording.problems.append(f"labels of {path.name}: {why.reason} ({why.detail})")


def _from_table(rule: LabelTable, path: Path, source: Source) -> tuple[list[Labels], list[str]]:
    sheet = sheets.read(path, rule.header, rule.delimiter, rule.sheet)
    rows = list(range(sheet.length))
    timed = rule.start is not None or rule.step_s is not None
    who = rule.match.format(**names(source))
    if rule.key is not None:
        rows = sheets.rows_by_key(sheet, rule.key).get(who, [])
    if not rows:
        raise Refused("no_row", f"nothing for {who}")
    if not timed and len(rows) > 1:
        raise Refused("two_rows", f"{len(rows)} rows for {who}, and no times")
    start, end = _times(rule, sheet, rows) if timed else (None, None)
    labels, problems = [], []
    for title, column in rule.columns.items():
        cells = sheet.column(title)
        try:
            labels += _label(column, [cells[i] for i in rows], start, end)
        except ValueError as wrong:
            problems.append(f"label {column.name} of {path.name}: {wrong}")
    return labels, problems


def _times(rule: LabelTable, sheet: Sheet, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    def column(name: str) -> np.ndarray:
        cells = sheet.column(name)
        try:
            return np.array([sheets.number(cells[i]) for i in rows]) * rule.unit_s
        except ValueError as wrong:
            raise Refused("corrupt", f"column {name}: {wrong}") from wrong

    start = column(rule.start) if rule.start is not None else np.arange(len(rows)) * float(rule.step_s or 0)
    end = column(rule.end) if rule.end is not None else start + float(rule.window_s or 0)
    if not (np.isfinite(start).all() and (end >= start).all()):
        raise Refused("bad_time", "a label ends before it starts")
    return start, end


def _label(rule: Column, words: list[str], start: Any, end: Any) -> list[Labels]:
    """The label of one column, without the cells that say nothing. ValueError: a cell that is no number."""
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


def _events(rule: Events, path: Path) -> Labels:
    if rule.column is not None:
        sheet = sheets.read(path)
        words = [w for w in sheet.column(" ".join(rule.column.split())) if w]
        try:
            at = np.array([sheets.number(w) for w in words]) / (rule.rate or 1.0)
        except ValueError as wrong:
            raise Refused("corrupt", str(wrong)) from wrong
        texts = [rule.text or rule.column] * len(at)
    else:
        at, texts = _annotations(rule, path)
    at_kept = np.isfinite(at)
    at, texts = at[at_kept], [t for t, keep in zip(texts, at_kept, strict=True) if keep]
    return Labels(rule.name, texts, None, at, at)


def _annotations(rule: Events, path: Path) -> tuple[np.ndarray, list[str]]:
    import wfdb

    if not path.is_file():
        raise Refused("missing_file", "it is not there")
    try:
        found = wfdb.rdann(str(path.with_suffix("")), path.suffix[1:])
    except Exception as error:  # wfdb raises whatever its parsing runs into
        raise Refused("corrupt", f"unreadable annotations ({error})") from error
    rate = rule.rate or found.fs
    if not rate:
        raise Refused("bad_rate", "neither the annotations nor the descriptor say at which rate they count")
    notes = [note.strip("\0 ") for note in found.aux_note or []]
    words = [rule.text or note or symbol for note, symbol in zip(notes, found.symbol or [], strict=True)]
    kept = [i for i, symbol in enumerate(found.symbol or []) if not rule.symbols or symbol in rule.symbols]
    return np.asarray(found.sample, float)[np.array(kept, int)] / float(rate), [words[i] for i in kept]
