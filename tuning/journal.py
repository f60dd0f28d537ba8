"""The record of a search as it is written: by the driver, whenever something happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cluster import storage
from cluster.errors import PlethoraError
from tuning import record
from tuning.record import Record, Trial

SAME = ("run", "objective", "space")  # what a search that goes on must not change


class Journal:
    """`<home>/search.json` and `trials.jsonl`, which holds the newest line of each trial. `listeners` are
    told each trial that changed."""

    def __init__(self, home: str, search: dict[str, Any], resume: bool) -> None:
        self.home, self.trials = home, dict[str, Trial]()
        self.listeners: list[Callable[[Trial], None]] = []
        self.search, self.since, self.spent = search | {"started": time.time()}, time.monotonic(), 0.0
        where = storage.join(home, record.SEARCH)
        if storage.exists(where):
            if not resume:
                raise PlethoraError(
                    f"search {search['name']} exists at {home}: go on with --resume, or give another name"
                )
            former = storage.read_json(where)
            for key in SAME:
                if former.get(key) != search[key]:
                    raise PlethoraError(
                        f"search {search['name']} at {home} has another {key}: "
                        f"{_other(former.get(key), search[key])}; undo that, or give another name"
                    )
            self.spent = former.get("spent_s") or 0.0
            self.search = former | search | {"started": former["started"]}
            self.trials = {trial.trial: trial for trial in record.read(home).trials}
        self.write()

    def tell(self, name: str, **changes: Any) -> Trial:
        """Change one trial's line (or begin it) and write the record."""
        known = self.trials.get(name) or Trial(name, "running")
        self.trials[name] = replace(known, **changes)
        self.write()
        for listener in self.listeners:
            listener(self.trials[name])
        return self.trials[name]

    def write(self) -> None:
        storage.write_json(storage.join(self.home, record.SEARCH), self.told())
        lines = b"".join(record.line(trial) for trial in self.trials.values())
        storage.write_bytes(storage.join(self.home, record.TRIALS), lines)

    def told(self) -> dict[str, Any]:
        return self.search | {"spent_s": round(self.spent + time.monotonic() - self.since, 1)}

    def record(self) -> Record:
        """The search as it is now."""
        return Record(record.search_of(self.told()), tuple(self.trials.values()), None, self.home)

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a copy of its callbacks, which nobody reads: what shows the search cannot be in it
        return vars(self) | {"listeners": []}

    def having(self, *states: str) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state in states]


def _other(former: Any, now: Any) -> str:
    """The first difference, for people."""
    if isinstance(former, dict) and isinstance(now, dict):
        keys: Sequence[str] = sorted(k for k in {*former, *now} if former.get(k) != now.get(k))
        return f"{keys[0]} was {former.get(keys[0])!r} and is {now.get(keys[0])!r}"
    if isinstance(former, list) and isinstance(now, list):
        return f"{[x for x in former if x not in now]} and now {[x for x in now if x not in former]}"
    return f"{former!r} and now {now!r}"
