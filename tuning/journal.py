"""The record of a search as the driver writes it, whenever something happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cluster import storage
from cluster.errors import PlethoraError
from tuning import record
from tuning.config import Search
from tuning.record import Info, Record, Trial

SAME = ("run", "objective", "space")  # what a resumed search must not change


class Journal:
    """`<home>/search.json` and `trials.jsonl`, which holds the newest line of each trial. `listeners` get
    each trial that changed."""

    def __init__(self, home: str, search: Search, info: Info, resume: bool) -> None:
        self.home, self.search, self.trials = home, search, dict[str, Trial]()
        self.listeners: list[Callable[[Trial], None]] = []
        self.spent, self._opened = 0.0, time.monotonic()  # seconds of earlier sessions; start of this one
        self._info = replace(info, started=time.time())
        where = storage.join(home, record.SEARCH)
        if storage.exists(where):
            if not resume:
                raise PlethoraError(
                    f"search {search.name} exists at {home}: continue it with --resume, or give another name"
                )
            self._continue(storage.read_json(where), where)
        self.write()

    def _continue(self, raw: dict[str, Any], where: str) -> None:
        now = record.search_json(self.search, self._info)
        for key in SAME:
            if raw.get(key) != now[key]:
                raise PlethoraError(
                    f"search {self.search.name} at {self.home} has another {key}: "
                    f"{_difference(raw.get(key), now[key])}; undo that, or give another name"
                )
        former = record.info_of(raw, where)
        self.spent = former.spent_s or 0.0
        self._info = replace(
            self._info, started=former.started, ended=former.ended, trials_planned=former.trials_planned
        )
        self.trials = {trial.trial: trial for trial in record.read(self.home).trials}

    @property
    def info(self) -> Info:
        return replace(self._info, spent_s=round(self.spent + time.monotonic() - self._opened, 1))

    def update(self, name: str, **changes: Any) -> Trial:
        """Change one trial's line, or start it, and write the record."""
        known = self.trials.get(name) or Trial(name, "running")
        self.trials[name] = replace(known, **changes)
        self.write()
        for listener in self.listeners:
            listener(self.trials[name])
        return self.trials[name]

    def note(self, **changes: Any) -> None:
        """Change what search.json says; `write` puts it on the storage."""
        self._info = replace(self._info, **changes)

    def write(self) -> None:
        content = record.search_json(self.search, self.info)
        storage.write_json(storage.join(self.home, record.SEARCH), content)
        lines = b"".join(record.line(trial) for trial in self.trials.values())
        storage.write_bytes(storage.join(self.home, record.TRIALS), lines)

    def record(self) -> Record:
        """The search as it is now."""
        return Record(self.search, self.info, tuple(self.trials.values()), None, self.home)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks: what draws the search cannot be pickled, and nobody reads the copy
        return vars(self) | {"listeners": []}


def _difference(former: Any, now: Any) -> str:
    """The first difference, for people."""
    if isinstance(former, dict) and isinstance(now, dict):
        key = min(k for k in {*former, *now} if former.get(k) != now.get(k))
        return f"{key} was {former.get(key)!r} and is {now.get(key)!r}"
    if isinstance(former, list) and isinstance(now, list):
        return f"{[x for x in former if x not in now]} and now {[x for x in now if x not in former]}"
    return f"{former!r} and now {now!r}"
