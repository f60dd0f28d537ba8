"""All Prometheus gauges of a run: dashboards and alerts depend on these names.

Ray exports each as ``ray_plethora_<name>`` at the metrics port of the node that sets it, with the label `run`
besides those listed here (and Ray's own: NodeAddress, SessionName, …). `of` translates the names passed to
`Telemetry.scalars`; the other gauges are set by name.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

PREFIX = "plethora"
REPEAT_S = 5.0


@dataclass(frozen=True)
class Gauge:
    """The description of one gauge with its unit, and its labels besides `run`."""

    about: str
    labels: tuple[str, ...] = ()


GAUGES: dict[str, Gauge] = {
    "step": Gauge("optimizer steps done"),
    "steps": Gauge("optimizer steps of the whole run"),
    "workers": Gauge("training workers of the run"),
    "windows_per_s": Gauge("windows trained on a second, all workers together"),
    "tokens_per_s": Gauge("tokens (patches) trained on a second; absent if a method has none"),
    "data_wait": Gauge("share of the time that workers wait for data (0 to 1), mean over workers"),
    "data_wait_max": Gauge("largest share of the time that any worker waits for data (0 to 1)"),
    "time_share": Gauge(
        "share of the time since the last report (0 to 1) by `phase`: data, compute, exchange (estimated), "
        "straggle, validation, checkpoint",
        ("phase",),
    ),
    "loss": Gauge("loss by `part` (train, val) and `module`", ("part", "module")),
    "learning_rate": Gauge("learning rate by `module`", ("module",)),
    "grad_norm": Gauge("global gradient norm before clipping, by `module`", ("module",)),
    "skipped_steps": Gauge("steps skipped since the start because a loss or gradient was not finite"),
    "codebook_usage": Gauge("share of the codebook in use on validation windows (0 to 1)"),
    "codebook_perplexity": Gauge("perplexity of the code ids on validation windows"),
    "mask_entropy": Gauge("entropy of the mask teacher's distribution over patches, nats"),
    "value": Gauge("any other figure of a method, by `part` (train, val) and `name`", ("part", "name")),
    "checkpoint_timestamp_seconds": Gauge("Unix time of the last checkpoint; before the first: of the start"),
    "checkpoint_seconds": Gauge("seconds that the last checkpoint paused training"),
    "kept_hours": Gauge("hours that the run's corpus kept, by modality", ("corpus", "modality")),
    "refused_hours": Gauge(
        "hours that the run's corpus refused at ingest, by reason", ("corpus", "modality", "reason")
    ),
    "indexed_windows": Gauge("windows of the run's corpus by verdict of the index", ("corpus", "verdict")),
}

_NAMED = {
    "windows_per_s",
    "tokens_per_s",
    "data_wait",
    "data_wait_max",
    "skipped_steps",
    "codebook_usage",
    "codebook_perplexity",
    "checkpoint_seconds",
}
_RENAMED = {"teacher_entropy": "mask_entropy"}
_BY_LABEL = {"lr": "learning_rate", "grad_norm": "grad_norm"}


def of(name: str) -> tuple[str, dict[str, str]]:
    """(gauge, labels) of a number that a run reports as ``part/name``: ``train/loss/student`` is the gauge
    `loss` with part="train", module="student"."""
    part, _, rest = name.partition("/")
    if not rest:
        part, rest = "", name
    kind, _, module = rest.partition("/")
    if kind == "loss" and module:
        return "loss", {"part": part, "module": module}
    if kind == "time" and module:
        return "time_share", {"phase": module}
    if kind in _BY_LABEL and module:
        return _BY_LABEL[kind], {"module": module}
    if rest in _NAMED:
        return rest, {}
    if part == "train" and rest in _RENAMED:
        return _RENAMED[rest], {}
    return "value", {"part": part, "name": rest}


class Gauges:
    """The gauges of one run, set from one of its processes; a no-op without Ray.

    A thread repeats the values until `close`: Ray drops a gauge that is not set during two of its reports
    (20 s), and a validation, a slow step or a number reported once at the start lasts longer.
    """

    def __init__(self, run: str, repeat_s: float = REPEAT_S) -> None:
        self.run, self.repeat_s = run, repeat_s
        self._known: dict[str, Any] = {}
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._repeater: threading.Thread | None = None

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Set gauge `name` of `GAUGES`; KeyError for an unknown name or wrong labels."""
        if set(labels) != set(GAUGES[name].labels):
            raise KeyError(f"gauge {name} has the labels {GAUGES[name].labels}, not {tuple(labels)}")
        import ray

        if not ray.is_initialized():
            return
        if name not in self._known:
            from ray.util import metrics

            about = GAUGES[name]
            self._known[name] = metrics.Gauge(
                f"{PREFIX}_{name}", about.about, tag_keys=("run", *about.labels)
            )
            self._known[name].set_default_tags({"run": self.run})
        with self._lock:
            self._last[name, tuple(sorted(labels.items()))] = float(value)
            self._known[name].set(float(value), tags=labels)
        if self._repeater is None:
            self._repeater = threading.Thread(target=self._repeat, name="plethora-gauges", daemon=True)
            self._repeater.start()

    def _repeat(self) -> None:
        import ray

        while not self._over.wait(self.repeat_s) and ray.is_initialized():
            with self._lock:
                for (name, labels), value in self._last.items():
                    self._known[name].set(value, tags=dict(labels))

    def close(self) -> None:
        """Stop repeating: the run's gauges disappear soon after."""
        self._over.set()
        if self._repeater is not None:
            self._repeater.join()
