"""The MATLAB reader: v5 as scipy writes it, v7.3 as MATLAB lays out its HDF5, and what is no MATLAB file."""

from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from cluster.errors import PlethoraError
from datasets import jobs
from datasets.ingest import ingest
from datasets.readers import mat as reader
from datasets.readers.base import Refused
from datasets.schema import open_corpus, waveform
from tests.datasets import recordings
from tests.datasets.recordings import waves

ROOT = Path(__file__).resolve().parents[2]
TEXT = """
name = "matlab"
source = "made in a test"
licence = "none"
terms = "none"
citation = "none"
access = "open"
reader = "mat"
records = '(?P<record>m\\d+)\\.mat'
id_space = "matlab"
subjects_published = true

[signals.ppg]
channels = ["ir", "PPG_Raw"]
rate = 100
unit = "au"
source_unit = "count"
units = { count = 0.5 }
required = true

[signals.acc]
channels = [["x", "y", "z"]]
rate = 50
unit = "g"
source_unit = "mg"
units = { mg = 1e-3 }

[[arrays]]
variable = "acc"
channels = ["x", "y", "z"]
axis = 1

[[fields]]
name = "sbp"
variable = "SegSBP"
unit = "mmHg"

[[fields]]
name = "sex"
variable = "Gender"
text = true

[[traces]]
name = "hr"
variable = "bpm"
window_s = 8
step_s = 2
unit = "bpm"
"""
USE = recordings.Use(reader, TEXT)
read, one, load, path = USE.all, USE.one, USE.load, recordings.path_of("m1.mat")


def content():
    acc = np.stack([waves(20, 50, n) for n in (2, 3, 4)], axis=1).astype(np.int16)
    bpm = np.array([[70.0], [np.nan], [72.5]])
    return {
        "ir": waves(20, 100, 1)[None].astype(np.int32),
        "acc": acc,
        "SegSBP": 121.5,
        "Gender": "F",
        "bpm": bpm,
    }


