"""A search in TensorBoard: a folder of events for each trial, with its hyperparameters (the HParams tab), its
validation figures as they come, and how it ended. `tensorboard --logdir <search>/tensorboard`
"""

import json
import time
from typing import Any

from cluster import storage
from cluster.mirror import Mirror
from tuning.record import Record, Search, Trial
from tuning.space import Spread

FOLDER = "tensorboard"


class Board:
    """Writes trials as they change; a resumed search writes all of `record` anew."""

    def __init__(self, record: Record) -> None:
        uri = storage.join(record.home, FOLDER)
        storage.delete(uri)
        self.search = record.search
        self._mirror = Mirror(uri)
        self._writers: dict[str, Any] = {}
        self._written: dict[str, tuple[str, int]] = {}  # state, last step
        writer = _writer(self._mirror.folder)
        writer.file_writer.add_summary(_experiment(record.search, record.info.started))
        writer.close()
        for trial in record.trials:
            self.update(trial)

    def update(self, trial: Trial) -> None:
        """Write what is new of `trial`."""
        from tensorboard.plugins.hparams import summary_v2 as hparams

        state, last = self._written.get(trial.trial, ("", -1))
        if state not in ("", "running"):
            return  # it has ended
        writer = self._writers.get(trial.trial)
        if writer is None:
            writer = self._writers[trial.trial] = _writer(self._mirror.folder / trial.trial)
            values = {key: _plain(value) for key, value in trial.values.items()}
            started = trial.started or time.time()
            writer.file_writer.add_summary(hparams.hparams_pb(values, trial.trial, started))
            if trial.command:
                writer.add_text("command", f"    {trial.command}", 0)
        for step, figures in trial.curve:
            for name, value in figures.items() if step > last else ():
                if value is not None:
                    writer.add_scalar(name, value, step)
        if trial.state == "running":
            writer.flush()
        else:
            self._end(trial, writer)
        self._written[trial.trial] = (trial.state, max([last, *(step for step, _ in trial.curve)]))
        self._mirror.tick()

    def close(self) -> None:
        """All is on the storage when this returns."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._mirror.close()

    def _end(self, trial: Trial, writer: Any) -> None:
        known = trial.curve[-1][1] if trial.curve else {}
        for objective in self.search.objective:
            value = trial.at_end(objective.name)
            if value is not None and objective.name not in known:  # a probe is known at the end only
                writer.add_scalar(objective.name, value, trial.step)
        writer.add_text("ended", f"{trial.state}{f': {trial.why}' if trial.why else ''}", trial.step)
        writer.file_writer.add_summary(_session_end(trial))
        self._writers.pop(trial.trial).close()


def _writer(folder: Any) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _experiment(search: Search, started: float) -> Any:
    """Keys and objectives, for the tab's columns and filters."""
    from tensorboard.plugins.hparams import summary_v2 as hparams

    metrics = [
        hparams.Metric(o.name, display_name=o.title, description=f"objective, {o.mode}")
        for o in search.objective
    ]
    keys = [hparams.HParam(key, _domain(spread)) for key, spread in search.space.items()]
    return hparams.hparams_config_pb(keys, metrics, started)


def _domain(spread: Spread) -> Any:
    from tensorboard.plugins.hparams import summary_v2 as hparams

    if spread.numeric:
        return hparams.RealInterval(*map(float, spread.bounds))
    choices = [_plain(choice) for choice in spread.choices]
    if len({type(choice) for choice in choices}) > 1:
        choices = [str(choice) for choice in choices]
    return hparams.Discrete(choices)


def _plain(value: Any) -> float | bool | str:
    """A value as the tab knows it."""
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, int | float) else json.dumps(value)


def _session_end(trial: Trial) -> Any:
    """The tab's message of how a trial ended; TensorBoard has no function for it without TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = "STATUS_FAILURE" if trial.state == "failed" else "STATUS_SUCCESS"
    info = SessionEndInfo(status=api_pb2.Status.Value(status), end_time_secs=time.time())
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=info))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about)
    return Summary(value=[value])
