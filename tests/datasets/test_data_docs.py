"""The examples of docs/data.md: its study becomes a corpus, its descriptors are some, its watch is read."""

import re
from pathlib import Path

import numpy as np
import pytest

from datasets import jobs
from datasets.descriptor import Descriptor
from datasets.ingest import read_descriptor
from datasets.readers import READERS, given
from datasets.readers.base import Recording, Root, checked
from datasets.schema import open_corpus
from tests.pages import blocks, commands, run, worked

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
HEAD = "\n".join(
    [
        'name = "mine"',
        'source = ""',
        'licence = ""',
        'terms = ""',
        'citation = ""',
        'access = "restricted"',
        'id_space = "mine"',
        "subjects_published = false",
        "",
    ]
)
EXAMPLES = [t for t in re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.S) if t.startswith("reader")]


def described(tmp_path: Path, reader: str) -> Descriptor:
    (text,) = [t for t in EXAMPLES if t.startswith(f'reader = "{reader}"')]
    (tmp_path / "d.toml").write_text(HEAD + text)
    return read_descriptor(tmp_path / "d.toml")


def recorded(known: Descriptor, folder: Path) -> Recording:
    root = Root(str(folder))
    reader = READERS[known.reader]
    (source,) = given.complete(reader.scan(root, known), root, known)
    assert source.broken is None and not source.refused
    recording = checked(reader.load(source, folder, known), source)
    given.add(recording, source, folder, folder, known)
    return recording


@pytest.mark.parametrize("reader", ["table", "wfdb", "edf", "vitaldb"])
def test_each_example_is_a_descriptor(tmp_path, reader):
    assert described(tmp_path, reader).signals


def test_the_watch_of_the_example_has_its_own_rate_and_one_clock(tmp_path):
    known = described(tmp_path, "table")
    folder = tmp_path / "in"
    folder.mkdir()
    start, rates = 1_700_000_000_000, {"ppg": 54.77, "acc": 32.0}
    for m, names, late in (("ppg", "green", 0), ("acc", "x,y,z", 4000)):
        at = start + late + np.arange(int(60 * rates[m])) / rates[m] * 1000
        x = np.rint(600 + 500 * np.sin(at / 150)).astype(int)
        x[100] = -1 if m == "ppg" else x[100]
        cells = [
            ",".join([f"{t:.3f}", *[str(v)] * (names.count(",") + 1)]) for t, v in zip(at, x, strict=True)
        ]
        (folder / f"p1_{m}.csv").write_text("\n".join([f"timestamp,{names}", *cells]) + "\n")
    (folder / "p1_hr.csv").write_text(f"from_ms,to_ms,hr\n{start + 10_000},{start + 20_000},72\n")
    got = recorded(known, folder)
    assert {m: float(s.rate) for m, s in got.signals.items()} == rates
    assert got.signals["acc"].missing[:128].all() and not got.signals["acc"].missing[128:].any()
    assert np.flatnonzero(got.signals["ppg"].missing).tolist() == [100]
    (hr,) = [label for label in got.labels if label.name == "hr"]
    assert (hr.start_s[0], hr.end_s[0]) == pytest.approx((10, 20), abs=1e-3)


def test_the_study_of_the_worked_example_becomes_a_corpus_of_all_its_hours(tmp_path, monkeypatch, capsys):
    section, inline = worked("docs/data.md"), jobs.run
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")
    monkeypatch.setattr(jobs, "run", lambda work, tasks, label, n: inline(work, tasks, label, n, True))
    monkeypatch.chdir(tmp_path)
    (code,), (shell,) = blocks(section, "python"), blocks(section, "bash")
    exec(code, {})
    for words in commands(shell):
        run(words, tmp_path / "out")
    corpus = open_corpus(str(tmp_path / "out" / "study_corpus"))
    assert len(set(corpus.read_row_group(0, 0)["subject"].to_pylist())) == 3
    assert "0.1000      0.1000      0.0000" in capsys.readouterr().out  # hours in, kept, refused
    assert (tmp_path / "out" / "study.png").stat().st_size > 10_000
