"""Ingest: the ledger adds up, bytes repeat, what is broken is refused, what was killed leaves nothing."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.errors import PlethoraError
from datasets import __main__ as command
from datasets import assemble, ingest, jobs
from datasets.readers.base import RecordFile
from datasets.schema import hash_subject, open_corpus, row_schema, waveform
from datasets.write import ROW_GROUP_BYTES
from tests.datasets import recordings
from tests.datasets.recordings import waves, write_record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")


@pytest.fixture
def alone(monkeypatch):
    """Ingest in this process: what is tested does not depend on who runs the tasks."""
    run = jobs.run
    monkeypatch.setattr(jobs, "run", lambda work, tasks, label, n: run(work, tasks, label, n, True))


def rows_of(uri):
    corpus = open_corpus(uri)
    groups = [(i, g) for i, s in enumerate(corpus.shards) for g in range(len(s["row_groups"]))]
    return pa.concat_tables([corpus.read_row_group(*place) for place in groups]).to_pylist()


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def adds_up(manifest):
    for m, hours in manifest["hours_in"].items():
        assert manifest["counts"]["hours"][m] + manifest["hours_refused"][m] == pytest.approx(hours, abs=3e-9)
        assert sum(manifest["rejects"].get(m, {}).values()) == pytest.approx(
            manifest["hours_refused"][m], abs=1e-8
        )


# ---------------------------------------------------------------- planning


def source(name, subject, samples):
    return RecordFile(name, subject, {}, (), {}, samples)


def test_shards_keep_a_subject_together_and_close_near_their_size():
    sources = [source(f"r{i}", f"p{i % 5}", 100) for i in range(20)]  # 800 bytes a subject
    tasks = ingest.plan(sources, b"k", "x", shard_bytes=1700)
    sizes = [sum(2 * s.samples for s, _ in t.sources) for t in tasks]
    assert sizes == [1600, 1600, 800]
    flat = [subject for t in tasks for _, subject in t.sources]
    assert flat == sorted(flat)
    for one in tasks:
        for other in tasks:
            if one is not other:
                assert not {p for _, p in one.sources} & {p for _, p in other.sources}


def test_a_subject_beyond_a_shard_is_cut_between_records():
    tasks = ingest.plan([source(f"r{i}", "p", 100) for i in range(10)], b"k", "x", shard_bytes=500)
    assert [len(t.sources) for t in tasks] == [3, 3, 3, 1]


def test_the_plan_does_not_depend_on_the_order_of_files():
    sources = [source(f"r{i}", f"p{i % 7}", 10 * i + 1) for i in range(30)]
    assert ingest.plan(sources, b"k", "x", 300) == ingest.plan(sources[::-1], b"k", "x", 300)


# ---------------------------------------------------------------- whole corpora


def test_shards_are_the_same_bytes_twice_and_with_any_number_of_workers(ray_session, tmp_path, monkeypatch):
    known, root = recordings.little(tmp_path)
    monkeypatch.setattr(ingest.plan, "__defaults__", (17_000,))  # a shard a subject
    first = ingest.ingest(known, str(root), str(tmp_path / "a"))
    assert first["shards"] == 2
    ingest.ingest(known, str(root), str(tmp_path / "b"))
    run = jobs.run
    monkeypatch.setattr(jobs, "run", lambda *given: run(*given, in_process=True))
    ingest.ingest(known, str(root), str(tmp_path / "c"))
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert set(a) == {
        "corpus.json",
        "labels.parquet",
        "rejects.parquet",
        "shards/00000.parquet",
        "shards/00001.parquet",
    }
    assert a == b == c


def test_a_corpus_holds_the_records_samples_under_keyed_subjects(alone, tmp_path):
    known, root = recordings.little(tmp_path)
    made = ingest.ingest(known, str(root), str(tmp_path / "out"))
    adds_up(made)
    assert made["counts"]["subjects"] == 2 and made["counts"]["records"] == 3
    rows = rows_of(tmp_path / "out")
    assert {r["record"]: r["subject"] for r in rows} == {
        f"r{n}": hash_subject(b"a test's key", "little", who)
        for n, who in ((1, "id-ann"), (2, "id-bob"), (3, "id-ann"))
    }
    row = next(r for r in rows if r["record"] == "r2")
    x = waveform(row["ppg"], row["ppg_scale"], row["ppg_offset"], row["ppg_channels"])
    assert np.allclose(x[0], (waves(20, 100, 2) - 17) / 200)
    text = b"".join(files(tmp_path / "out").values())
    assert b"id-ann" not in text and b"id-bob" not in text


def test_shards_are_zstd_without_a_dictionary_of_waveforms(alone, tmp_path):
    known, root = recordings.little(tmp_path)
    ingest.ingest(known, str(root), str(tmp_path / "out"))
    corpus = open_corpus(str(tmp_path / "out"))
    entry = corpus.shards[0]
    path = tmp_path / "out" / entry["path"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    assert path.stat().st_size == entry["bytes"]
    meta = pq.ParquetFile(path).metadata
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == entry["row_groups"]
    assert entry["rates"] == {"ppg": [100.0], "abp": [100.0]}
    for i in range(meta.num_columns):
        column = meta.row_group(0).column(i)
        assert column.compression == "ZSTD"
        if column.path_in_schema in ("ppg", "abp"):
            assert not [e for e in column.encodings if "DICTIONARY" in e]


def test_row_groups_stay_near_their_size_and_keep_a_record_whole(alone, tmp_path):
    rng = np.random.default_rng(0)
    for n in range(1, 4):
        x = rng.integers(-30000, 30000, 6 * 2**20)  # 12 MiB a record
        write_record(tmp_path / "root", n, f"p{n}", {"PLETH": x})
    ingest.ingest(recordings.descriptor(tmp_path), str(tmp_path / "root"), str(tmp_path / "out"))
    corpus = open_corpus(str(tmp_path / "out"))
    groups = corpus.shards[0]["row_groups"]
    assert len(groups) == 3
    for g in range(3):
        table = corpus.read_row_group(0, g, ["record", "ppg"])
        assert len(set(table["record"].to_pylist())) == 1
        assert sum(len(v) for v in table["ppg"].to_pylist()) <= ROW_GROUP_BYTES


def test_planted_faults_are_in_the_ledger_by_reason(alone, tmp_path):
    x = waves(30, 100, 1)
    x[500:600] = -32768  # missing, in WFDB's format 16
    x[700:707] = -32768  # short enough to be bridged
    x[1000:1400] = 5
    x[2000:2150] = 9000
    write_record(tmp_path / "root", 1, "ann", {"PLETH": x})
    made = ingest.ingest(recordings.descriptor(tmp_path), str(tmp_path / "root"), str(tmp_path / "out"))
    adds_up(made)
    found = {
        r["reason"]: (r["start_s"], r["duration_s"]) for r in open_corpus(made["uri"]).rejects().to_pylist()
    }
    assert found == {"nan": (5.0, 1.0), "flat": (10.0, 4.0), "clipped": (20.0, 1.5)}
    assert made["bridged_gaps"]["ppg"] == {"gaps": 1, "seconds": 0.07}


def test_a_truncated_and_a_corrupt_record_are_refused_whole_and_the_job_goes_on(alone, tmp_path):
    known, root = recordings.little(tmp_path)
    (root / "r1.dat").write_bytes((root / "r1.dat").read_bytes()[:1000])
    data = bytearray((root / "r3.dat").read_bytes())
    data[50] ^= 1
    (root / "r3.dat").write_bytes(bytes(data))
    made = ingest.ingest(known, str(root), str(tmp_path / "out"))
    adds_up(made)
    assert made["counts"]["records"] == 1 and made["counts"]["records_in"] == 3
    assert {(p["record"], p["detail"].split(":")[0]) for p in made["problems"]} == {
        ("r1", "truncated"),
        ("r3", "corrupt"),
    }
    for m in ("ppg", "abp"):
        assert made["rejects"][m] == {
            "corrupt": pytest.approx(20 / 3600),
            "truncated": pytest.approx(20 / 3600),
        }
    labels = open_corpus(made["uri"]).labels()
    assert set(labels["record"].to_pylist()) == {"r2"}


def test_a_source_of_which_nothing_is_sound_makes_no_corpus(alone, tmp_path):
    known, root = recordings.little(tmp_path)
    for n in (1, 2, 3):
        (root / f"r{n}.dat").write_bytes(b"short")
    with pytest.raises(
        PlethoraError, match=r"every record was refused .*r[123] and 2 more records: truncated"
    ):
        ingest.ingest(known, str(root), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "corpus.json").exists()


def test_labels_are_long_form_and_sorted_by_name(alone, tmp_path):
    known, root = recordings.little(tmp_path)
    made = ingest.ingest(known, str(root), str(tmp_path / "out"))
    labels = open_corpus(made["uri"]).labels()
    assert labels["name"].to_pylist() == sorted(labels["name"].to_pylist())
    ages = labels.filter(pa.compute.equal(labels["name"], "age")).to_pylist()
    assert [(r["value"], r["text"], r["unit"], r["start_s"]) for r in ages] == [
        (50.0, None, "year", None)
    ] * 3
    ward = labels.filter(pa.compute.equal(labels["name"], "ward")).to_pylist()
    assert [(r["value"], r["text"]) for r in ward] == [(None, "west")] * 3


def test_a_killed_ingest_leaves_no_corpus_and_the_next_one_clears_up(alone, tmp_path, monkeypatch):
    known, root = recordings.little(tmp_path)
    clean = ingest.ingest(known, str(root), str(tmp_path / "clean"))
    out = tmp_path / "out"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(assemble, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            ingest.ingest(known, str(root), str(out))
    assert files(out) and not (out / "corpus.json").exists()
    with pytest.raises(PlethoraError, match="no corpus at"):
        open_corpus(str(out))
    (out / "shards" / "00099.parquet").write_bytes(b"left over")
    made = ingest.ingest(known, str(root), str(out))
    assert made["hash"] == clean["hash"]
    assert files(out) == files(tmp_path / "clean")


def test_a_finished_corpus_stays_unless_forced_and_other_input_is_an_error(alone, tmp_path):
    known, root = recordings.little(tmp_path)
    out = str(tmp_path / "out")
    first = ingest.ingest(known, str(root), out)
    again = ingest.ingest(known, str(root), out)
    assert not first["already_there"] and again["already_there"]
    assert again["hash"] == first["hash"]
    write_record(root, 4, "eve", {"PLETH": waves(20, 100, 4)})
    with pytest.raises(PlethoraError, match="--force"):
        ingest.ingest(known, str(root), out)
    assert ingest.ingest(known, str(root), out, force=True)["counts"]["records"] == 4
    (tmp_path / "out" / "shards" / "00000.parquet").unlink()
    with pytest.raises(PlethoraError, match=r"has lost shards/00000.parquet"):
        ingest.ingest(known, str(root), out)


def test_a_folder_with_other_peoples_files_is_left_alone(alone, tmp_path):
    known, root = recordings.little(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(PlethoraError, match=r"thesis\.tex"):
        ingest.ingest(known, str(root), str(tmp_path / "out"), force=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_another_key_gives_other_subjects(alone, tmp_path, monkeypatch):
    known, root = recordings.little(tmp_path)
    first = ingest.ingest(known, str(root), str(tmp_path / "a"))
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "another")
    second = ingest.ingest(known, str(root), str(tmp_path / "b"))
    assert first["key_id"] != second["key_id"]
    subjects = [{r["subject"] for r in rows_of(tmp_path / name)} for name in "ab"]
    assert not subjects[0] & subjects[1]


def test_a_bucket_works_like_a_folder_for_source_and_corpus(alone, moto, tmp_path):
    known, root = recordings.little(tmp_path)
    storage.upload(root, "s3://plethora/source")
    made = ingest.ingest(known, "s3://plethora/source", "s3://plethora/corpora/little")
    local = ingest.ingest(known, str(root), str(tmp_path / "local"))
    assert made["hash"] == local["hash"]
    assert rows_of("s3://plethora/corpora/little") == rows_of(tmp_path / "local")
    again = ingest.ingest(known, "s3://plethora/source", "s3://plethora/corpora/little")
    assert again["already_there"]


def test_tasks_and_reports_travel_between_processes(tmp_path):
    known, root = recordings.little(tmp_path)
    from datasets.ingest import read_descriptor
    from datasets.readers.base import Root

    description = read_descriptor(known)
    from datasets.readers import wfdb as reader

    tasks = ingest.plan(reader.scan(Root(str(root)), description), b"k", "x")
    assert pickle.loads(pickle.dumps(tasks)) == tasks
    assert pickle.loads(pickle.dumps(description)) == description


# ---------------------------------------------------------------- real recordings


@pytest.mark.parametrize("name", ["bidmc", "cinc2015"])
def test_real_recordings_go_in_and_their_hours_add_up(alone, data, tmp_path, name):
    import wfdb

    made = ingest.ingest(
        ROOT / "datasets" / "corpora" / f"{name}.toml", str(data / name), str(tmp_path / name)
    )
    adds_up(made)
    headers = [wfdb.rdheader(str(p.with_suffix(""))) for p in (data / name).glob("*.hea")]
    headers = [h for h in headers if "PLETH" in h.sig_name]
    hours = sum(h.sig_len / h.fs for h in headers) / 3600
    assert made["hours_in"]["ppg"] == pytest.approx(hours, abs=1e-8)
    assert made["counts"]["records"] == len(headers)
    rejects = open_corpus(made["uri"]).rejects()
    seen = set(zip(rejects["modality"].to_pylist(), rejects["reason"].to_pylist(), strict=True))
    if name == "bidmc":
        assert made["counts"]["subjects"] < made["counts"]["records"]
        assert {"hr", "rr", "spo2", "age", "sex"} <= set(made["labels"])
    else:
        assert made["counts"]["subjects"] == made["counts"]["records"]
        assert {("ppg", "flat"), ("ecg", "nan"), ("abp", "nan"), ("ecg", "clipped")} <= seen
        assert made["labels"]["alarm"] == made["labels"]["alarm_true"] == len(headers)
        assert not made["subjects_published"]


# ---------------------------------------------------------------- the command


def test_the_command_ingests_and_returns_what_json_prints(alone, tmp_path, capsys):
    known, root = recordings.little(tmp_path)
    made = command.main(["ingest", str(known), "--root", str(root), "--out", str(tmp_path / "o"), "--json"])
    assert made["counts"]["records"] == 3
    assert capsys.readouterr().out == ""
    command.main(["ingest", str(known), "--root", str(root), "--out", str(tmp_path / "o")])
    assert "already there" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["descriptor", "root"])
def test_a_wrong_path_is_one_line_that_names_it(tmp_path, wrong):
    known, root = recordings.little(tmp_path)
    paths = {"descriptor": str(known), "root": str(root)} | {wrong: str(tmp_path / "nowhere")}
    with pytest.raises(PlethoraError, match="nowhere"):
        command.main(["ingest", paths["descriptor"], "--root", paths["root"], "--out", str(tmp_path / "o")])


def test_the_row_schema_is_the_contracts():
    assert row_schema(["ppg"]).names == [
        *("subject", "record", "start_s", "duration_s"),
        *("ppg", "ppg_rate", "ppg_scale", "ppg_offset", "ppg_unit", "ppg_channels"),
    ]
