"""The record of a search → search.html: one file that needs nothing else, at any moment of the search."""

from pathlib import Path
from typing import Any

from cluster import storage
from cluster.cli import clock
from finetune.reports.page import filled
from finetune.reports.parts import Table
from tuning import importance
from tuning.importance import Judged
from tuning.parallel import text
from tuning.record import Record, Trial, read
from tuning.sections import (
    SHOWN,
    bars_of,
    cost_facts,
    figures_of,
    front_of,
    goal_of,
    scaling_of,
    space_of,
    text_or_dash,
)  # fmt: skip
from tuning.spending import Spending, spending

PAGE = "search.html"
TEMPLATES = Path(__file__).parent / "templates"


def report(home: str) -> str:
    """Write search.html into the folder of a search (path or s3://…); returns where it is."""
    where = storage.join(storage.normalise(home), PAGE)
    storage.write_bytes(where, render(read(home)).encode())
    return where


def render(record: Record) -> str:
    """The page."""
    search = record.search
    judged = [importance.judge(record, number) for number in range(len(search.objective))]
    spent = spending(record)
    best = record.chosen()
    return filled(
        "search.html", TEMPLATES, ["search.css"],
        search=search,
        counts=_counts(record),
        warned=warnings(record),
        verdict=verdict(record, judged, spent),
        best=best,
        best_values=[(name, text(value)) for name, value in best.values.items()] if best else [],
        figures=figures_of(record, best) if best else "",
        tests=[_table(t) for t in (record.result.test if record.result else ())],
        notes=list(record.result.notes) if record.result else [],
        parallel=space_of(record, best, judged[0]),
        goals=[goal_of(record, number, found) for number, found in enumerate(judged)],
        front=front_of(record),
        scaling=scaling_of(record),
        ended=[t for t in (_stopped(record), _failed(record)) if t.body],
        bars=bars_of(spent, len(record.trials)),
        cost_facts=cost_facts(record, spent),
        trials=_trials(record),
        commands=[(t.trial, t.command) for t in record.trials if t.command],
        facts=facts(record),
    )  # fmt: skip


# ---------------------------------------------------------------- in words


def _counts(record: Record) -> str:
    found = [(len(record.having(state)), SHOWN[state]) for state in ("done", "stopped", "failed", "running")]
    told = ", ".join(f"{count} {name}" for count, name in found if count)
    planned = record.search.trials_planned or record.search.budget.get("trials")
    of = f" of {planned}" if planned and planned != len(record.trials) else ""
    return f"{len(record.trials)}{of} trials: {told}" if told else "no trial yet"


def warnings(record: Record) -> list[str]:
    """What a reader must know before believing the page."""
    found = []
    if record.result is None:
        found.append("the search is not finished: this page shows it as it stood")
    elif not record.result.test:
        found.append("the chosen trial was not judged on test subjects; validation figures flatter it")
    if not record.having("done") and record.trials:
        found.append("no trial came to its end: the best is the best so far, at whatever step")
    failed = len(record.having("failed"))
    if failed and failed * 5 >= len(record.trials):
        found.append(f"{failed} of {len(record.trials)} trials failed; what they would have shown is missing")
    return found


def verdict(record: Record, judged: list[Judged | str], spent: Spending) -> list[str]:
    """What was found, a sentence each."""
    best, said = record.chosen(), []
    if best is not None:
        objective = record.search.objective[0]
        value = best.at_end(objective.name)
        rivals = [
            objective.sign * ((t.at_end(objective.name) or 0.0) - (value or 0.0))
            for t in record.having("done")
            if t is not best and t.at_end(objective.name) is not None
        ]
        lead = ""
        if rivals and min(rivals) >= 0:
            behind = f"{min(rivals):.2g} behind" if min(rivals) else "as good"
            lead = f"; the next finished trial is {behind}"
        said.append(
            f"Best: {best.trial}, {figures_of(record, best)} on validation subjects{lead}. "
            "The best of many looks better there than it is; figures on test subjects do not."
        )
    for found in judged:
        if isinstance(found, str):
            said.append(f"Importance cannot be told: {found}.")
            continue
        telling = [row for row in found.rows if row.telling]
        names = ", ".join(f"{row.key} ({100 * row.value:.0f} %)" for row in telling)
        rest = len(found.rows) - len(telling)
        none = f"; of the other {rest}, none can be told from noise" if rest and telling else ""
        said.append(f"What moves {found.objective}: {names or 'no key can be told from noise'}{none}.")
    if spent.saved is not None and record.having("stopped"):
        said.append(
            f"Stopping early saved {100 * spent.saved:.0f} % of what the same trials would have cost."
        )
    return said


