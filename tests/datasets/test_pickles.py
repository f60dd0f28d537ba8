"""Pickles: arrays come out of them, and nothing in them runs."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.readers import pickles
from datasets.readers.base import Refused

RNG = np.random.default_rng(0)


def written(folder: Path, held: Any, protocol: int = 4) -> Path:
    path = folder / "held.pkl"
    path.write_bytes(pickle.dumps(held, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["<f8", ">f4", "<i2", "u1", "bool", ">i8", "<f2"])
def test_arrays_of_every_kind_and_order_come_back_equal(tmp_path: Path, protocol: int, kind: str) -> None:
    x = RNG.integers(0, 2 if kind == "bool" else 100, (5, 3)).astype(kind)
    held = {"a": {"b": x, "turned": np.asfortranarray(x), "empty": x[:0]}, "one": x[0, 0], "word": "hello"}
    found = pickles.arrays(written(tmp_path, held, protocol))
    assert set(found) == {"a/b", "a/turned", "a/empty", "one"}
    for name, want in (("a/b", x), ("a/turned", x), ("a/empty", x[:0])):
        np.testing.assert_array_equal(found[name], want)
        assert found[name].dtype.kind in "iufb"
    assert found["one"] == x[0, 0]


def test_python_2s_spelling_of_bytes_is_read() -> None:
    """Protocol 2 of Python 2 wrote an array's bytes as a string."""
    x = np.arange(4, dtype="<i2")
    made = pickles._Made()
    made.__setstate__((1, (4,), pickles._Kind("i2"), False, x.tobytes().decode("latin1")))
    np.testing.assert_array_equal(made.array, x)


def test_numbers_and_lists_of_numbers_are_arrays_and_the_rest_is_left_out(tmp_path: Path) -> None:
    held = {"n": 3, "list": [1, 2.5], "words": ["a"], "objects": np.array([{}], object), 7: np.ones(2)}
    found = pickles.arrays(written(tmp_path, held))
    assert set(found) == {"n", "list", "7"} and found["list"].tolist() == [1, 2.5]


class Marks:
    """Leaves a file behind if anything runs it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_what_a_pickle_asks_to_run_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = written(tmp_path, {"signal": np.ones(3), "more": Marks(mark)})
    with pytest.raises(Refused, match=r"it asks for \S+: only arrays"):
        pickles.arrays(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the test's own file would have run
    assert mark.exists()


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (OrderedDict(a=1), r"asks for collections\.OrderedDict"),
        (np.ones(3), "it holds an array, not a dictionary"),
        ([1, 2], "it holds list, not a dictionary"),
    ],
)
def test_other_objects_are_refused(tmp_path: Path, held: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        pickles.arrays(written(tmp_path, held))


def test_a_pickle_that_is_cut_off_is_corrupt_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = written(tmp_path, {"a": np.arange(30.0), "b": {"c": [1, 2]}}).read_bytes()
    path = tmp_path / "cut.pkl"
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(Refused):
            pickles.arrays(path)


def test_bytes_that_do_not_fill_an_arrays_shape_are_refused() -> None:
    for shape in ((5,), (-4,), (2.0,), "4"):
        with pytest.raises(Refused, match="do not fill its shape"):
            pickles._Made().__setstate__((1, shape, pickles._Kind("u1"), False, b"1234"))


def test_a_pickle_cannot_change_the_functions_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "changes.pkl"
    path.write_bytes(b"cnumpy\ndtype\n}S'x'\nK\x01sb.")  # BUILD on a function
    with pytest.raises(Refused, match="it changes a function"):
        pickles.arrays(path)


def test_text_is_turned_into_bytes_by_latin1_alone() -> None:
    assert pickles._bytes("\xff", "latin1") == b"\xff"
    with pytest.raises(Refused, match="no array needs"):
        pickles._bytes("a", "utf-16")
