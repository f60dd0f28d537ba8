"""The search TOML: a run file, the keys that vary, and what is best.

    name = "prior-weight"
    base = "../../pretrain/runs/sigma/tiny.toml"   # the run that each trial varies, beside this file

    [objective]                                    # [[objective]] twice: two objectives, a Pareto front
    metric = "accuracy_random_mask"                # a figure of validation, as TensorBoard has it under val/
    mode = "max"

    [space]                                        # keys as after --set
    method.masking = { choice = ["random", "prior", "both"] }
    method.alpha = { uniform = [0.0, 4.0], when = { method.masking = ["prior", "both"] } }
    method.mask_ratio = { uniform = [0.3, 0.7], step = 0.1 }
    optim.lr = { loguniform = [1e-4, 1e-2] }
    method.depth = { int = [1, 4] }
    size.choice.small = { method.dim = 32, method.depth = 2 }      # several keys under one name
    size.choice.large = { method.dim = 64, method.depth = 4 }

    [scheduler]                                    # asha (default), median, none
    [searcher]                                     # optuna (default), random, grid
    [budget]
    trials = 24

Every key that is not the search's own (below: `Search`) is the run's and goes on top of `base`: `corpus`,
`storage`, `steps`, `[method]` … stand in the search file, or after `--set`, as they would for the run.
A trial is the run file and a list of ``key=value``, and nothing else: that is its printed command.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cluster import config
from cluster.config import Config
from cluster.errors import PlethoraError
from pretrain.config import RunConfig

KINDS = ("choice", "uniform", "loguniform", "int")
Values = dict[str, Any]


class Objective(Config):
    """What is best. A figure of validation is known at every validation; a probe (`task`) of the trial's
    bundle, on validation people, at its end."""

    metric: str
    mode: Literal["min", "max"]
    at: Literal["last", "best"] = "last"  # of the validations of a trial
    task: str = ""  # a task of finetune/tasks, or a TOML file: then `metric` is one of its metrics
    damage: dict[str, Any] = {}  # of a probe: judged on damaged windows, see tuning/objective.py
    unit: str = ""

    @property
    def name(self) -> str:
        return f"{self.task} {self.metric}" if self.task else self.metric


class Scheduler(Config):
    """Which trials end early, judged by `metric` (default: the first objective) as the trial goes on."""

    kind: Literal["asha", "median", "none"] = "asha"
    metric: str = ""  # needed where the objective is a probe, which is known at the end only
    mode: Literal["min", "max"] | None = None
    grace: float = Field(default=0.1, gt=0, lt=1)  # share of its steps that every trial may run
    reduction: float = Field(default=3.0, gt=1)  # ASHA: the best 1/reduction go on at each rung
    min_trials: int = Field(default=3, ge=1)  # median: trials to compare with, at least


class Searcher(Config):
    """Where the next point comes from. `start`: points known to be good, tried first (missing keys: as the
    base run has them, or drawn)."""

    kind: Literal["optuna", "random", "grid"] = "optuna"
    seed: int = 0
    start: tuple[dict[str, Any], ...] = ()


class Budget(Config):
    """When the search ends, whichever comes first. `retries`: of a trial whose process died."""

    trials: int = Field(default=16, ge=1)
    hours: float | None = Field(default=None, gt=0)
    concurrent: int = Field(default=2, ge=1)  # at most; fewer where the cluster has no room
    retries: int = Field(default=2, ge=0)


class Spread(Config):
    """How one key varies: one of choice, uniform, loguniform, int."""

    choice: list[Any] | dict[str, dict[str, Any]] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    whole: tuple[int, int] | None = Field(default=None, alias="int")  # both ends included
    step: float | None = Field(default=None, gt=0)  # of uniform and int
    when: dict[str, Any] = {}  # {key of the space: its value, or a list of values}

    @model_validator(mode="after")
    def _check(self) -> Spread:
        given = [k for k in KINDS if getattr(self, "whole" if k == "int" else k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}, not {' and '.join(given) or 'none'}")
        if self.choice is not None:
            if not self.choice:
                raise ValueError("choice = []: give at least one value")
            if isinstance(self.choice, list) and any(isinstance(v, dict) for v in self.choice):
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
    def kind(self) -> str:
        return next(k for k in KINDS if getattr(self, "whole" if k == "int" else k) is not None)

    @property
    def bounds(self) -> tuple[float, float]:
        found = self.uniform or self.loguniform or self.whole
        assert found is not None  # a choice has none
        return found

    @property
    def choices(self) -> list[Any]:
        """What there is to choose: values, or the names of tables."""
        return list(self.choice or ())

    def levels(self) -> list[Any] | None:
        """Every value it can take; None: too many to count."""
        if self.choice is not None:
            return self.choices
        if self.kind != "int" and self.step is None:
            return None
        low, high = self.bounds
        step = self.step or 1
        found = [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]
        return [int(v) for v in found] if self.kind == "int" else [round(v, 12) for v in found]

    def holds(self, value: Any) -> bool:
        """Whether `value` is one that it can take."""
        levels = self.levels()
        if levels is not None:
            return value in levels
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.bounds[0] <= value <= self.bounds[1]

    def ends(self) -> list[Any]:
        """The values that a mistake would show at: each choice, both bounds."""
        return self.choices if self.choice is not None else list(self.bounds)

    def table(self) -> dict[str, Any]:
        """As the record of the search has it: {kind, low, high | choices, step?, when?}."""
        found: dict[str, Any] = {"kind": self.kind}
        if self.choice is not None:
            found["choices"] = self.choices
        else:
            found |= dict(zip(("low", "high"), self.bounds, strict=True))
        return found | ({"step": self.step} if self.step else {}) | ({"when": self.when} if self.when else {})


class Search(Config):
    """The search's own keys."""

    name: str = Field(pattern=r"^[\w.-]+$")
    base: str
    objective: tuple[Objective, ...] = Field(min_length=1, max_length=2)
    space: dict[str, Spread]
    scheduler: Scheduler = Scheduler()
    searcher: Searcher = Searcher()
    budget: Budget = Budget()
    scaling: tuple[str, ...] = ()  # facts of a trial that a scaling curve is drawn over: parameters, hours

    def order(self) -> list[str]:
        """The keys of the space, each after those that its `when` asks for."""
        done: list[str] = []
        while len(done) < len(self.space):
            ready = [k for k, s in self.space.items() if k not in done and all(w in done for w in s.when)]
            if not ready:
                raise PlethoraError(
                    f"search {self.name}: `when` runs in a circle through "
                    f"{', '.join(k for k in self.space if k not in done)}: remove one of them"
                )
            done += ready
        return done

    def values(self, pick: Callable[[str, Spread], Any]) -> Values:
        """One point: `pick` is asked for each key whose `when` holds."""
        found: Values = {}
        for key in self.order():
            spread = self.space[key]
            if all(k in found and found[k] in _listed(wanted) for k, wanted in spread.when.items()):
                found[key] = pick(key, spread)
        return {key: found[key] for key in self.space if key in found}

    def reaching(self, key: str) -> Values:
        """Values of other keys under which `key` is asked for."""
        found: Values = {}
        for other, wanted in self.space[key].when.items():
            found |= self.reaching(other) | {other: _listed(wanted)[0]}
        return found

    def points(self) -> Iterator[Values]:
        """Every point of a grid, in order. PlethoraError where a key has no steps."""
        endless = [k for k, s in self.space.items() if s.levels() is None]
        if endless:
            raise PlethoraError(
                f"search {self.name}: a grid needs steps, and {', '.join(endless)} has none: give step = …, "
                "use choice = […], or searcher.kind = optuna"
            )
        order = self.order()

        def below(found: Values, rest: Sequence[str]) -> Iterator[Values]:
            if not rest:
                yield {key: found[key] for key in self.space if key in found}
                return
            spread = self.space[rest[0]]
            if not all(k in found and found[k] in _listed(w) for k, w in spread.when.items()):
                yield from below(found, rest[1:])
                return
            for level in spread.levels() or ():
                yield from below({**found, rest[0]: level}, rest[1:])

        yield from below({}, order)


