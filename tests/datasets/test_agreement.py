"""Agreement of derived with given labels: the figures of a plain loop, on drawn labels."""

import numpy as np
import pyarrow as pa
import pytest

from datasets import agreement
from datasets.readers.base import Labels
from datasets.write import label_table


def drawn(seed):
    """Labels of three records in drawn order: hr every 1 s with gaps, hr_derived every 10 s with gaps."""
    rng = np.random.default_rng(seed)
    tables = []
    for record in rng.permutation(["a", "b", "c"]):
        at = np.flatnonzero(rng.random(95) < 0.7).astype(float)
        stretch = np.flatnonzero(rng.random(10) < 0.7) * 10.0
        given = Labels("hr", rng.uniform(50, 120, len(at)), "bpm", at, at + 1)
        found = Labels("hr_derived", rng.uniform(50, 120, len(stretch)), "bpm", stretch, stretch + 10)
        tables.append(label_table("s", str(record), [given, found, Labels("age", np.array([4.0]))]))
    return pa.concat_tables(tables)


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_a_plain_loop(seed):
    labels = drawn(seed)
    rows = labels.to_pylist()
    errors = []
    for row in rows:
        if row["name"] == "hr_derived":
            inside = [
                other["value"]
                for other in rows
                if other["name"] == "hr"
                and other["record"] == row["record"]
                and row["start_s"] <= (other["start_s"] + other["end_s"]) / 2 < row["end_s"]
            ]
            if inside:
                errors.append(row["value"] - sum(inside) / len(inside))
    found = agreement.compare(labels, "hr")
    assert found["n"] == len(errors) > 10
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), abs=1e-4)
    assert found["bias"] == pytest.approx(np.mean(errors), abs=1e-4)
    assert found["share_within"] == pytest.approx(np.mean(np.abs(errors) <= 5), abs=1e-4)
    assert agreement.line(found).startswith("hr_derived against hr: MAE ")


def test_labels_of_other_units_or_without_times_are_not_compared():
    at = np.arange(3.0)
    derived = Labels("sbp_derived", at + 100, "mmHg", at, at + 1)
    assert agreement.compare(label_table("s", "r", [derived]), "sbp") is None
    for given in (Labels("sbp", at, "kPa", at, at + 1), Labels("sbp", np.array([1.0]), "mmHg")):
        assert agreement.compare(label_table("s", "r", [derived, given]), "sbp") is None
