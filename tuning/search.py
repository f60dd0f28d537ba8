"""A search: Ray Tune over runs of the one loop. Its record is all that it needs to go on."""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import session, storage
from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from pretrain.config import RunConfig
from pretrain.planning.actors import with_actors
from tuning import record, trackers
from tuning.config import Values
from tuning.space import Plan, read, text

COUNTABLE = 100_000
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' own telemetry, and the record, say it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search as any command
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # else Tune draws the next points before it knows the last ones' worth
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # no banner about a folder that is gone when it is read
}


def search(path: str, sets: Sequence[str] = (), resume: bool = False) -> dict[str, Any]:
    """Run the search file at `path` to its end. Returns {"best", "objective", "command", "trials", "report"}.

    resume: go on from the record under <storage>/<name> (a fresh start where there is none). PlethoraError:
    what is wrong in the file, or with the machine, before anything starts; an objective that does not exist.
    """
    plan = read(path, sets)
    trackers.check(plan.search.track)
    base = plan.run({}, "name=t")
    for uri in base.corpora:
        open_corpus(uri)  # one that is not there would fail every trial, one after the other
    home = storage.join(base.storage, plan.search.name)
    home = storage.normalise(home)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from tuning.journal import Journal
    from tuning.report import report

    needs = Needs.of(plan)
    # a local Ray has logical CPUs for as many trials as may run at once
    with session.session(needs.most * plan.search.budget.concurrent, needs.actors) as ray:
        room = needs.room(plan, ray)
        journal = Journal(home, described(plan), resume)
        if storage.exists(storage.join(home, record.RESULT)):
            say(f"search {plan.search.name} is complete, and its choice was judged on the test subjects")
        else:
            run(plan, journal, room)
            conclude(plan, journal)
    return told(journal, report(home))


def run(plan: Plan, journal: Any, room: int) -> None:
    """Tune, until the budget is spent. PlethoraError where no trial can succeed."""
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # misses the files of loggers that are off

    from pretrain import driver
    from tuning.board import Board
    from tuning.early import scheduler
    from tuning.room import Room
    from tuning.sampler import Points
    from tuning.table import live
    from tuning.trial import trial
    from tuning.watch import Ending, Watch

    own = plan.search
    score = own.scheduler.metric or own.objective[0].metric
    mode = own.scheduler.mode or own.objective[0].mode
    early = scheduler(own.scheduler, mode, score, journal.having("done", "stopped"))
    watch, held = Watch(plan, journal, early), Room()

    def config_of(name: str, values: Values) -> dict[str, Any]:
        given = plan.run(values, f"storage={text(journal.home)}", f"name={name}")
        trial_run = with_actors(driver.located(given))  # as `Needs` counts them
        watch.begin(name, values, command(plan, values, name))
        objective = [o.model_dump() for o in own.objective]
        return {
            "trial": name, "run": trial_run.model_dump(), "objective": objective, "score": score,
            "room": held.name,
        }  # fmt: skip

    points = Points(plan, journal.trials.values(), config_of, watch.refused)
    journal.search["trials_planned"] = points.most
    if points.over:  # the driver died between the last trial and the choice
        return
    ending = Ending(watch, own.budget.hours)
    began = record.search_of(journal.told())
    shown = [
        Board(journal.home, began, journal.trials.values()),
        *trackers.open_all(own.track, journal.home, began),
    ]
    journal.listeners += [each.told for each in shown]
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="plethora-tune-"))
        for each in shown:
            stack.callback(each.close)
        stack.enter_context(live(journal.record))
        tune.Tuner(
            # the driver only waits: its workers, and the stream's actors, take the CPUs
            tune.with_resources(trial, {"CPU": 0.01}),
            tune_config=tune.TuneConfig(
                search_alg=points, scheduler=early, num_samples=-1, max_concurrent_trials=room,
                trial_name_creator=lambda t: t.config["trial"],
                trial_dirname_creator=lambda t: t.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=scratch, verbose=0, callbacks=[watch, held], stop=ending,
                failure_config=tune.FailureConfig(max_failures=own.budget.retries),
            ),
        ).fit()  # fmt: skip
        if watch.lost:
            raise PlethoraError(watch.lost)
        for left in journal.having("running"):
            watch.tell(left.trial, state="stopped", why=f"budget: {own.budget.hours:g} h are spent")


def conclude(plan: Plan, journal: Any) -> None:
    """Choose the best trial by validation, judge it once on the test subjects, and write result.json."""
    from tuning.final import on_test

    found = journal.record()
    done = found.having("done")
    if not done:
        failed = found.having("failed")
        raise PlethoraError(
            f"search {plan.search.name}: no trial came to its end"
            + (f"; {failed[0].trial}: {failed[0].why}" if failed else ": give it more budget.hours")
        )
    best = found.best()
    assert best is not None and best.bundle is not None
    test = on_test(
        plan, plan.run(best.values, f"storage={text(journal.home)}", f"name={best.run}"), best.bundle
    )
    front = [t.trial for t in found.front()] if len(plan.search.objective) > 1 else []
    storage.write_json(
        storage.join(journal.home, record.RESULT), {"best": best.trial, "front": front, **test}
    )
    journal.search["ended"] = time.time()
    journal.write()


