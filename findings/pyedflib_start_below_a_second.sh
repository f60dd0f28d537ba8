#!/bin/sh
# pyedflib: the start of an EDF+ recording is off by a third of a second where it begins between two seconds.
# One would guess: getStartdatetime() holds the fraction that starttime_subsecond holds (in 100 ns).
# pyedflib 0.1.42 gives 0.039453 s for a first annotation of +0.3945312; starttime_subsecond is right.
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyedflib==0.1.42 'numpy<3'
cd "$work"
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import pyedflib


def cells(*words_and_widths):
    return b"".join(word.ljust(width).encode() for word, width in words_and_widths)


signals = (("ECG", "uV", "-1000", "1000", "-32768", "32767", "100"),
           ("EDF Annotations", "", "-1", "1", "-32768", "32767", "20"))
widths = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
fields = [(s[0], "", s[1], s[2], s[3], s[4], s[5], "", s[6], "") for s in signals]
header = cells(("0", 8), ("X X X X", 80), ("Startdate 02-MAR-2021 X X X", 80), ("02.03.21", 8), ("01.02.03", 8),
               ("768", 8), ("EDF+C", 44), ("2", 8), ("1", 8), ("2", 4))
for i, width in enumerate(widths):
    header += cells(*((field[i], width) for field in fields))
body = b""
for record in range(2):
    body += np.zeros(100, "<i2").tobytes() + f"+{record + 0.3945312:.7f}\x14\x14\x00".encode().ljust(40, b"\x00")
open("one.edf", "wb").write(header + body)
with pyedflib.EdfReader("one.edf") as file:
    start, ticks = file.getStartdatetime(), file.starttime_subsecond
print(f"pyedflib {version('pyedflib')}: getStartdatetime() ends in {start.microsecond} us, "
      f"starttime_subsecond is {ticks} of 100 ns")
assert ticks == 3_945_312 and start.microsecond == 39_453, (ticks, start)
PY
