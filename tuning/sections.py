"""Parts of the search page that are drawn: parallel coordinates, importance, curves, front, scaling, cost."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from cluster.cli import clock
from finetune.reports.page import Group
from finetune.reports.panels import Panel
from finetune.reports.parts import Table
from tuning import importance, parallel, pictures, scaling
from tuning.importance import Judged
from tuning.parallel import text
from tuning.record import Record, Trial
from tuning.spending import POINTS, Spending

SHOWN = {"done": "finished", "stopped": "stopped early", "failed": "failed", "running": "running"}


@dataclass(frozen=True)
class Bar:
    """One line of a chart of bars; `share`: percent of its width."""

    label: str
    share: float
    figures: str
    look: str = ""


@dataclass(frozen=True)
class Weight:
    """Importance of one key in percent of the axis."""

    label: str
    low: float
    value: float
    high: float
    figures: str
    look: str  # "better": it tells; "level": it may be noise


@dataclass(frozen=True)
class Goal:
    """What one objective has to show."""

    title: str
    about: str
    unseen: str  # R²
    weights: list[Weight]
    groups: list[Group] = field(default_factory=list)


def figures_of(record: Record, trial: Trial) -> str:
    """``val/mae 8.12 bpm at step 80``."""
    values = [(o, trial.at_end(o.name)) for o in record.search.objective]
    told = [f"{o.name} {text(v)}{f' {o.unit}' if o.unit else ''}" for o, v in values if v is not None]
    return ", ".join(told) + f" at step {trial.step}"


def text_or_dash(value: float | None) -> str:
    return "–" if value is None else text(value)


# ---------------------------------------------------------------- pictures


def space_of(record: Record, best: Trial | None, judged: Judged | str) -> list[Markup]:
    """The same plot for a wide and for a narrow screen; the keys that matter stand next to the objective."""
    objective = record.search.objective[0]
    trials, values, _ = importance.comparable(record, objective.name)
    if len(trials) < 2:
        return []
    columns: list[tuple[str, list[float | None], str]] = []
    ends = [t.at_end(objective.name) if t.state == "done" else None for t in trials]
    if None in ends:
        columns.append((f"{objective.name} early", [float(v) for v in values], ""))
    if any(v is not None for v in ends):
        columns.append((objective.title, ends, "stopped"))
    for other in record.search.objective[1:]:
        columns.append((other.title, [t.at_end(other.name) for t in trials], "none"))
    order = sorted(range(len(trials)), key=lambda i: (trials[i] is best, trials[i].state == "done"))
    trials = [trials[i] for i in order]
    columns = [(title, [figures[i] for i in order], absent) for title, figures, absent in columns]
    lines = [
        parallel.Line(
            f"{t.trial}, {SHOWN[t.state]}: {figures_of(record, t)}\n"
            + "\n".join(f"{k} = {text(v)}" for k, v in t.values.items()),
            "chosen" if t is best else t.state,
        )
        for t in trials
    ]
    weight = {} if isinstance(judged, str) else {row.key: row.value for row in judged.rows}
    keys = sorted(record.search.space, key=lambda key: weight.get(key, 0.0))
    axes = parallel.axes_of({key: record.search.space[key] for key in keys}, trials, columns)
    return [parallel.picture(axes, lines, upright) for upright in (False, True)]


def goal_of(record: Record, number: int, found: Judged | str) -> Goal:
    objective = record.search.objective[number]
    weights, about, unseen = [], found if isinstance(found, str) else found.about, ""
    if not isinstance(found, str):
        unseen = f"{max(found.unseen, 0.0):.2f}"
        for row in found.rows:
            label = f"{row.key} (where {row.among})" if row.among else row.key
            figures = f"{100 * row.value:.0f} % [{100 * row.low:.0f}, {100 * row.high:.0f}]"
            low, value, high = (100 * min(max(v, 0.0), 1.0) for v in (row.low, row.value, row.high))
            weights.append(Weight(label, low, value, high, figures, "better" if row.telling else "level"))
    shown = f"A dot a trial: {importance.comparable(record, objective.name)[2]}."
    groups = [Group("Each key alone", shown, [*pictures.slices(record, number)], "small")]
    curves = pictures.curves(record, number)
    if curves is not None:
        read = "A line a trial. Grey with a cross: stopped or failed. Thick: the chosen one."
        groups.append(Group("Learning curves", read, [curves], "wide"))
    return Goal(objective.title, about, unseen, weights, [g for g in groups if g.panels])


def front_of(record: Record) -> tuple[Panel, Table] | None:
    if len(record.search.objective) < 2:
        return None
    members = record.front()
    if not members:
        return None
    goals = record.search.objective
    body = [[t.trial, *(text_or_dash(t.at_end(o.name)) for o in goals), _said(t.values)] for t in members]
    table = Table("On the front", ["", *(o.title for o in goals), "values"], body)
    return pictures.front(record, members), table


def _said(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {text(value)}" for name, value in values.items())


def scaling_of(record: Record) -> Group | None:
    """The fitted curve over the sizes that trials tell among their facts."""
    objective, axes = record.search.objective[0], list(record.search.scaling.get("axes", ()))
    if not axes:
        return None
    told = [t for t in record.having("done") if t.at_end(objective.name) is not None]
    told = [t for t in told if all(isinstance(t.facts.get(axis), int | float) for axis in axes)]
    x = np.array([[float(t.facts[axis]) for axis in axes] for t in told]).reshape(len(told), len(axes))
    y = np.array([t.at_end(objective.name) for t in told], float)
    varied = [i for i in range(len(axes)) if len(np.unique(x[:, i])) > 1]
    if not varied:
        return Group("Scaling", f"No curve yet: no two finished trials differ in {' or '.join(axes)}.", [])
    names = [axes[i] for i in varied]
    found = scaling.fit(names, x[:, varied], y, objective.sign)
    if isinstance(found, str):
        return Group("Scaling", f"No curve: {found}.", [])
    floor = [drawn.floor for drawn in found.drawn]
    low, high = np.quantile(floor, [0.025, 0.975])
    law = found.law
    powers = zip(law.factors, names, law.scale, law.exponents, strict=True)
    terms = " + ".join(
        f"{factor:.3g} · ({name} / {at:.3g})^−{power:.2f}" for factor, name, at, power in powers
    )
    curve = f"{text(law.floor)} + {terms}" if law.sign > 0 else f"{text(law.floor)} − ({terms})"
    read = (
        f"{objective.name} = {curve}, by least squares through {found.trials} finished trials "
        f"(residual {text(found.rmse)}). With size without end it would come to {text(law.floor)} "
        f"[{text(float(low))}, {text(float(high))}]. Bands and brackets: 95 %, trials drawn with "
        "replacement; they know nothing of another law."
    )
    return Group("Scaling", read, [*pictures.scale(found, x[:, varied], y, objective)], "pairs")


# ---------------------------------------------------------------- costs


def bars_of(spent: Spending, trials: int) -> list[Bar]:
    rows = [
        ("This search", spent.spent_s, "own"),
        (f"The same {trials} trials, none stopped", spent.unstopped_s, ""),
    ]
    known = [(label, s, look) for label, s, look in rows if s is not None]
    most = max((s for _, s, _ in known), default=0.0) or 1.0
    bars = [Bar(label, 100 * s / most, clock(s), look) for label, s, look in known]
    if spent.grid_s is not None:
        ratio = spent.grid_s / spent.spent_s if spent.spent_s else 0.0
        label = f"The full grid, {spent.grid_points:,} points"
        bars.append(Bar(label, min(100 * spent.grid_s / most, 100), f"{clock(spent.grid_s)}, {ratio:,.0f} ×",
                        "beyond" if spent.grid_s > most else ""))  # fmt: skip
    return bars


def cost_facts(record: Record, spent: Spending) -> list[str]:
    lines = ["Time of trials, added up; where two ran at once, both count."]
    if record.search.spent_s:
        lines.append(f"By the clock on the wall: {clock(record.search.spent_s)}.")
    if spent.failed_s:
        lines.append(f"Spent by trials that failed: {clock(spent.failed_s)}.")
    if spent.unstopped_s is None:
        lines.append("No trial told its pace yet, so that nothing can be compared.")
        return lines
    lines.append(
        "A stopped trial is taken to its end at the pace that it had; the grid at the mean of those."
    )
    if spent.stepless:
        lines.append(f"The grid has {POINTS} values of keys without steps: {', '.join(spent.stepless)}.")
    return lines
