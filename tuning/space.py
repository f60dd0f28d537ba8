"""The search space: how each key varies (`Spread`), and the points that the keys make together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.config import Config

KINDS = ("choice", "uniform", "loguniform", "int")
COUNTABLE = 100_000  # points of a grid: more are not counted
LONG = 5  # a range of more integers, without a step, is a long one

Values = dict[str, Any]  # one point of the space: {dotted key: value}


class Spread(Config):
    """How one key varies. A search file gives one of choice, uniform, loguniform and int, with `step` and
    `when`; a record gives these fields (`to_json`)."""

    kind: Literal["choice", "uniform", "loguniform", "int"]
    low: int | float | None = None
    high: int | float | None = None  # included
    choices: list[Any] = []  # values, or the names of `tables`
    tables: dict[str, dict[str, Any]] = {}  # several keys of the run under one name
    step: float | None = Field(default=None, gt=0)  # of uniform and int
    when: dict[str, Any] = {}  # {other key: its value, or a list of values}: the key exists only then

    @model_validator(mode="before")
    @classmethod
    def _fields(cls, given: Any) -> Any:
        """The fields, of what a search file gives."""
        if not isinstance(given, dict) or "kind" in given:
            return given
        kinds = [kind for kind in KINDS if kind in given]
        if len(kinds) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}, not {' and '.join(kinds) or 'none'}")
        rest = {key: value for key, value in given.items() if key not in KINDS}
        kind, value = kinds[0], given[kinds[0]]
        if kind == "choice":
            tables = value if isinstance(value, dict) else {}
            return rest | {"kind": kind, "choices": list(value) if tables else value, "tables": tables}
        types = {int} if kind == "int" else {int, float}
        if not isinstance(value, list) or len(value) != 2 or not {type(v) for v in value} <= types:
            numbers = "two integers" if kind == "int" else "two numbers"
            raise ValueError(f"{kind} = {value!r}: give {numbers}, [low, high]")
        low, high = value if kind == "int" else map(float, value)
        return rest | {"kind": kind, "low": low, "high": high}

    @model_validator(mode="after")
    def _check(self) -> Spread:
        if self.kind == "choice":
            if not self.choices:
                raise ValueError("choice = []: give at least one value")
            if any(isinstance(value, dict) for value in self.choices):
                raise ValueError("give tables of choice a name: choice = { small = {…}, large = {…} }")
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"{self.kind} = [{low:g}, {high:g}]: the lower bound comes first")
        if self.kind == "loguniform" and (low <= 0 or self.step):
            raise ValueError("loguniform takes bounds above 0, and no step")
        if self.step and (self.step > high - low or (self.kind == "int" and self.step % 1)):
            raise ValueError(f"step = {self.step:g} does not fit {self.kind} = [{low:g}, {high:g}]")
        return self

    @property
    def numeric(self) -> bool:
        return self.kind != "choice"

    @property
    def logarithmic(self) -> bool:
        return self.kind == "loguniform"

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high) of a numeric key."""
        if self.low is None or self.high is None:
            raise ValueError(f"{self.kind} needs low and high")
        return self.low, self.high

    @property
    def conditions(self) -> dict[str, list[Any]]:
        """`when`, with a list of values for each key."""
        return {key: list(v) if isinstance(v, list | tuple) else [v] for key, v in self.when.items()}

    def active(self, values: Values) -> bool:
        """Whether the key exists at a point with these values."""
        return all(key in values and values[key] in wanted for key, wanted in self.conditions.items())

    def levels(self) -> list[Any] | None:
        """Every value that it can take; None: too many to count."""
        if not self.numeric:
            return list(self.choices)
        if self.kind != "int" and self.step is None:
            return None
        (low, high), step = self.bounds, self.step or 1
        found = [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]
        return [int(v) if self.kind == "int" else round(v, 12) for v in found]

    def contains(self, value: Any) -> bool:
        """Whether `value` is one that it can take."""
        levels = self.levels()
        if levels is not None:
            return value in levels
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.bounds[0] <= value <= self.bounds[1]

    def ends(self) -> Sequence[Any]:
        """The values that a mistake shows at: each choice, or both bounds."""
        return self.bounds if self.numeric else self.choices

    def order(self, values: Iterable[Any]) -> list[Any]:
        """Distinct `values` in the order of the choices; those that are no choice come last."""
        given = list(values)
        found: list[Any] = []
        for value in [*(c for c in self.choices if c in given), *given]:
            if value not in found:
                found.append(value)
        return found

    def to_json(self) -> dict[str, Any]:
        """As search.json has it: {kind, low, high | choices, step?, when?}."""
        found: dict[str, Any] = {"kind": self.kind}
        found |= {"low": self.low, "high": self.high} if self.numeric else {"choices": list(self.choices)}
        return found | ({"step": self.step} if self.step else {}) | ({"when": self.when} if self.when else {})


