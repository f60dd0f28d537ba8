"""A small descriptor of the reader `table`, and one way to read what it describes."""

from pathlib import Path

from datasets.ingest import read_descriptor
from datasets.readers import table
from datasets.readers.base import Root

DESCRIPTOR = """
name = "tables"
source = "made in a test"
licence = "none"
terms = "none"
citation = "none"
access = "open"
reader = "table"
records = '(?P<record>[a-z]+\\d+)\\.\\w+'
id_space = "tables"
subjects_published = true

[signals.ppg]
channels = ["ppg", "1"]
rate = 100
unit = "au"
source_unit = "count"
units = { count = 1 }
required = true
"""
ECG = """
[signals.ecg]
channels = ["ecg"]
rate = 100
unit = "mV"
source_unit = "uV"
units = { uV = 1e-3 }
"""


def described(folder: Path, text: str = DESCRIPTOR):
    path = folder.with_suffix(".toml")
    path.write_text(text)
    return read_descriptor(path)


def scan(folder: Path, text: str = DESCRIPTOR):
    known = described(folder, text)
    return known, table.scan(Root(str(folder)), known)


def one(folder: Path, text: str = DESCRIPTOR):
    """The only record below `folder`: (source, recording)."""
    known, (source,) = scan(folder, text)
    return source, table.load(source, folder, known)
