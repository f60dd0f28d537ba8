"""The faults: each strikes a run and returns once the world is whole again; the run must mend itself, or,
where it may end, `--resume` must.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil

from tests.chaos_world import World, until

STEPS = 40


@dataclass(frozen=True)
class Drawn:
    """One run's fate."""

    number: int
    kind: str
    step: int  # the fault strikes when this step begins; 0: as the run starts; STEPS: while it ends
    zero: int  # engine.zero_stage
    seconds: float  # how long what lasts, lasts
    which: int  # of the workers
    long: bool  # what lasts outlasts the run's patience

    def __str__(self) -> str:
        when = {0: "as it starts", STEPS: "while it ends"}.get(self.step, f"at step {self.step}")
        return f"{self.kind} {when}, zero {self.zero}"


Driver = subprocess.Popen  # the process of the run's driver
Fault = Callable[[World, Drawn, Driver], None]


def kill_worker(world: World, drawn: Drawn, driver: Driver) -> None:
    _one(world, drawn).kill()


def terminate_worker(world: World, drawn: Drawn, driver: Driver) -> None:
    """SIGTERM to one worker: it saves and leaves."""
    _one(world, drawn).terminate()


def stop_worker(world: World, drawn: Drawn, driver: Driver) -> None:
    """A straggler: a worker that stands still for a while."""
    victim = _one(world, drawn)
    victim.suspend()
    time.sleep(drawn.seconds)
    victim.resume()


def kill_actor(world: World, drawn: Drawn, driver: Driver) -> None:
    """It reads ahead of the first step, and so small a corpus at one go."""
    until(lambda: world.running("MapWorker"), 180, "a transform actor runs")[-1].kill()


def lose_machine(world: World, drawn: Drawn, driver: Driver) -> None:
    """A machine that trains dies; another comes after a while."""
    world.lose(world.host(_one(world, drawn)))
    time.sleep(drawn.seconds)
    world.add()


def warned_machine(world: World, drawn: Drawn, driver: Driver) -> None:
    """A machine that trains is reclaimed 45 s after its notice; another comes at once."""
    machine = world.host(_one(world, drawn))
    raylet = machine.all_processes["raylet"][0].process.pid
    world.warn(machine, 45)
    world.add()
    until(
        lambda: not [p for p in world.trainers() if raylet in {q.pid for q in p.parents()}],
        45,
        "workers leave a machine after its notice",
    )
    world.lose(machine)


def kill_driver(world: World, drawn: Drawn, driver: Driver) -> None:
    driver.kill()


def kill_controller(world: World, drawn: Drawn, driver: Driver) -> None:
    """The process that watches the workers: the driver then says so and ends."""
    until(lambda: world.running("TrainController"), 10, "a controller runs")[-1].kill()
    driver.wait(60)


def busy_bucket(world: World, drawn: Drawn, driver: Driver) -> None:
    """The bucket answers 503 to everything."""
    assert world.proxy is not None
    seconds = 10 * drawn.seconds
    world.proxy.outage(seconds)
    time.sleep(seconds)


def full_disk(world: World, drawn: Drawn, driver: Driver) -> None:
    """The disk that the run is stored on is full: for a while, or until the run has given up."""
    with world.full():
        if drawn.long:
            until(lambda: driver.poll() is not None, 180, "a run gives up on a full disk")
        else:
            time.sleep(drawn.seconds)


def pressed_store(world: World, drawn: Drawn, driver: Driver) -> None:
    with world.pressed():
        until(lambda: driver.poll() is not None, 180, "a run ends beside a full object store")


def lose_for_good(world: World, drawn: Drawn, driver: Driver) -> None:
    """Of an elastic run: a machine dies, the run goes on with one worker until another machine comes."""
    world.lose(world.host(_one(world, drawn)))
    trail = world.home / f"run-{drawn.number}-trail"
    until(lambda: trail.read_text().endswith(" 1\n"), 180, "the run goes on with one worker")
    world.add()


def _one(world: World, drawn: Drawn) -> psutil.Process:
    """The worker that it befalls."""
    workers = world.trainers()
    return workers[drawn.which % len(workers)]


FAULTS: dict[str, Fault] = {
    "worker": kill_worker,
    "actor": kill_actor,
    "machine": lose_machine,
    "driver": kill_driver,
    "controller": kill_controller,
    "notice": warned_machine,
    "sigterm": terminate_worker,
    "straggler": stop_worker,
    "bucket": busy_bucket,
    "disk": full_disk,
    "store": pressed_store,
    "elastic": lose_for_good,
}
PACE_S = {"notice": 0.4, "elastic": 0.8}  # of a step; a notice takes seconds to be heard, a machine to come
ENDS = {"driver", "controller", "disk", "bucket"}  # where the driver may end; --resume then goes on
LOSES_NOTHING = {"notice", "sigterm", "straggler", "actor", "store"}


def draw(runs: int, seed: int) -> list[Drawn]:
    """`runs` fates from a seed: every kind before any comes again, everything else at random."""
    rng = np.random.default_rng(seed)
    kinds: list[str] = []
    while len(kinds) < runs:
        kinds += [str(kind) for kind in rng.permutation(sorted(FAULTS))]
    out = []
    for number, kind in enumerate(kinds[:runs]):
        # while it ends, nobody stands still, leaves or shrinks any more
        last = STEPS // 2 if kind in LOSES_NOTHING | {"elastic"} else STEPS
        fate = Drawn(
            number=number,
            kind=kind,
            step=0 if kind == "actor" else int(rng.integers(2, last + 1)),
            zero=int(rng.integers(0, 2)),
            seconds=round(float(rng.uniform(2, 6)), 1),
            which=int(rng.integers(0, 2)),
            long=bool(rng.integers(0, 2)),
        )
        out.append(fate)
    return out
