"""Some of many windows: evenly spread ones, and a draw of sound ones of different people."""

import numpy as np

from cluster.errors import PlethoraError
from datasets.index import few
from datasets.schema import Corpus
from datasets.windows import WindowSpec, empty, extract, grid, lasts, verdicts


def spread(places: np.ndarray, most: int) -> np.ndarray:
    """At most so many of `places`, evenly."""
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, most).round().astype(int)]


def sound_windows(corpus: Corpus, spec: WindowSpec, most: int, seed: int) -> list[tuple[np.ndarray, str]]:
    """At most so many sound PPG windows, [((T,) float32, subject, record and start)]: first of different
    subjects, at most one of each row of the corpus. PlethoraError: the corpus holds no PPG.
    """
    if "ppg" not in corpus.modalities:
        raise PlethoraError(f"{corpus.uri} holds {', '.join(corpus.modalities)}, and no PPG")
    draw = np.random.default_rng(seed)
    places = [(s, g) for s, shard in enumerate(corpus.shards) for g in range(len(shard["row_groups"]))]
    first: dict[str, tuple[np.ndarray, str]] = {}
    more: list[tuple[np.ndarray, str]] = []
    for place in draw.permutation(len(places)).tolist():
        table = few(corpus, *places[place], spec)
        seconds = lasts(table, spec)
        for row in draw.permutation(table.num_rows).tolist():
            offsets = grid(seconds[row], spec)
            if not len(offsets):
                continue
            offset = draw.choice(offsets, 1)
            room, at = empty(1, spec), np.zeros(1, int)
            extract(table, np.array([row]), offset, spec, room, at)
            if verdicts(room["ppg"], spec.signals[0], spec)[1][0] != "ok":
                continue
            about = table.slice(row, 1).select(["subject", "record", "start_s"]).to_pylist()[0]
            start = about["start_s"] + float(offset[0])
            window = room["ppg"][0, 0], f"subject {about['subject'][:8]}…\n{about['record']} at {start:g} s"
            if about["subject"] in first:
                more.append(window)
            else:
                first[about["subject"]] = window
            if len(first) >= most:
                return list(first.values())
    return [*first.values(), *more][:most]
