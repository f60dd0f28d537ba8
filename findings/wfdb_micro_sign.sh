#!/bin/sh
# wfdb (PhysioNet's Python package) reads a header's unit µV as V, and says nothing.
# One would guess: the unit as it is written, or an error. header(5) allows any characters but blanks in a unit.
# wfdb 4.3.1 decodes headers as ASCII and drops what is not: an ECG becomes a million times too large.
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check wfdb==4.3.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version
from pathlib import Path

import numpy as np
import wfdb

samples = np.array([0, 500, -500, 900], "<i2")
samples.tofile("one.dat")
Path("one.hea").write_text(f"one 1 250 4\none.dat 16 1/\u00b5V 16 0 0 {int(samples.sum())} 0 II\n", encoding="utf-8")
unit = wfdb.rdheader("one").units[0]
record = wfdb.rdrecord("one")
print(f"wfdb {version('wfdb')}: written 900 \u00b5V, read {record.p_signal[3, 0]:g} {record.units[0]}")
assert (unit, record.units[0], record.p_signal[3, 0]) == ("V", "V", 900.0), (unit, record.units)
PY
