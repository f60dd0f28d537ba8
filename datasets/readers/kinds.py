"""The type of a file, from its first bytes, and what to do with it: for messages and for `probe`."""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from cluster.redact import printable

HEAD = 4096  # bytes that are inspected


@dataclass(frozen=True)
class Kind:
    """A type of file: `name` with its article; the `reader` for it (None: none), else `advice`.

    `suffix`: the file ending by which the reader `table` recognises it.
    """

    name: str
    reader: str | None = None
    advice: str = ""
    suffix: str = ""

    def __str__(self) -> str:
        advice = f'read it with reader = "{self.reader}"' if self.reader else self.advice
        return f"{self.name}: {advice}"


UNPACK = "unpack it first"
EXPORT = "no reader reads it: export it as EDF, WFDB or CSV"
NO_WAVES = "it holds no recording"
XML = 'no reader reads it: write its samples as CSV and read them with reader = "table"'

PICKLE = Kind("a Python pickle", "table", "", ".pkl")  # of arrays: datasets/readers/pickles.py

# (place, bytes there, type); the first match applies
MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"0       ", Kind("an EDF file", "edf")),
    (0, b"\xffBIOSEMI", Kind("a BDF file", "edf")),
    (0, b"ISHNE1.0", Kind("an ISHNE Holter ECG", "ishne")),
    (0, b"ANN  1.0", Kind("annotations of an ISHNE Holter ECG", None, "read the ECG file beside it")),
    (128, b"DICM", Kind("a DICOM file", "dicom")),
    (0, b"MATLAB ", Kind("a MATLAB file", "mat")),
    (0, b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file", "table", "", ".h5")),
    (512, b"\x89HDF\r\n\x1a\n", Kind("a MATLAB file (v7.3)", "mat")),
    (0, b"\x93NUMPY", Kind("a NumPy array (.npy)", "table", "", ".npy")),
    (0, b"PAR1", Kind("a Parquet file", "table", "", ".parquet")),
    (0, b"ARROW1", Kind("an Arrow (Feather) file", None, 'write it as Parquet and use reader = "table"')),
    (0, b"FEA1", Kind("a Feather file", None, 'write it as Parquet and use reader = "table"')),
    (0, b"Obj\x01", Kind("an Avro file", "empatica")),
    (0, b"GDF 1", Kind("a GDF file", None, EXPORT)),
    (0, b"GDF 2", Kind("a GDF file", None, EXPORT)),
    (16, b"SCPECG", Kind("an SCP-ECG file", None, EXPORT)),
    (14, b"SCPECG", Kind("an SCP-ECG file", None, EXPORT)),
    (0, b"CFWB", Kind("a LabChart binary file", None, EXPORT)),
    (0, b"TDSm", Kind("a LabVIEW TDMS file", None, EXPORT)),
    (
        8,
        b".FIT",
        Kind("a Garmin FIT file", None, "no reader reads it: convert it to CSV with its maker's SDK"),
    ),
    (0, b"CDF\x01", Kind("a NetCDF file", None, 'write it as HDF5 and use reader = "table"')),
    (0, b"CDF\x02", Kind("a NetCDF file", None, 'write it as HDF5 and use reader = "table"')),
    (0, b"$FL", Kind("an SPSS file", None, "write it as CSV or Parquet")),
    (0, b"<stata_dta>", Kind("a Stata file", None, "write it as CSV or Parquet")),
    (0, b"RDX", Kind("an R data file", None, "write it as CSV or Parquet")),
    (0, b"RIFF", Kind("a WAV or AVI file", None, "write its samples as CSV or NPZ")),
    (
        0,
        b"fLaC",
        Kind("a FLAC file", None, 'where a WFDB header (.hea) names it, use reader = "wfdb"'),
    ),
    (0, b"OggS", Kind("an Ogg file", None, NO_WAVES)),
    (0, b"SQLite format 3\x00", Kind("an SQLite database", None, "write its tables as CSV or Parquet")),
    (
        0,
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        Kind("an old Office file (.xls)", None, "save it as .xlsx or CSV"),
    ),
    (0, b"%PDF", Kind("a PDF", None, NO_WAVES)),
    (0, b"\x89PNG", Kind("a picture (PNG)", None, NO_WAVES)),
    (0, b"\xff\xd8\xff", Kind("a picture (JPEG)", None, NO_WAVES)),
    (0, b"GIF8", Kind("a picture (GIF)", None, NO_WAVES)),
    (0, b"II*\x00", Kind("a picture (TIFF)", None, NO_WAVES)),
    (0, b"MM\x00*", Kind("a picture (TIFF)", None, NO_WAVES)),
    *((0, b"\x80" + bytes([version]), PICKLE) for version in (2, 3, 4, 5)),
    (0, b"ORC", Kind("an ORC file", None, 'write it as Parquet and use reader = "table"')),
    (0, b"BZh", Kind("a bzip2 archive", None, UNPACK)),
    (0, b"\xfd7zXZ\x00", Kind("an xz archive", None, UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", Kind("a Zstandard archive", None, UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive", None, UNPACK)),
    (0, b"Rar!", Kind("a RAR archive", None, UNPACK)),
    (257, b"ustar", Kind("a tar archive", None, UNPACK)),
    (0, b"\xff\xfe", Kind("text in UTF-16", None, "save it as UTF-8")),
    (0, b"\xfe\xff", Kind("text in UTF-16", None, "save it as UTF-8")),
)

