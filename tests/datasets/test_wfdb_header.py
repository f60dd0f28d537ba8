"""Headers are what wfdb makes of them, field by field."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb

from datasets.readers.wfdb_layout import rdheader


def wfdbs(path: Path) -> Any:
    return wfdb.rdheader(str(path.with_suffix("")))


def outcome(read: Any, path: Path) -> tuple:
    """What `read` makes of a header: its fields, or the exception it ends in."""
    try:
        header = read(path)
    except Exception as error:
        return type(error), str(error)
    return type(header), vars(header)


def test_real_headers_are_read_as_wfdb_reads_them(data: Path) -> None:
    paths = sorted(data.rglob("*.hea"))
    assert len(paths) > 100
    for path in paths:
        assert outcome(rdheader, path) == outcome(wfdbs, path), path


def drawn(rng: np.random.Generator) -> str:
    """A header with any of its fields left out, and now and then what should not be there."""

    def some(*choices: str) -> str:
        return str(rng.choice(choices))

    record = some("rec", "rec", "rec/2", "", "a b") + some(" 2", " 1", " 0", "", " x")
    record += some(" 125", " 62.5/10(3)", " 250.0", "", " -1") + some(" 100", "", " 0")
    record += some("", " 12:30:01", " 12:30:01.5 22/11/2026", " 99:99:99", " 7")
    lines = [record]
    for _ in range(rng.integers(0, 4)):
        line = some("rec.dat", "~", "rec.dat", "") + some(" 16", " 212x2:3+24", " 80", " 16x0", " f")
        line += some("", " 200", " 0", " 1.5e3(-7)/mV", " 100(3)", " /mmHg", " -2/%")
        line += some("", " 12", " 12 5", " 12 -5 7 -300 0 II", " 0 0 0 0 0 MCL 1", " 12 5 7 9 0 ")
        lines.append(line)
    for _ in range(rng.integers(0, 3)):
        lines.insert(int(rng.integers(0, len(lines) + 1)), some("# <age>: 5", "#", "", "  ", "# café"))
    return some("\n", "\r\n").join(lines) + some("", "\n")


@pytest.mark.parametrize("seed", range(4))
def test_drawn_headers_give_or_refuse_what_wfdb_gives_or_refuses(tmp_path: Path, seed: int) -> None:
    rng, path = np.random.default_rng(seed), tmp_path / "rec.hea"
    read = 0
    for _ in range(150):
        path.write_bytes(drawn(rng).encode())
        ours, theirs = outcome(rdheader, path), outcome(wfdbs, path)
        assert ours == theirs, path.read_text()
        read += isinstance(ours[1], dict)
    assert 20 < read < 150