Space = Mapping[str, Spread]


def by_dependency(space: Space) -> list[str]:
    """The keys, each after those that its `when` names. ValueError: `when` runs in a circle."""
    found: list[str] = []
    while len(found) < len(space):
        ready = [k for k, s in space.items() if k not in found and all(w in found for w in s.when)]
        if not ready:
            circle = ", ".join(key for key in space if key not in found)
            raise ValueError(f"`when` runs in a circle through {circle}: remove one of them")
        found += ready
    return found


def sample(space: Space, pick: Callable[[str, Spread], Any]) -> Values:
    """One point: `pick` gives the value of each key that is active."""
    found: Values = {}
    for key in by_dependency(space):
        if space[key].active(found):
            found[key] = pick(key, space[key])
    return {key: found[key] for key in space if key in found}


def activating(space: Space, key: str) -> Values:
    """Values of other keys at which `key` is active."""
    found: Values = {}
    for other, wanted in space[key].conditions.items():
        found |= activating(space, other) | {other: wanted[0]}
    return found


def grid(space: Space) -> Iterator[Values]:
    """Every point of the grid, the last key varying fastest. Each key must have `levels`."""

    def expanded(found: Values, rest: Sequence[str]) -> Iterator[Values]:
        if not rest:
            yield {key: found[key] for key in space if key in found}
            return
        spread = space[rest[0]]
        if not spread.active(found):
            yield from expanded(found, rest[1:])
            return
        for level in spread.levels() or ():
            yield from expanded({**found, rest[0]: level}, rest[1:])

    yield from expanded({}, by_dependency(space))


def grid_points(space: Space, default: int | None = None) -> int | None:
    """Points of the whole grid; None where a key has no steps, or the points are too many to count.

    `default`: values that a `stepless` key counts as; the result is then a number."""
    sizes: dict[str, int] = {}
    for key, spread in space.items():
        levels = spread.levels()
        if default is not None and stepless(spread):
            sizes[key] = default
        elif levels is None:
            return None
        else:
            sizes[key] = len(levels)
    if default is None and math.prod(sizes.values()) > COUNTABLE:
        return None
    conditions = {other for spread in space.values() for other in spread.when}

    def count(found: Values, rest: Sequence[str]) -> int:
        if not rest:
            return 1
        key, below = rest[0], rest[1:]
        if not space[key].active(found):
            return count(found, below)
        if key not in conditions:
            return sizes[key] * count(found, below)
        return sum(count({**found, key: level}, below) for level in space[key].levels() or [None])

    return count({}, by_dependency(space))


def stepless(spread: Spread) -> bool:
    """Whether a grid would have to choose the key's values: it has no steps, or is a long range of integers
    (nobody runs a grid of every one from 1 to 64)."""
    levels = spread.levels()
    return levels is None or (spread.kind == "int" and not spread.step and len(levels) > LONG)


def label(value: Any) -> str:
    """A value for people: four significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")
