"""Text files of columns, also compressed (.gz), and how their cells are parsed as numbers."""

import csv
import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from datasets.descriptor import Table
from datasets.readers import kinds, marks
from datasets.readers.base import Refused

LARGEST = 2 * 2**30  # maximum size of a decompressed text, bytes
COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
DIGITS = re.compile(r"[-+]?\d+")
WHOLE, PART = r"^[-+]?\d+$", r"^\d+([eE][-+]?\d+)?$"  # the two cells that a decimal comma makes of 12,50
Choices = Sequence[tuple[str, ...]]  # a signal's possible channels; the first one present is read


def bare(name: str) -> str:
    """A file name in lower case, without .gz."""
    return name.lower().removesuffix(".gz")


def delimiter_of(name: str, given: str | None, decimal: str = ".") -> str:
    """The delimiter: as given, else a tab in .tsv and .txt files, a semicolon if numbers have decimal commas,
    and a comma otherwise."""
    if given:
        return given
    if bare(name).endswith((".tsv", ".txt")):
        return "\t"
    return ";" if decimal == "," else ","


class _Bounded(gzip.GzipFile):
    """A compressed text that is read up to `LARGEST` bytes at most."""

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(LARGEST + 1 if size is None or size < 0 else size))

    def read1(self, size: int = -1) -> bytes:
        return self._checked(super().read1(size))

    def _checked(self, data: bytes) -> bytes:
        if self.tell() > LARGEST:
            raise Refused("corrupt", f"it unpacks to more than {LARGEST / 2**30:g} GiB: cut the recording")
        return data


