"""From a run file to its windows: indexes, the training plan, the validation windows, the subjects seen."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError
from datasets import index
from datasets.index import Index, Shelf
from datasets.plan import Plan, steps_for
from datasets.schema import open_corpus
from datasets.windows import WindowSpec
from pretrain.config import RunConfig


@dataclass(frozen=True)
class Data:
    """The indexed corpora of one run. Building it again from the cache is cheap: the driver, the controller
    (at each start of the worker group) and every worker do."""

    run: RunConfig
    spec: WindowSpec
    indexes: list[Index]

    @property
    def train_windows(self) -> int:
        return sum(len(i.select("train", self.run.split)) for i in self.indexes)

    @property
    def epoch_steps(self) -> float:
        """Optimizer steps an epoch (a fraction where the batch does not divide it)."""
        return (self.run.epoch_windows or self.train_windows) / self.run.batch

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.run.steps is not None:
            return self.run.steps
        assert self.run.epochs is not None  # RunConfig checks that one of the two is given
        return steps_for(self.run.epochs, self.run.epoch_windows or self.train_windows, self.run.batch)

    def plan(self, start: int, world: int) -> tuple[Plan, list[Shelf]]:
        """What `world` workers read from step `start` on, and where it lies."""
        sources, shelves = [], []
        for found, (uri, weight) in zip(self.indexes, self.run.corpora.items(), strict=True):
            rows = found.select("train", self.run.split)
            if not len(rows):
                raise PlethoraError(
                    f"{uri} has no window of {self.spec.window_s:g} s for training: "
                    f"take it out of corpus, or ask for shorter windows"
                )
            source, shelf = found.source(rows, weight)
            sources.append(source)
            shelves.append(shelf)
        size = self.spec.bytes
        shuffle = int(self.run.stream.shuffle_mb * 1e6 / size)
        return (
            Plan(tuple(sources), self.run.seed, self.run.batch, self.steps, world, start, shuffle, size),
            shelves,
        )

    def validation(self, rank: int, world: int) -> dict[str, np.ndarray]:
        """This rank's share of up to `validate_windows` windows of held-out subjects, spread over corpora and
        records: {modality: (n, channels, samples), "window": (n,), "subject": (n,)}. Each subject comes once
        before any comes again: a batch holds as many as it can. Every rank gets the same number (sharded
        modules meet in every forward pass); what does not divide is left out.
        """
        parts = []
        for found in self.indexes:
            rows = found.select("val", self.run.split)
            want = min(len(rows), -(-self.run.validate_windows // len(self.indexes)))
            rows = rows[np.linspace(0, len(rows) - 1, want).round().astype(int)]
            rows = rows[np.argsort(_turn(found.source(rows, 1.0)[1].subject), kind="stable")]
            rows = rows[: len(rows) // world * world][rank::world]
            if len(rows):
                subject = found.source(rows, 1.0)[1].subject
                parts.append(found.load(rows) | {"window": found.ids(rows), "subject": subject})
        if not parts:
            raise PlethoraError(
                f"no validation window: split.val = {self.run.split.val:g} puts too few subjects of "
                f"{', '.join(self.run.corpora)} aside; raise it, or set validate_every = 0"
            )
        whole = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        order = np.argsort(_turn(whole["subject"]), kind="stable")
        return {name: values[order] for name, values in whole.items()}

    def lineage(self) -> list[dict[str, Any]]:
        """What of each corpus training saw: hash, terms, and the keyed names of its train and val
        subjects.
        """
        out = []
        for found, (uri, weight) in zip(self.indexes, self.run.corpora.items(), strict=True):
            m = found.corpus.manifest
            sides = {side: found.select(side, self.run.split) for side in ("train", "val")}
            subjects = {
                s for rows in sides.values() for s in found.table["subject"].take(rows).unique().to_pylist()
            }
            out.append(
                {
                    "uri": uri,
                    "weight": weight,
                    "windows": {side: len(rows) for side, rows in sides.items()},
                    **{
                        k: m[k]
                        for k in ("hash", "source", "licence", "terms", "citation", "key_id", "id_space")
                    },
                    "access": m.get("access", "unknown"),
                    "subjects_published": m["subjects_published"],
                    "subjects": sorted(subjects),
                }
            )
        return out


def _turn(names: np.ndarray) -> np.ndarray:
    """(n,) how many equal names each one has before it."""
    order = np.argsort(names, kind="stable")
    place = np.arange(len(names))
    starts = np.r_[True, names[order][1:] != names[order][:-1]][: len(names)]
    turn = np.empty_like(place)
    turn[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
    return turn


def open_data(run: RunConfig, spec: WindowSpec) -> Data:
    """Index every corpus of the run (cached under `storage`/index)."""
    cache = storage.join(run.storage, "index")
    return Data(run, spec, [index.build(open_corpus(uri), spec, cache) for uri in run.corpora])
