"""Windows out of corpus rows, against a plain loop."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import signal as scipy_signal

from datasets.schema import row_schema
from datasets.signal import length, prepare
from datasets.windows import Signal, WindowSpec, empty, extract, grid, lasts, verdicts

PPG = Signal(modality="ppg", rate=50.0, band=(0.5, 8.0))
SPEC = WindowSpec(signals=(PPG,), window_s=10.0, hop_s=5.0)


def rows(rng: np.random.Generator, rates: list[float], channels: int = 1) -> pa.Table:
    table = []
    for number, rate in enumerate(rates):
        x = rng.integers(-3000, 3000, (round(31 * rate), channels)).astype("<i2")
        row = {"subject": "s", "record": f"r{number}", "start_s": 0.0, "duration_s": 31.0, "ppg": x.tobytes()}
        row |= {"ppg_rate": rate, "ppg_scale": 0.5 + number, "ppg_offset": -7.0, "ppg_unit": "x"}
        table.append(row | {"ppg_channels": channels})
    return pa.Table.from_pylist(table, row_schema(["ppg"]))


@pytest.mark.parametrize("band", [(0.5, 8.0), None])
def test_windows_of_mixed_rates_equal_a_loop_over_windows(band) -> None:
    rng = np.random.default_rng(0)
    rates = [125.0, 250.0, 50.0, 125.0]
    table = rows(rng, rates)
    spec = SPEC.model_copy(update={"signals": (PPG.model_copy(update={"band": band}),)})
    row = rng.integers(0, 4, 40)
    offset = rng.choice(grid(31.0, spec), 40)
    at = rng.permutation(40)
    out = empty(40, spec)
    extract(table, row, offset, spec, out, at)
    for i in range(40):
        rate = rates[row[i]]
        x = np.frombuffer(table["ppg"][int(row[i])].as_py(), "<i2").astype(float) * (0.5 + row[i]) - 7.0
        x = x[round(offset[i] * rate) :][: round(10 * rate)]
        if band:
            x = scipy_signal.sosfiltfilt(scipy_signal.butter(2, band, "bandpass", fs=rate, output="sos"), x)
        want = scipy_signal.resample(x, 500)
        np.testing.assert_allclose(out["ppg"][at[i], 0], want, atol=2e-6 * np.abs(want).max())


def test_only_the_channels_asked_for_are_taken_and_channels_are_interleaved_last() -> None:
    table = rows(np.random.default_rng(1), [50.0], channels=3)
    spec = WindowSpec(signals=(Signal(modality="ppg", rate=50.0, channels=2),), window_s=10.0)
    out = empty(1, spec)
    extract(table, np.array([0]), np.array([10.0]), spec, out, np.array([0]))
    x = np.frombuffer(table["ppg"][0].as_py(), "<i2").reshape(-1, 3)
    np.testing.assert_allclose(out["ppg"][0], x[500:1000, :2].T * 0.5 - 7.0)


@pytest.mark.parametrize(
    ("duration", "count"), [(9.99, 0), (9.9995, 0), (10.0, 1), (14.9, 1), (15.0, 2), (31.0, 5), (0.0, 0)]
)
def test_the_grid_holds_the_windows_that_fit_whole(duration: float, count: int) -> None:
    starts = grid(duration, SPEC)
    assert len(starts) == count and (np.diff(starts) == 5.0).all()


@pytest.mark.parametrize(
    ("rate", "samples", "count"),
    [
        (124.945, 1249, 1),  # 10 s are 1249.45 samples
        (124.945, 1248, 0),
        (124.95, 1249, 1),  # 1249.5: the lower number will do
        (124.945, 1874, 2),  # 15 s are 1874.175
        (2000.0, 19_999, 0),  # half a millisecond, but a whole sample
        (40.02, 400, 1),
    ],
)
def test_a_row_holds_the_windows_that_it_fills_to_half_a_sample(
    rate: float, samples: int, count: int
) -> None:
    x = np.random.default_rng(0).integers(-3000, 3000, samples).astype("<i2")
    row = {"subject": "s", "record": "r", "start_s": 0.0, "duration_s": samples / rate, "ppg": x.tobytes()}
    row |= {"ppg_rate": rate, "ppg_scale": 1.0, "ppg_offset": 0.0, "ppg_unit": "x", "ppg_channels": 1}
    table = pa.Table.from_pylist([row], row_schema(["ppg"]))
    starts = grid(lasts(table, SPEC)[0], SPEC)
    assert starts.tolist() == [5.0 * i for i in range(count)]
    if not count:
        return
    out = empty(count, SPEC)
    extract(table, np.zeros(count, int), starts, SPEC, out, np.arange(count))
    first = prepare(x[None, None, :][..., : length(10, rate)], rate, PPG, to=500)
    np.testing.assert_allclose(out["ppg"][0], first[0], atol=1e-3)


def test_of_two_signals_the_shorter_one_says_which_windows_fit() -> None:
    both = WindowSpec(signals=(PPG, Signal(modality="ecg", rate=50.0)), window_s=10.0)
    row = {"subject": "s", "record": "r", "start_s": 0.0, "duration_s": 10.0}
    for m, rate, samples in (("ppg", 124.945, 1249), ("ecg", 249.89, 2498)):  # 2498.9: a sample is missing
        row |= {m: np.zeros(samples, "<i2").tobytes(), f"{m}_rate": rate, f"{m}_scale": 1.0}
        row |= {f"{m}_offset": 0.0, f"{m}_unit": "x", f"{m}_channels": 1}
    table = pa.Table.from_pylist([row], row_schema(["ppg", "ecg"]))
    assert len(grid(lasts(table, both)[0], both)) == 0
    assert len(grid(lasts(table, SPEC)[0], SPEC)) == 1


@pytest.mark.parametrize(
    ("start", "duration", "offset"),
    [
        (0.0, 330.0, [290.0]),
        (100.0, 200.0, [190.0]),
        (100.0, 199.9, []),
        (295.0, 30.0, []),
        (290.0, 10.0, [0.0]),
    ],
)
def test_a_window_that_ends_at_a_given_second_is_one_a_record_or_none(
    start: float, duration: float, offset: list[float]
) -> None:
    spec = SPEC.model_copy(update={"until_s": 300.0})
    assert grid(duration, spec, start).tolist() == offset
    assert spec.hash != SPEC.hash and grid(0, spec).tolist() == []


def test_verdicts_name_why_a_window_is_refused() -> None:
    t = np.arange(500) / 50
    x = np.stack(
        [np.sin(7 * t), np.zeros(500), np.where(t > 5, np.nan, 1), np.random.default_rng(0).normal(size=500)]
    )
    spec = SPEC.model_copy(update={"min_quality": 0.8})
    quality, verdict = verdicts(x[:, None].astype(np.float32), PPG, spec)
    assert verdict.tolist() == ["ok", "flat", "nan", "quality"] and quality[0] > 0.9


def test_a_spec_is_named_by_everything_that_changes_its_windows() -> None:
    others = [SPEC.model_copy(update=u) for u in ({"window_s": 11.0}, {"hop_s": None}, {"min_quality": 0.1})]
    others.append(SPEC.model_copy(update={"signals": (PPG.model_copy(update={"order": 3}),)}))
    assert len({s.hash for s in (SPEC, *others)}) == 5 and SPEC.hash == SPEC.model_copy().hash