def hdf5(path, tree):
    """A v7.3 file: MATLAB's 512-byte header, dimensions reversed, words as uint16, structs as references."""

    def put(group, name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                put(group.require_group(name), key, inner)
        elif isinstance(value, list):
            node = group.require_group(name)
            for key in value[0]:
                refs = []
                for i, one in enumerate(value):
                    put(group.file.require_group("#refs#"), f"{key}{i}", one[key])
                    refs.append(group.file["#refs#"][f"{key}{i}"].ref)
                node.create_dataset(key, data=np.array([refs], dtype=h5py.ref_dtype))
        elif isinstance(value, str):
            node = group.create_dataset(name, data=np.array([[ord(c)] for c in value], np.uint16))
            node.attrs["MATLAB_class"] = np.bytes_("char")
        else:
            group.create_dataset(name, data=np.atleast_2d(value).T, compression="gzip")

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in tree.items():
            put(file, name, value)
    start = b"MATLAB 7.3 MAT-file, Platform: test".ljust(124) + b"\x00\x02IM"
    with open(path, "r+b") as raw:
        raw.write(start.ljust(512, b"\0"))


WRITERS = {"v5": lambda path, tree: savemat(path, tree, do_compression=True), "v7.3": hdf5}


@pytest.mark.parametrize("version", WRITERS)
def test_variables_rows_and_scalars_become_samples_and_labels(tmp_path, path, version):
    tree = content()
    WRITERS[version](path, tree)
    known, root, source = one(tmp_path)
    assert source.seconds == {"ppg": Fraction(20), "acc": Fraction(20)} and not source.refused
    got = load(known, root, source)
    assert np.array_equal(got.signals["ppg"].x_tc[:, 0], tree["ir"][0])
    assert np.issubdtype(got.signals["ppg"].x_tc.dtype, np.integer)
    assert (got.signals["ppg"].scale, got.signals["ppg"].unit) == (0.5, "au")
    assert np.array_equal(got.signals["acc"].x_tc, tree["acc"])
    assert (got.signals["acc"].rate, got.signals["acc"].scale) == (50, 1e-3)
    labels = {label.name: label for label in got.labels}
    assert labels["sbp"].values.tolist() == [121.5] and labels["sex"].values == ["F"]
    assert labels["hr"].values.tolist() == [70, 72.5]
    assert labels["hr"].start_s.tolist() == [0, 4] and labels["hr"].end_s.tolist() == [8, 12]
    assert not got.problems


@pytest.mark.parametrize("version", WRITERS)
def test_an_array_of_structs_is_a_record_an_element(tmp_path, path, version):
    segments = [
        {"PPG_Raw": waves(10, 100, n)[:, None] / 7, "SegSBP": 100.0 + n, "Gender": "M"} for n in range(3)
    ]
    if version == "v5":
        kinds = [("PPG_Raw", object), ("SegSBP", object), ("Gender", object)]
        savemat(path, {"Subj_Wins": np.array([tuple(s.values()) for s in segments], dtype=kinds)})
    else:
        hdf5(path, {"Subj_Wins": segments})
    known, root, sources = read(
        tmp_path, TEXT.replace("[signals.ppg]", 'elements = "Subj_Wins"\n[signals.ppg]', 1)
    )
    assert [s.record for s in sources] == ["m1-0", "m1-1", "m1-2"]
    for n, source in enumerate(sources):
        assert source.seconds == {"ppg": 10}
        got = load(known, root, source)
        ppg = got.signals["ppg"]
        assert np.allclose(ppg.x_tc[:, 0] * ppg.scale, segments[n]["PPG_Raw"][:, 0] / 2)
        assert next(label.values[0] for label in got.labels if label.name == "sbp") == 100 + n


def test_a_dotted_name_reaches_into_a_struct(tmp_path, path):
    text = TEXT.replace('"ir", "PPG_Raw"', '"data.ppg.v"')
    x = waves(20, 100, 1)
    for write in WRITERS.values():
        write(path, {"data": {"ppg": {"v": x[:, None]}}})
        known, root, source = one(tmp_path, text)
        assert np.array_equal(load(known, root, source).signals["ppg"].x_tc[:, 0], x)


def test_missing_samples_are_nan_and_values_beyond_float32_are_refused(tmp_path, path):
    x = waves(20, 100, 1).astype(float)
    x[500:600] = np.nan
    savemat(path, {"ir": x})
    known, root, source = one(tmp_path)
    assert np.array_equal(
        np.flatnonzero(load(known, root, source).signals["ppg"].missing), np.arange(500, 600)
    )
    savemat(path, {"ir": x * 1e200})
    with pytest.raises(Refused, match="bad_scale"):
        load(*one(tmp_path))


@pytest.mark.parametrize(
    ("old", "key"), [("rate = 100\n", "rate"), ('source_unit = "count"\n', "source_unit")]
)
def test_what_the_format_does_not_say_the_descriptor_must(tmp_path, path, old, key):
    savemat(path, content())
    with pytest.raises(PlethoraError, match=rf"signals.ppg\] needs `{key}`"):
        one(tmp_path, TEXT.replace(old, ""))


def broken(tmp_path, text=TEXT):
    """Where the record is refused, and why: at scan, or when it is loaded."""
    known, root, source = one(tmp_path, text)
    if source.broken:
        return source.broken
    with pytest.raises(Refused) as caught:
        load(known, root, source)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("harm", ["text", "empty", "truncated", "v4"])
@pytest.mark.parametrize("version", WRITERS)
def test_a_text_an_empty_or_a_cut_off_mat_is_one_clear_refusal(tmp_path, path, version, harm):
    WRITERS[version](path, content())
    data = path.read_bytes()
    if harm == "v4":
        savemat(path, {"ir": np.arange(9.0)}, format="4")
    else:
        path.write_bytes(
            {"text": b"time,ppg\n0,1\n" * 99, "empty": b"", "truncated": data[: len(data) // 2]}[harm]
        )
    reason, detail = broken(tmp_path)
    assert reason == "corrupt" and "m1.mat" in detail and "\n" not in detail


def test_a_matrix_of_another_shape_is_refused_and_an_absent_variable_is_a_missing_channel(tmp_path, path):
    tree = content()
    for acc, size in ((tree["acc"][:, :2], "1000 x 2"), (np.zeros((0, 0)), "0 x 0")):
        savemat(path, tree | {"acc": acc})
        known, root, source = one(tmp_path)
        assert source.broken is None and source.refused == {"acc": "corrupt"}  # it is optional
        assert f"acc is {size}, the descriptor names 3 channels along axis 1" in source.words["acc"]
        assert set(load(known, root, source).signals) == {"ppg"}
    savemat(path, tree | {"ir": tree["ir"].reshape(2, -1)})
    assert broken(tmp_path)[1].startswith("ir is 2 x 1000, not one channel")
    assert one(tmp_path)[2].seconds == {"ppg": 10, "acc": 20}
    del tree["ir"]
    savemat(path, tree)
    source = one(tmp_path)[2]
    assert source.refused == {"ppg": "missing_channel"} and source.seconds["ppg"] == 20


def test_a_dataset_that_claims_more_than_its_file_can_hold_is_not_read(tmp_path, path):
    hdf5(path, content())
    with h5py.File(path, "r+") as file:
        del file["ir"]
        file.create_dataset("ir", shape=(10**12, 1), dtype="f8", chunks=(1000, 1))
    assert "claims 1,000,000,000,000 elements" in broken(tmp_path)[1]


def test_links_out_of_a_file_are_not_followed(tmp_path, path):
    hdf5(path, content())
    hdf5(tmp_path / "other.mat", content())
    with h5py.File(path, "r+") as file:
        del file["ir"]
        file["ir"] = h5py.ExternalLink(str(tmp_path / "other.mat"), "ir")
    assert one(tmp_path)[2].refused == {"ppg": "missing_channel"}


def test_a_missing_trace_is_a_problem_and_the_waveform_goes_in(tmp_path, path):
    tree = content()
    del tree["bpm"]
    savemat(path, tree)
    got = load(*one(tmp_path))
    assert "ppg" in got.signals and got.problems == ["label hr: missing_channel (no numbers bpm in m1.mat)"]


def test_the_signal_processing_cup_goes_in_and_adds_up(data, tmp_path, monkeypatch):
    run = jobs.run
    monkeypatch.setattr(jobs, "run", lambda work, tasks, label, n: run(work, tasks, label, n, True))
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")
    where = data / "ieee_spc_2015"
    made = ingest(ROOT / "datasets" / "corpora" / "ieee_spc_2015.toml", str(where), str(tmp_path / "out"))
    truth = {p.stem: loadmat(p)["sig"] for p in (where / "train").glob("DATA_??_TYPE??.mat")}
    hours = sum(sig.shape[1] for sig in truth.values()) / 125 / 3600
    assert made["counts"]["records"] == made["counts"]["subjects"] == len(truth) == 12
    for m in ("ppg", "ecg", "acc"):
        assert made["hours_in"][m] == pytest.approx(hours, abs=1e-8)
        kept = made["counts"]["hours"][m] + made["hours_refused"][m]
        assert kept == pytest.approx(hours, abs=1e-8)
        assert made["hours_refused"][m] < 0.03 * hours
    corpus = open_corpus(made["uri"])
    rows = [
        row
        for g in range(len(corpus.shards[0]["row_groups"]))
        for row in corpus.read_row_group(0, g).to_pylist()
    ]
    for row in rows:
        at = slice(round(row["start_s"] * 125), round((row["start_s"] + row["duration_s"]) * 125))
        for m, lines in (("ecg", [0]), ("ppg", [1, 2]), ("acc", [3, 4, 5])):
            if row[m] is not None:
                x = waveform(row[m], row[f"{m}_scale"], row[f"{m}_offset"], row[f"{m}_channels"], np.float64)
                expected = truth[row["record"]][lines, at]
                span = np.ptp(truth[row["record"]][lines])
                assert np.abs(x - expected).max() < 1e-4 * span
    labels = corpus.labels(["hr"]).to_pylist()
    for record in truth:
        (companion,) = (where / "train").glob(f"{record}_BPMtrace.mat")
        mine = sorted((r["start_s"], r["end_s"], r["value"]) for r in labels if r["record"] == record)
        bpm = loadmat(companion)["BPM0"].ravel()
        assert mine == [(2.0 * i, 2.0 * i + 8, v) for i, v in enumerate(bpm)]


def test_a_far_file_of_many_records_is_fetched_once_to_be_scanned_and_once_to_be_read(
    tmp_path, path, monkeypatch
):
    import fsspec

    from datasets.readers import root as roots

    run = jobs.run
    monkeypatch.setattr(jobs, "run", lambda work, tasks, label, n: run(work, tasks, label, n, True))
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")
    hdf5(path, {"Subj_Wins": [{"PPG_Raw": waves(10, 100, n)[:, None]} for n in range(4)]})
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "root"), "/far", recursive=True)
    text = TEXT.replace("[signals.ppg]", 'elements = "Subj_Wins"\n[signals.ppg]', 1)
    text = text.replace("id_space", "subject = { pattern = '^(m\\d+)' }\nid_space", 1)
    known = recordings.descriptor(tmp_path, text)
    fetched = []
    get = type(fs).get_file
    monkeypatch.setattr(type(fs), "get_file", lambda s, a, b, **k: fetched.append(a) or get(s, a, b, **k))
    assert roots.Root("memory://far").sizes
    made = ingest(known, "memory://far", str(tmp_path / "out"))
    fs.rm("/far", recursive=True)
    assert made["counts"]["records"] == 4 and made["counts"]["subjects"] == 1
    assert len(fetched) == 2
    assert made["hours_in"]["ppg"] == pytest.approx(40 / 3600)