def facts(record: Record) -> list[str]:
    """How the search was made, a line each."""
    search = record.search
    goals = " and ".join(f"{o.name} ({o.mode})" for o in search.objective)
    lines = [
        f"Base run: {search.base}; objective, on validation subjects only: {goals}.",
        *(f"{name}: {_told(key)}." for name, key in search.space.items()),
        f"Searcher: {_settings(search.searcher)}. Scheduler: {_settings(search.scheduler)}.",
        f"Budget: {_settings(search.budget)}.",
    ]
    retried = [t for t in record.trials if t.retries]
    if retried:
        lines.append(
            "Tried again after a failure: " + ", ".join(f"{t.trial} ({t.retries})" for t in retried) + "."
        )
    if search.command:
        lines.append(f"Started by: {search.command}")
    if search.git_commit:
        changed = ", with changes that are not in it" if search.git_commit.endswith("-dirty") else ""
        lines.append(f"Commit {search.git_commit[:12]}{changed}.")
    return lines


def _told(key: Any) -> str:
    what = ", ".join(map(text, key.choices)) if not key.numeric else f"{text(key.low)} to {text(key.high)}"
    kind = {"choice": "one of ", "uniform": "", "loguniform": "logarithmic, ", "int": "whole numbers, "}.get(
        key.kind, ""
    )
    asks = " and ".join(f"{other} is {' or '.join(map(text, key.asks(other)))}" for other in key.when)
    return f"{kind}{what}" + (f", where {asks}" if asks else "")


def _settings(given: dict[str, Any]) -> str:
    head = [str(given["kind"])] if given.get("kind") else []
    shown = {k: f"{len(v)} given points" if k == "start" else text(v) for k, v in given.items() if v}
    rest = [f"{k} {v}" for k, v in shown.items() if k != "kind"]
    return ", ".join(head + rest) or "as by default"


# ---------------------------------------------------------------- tables


def _table(given: dict[str, Any]) -> Table:
    cells = [[str(c) for c in line] for line in given["body"]]
    return Table(given.get("title", ""), list(given["header"]), cells, tuple(given.get("notes", ())))


def _stopped(record: Record) -> Table:
    name = record.search.objective[0]
    body = [
        [
            t.trial,
            f"{t.step}" + (f" of {t.steps}" if t.steps else ""),
            text_or_dash(t.at_end(name.name)),
            t.why,
        ]
        for t in record.having("stopped")
    ]
    return Table("Stopped early", ["", "at step", name.title, "why"], body)


def _failed(record: Record) -> Table:
    body = [[t.trial, f"{t.step}", f"{t.retries}", t.why] for t in record.having("failed")]
    return Table("Failed", ["", "at step", "retries", "why"], body)


def _trials(record: Record) -> Table:
    search = record.search
    first = search.objective[0]

    def order(trial: Trial) -> tuple[int, float]:
        value = trial.at_end(first.name)
        place = ("done", "running", "stopped", "failed").index(trial.state)
        return place, float("inf") if value is None else first.sign * value

    body = [
        [
            t.trial, SHOWN[t.state], *(text_or_dash(t.at_end(o.name)) for o in search.objective), str(t.step),
            clock(t.spent_s), *(text(t.values[k]) if k in t.values else "" for k in search.space),
        ]
        for t in sorted(record.trials, key=order)
    ]  # fmt: skip
    header = ["", "state", *(o.title for o in search.objective), "step", "spent", *search.space]
    return Table("All trials", header, body)
