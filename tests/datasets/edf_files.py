"""EDF and BDF files written byte by byte, so that a header can say what a proper writer would not."""

from pathlib import Path

import numpy as np

from datasets.readers import edf as reader
from tests.datasets import recordings
from tests.datasets.recordings import waves

TEXT = """
name = "bent"
source = "made in a test"
licence = "none"
terms = "none"
citation = "none"
access = "open"
reader = "edf"
records = '(?P<record>n\\d+)\\.[eb]df'
id_space = "bent"
subjects_published = true
annotations = "note"

[signals.ecg]
channels = ["ECG"]
unit = "mV"
units = { uV = 1e-3, mV = 1 }
required = true
"""
USE = recordings.Use(reader, TEXT)
scan, load = USE.one, USE.sound


def signal(label="ECG", rate=100, low="-5", high="5", least="-32768", most="32767", unit="mV", seed=0):
    cells = {"label": label, "unit": unit, "low": low, "high": high, "least": least, "most": most}
    return {"rate": rate, "seed": seed, **cells}


def write(path: Path, signals, records=10, record_s="1", count=None, kind="EDF", tals=None, **cells):
    """A file of `records` data records; returns each signal's integers.

    `count`: data records by its header; `tals`: the bytes of each data record's annotations;
    `cells`: version, date, clock, patient, recording, reserved, start as the header states them.
    """
    depth, long = (3, 2**23 - 1) if kind == "BDF" else (2, 2**15 - 1)
    seconds = float(record_s.replace(",", "."))
    x, blocks = [], []
    for s in signals:
        n = round(s["rate"] * seconds)
        raw = waves(records * seconds, s["rate"], s["seed"])[: n * records] * (long // 4500)
        x.append(np.ascontiguousarray(raw))
        blocks.append(x[-1].astype("<i4").view(np.uint8).reshape(-1, 4)[:, :depth].reshape(records, -1))
    signals = list(signals)
    if tals is not None:
        size = depth * 40
        signals.append(signal(f"{kind} Annotations", 40 / seconds, "-1", "1", unit=""))
        padded = b"".join(tal.ljust(size, b"\0") for tal in tals)
        blocks.append(np.frombuffer(padded, np.uint8).reshape(records, size))

    def put(value, width):
        return (value if isinstance(value, bytes) else str(value).encode()).ljust(width)[:width]

    n = len(signals)
    head = put(cells.get("version", b"\xffBIOSEMI" if kind == "BDF" else "0"), 8)
    head += put(cells.get("patient", "X X X X"), 80) + put(cells.get("recording", "Startdate X X X X"), 80)
    head += put(cells.get("date", "02.03.21"), 8) + put(cells.get("clock", "22.15.30"), 8)
    head += put(cells.get("start", 256 * (n + 1)), 8) + put(cells.get("reserved", ""), 44)
    head += put(records if count is None else count, 8) + put(record_s, 8) + put(n, 4)
    columns = [
        (["label"], 16),
        ([], 80),
        (["unit"], 8),
        (["low"], 8),
        (["high"], 8),
        (["least"], 8),
        (["most"], 8),
        ([], 80),
        (["rate"], 8),
        ([], 32),
    ]
    for key, width in columns:
        for s in signals:
            value = "" if not key else s[key[0]]
            head += put(round(value * seconds) if key == ["rate"] else value, width)
    head += cells.get("padding", b"")
    path.write_bytes(head + np.concatenate(blocks, axis=1).tobytes() + cells.get("tail", b""))
    return x