@dataclass(frozen=True)
class Plan:
    """A search that was read and checked: its own keys, and the run below every trial."""

    search: Search
    path: str  # of the search file
    base: str  # of the run file
    fixed: tuple[str, ...]  # key=value on top of it, for every trial

    def run(self, values: Values, *more: str) -> RunConfig:
        """The run of one point. PlethoraError: as the run file's."""
        return config.load(self.base, RunConfig, [*self.fixed, *self.sets(values), *more])

    def sets(self, values: Values) -> list[str]:
        """The key=value of one point."""
        found = []
        for key, value in values.items():
            choice = self.search.space[key].choice
            inner = flat(choice[value]) if isinstance(choice, dict) else {key: value}
            found += [f"{k}={text(v)}" for k, v in inner.items()]
        return found


def read(path: str, sets: Sequence[str] = ()) -> Plan:
    """The search file at `path` with `sets` on top. PlethoraError: one line, the key and what to do.

    Every value at the end of a range, and each choice, is tried on the run's configuration."""
    table = config.read_toml(path, sets)
    own = {key: table.pop(key) for key in Search.model_fields if key in table}
    if isinstance(own.get("objective"), dict):
        own["objective"] = [own["objective"]]
    own["space"] = dict(_spreads(own.get("space", {}), "", path))
    if isinstance(own.get("searcher"), dict) and isinstance(own["searcher"].get("start"), list):
        own["searcher"]["start"] = [flat(point) for point in own["searcher"]["start"]]
    search = config.validate(Search, own, path)
    if not search.space:
        raise PlethoraError(f"{path}: [space] is empty: name at least one key that varies")
    for key, spread in search.space.items():
        for other in spread.when:
            _known(other, list(search.space), f"{path}: space.{key}: when")
    for point in search.searcher.start:
        for key, value in point.items():
            _known(key, list(search.space), f"{path}: searcher.start")
            if not search.space[key].holds(value):
                raise PlethoraError(
                    f"{path}: searcher.start: {key} = {text(value)} is outside of [space]: widen that, or "
                    "take another point"
                )
    search.order()
    plan = Plan(search, path, _base(search.base, path), tuple(f"{k}={text(v)}" for k, v in _run(table)))
    _check(plan)
    return plan


