"""Hostile run files, sheets and recordings: one line, nothing outside the root, no memory full."""

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.lib import format as npy

from cluster.config import load
from cluster.errors import PlethoraError
from datasets.descriptor import Table
from datasets.readers import columns, mat_open, sheets
from datasets.readers.base import Refused
from datasets.readers.root import Root
from finetune.embed import read_signals
from pretrain.config import RunConfig

RUN = Path(__file__).resolve().parents[2] / "pretrain/runs/sigma/tiny.toml"


# ---------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../b", "..", ".", "", "a//b", ".hidden", "a\\b", "a\tb"]
)
def test_a_run_cannot_be_named_out_of_its_storage(name: str) -> None:
    with pytest.raises(PlethoraError, match="name") as caught:
        load(RUN, RunConfig, ["corpus=c", f"name='''{name}'''"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pro", "search/t0007", "sigma-pro_2.1", "µ"])
def test_names_of_folders_below_it_are_taken(name: str) -> None:
    assert load(RUN, RunConfig, ["corpus=c", f"name={name}"]).name == name


@pytest.mark.parametrize(
    "item",
    [
        "optim.lr=nan",
        "optim.lr=-1e-3",
        "optim.lr=inf",
        "engine.clip=nan",
        "corpus={a=nan}",
        "corpus={a=-1.0}",
        "corpus={a=0.0}",
        "corpus={}",
        "seed=-5",
        "resources.gpu=-1",
        "stream.actors=-3",
        "workers=100000000",
        "split.val=nan",
    ],
)
def test_a_number_that_is_none_is_refused(item: str) -> None:
    sets = [item] if item.startswith("corpus") else ["corpus=c", item]
    with pytest.raises(PlethoraError) as caught:
        load(RUN, RunConfig, sets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 100_000, "a = " + "{a=" * 100_000, "\x00", 'extends = "/dev/zero"', "a = 1\n" * 400_000],
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(PlethoraError) as caught:
        load(tmp_path / "run.toml", RunConfig)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("item", ["a" + ".a" * 5000 + "=1", "[" * 100_000 + "=1"])
def test_a_set_without_end_is_one_line(item: str) -> None:
    with pytest.raises(PlethoraError):
        load(RUN, RunConfig, [item])


# ---------------------------------------------------------------- recordings


def read(path: Path) -> np.ndarray:
    with columns.opened(path, Table()) as found:
        return found.read("ppg")


def outside(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["ppg"] = np.arange(10.0)
    (tmp_path / "passwd").write_bytes(b"root:x:0" * 1000)
    return tmp_path / "secret.h5"


def linked(path: Path, other: Path) -> None:
    with h5py.File(path, "w") as file:
        file["ppg"] = h5py.ExternalLink(str(other), "ppg")


def stored_elsewhere(path: Path, other: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("ppg", (1000,), "f8", external=[(str(other.parent / "passwd"), 0, 8000)])


def virtual(path: Path, other: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        layout = h5py.VirtualLayout((10,), "f8")
        layout[:] = h5py.VirtualSource(str(other), "ppg", (10,))
        file.create_virtual_dataset("ppg", layout)


def claiming(path: Path, other: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("ppg", (10**11,), "f8", chunks=(10**6,), compression="gzip")


def circle(path: Path, other: Path) -> None:
    with h5py.File(path, "w") as file:
        file["ppg"] = h5py.SoftLink("/ppg")


@pytest.mark.parametrize("write", [linked, stored_elsewhere, virtual, claiming, circle])
def test_an_hdf5_file_reads_nothing_but_itself_and_no_more_than_it_holds(
    tmp_path: Path, write: object
) -> None:
    write(tmp_path / "record.h5", outside(tmp_path))  # type: ignore[operator]
    with pytest.raises(Refused) as caught:
        read(tmp_path / "record.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [linked, stored_elsewhere, virtual])
def test_a_matlab_file_of_version_7_reads_nothing_but_itself(tmp_path: Path, write: object) -> None:
    write(tmp_path / "record.mat", outside(tmp_path))  # type: ignore[operator]
    with mat_open.opened(tmp_path / "record.mat") as found:
        assert found.get("ppg") is None


def npz(path: Path, claimed: int, real: int) -> None:
    """An .npz whose `ppg` claims so many doubles and holds `real` bytes of zeros, deflated."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as held:
        for name, size in (("ppg", claimed), ("rate", 1)):
            with held.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (size,)})
                for _ in range(real // 10**7 if name == "ppg" else 0):
                    file.write(bytes(10**7))
                file.write(bytes(8))


def test_an_archive_that_unpacks_to_more_than_a_recording_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz(tmp_path / "x.npz", claimed=2 * 10**7, real=16 * 10**7)
    with pytest.raises(Refused, match="unpacks to"):
        columns.check_zip(tmp_path / "x.npz", most=10**8)
    npz(tmp_path / "y.npz", claimed=10**15, real=0)
    with pytest.raises(Refused):
        read(tmp_path / "y.npz")
    with pytest.raises(PlethoraError, match="cannot be read as plain arrays"):
        read_signals(str(tmp_path / "y.npz"), ["ppg"])


def test_a_workbook_that_unpacks_without_end_is_refused_unread(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "x.xlsx", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as held,
        held.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as file,
    ):
        for _ in range(27):
            file.write(b" " * 10**7)
    assert (tmp_path / "x.xlsx").stat().st_size < 10**7
    with pytest.raises(Refused, match="unpacks to"):
        sheets.read(tmp_path / "x.xlsx")


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd", "a/../../outside.txt"])
def test_a_descriptor_reads_no_file_outside_the_root(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/record.csv").write_text("1\n")
    (tmp_path / "outside.txt").write_text("secret")
    with pytest.raises(PlethoraError, match="leads out of this folder"):
        Root(str(tmp_path / "root")).fetch([name], tmp_path / "scratch")
