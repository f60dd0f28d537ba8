import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.join import join
from datasets.schema import row_schema


def table(rows):
    """rows: (record, start, seconds, has ppg, has abp); every sample is its second in the record."""
    out = []
    for record, start, seconds, ppg, abp in rows:
        row = {
            "subject": f"of {record}",
            "record": record,
            "start_s": float(start),
            "duration_s": float(seconds),
        }
        for m, there in (("ppg", ppg), ("abp", abp)):
            if there:
                row[m] = np.arange(start, start + seconds).astype("<i2").tobytes()
                row |= {
                    f"{m}_rate": 1.0,
                    f"{m}_scale": 1.0,
                    f"{m}_offset": 0.0,
                    f"{m}_unit": "x",
                    f"{m}_channels": 1,
                }
        out.append(row)
    return pa.Table.from_pylist(out, schema=row_schema(["ppg", "abp"]))


def short(joined, m="ppg"):
    return [
        (r["record"], r["start_s"], r["duration_s"], np.frombuffer(r[m], "<i2").tolist())
        for r in joined.to_pylist()
    ]


def test_a_border_that_another_modality_makes_goes_and_one_of_its_own_stays():
    rows = [
        ("a", 0, 5, True, True),
        ("a", 5, 3, True, False),
        ("a", 8, 2, False, True),
        ("a", 10, 4, True, True),
    ]
    rows += [("b", 14, 2, True, True)]
    assert short(join(table(rows), ["ppg"])) == [
        ("a", 0, 8, list(range(8))),
        ("a", 10, 4, [10, 11, 12, 13]),
        ("b", 14, 2, [14, 15]),
    ]
    assert [r[:3] for r in short(join(table(rows), ["abp"]), "abp")] == [
        ("a", 0, 5),
        ("a", 8, 6),
        ("b", 14, 2),
    ]
    assert [r[:3] for r in short(join(table(rows), ["ppg", "abp"]))] == [
        ("a", 0, 5),
        ("a", 10, 4),
        ("b", 14, 2),
    ]


def test_rows_that_disagree_in_gain_do_not_join():
    rows = table([("a", 0, 5, True, False), ("a", 5, 3, True, False)])
    other = rows.set_column(rows.column_names.index("ppg_scale"), "ppg_scale", pa.array([1.0, 2.0]))
    assert join(rows, ["ppg"]).num_rows == 1
    assert join(other, ["ppg"]).num_rows == 2


def test_a_slice_and_an_empty_table_join_too():
    rows = table([("z", 0, 9, True, False), ("a", 0, 5, True, False), ("a", 5, 3, True, True)])
    assert short(join(rows.slice(1), ["ppg"])) == [("a", 0, 8, list(range(8)))]
    assert join(rows.slice(0, 0), ["ppg"]).num_rows == 0
    assert join(rows, ["abp"]).column_names[:4] == ["subject", "record", "start_s", "duration_s"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans(), st.booleans()), max_size=14))
def test_joining_equals_a_loop_over_rows(steps):
    rows, at, name = [], 0, 0
    for seconds, ppg, abp, new in steps:
        name, at = (name + 1, 0) if new else (name, at)
        rows.append((f"r{name}", at, seconds, ppg, abp))
        at += seconds
    expected = []
    for record, start, seconds, ppg, _ in rows:
        if ppg and expected and expected[-1][0] == record and expected[-1][1] + expected[-1][2] == start:
            expected[-1] = (record, expected[-1][1], expected[-1][2] + seconds)
        elif ppg:
            expected.append((record, start, seconds))
    assert short(join(table(rows), ["ppg"])) == [(r, a, n, list(range(a, a + n))) for r, a, n in expected]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans(), st.booleans()), max_size=14))
def test_rows_with_optional_modalities_join_while_the_same_ones_are_there(steps):
    rows, at, name = [], 0, 0
    for seconds, ppg, abp, new in steps:
        name, at = (name + 1, 0) if new else (name, at)
        rows.append((f"r{name}", at, seconds, ppg, abp))
        at += seconds
    for optional in (["ppg", "abp"], ["abp"]):
        expected = []
        for record, start, seconds, *there in rows:
            if not any(there) or ("ppg" not in optional and not there[0]):
                continue
            last = expected[-1] if expected else ("", 0, 0, [])
            if (last[0], last[1] + last[2], last[3]) == (record, start, there):
                expected[-1] = (record, last[1], last[2] + seconds, there)
            else:
                expected.append((record, start, seconds, there))
        got = join(table(rows), ["ppg", "abp"], optional).to_pylist()
        assert [(r["record"], r["start_s"], r["duration_s"]) for r in got] == [e[:3] for e in expected]
        for r, (_, start, seconds, there) in zip(got, expected, strict=True):
            for m, has in zip(("ppg", "abp"), there, strict=True):
                samples = np.frombuffer(r[m], "<i2").tolist() if r[m] is not None else None
                assert samples == (list(range(start, start + seconds)) if has else None)
                assert (r[f"{m}_rate"] is not None) == has
