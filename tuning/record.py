"""What a search writes as it goes, and what its report, live table and TensorBoard read.

<search>/search.json     the search: objectives, space, scheduler, searcher, budget
<search>/trials.jsonl    one line an event; of a trial the newest counts
<search>/result.json     at the end: the chosen trial and its one evaluation on test subjects
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from cluster import storage
from cluster.cli import plain
from cluster.errors import PlethoraError

SEARCH, TRIALS, RESULT = "search.json", "trials.jsonl", "result.json"
STATES = ("running", "done", "stopped", "failed")

T = TypeVar("T")


@dataclass(frozen=True)
class Objective:
    """A validation figure that the search makes small ("min") or large ("max")."""

    name: str
    mode: str = "min"
    metric: str = ""
    unit: str = ""

    @property
    def sign(self) -> float:
        """What makes smaller better."""
        return 1.0 if self.mode == "min" else -1.0

    @property
    def title(self) -> str:
        """Name and unit, as on an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


@dataclass(frozen=True)
class Key:
    """The distribution of one dotted key. `when`: {other key: values of it at which this one is drawn}."""

    kind: str  # choice, uniform, loguniform, int
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    when: dict[str, Any] = field(default_factory=dict)  # a value, or a list of them
    step: float | None = None
    log: bool = False

    def asks(self, other: str) -> list[Any]:
        """The values of key `other` at which this one is drawn; empty: it does not ask."""
        wanted = self.when.get(other, [])
        return list(wanted) if isinstance(wanted, list | tuple) else [wanted]

    def levels(self) -> list[Any] | None:
        """Every value that it can take; None: too many to count."""
        if not self.numeric:
            return list(self.choices)
        if self.low is None or self.high is None or (self.kind != "int" and self.step is None):
            return None
        step = self.step or 1
        return [self.low + i * step for i in range(int((self.high - self.low) / step + 1e-9) + 1)]

    @property
    def numeric(self) -> bool:
        return self.kind != "choice"

    @property
    def logarithmic(self) -> bool:
        return self.log or self.kind == "loguniform"


@dataclass(frozen=True)
class Search:
    """search.json. Times are unix seconds, costs seconds of running trials."""

    name: str
    objective: tuple[Objective, ...]
    space: dict[str, Key]
    base: str = ""
    scheduler: dict[str, Any] = field(default_factory=dict)
    searcher: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)  # trials, hours, concurrent
    git_commit: str = ""
    command: str = ""
    started: float = 0.0
    spent_s: float | None = None
    ended: float | None = None
    trials_planned: int | None = None
    grid_points: int | None = None  # of the whole grid, where every key has steps
    scaling: dict[str, Any] = field(default_factory=dict)  # axes: names of facts


@dataclass(frozen=True)
class Trial:
    """The newest line of one trial. `objective`: the value last reported, at `step`."""

    trial: str
    state: str
    why: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    started: float | None = None
    spent_s: float = 0.0
    retries: int = 0
    step: int = 0
    steps: int | None = None  # of it, were it not stopped
    objective: dict[str, float | None] | None = None
    curve: tuple[tuple[int, dict[str, float | None]], ...] = ()
    bundle: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # parameters, hours
    run: str = ""

    def at_end(self, name: str) -> float | None:
        """The last value of objective `name`; None where there is none or it is not finite."""
        return _finite((self.objective or {}).get(name))

    def curve_of(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one validation figure, finite ones only."""
        found = ((step, _finite(figures.get(name))) for step, figures in self.curve)
        return [(step, value) for step, value in found if value is not None]


@dataclass(frozen=True)
class Result:
    """result.json. `test`: tables of text {title, header, body, notes}."""

    best: str | None = None
    front: tuple[str, ...] = ()
    test: tuple[dict[str, Any], ...] = ()
    test_metrics: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """A search as far as it went; trials in the order in which they began."""

    search: Search
    trials: tuple[Trial, ...]
    result: Result | None = None
    home: str = ""

    def having(self, *states: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.state in states]

    def best(self, number: int = 0) -> Trial | None:
        """The best finished trial by one objective; while none is finished, the best of all so far."""
        objective = self.search.objective[number]
        for states in (("done",), STATES):
            known = [t for t in self.having(*states) if t.at_end(objective.name) is not None]
            if known:
                return min(known, key=lambda t: objective.sign * (t.at_end(objective.name) or 0.0))
        return None

    def front(self) -> list[Trial]:
        """Finished trials that no other finished one beats in every objective, by the first objective."""
        goals = self.search.objective
        told = [t for t in self.having("done") if all(t.at_end(o.name) is not None for o in goals)]
        costs = {t.trial: [o.sign * (t.at_end(o.name) or 0.0) for o in goals] for t in told}

        def beaten(own: list[float]) -> bool:
            return any(c != own and all(a <= b for a, b in zip(c, own, strict=True)) for c in costs.values())

        kept = [t for t in told if not beaten(costs[t.trial])]
        return sorted(kept, key=lambda t: costs[t.trial])

    def chosen(self) -> Trial | None:
        """The trial that the result names, else `best`."""
        named = self.result.best if self.result else None
        return next((t for t in self.trials if t.trial == named), None) or self.best()


def line(trial: Trial) -> bytes:
    """`trial` as a line of trials.jsonl."""
    return (json.dumps(plain(asdict(trial)), ensure_ascii=False) + "\n").encode()


def read(home: str) -> Record:
    """The record under `home` (path or s3://…), at any moment of the search.

    A last line that is still being written is left out; any other that cannot be read is a PlethoraError.
    """
    home = storage.normalise(home)
    where = storage.join(home, SEARCH)
    if not storage.exists(where):
        raise PlethoraError(f"{home}: no {SEARCH} there: give the folder of a search, <storage>/<its name>")
    search = search_of(storage.read_json(where), where)
    lines = storage.join(home, TRIALS)
    found = storage.read_bytes(lines) if storage.exists(lines) else b""
    ended = storage.join(home, RESULT)
    result = _of(Result, storage.read_json(ended), ended) if storage.exists(ended) else None
    return Record(search, newest(found.split(b"\n"), lines), result, home)


def of(search: Mapping[str, Any], trials: Mapping[str, Mapping[str, Any]]) -> Record:
    """The record that a driver holds in memory: search.json, and the newest line of each trial."""
    found = tuple(_of(Trial, dict(raw), f"trial {name}") for name, raw in trials.items())
    return Record(search_of(search), found)


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
            raise PlethoraError(
                f"{where}, line {number}: state {trial.state!r} is none of {', '.join(STATES)}"
            )
        found[trial.trial] = trial
    return tuple(found.values())


def search_of(raw: Mapping[str, Any], where: str = SEARCH) -> Search:
    """The search that search.json tells of."""
    if not isinstance(raw, Mapping) or not raw.get("objective"):
        raise PlethoraError(f"{where}: names no objective: is this the record of a search?")
    space = {key: _of(Key, one, f"{where}, space.{key}") for key, one in (raw.get("space") or {}).items()}
    objective = tuple(_of(Objective, one, f"{where}, objective") for one in raw["objective"])
    return _of(Search, dict(raw) | {"objective": objective, "space": space}, where)


def _of(kind: type[T], raw: Any, where: str) -> T:
    """A dataclass out of JSON; what it does not know is left out, lists become tuples."""
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
