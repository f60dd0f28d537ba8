"""Work done in a process of its own that ends itself with SIGKILL at its n-th call to storage."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

SHARD_BYTES = 17_000  # a shard a subject of tests.datasets.recordings.little
CONTEXT = multiprocessing.get_context("forkserver")  # a server without threads: its forks are sound
CONTEXT.set_forkserver_preload(["tests.s3.killing", "datasets.ingest", "cluster.bundle", "s3fs", "wfdb"])


class Counter:
    """Counts the calls that change storage; at call `kill_at` (from 1) half of it is done, then SIGKILL."""

    def __init__(self, kill_at: int) -> None:
        self.kill_at, self.calls = kill_at, 0

    def wrap(self, owner: Any, name: str, half: Callable[..., Any] | None = None) -> None:
        """Count `owner.name`; `half(real, *its arguments)` does the part of it that a death leaves."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def counted(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.kill_at:
                if half is not None:
                    half(real, *given, **named)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        setattr(owner, name, counted)


def _watch(counter: Counter) -> None:
    """Count everything that reaches a disk or a bucket on the way to a corpus or a bundle."""
    import shutil

    from cluster import s3, storage
    from datasets import write

    def some_bytes(real: Any, sink: Any, data: Any) -> None:
        real(sink, bytes(memoryview(data)[: max(1, memoryview(data).nbytes // 2)]))

    counter.wrap(write._Hashing, "write", some_bytes)
    counter.wrap(write._Hashing, "close")
    for name in ("replace", "rename", "link", "fsync"):
        counter.wrap(os, name)
    for name in ("unlink", "rmdir"):
        counter.wrap(os, name, lambda real, *given, **named: real(*given, **named))
    counter.wrap(Path, "unlink", lambda real, *given, **named: real(*given, **named))
    counter.wrap(shutil, "copyfileobj", _half_a_file)
    counter.wrap(storage, "_copy", lambda real, source, target: real(source, target))
    counter.wrap(s3, "_call", lambda real, *given, **named: real(*given, **named))
    counter.wrap(s3, "put_file", lambda real, source, uri: real(source, uri))


def _half_a_file(_real: Any, reader: Any, writer: Any, *_: Any) -> None:
    data = reader.read()
    writer.write(data[: len(data) // 2])
    writer.flush()


def _child(env: Mapping[str, str], work: str, given: tuple[Any, ...], kill_at: int, says: Any) -> None:
    os.environ.update(env)
    counter = Counter(kill_at)
    _watch(counter)
    globals()[work](*given)
    says.send(counter.calls)
    says.close()


def start(env: Mapping[str, str], work: str, *given: Any, kill_at: int = 0) -> tuple[ForkServerProcess, Any]:
    """Begin `work` (a function of this module) in a child; kill_at 0: it ends in peace."""
    listens, says = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_child, args=(dict(env), work, given, kill_at, says))
    child.start()
    says.close()
    return child, listens


def run(env: Mapping[str, str], work: str, *given: Any, kill_at: int = 0) -> int | None:
    """Do `work` in a child: how many calls it made to storage, or None when it was killed."""
    child, listens = start(env, work, *given, kill_at=kill_at)
    child.join(120)
    if child.exitcode == -signal.SIGKILL:
        return None
    assert child.exitcode == 0, f"{work} ended with {child.exitcode}"
    return int(listens.recv())


def ingest(descriptor: str, root: str, out: str, force: bool = False) -> None:
    """An ingest whose tasks run in this process, a shard a subject."""
    from datasets import ingest as module
    from datasets import jobs

    in_process = functools.partial(jobs.run, in_process=True)
    jobs.run = in_process  # type: ignore[assignment]
    module.plan.__defaults__ = (SHARD_BYTES,)
    module.ingest(descriptor, root, out, force)


def publish(folder: str, uri: str) -> None:
    """Publish a finished folder as a bundle."""
    from cluster import bundle

    bundle.publish(Path(folder), uri)
