"""The record of a search → search.html: one file that needs nothing else, at any moment of the search."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from cluster import storage
from cluster.cli import clock
from cluster.config import Config
from finetune.pagekit.template import filled
from tuning import importance, sections
from tuning.cost import Cost, cost
from tuning.importance import Importances
from tuning.record import Record, Table, Trial, read
from tuning.sections import SHOWN, figures_of, or_dash
from tuning.space import Spread, label

PAGE = "search.html"
TEMPLATES = Path(__file__).parent / "templates"

Columns = Mapping[str, Callable[[Trial], str]]  # {heading: the cell of a trial}


def report(home: str) -> str:
    """Write search.html into the folder of a search (path or s3://…); returns where it is."""
    where = storage.join(storage.normalise(home), PAGE)
    storage.write_bytes(where, render(read(home)).encode())
    return where


def render(record: Record) -> str:
    """The page."""
    best, spent = record.chosen(), cost(record)
    goals = range(len(record.search.objective))
    found = [importance.importances(record, number) for number in goals]
    return filled(
        "search.html",
        TEMPLATES,
        ["search.css"],
        search=record.search,
        result=record.result,
        counts=_counts(record),
        warned=warnings(record),
        verdict=verdict(record, found, spent),
        best=best,
        best_values=[(name, label(value)) for name, value in best.values.items()] if best else [],
        figures=figures_of(record, best) if best else "",
        parallel=sections.parallel_plots(record, found[0]),
        goals=[sections.goal(record, number, found[number]) for number in goals],
        front=sections.front(record),
        front_table=_front(record),
        scaling=sections.scaling_curve(record),
        ended=[table for table in (_stopped(record), _failed(record)) if table.body],
        bars=sections.cost_bars(spent, len(record.trials)),
        cost_facts=sections.cost_facts(record, spent),
        trials=_trials(record),
        facts=facts(record),
        trial_commands=[(t.trial, t.command) for t in record.trials if t.command],
    )


# ---------------------------------------------------------------- in words


def _counts(record: Record) -> str:
    found = [(len(record.having(state)), SHOWN[state]) for state in ("done", "stopped", "failed", "running")]
    counts = ", ".join(f"{count} {name}" for count, name in found if count)
    planned = f" of {record.planned}" if record.planned != len(record.trials) else ""
    return f"{len(record.trials)}{planned} trials: {counts}" if counts else "no trial yet"


def warnings(record: Record) -> list[str]:
    """What a reader must know before believing the page."""
    found = []
    if record.result is None:
        found.append("the search is not finished: this page shows it as it stood")
    elif not record.result.test:
        found.append(
            "the best trial was not evaluated on test subjects; its validation figures are optimistic"
        )
    if not record.having("done") and record.trials:
        found.append("no trial has finished: the best is the best so far, at whatever step")
    failed = len(record.having("failed"))
    if failed and failed * 5 >= len(record.trials):
        found.append(f"{failed} of {len(record.trials)} trials failed: their results are missing")
    return found


def verdict(record: Record, found: Iterable[Importances | str], spent: Cost) -> list[str]:
    """What was found, a sentence each."""
    best, lines = record.chosen(), []
    if best is not None:
        costs = dict((trial.trial, value) for value, trial in record.measured("done"))
        value = costs.pop(best.trial, None)
        lead = ""
        if value is not None and costs and min(costs.values()) >= value:
            behind = min(costs.values()) - value
            lead = f"; the next finished trial is {f'{behind:.2g} behind' if behind else 'as good'}"
        lines.append(
            f"Best: {best.trial}, {figures_of(record, best)} on validation subjects{lead}. "
            "The best of many trials looks better there than it is; figures on test subjects do not."
        )
    for each in found:
        if isinstance(each, str):
            lines.append(f"Importance is not known: {each}.")
            continue
        names = ", ".join(f"{row.key} ({100 * row.value:.0f} %)" for row in each.rows if row.significant)
        rest = sum(not row.significant for row in each.rows)
        none = f"; the other {rest} cannot be told from noise" if rest and names else ""
        lines.append(f"What moves {each.objective}: {names or 'no key can be told from noise'}{none}.")
    if spent.saved is not None and record.having("stopped"):
        share = f"{100 * spent.saved:.0f} %"
        lines.append(f"Early stopping saved {share} of what the same trials would have cost.")
    return lines


def facts(record: Record) -> list[str]:
    """How the search was made, a line each."""
    search, info = record.search, record.info
    goals = " and ".join(f"{o.name} ({o.mode})" for o in search.objective)
    lines = [
        f"Base run: {search.base}; objective, on validation subjects only: {goals}.",
        *(f"{name}: {_range(spread)}." for name, spread in search.space.items()),
        f"Searcher: {_settings(search.searcher)}. Scheduler: {_settings(search.scheduler)}.",
        f"Budget: {_settings(search.budget)}.",
    ]
    retried = ", ".join(f"{t.trial} ({t.retries})" for t in record.trials if t.retries)
    if retried:
        lines.append(f"Retried after a failure: {retried}.")
    if info.command:
        lines.append(f"Started by: {info.command}")
    if info.git_commit:
        changed = ", with uncommitted changes" if info.git_commit.endswith("-dirty") else ""
        lines.append(f"Commit {info.git_commit[:12]}{changed}.")
    return lines


def _range(spread: Spread) -> str:
    kinds = {"choice": "one of ", "uniform": "", "loguniform": "logarithmic, ", "int": "integers, "}
    values = [" to ".join(map(label, spread.bounds))] if spread.numeric else map(label, spread.choices)
    conditions = (f"{k} is {' or '.join(map(label, wanted))}" for k, wanted in spread.conditions.items())
    where = f", where {' and '.join(conditions)}" if spread.when else ""
    return f"{kinds[spread.kind]}{', '.join(values)}{where}"


def _settings(given: Config) -> str:
    shown = {k: f"{len(v)} points" if k == "start" else label(v) for k, v in given.model_dump().items() if v}
    kind = [shown.pop("kind")] if "kind" in shown else []
    return ", ".join([*kind, *(f"{key} {value}" for key, value in shown.items())])


# ---------------------------------------------------------------- tables


def _table(title: str, trials: Iterable[Trial], columns: Columns) -> Table:
    body = (tuple(cell(trial) for cell in columns.values()) for trial in trials)
    return Table(title, tuple(columns), tuple(body))


def _value(name: str, trial: Trial) -> str:
    return or_dash(trial.at_end(name))


def _setting(key: str, trial: Trial) -> str:
    return label(trial.values[key]) if key in trial.values else ""


def _objectives(record: Record) -> dict[str, Callable[[Trial], str]]:
    return {o.title: partial(_value, o.name) for o in record.search.objective}


def _front(record: Record) -> Table:
    def values(trial: Trial) -> str:
        return ", ".join(f"{name} {label(value)}" for name, value in trial.values.items())

    columns = {"": lambda t: t.trial, **_objectives(record), "values": values}
    return _table("On the front", record.front(), columns)


def _stopped(record: Record) -> Table:
    title, value = next(iter(_objectives(record).items()))
    columns: Columns = {
        "": lambda t: t.trial,
        "at step": lambda t: f"{t.step}" + (f" of {t.steps}" if t.steps else ""),
        title: value,
        "why": lambda t: t.why,
    }
    return _table("Stopped early", record.having("stopped"), columns)


def _failed(record: Record) -> Table:
    columns: Columns = {
        "": lambda t: t.trial,
        "at step": lambda t: f"{t.step}",
        "retries": lambda t: f"{t.retries}",
        "why": lambda t: t.why,
    }
    return _table("Failed", record.having("failed"), columns)


def _trials(record: Record) -> Table:
    first = record.search.objective[0]

    def order(trial: Trial) -> tuple[int, float]:
        value = trial.at_end(first.name)
        place = ("done", "running", "stopped", "failed").index(trial.state)
        return place, float("inf") if value is None else first.sign * value

    columns: Columns = {
        "": lambda t: t.trial,
        "state": lambda t: SHOWN[t.state],
        **_objectives(record),
        "step": lambda t: f"{t.step}",
        "spent": lambda t: clock(t.spent_s),
        **{key: partial(_setting, key) for key in record.search.space},
    }
    return _table("All trials", sorted(record.trials, key=order), columns)
