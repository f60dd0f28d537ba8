"""Parts of the search page that are drawn: parallel coordinates, importance, curves, front, scaling, cost."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from cluster.cli import clock
from finetune.pagekit.parts import Group, Panel
from tuning import importance, parallel, pictures, scaling
from tuning.cost import POINTS, Cost
from tuning.importance import Importances
from tuning.record import Record, Trial
from tuning.space import label

SHOWN = {"done": "finished", "stopped": "stopped early", "failed": "failed", "running": "running"}


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart; `share`: percent of its width."""

    label: str
    share: float
    figures: str
    look: str = ""


@dataclass(frozen=True)
class Goal:
    """What the page shows of one objective; `reason`: why there is no importance."""

    title: str
    reason: str
    importance: Importances | None
    groups: list[Group]


def figures_of(record: Record, trial: Trial) -> str:
    """``val/mae 8.12 bpm at step 80``"""
    values = [(o, trial.at_end(o.name)) for o in record.search.objective]
    found = [f"{o.name} {label(v)}{f' {o.unit}' if o.unit else ''}" for o, v in values if v is not None]
    return ", ".join(found) + f" at step {trial.step}"


def or_dash(value: float | None) -> str:
    return "–" if value is None else label(value)


def parallel_plots(record: Record, found: Importances | str) -> list[Markup]:
    """The same plot for a wide and for a narrow screen; the most important keys are next to the objective."""
    first, best = record.search.objective[0], record.chosen()
    trials, values, _ = importance.comparable(record, first.name)
    if len(trials) < 2:
        return []
    order = sorted(range(len(trials)), key=lambda i: (trials[i] is best, trials[i].state == "done"))
    trials, values = [trials[i] for i in order], values[order]
    ends = [t.at_end(first.name) if t.state == "done" else None for t in trials]
    columns: list[tuple[str, list[float | None], str]] = []
    if None in ends:
        columns.append((f"{first.name} early", [float(v) for v in values], ""))
    if any(v is not None for v in ends):
        columns.append((first.title, ends, "stopped"))
    for other in record.search.objective[1:]:
        columns.append((other.title, [t.at_end(other.name) for t in trials], "none"))
    lines = []
    for t in trials:
        settings = "\n".join(f"{key} = {label(value)}" for key, value in t.values.items())
        text = f"{t.trial}, {SHOWN[t.state]}: {figures_of(record, t)}\n{settings}"
        lines.append(parallel.Line(text, "chosen" if t is best else t.state))
    weight = {} if isinstance(found, str) else {row.key: row.value for row in found.rows}
    keys = sorted(record.search.space, key=lambda key: weight.get(key, 0.0))
    axes = parallel.axes_of({key: record.search.space[key] for key in keys}, trials, columns)
    return [parallel.picture(axes, lines, upright) for upright in (False, True)]


def goal(record: Record, number: int, found: Importances | str) -> Goal:
    """Importance, each key alone, and the learning curves of one objective."""
    objective = record.search.objective[number]
    shown = f"One dot a trial: {importance.comparable(record, objective.name)[2]}."
    groups = [Group("Each key alone", shown, [*pictures.slices(record, number)], "small")]
    curves = pictures.curves(record, number)
    if curves is not None:
        read = "One line a trial. Grey with a cross: stopped or failed. Thick: the best one."
        groups.append(Group("Learning curves", read, [curves], "wide"))
    reason, table = (found, None) if isinstance(found, str) else ("", found)
    return Goal(objective.title, reason, table, [g for g in groups if g.panels])


def front(record: Record) -> Panel | None:
    """The Pareto front of two objectives."""
    members = record.front() if len(record.search.objective) > 1 else []
    return pictures.front(record, members) if members else None


def scaling_curve(record: Record) -> Group | None:
    """The curve fitted over the sizes in the facts of the finished trials."""
    objective, axes = record.search.objective[0], record.search.scaling
    if not axes:
        return None
    done = [
        (trial, objective.sign * cost)
        for cost, trial in record.measured("done")
        if all(isinstance(trial.facts.get(axis), int | float) for axis in axes)
    ]
    x = np.array([[float(t.facts[axis]) for axis in axes] for t, _ in done]).reshape(len(done), len(axes))
    y = np.array([value for _, value in done], float)
    varied = [i for i in range(len(axes)) if len(np.unique(x[:, i])) > 1]
    if not varied:
        return Group("Scaling", f"No curve yet: no two finished trials differ in {' or '.join(axes)}.", [])
    found = scaling.fit([axes[i] for i in varied], x[:, varied], y, objective.sign)
    if isinstance(found, str):
        return Group("Scaling", f"No curve: {found}.", [])
    law = found.law
    low, high = np.quantile([drawn.floor for drawn in found.drawn], [0.025, 0.975])
    terms = " + ".join(
        f"{factor:.3g} · ({name} / {at:.3g})^−{power:.2f}"
        for factor, name, at, power in zip(law.factors, found.axes, law.scale, law.exponents, strict=True)
    )
    curve = f"{label(law.floor)} + {terms}" if law.sign > 0 else f"{label(law.floor)} − ({terms})"
    read = (
        f"{objective.name} = {curve}, by least squares through {found.trials} finished trials "
        f"(residual {label(found.rmse)}). At infinite size it would come to {label(law.floor)} "
        f"[{label(float(low))}, {label(float(high))}]. Bands and brackets: 95 % intervals, by bootstrap over "
        "trials; they assume that the law is right."
    )
    return Group("Scaling", read, [*pictures.scale(found, x[:, varied], y, objective)], "pairs")


def cost_bars(spent: Cost, trials: int) -> list[Bar]:
    """The search beside the same trials without stopping and beside the full grid."""
    ratio = f", {spent.grid_s / spent.spent_s:,.0f} ×" if spent.grid_s and spent.spent_s else ""
    rows = [
        ("This search", spent.spent_s, "", "own"),
        (f"The same {trials} trials, none stopped", spent.unstopped_s, "", ""),
        (f"The full grid, {spent.grid_points:,} points", spent.grid_s, ratio, ""),
    ]
    most = max(spent.spent_s, spent.unstopped_s or 0.0) or 1.0
    return [
        Bar(name, min(100 * s / most, 100.0), clock(s) + more, look if s <= most else "beyond")
        for name, s, more, look in rows
        if s is not None
    ]


def cost_facts(record: Record, spent: Cost) -> list[str]:
    lines = ["Times of all trials are added up, also of those that ran side by side."]
    if record.info.spent_s:
        lines.append(f"Wall-clock time: {clock(record.info.spent_s)}.")
    if spent.failed_s:
        lines.append(f"Spent by trials that failed: {clock(spent.failed_s)}.")
    if spent.unstopped_s is None:
        return [*lines, "No trial's pace is known yet, so there is nothing to compare with."]
    lines.append("A stopped trial counts to its last step at its own pace; the grid, at the mean of those.")
    if spent.stepless:
        lines.append(f"The grid has {POINTS} values of keys without steps: {', '.join(spent.stepless)}.")
    return lines
