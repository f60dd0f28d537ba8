"""A search file: the run file below it, the keys that vary, and the objective.

    name = "prior-weight"
    base = "../../pretrain/runs/sigma/tiny.toml"   # the run that each trial varies; relative to this file

    [objective]                                    # [[objective]] twice: two objectives, a Pareto front
    metric = "accuracy_random_mask"                # a validation figure, as TensorBoard has it under val/
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

Every key that is not in `tuning.config.Search` belongs to the run and overrides `base`: `corpus`, `storage`,
`steps`, `[method]` …, in the search file or after `--set`, as for a run. A trial is the run file and a list
of ``key=value``, and nothing else: that is its printed command.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import config
from cluster.errors import PlethoraError
from pretrain.config import RunConfig
from tuning.config import Search
from tuning.space import KINDS, Values, activating, by_dependency


@dataclass(frozen=True)
class Plan:
    """A search file that was read and checked."""

    search: Search
    path: str  # of the search file
    base: str  # of the run file
    fixed: tuple[str, ...]  # key=value on top of it, the same for every trial

    def run(self, values: Values, *more: str) -> RunConfig:
        """The run of one point. PlethoraError: as the run file's."""
        return config.load(self.base, RunConfig, [*self.fixed, *self.sets(values), *more])

    def sets(self, values: Values) -> list[str]:
        """One point as key=value."""
        found: dict[str, Any] = {}
        for key, value in values.items():
            tables = self.search.space[key].tables
            found |= flat(tables[value]) if tables else {key: value}
        return [f"{key}={toml(value)}" for key, value in found.items()]


def read(path: str, sets: Sequence[str] = ()) -> Plan:
    """The search file at `path` with `sets` on top. PlethoraError: one line, the key and what to do.

    Both ends of every range, and each choice, are tried on the run's configuration."""
    table = config.read_toml(path, sets)
    given = {key: table.pop(key) for key in Search.model_fields if key in table}
    if isinstance(given.get("objective"), dict):
        given["objective"] = [given["objective"]]
    given["space"] = dict(_spreads(given.get("space", {}), "", path))
    if isinstance(given.get("searcher"), dict) and isinstance(given["searcher"].get("start"), list):
        given["searcher"]["start"] = [flat(point) for point in given["searcher"]["start"]]
    search = config.validate(Search, given, path)
    for key in table:
        if key not in RunConfig.model_fields:
            near = difflib.get_close_matches(key, [*Search.model_fields, *RunConfig.model_fields], n=1)
            hint = f", the nearest known one is `{near[0]}`" if near else ""
            where = next((f"--set {each}" for each in sets if re.match(rf"{re.escape(key)}[.=]", each)), path)
            raise PlethoraError(f"{where}: unknown key `{key}`{hint}")
    fixed = tuple(f"{k}={toml(v)}" for k, v in _run_keys(table))
    plan = Plan(search, path, _base(search.base, path), fixed)
    _check_space(plan)
    _check_runs(plan)
    return plan


def _check_space(plan: Plan) -> None:
    """PlethoraError: the space is empty, `when` or `start` names no key of it, or a grid has no steps."""
    search, path = plan.search, plan.path
    if not search.space:
        raise PlethoraError(f"{path}: [space] is empty: name at least one key that varies")
    for key, spread in search.space.items():
        for other in spread.when:
            _require_key(other, search, f"{path}: space.{key}: when")
    for point in search.searcher.start:
        for key, value in point.items():
            _require_key(key, search, f"{path}: searcher.start")
            if not search.space[key].contains(value):
                raise PlethoraError(
                    f"{path}: searcher.start: {key} = {toml(value)} is outside [space]: widen the range, or "
                    "give another point"
                )
    try:
        by_dependency(search.space)
    except ValueError as error:
        raise PlethoraError(f"search {search.name}: {error}") from None
    endless = [key for key, spread in search.space.items() if spread.levels() is None]
    if search.searcher.kind == "grid" and endless:
        raise PlethoraError(
            f"search {search.name}: a grid needs steps, and {', '.join(endless)} has none: give step = …, "
            "use choice = […], or searcher.kind = optuna"
        )


def _check_runs(plan: Plan) -> None:
    """PlethoraError: a value of the space makes no run, or the objective cannot be known."""
    from pretrain.recipe import load

    search = plan.search
    base = _tried(plan, {}, plan.path)
    if base.recipe == "finetune.ranks:Ranks":
        raise PlethoraError(
            f"{plan.path}: recipe = {base.recipe!r} trained several LoRA ranks at once and was removed: use "
            "finetune.supervised:Vision, and vary method.lora.r in [space]"
        )
    if not base.validate_every:
        raise PlethoraError(
            f"{plan.path}: validate_every = 0, so the objective is never measured: set it above 0"
        )
    for objective in search.objective:
        if objective.task:
            from tuning import probe

            probe.check(objective)
    if search.scheduler.kind != "none" and search.objective[0].task and not search.scheduler.metric:
        raise PlethoraError(
            f"{plan.path}: the probe {search.objective[0].name} is known only when a trial ends: give "
            'scheduler.metric (a validation figure) and scheduler.mode, or scheduler.kind = "none"'
        )
    if search.scheduler.metric and search.scheduler.mode is None:
        raise PlethoraError(f'{plan.path}: scheduler.metric needs scheduler.mode = "min" or "max"')
    for key, values in ends(plan):
        where = f"{plan.path}: space.{key}"
        run = _tried(plan, values, where)
        config.validate(load(run.recipe).Config, run.method, where)  # type: ignore[attr-defined]


def ends(plan: Plan) -> Iterator[tuple[str, Values]]:
    """(key, values) at each end of each range, and at each choice."""
    space = plan.search.space
    for key, spread in space.items():
        for end in spread.ends():
            yield key, activating(space, key) | {key: end}


def _tried(plan: Plan, values: Values, where: str) -> RunConfig:
    """`plan.run`; a mistake is the search file's, so its error names no --set that nobody typed."""
    try:
        return plan.run(values, "name=t")
    except PlethoraError as error:
        message = str(error)
        for item in (*plan.fixed, *plan.sets(values)):
            message = message.replace(f"--set {item}: ", "")
        raise PlethoraError(f"{where}: {message}") from None


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
                f"{path}: space.{name} = {value!r} does not say how the key varies: "
                + (f"did you mean {at[:-1]} = {{ {near[0]} = … }}?" if near and at else "")
                + ("" if near and at else f"write {name} = {{ {' | '.join(KINDS)} = … }}")
            )


def _run_keys(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():  # the keys of `corpus` are URIs: it stays whole
        yield from ((key, value),) if key == "corpus" else flat({key: value}).items()


def _base(base: str, path: str) -> str:
    """The run file: its path is relative to the search file, or to the current folder."""
    for found in (Path(path).parent / base, Path(base)):
        if found.is_file():
            return str(found.resolve())
    raise PlethoraError(f"{path}: base = {base!r}: no such run file beside it: correct the path")


def _require_key(key: str, search: Search, where: str) -> None:
    if key not in search.space:
        near = difflib.get_close_matches(key, search.space, n=1, cutoff=0.0)
        raise PlethoraError(f"{where}: `{key}` is not a key of [space], the nearest is `{near[0]}`")


def flat(table: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested tables."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, Mapping) and bool(value)
        found |= flat(value, f"{at}{key}.") if inner else {f"{at}{key}": value}
    return found


def toml(value: Any) -> str:
    """A value on one line, as --set reads it back: TOML, and words that are not TOML as they are."""
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
