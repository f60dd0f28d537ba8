"""The tracker's row in a table: which windows have an accelerometer, and what is said of the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from datasets import jobs, physiology
from datasets.ingest import ingest
from datasets.schema import open_corpus
from finetune.encoders.opening import opened
from finetune.evaluation.choose import NOBODY, Windows, choose_windows, place
from finetune.evaluation.tracked import tracked
from finetune.task import load_task
from tests.finetune import moving
from tests.finetune.run import evaluate

ROOT = Path(__file__).parents[2]
SECONDS, PEOPLE = 80, 4
STARTS_S = 40  # the first record's accelerometer lies flat until then


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A corpus in the layout of the IEEE Signal Processing Cup: hearts that speed up through the motion."""
    folder = tmp_path_factory.mktemp("cup")
    (folder / "train").mkdir()
    for n in range(1, PEOPLE + 1):
        rng = np.random.default_rng([3, n])
        hr, steps = np.linspace(90, 150, SECONDS) + 2 * n, np.full(SECONDS, 2.1)
        run = moving.run(rng, hr, steps, 2.0)
        acc = run.acc.copy()
        if n == 1:
            acc[:, : STARTS_S * 125] = acc[:, :1]
        sig = np.concatenate([rng.normal(size=(1, run.ppg.shape[1])), run.ppg, acc])
        start = np.arange(0, SECONDS - 8 + 1e-9, 2)
        name = folder / "train" / f"DATA_{n:02d}_TYPE02"
        savemat(f"{name}.mat", {"sig": sig})
        savemat(f"{name}_BPMtrace.mat", {"BPM0": physiology.mean_rate(run.beats, start, start + 8)[:, None]})
    with pytest.MonkeyPatch.context() as patch:
        run_jobs = jobs.run
        patch.setattr(jobs, "run", lambda work, tasks, label, n, **_: run_jobs(work, tasks, label, n, True))
        patch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")
        descriptor = ROOT / "datasets" / "corpora" / "ieee_spc_2015.toml"
        return str(ingest(descriptor, str(folder), str(tmp_path_factory.mktemp("runners") / "out"))["uri"])


@pytest.fixture(scope="module")
def chosen(ray_session: Any, runners: str, bundle: str) -> tuple[Any, Windows, Any]:
    source, task = open_corpus(runners), load_task("heart_rate_8s")
    places = place(source, {"e": opened(bundle)}, task)
    return places.index, choose_windows(places, task, source.labels(task.labels), NOBODY), task


def test_the_windows_of_the_task_have_the_sets_own_rates_as_targets(chosen: Any, runners: str) -> None:
    _, windows, _ = chosen
    own = {(r["record"], r["start_s"]): r["value"] for r in open_corpus(runners).labels(["hr"]).to_pylist()}
    places = zip(windows.record, windows.start_s.round(3), strict=True)
    assert windows.target.tolist() == [own[place] for place in places]


def test_windows_without_an_accelerometer_are_tracked_by_ppg_and_counted(chosen: Any) -> None:
    found = tracked(*chosen)
    windows = chosen[1]
    assert found is not None and found.label == "Spectral tracker (PPG + accelerometer, whole record)"
    lacking = int(((windows.record == "DATA_01_TYPE02") & (windows.start_s < STARTS_S)).sum())
    assert found.note == f"{lacking} windows have no accelerometer; they are tracked by ppg alone"
    moved = windows.record != "DATA_01_TYPE02"
    assert np.isfinite(found.predicted).all()
    assert np.abs(found.predicted - windows.target)[moved].mean() < 5


def test_other_questions_have_no_tracker(chosen: Any) -> None:
    index, windows, task = chosen
    assert tracked(index, windows, task.model_copy(update={"label": "rr"})) is None
    assert tracked(index, windows, task.model_copy(update={"unit": "Hz"})) is None


def test_windows_without_a_pulse_get_the_training_mean_and_the_row_says_so(
    chosen: Any, bundle: str, runners: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.evaluation import tracked as module

    def silent(start: np.ndarray, ppg: np.ndarray, acc: np.ndarray) -> Any:
        return frames_of(start, np.where(start[:, None, None] < 9, 0, ppg), acc)

    frames_of = module.frames_of
    monkeypatch.setattr(module, "frames_of", silent)
    index, windows, task = chosen
    found = tracked(index, windows, task)
    lost = windows.start_s < 9
    assert found is not None and np.array_equal(np.isnan(found.predicted), lost)
    assert found.note.startswith(f"{lost.sum()} windows hold no usable ppg; they get the training mean")
    results = evaluate(bundle, runners, "heart_rate_8s", publish=False, folds=2)
    row = next(row for row in results["rows"] if row["name"] == "tracker")
    assert row["note"] == found.note
    assert (
        row["metrics"]["mae"]["low"]
        <= row["metrics"]["mae"]["value"]
        < results["rows"][-1]["metrics"]["mae"]["value"]
    )
