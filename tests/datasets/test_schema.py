import hmac
import pickle
import stat

import numpy as np
import pytest

from cluster import storage
from cluster.errors import PlethoraError
from datasets import schema
from datasets.synthetic import synthesize


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("corpus") / "c")
    synthesize(out, hours=0.02, subjects=3, gaps=0, flats=0, clips=0, motion=0)
    return schema.open_corpus(out)


def test_a_subject_is_the_first_128_bits_of_an_hmac_of_space_nul_id():
    expected = hmac.digest(b"key", b"mimic\x00s01795", "sha256")[:16].hex()
    assert schema.hash_subject(b"key", "mimic", "s01795") == expected
    assert schema.hash_subject(b"key", "mimi", "cs01795") != expected
    assert schema.hash_subject(b"other", "mimic", "s01795") != expected


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv(schema.KEY_VARIABLE, "given")
    key, name = schema.subject_key(remote=True)
    assert key == b"given"
    assert name == schema.key_id(b"given") != schema.key_id(b"another")


def test_without_one_a_private_key_is_made_once_and_announced(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv(schema.KEY_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    first = schema.subject_key()
    path = tmp_path / ".config" / "plethora" / "subject.key"
    assert str(path) in capsys.readouterr().err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert schema.subject_key() == first
    assert capsys.readouterr().err == ""


def test_a_shared_bucket_is_refused_without_a_given_key(monkeypatch, tmp_path):
    monkeypatch.delenv(schema.KEY_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PlethoraError, match=schema.KEY_VARIABLE):
        schema.subject_key(remote=True)
    assert not (tmp_path / ".config").exists()


def test_samples_come_back_as_channels_by_samples_in_physical_units():
    raw = np.array([[1, 10], [2, 20], [3, 30]], "<i2")
    x = schema.waveform(raw.tobytes(), 0.5, -1.0, 2)
    assert x.dtype == np.float32
    assert x.tolist() == [[-0.5, 0.0, 0.5], [4.0, 9.0, 14.0]]


def test_a_row_group_reads_only_the_wanted_columns(corpus):
    table = corpus.read_row_group(0, 0, ["subject", "ppg", "ppg_rate"])
    assert table.column_names == ["subject", "ppg", "ppg_rate"]
    whole = corpus.read_row_group(0, 0)
    assert whole.schema.equals(schema.row_schema(corpus.modalities))
    assert whole.num_rows == corpus.shards[0]["row_groups"][0]


def test_labels_are_read_by_name(corpus):
    some = corpus.labels(["hr", "age"])
    assert set(some["name"].to_pylist()) == {"hr", "age"}
    assert some.schema.equals(schema.LABELS)
    assert corpus.labels().num_rows == corpus.manifest["counts"]["labels"] > some.num_rows


def test_a_corpus_travels_between_processes(corpus):
    corpus.read_row_group(0, 0, ["subject"])
    there = pickle.loads(pickle.dumps(corpus))
    assert there.hash == corpus.hash
    assert there.read_row_group(0, 0, ["subject"]).num_rows


def test_the_hash_says_what_is_in_it_and_not_where_or_when(corpus, tmp_path):
    out = str(tmp_path / "elsewhere")
    synthesize(out, hours=0.02, subjects=3, gaps=0, flats=0, clips=0, motion=0)
    assert schema.open_corpus(out).hash == corpus.hash
    other = str(tmp_path / "other")
    synthesize(other, hours=0.02, subjects=3, seed=1)
    assert schema.open_corpus(other).hash != corpus.hash


def test_a_missing_an_unfinished_a_newer_and_a_changed_corpus_get_one_clear_line(corpus, tmp_path):
    with pytest.raises(PlethoraError, match=r"no corpus at .*nowhere"):
        schema.open_corpus(str(tmp_path / "nowhere"))
    (tmp_path / "half" / "shards").mkdir(parents=True)
    with pytest.raises(PlethoraError, match="no corpus at"):
        schema.open_corpus(str(tmp_path / "half"))
    for name, change, message in (
        ("newer", {"version": 2}, "version 2, this Plethora reads version 1"),
        ("changed", {"licence": "mine"}, "changed after it was written"),
    ):
        storage.write_json(str(tmp_path / name / "corpus.json"), corpus.manifest | change)
        with pytest.raises(PlethoraError, match=message):
            schema.open_corpus(str(tmp_path / name))


def test_a_lost_and_a_damaged_shard_are_named(tmp_path):
    out = tmp_path / "c"
    synthesize(str(out), hours=0.01, subjects=2)
    corpus = schema.open_corpus(str(out))
    shard = out / corpus.shards[0]["path"]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(PlethoraError, match=shard.name):
        corpus.read_row_group(0, 0)
    shard.unlink()
    with pytest.raises(PlethoraError, match=shard.name):
        corpus.read_row_group(0, 0)
