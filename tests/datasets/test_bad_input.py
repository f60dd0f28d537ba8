"""What people really have: a fault is one clear line, what is sound goes in, and nothing half-made stays."""

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import PlethoraError
from datasets import index, jobs
from datasets.ingest import ingest
from datasets.plan import CorpusShare as Windows
from datasets.plan import Plan
from datasets.schema import open_corpus
from datasets.signal import Signal
from datasets.windows import WindowSpec
from tests.datasets import recordings
from tests.datasets.recordings import DESCRIPTOR, waves, write_record


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    run = jobs.run
    monkeypatch.setattr(jobs, "run", lambda work, tasks, label, n: run(work, tasks, label, n, True))
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")


def made(folder, text=DESCRIPTOR):
    known = recordings.descriptor(folder, text)
    return ingest(known, str(folder / "root"), str(folder / "out"))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def one_line(folder, text=DESCRIPTOR):
    """The line that ingest ends with; no corpus is left."""
    with pytest.raises(PlethoraError) as caught:
        made(folder, text)
    assert "\n" not in str(caught.value)
    assert not (folder / "out" / "corpus.json").exists()
    return str(caught.value)


def test_a_missing_and_an_empty_folder_are_named_and_no_output_is_begun(tmp_path):
    assert f"{tmp_path}/root holds no files" in one_line(tmp_path)
    (tmp_path / "root" / "deep").mkdir(parents=True)
    assert f"{tmp_path}/root holds no files" in one_line(tmp_path)
    (tmp_path / "root" / "notes.txt").write_text("hello")
    assert "is it the folder of little?" in one_line(tmp_path)
    assert not (tmp_path / "out").exists()


def test_two_records_of_one_name_are_named_and_no_output_is_begun(tmp_path):
    for part in "ab":
        write_record(tmp_path / "root" / part, 1, "ann", {"PLETH": waves(10, 100, 1)})
    text = DESCRIPTOR.replace("'(?P<record>r", "'[ab]/(?P<record>r").replace(
        "[subject]\nfile = \"about/{n}.txt\"\npattern = '^Subject: (\\S+)'", ""
    )
    line = one_line(tmp_path, text)
    assert "the record r1 twice, a/r1.hea and b/r1.hea" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("r1 2 100 1000", "r1 2 0 1000", "bad_rate"),
        ("r1 2 100 1000", "r1 2 1e-300 1000", "bad_rate"),
        ("r1 2 100 1000", "r1 2 -100 1000", "bad_rate"),
        ("200.0(17)/mmHg", "nan(17)/mmHg", "bad_scale"),
        ("r1 2 100 1000", "r1 2 nan 1000", "bad_rate"),
        ("200.0(17)/NU", "nan(17)/NU", "bad_scale"),
        ("200.0(17)/NU", "1e-40(17)/NU", "bad_scale"),
        ("200.0(17)/NU", "1e400(17)/NU", "bad_scale"),
        ("200.0(17)/NU", "200.0(17)/V", "unit_mismatch"),
        (" PLETH", " PLETHO", "missing_channel"),
        ("r1.dat 16", "r9.dat 16", "missing_file"),
        ("r1.dat 16", "../r2.dat 16", "corrupt"),
        ("r1 2 100 1000", "r1 2 100 1000000000000", "truncated"),
        ("r1 2 100 1000", "r1 9999999999 100 1000", "corrupt"),
        ("r1 2 100 1000", "", "corrupt"),
    ],
)
def test_a_header_that_cannot_be_is_refused_in_one_line_and_the_other_record_goes_in(
    tmp_path, old, new, reason
):
    for n in (1, 2):
        x = {"PLETH": waves(10, 100, n), "ABP": waves(10, 100, 5 + n)}
        write_record(tmp_path / "root", n, f"id{n}", x)
    edit(tmp_path / "root" / "r1.hea", old, new)
    got = made(tmp_path)
    (problem,) = got["problems"]
    assert problem["record"] == "r1" and reason in problem["detail"] and "\n" not in problem["detail"]
    for m, hours in got["hours_in"].items():
        assert got["counts"]["hours"][m] + got["hours_refused"][m] == pytest.approx(hours)
    rows = open_corpus(got["uri"]).read_row_group(0, 0).to_pylist()
    whole = [r for r in rows if r["record"] == "r2" and r["ppg"] is not None]
    assert sum(r["duration_s"] for r in whole) == 10
    harmed = "abp" if "mmHg" in old else "ppg"  # the other one is sound
    assert not [r for r in rows if r["record"] == "r1" and r[harmed] is not None]


def test_a_record_shorter_than_a_window_goes_in_and_gives_none(tmp_path):
    write_record(tmp_path / "root", 1, "ann", {"PLETH": waves(6, 100, 1)})
    write_record(tmp_path / "root", 2, "bob", {"PLETH": waves(25, 100, 2)})
    got = made(tmp_path)
    assert got["counts"]["records"] == 2 and not got["problems"]
    spec = WindowSpec(signals=(Signal(modality="ppg", rate=50),), window_s=10)
    corpus = open_corpus(got["uri"])
    place = {"shard": np.array([0]), "group": np.array([0])}
    windows = index._scan(place, corpus, spec).to_pylist()
    lengths = {r["subject"]: r["duration_s"] for r in corpus.read_row_group(0, 0).to_pylist()}
    assert [lengths[w["subject"]] for w in windows] == [25, 25]
    longer = WindowSpec(signals=spec.signals, window_s=60)
    none = index._scan(place, corpus, longer)
    assert isinstance(none, pa.Table) and none.num_rows == 0
    with pytest.raises(PlethoraError, match="corpus 1 has no window to train on"):
        Plan((Windows(np.zeros(0, int), np.zeros(0, int), 1.0),), seed=0, batch=1, steps=1)
