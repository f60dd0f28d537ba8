"""What a file is by its first bytes, in words that say how it could be read."""

import gzip
import zipfile
from pathlib import Path

HEAD = 4096  # bytes that are looked at

# offset, bytes there, kind, what it is and what to do
MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x93NUMPY", "npy", "a NumPy array: name it .npy"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file: name it .h5"),
    (512, b"\x89HDF\r\n\x1a\n", "mat", 'a MATLAB file of version 7.3: take reader = "mat"'),
    (124, b"\x00\x01IM", "mat", 'a MATLAB file: take reader = "mat"'),
    (124, b"\x01\x00MI", "mat", 'a MATLAB file: take reader = "mat"'),
    (0, b"PAR1", "parquet", "a Parquet file: name it .parquet"),
    (0, b"ARROW1", "arrow", "an Arrow file: save it as Parquet"),
    (0, b"ORC", "orc", "an ORC file: save it as Parquet"),
    (0, b"Obj\x01", "avro", "an Avro file: save its columns as CSV or Parquet"),
    (0, b"0       ", "edf", 'an EDF recording: take reader = "edf"'),
    (0, b"\xffBIOSEMI", "edf", 'a BDF recording: take reader = "edf"'),
    (0, b"ISHNE1.0", "ishne", "an ISHNE Holter recording, no table"),
    (128, b"DICM", "dicom", "a DICOM file, no table"),
    (257, b"ustar", "tar", "a tar archive: unpack it"),
    (0, b"BZh", "bzip2", "compressed with bzip2: unpack it, or compress it with gzip"),
    (0, b"\xfd7zXZ\x00", "xz", "compressed with xz: unpack it, or compress it with gzip"),
    (0, b"\x28\xb5\x2f\xfd", "zstd", "compressed with zstd: unpack it, or compress it with gzip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z", "a 7z archive: unpack it"),
    (0, b"Rar!", "rar", "a RAR archive: unpack it"),
    (0, b"\xd0\xcf\x11\xe0", "office", "an old Excel or Office file: save the sheet as CSV"),
    (0, b"%PDF", "pdf", "a PDF document, no table"),
    (0, b"SQLite format 3\x00", "sqlite", "an SQLite database: export the table as CSV"),
    (0, b"\x89PNG", "image", "a picture, no table"),
    (0, b"\xff\xd8\xff", "image", "a picture, no table"),
    (0, b"fLaC", "flac", "FLAC sound: WFDB records that use it are read with reader = \"wfdb\""),
    (0, b"RIFF", "riff", "a RIFF file (WAV sound): save its samples as .npy or CSV"),
    (0, b"\xff\xfe", "utf16", "text in UTF-16: save it as UTF-8"),
    (0, b"\xfe\xff", "utf16", "text in UTF-16: save it as UTF-8"),
)  # fmt: skip
PICKLE = "a Python pickle, which can run code when it is opened: save its arrays as .npz or CSV"


def head(path: Path) -> bytes:
    """The first bytes of a file; of a compressed text (.gz), those of the text."""
    with path.open("rb") as file:
        start = file.read(HEAD)
    if path.name.lower().endswith(".gz") and start[:2] == b"\x1f\x8b":
        with gzip.open(path) as text:
            return text.read(HEAD)
    return start


def known(start: bytes, path: Path) -> tuple[str, str] | None:
    """(kind, what it is and what to do) of a file that begins so; None for text and for the unknown."""
    for offset, magic, kind, words in MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return kind, words
    if start[:2] == b"\x1f\x8b":
        return "gzip", _gzip(path)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip", _zip(path)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle", PICKLE
    return None


def _gzip(path: Path) -> str:
    try:
        with gzip.open(path) as file:
            inside = file.read(512)
    except (OSError, EOFError):
        return "a damaged gzip file"
    if inside[:4] == b"VITA":
        return 'a recording of Vital Recorder: take reader = "vitaldb"'
    if inside[257:262] == b"ustar":
        return "a compressed tar archive: unpack it"
    return "compressed with gzip: add .gz to its name"


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return "a damaged ZIP archive"
    if "[Content_Types].xml" in names:
        return "an Excel workbook or another Office file: save the sheet as CSV"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive: name it .npz"
    return "a ZIP archive: unpack it"


def no_text(path: Path) -> str | None:
    """What a file that should hold text is instead, and what to do; None where it may be text."""
    start = head(path)
    found = known(start, path)
    if found:
        return found[1]
    if b"\0" in start:
        return "no text: the reader `table` takes .csv, .tsv, .txt (each also .gz), .parquet, .npy, .npz, .h5"
    return None


def other(path: Path, kinds: tuple[str, ...]) -> str | None:
    """What a file is, where it is known to be none of `kinds`."""
    found = known(head(path), path)
    return found[1] if found and found[0] not in kinds else None


def plain(words: str, most: int = 200) -> str:
    """`words` of a library, which may quote bytes of a file, as one line that a terminal can show."""
    line = (words.splitlines() or [""])[0][:most]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
