"""Small WFDB recordings with known samples, written by wfdb itself; and how tests read any recording."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb

from datasets.descriptor import Descriptor
from datasets.ingest import read_descriptor
from datasets.readers.base import RecordFile, Recording, Root

DESCRIPTOR = """
name = "little"
source = "made in a test"
licence = "none"
terms = "none"
citation = "none"
access = "open"
reader = "wfdb"
records = '(?P<record>r(?P<n>\\d+))\\.hea'
id_space = "little"
subjects_published = true

[subject]
file = "about/{n}.txt"
pattern = '^Subject: (\\S+)'

[signals.ppg]
channels = ["PLETH"]
rate = 100
unit = "au"
units = { NU = 1 }
required = true

[signals.abp]
channels = ["ABP", "ART"]
unit = "mmHg"
units = { mmHg = 1, kPa = 7.50062 }

[numerics]
record = "{record}n"
channels = { HR = { name = "hr", unit = "bpm" } }

[[fields]]
name = "age"
file = "about/{n}.txt"
pattern = '^Age: (\\S+)'
values = { "90+" = 90 }
missing = ["NaN"]
unit = "year"

[[fields]]
name = "ward"
pattern = '^Ward (\\S+)'
text = true
"""


def waves(seconds: float, rate: int, seed: int) -> np.ndarray:
    """(samples,) integers that look like a pulse and hold no flat or clipped stretch."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    return np.rint(4000 * np.sin(2 * np.pi * 1.2 * t) + rng.normal(0, 60, len(t))).astype(np.int64)


def write_record(
    folder: Path,
    n: int,
    subject: str,
    x: dict[str, np.ndarray],
    rate: float = 100,
    units: dict[str, str] | None = None,
    age: str = "50",
    gain: float = 200.0,
    baseline: int = 17,
) -> None:
    """One record `r<n>` with the given integer channels, its text file and its numerics (NaN at second 1)."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(x)
    default = {"PLETH": "NU", "ABP": "mmHg", "ART": "mmHg"} | (units or {})
    wfdb.wrsamp(
        f"r{n}",
        fs=rate,
        units=[default[name] for name in names],
        sig_name=names,
        d_signal=np.stack([x[name] for name in names], axis=1),
        fmt=["16"] * len(names),
        adc_gain=[gain] * len(names),
        baseline=[baseline] * len(names),
        comments=["Ward west"],
        write_dir=str(folder),
    )
    seconds = int(len(x[names[0]]) / rate)
    hr = 70.0 + np.arange(seconds)
    hr[1] = np.nan
    wfdb.wrsamp(
        f"r{n}n",
        fs=1,
        units=["bpm"],
        sig_name=["HR"],
        p_signal=hr[:, None],
        fmt=["16"],
        write_dir=str(folder),
    )
    (folder / "about").mkdir(exist_ok=True)
    (folder / "about" / f"{n}.txt").write_text(f"Subject: {subject}\nAge: {age}\n")


def little(folder: Path) -> tuple[Path, Path]:
    """Three sound records of two people; returns (descriptor, root)."""
    root = folder / "root"
    for n, subject in ((1, "id-ann"), (2, "id-bob"), (3, "id-ann")):
        write_record(root, n, subject, {"PLETH": waves(20, 100, n), "ABP": waves(20, 100, 10 + n)})
    return descriptor(folder), root


def descriptor(folder: Path, text: str = DESCRIPTOR) -> Path:
    path = folder / "little.toml"
    path.write_text(text)
    return path


def path_of(name: str) -> Any:
    """The fixture `path`: where `name` lies in a new `tmp_path`/root."""

    @pytest.fixture
    def path(tmp_path: Path) -> Path:
        (tmp_path / "root").mkdir()
        return tmp_path / "root" / name

    return path


@dataclass(frozen=True)
class Use:
    """What a reader makes of `folder`/root by the text of a descriptor: `text`, where a call names none."""

    reader: Any
    text: str

    def all(self, folder: Path, text: str | None = None) -> tuple[Descriptor, Root, list[RecordFile]]:
        known = read_descriptor(descriptor(folder, self.text if text is None else text))
        root = Root(str(folder / "root"))
        return known, root, self.reader.scan(root, known)

    def one(self, folder: Path, text: str | None = None) -> tuple[Descriptor, Root, RecordFile]:
        known, root, (source,) = self.all(folder, text)
        return known, root, source

    def load(self, known: Descriptor, root: Root, source: RecordFile) -> Recording:
        return self.reader.load(source, Path(root.uri), known)

    def sound(self, folder: Path, text: str | None = None) -> Recording:
        """The one record, of which nothing may be refused."""
        known, root, source = self.one(folder, text)
        assert not source.broken and not source.refused, (source.broken, source.words)
        return self.load(known, root, source)
