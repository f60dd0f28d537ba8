"""What a search writes as it runs; the report, the live table and TensorBoard read nothing else.

<search>/search.json     the search: objectives, space, scheduler, searcher, budget
<search>/trials.jsonl    one line an event; the newest line of a trial counts
<search>/result.json     at the end: the best trial and its one evaluation on test subjects
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

import pydantic

from cluster import config, storage
from cluster.cli import plain
from cluster.errors import PlethoraError
from tuning.config import Budget, Objective, Scheduler, Search, Searcher
from tuning.space import Spread, Values

SEARCH, TRIALS, RESULT = "search.json", "trials.jsonl", "result.json"
STATES = ("running", "done", "stopped", "failed")

T = TypeVar("T")
Figures = dict[str, float | None]  # {name of a validation figure: value}


@dataclass(frozen=True)
class Info:
    """What search.json holds beside the configuration. Times are unix seconds."""

    fixed: tuple[str, ...] = ()  # key=value on top of the base run, for every trial
    run: dict[str, Any] = field(default_factory=dict)  # the base run, less its defaults
    git_commit: str = ""
    command: str = ""
    started: float = 0.0
    spent_s: float | None = None  # by the clock, while a driver ran
    ended: float | None = None
    trials_planned: int | None = None
    grid_points: int | None = None  # of the whole grid, where every key has steps


@dataclass(frozen=True)
class Trial:
    """The newest line of one trial. `objective`: the value last reported, at `step`. `spent_s`: seconds."""

    trial: str
    state: str
    why: str = ""
    values: Values = field(default_factory=dict)
    command: str = ""
    started: float | None = None
    spent_s: float = 0.0
    retries: int = 0
    step: int = 0
    steps: int | None = None  # that it takes if nothing stops it
    objective: Figures | None = None
    curve: tuple[tuple[int, Figures], ...] = ()
    bundle: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # parameters, hours, subjects
    run: str = ""

    def at_end(self, name: str) -> float | None:
        """The last value of objective `name`; None where there is none or it is not finite."""
        return _finite((self.objective or {}).get(name))

    def curve_of(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one validation figure, finite ones only."""
        found = ((step, _finite(figures.get(name))) for step, figures in self.curve)
        return [(step, value) for step, value in found if value is not None]

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = plain(asdict(self))
        return found


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the row."""

    title: str
    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """result.json. `test_metrics`: {objective: {"val", "test"}}."""

    best: str | None = None
    front: tuple[str, ...] = ()
    test: tuple[Table, ...] = ()
    test_metrics: dict[str, Figures] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Record:
    """A search as far as it went; trials in the order in which they started."""

    search: Search
    info: Info
    trials: tuple[Trial, ...]
    result: Result | None = None
    home: str = ""

    @property
    def planned(self) -> int:
        """Trials of the whole search."""
        return self.info.trials_planned or self.search.budget.trials

    def having(self, *states: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.state in states]

    def measured(self, *states: str, number: int = 0) -> list[tuple[float, Trial]]:
        """(cost, trial) where the objective `number` has a value; less cost is better."""
        objective = self.search.objective[number]
        found = ((trial.at_end(objective.name), trial) for trial in self.having(*states))
        return [(objective.sign * value, trial) for value, trial in found if value is not None]

    def best(self, number: int = 0) -> Trial | None:
        """The best finished trial by one objective; while none is finished, the best of all so far."""
        known = self.measured("done", number=number) or self.measured(*STATES, number=number)
        return min(known, key=lambda one: one[0])[1] if known else None

    def front(self) -> list[Trial]:
        """The Pareto front of the finished trials, ordered by the first objective."""
        every = [self.measured("done", number=number) for number in range(len(self.search.objective))]
        costs = [{trial.trial: cost for cost, trial in known} for known in every]
        points = {
            t.trial: [each[t.trial] for each in costs]
            for t in self.having("done")
            if all(t.trial in each for each in costs)
        }

        def dominated(point: list[float]) -> bool:
            return any(
                other != point and all(a <= b for a, b in zip(other, point, strict=True))
                for other in points.values()
            )

        front = [t for t in self.having("done") if t.trial in points and not dominated(points[t.trial])]
        return sorted(front, key=lambda t: points[t.trial])

    def chosen(self) -> Trial | None:
        """The trial that the result names, else `best`."""
        named = self.result.best if self.result else None
        return next((t for t in self.trials if t.trial == named), None) or self.best()


def line(trial: Trial) -> bytes:
    """`trial` as a line of trials.jsonl."""
    return (json.dumps(trial.to_json(), ensure_ascii=False) + "\n").encode()


def search_json(search: Search, info: Info) -> dict[str, Any]:
    """search.json; `search_of` and `info_of` read it."""
    return {
        **{key: value for key, value in asdict(info).items() if value is not None or key == "grid_points"},
        "fixed": list(info.fixed),
        "name": search.name,
        "base": search.base,
        "objective": [o.model_dump(mode="json") | {"name": o.name} for o in search.objective],
        "space": {key: spread.to_json() for key, spread in search.space.items()},
        "scaling": {"axes": list(search.scaling)} if search.scaling else {},
        "scheduler": search.scheduler.model_dump(mode="json"),
        "searcher": search.searcher.model_dump(mode="json"),
        "budget": search.budget.model_dump(mode="json"),
    }


def search_of(raw: Any, where: str = SEARCH) -> Search:
    """The configuration that search.json holds. Keys of other versions are left out."""
    if not isinstance(raw, Mapping) or not raw.get("objective"):
        raise PlethoraError(f"{where}: names no objective: give the folder of a search")
    models: dict[str, type[pydantic.BaseModel]] = {
        "scheduler": Scheduler,
        "searcher": Searcher,
        "budget": Budget,
    }
    given = {
        "name": raw.get("name"),
        "base": raw.get("base", ""),
        "objective": [_known(Objective, one) for one in raw["objective"]],
        "space": {key: _known(Spread, one) for key, one in (raw.get("space") or {}).items()},
        "scaling": (raw.get("scaling") or {}).get("axes", []),
        **{key: _known(model, raw.get(key) or {}) for key, model in models.items()},
    }
    return config.validate(Search, given, where)


def info_of(raw: Any, where: str = SEARCH) -> Info:
    """What search.json holds beside the configuration."""
    return _of(Info, raw, where)


def read(home: str) -> Record:
    """The record under `home` (path or s3://…), at any moment of the search.

    A last line that is still being written is left out; any other that cannot be read is a PlethoraError.
    """
    home = storage.normalise(home)
    where = storage.join(home, SEARCH)
    if not storage.exists(where):
        raise PlethoraError(f"{home}: no {SEARCH} there: give the folder of a search, <storage>/<its name>")
    raw = storage.read_json(where)
    lines = storage.join(home, TRIALS)
    found = storage.read_bytes(lines) if storage.exists(lines) else b""
    ended = storage.join(home, RESULT)
    result = result_of(storage.read_json(ended), ended) if storage.exists(ended) else None
    trials = newest(found.split(b"\n"), lines)
    return Record(search_of(raw, where), info_of(raw, where), trials, result, home)


def result_of(raw: Any, where: str = RESULT) -> Result:
    """The result that result.json holds."""
    found = _of(Result, raw, where)
    return replace(found, test=tuple(_of(Table, one, f"{where}, test") for one in found.test))


def newest(lines: Iterable[bytes], where: str = TRIALS) -> tuple[Trial, ...]:
    """The last line of each trial."""
    given = list(lines)
    found: dict[str, Trial] = {}
    for number, text in enumerate(given, 1):
        if not text.strip():
            continue
        try:
            raw = json.loads(text)
        except ValueError:
            if number == len(given):
                break  # no line end yet: the driver is writing it, or died while it did
            raise PlethoraError(f"{where}, line {number}: not JSON: remove that line") from None
        trial = _of(Trial, raw, f"{where}, line {number}")
        if trial.state not in STATES:
            known = ", ".join(STATES)
            raise PlethoraError(
                f"{where}, line {number}: unknown state {trial.state!r}; there are {known}: remove that line"
            )
        found[trial.trial] = trial
    return tuple(found.values())


def _known(model: type[pydantic.BaseModel], raw: Any) -> Any:
    """A table of JSON without the keys that `model` does not have."""
    return {k: v for k, v in raw.items() if k in model.model_fields} if isinstance(raw, Mapping) else raw


def _of(kind: type[T], raw: Any, where: str) -> T:
    """A dataclass out of JSON: unknown keys are left out, lists become tuples."""
    if not isinstance(raw, Mapping):
        raise PlethoraError(f"{where}: expected a table, found {type(raw).__name__}")
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    given = {
        name: tuple(map(_frozen, value)) if isinstance(value, list) else value
        for name, value in raw.items()
        if name in known and value is not None
    }
    try:
        return kind(**given)
    except TypeError as error:
        raise PlethoraError(f"{where}: {str(error).split(') ')[-1]}") from None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _finite(value: Any) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None
