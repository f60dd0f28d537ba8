"""MATLAB files as people have them: rows, columns and cells as records, rates and marks of the file's own."""

from fractions import Fraction

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from tests.datasets import recordings
from tests.datasets.test_mat import broken, hdf5, load, one, read

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
channels = ["ppg"]
rate = 100
unit = "au"
source_unit = "count"
units = { count = 1 }
required = true

[[fields]]
name = "sbp"
variable = "sbp"
"""
X = np.round(100 * np.sin(np.arange(3000) / 9))
FS = TEXT.replace("rate = 100", 'rate = "Fs"')


def many(more, text=TEXT):
    return text.replace("[signals.ppg]", f'elements = "ppg"\n{more}[signals.ppg]', 1)


def cells(path, tree):
    """A v7.3 file with cell arrays, as MATLAB lays them out: references to what lies in #refs#."""
    hdf5(path, {name: value for name, value in tree.items() if not isinstance(value, list)})
    with h5py.File(path, "r+") as file:
        for name, value in tree.items():
            if isinstance(value, list):
                at = [
                    file.create_dataset(f"#refs#/{name}{i}", data=x[:, None]).ref for i, x in enumerate(value)
                ]
                node = file.create_dataset(name, data=np.array([at], dtype=h5py.ref_dtype).T)
                node.attrs["MATLAB_class"] = np.bytes_("cell")


def v5(path, tree):
    held = {}
    for name, value in tree.items():
        held[name] = value
        if isinstance(value, list):
            held[name] = np.empty((1, len(value)), object)
            held[name][0] = value
    savemat(path, held)


BOTH = pytest.mark.parametrize("write", [v5, cells])
path = recordings.path_of("m1.mat")


def samples(known, root, source):
    got = load(known, root, source)
    return got.signals["ppg"].x_tc[:, 0].tolist(), {label.name: label.values for label in got.labels}


@BOTH
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_or_columns_of_a_matrix_are_records_with_their_own_labels(tmp_path, path, write, axis):
    matrix = X.reshape(3, 1000) if axis == 0 else X.reshape(3, 1000).T
    write(path, {"ppg": matrix, "sbp": np.array([[110.0, 120, 130]]), "Fs": 125.0})
    known, root, sources = read(tmp_path, many(f"elements_axis = {axis}\n", FS))
    assert [s.record for s in sources] == ["m1-0", "m1-1", "m1-2"]
    for i, source in enumerate(sources):
        assert source.seconds == {"ppg": 8}
        x, labels = samples(known, root, source)
        assert x == X[1000 * i : 1000 * i + 1000].tolist()
        assert labels["sbp"].tolist() == [110 + 10 * i]


@BOTH
def test_cells_of_a_cell_array_are_records_each_of_its_own_length(tmp_path, path, write):
    write(path, {"ppg": [X, X[:1000], X[:500]], "sbp": np.array([[110.0], [120], [130]])})
    known, root, sources = read(tmp_path, many(""))
    assert [s.seconds["ppg"] for s in sources] == [30, 10, 5]
    for i, source in enumerate(sources):
        x, labels = samples(known, root, source)
        assert x == X[: (3000, 1000, 500)[i]].tolist()
        assert labels["sbp"].tolist() == [110 + 10 * i]


@BOTH
def test_an_array_of_records_that_is_not_taken_names_its_shape_the_key_and_its_hours(tmp_path, path, write):
    write(path, {"ppg": X.reshape(10, 300)})
    assert "ppg is 10 x 300" in broken(tmp_path, TEXT)[1] and "elements_axis" in broken(tmp_path, TEXT)[1]
    _, _, (source,) = read(tmp_path, many(""))
    assert "elements_axis = 0" in source.broken[1] and source.seconds == {"ppg": 30}
    write(path, {"ppg": [X, X[:1000]]})
    _, _, source = one(tmp_path, TEXT)
    assert source.refused == {"ppg": "missing_channel"} and source.seconds == {"ppg": 40}
    assert "cell array of 1 x 2" in source.words["ppg"] and 'elements = "ppg"' in source.words["ppg"]


@BOTH
def test_a_rate_in_the_file_is_read_by_its_name_and_one_that_contradicts_is_refused(tmp_path, path, write):
    write(path, {"ppg": X, "Fs": 250.0})
    _, _, source = one(tmp_path, TEXT)
    assert source.refused == {"ppg": "bad_rate"} and source.seconds == {"ppg": 12}
    assert "'Fs' in the file says 250 Hz, not 100" in source.words["ppg"]
    known, root, source = one(tmp_path, FS)
    assert load(known, root, source).signals["ppg"].rate == 250 and source.seconds == {"ppg": 12}
    write(path, {"ppg": X, "Fs": 100.0, "fs_acc": 32.0})
    assert not one(tmp_path, TEXT)[2].refused
    write(path, {"ppg": X})
    assert "states no rate in 'Fs'" in one(tmp_path, FS)[2].words["ppg"]


@BOTH
def test_a_rate_beside_the_samples_in_a_struct_is_theirs(tmp_path, path, write):
    write(path, {"ppg": {"v": X[:, None], "fs": 200.0}, "acc": {"v": X[:, None], "fs": 50.0}})
    inside = TEXT.replace('["ppg"]', '["ppg.v"]')
    assert one(tmp_path, inside)[2].refused == {"ppg": "bad_rate"}
    assert one(tmp_path, inside.replace("rate = 100", 'rate = "fs"'))[2].seconds == {"ppg": 15}
    words = one(tmp_path, TEXT)[2].words["ppg"]
    assert "ppg is a struct" in words and "ppg.v" in words


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_a_number_that_marks_missing_samples_is_none(tmp_path, path, kind):
    x = X.astype(kind)
    x[100:140] = mark = kind(-999) if kind is np.int16 else kind(-999.9)
    savemat(path, {"ppg": x})
    text = TEXT.replace("rate = 100", f"rate = 100\nmissing = [{mark}]")
    got = load(*one(tmp_path, text)).signals["ppg"]
    assert np.flatnonzero(got.missing).tolist() == list(range(100, 140))
    (note,) = load(*one(tmp_path, TEXT)).notes
    assert "40 samples" in note and "missing = [" in note


def test_what_is_no_matlab_file_of_today_says_how_to_save_it(tmp_path, path):
    savemat(path, {"ppg": X}, format="4")
    assert "version 4: save it again with save(..., '-v7')" in broken(tmp_path, TEXT)[1]
    path.write_text("  1.0000000e+00\n  2.0000000e+00\n")
    assert "text, as save -ascii writes it" in broken(tmp_path, TEXT)[1]
    np.save(path.with_suffix(".npy"), X)
    path.with_suffix(".npy").rename(path)
    assert "a NumPy array" in broken(tmp_path, TEXT)[1]


def test_one_bad_record_of_many_is_refused_alone(tmp_path, path):
    v5(path, {"ppg": [X, X.reshape(2, 1500), X[:500]]})
    _, _, sources = read(tmp_path, many(""))
    assert [s.refused for s in sources] == [{}, {"ppg": "unsupported"}, {}]
    assert sources[1].seconds["ppg"] == Fraction(15)


@pytest.mark.parametrize("name", ["sr", "Hz", "freq", "SamplingRate", "fs"])
def test_a_rate_under_another_usual_name_contradicts_the_descriptor(tmp_path, path, name):
    savemat(path, {"ppg": X, name: 50.0, "resp_freq": 0.25, "heart_rate": 72.0})
    source = read(tmp_path, TEXT)[2][0]
    assert source.refused == {"ppg": "bad_rate"} and f"'{name}' in the file says 50 Hz" in source.words["ppg"]
