"""MLflow and Weights & Biases get a search that asks for them, and are not needed otherwise.

Neither is installed by default: `uv pip install mlflow-skinny wandb` (in an environment of its own) runs all.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import PlethoraError
from tests.tuning import drawn
from tuning import trackers
from tuning.record import Record


@pytest.fixture(scope="module")
def record() -> Record:
    return drawn.search(5)


def test_a_missing_tracker_is_reported_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(PlethoraError, match="uv pip install mlflow-skinny"):
        trackers.check(["mlflow"])
    trackers.check([])


def test_neither_is_imported_by_a_search_that_does_not_ask() -> None:
    code = (
        "import sys, tuning.search, tuning.callback, tuning.board, tuning.report; "
        "assert not {'mlflow', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def in_two_sessions(name: str, record: Record) -> None:
    """A driver that died while the last trial ran, and one that went on."""
    (first,) = trackers.open_all([name], replace(record, home="/searches/s"))
    for trial in record.trials[:-1]:
        first.update(replace(trial, state="running", curve=trial.curve[:1]))
        first.update(trial)
    last = record.trials[-1]
    first.update(replace(last, state="running", curve=last.curve[:1]))
    first.close()
    (second,) = trackers.open_all([name], replace(record, home="/searches/s"))
    second.update(replace(last, state="running", curve=last.curve[:1]))
    second.update(last)
    second.close()


def test_mlflow_has_each_trial_once_with_its_values_curve_and_end(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    in_two_sessions("mlflow", record)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(record.search.name)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {t.trial for t in record.trials}
    for trial in record.trials:
        run = runs[trial.trial]
        assert run.data.params == {name: str(value) for name, value in trial.values.items()}
        history = client.get_metric_history(run.info.run_id, "val/mae")
        assert [(point.step, point.value) for point in history] == trial.curve_of("val/mae")
        assert run.data.tags["state"] == trial.state
        assert run.info.status == {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[trial.state]


def test_wandb_has_a_run_a_trial(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    in_two_sessions("wandb", record)
    names = {path.name.split("-", 3)[3] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert {name.removesuffix("-1") for name in names} == {f"lora-rank-{t.trial}" for t in record.trials}
