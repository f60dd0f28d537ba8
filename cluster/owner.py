"""Ownership of a folder, on a disk or in a bucket: one process at a time writes to it.

    <folder>/owner/000001.json   who: a random token, host, process, start time, time of the last heartbeat

The highest number owns the folder. A new owner writes the next number exclusively: of two, one succeeds, and
an owner that was taken for dead notices (`holds`). The last file stays, marked as released, beside the
results.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster import storage
from cluster.config import Config, validate
from cluster.errors import PlethoraError

FOLDER = "owner"
SIGN_S = 10.0  # between two heartbeats
SILENT_S = 60.0  # a watched remote owner without a heartbeat is dead; exceeds usual bucket outages
LONG_S = 600.0  # without a heartbeat by the clock: dead without watching


class Owner(Config):
    """The owner of a folder. `machine`: where `pid` is valid; `born`: that process's start time, Unix
    seconds."""

    token: str
    host: str
    machine: str
    pid: int
    born: float
    since: float
    sign: float
    given_back: bool = False


@contextlib.contextmanager
def owned(folder: str) -> Iterator[str]:
    """Own `folder` during a `with` block, which gets a token for `holds`. PlethoraError: a live process owns
    it.

    A dead owner is replaced at once if it ran on this machine, else after a minute without a heartbeat.
    """
    number, mine = _take(folder)
    over = threading.Event()

    def sign(**more: bool) -> None:
        now = mine.model_copy(update={"sign": time.time(), **more})
        storage.write_json(_file(folder, number), now.model_dump())

    def live() -> None:
        while not over.wait(SIGN_S):
            with contextlib.suppress(PlethoraError):  # store unavailable: the next heartbeat may succeed
                if holds(folder, mine.token):  # a folder that was taken over or removed is not restored
                    sign()

    living = threading.Thread(target=live, daemon=True)
    living.start()
    try:
        yield mine.token
    finally:
        over.set()
        living.join()
        with contextlib.suppress(PlethoraError):  # the error that ended the block matters more
            if holds(folder, mine.token):
                if all(name.startswith(f"{FOLDER}/") for name in storage.listing(folder)):
                    storage.delete(folder)  # the run left no results
                else:
                    sign(given_back=True)


def holds(folder: str, token: str) -> bool:
    """Whether the owner with this token still owns `folder`: it was neither taken over nor removed."""
    found = _last(folder)
    return found is not None and found[1].token == token


def _file(folder: str, number: int) -> str:
    return storage.join(folder, FOLDER, f"{number:06d}.json")


def _last(folder: str) -> tuple[int, Owner] | None:
    names = [name for name in storage.listing(storage.join(folder, FOLDER)) if name[:6].isdecimal()]
    if not names:
        return None
    number = int(max(names)[:6])
    where = _file(folder, number)
    return number, validate(Owner, storage.read_json(where), where)


def _take(folder: str) -> tuple[int, Owner]:
    last = _last(folder)
    if last is not None and not _dead(folder, *last):
        raise _taken(folder, last[1])
    now, me = time.time(), psutil.Process()
    mine = Owner(
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        machine=_machine(),
        pid=me.pid,
        born=me.create_time(),
        since=now,
        sign=now,
    )
    number = last[0] + 1 if last else 1
    if not storage.write_exclusive(_file(folder, number), storage.json_bytes(mine.model_dump())):
        winner = _last(folder)
        raise _taken(folder, winner[1] if winner else mine)
    if last is not None:
        storage.delete(_file(folder, last[0]))
    return number, mine


def _taken(folder: str, owner: Owner) -> PlethoraError:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(owner.since))
    return PlethoraError(
        f"{folder} belongs to a run under way on {owner.host} (process {owner.pid}, since {since}): wait for "
        "it or stop it, or give another name"
    )


def _dead(folder: str, number: int, owner: Owner) -> bool:
    if owner.given_back:
        return True
    if owner.machine == _machine():
        try:
            process = psutil.Process(owner.pid)
            reused = abs(process.create_time() - owner.born) > 5
            return reused or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
    if time.time() - owner.sign > LONG_S:
        return True
    print(
        f"{folder} belongs to a run on {owner.host}: watching for up to {SILENT_S:g} s for a sign of life",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + SILENT_S  # the clocks of two machines may differ, so the heartbeat must change
    while time.monotonic() < until:
        time.sleep(min(1.0, SILENT_S / 10))
        last = _last(folder)
        if last is None or last[1].given_back:
            return True
        if last != (number, owner):
            return False
    return True


def _machine() -> str:
    """The scope in which a process id is unique: this boot and, in a container, its PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()
