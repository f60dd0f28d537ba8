"""Frees the CPUs and GPUs of a stopped trial's workers.

Tune ends a trial by killing its process, and with it the process that watches the trial's workers and alone
would remove their placement group: Ray keeps the group until the search is over, and after a few stopped
trials no CPU would be left. (Ray Train's cleaner asks the dashboard, which a local session does not have.)
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback  # RunConfig.callbacks takes it
from ray.tune import Callback
from ray.util.placement_group import PlacementGroup, remove_placement_group

POLL_S = 0.5


class _PlacementGroups:
    """An actor that knows the placement group of each trial."""

    def __init__(self) -> None:
        self.groups: dict[str, tuple[Any, PlacementGroup]] = {}

    def register(self, trial: str, watcher: Any, group: PlacementGroup) -> None:
        self.groups[trial] = (watcher, group)

    def free(self, trial: str) -> None:
        """Remove a trial's group once the process that watches its workers is gone: it would make another."""
        if trial not in self.groups:
            return
        watcher, group = self.groups.pop(trial)
        while True:
            try:
                ray.get(watcher.__ray_ready__.remote(), timeout=POLL_S)
                time.sleep(POLL_S)
            except GetTimeoutError:
                continue
            except RayActorError:
                break
        remove_placement_group(group)


class RegisterWorkers(WorkerGroupCallback):
    """Runs in the process that watches a trial's workers: registers their placement group."""

    def __init__(self, room: str, trial: str) -> None:
        self.room, self.trial = room, trial

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        watcher = ray.get_runtime_context().current_actor
        ray.get(ray.get_actor(self.room).register.remote(self.trial, watcher, group))


class FreeWorkers(Callback):
    """Tune's callback: frees a trial's placement group when the trial ends. `name`: of the actor."""

    def __init__(self) -> None:
        self.name = f"placement-{uuid.uuid4().hex}"  # one Ray session may run several searches
        # more calls at once than trials that end at the same time: each waits for a process
        options = {"name": self.name, "num_cpus": 0, "max_concurrency": 64}
        actor: Any = ray.remote(_PlacementGroups)
        self.groups = actor.options(**options).remote()

    def _free(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.groups.free.remote(trial.config["trial"])

    on_trial_complete = on_trial_error = on_trial_recover = _free
