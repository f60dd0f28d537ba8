"""Small tables beside recordings (CSV, tab-separated text, workbooks, Parquet), as columns of strings."""

import csv
import functools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.readers import kinds, text
from datasets.readers.base import Refused
from datasets.readers.text import delimiter_of

LARGEST = 256 * 2**20  # bytes of XML in a workbook: some million cells


@dataclass(frozen=True, eq=False)
class Sheet:
    """`columns`: name -> its cells as strings, "" if empty. All columns have the same length."""

    name: str
    columns: dict[str, tuple[str, ...]]

    def column(self, name: str) -> tuple[str, ...]:
        """Cells of a column; Refused (missing_column) lists the existing ones."""
        if name not in self.columns:
            there = ", ".join(list(self.columns)[:20])
            raise Refused("missing_column", f"{self.name} has no column {name!r}; it has {there}")
        return self.columns[name]

    @property
    def length(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def read(
    path: Path, header: int = 1, delimiter: str | None = None, sheet: str | None = None, skip: int = 0
) -> Sheet:
    """The sheet at `path`, its names in line `header` (from 1; 0: they are 1, 2, …), and its cells `skip`
    lines after it. Refused: missing_file, corrupt, unsupported."""
    if not path.is_file():
        raise Refused("missing_file", f"{path.name} does not exist")
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size, header, delimiter, sheet, skip)


@functools.lru_cache(maxsize=8)
def _read(
    path: Path, _changed: int, _size: int, header: int, delimiter: str | None, sheet: str | None, skip: int
) -> Sheet:
    suffix = path.suffix.lower()
    rows: list[list[str]]
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            cells = {n: tuple(_word(v) for v in table[n].to_pylist()) for n in table.column_names}
            return Sheet(path.name, cells)
        if suffix in (".xlsx", ".xlsm"):
            rows = list(_workbook(path, sheet))
        elif words := kinds.no_text(path):
            raise Refused("unsupported", f"{path.name} is {words}")
        else:
            rows = list(_text(path, delimiter))
    except Refused:
        raise
    except Exception as error:  # csv, openpyxl and pyarrow raise any error of a broken file
        raise Refused(
            "corrupt", f"{path.name} cannot be read as a table ({kinds.plain(str(error))})"
        ) from error
    if len(rows) < header:
        raise Refused("corrupt", f"{path.name} has {len(rows)} lines, its names should be in line {header}")
    body = [row for row in rows[header + skip :] if any(row)]
    if header:
        names = [" ".join(cell.split()) for cell in rows[header - 1]]
    else:
        names = [str(i + 1) for i in range(max((len(row) for row in body), default=1))]
    twice = sorted({n for n in names if n and names.count(n) > 1})
    if twice:
        raise Refused("corrupt", f"{path.name} has two columns named {twice[0]!r}")
    odd = next((i for i, row in enumerate(body) if len(row) > len(names) and any(row[len(names) :])), None)
    if odd is not None:
        commas = "; does it write decimal commas? Then export it again with points"
        raise Refused("corrupt", f"{path.name}: row {odd + 1} has more cells than there are names{commas}")
    _check_nameless(path.name, names, body)
    columns = {
        name: tuple(row[i] if i < len(row) else "" for row in body) for i, name in enumerate(names) if name
    }
    return Sheet(path.name, columns)


def _check_nameless(file: str, names: list[str], body: list[list[str]]) -> None:
    """Refused (decimal_comma): an unnamed last column that a decimal comma may have split off."""
    last = len(names) - 1
    if last < 1 or names[last]:
        return
    pairs = [(row[last - 1], row[last]) for row in body if len(row) > last and row[last]]
    if pairs and all(text.DIGITS.fullmatch(a) and b.isdigit() for a, b in pairs):
        raise Refused(
            "decimal_comma",
            f"{file}: the last column has no name, and '{','.join(pairs[0])}' may be one number with a "
            "decimal comma: export it again with points, or name the column",
        )


def _text(path: Path, delimiter: str | None) -> Iterator[list[str]]:
    with text.open_text(path) as file:
        for row in csv.reader(file, delimiter=delimiter_of(path.name, delimiter)):
            yield [cell.strip() for cell in row]


def _workbook(path: Path, sheet: str | None) -> Iterator[list[str]]:
    import openpyxl

    with zipfile.ZipFile(path) as held:
        size = sum(member.file_size for member in held.infolist())
    if size > LARGEST:
        raise Refused("corrupt", f"{path.name} unpacks to {size / 2**20:,.0f} MiB: give large tables as CSV")
    book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
    try:
        if sheet is not None and sheet not in book.sheetnames:
            raise Refused(
                "missing_column", f"{path.name} has no sheet {sheet!r}: {', '.join(book.sheetnames)}"
            )
        for row in book[sheet or book.sheetnames[0]].iter_rows(values_only=True):
            yield [_word(cell) for cell in row]
    finally:
        book.close()


def _word(cell: Any) -> str:
    """A cell as displayed: 45.0 is 45, an empty cell is ""."""
    if cell is None or (isinstance(cell, float) and cell != cell):
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return str(int(cell))
    return str(cell).strip()


@functools.lru_cache(maxsize=8)
def rows_by_key(sheet: Sheet, key: str) -> dict[str, list[int]]:
    """Value of column `key` -> its rows."""
    found: dict[str, list[int]] = {}
    for i, word in enumerate(sheet.column(key)):
        found.setdefault(word, []).append(i)
    return found


DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")


def number(word: str) -> float:
    """The number that `word` is. ValueError tells what to do about a decimal comma."""
    if DECIMAL_COMMA.fullmatch(word):
        raise ValueError(f"{word!r} has a decimal comma: write {word.replace(',', '.')!r}")
    try:
        if "_" in word:  # Python's digit grouping, which no table uses
            raise ValueError
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a number") from None
