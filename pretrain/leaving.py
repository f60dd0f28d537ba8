"""Preemption: on a notice, every rank saves a checkpoint, waits for its commit and exits. Ray restarts the
run on the remaining machines, and no step is repeated.

A notice is a node that Ray drains (a reclaimed spot instance, or a pod that Kubernetes ends: `ray start
--block` drains its node on SIGTERM), or a SIGTERM to a worker.
"""

import signal
import threading
import time
from typing import NoReturn

import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import CheckpointConsistencyMode
from ray.train.v2._internal.execution.callback import WorkerCallback  # RunConfig.callbacks takes it

from pretrain.guard import Guard

ASK_EVERY_S = 2.0  # Ray's watcher polls every 5 s; each query is a collective over all ranks
COMMIT_S = 20.0  # the controller polls every 2 s

_terminated = threading.Event()


class SigtermNotice(WorkerCallback):
    """Makes SIGTERM to a worker a notice. Python sets signal handlers in the main thread only: Ray Train
    calls this callback there, while the loop runs in another thread.
    """

    def after_init_train_context(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


class Notice:
    """Agreement among the ranks of one worker group on preemption and on time-based checkpoints.

    due: whether the last checkpoint is `minutes` old (0: never) by any rank's clock; equal on all ranks.
    """

    def __init__(self, device: torch.device, guard: Guard, minutes: float = 0) -> None:
        self.device, self.guard, self.asked = device, guard, time.monotonic()
        self.saved, self.seconds, self.due = time.monotonic(), 60 * minutes or float("inf"), False

    def given(self) -> bool:
        """Whether any rank has received a notice. Collective: every rank calls it after every step and gets
        the same answer. Errors: `Ended` when the guard finds a change."""
        now = time.monotonic()
        local = (now - self.asked > ASK_EVERY_S, _terminated.is_set(), now - self.saved > self.seconds)
        flags = torch.tensor([float(x) for x in local], device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        ask, leave, due = flags.tolist()
        self.due = bool(due)
        if ask and not leave:
            self.asked = time.monotonic()
            self.guard.passing()
            return ray.train.get_preemption_info() is not None
        return bool(leave)

    def checkpointed(self) -> None:
        """Record that a checkpoint was just saved. Every rank calls it."""
        self.saved = time.monotonic()


def leave(name: str, step: int) -> NoReturn:
    """Wait until the last checkpoint is committed, then end this worker as preempted, so that Ray restarts
    the run without counting a failure against `max_failures`.
    """
    ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED, timeout_s=COMMIT_S)
    raise RayActorError(error_msg=f"run {name}: told to leave, saved at step {step}", preempted=True)
