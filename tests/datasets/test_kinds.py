"""Files are known by their first bytes, and what is said of them holds none of these bytes."""

import gzip
import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io

from datasets.readers import READERS, kinds
from datasets.readers.kinds import describe, kind_of


def test_every_reader_that_is_named_is_there():
    named = {kind.reader for _, _, kind in kinds.MAGIC} | {kind.reader for _, kind in kinds.TEXTS}
    assert named - {None} <= set(READERS)


def test_files_of_common_libraries_lead_to_their_reader(tmp_path):
    x = np.arange(5.0)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", x=x)
    scipy.io.savemat(tmp_path / "c.mat", {"x": x}, format="4")
    scipy.io.savemat(tmp_path / "d.mat", {"x": x}, format="5")
    pq.write_table(pa.table({"x": x}), tmp_path / "e.parquet")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"] = x
    (tmp_path / "g.csv.gz").write_bytes(gzip.compress(b"t,x\n0,1\n"))
    (tmp_path / "h.vital").write_bytes(gzip.compress(b"VITA" + bytes(range(200))))
    (tmp_path / "i.bdf").write_bytes(b"\xffBIOSEMI" + b" " * 600)
    (tmp_path / "j.hea").write_bytes(b"r1 1 100 1000\n")
    found = [kind_of(path).reader for path in sorted(tmp_path.iterdir())]
    assert found == ["table", "table", "mat", "mat", "table", "table", "table", "vitaldb", "edf", "wfdb"]


@pytest.mark.parametrize("name", ["a.csv", "a.dat", "a.bin", "a.txt"])
def test_plain_text_is_of_no_kind_and_bytes_are_binary(tmp_path, name):
    path = tmp_path / name
    for text in ("t;ppg\n0,1;5\n", "Zeit,µV\n1,2\n", "", "1\t2\r\n"):
        path.write_text(text)
        assert describe(path) is None
    path.write_bytes(np.random.default_rng(1).integers(0, 256, 5000).astype(np.uint8).tobytes())
    assert "a binary file" in describe(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"SQLite format 3\0" + bytes(99), "SQLite"),
        (b"<?xml version='1.0'?><!DOCTYPE HealthData [", "Apple Health"),
        (b"<?xml version='1.0'?><AnnotatedECG xmlns='x'>", "HL7"),
        (b'[{"t": 1, "ppg": 3}]', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("t,x\n".encode("utf-16"), "UTF-16"),
        (b"\x0e\x10\x43\x08\x78\x56\x12\x00.FIT", "Garmin"),
        (b"\x1f\x8b\x08\x00broken", "gzip archive"),
        (b"\x1b]0;title\x07" + bytes(40), "a binary file"),
    ],
)
def test_what_no_reader_reads_is_named_with_what_to_do(tmp_path, content, words):
    path = tmp_path / "some.csv"
    path.write_bytes(content)
    said = describe(path)
    assert words in said and ": " in said and said.isprintable() and said.isascii()


def test_archives_are_told_by_what_lies_in_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("ACC.csv", "1\n")
    assert kind_of(tmp_path / "a.zip").name == "a zip archive"
    assert kind_of(tmp_path) is None and kind_of(tmp_path / "none") is None
