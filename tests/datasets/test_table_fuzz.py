"""Damaged tables: whatever happens to a file, its record is read or refused, and no hour goes unaccounted."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.readers import table
from datasets.readers.base import Refused, Root, checked
from datasets.segment import segment
from datasets.validity import Limits
from tests.datasets.tables import DESCRIPTOR, ECG, described

SUFFIXES = ("csv", "npz", "h5", "parquet")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Bytes of one sound file of each format."""
    folder = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    x = {"ppg": rng.integers(0, 999, 200), "ecg": rng.normal(0, 1, 200)}
    np.savez(folder / "a.npz", **x)
    pq.write_table(pa.table(x), folder / "a.parquet")
    with h5py.File(folder / "a.h5", "w") as file:
        for name, values in x.items():
            file[name] = values
    rows = "".join(f"{p},{e:.4f}\n" for p, e in zip(*x.values(), strict=True))
    (folder / "a.csv").write_text("ppg,ecg\n" + rows)
    return {suffix: (folder / f"a.{suffix}").read_bytes() for suffix in SUFFIXES}


damage = st.tuples(
    st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40)
)  # where, bytes lost, bytes put in


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(SUFFIXES), wounds=st.lists(damage, min_size=1, max_size=4), cut=st.floats(0, 2))
def test_a_damaged_table_is_read_or_refused(sound, tmp_path, suffix, wounds, cut):
    raw = sound[suffix]
    for where, lost, put in wounds:
        at = int(where * len(raw))
        raw = raw[:at] + put + raw[at + lost :]
    raw = raw[: int(cut * len(raw))] if cut < 1 else raw
    folder = tmp_path / "root"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / f"rec1.{suffix}").write_bytes(raw)
    known = described(folder, DESCRIPTOR + ECG)
    (source,) = table.scan(Root(str(folder)), known)
    if source.broken:
        assert source.broken[0] in ("corrupt", "unsupported", "decimal_comma", "bad_time")
        return
    try:
        recording = checked(table.load(source, folder, known), source)
    except Refused as why:
        assert why.reason in ("corrupt", "unsupported", "decimal_comma", "bad_scale") and why.detail
    else:
        cut_up = segment("rec1", recording.signals, Limits(), 3600)
        held = {m: seconds for m, seconds in source.seconds.items() if m not in source.refused}
        assert cut_up.seconds_in == held
