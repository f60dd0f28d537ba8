"""The CPUs and GPUs that a stopped trial's workers held are given back.

Tune ends a trial by ending its process, and with it the process that watches the trial's workers, which alone
would remove their placement group; Ray keeps that until the whole search is over. (Ray Train's own cleaner
asks the dashboard, which a local session has not.) After a few stopped trials no CPU would be left.
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

LOOK_EVERY_S = 0.5


class _Keeper:
    """Knows which placement group is whose."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[Any, PlacementGroup]] = {}

    def hold(self, trial: str, watcher: Any, group: PlacementGroup) -> None:
        self.held[trial] = (watcher, group)

    def free(self, trial: str) -> None:
        """Remove a trial's group once the process that watches its workers is gone: it would make another."""
        if trial not in self.held:
            return
        watcher, group = self.held.pop(trial)
        while True:
            try:
                ray.get(watcher.__ray_ready__.remote(), timeout=LOOK_EVERY_S)
                time.sleep(LOOK_EVERY_S)
            except GetTimeoutError:
                continue
            except RayActorError:
                break
        remove_placement_group(group)


class Held(WorkerGroupCallback):
    """Lives in the process that watches a trial's workers: tells the keeper of their group."""

    def __init__(self, room: str, trial: str) -> None:
        self.room, self.trial = room, trial

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        watcher = ray.get_runtime_context().current_actor
        ray.get(ray.get_actor(self.room).hold.remote(self.trial, watcher, group))


class Room(Callback):
    """Tune's callback: what a trial held is free when its process is gone. `name`: of the keeper."""

    def __init__(self) -> None:
        self.name = f"room-{uuid.uuid4().hex}"  # a session may see several searches
        # more calls at once than trials that end at the same time: each waits for a process
        keeper: Any = ray.remote(_Keeper)
        self.keeper = keeper.options(name=self.name, num_cpus=0, max_concurrency=64).remote()

    def _free(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.keeper.free.remote(trial.config["trial"])

    on_trial_complete = on_trial_error = on_trial_recover = _free
