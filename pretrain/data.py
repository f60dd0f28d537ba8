"""The data of a run: window indexes, the training plan, the validation windows, and the data lineage."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError
from datasets import index, prepared
from datasets.index import Index, Selection
from datasets.plan import Plan, steps_for
from datasets.prepared import Prepared
from datasets.schema import open_corpus
from datasets.windows import WindowSpec
from pretrain.config import RunConfig
from pretrain.recipe import Recipe, has


@dataclass(frozen=True)
class Data:
    """The indexed corpora of one run. Rebuilding it from the cache is cheap: the driver, the controller (each
    time the worker group starts) and every worker do so.

    targets: for a recipe that learns from labels, one (windows, k) float32 array per index, NaN where
    unknown; windows without any label belong to no split. prepared: one per index, if training reads
    materialised windows.
    """

    run: RunConfig
    spec: WindowSpec
    indexes: list[Index]
    targets: list[np.ndarray] | None = None
    prepared: list[Prepared] | None = None
    _selections: dict[tuple[int, str | None], Selection] = field(
        default_factory=dict, repr=False, compare=False
    )

    def rows(self, number: int, part: str | None) -> np.ndarray:
        """Row numbers in index `number` of the windows of `part` ("train", "val", "test"; None: all)."""
        return self.selection(number, part).rows(slice(None))

    def selection(self, number: int, part: str | None) -> Selection:
        """The same windows as `rows`, in constant memory."""
        if (number, part) not in self._selections:  # visits every window, and most methods need it
            target = None if self.targets is None else self.targets[number]
            self._selections[number, part] = self.indexes[number].selection(part, self.run.split, target)
        return self._selections[number, part]

    def targets_of(self, part: str | None) -> np.ndarray:
        """(n, k) targets of all windows of `part`, corpus after corpus."""
        assert self.targets is not None
        return np.concatenate([t[self.rows(i, part)] for i, t in enumerate(self.targets)])

    @property
    def train_windows(self) -> int:
        return sum(len(self.selection(i, "train")) for i in range(len(self.indexes)))

    @property
    def epoch_steps(self) -> float:
        """Optimizer steps per epoch (fractional if the batch does not divide the epoch)."""
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
        """Bytes of a window in transit, prepared or raw, whichever is larger."""
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

    def plan(self, start: int, world: int) -> tuple[Plan, list[Selection]]:
        """The plan of what `world` workers read from step `start` on, and the selections that hold the
        windows."""
        sources, selections = [], []
        for number, (uri, weight) in enumerate(self.run.corpora.items()):
            selection = self.selection(number, "train")
            if not len(selection):
                labelled = "" if self.targets is None else " with a label that the run asks for"
                raise PlethoraError(
                    f"{uri} has no window of {self.spec.window_s:g} s{labelled} for training: "
                    f"take it out of corpus, or ask for shorter windows"
                )
            if self.prepared is not None:
                selection = selection.prepared_as(self.prepared[number])
            sources.append(selection.source(weight))
            selections.append(selection)
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
            selections,
        )

    def validation(self, rank: int, world: int, part: str = "val") -> dict[str, np.ndarray]:
        """This rank's share of up to `validate_windows` windows of held-out subjects (`part`: "val" or
        "test"), spread over corpora and records: {modality: (n, channels, samples), "window": (n,),
        "subject": (n,)} and, for a recipe that learns from labels, "target" (n, k). Windows are ordered
        round-robin over subjects, so that a batch contains as many subjects as possible. Every rank gets the
        same number of windows, because forward passes of sharded modules are collective; the remainder is
        dropped.
        """
        parts = []
        for number, found in enumerate(self.indexes):
            selection = self.selection(number, part)
            want = min(len(selection), -(-self.run.validate_windows // len(self.indexes)))
            at = np.linspace(0, len(selection) - 1, want).round().astype(int)
            at = at[np.argsort(_turn(selection.windows(at).subject), kind="stable")]
            at = at[: len(at) // world * world][rank::world]
            if len(at):
                rows, windows = selection.rows(at), selection.windows(at)
                parts.append(found.load(rows) | {"window": windows.id, "subject": windows.subject})
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
        """What training used of each corpus: hash, terms, and the keyed names of the subjects in its training
        and validation splits.
        """
        out = []
        for number, (found, (uri, weight)) in enumerate(
            zip(self.indexes, self.run.corpora.items(), strict=True)
        ):
            m = found.corpus.manifest
            sides = {side: self.selection(number, side) for side in ("train", "val")}
            subjects = set().union(*(selection.subjects() for selection in sides.values()))
            out.append(
                {
                    "uri": uri,
                    "weight": weight,
                    "windows": {side: len(selection) for side, selection in sides.items()},
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
    """(n,): for each name, the number of equal names before it."""
    order = np.argsort(names, kind="stable")
    place = np.arange(len(names))
    starts = np.r_[True, names[order][1:] != names[order][:-1]][: len(names)]
    turn = np.empty_like(place)
    turn[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
    return turn


def where_prepared(run: RunConfig, recipe: Recipe, found: Index) -> str:
    """The folder of one corpus' materialised windows, named after the corpus hash, the spec hash, and a hash
    of what the recipe precomputes.
    """
    name = f"{found.corpus.hash[:16]}-{found.spec.hash}"
    if columns := foreseen(recipe):
        name += f"-{hashlib.sha256(columns.encode()).hexdigest()[:16]}"
    return storage.join(run.storage, "windows", name)


def foreseen(recipe: Recipe) -> str:
    """What the columns that `recipe` precomputes depend on; "" if it precomputes none."""
    return recipe.foreseen() if has(recipe, "materialise") else ""


def open_data(run: RunConfig, recipe: Recipe) -> Data:
    """Index every corpus of the run (cached in `storage`/index), and compute the targets if the recipe learns
    from labels.
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