def _bytes(path: Path) -> IO[bytes]:
    return _Bounded(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def open_text(path: Path) -> io.TextIOWrapper:
    """The lines of a text, with their line ends unchanged."""
    return io.TextIOWrapper(_bytes(path), encoding="utf-8-sig", errors="replace", newline="")


def names(path: Path, spec: Table, delimiter: str) -> tuple[list[str], int, int]:
    """A text file's column names ("" for columns without one), how many of the last columns may be mere
    trailing delimiters, and how many of those the header line lacks. Names come from line `spec.header`, or
    are 1, 2, … if there is no header."""
    body, found, first = spec.header + spec.skip, [], None
    at = -1
    with open_text(path) as file:
        for at, cells in enumerate(csv.reader(file, delimiter=delimiter)):
            if at == spec.header - 1:
                found = [" ".join(c.split()) for c in cells]
            if at >= body and cells:
                first = cells
                break
    if at < max(spec.header - 1, 0) or (not spec.header and first is None):
        raise Refused("corrupt", f"it ends before line {max(spec.header, spec.skip + 1)}")
    if not spec.header:
        found = [str(i + 1) for i in range(len(first or []))]
    extra, beyond = len(found) - len(_cut(found)), 0
    if first is not None and len(first) > len(found) and not any(_cut(first[len(found) :])):
        beyond = len(first) - len(found)
        extra += beyond
        found += [""] * beyond
    elif first is not None and len(first) < len(found) and extra >= len(found) - len(first):
        extra -= len(found) - len(first)
        found = found[: len(first)]
    if not spec.header and first is not None:
        extra = len(first) - len(_cut(first))
    return found, min(extra, len(found) - 1), beyond


def _cut(cells: Sequence[str]) -> list[str]:
    """`cells` without the empty ones at the end."""
    held = list(cells)
    while held and not held[-1].strip():
        held.pop()
    return held


def read(path: Path, spec: Table, wanted: Sequence[Choices]) -> tuple[pa.Table, str]:
    """A text file's columns as strings, and its delimiter. Refused: corrupt, decimal_comma."""
    delimiter = delimiter_of(path.name, spec.delimiter, spec.decimal)
    named, extra, beyond = names(path, spec, delimiter)
    unique = [name or f"({i + 1})" for i, name in enumerate(named)]
    if len(set(unique)) < len(unique):
        raise Refused("corrupt", "two columns have the same name")
    try:
        with _bytes(path) as file:
            table = pyarrow.csv.read_csv(
                file if bare(path.name) != path.name.lower() else path,
                pyarrow.csv.ReadOptions(
                    column_names=unique, skip_rows=spec.header + spec.skip, use_threads=False
                ),
                # in a file of one column, an empty line is a missing sample
                pyarrow.csv.ParseOptions(delimiter=delimiter, ignore_empty_lines=len(unique) - extra > 1),
                # read as bytes, so that a note in another encoding does not break the other columns
                pyarrow.csv.ConvertOptions(column_types={n: pa.binary() for n in unique}),
            )
    except pa.ArrowInvalid as broken:
        hint = f"; {_advice(spec, delimiter)}" if delimiter == "," and "columns, got" in str(broken) else ""
        raise Refused("corrupt", f"{kinds.plain(str(broken))}{hint}") from broken
    for name in reversed(unique[len(unique) - extra :]):  # trailing delimiters make no column
        if not _empty(table[name]):
            break
        table = table.drop_columns([name])
    kept = table.num_columns
    if kept > len(named) - beyond:
        raise Refused("corrupt", f"a row has more cells than there are names in line {spec.header}")
    if delimiter == "," and spec.decimal == ".":
        pairs = [(i, i + 1) for i in range(0, kept - 1, 2)] if not spec.header and kept % 2 == 0 else []
        if spec.header and kept > 1 and not named[kept - 1]:
            pairs = [(kept - 2, kept - 1)]
        if not spec.header and kept % 2 and kept > 1 and "decimal" not in spec.model_fields_set:
            for counter in range(0, kept, 2):  # integers among numbers with decimal commas
                rest = [i for i in range(kept) if i != counter]
                _check_commas(
                    [(table.column(a), table.column(b)) for a, b in zip(rest[::2], rest[1::2], strict=True)],
                    spec,
                    delimiter,
                    kept,
                )
        _check_commas(
            [(table.column(a), table.column(b)) for a, b in pairs],
            spec,
            delimiter,
            0 if spec.header else _last(table.column_names, wanted),
        )
    return table, delimiter


def _empty(column: pa.ChunkedArray) -> bool:
    return not pc.any(pc.match_substring_regex(words(column), r"\S")).as_py()


def words(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Bytes as strings. Refused if they are not UTF-8."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    try:
        return whole.cast(pa.string())
    except pa.ArrowInvalid as broken:
        raise Refused(
            "corrupt", f"text that is not UTF-8 among its numbers ({kinds.plain(str(broken))})"
        ) from broken


def _last(there: Sequence[str], wanted: Sequence[Choices]) -> int:
    """The largest number of an unnamed column that is read."""
    read = [next((c for c in choices if set(c) <= set(there)), ()) for choices in wanted]
    return max((int(name) for choice in read for name in choice if name.isdecimal()), default=0)


def _check_commas(pairs: Sequence[tuple[pa.Array, pa.Array]], spec: Table, delimiter: str, last: int) -> None:
    """Refused (decimal_comma) if the cells of every pair of columns may be the two parts of one number.

    0,07 can only be one number; 12,50 may be two. Then the descriptor must say which, or read a column that
    would not exist otherwise (`last`).
    """
    first = words(pairs[0][0].slice(0, 1)) if pairs else []
    if not len(first) or not DIGITS.fullmatch((first[0].as_py() or "").strip()):  # decides most files cheaply
        return
    proof = ""
    for whole, part in ((_before_comma(a), _behind_comma(b)) for a, b in pairs):
        if not len(whole) or not _all(whole, WHOLE) or not _all(part, PART):
            return
        if not proof and not _any(whole, r"^[-+]?0\d"):
            certain = pc.or_(
                pc.match_substring_regex(part, r"^0\d"), pc.match_substring_regex(whole, r"^[-+]0$")
            )
            row = pc.index(certain, True).as_py()
            proof = f"row {row + 1}: '{whole[row]},{part[row]}'" if row >= 0 else ""
    if proof:
        raise Refused(
            "decimal_comma", f"{proof} is one number with a decimal comma; {_advice(spec, delimiter)}"
        )
    if "decimal" not in spec.model_fields_set and last <= len(pairs):
        whole, part = _before_comma(pairs[0][0])[0], _behind_comma(pairs[0][1])[0]
        raise Refused(
            "decimal_comma",
            f"row 1: '{whole},{part}' is one number with a decimal comma or two numbers: say "
            f'decimal = "." in [table] of the descriptor if it is two; {_advice(spec, delimiter)}',
        )


def _before_comma(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Strings without leading blanks."""
    return pc.utf8_ltrim_whitespace(words(column))


def _behind_comma(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Strings without trailing blanks and semicolons."""
    return pc.utf8_rtrim(words(column), characters=" \t\r;")


def _all(words: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(words.fill_null(""), pattern)).as_py())


def _any(words: pa.Array, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(words, pattern)).as_py())


def row(path: Path, spec: Table) -> tuple[pa.Array, str]:
    """All cells of the file, line by line, and its delimiter, which may also end a line.

    Refused (decimal_comma).
    """
    delimiter = delimiter_of(path.name, spec.delimiter, spec.decimal)
    with open_text(path) as file:
        lines = file.read().splitlines()[spec.header + spec.skip :]
    cells = [
        cell for line in lines if line.strip() for cell in line.rstrip().rstrip(delimiter).split(delimiter)
    ]
    if delimiter == "," and spec.decimal == "." and len(cells) % 2 == 0:
        pair = pa.array(cells[::2], pa.string()), pa.array(cells[1::2], pa.string())
        _check_commas([pair], spec, delimiter, 0)
    return pa.array(cells, pa.string()), delimiter


def rows(path: Path, spec: Table) -> int:
    """How many samples an unreadable text would hold, as far as its lines can be counted."""
    delimiter = delimiter_of(path.name, spec.delimiter, spec.decimal)
    count, at = 0, -1
    try:
        with open_text(path) as file:
            for line in file:
                at += bool(line.strip())
                if at >= spec.header + spec.skip and line.strip():
                    count += 1 + (line.strip().count(delimiter) if spec.layout == "row" else 0)
    except (Refused, OSError, EOFError):  # a truncated compressed text: count what was read
        pass
    return count


def numbers(
    column: pa.ChunkedArray | pa.Array,
    spec: Table,
    delimiter: str,
    where: str,
    missing: Sequence[float | str] = (),
) -> np.ndarray:
    """Strings as float64, NaN for missing values. Refused names the first cell that is not a number.

    `missing`: strings and numbers that mark a missing value, in addition to the usual ones (`marks.NOTHING`).
    """
    cells = pc.utf8_trim_whitespace(words(column).fill_null(""))
    markers = {word.strip().casefold() for word in missing if isinstance(word, str)}
    try:  # most files hold only numbers and empty cells
        found = (
            pc.if_else(pc.equal(cells, ""), None, cells).cast(pa.float64()) if spec.decimal == "." else None
        )
    except pa.ArrowInvalid:
        found = None
    if found is None or markers:
        nothing = pc.is_in(pc.utf8_lower(cells), value_set=pa.array(sorted(marks.NOTHING | markers)))
        present = pc.if_else(nothing, None, cells)
        if spec.decimal == ",":
            _check_points(present, where)
            present = pc.replace_substring(present, ",", ".")
        try:
            found = present.cast(pa.float64())
        except pa.ArrowInvalid as broken:
            raise _no_number(cells, nothing, spec, delimiter, where) from broken
    x = found.to_numpy(zero_copy_only=False)
    return marks.without(x, missing)


def _check_points(words: pa.Array, where: str) -> None:
    at = pc.index(pc.match_substring(words, "."), True).as_py()
    if at >= 0:
        detail = f'{where}, row {at + 1}: {words[at].as_py()!r} has a point beside decimal = ","'
        raise Refused("decimal_comma", f"{detail}; export it again without points between thousands")


def _no_number(words: pa.Array, nothing: pa.Array, spec: Table, delimiter: str, where: str) -> Refused:
    for i, (word, empty) in enumerate(zip(words.to_pylist(), nothing.to_pylist(), strict=True)):
        if empty or is_number(word.replace(",", ".") if spec.decimal == "," else word):
            continue
        if COMMA.fullmatch(word):
            detail = f"{where}, row {i + 1}: {word!r} has a decimal comma; {_advice(spec, delimiter)}"
            return Refused("decimal_comma", detail)
        key = "if it marks a missing sample, add it to `missing` in [signals]"
        return Refused("corrupt", f"{where}, row {i + 1}: {word[:40]!r} is not a number: {key}")
    return Refused("corrupt", f"{where} holds values that are not numbers")


def is_number(word: str | None) -> bool:
    """Whether a string can be a number or is missing (null)."""
    try:
        pa.scalar(word).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _advice(spec: Table, delimiter: str) -> str:
    if delimiter == "," and spec.delimiter is None:
        return (
            'if it writes decimal commas, set decimal = "," in [table] (for one number a line, or semicolons '
            "between them), or export it again with points"
        )
    if delimiter == ",":
        return "if it writes decimal commas, export it again with points: commas also separate its columns"
    return 'set decimal = "," in [table] of the descriptor, or export it again with points'