def told(journal: Any, page: str) -> dict[str, Any]:
    """What the command gives back."""
    found = record.read(journal.home)
    best = found.chosen()
    assert best is not None
    states = {state: len(found.having(state)) for state in record.STATES if found.having(state)}
    say(f"best {best.trial}: {best.objective}")
    say(f"     {best.command}")
    say(f"     {page}")
    return {
        "search": journal.home, "best": best.trial, "objective": best.objective, "command": best.command,
        "bundle": best.bundle, "trials": states, "report": page,
        "test": found.result.test_metrics if found.result else {},
    }  # fmt: skip


def described(plan: Plan) -> dict[str, Any]:
    """search.json, less what changes."""
    from pretrain.publish import commit

    own = plan.search
    return {
        "name": own.name,
        "base": shown(plan.base),
        "fixed": list(plan.fixed),
        # (a key that a newer checkout added, at its default, makes no other run)
        "run": plan.run({}, "name=t").model_dump(
            mode="json", exclude={"name", "storage"}, exclude_defaults=True
        ),
        "objective": [o.model_dump() | {"name": o.name} for o in own.objective],
        "space": {key: spread.table() for key, spread in own.space.items()},
        "grid_points": grid_points(plan),
        "scaling": {"axes": list(own.scaling)} if own.scaling else {},
        "scheduler": own.scheduler.model_dump(),
        "searcher": own.searcher.model_dump(mode="json"),
        "budget": own.budget.model_dump(),
        "git_commit": commit() or "",
        "command": f"python -m tuning {shlex.join(sys.argv[1:])}",
    }


def grid_points(plan: Plan) -> int | None:
    """Points of the whole grid; None where a key has no steps, or they are too many to count."""
    levels = [spread.levels() for spread in plan.search.space.values()]
    counts = [len(each) for each in levels if each is not None]
    if len(counts) < len(levels) or math.prod(counts) > COUNTABLE:
        return None
    return sum(1 for _ in plan.search.points())


def command(plan: Plan, values: Values, name: str) -> str:
    """What does the same as a trial, by hand: its objective, to the last digit, is in the bundle's
    metrics.json."""
    from pretrain.recipe import load

    recipe = load(plan.run(values, "name=t").recipe)
    labelled = hasattr(recipe, "targets")  # pretrain.recipe.Labelled
    sets = [*plan.fixed, *plan.sets(values), f"name={plan.search.name}-{name}"]
    words = ["python", "-m", *(("finetune", "vision") if labelled else ("pretrain",)), shown(plan.base)]
    return shlex.join([*words, *(word for each in sets for word in ("--set", each))])


def shown(path: str) -> str:
    """A path from where we are, if it lies below."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Needs:
    """What the largest trial of a search asks of the machine. `most`: workers that it can use, where it can
    do with fewer (`workers`)."""

    workers: int
    most: int
    actors: int
    cpu: float
    gpu: float

    @classmethod
    def of(cls, plan: Plan) -> Needs:
        runs = list(_runs(plan))
        return cls(
            max(run.fewest for run in runs), max(run.most for run in runs),
            max(with_actors(run).stream.count for run in runs),
            max(run.resources.cpu for run in runs), max(run.resources.gpu for run in runs),
        )  # fmt: skip

    def room(self, plan: Plan, ray: Any) -> int:
        """Trials that the cluster can run at once. PlethoraError where not even one, or no node has what a
        worker asks for: Ray would wait for ever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {"CPU": self.cpu, "GPU": self.gpu}
        for name, amount in wanted.items():
            most = max((node.get(name, 0) for node in nodes), default=0)
            if amount > most:
                raise PlethoraError(
                    f"{plan.path}: resources.{name.lower()} = {amount:g} a worker, and the largest node of "
                    f"this cluster has {most:g}: lower it, or add such a node"
                )
        whole = {
            "CPU": self.workers * (self.cpu + self.actors),
            "GPU": self.workers * self.gpu,
        }
        rooms = []
        for name, amount in whole.items():
            have = sum(node.get(name, 0) for node in nodes)
            if amount > have:
                raise PlethoraError(
                    f"{plan.path}: a trial of {self.workers} workers takes {amount:g} {name}s, and the "
                    f"cluster has {have:g}: lower workers or resources.{name.lower()}, or add nodes"
                )
            # the streams of all trials together need one CPU to spare, or never start
            rooms += [max(1, int((have - (name == "CPU")) // amount))] if amount else []
        room = min(plan.search.budget.concurrent, *rooms)
        if room < plan.search.budget.concurrent:
            say(f"search {plan.search.name}: the cluster has room for {room} trials at once")
        return room


def _runs(plan: Plan) -> Iterator[RunConfig]:
    """The run at every end of the space."""
    yield plan.run({}, "name=t")
    for key, spread in plan.search.space.items():
        for end in spread.ends():
            yield plan.run(plan.search.reaching(key) | {key: end}, "name=t")
