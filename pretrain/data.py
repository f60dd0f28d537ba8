"""From a run file to its windows: indexes, the training plan, the validation windows, the subjects seen."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError
from datasets import index, prepared
from datasets.index import Index, Shelf
from datasets.plan import Plan, steps_for
from datasets.prepared import Prepared
from datasets.schema import open_corpus
from datasets.windows import WindowSpec
from pretrain.config import RunConfig
from pretrain.recipe import Recipe, has


@dataclass(frozen=True)
class Data:
    """The indexed corpora of one run. Building it again from the cache is cheap: the driver, the controller
    (at each start of the worker group) and every worker do.

    targets: of a recipe that learns from labels, one array an index, (its windows, k) float32, NaN where
    unknown; windows without any are in no part. prepared: one an index, where training reads materialised
    windows.
    """

    run: RunConfig
    spec: WindowSpec
    indexes: list[Index]
    targets: list[np.ndarray] | None = None
    prepared: list[Prepared] | None = None
    _shelves: dict[tuple[int, str | None], Shelf] = field(default_factory=dict, repr=False, compare=False)

    def rows(self, number: int, part: str | None) -> np.ndarray:
        """Rows of index `number` that `part` ("train", "val", "test"; None: all) has to learn or judge by."""
        return self.shelf(number, part).rows(slice(None))

    def shelf(self, number: int, part: str | None) -> Shelf:
        """The same windows, at no cost a window."""
        if (number, part) not in self._shelves:  # a look at every window, and asked for by most that is below
            target = None if self.targets is None else self.targets[number]
            self._shelves[number, part] = self.indexes[number].shelf(part, self.run.split, target)
        return self._shelves[number, part]

    def targets_of(self, part: str | None) -> np.ndarray:
        """(n, k) targets of all of `part`'s windows, corpus after corpus."""
        assert self.targets is not None
        return np.concatenate([t[self.rows(i, part)] for i, t in enumerate(self.targets)])

    @property
    def train_windows(self) -> int:
        return sum(len(self.shelf(i, "train")) for i in range(len(self.indexes)))

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

    @property
    def window_bytes(self) -> int:
        """Of a window on its way, prepared or raw, whichever is more."""
        raw = 0.0
        for sig in self.spec.signals:
            each = [
                shard.get("rates", {}).get(sig.modality, ())
                for i in self.indexes
                for shard in i.corpus.shards
            ]
            raw += (
                2
                * sig.channels
                * self.spec.window_s
                * max((rate for one in each for rate in one), default=0.0)
            )
        return max(self.spec.bytes, round(raw))

    def plan(self, start: int, world: int) -> tuple[Plan, list[Shelf]]:
        """What `world` workers read from step `start` on, and where it lies."""
        sources, shelves = [], []
        for number, (uri, weight) in enumerate(self.run.corpora.items()):
            shelf = self.shelf(number, "train")
            if not len(shelf):
                labelled = "" if self.targets is None else " with a label that the run asks for"
                raise PlethoraError(
                    f"{uri} has no window of {self.spec.window_s:g} s{labelled} for training: "
                    f"take it out of corpus, or ask for shorter windows"
                )
            if self.prepared is not None:
                shelf = shelf.prepared_as(self.prepared[number])
            sources.append(shelf.source(weight))
            shelves.append(shelf)
        run, stream = self.run, self.run.stream
        return (
            Plan(
                tuple(sources),
                run.seed,
                run.batch,
                self.steps,
                world,
                start,
                stream.lanes,
                stream.mixed,
                self.window_bytes,
                run.micro,
            ),
            shelves,
        )

    def validation(self, rank: int, world: int, part: str = "val") -> dict[str, np.ndarray]:
        """This rank's share of up to `validate_windows` windows of held-out subjects (`part`: "val" or
        "test"), spread over corpora and records: {modality: (n, channels, samples), "window": (n,),
        "subject": (n,)} and, of a recipe that learns from labels, "target" (n, k). Each subject comes once
        before any comes again: a batch holds as many as it can. Every rank gets the same number (sharded
        modules meet in every forward pass); what does not divide is left out.
        """
        parts = []
        for number, found in enumerate(self.indexes):
            shelf = self.shelf(number, part)
            want = min(len(shelf), -(-self.run.validate_windows // len(self.indexes)))
            at = np.linspace(0, len(shelf) - 1, want).round().astype(int)
            at = at[np.argsort(_turn(shelf.windows(at).subject), kind="stable")]
            at = at[: len(at) // world * world][rank::world]
            if len(at):
                rows, told = shelf.rows(at), shelf.windows(at)
                parts.append(found.load(rows) | {"window": told.id, "subject": told.subject})
                if self.targets is not None:
                    parts[-1]["target"] = self.targets[number][rows]
        if not parts:
            raise PlethoraError(
                f"no validation window: split.{part} = {getattr(self.run.split, part):g} puts too few "
                f"subjects of {', '.join(self.run.corpora)} aside; raise it, or set validate_every = 0"
            )
        whole = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        order = np.argsort(_turn(whole["subject"]), kind="stable")
        return {name: values[order] for name, values in whole.items()}

    def lineage(self) -> list[dict[str, Any]]:
        """What of each corpus training saw: hash, terms, and the keyed names of its train and val
        subjects.
        """
        out = []
        for number, (found, (uri, weight)) in enumerate(
            zip(self.indexes, self.run.corpora.items(), strict=True)
        ):
            m = found.corpus.manifest
            sides = {side: self.shelf(number, side) for side in ("train", "val")}
            subjects = set().union(*(shelf.subjects() for shelf in sides.values()))
            out.append(
                {
                    "uri": uri,
                    "weight": weight,
                    "windows": {side: len(shelf) for side, shelf in sides.items()},
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


def where_prepared(run: RunConfig, recipe: Recipe, found: Index) -> str:
    """Where the materialised windows of one corpus lie: named by its hash, the spec's, and what the recipe
    foresees of them.
    """
    name = f"{found.corpus.hash[:16]}-{found.spec.hash}"
    if told := foreseen(recipe):
        name += f"-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    return storage.join(run.storage, "windows", name)


def foreseen(recipe: Recipe) -> str:
    """What the columns depend on that `recipe` foresees of a window; "": it foresees none."""
    return recipe.foreseen() if has(recipe, "materialise") else ""


def open_data(run: RunConfig, recipe: Recipe) -> Data:
    """Index every corpus of the run (cached under `storage`/index), and find the targets that the recipe
    learns from, if it does.
    """
    spec, cache = recipe.windows(), storage.join(run.storage, "index")
    indexes = [index.build(open_corpus(uri), spec, cache) for uri in run.corpora]
    there = None
    if run.stream.materialised:
        there = [prepared.open_prepared(where_prepared(run, recipe, found), found) for found in indexes]
    if not has(recipe, "labels"):
        return Data(run, spec, indexes, prepared=there)
    targets = []
    for found in indexes:
        each = [np.asarray(recipe.targets(found.corpus, table), np.float32) for table in found.tables()]
        targets.append(np.concatenate(each))
    data = Data(run, spec, indexes, targets, there)
    recipe.told(data.targets_of("train"))
    return data
