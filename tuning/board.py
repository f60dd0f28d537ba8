"""A search in TensorBoard: one folder of events a trial, with its hyper-parameters (the HParams tab), its
validation figures as they come, and how it ended. `tensorboard --logdir <search>/tensorboard`
"""

import json
import time
from collections.abc import Iterable
from typing import Any

from cluster import storage
from cluster.mirror import Mirror
from tuning.record import Key, Search, Trial

FOLDER = "tensorboard"


class Board:
    """Tells trials as they change; all of it is made anew from the record when a search goes on."""

    def __init__(self, home: str, search: Search, trials: Iterable[Trial] = ()) -> None:
        uri = storage.join(home, FOLDER)
        storage.delete(uri)
        self.search = search
        self._mirror = Mirror(uri)
        self._writers: dict[str, Any] = {}
        self._told: dict[str, tuple[str, int]] = {}  # state, last step
        self._experiment()
        for trial in trials:
            self.told(trial)

    def told(self, trial: Trial) -> None:
        """Write what is new of `trial`; it may be told as often as it changes."""
        state, last = self._told.get(trial.trial, ("", -1))
        if state not in ("", "running"):
            return  # it has ended
        writer = self._writers.get(trial.trial)
        if writer is None:
            writer = self._writers[trial.trial] = _writer(self._mirror.folder / trial.trial)
            _add(writer, "_hparams_/session_start_info", session_start_info=_start(trial))
            if trial.command:
                writer.add_text("command", f"    {trial.command}", 0)
        for step, figures in trial.curve:
            for name, value in figures.items() if step > last else ():
                if value is not None:
                    writer.add_scalar(name, value, step)
        if trial.state == "running":
            writer.flush()
        else:
            self._ended(trial, writer)
        self._told[trial.trial] = (trial.state, max([last, *(step for step, _ in trial.curve)]))
        self._mirror.tick()

    def close(self) -> None:
        """All is on the storage when this returns."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._mirror.close()

    def _ended(self, trial: Trial, writer: Any) -> None:
        known = trial.curve[-1][1] if trial.curve else {}
        for objective in self.search.objective:
            value = trial.at_end(objective.name)
            if value is not None and objective.name not in known:  # a probe is known at the end only
                writer.add_scalar(objective.name, value, trial.step)
        writer.add_text("ended", f"{trial.state}{f': {trial.why}' if trial.why else ''}", trial.step)
        _add(writer, "_hparams_/session_end_info", session_end_info=_end(trial.state))
        self._writers.pop(trial.trial).close()

    def _experiment(self) -> None:
        from tensorboard.plugins.hparams.api_pb2 import Experiment, MetricInfo, MetricName

        content = Experiment(
            name=self.search.name,
            time_created_secs=self.search.started,
            hparam_infos=[_info(name, key) for name, key in self.search.space.items()],
            metric_infos=[
                MetricInfo(
                    name=MetricName(tag=o.name), display_name=o.title, description=f"objective, {o.mode}"
                )
                for o in self.search.objective
            ],
        )
        writer = _writer(self._mirror.folder)
        _add(writer, "_hparams_/experiment", experiment=content)
        writer.close()


def _writer(folder: Any) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _add(writer: Any, tag: str, **content: Any) -> None:
    """One message of the HParams tab."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams.metadata import PLUGIN_DATA_VERSION, PLUGIN_NAME
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData(version=PLUGIN_DATA_VERSION, **content).SerializeToString()
    told = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=data))
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, metadata=told)]))


def _info(name: str, key: Key) -> Any:
    """The key's kind and range, for the tab's filters."""
    from google.protobuf.struct_pb2 import ListValue
    from tensorboard.plugins.hparams.api_pb2 import DataType, HParamInfo, Interval

    if key.numeric:
        domain = Interval(min_value=key.low, max_value=key.high)
        return HParamInfo(name=name, type=DataType.Value("DATA_TYPE_FLOAT64"), domain_interval=domain)
    choices = [_plain(choice) for choice in key.choices]
    same = {type(choice).__name__ for choice in choices}
    kind = {"float": "FLOAT64", "bool": "BOOL"}.get(same.pop(), "STRING") if len(same) == 1 else "STRING"
    values = ListValue()
    values.extend([str(choice) if kind == "STRING" else choice for choice in choices])
    return HParamInfo(name=name, type=DataType.Value(f"DATA_TYPE_{kind}"), domain_discrete=values)


def _plain(value: Any) -> float | bool | str:
    """A value as the tab knows it."""
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, int | float) else json.dumps(value)


def _start(trial: Trial) -> Any:
    from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo

    info = SessionStartInfo(group_name=trial.trial, start_time_secs=trial.started or time.time())
    for name, value in trial.values.items():
        shown = _plain(value)
        if isinstance(shown, bool):
            info.hparams[name].bool_value = shown
        elif isinstance(shown, str):
            info.hparams[name].string_value = shown
        else:
            info.hparams[name].number_value = shown
    return info


def _end(state: str) -> Any:
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import SessionEndInfo

    status = Status.Value("STATUS_FAILURE" if state == "failed" else "STATUS_SUCCESS")
    return SessionEndInfo(status=status, end_time_secs=time.time())
