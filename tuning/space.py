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

Every key that is not the search's own (`tuning.config.Search`) is the run's and goes on top of `base`:
`corpus`, `storage`, `steps`, `[method]` … stand in the search file, or after `--set`, as for the run.
A trial is the run file and a list of ``key=value``, and nothing else: that is its printed command.
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
from tuning.config import KINDS, Search, Values


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
    for key in table:
        if key not in RunConfig.model_fields:
            near = difflib.get_close_matches(key, [*Search.model_fields, *RunConfig.model_fields], n=1)
            raise PlethoraError(
                f"{path}: unknown key `{key}`" + (f", the nearest known one is `{near[0]}`" if near else "")
            )
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
    base = _tried(plan, {}, plan.path)
    if not base.validate_every:
        raise PlethoraError(f"{plan.path}: validate_every = 0, so that no objective is ever known: raise it")
    for objective in search.objective:
        if objective.task:
            from tuning import objective as probing

            probing.check(objective)
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
            where = f"{plan.path}: space.{key}"
            run = _tried(plan, values, where)
            config.validate(load(run.recipe).Config, run.method, where)  # type: ignore[attr-defined]


def _tried(plan: Plan, values: Values, where: str) -> RunConfig:
    """`plan.run`, where a mistake is one of the search file and not of a --set that nobody typed."""
    try:
        return plan.run(values, "name=t")
    except PlethoraError as error:
        said = str(error)
        for item in (*plan.fixed, *plan.sets(values)):
            said = said.replace(f"--set {item}: ", "")
        raise PlethoraError(f"{where}: {said}") from None


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
