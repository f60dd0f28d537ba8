"""A stranger's files become a corpus in two commands: probe writes a descriptor, and the readers take it."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from cluster.errors import PlethoraError
from datasets import probe
from datasets.__main__ import main
from datasets.ingest import read_descriptor
from datasets.readers import READERS
from datasets.readers.base import Recording, Root, checked
from datasets.readers.contents import contents

RATE, N = 50, 3000
X = np.round(100 * np.sin(2 * np.pi * 1.2 * np.arange(N) / RATE), 2)


def recorded(folder: Path, toml: Path) -> Recording:
    """The only record of a folder, by the descriptor that probe wrote."""
    known = read_descriptor(toml)
    reader = READERS[known.reader]
    (source,) = reader.scan(Root(str(folder)), known)
    assert source.broken is None and not source.refused
    return checked(reader.load(source, folder, known), source)


def ppg(recording: Recording) -> np.ndarray:
    held = recording.signals["ppg"]
    return held.x_tc[:, 0] * held.scale + held.offset


def rows(line: str, times: list[str], decimal: str = ".") -> str:
    return "".join(line.format(t, str(x).replace(".", decimal)) + "\n" for t, x in zip(times, X, strict=True))


SECONDS = [f"{i / RATE:.2f}" for i in range(N)]
TABLES = {
    "seconds": "time,PPG\n" + rows("{},{}", SECONDS),
    "epoch in ms": "timestamp;bvp\n" + rows("{};{}", [str(1_700_000_000_000 + 20 * i) for i in range(N)]),
    "decimal commas": "t;Pleth\n" + rows("{};{}", [s.replace(".", ",") for s in SECONDS], ","),
    "tabs in a .csv": "elapsed (ms)\tppg_green\n" + rows("{}\t{}", [str(20 * i) for i in range(N)]),
    "dates": "datetime,ppg\n"
    + rows("{},{}", [f"2024-05-01T09:{i // 3000:02d}:{i / RATE % 60:06.3f}" for i in range(N)]),
}


@pytest.mark.parametrize("layout", TABLES)
def test_a_table_as_people_have_it_is_read_by_the_descriptor_that_probe_writes(tmp_path, layout, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "watch_7.csv").write_text(TABLES[layout])
    main(["probe", str(tmp_path / "in"), "--write", str(tmp_path / "mine.toml")])
    printed = capsys.readouterr().out
    assert "50 Hz" in printed and "3,000 samples = 60.0 s" in printed and "ppg" in printed
    got = recorded(tmp_path / "in", tmp_path / "mine.toml")
    assert got.signals["ppg"].rate == RATE and np.allclose(ppg(got), X)


def test_a_matlab_file_that_states_its_rate_is_read_at_that_rate(tmp_path):
    savemat(tmp_path / "r1.mat", {"ppg": X, "Fs": 50.0})
    main(["probe", str(tmp_path / "r1.mat"), "--write", str(tmp_path / "mine.toml")])
    got = recorded(tmp_path, tmp_path / "mine.toml")
    assert got.signals["ppg"].rate == RATE and np.array_equal(ppg(got), X)


def test_real_files_of_every_format_are_described(data, tmp_path):
    formats = data / "formats"
    for path, reader, rate in (
        (formats / "wfdb" / "a103l.hea", "wfdb", 250),
        (formats / "edf" / "test_generator.bdf", "edf", 1000),
        (formats / "vital" / "test_data_demo.vital", "vitaldb", 125),
        (formats / "holter" / "holter.ecg", "ishne", 128),
        (formats / "empatica_e4" / "BVP.csv", "table", 64),
    ):
        (found,) = probe.probe([path])
        assert (found.reader, found.channels[0].rate) == (reader, rate)
    ((wfdb, vital)) = (
        probe.probe([formats / p])[0] for p in ("wfdb/a103l.hea", "vital/test_data_demo.vital")
    )
    assert [g.modality for g in probe.guesses(wfdb.channels)] == ["ecg", "ppg"]
    assert {g.modality for g in probe.guesses(vital.channels)} == {"abp", "ecg", "ppg", "resp"}
    for one in (wfdb, vital):
        toml = tmp_path / f"{one.reader}.toml"
        toml.write_text(probe.descriptor([one], "mine"))
        assert read_descriptor(toml).reader == one.reader


def test_axes_of_an_accelerometer_are_one_signal_and_the_unit_is_converted():
    axes = [probe.Channel(f"acc_{axis}", 100, 32.0, "mg") for axis in "xyz"]
    one = probe.Contents(Path("a.edf"), "an EDF file", "edf", axes)
    known = tomllib.loads(probe.descriptor([one], "mine"))["signals"]["acc"]
    assert known["channels"] == [["acc_x", "acc_y", "acc_z"]]
    assert (known["unit"], known["units"], known["rate"]) == ("g", {"mg": 0.001}, 32)


def test_a_channel_without_a_telling_name_is_asked_for_and_taken_from_the_command_line(tmp_path):
    (tmp_path / "r.csv").write_text("t,sensor4\n" + rows("{},{}", SECONDS))
    with pytest.raises(PlethoraError, match=r"channels: sensor4.*--signal"):
        main(["probe", str(tmp_path / "r.csv"), "--write", str(tmp_path / "mine.toml")])
    with pytest.raises(PlethoraError, match="channels are sensor4"):
        main(["probe", str(tmp_path / "r.csv"), "--write", str(tmp_path / "m.toml"), "--signal", "ppg=x"])
    main(["probe", str(tmp_path / "r.csv"), "--write", str(tmp_path / "m.toml"), "--signal", "ppg=sensor4"])
    assert np.allclose(ppg(recorded(tmp_path, tmp_path / "m.toml")), X)


def test_a_descriptor_that_is_there_stays_and_a_name_in_a_file_writes_no_toml_of_its_own(tmp_path):
    (tmp_path / "mine.toml").write_text("edited")
    (tmp_path / "r.csv").write_text("ppg\n1\n2\n")
    with pytest.raises(PlethoraError, match="the file exists"):
        main(["probe", str(tmp_path / "r.csv"), "--write", str(tmp_path / "mine.toml")])
    with pytest.raises(PlethoraError, match="its folder does not exist"):
        main(["probe", str(tmp_path / "r.csv"), "--write", str(tmp_path / "none" / "mine.toml")])
    hostile = [probe.Channel('ppg"]\nlicence = "open', 10, 50.0, "\x1b[2J")]
    one = probe.Contents(Path("a.edf"), "an EDF file", "edf", hostile)
    known = tomllib.loads(probe.descriptor([one], "mine"))
    assert known["licence"] == "CHECK" and known["signals"]["ppg"]["channels"] == ['ppg"]\nlicence = "open']
    assert "\x1b" not in probe.descriptor([one], "mine")


def test_what_no_reader_reads_is_named_with_what_to_do(tmp_path, capsys):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\nppg")
    made = main(["probe", str(tmp_path / "a.pdf"), "--json"])
    assert json.loads(json.dumps(made))["files"][0]["reader"] is None
    main(["probe", str(tmp_path / "a.pdf")])
    assert "a PDF" in capsys.readouterr().out
    with pytest.raises(PlethoraError, match="does not exist"):
        main(["probe", str(tmp_path / "none.csv")])


def test_lines_above_the_samples_are_no_samples_and_say_rate_and_unit(tmp_path):
    """As an Apple Watch exports an ECG."""
    above = 'Name,Jo\nDevice,"Watch6,2"\nSample Rate,50 hertz\n\nLead,Lead I\nUnit,\u00b5V\n\n'
    (tmp_path / "ecg_2024.csv").write_text(above + "".join(f"{x}\n" for x in X))
    main(["probe", str(tmp_path), "--write", str(tmp_path / "mine.toml"), "--signal", "ecg=1"])
    got = recorded(tmp_path, tmp_path / "mine.toml").signals["ecg"]
    assert (got.rate, got.unit) == (RATE, "mV") and np.allclose(got.x_tc[:, 0] * got.scale, X / 1000)


def test_of_a_large_folder_no_more_files_are_read_than_are_reported(tmp_path, monkeypatch):
    for i in range(40):
        name = "".join("abcdefghij"[int(digit)] for digit in f"{i:02d}")
        (tmp_path / f"{name}.csv").write_text("time,ppg\n0.00,1\n0.02,2\n0.04,3\n")
    (tmp_path / "a_note.pdf").write_bytes(b"%PDF-1.4\n")
    looked = []
    monkeypatch.setattr(probe, "contents", lambda path: looked.append(path) or contents(path))
    found = probe.probe([tmp_path])
    assert len(found) == probe.MOST and all(one.path.suffix == ".csv" for one in found)
    assert len(looked) <= probe.MOST + 1
