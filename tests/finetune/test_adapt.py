"""A task in a corpus: its label, its window, what is pooled; and windows brought to what an encoder takes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import PlethoraError
from datasets.schema import LABELS
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation import adapt, lengths
from finetune.task import load_task


def corpus(seconds: list[tuple[str, float, float]], labels: list[tuple[str, float | None]]) -> Any:
    """Rows of (record, start, duration), a shard each, and labels of (name, start)."""
    table = pa.Table.from_pylist(
        [
            {
                "subject": "s",
                "record": "r",
                "name": name,
                "value": 1.0,
                "start_s": at,
                "end_s": None if at is None else at + 10,
            }
            for name, at in labels
        ],
        schema=LABELS,
    )
    rows = [{"record": r, "start_s": a, "duration_s": d} for r, a, d in seconds]
    return SimpleNamespace(
        uri="c",
        manifest={"labels": {"rows": {name: 1 for name, _ in labels}}},
        shards=[{"row_groups": [1]}] * len(rows),
        read_row_group=lambda shard, group, columns: pa.Table.from_pylist([rows[shard]]),
        labels=lambda names: table.filter(pa.compute.is_in(table["name"], pa.array(names))),
    )


def test_recordings_shorter_than_the_window_get_the_short_one_and_the_table_says_so() -> None:
    short = corpus([("a", 0, 2.1), ("b", 0, 4.2)], [("sbp", None)])
    task, lines = adapt.adapted(load_task("sbp"), short)
    assert (task.window_s, task.hop_s, task.level) == (2.1, 2.1, "reading")
    assert lines == ["Windows of 2.1 s, not 10 s: no segment of the corpus is long enough"]
    long = corpus([("a", 0, 6.0), ("a", 6.0, 4.0)], [("sbp", None)])  # two rows that follow each other
    assert adapt.adapted(load_task("sbp"), long) == (load_task("sbp"), [])
    apart = corpus([("a", 0, 6.0), ("a", 6.5, 4.0), ("b", 10.5, 4.0)], [("sbp", None)])
    assert adapt.adapted(load_task("sbp"), apart)[0].window_s == 2.1


def test_the_users_window_goes_before_and_overlaps_by_the_same_share() -> None:
    task = load_task("sbp").model_copy(update={"hop_s": 5.0})
    found, _ = adapt.adapted(task, corpus([("a", 0, 2.1)], [("sbp", None)]), window_s=4.0)
    assert (found.window_s, found.hop_s) == (4.0, 2.0)
    with pytest.raises(PlethoraError, match=r"--window-s 400: windows of task alarm_truth end at 300 s"):
        adapt.adapted(load_task("alarm_truth"), corpus([], [("alarm_true", None)]), window_s=400)


def test_a_derived_label_stands_in_for_the_one_that_is_not_there_and_is_named() -> None:
    derived = corpus([("a", 0, 60.0)], [("sbp_derived", 0.0)])
    task, lines = adapt.adapted(load_task("sbp"), derived)
    assert (task.label, task.level) == ("sbp_derived", "window")
    assert lines == [
        "Label sbp_derived: computed from the waveforms at ingest",
        "Each window is a row: label sbp_derived changes within records",
    ]
    both = corpus([("a", 0, 60.0)], [("sbp", None), ("sbp_derived", 0.0)])
    assert adapt.adapted(load_task("sbp"), both)[0].label == "sbp"


@pytest.mark.parametrize(("seconds", "level"), [(1.0, "window"), (10.0, "window"), (30.0, "reading")])
def test_a_stretch_long_enough_for_two_windows_is_one_reading(seconds: float, level: str) -> None:
    def given(name: str) -> Any:
        rows = [
            {
                "subject": "s",
                "record": "r",
                "name": name,
                "value": 1.0,
                "start_s": k * seconds,
                "end_s": (k + 1) * seconds,
            }
            for k in range(4)
        ]
        found = corpus([("r", 0, 120.0)], [(name, None)])
        found.labels = lambda names: pa.Table.from_pylist(rows, schema=LABELS)
        return found

    task, lines = adapt.adapted(load_task("sbp"), given("sbp"))
    assert task.level == level and len(lines) == 1
    assert ("half of them last 30 s or more" in lines[0]) == (level == "reading")
    assert adapt.adapted(load_task("sbp"), given("sbp_derived"))[0].level == "window"
    assert adapt.adapted(load_task("age"), given("age"))[0].level == "window"


# ---------------------------------------------------------------- lengths


def encoder(min_s: float, max_s: float, short: str, step: int = 10) -> Any:
    found: Any = SimpleNamespace(
        signal=SimpleNamespace(rate=50.0), samples_step=step, min_s=min_s, max_s=max_s, short=short
    )
    found.pieces = lambda window_s: BundleEncoder.pieces(found, window_s)
    return found


@pytest.mark.parametrize(("short", "mode"), [("reflect", "reflect"), ("repeat", "wrap")])
def test_windows_under_the_minimum_are_made_longer_as_the_bundle_says(short: str, mode: Any) -> None:
    fit = lengths.fit(encoder(10.0, 30.0, short), 2.1)
    x = np.random.default_rng(0).normal(size=(3, 1, 105))
    seen = lengths.run_fitted(lambda y: np.asarray(y)[:, 0], x, fit)
    np.testing.assert_array_equal(seen, np.pad(x, ((0, 0), (0, 0), (0, 395)), mode=mode)[:, 0])
    assert fit.said() == f"windows of 2.1 s {'reflected' if short == 'reflect' else 'repeated'} to 10 s"
    both = lengths.run_fitted(lambda y: np.asarray(y["b"])[:, 0], {"a": x, "b": x + 1}, fit)
    np.testing.assert_allclose(both, seen + 1)
    with pytest.raises(PlethoraError, match=r"under the encoder's minimum of 10 s"):
        lengths.fit(encoder(10.0, 30.0, "refuse"), 2.1)


def test_longer_windows_are_cut_into_pieces_and_whole_ones_are_not_spoken_of() -> None:
    assert lengths.fit(encoder(2.0, 10.0, "reflect"), 30.0).said() == (
        "3 pieces of 10 s each, their vectors averaged"
    )
    assert lengths.fit(encoder(2.0, 10.0, "reflect"), 10.0).said() == ""
    assert lengths.fit(encoder(2.0, 60.0, "reflect", step=100), 2.1).said() == "the first 2 s of 2.1 s"
