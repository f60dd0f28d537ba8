"""Labels of a whole record, from its text files, comments and variables."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.descriptor import FieldRule, Trace
from datasets.readers import marks
from datasets.readers.base import Labels, RecordFile


def split_words(cell: str, separator: str | None) -> list[str]:
    """The words of a cell without duplicates, and without a list's brackets and quotes (of
    {'NORM': 100.0, …} the quoted words); the whole cell if there is no `separator`.
    """
    if separator is None:
        return [cell]
    pieces = [piece.strip() for piece in cell.strip().strip("[](){}").split(separator)]
    quoted = [re.fullmatch(r"""(['"])(.*?)\1(\s*:\s*[-+.\w]*)?""", piece) for piece in pieces]
    return list(dict.fromkeys(q[2].strip() if q else p for p, q in zip(pieces, quoted, strict=True)))


def read(
    source: RecordFile,
    folder: Path,
    rules: tuple[FieldRule, ...],
    comments: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> tuple[list[Labels], list[str]]:
    """Labels of the whole record, and messages about those that could not be read (see `FieldRule`)."""
    labels, problems = [], []
    for rule in rules:
        text = "\n".join(comments)
        if rule.file:
            path = folder / rule.file.format(**source.groups)
            text = path.read_text(errors="replace") if path.is_file() else ""
        elif rule.variable:
            text = (variables or {}).get(rule.variable, "")
        found = re.search(rule.pattern, text, re.M)
        word = found.group(1).strip() if found else ""
        nothing = not rule.text and word not in rule.values and marks.is_nothing(word)
        if not word or word in rule.missing or nothing:
            continue
        if rule.text:
            words = [w for w in split_words(word, rule.split) if w and w not in rule.missing]
            labels += [Labels(rule.name, words, rule.unit)] if words else []
            continue
        try:
            value = rule.values[word] if word in rule.values else float(word)
        except ValueError:
            problems.append(f"label {rule.name}: {word!r} is not a number")
        else:
            labels.append(Labels(rule.name, np.array([value]), rule.unit))
    return labels, problems


def of_trace(rule: Trace, values: np.ndarray, began: float = 0.0) -> Labels:
    """The labels of a variable with a value a window; the first window begins at `began` (s)."""
    there = np.flatnonzero(np.isfinite(values))
    if not rule.words:
        start = there * rule.step_s + began
        return Labels(rule.name, values[there], rule.unit, start, start + rule.window_s)
    listed = [float(code) for code in rule.words]
    edges = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)  # NaN differs from everything
    last = np.append(edges[1:], len(values)) - 1
    kept = np.isin(values[edges], listed)
    word = dict(zip(listed, rule.words.values(), strict=True))
    names = [word[code] for code in values[edges[kept]].tolist()]
    start, end = edges[kept] * rule.step_s + began, last[kept] * rule.step_s + rule.window_s + began
    return Labels(rule.name, names, None, start, end)
