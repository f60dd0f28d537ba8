"""A search: Ray Tune over runs. It resumes from its record alone."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import session, storage
from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from pretrain.planning.actors import with_actors
from tuning import record, trackers
from tuning.config import Search
from tuning.plan import Plan, read, toml
from tuning.record import Info, Record, Result
from tuning.resources import Resources
from tuning.space import Values, grid_points

if TYPE_CHECKING:
    from tuning.journal import Journal

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' telemetry and the record have it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search as any command
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # else Tune asks for points before the last results are known
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # no banner about a folder that is gone when somebody reads it
}


def search(path: str, sets: Sequence[str] = (), resume: bool = False) -> dict[str, Any]:
    """Run the search file at `path` to its end. Returns {"best", "objective", "command", "trials", "report"}.

    resume: continue from the record under <storage>/<name>, if there is one. PlethoraError: what is wrong in
    the file, or with the machine, before anything starts; an objective that validation does not have.
    """
    plan = read(path, sets)
    trackers.check(plan.search.track)
    base = plan.run({}, "name=t")
    for uri in base.corpora:
        open_corpus(uri)  # a missing one would fail every trial, one after the other
    home = storage.normalise(storage.join(base.storage, plan.search.name))
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from tuning.journal import Journal
    from tuning.report import report

    needs = Resources.of(plan)
    # a local Ray has logical CPUs for as many trials as may run at once
    with session.session(needs.most * plan.search.budget.concurrent, needs.actors) as ray:
        concurrent = needs.concurrent(plan, ray)
        journal = Journal(home, *described(plan), resume)
        if storage.exists(storage.join(home, record.RESULT)):
            say(f"search {plan.search.name} is complete: its best trial was evaluated on the test subjects")
        else:
            run(plan, journal, concurrent)
            conclude(plan, journal)
    return summary(record.read(home), report(home))


def run(plan: Plan, journal: Journal, concurrent: int) -> None:
    """Run trials until the budget is spent. PlethoraError: no trial can succeed."""
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # warns about the loggers that are off

    from pretrain import driver
    from tuning.board import Board
    from tuning.callback import JournalCallback, SearchStopper
    from tuning.live import live
    from tuning.placement import FreeWorkers
    from tuning.sampler import StudySearcher
    from tuning.schedulers import scheduler
    from tuning.trial import TrialConfig, trial

    ours = plan.search
    score, mode = ours.score
    stopping = scheduler(ours.scheduler, mode, score, journal.record().having("done", "stopped"))
    callback, free = JournalCallback(plan, journal, stopping), FreeWorkers()

    def config_of(name: str, values: Values) -> dict[str, Any]:
        given = plan.run(values, f"storage={toml(journal.home)}", f"name={name}")
        located = with_actors(driver.located(given))  # as `Resources` counts them
        callback.start(name, values, command(plan, values, name))
        return TrialConfig(name, located, ours.objective, score, free.name).to_json()

    points = StudySearcher(plan, journal.trials.values(), config_of, callback.refused)
    journal.note(trials_planned=points.most)
    if points.over:  # the driver died after the last trial
        return
    opened = journal.record()
    shown = [Board(opened), *trackers.open_all(ours.track, opened)]
    journal.listeners += [each.update for each in shown]
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="plethora-tune-"))
        for each in shown:
            stack.callback(each.close)
        stack.enter_context(live(journal.record))
        tune_config = tune.TuneConfig(
            search_alg=points,
            scheduler=stopping,
            num_samples=-1,
            max_concurrent_trials=concurrent,
            trial_name_creator=lambda t: t.config["trial"],
            trial_dirname_creator=lambda t: t.config["trial"],
        )
        run_config = tune.RunConfig(
            name="tune",
            storage_path=scratch,
            verbose=0,
            callbacks=[callback, free],
            stop=SearchStopper(callback, ours.budget.hours),
            failure_config=tune.FailureConfig(max_failures=ours.budget.retries),
        )
        # a trial's driver only waits: its workers, and the stream's actors, take the CPUs
        waiting = tune.with_resources(trial, {"CPU": 0.01})
        tune.Tuner(waiting, tune_config=tune_config, run_config=run_config).fit()
        if callback.hopeless:
            raise PlethoraError(callback.hopeless)
        for left in journal.record().having("running"):
            callback.update(left.trial, state="stopped", why=f"budget: {ours.budget.hours:g} h are spent")


def conclude(plan: Plan, journal: Journal) -> None:
    """Choose the best trial by validation, evaluate it once on the test subjects, and write result.json."""
    from tuning.final import on_test

    found = journal.record()
    if not found.having("done"):
        failed = found.having("failed")
        why = f"; {failed[0].trial}: {failed[0].why}" if failed else ": raise budget.hours"
        raise PlethoraError(f"search {plan.search.name}: no trial finished{why}")
    best = found.best()
    assert best is not None and best.bundle is not None
    trained = plan.run(best.values, f"storage={toml(journal.home)}", f"name={best.run}")
    table, metrics = on_test(plan.search, trained, best.bundle)
    front = tuple(t.trial for t in found.front()) if len(plan.search.objective) > 1 else ()
    result = Result(best.trial, front, (table,), metrics)
    storage.write_json(storage.join(journal.home, record.RESULT), result.to_json())
    journal.note(ended=time.time())
    journal.write()


def summary(found: Record, page: str) -> dict[str, Any]:
    """What the command returns."""
    best = found.chosen()
    assert best is not None
    say(f"best {best.trial}: {best.objective}")
    say(f"     {best.command}")
    say(f"     {page}")
    return {
        "search": found.home,
        "best": best.trial,
        "objective": best.objective,
        "command": best.command,
        "bundle": best.bundle,
        "trials": {s: len(found.having(s)) for s in record.STATES if found.having(s)},
        "report": page,
        "test": found.result.test_metrics if found.result else {},
    }


def described(plan: Plan) -> tuple[Search, Info]:
    """What search.json says from the start."""
    from pretrain.publish import commit

    # (without defaults: a key that a newer checkout added, at its default, makes no other run)
    base = plan.run({}, "name=t")
    info = Info(
        fixed=plan.fixed,
        run=base.model_dump(mode="json", exclude={"name", "storage"}, exclude_defaults=True),
        git_commit=commit() or "",
        command=f"python -m tuning {shlex.join(sys.argv[1:])}",
        grid_points=grid_points(plan.search.space),
    )
    return plan.search.model_copy(update={"base": relative(plan.base)}), info


def command(plan: Plan, values: Values, name: str) -> str:
    """The command that does the same as a trial: its objective, to the last digit, is in the bundle's
    metrics.json."""
    from pretrain.recipe import load

    recipe = load(plan.run(values, "name=t").recipe)
    labelled = hasattr(recipe, "targets")  # a class: `has` asks an instance
    sets = [*plan.fixed, *plan.sets(values), f"name={plan.search.name}-{name}"]
    words = ["python", "-m", *(("finetune", "vision") if labelled else ("pretrain",)), relative(plan.base)]
    return shlex.join([*words, *(word for each in sets for word in ("--set", each))])


def relative(path: str) -> str:
    """A path relative to the current folder, if it lies below."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
