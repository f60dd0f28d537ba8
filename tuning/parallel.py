"""Parallel coordinates: one line a trial through the values of its keys to its objective. Plain SVG, so that
a page can show a trial's values where a pointer rests on its line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from tuning.record import Key, Trial

ABSENT = "not drawn"


@dataclass(frozen=True)
class Axis:
    """One coordinate. `places`: of each trial, 0 to 1, None where it has none; ticks in the same measure."""

    title: str
    places: list[float | None]
    ticks: list[tuple[float, str]]
    absent: str = ""


@dataclass(frozen=True)
class Line:
    label: str
    look: str  # class of the line: chosen, done, stopped


def axes_of(
    space: dict[str, Key], trials: Sequence[Trial], columns: Sequence[tuple[str, Sequence[Any], str]]
) -> list[Axis]:
    """An axis a key that varies, then one a column of figures (title, values, name of a lacking one)."""
    made = []
    for name, key in space.items():
        values = [trial.values.get(name) for trial in trials]
        if len({str(v) for v in values}) > 1:
            made.append(_axis(name, key, values))
    for title, figures, absent in columns:
        made.append(_axis(title, Key("uniform"), figures, absent))
    return made


def _axis(title: str, key: Key, values: Sequence[Any], absent: str = ABSENT) -> Axis:
    known = [v for v in values if v is not None]
    missing = absent if len(known) < len(values) else ""
    if not key.numeric or not all(isinstance(v, int | float) for v in known):
        choices = [c for c in key.choices if c in known] + [v for v in known if v not in key.choices]
        order = list(dict.fromkeys(choices))
        at = {str(c): 0.5 if len(order) == 1 else i / (len(order) - 1) for i, c in enumerate(order)}
        return Axis(
            title,
            [None if v is None else at[str(v)] for v in values],
            [(at[str(c)], text(c)) for c in order],
            missing,
        )
    change = math.log10 if key.logarithmic else float
    ends = [v for v in (key.low, key.high) if v is not None] or known
    low, high = change(min(*ends, *known)), change(max(*ends, *known))
    reach = (high - low) or 1.0
    places = [None if v is None else (change(v) - low) / reach for v in values]
    return Axis(
        title, places, [((t - low) / reach, label) for t, label in ticks(low, high, key.logarithmic)], missing
    )


def ticks(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    """(place, label) of round values from low to high, both given as logarithms where it is one."""
    if logarithmic:
        whole = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        if len(whole) > 1:
            return [(float(t), text(10.0**t)) for t in whole]
        return [(low, text(10**low)), (high, text(10**high))]
    step = 10.0 ** math.floor(math.log10((high - low) or 1.0))
    for part in (0.2, 0.5, 1.0, 2.0, 5.0):
        first = math.ceil(low / (part * step) - 1e-9)
        found = [i * part * step for i in range(first, math.floor(high / (part * step) + 1e-9) + 1)]
        if len(found) <= 6:
            break
    return [(t, text(round(t, 12) + 0.0)) for t in found]


def text(value: Any) -> str:
    """A value as a label: four significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


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
        told = f"<title>{escape(line.label)}</title>"
        drawn = f'<path class="reach" d="{path}"/><path class="line" d="{path}"/>'
        parts.append(f'<g class="{line.look}">{told}{drawn}</g>')
    for number, axis in enumerate(axes):
        (x0, y0), (x1, y1) = at(number, 0.0), at(number, 1.0)
        parts.append(f'<path class="axis" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
        for place, label in axis.ticks:
            x, y = at(number, place)
            parts.append(_label(x, y + 13 if upright else y + 3.5, label, "tick", upright, place))
        if upright:
            parts.append(f'<text class="name" x="{left - 12}" y="{y0 - 9:.1f}">{escape(axis.title)}</text>')
        else:
            low = 16 if number % 2 and count > 5 else 32
            parts.append(_label(x0, low, axis.title, "name", True, number / max(count - 1, 1)))
        if axis.absent:
            x, y = at(number, None)
            place = 0.5 if upright else number / max(count - 1, 1)
            parts.append(_label(x, y + 13 if upright else y + 14, axis.absent, "tick", True, place))
    kind = "upright" if upright else "flat"
    head = f'<svg viewBox="0 0 {wide} {tall}" class="parallel {kind}" role="img"'
    head += ' aria-label="Parallel coordinates of all trials">'
    return Markup(head + "".join(parts) + "</svg>")


def _label(x: float, y: float, label: str, look: str, centred: bool, place: float) -> str:
    if centred:
        anchor = "start" if place < 0.02 else "end" if place > 0.98 else "middle"
        return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(label)}</text>'
    return f'<text class="{look}" x="{x + 6:.1f}" y="{y:.1f}">{escape(label)}</text>'
