"""Pictures of the search page: learning curves, each key against the objective, the Pareto front, scaling."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from finetune.pagekit.parts import Panel
from finetune.pagekit.svg import HANDCRAFTED, INK, MID, RULE, SERIES, inline, panel
from tuning import importance, scaling
from tuning.config import Objective
from tuning.parallel import ticks
from tuning.record import Record, Trial
from tuning.space import label

BEST, DONE, STOPPED = HANDCRAFTED, SERIES[0], MID
UNITS = {"parameters": "parameters", "hours": "hours of recordings"}


def curves(record: Record, number: int = 0) -> Panel | None:
    """The objective at every validation, a line a trial; a stopped one ends in a cross."""
    objective, best = record.search.objective[number], record.chosen()
    if objective.task and record.search.scheduler.metric:  # a probe is known at the end only
        metric, mode = record.search.scheduler.metric, record.search.scheduler.mode or "min"
        objective = Objective(metric=metric, mode=mode)
    curves = [(t, points) for t in record.trials if (points := t.curve_of(objective.name))]
    if not any(len(points) > 1 for _, points in curves):
        return None
    with panel(wide=5.2, tall=3.3) as (figure, axis):
        for trial, points in sorted(curves, key=lambda one: one[0] is best):
            steps, values = zip(*points, strict=True)
            ended = trial.state in ("stopped", "failed")
            colour = BEST if trial is best else STOPPED if ended else DONE
            width, alpha, order = (2.2, 1.0, 3) if trial is best else (1.0, 0.6, 1)
            axis.plot(steps, values, color=colour, lw=width, alpha=alpha, zorder=order)
            if ended:
                axis.plot(steps[-1], values[-1], "x", color=STOPPED, ms=4.5, mew=1.2, zorder=2)
        _limit(axis, [v for _, points in curves for _, v in points], objective)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(xlabel="step", ylabel=f"{objective.title}, validation")
        picture = inline(figure, f"Learning curves of {objective.name}")
    better = "Lower" if objective.mode == "min" else "Higher"
    return Panel(objective.name, picture, f"{better} is better.")


def _limit(axis: Any, values: list[float], objective: Objective) -> None:
    """Keep a trial that diverged from pressing all others into a line."""
    low, high = np.quantile(values, [0.02, 0.98])
    margin = 0.06 * (high - low)
    ends = (min(values), high) if objective.mode == "min" else (low, max(values))
    if (max(values) - min(values)) > 4 * (high - low) > 0:
        axis.set_ylim(ends[0] - margin, ends[1] + margin)


def slices(record: Record, number: int = 0) -> Iterator[Panel]:
    """The objective against each key that varies, one dot a trial."""
    objective, best = record.search.objective[number], record.chosen()
    trials, values, _ = importance.comparable(record, objective.name)
    for name, key in record.search.space.items():
        here = [i for i, trial in enumerate(trials) if trial.values.get(name) is not None]
        raw = [trials[i].values[name] for i in here]
        if len({str(v) for v in raw}) < 2:
            continue
        order = [] if key.numeric else key.order(raw)
        places = [order.index(value) for value in raw] if order else raw
        with panel(wide=2.9, tall=2.3) as (figure, axis):
            for stopped in (True, False):
                rows = [i for i, j in enumerate(here) if (trials[j].state == "stopped") == stopped]
                x, y = [places[i] for i in rows], values[[here[i] for i in rows]]
                axis.scatter(x, y, s=16, color=STOPPED if stopped else DONE, alpha=0.8, lw=0)
            for i, j in enumerate(here):
                if trials[j] is best:
                    axis.scatter([places[i]], [values[j]], s=42, color=BEST, lw=0, zorder=3)
            if key.logarithmic:
                _logarithmic(axis, min(raw), max(raw))
            if order:
                axis.set_xticks(range(len(order)), [label(value) for value in order])
                axis.set_xlim(-0.5, len(order) - 0.5)
            axis.set(ylabel=objective.title)
            picture = inline(figure, f"{objective.name} against {name}")
        yield Panel(name, picture)


def _logarithmic(axis: Any, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers as labels."""
    found = ticks(math.log10(low), math.log10(high), True)
    axis.set_xscale("log")
    axis.set_xticks([10.0**place for place, _ in found], [text for _, text in found])
    axis.minorticks_off()


def front(record: Record, members: list[Trial]) -> Panel:
    """Both objectives, one dot a trial, and the Pareto front."""
    one, two = record.search.objective[:2]
    best = record.chosen()
    with panel(wide=5.2, tall=3.6) as (figure, axis):
        for trial in record.trials:
            x, y = trial.at_end(one.name), trial.at_end(two.name)
            if x is None or y is None or trial.state == "failed":
                continue
            colour = BEST if trial is best else DONE if trial.state == "done" else STOPPED
            axis.scatter([x], [y], s=42 if trial is best else 18, color=colour, alpha=0.85, lw=0, zorder=3)
        points = sorted((t.at_end(one.name) or 0.0, t.at_end(two.name) or 0.0) for t in members)
        across, up = zip(*points, strict=True)
        where = "post" if one.mode == "min" else "pre"
        axis.step(across, up, where=where, color=INK, lw=1.2, zorder=2)
        for trial in members:
            place = (trial.at_end(one.name) or 0.0, trial.at_end(two.name) or 0.0)
            axis.annotate(trial.trial, place, xytext=(4, 4), textcoords="offset points", fontsize=7.5)
        axis.set(xlabel=f"{one.title} ({one.mode})", ylabel=f"{two.title} ({two.mode})")
        picture = inline(figure, "Pareto front of the two objectives")
    return Panel("Pareto front", picture)


def scale(found: scaling.Fit, x: np.ndarray, y: np.ndarray, objective: Objective) -> Iterator[Panel]:
    """Figures and the fitted curve over each axis, one colour a value of the other, extrapolated."""
    for number, name in enumerate(found.axes):
        others = [i for i in range(len(found.axes)) if i != number]
        groups = np.unique(x[:, others], axis=0)
        low, high = x[:, number].min(), x[:, number].max()
        line = np.geomspace(low, high * 4, 80)
        with panel(wide=4.2, tall=3.4) as (figure, axis):
            axis.axvspan(high, line[-1], color=RULE, alpha=0.35, lw=0, zorder=0)
            for i, group in enumerate(groups):
                rows = (x[:, others] == group).all(axis=1)
                sizes = np.empty((len(line), len(found.axes)))
                sizes[:, number], sizes[:, others] = line, group
                colour = SERIES[i % len(SERIES)]
                name_of = [f"{label(v)} {found.axes[o]}" for v, o in zip(group, others, strict=True)]
                axis.fill_between(line, *found.band(sizes), color=colour, alpha=0.15, lw=0)
                axis.plot(line, found.law.at(sizes), color=colour, lw=1.4, label=", ".join(name_of) or None)
                axis.scatter(x[rows, number], y[rows], s=16, color=colour, lw=0, zorder=3)
            _logarithmic(axis, low, line[-1])
            axis.set(xlabel=UNITS.get(name, name), ylabel=objective.title, xlim=(low / 1.2, line[-1]))
            if others:
                figure.legend(loc="outside lower center", ncols=2)
            picture = inline(figure, f"Scaling of {objective.name} with {name}")
        value, least, most = found.exponent(number)
        note = f"Exponent {value:.2f} [{least:.2f}, {most:.2f}]. Shaded: extrapolation."
        yield Panel(f"Over {UNITS.get(name, name)}", picture, note)
