"""Many results of `compare` on one board: ranks of encoders, task by task and over all."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster import storage
from cluster.errors import PlethoraError
from finetune.evaluation.leaderboard import leaderboard
from finetune.evaluation.written import read_folder
from finetune.reports import leaderboard_report
from finetune.reports.sheet import Sheet


@dataclass(frozen=True)
class Leaderboard:
    """`folders`: what `compare` or `evaluate` wrote; `out`: a folder."""

    folders: Sequence[str]
    out: str


def run(options: Leaderboard) -> Sheet:
    """leaderboard.md, report.html, results.json, leaderboard.csv, leaderboard.png."""
    places = Counter(storage.normalise(uri) for uri in options.folders)
    twice = next((uri for uri, times in places.items() if times > 1), None)
    if twice:
        raise PlethoraError(f"{twice} is named twice: name each folder once")
    if storage.normalise(options.out) in places:
        raise PlethoraError(f"--out {options.out} is one of the folders that are read: name another")
    tables = [table for uri in options.folders for table in read_folder(uri)]
    return leaderboard_report.sheet(leaderboard(tables), options.out)
