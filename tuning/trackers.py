"""A search in MLflow or Weights & Biases, for teams that keep their runs there: `track = ["mlflow"]` in a
search file. Neither is installed by default (DeepSpeed would import MLflow into every process), nor imported
unless a search asks for it. Each tool's environment variables say where runs go: MLFLOW_TRACKING_URI;
WANDB_MODE, WANDB_DIR, ….
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from cluster.errors import PlethoraError
from tuning.record import Record, Trial


class Tracker(Protocol):
    """Gets each trial whenever it changes."""

    def update(self, trial: Trial) -> None: ...

    def close(self) -> None: ...


def check(names: Sequence[str]) -> None:
    """PlethoraError: a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise PlethoraError(
                f"track = {name!r}: not installed here: uv pip install {PACKAGES[name]}, or leave it out"
            )


def open_all(names: Sequence[str], record: Record) -> list[Tracker]:
    """The trackers that a search asks for."""
    check(names)
    return [KINDS[name](record) for name in names]


class MLflow:
    """One experiment a search, one run a trial."""

    def __init__(self, record: Record) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        name = record.search.name
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._home, self._runs, self._steps = record.home, dict[str, str](), dict[str, int]()

    def update(self, trial: Trial) -> None:
        run = self._runs.get(trial.trial) or self._run_of(trial)
        last = self._steps[trial.trial]
        for step, figures in trial.curve:
            for name, value in figures.items() if step > last else ():
                if value is not None:
                    self._client.log_metric(run, _mlflow_name(name), value, step=step)
        self._steps[trial.trial] = max([last, *(step for step, _ in trial.curve)])
        if trial.state == "running":
            return
        for name, value in (trial.objective or {}).items():
            if value is not None:
                self._client.log_metric(run, _mlflow_name(f"objective/{name}"), value, step=trial.step)
        self._client.set_tag(run, "state", trial.state)
        self._client.set_tag(run, "why", trial.why)
        ends = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(run, ends[trial.state])

    def close(self) -> None:
        pass

    def _run_of(self, trial: Trial) -> str:
        """The run of a trial: the one of an earlier session of the search, if there is one."""
        known = self._client.search_runs(
            [self._experiment], f"tags.home = '{self._home}' and tags.trial = '{trial.trial}'"
        )
        if known:
            run, metrics = known[0].info.run_id, known[0].data.metrics
            steps = (p.step for name in metrics for p in self._client.get_metric_history(run, name))
            self._steps[trial.trial] = max(steps, default=-1)
        else:
            tags = {"home": self._home, "trial": trial.trial, "command": trial.command}
            run = self._client.create_run(self._experiment, run_name=trial.trial, tags=tags).info.run_id
            for name, value in trial.values.items():
                self._client.log_param(run, _mlflow_name(name), value)
            self._steps[trial.trial] = -1
        self._runs[trial.trial] = run
        return run


class Wandb:
    """One project a search, one run a trial."""

    def __init__(self, record: Record) -> None:
        self._project, self._runs, self._steps = record.search.name, dict[str, Any](), dict[str, int]()

    def update(self, trial: Trial) -> None:
        import wandb

        if trial.trial not in self._runs:
            self._runs[trial.trial] = wandb.init(
                project=self._project,
                name=trial.trial,
                id=f"{self._project}-{trial.trial}",
                config=trial.values,
                notes=trial.command,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(quiet=True, console="off"),
            )
            self._steps[trial.trial] = self._runs[trial.trial].step - 1
        run, last = self._runs[trial.trial], self._steps[trial.trial]
        for step, figures in trial.curve:
            if step > last:
                run.log({k: v for k, v in figures.items() if v is not None}, step=step)
        self._steps[trial.trial] = max([last, *(step for step, _ in trial.curve)])
        if trial.state != "running":
            run.summary.update({"state": trial.state, "why": trial.why, **(trial.objective or {})})
            self._runs.pop(trial.trial).finish(exit_code=int(trial.state == "failed"))

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()


def _mlflow_name(name: str) -> str:
    """A name that MLflow accepts: letters, digits and ``_ - . / space``."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


KINDS: dict[str, Any] = {"mlflow": MLflow, "wandb": Wandb}
PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