# Text that is not a table, by a pattern near its beginning.
TEXTS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (
        re.compile(r"<HealthData|DOCTYPE HealthData"),
        Kind(
            "an Apple Health export",
            None,
            'no reader reads its XML; the ECGs lie in electrocardiograms/*.csv, which reader = "table" reads',
        ),
    ),
    (re.compile(r"<AnnotatedECG"), Kind("an HL7 annotated ECG", None, XML)),
    (re.compile(r"<RestingECG"), Kind("a GE MUSE ECG", None, XML)),
    (re.compile(r"<restingecgdata"), Kind("a Philips ECG", None, XML)),
    (re.compile(r"<TrainingCenterDatabase|<gpx[\s>]"), Kind("a training log (TCX or GPX)", None, NO_WAVES)),
    (re.compile(r"\A\s*Brain Vision"), Kind("a BrainVision header", None, EXPORT)),
    (re.compile(r"\A\s*<\?xml|\A\s*<!DOCTYPE|\A\s*<html", re.I), Kind("an XML or HTML file", None, XML)),
    (re.compile(r"\A\[Params\]"), Kind("a Polar HRM file", None, "it holds a pulse and no waveform")),
    (re.compile(r'\A\s*(\{\s*"|\[\s*[\[{"\d-])'), Kind("a JSON file", None, "write its samples as CSV")),
    (
        re.compile(r"\Aversion https://git-lfs"),
        Kind("a Git LFS pointer", None, "fetch the file it points to with `git lfs pull`"),
    ),
)
BINARY = Kind("a binary file of a kind that is not known here", None, EXPORT)
SAMPLES = Kind(
    "a binary file that says nothing of itself",
    None,
    'where a WFDB header (.hea) names it, use reader = "wfdb" and let `records` match the header',
)


def kind_of(path: Path) -> Kind | None:
    """The type of the file at `path`; None: plain text (perhaps a table), an empty file or none at all."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    for place, magic, kind in MAGIC:
        if head[place : place + len(magic)] == magic:
            return kind
    if head[:4] == b"PK\x03\x04":
        return _zip(head)
    if head[:2] == b"\x1f\x8b":
        return _gzip(head)
    if path.suffix.lower() == ".mat" and _is_mat4(head):
        return Kind("a MATLAB file (v4)", "mat")
    if b"\0" in head or len(re.findall(rb"[\x01-\x08\x0e-\x1f]", head)) > len(head) // 50:
        return SAMPLES if path.suffix.lower() in (".dat", ".atr", ".xyz") else BINARY
    text = head.decode("utf-8-sig", "replace")
    if path.suffix.lower() == ".hea":
        return Kind("a WFDB header", "wfdb")
    return next((kind for pattern, kind in TEXTS if pattern.search(text)), None)


def describe(path: Path) -> str | None:
    """The type of the file at `path` and what to do with it, without quoting it; None as in `kind_of`."""
    kind = kind_of(path)
    return str(kind) if kind else None


def no_text(path: Path) -> str | None:
    """The true type of a file that should hold a table of text (.gz: compressed), and what to do."""
    kind = kind_of(path)
    if kind is None or (kind.suffix == ".gz" and path.name.lower().endswith(".gz")):
        return None
    return _misnamed(kind)


def other(path: Path, suffix: str) -> str | None:
    """The true type of a file that should be of the type of `suffix`, if it is known to be another."""
    kind = kind_of(path)
    same = kind is None or kind.suffix == suffix or (suffix == ".h5" and kind.reader == "mat")
    return None if same or kind is None else _misnamed(kind)


def _misnamed(kind: Kind) -> str:
    return f"{kind.name}: name it {kind.suffix}" if kind.suffix else str(kind)


def plain(words: str, most: int = 200) -> str:
    """A library's message, which may quote bytes of a file, as one printable line."""
    return printable((words.splitlines() or [""])[0], most)


def message_of(error: Exception) -> str:
    """A library's exception message, or its type if it has none."""
    return plain(str(error)) or type(error).__name__


def _zip(head: bytes) -> Kind:
    if re.search(rb"\[Content_Types\]\.xml|xl/|_rels/", head):
        return Kind(
            "an Office file (.xlsx)", None, "save its sheet as CSV; labels may stay in it, see [[tables]]"
        )
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return (
        Kind("a NumPy archive (.npz)", "table", "", ".npz")
        if first.endswith(b".npy")
        else Kind("a zip archive", None, UNPACK)
    )


def _gzip(head: bytes) -> Kind:
    try:
        inside = zlib.decompressobj(31).decompress(head, 64)
    except zlib.error:
        inside = b""
    if inside[:4] == b"VITA":
        return Kind("a .vital file", "vitaldb")
    text = bool(inside) and not re.search(rb"[\0-\x08\x0e-\x1f]", inside)
    return Kind("a gzipped table", "table", "", ".gz") if text else Kind("a gzip archive", None, UNPACK)


def _is_mat4(head: bytes) -> bool:
    """Whether a level-4 matrix begins here: type MOPT below 5000, and a name that ends with NUL."""
    if len(head) < 24:
        return False
    for order in ("little", "big"):
        kind, rows, columns, imaginary, name = (
            int.from_bytes(head[i : i + 4], order) for i in range(0, 20, 4)
        )
        if kind < 5000 and rows < 2**31 and columns < 2**31 and imaginary < 2 and 1 < name < 64:
            return head[20 + name - 1 : 20 + name] == b"\0"
    return False