def _check(plan: Plan) -> None:
    """PlethoraError where a value of the space, or the searching itself, cannot be."""
    from pretrain.recipe import load

    search = plan.search
    base = plan.run({}, "name=t")
    if not base.validate_every:
        raise PlethoraError(f"{plan.path}: validate_every = 0, so that no objective is ever known: raise it")
    if search.searcher.kind == "grid":
        next(search.points())
    if search.scheduler.kind != "none" and search.objective[0].task and not search.scheduler.metric:
        raise PlethoraError(
            f"{plan.path}: the probe {search.objective[0].name} is known at the end of a trial only: give "
            'scheduler.metric (a figure of validation) and scheduler.mode, or scheduler.kind = "none"'
        )
    if search.scheduler.metric and search.scheduler.mode is None:
        raise PlethoraError(f'{plan.path}: scheduler.metric needs scheduler.mode = "min" or "max"')
    for key, spread in search.space.items():
        for end in spread.ends():
            values = search.reaching(key) | {key: end}
            run = plan.run(values, "name=t")
            config.validate(load(run.recipe).Config, run.method, f"{plan.path}: space.{key}")  # type: ignore[attr-defined]


def _spreads(table: Any, at: str, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, its table) of a [space]."""
    for key, value in table.items():
        name = f"{at}{key}"
        if isinstance(value, Mapping) and (not value or set(value) & set(KINDS)):
            found = dict(value)
            if isinstance(found.get("when"), Mapping):
                found["when"] = flat(found["when"])
            yield name, found
        elif isinstance(value, Mapping):
            yield from _spreads(value, f"{name}.", path)
        else:
            near = difflib.get_close_matches(str(key), KINDS, n=1)
            raise PlethoraError(
                f"{path}: space.{name} = {value!r} says not how it varies: "
                + (f"did you mean {at[:-1]} = {{ {near[0]} = … }}?" if near and at else "")
                + ("" if near and at else f"write {name} = {{ {' | '.join(KINDS)} = … }}")
            )


def _run(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():  # the keys of `corpus` are URIs: it stays whole
        yield from ((key, value),) if key == "corpus" else flat({key: value}).items()


def _base(base: str, path: str) -> str:
    """The run file, beside the search file or where we are."""
    for found in (Path(path).parent / base, Path(base)):
        if found.is_file():
            return str(found.resolve())
    raise PlethoraError(f"{path}: base = {base!r}: there is no such run file beside it")


def _known(key: str, keys: list[str], where: str) -> None:
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
        raise PlethoraError(f"{where}: `{key}` is no key of [space], the nearest is `{near[0]}`")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def flat(table: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested tables."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, Mapping) and bool(value)
        found |= flat(value, f"{at}{key}.") if inner else {f"{at}{key}": value}
    return found


def text(value: Any) -> str:
    """A value on one line as --set reads it back: TOML, and words that are no TOML as they are."""
    if isinstance(value, str) and re.fullmatch(r"[\w./:@~-]+", value):
        try:
            tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            return value
    return _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return repr(value)
