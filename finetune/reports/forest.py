"""Paired differences encoder − row as lines on one axis, for a page."""

# ruff: noqa: RUF001  (minus signs are meant)

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10

from finetune.evaluation.results import TaskResult
from finetune.reports.figures import lower_is_better, main_title, side, signed


@dataclass(frozen=True)
class Line:
    """Low, value and high in percent of the axis, the figures as text, and who is better."""

    label: str
    low: float
    value: float
    high: float
    figures: str
    side: str


@dataclass(frozen=True)
class Forest:
    """An encoder's differences; `zero` and `ticks` in percent of the axis."""

    title: str
    lines: list[Line]
    zero: float
    ticks: list[tuple[float, str]]
    left: str
    right: str


def forests(result: TaskResult, shown: Mapping[str, Sequence[str]]) -> tuple[Forest, ...]:
    """One an encoder, all on one axis, so that they compare. `shown`: which rows of each."""
    lower = lower_is_better(result.task)
    pairs = [result.differences[encoder][name] for encoder, names in shown.items() for name in names]
    ends = [end for d in pairs for end in (d.low, d.high) if isfinite(end)]
    if not ends:
        return ()
    reach = max(max(map(abs, ends)), 1e-9) * 1.05

    def at(value: float) -> float:
        return min(max(50 + 50 * value / reach, 0), 100)

    step = _nice(reach)
    ticks = [(at(t), f"{t:+g}" if t else "0") for t in (-step, 0, step)]
    words = ("encoder better", "encoder worse")
    left, right = words if lower else words[::-1]
    found = []
    for encoder, names in shown.items():
        lines = []
        for name in names:
            d = result.differences[encoder][name]
            if isfinite(d.value) and isfinite(d.low) and isfinite(d.high):
                places = (at(d.low), at(d.value), at(d.high))
                lines.append(Line(result.labels[name], *places, signed(d), side(d, lower)))
        title = f"{result.labels[encoder]} − row, {main_title(result.task)}"
        found.append(Forest(title, lines, at(0), ticks, left, right))
    return tuple(found)


def _nice(reach: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that lies within the axis."""
    power = 10.0 ** floor(log10(reach))
    return max(step for step in (1, 2, 5) if step * power <= reach * (1 + 1e-9)) * power
