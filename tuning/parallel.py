"""Parallel coordinates: one line a trial through the values of its keys to its objective, as plain SVG that
shows a trial's values where the pointer rests on its line.
"""

# No library: Optuna's plot leaves out trials without a conditional key, and Plotly adds 3 MB to the page.

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from tuning.record import Trial
from tuning.space import Space, Spread, label

ABSENT = "inactive"


@dataclass(frozen=True)
class Axis:
    """One coordinate. `places`: of each trial, 0 to 1, None where it has none; ticks in the same measure."""

    title: str
    places: list[float | None]
    ticks: list[tuple[float, str]]
    absent: str = ""


@dataclass(frozen=True)
class Line:
    text: str
    look: str  # class of the line: chosen, done, stopped


def axes_of(
    space: Space, trials: Sequence[Trial], columns: Sequence[tuple[str, Sequence[float | None], str]]
) -> list[Axis]:
    """An axis for each key that varies, then for each column of figures (title, values, label of a missing
    one)."""
    made = []
    for name, spread in space.items():
        values = [trial.values.get(name) for trial in trials]
        if len({str(v) for v in values}) > 1:
            made.append(_axis(name, spread, values))
    return made + [_axis(title, None, figures, absent) for title, figures, absent in columns]


def _axis(title: str, spread: Spread | None, values: Sequence[Any], absent: str = ABSENT) -> Axis:
    known = [v for v in values if v is not None]
    missing = absent if len(known) < len(values) else ""
    if spread is not None and not spread.numeric:
        order = spread.order(known)
        at = {str(c): i / (len(order) - 1) if len(order) > 1 else 0.5 for i, c in enumerate(order)}
        places = [None if v is None else at[str(v)] for v in values]
        return Axis(title, places, [(at[str(c)], label(c)) for c in order], missing)
    logarithmic = spread is not None and spread.logarithmic
    change = math.log10 if logarithmic else float
    ends = [*known, *(spread.bounds if spread else ())]
    low, high = change(min(ends)), change(max(ends))
    reach = (high - low) or 1.0
    places = [None if v is None else (change(v) - low) / reach for v in values]
    marks = [((t - low) / reach, text) for t, text in ticks(low, high, logarithmic)]
    return Axis(title, places, marks, missing)


def ticks(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    """(place, label) of round values from low to high, both given as logarithms where it is one."""
    if logarithmic:
        whole = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        if len(whole) > 1:
            return [(float(t), label(10.0**t)) for t in whole]
        return [(low, label(10**low)), (high, label(10**high))]
    step = 10.0 ** math.floor(math.log10((high - low) or 1.0))
    for part in (0.2, 0.5, 1.0, 2.0, 5.0):
        first = math.ceil(low / (part * step) - 1e-9)
        found = [i * part * step for i in range(first, math.floor(high / (part * step) + 1e-9) + 1)]
        if len(found) <= 6:
            break
    return [(t, label(round(t, 12) + 0.0)) for t in found]


def picture(axes: Sequence[Axis], lines: Sequence[Line], upright: bool) -> Markup:
    """The plot as one <svg>: axes beside each other, or, `upright`, one below the other for a phone."""
    count = len(axes)
    absent = any(axis.absent for axis in axes)
    if upright:
        wide, tall, left, right, top, bottom = 348, 26 + 58 * count, 14, 74 if absent else 14, 26, 32
    else:
        wide, tall, left, right, top, bottom = 1048, 380, 16, 60, 46, 52 if absent else 20
    across, along = (
        (tall - top - bottom, wide - left - right) if upright else (wide - left - right, tall - top - bottom)
    )
    gap = across / max(count - 1, 1)

    def at(number: int, place: float | None) -> tuple[float, float]:
        if upright:
            return (wide - 36 if place is None else left + place * along), top + number * gap
        return left + number * gap, (tall - 16 if place is None else top + (1 - place) * along)

    parts = []
    for row, line in enumerate(lines):
        points = [at(i, axis.places[row]) for i, axis in enumerate(axes)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        title = f"<title>{escape(line.text)}</title>"
        drawn = f'<path class="reach" d="{path}"/><path class="line" d="{path}"/>'
        parts.append(f'<g class="{line.look}">{title}{drawn}</g>')
    for number, axis in enumerate(axes):
        (x0, y0), (x1, y1) = at(number, 0.0), at(number, 1.0)
        parts.append(f'<path class="axis" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
        for place, text in axis.ticks:
            x, y = at(number, place)
            parts.append(_text(x, y + 13 if upright else y + 3.5, text, "tick", upright, place))
        if upright:
            parts.append(f'<text class="name" x="{left - 12}" y="{y0 - 9:.1f}">{escape(axis.title)}</text>')
        else:
            low = 16 if number % 2 and count > 5 else 32
            parts.append(_text(x0, low, axis.title, "name", True, number / max(count - 1, 1)))
        if axis.absent:
            x, y = at(number, None)
            place = 0.5 if upright else number / max(count - 1, 1)
            parts.append(_text(x, y + 13 if upright else y + 14, axis.absent, "tick", True, place))
    kind = "upright" if upright else "flat"
    head = f'<svg viewBox="0 0 {wide} {tall}" class="parallel {kind}" role="img"'
    head += ' aria-label="Parallel coordinates of all trials">'
    return Markup(head + "".join(parts) + "</svg>")


def _text(x: float, y: float, text: str, look: str, centred: bool, place: float) -> str:
    if centred:
        anchor = "start" if place < 0.02 else "end" if place > 0.98 else "middle"
        return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    return f'<text class="{look}" x="{x + 6:.1f}" y="{y:.1f}">{escape(text)}</text>'
