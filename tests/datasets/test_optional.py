"""A signal that is not required and whose samples turn out to be none costs its own hours alone."""

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from datasets import ingest
from datasets.ingest import read_descriptor
from datasets.readers import READERS, given
from datasets.readers.base import Root
from tests.datasets import tables
from tests.datasets.recordings import waves

MAT = tables.DESCRIPTOR.replace('reader = "table"', 'reader = "mat"')


def shards(folder, text):
    """What a task makes of the records below `folder`."""
    path = folder.with_suffix(".toml")
    path.write_text(text)
    known, root = read_descriptor(path), Root(str(folder))
    sources = given.complete(READERS[known.reader].scan(root, known), root, known)
    task = ingest.Task(0, tuple((source, "someone") for source in sources))
    return ingest._work(str(folder), str(folder.parent / "out"), known, task, lambda: None)


def words_in_a_column(folder, x):
    lines = [f"{a},{'off' if i > 400 else i}" for i, a in enumerate(x)]
    (folder / "rec1.csv").write_text("ppg,ecg\n" + "\n".join(lines) + "\n")
    return tables.DESCRIPTOR


def a_char_array(folder, x):
    savemat(folder / "rec1.mat", {"ppg": x, "ecg": "x" * 1000})
    return MAT


def numbers_beyond_float32(folder, x):
    with h5py.File(folder / "rec1.h5", "w") as file:
        file["ppg"], file["ecg"] = x, np.linspace(-1e38, 1e38, 1000)
    return tables.DESCRIPTOR


@pytest.mark.parametrize("harm", [words_in_a_column, a_char_array, numbers_beyond_float32])
@pytest.mark.parametrize("required", [False, True])
def test_a_broken_signal_refuses_the_record_only_where_it_is_required(tmp_path, harm, required):
    folder = tmp_path / "root"
    folder.mkdir()
    text = harm(folder, waves(10, 100, 0))
    report = shards(folder, text + tables.ECG + f"required = {str(required).lower()}\n")
    assert report.seconds_in["ppg"] == 10 and report.seconds_in["ecg"] > 0
    assert report.kept == ({} if required else {"ppg": 10})
    assert sum(report.refused["ecg"].values()) == report.seconds_in["ecg"]
    assert sum(report.refused.get("ppg", {}).values()) == (10 if required else 0)
    (problem,) = report.problems
    assert problem["record"] == "rec1" and ("ecg" in problem["detail"] or harm is numbers_beyond_float32)
