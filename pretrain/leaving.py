"""Leaving a machine that is taken away: on a notice, every rank saves a checkpoint, waits for its commit and
goes; Ray starts the run again on what is left, and nothing is done twice.

A notice is a node that Ray drains (a spot instance that is reclaimed, a pod that Kubernetes ends: `ray start
--block` drains its node on SIGTERM), or SIGTERM to a worker itself.
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

ASK_EVERY_S = 2.0  # Ray's own watcher looks every 5 s; asking it is a meeting of all ranks
COMMIT_S = 20.0  # the controller looks every 2 s

_terminated = threading.Event()


class Heed(WorkerCallback):
    """Lets a worker take SIGTERM as a notice: Python's handlers are set in the main thread, where Ray Train
    calls this, and our loop runs in another.
    """

    def after_init_train_context(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


class Notice:
    """What the ranks of one worker group know of having to leave, and of what the run stands on.

    due: whether the last checkpoint is `minutes` old (0: never), by the clock of any rank; all hear the same.
    """

    def __init__(self, device: torch.device, guard: Guard, minutes: float = 0) -> None:
        self.device, self.guard, self.asked = device, guard, time.monotonic()
        self.saved, self.seconds, self.due = time.monotonic(), 60 * minutes or float("inf"), False

    def given(self) -> bool:
        """Whether any rank was told to leave. Every rank calls it after every step, and hears the same;
        `Ended` where the guard says so."""
        now = time.monotonic()
        own = (now - self.asked > ASK_EVERY_S, _terminated.is_set(), now - self.saved > self.seconds)
        word = torch.tensor([float(x) for x in own], device=self.device)
        dist.all_reduce(word, op=dist.ReduceOp.MAX)
        ask, leave, due = word.tolist()
        self.due = bool(due)
        if ask and not leave:
            self.asked = time.monotonic()
            self.guard.passing()
            return ray.train.get_preemption_info() is not None
        return bool(leave)

    def checkpointed(self) -> None:
        """A checkpoint was saved just now; every rank calls it."""
        self.saved = time.monotonic()


def leave(name: str, step: int) -> NoReturn:
    """Wait until the checkpoint just saved is committed, then end this worker so that Ray counts no failure
    of ours (`max_failures` is for those) and starts the run again.
    """
    ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED, timeout_s=COMMIT_S)
    raise RayActorError(error_msg=f"run {name}: told to leave, saved at step {step}", preempted=True)
