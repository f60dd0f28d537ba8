"""An adapter bundle opened on its base, and the windows of people whom neither has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster import bundle as bundles
from cluster.cli import progress
from cluster.errors import PlethoraError
from datasets.index import Index, build
from datasets.schema import Corpus, open_corpus
from datasets.split import Split, assign
from finetune import targets
from finetune.evaluation.people import seen_by
from finetune.supervised import Tune, Vision
from finetune.targets import Head, Labels
from pretrain.checkpoint import unflat
from pretrain.engine import load_trained
from pretrain.recipe import build as build_recipe
from pretrain.trained import trusted, weights_of

BATCH = 32


@dataclass
class Adapter:
    """An opened adapter: `net`, in eval mode, gives (B, columns of its heads)."""

    bundle: bundles.Bundle
    recipe: Vision | Tune
    net: Any

    @property
    def heads(self) -> list[Head]:
        return self.recipe.heads

    def predict(self, index: Index, rows: np.ndarray) -> list[np.ndarray]:
        """Predictions of these rows of an index of its windows, one array a task: see `targets.predicted`."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        net, parts = self.net.to(device), []
        with torch.inference_mode(), progress(len(rows), "predict", "windows") as bar:
            for low in range(0, len(rows), BATCH):
                loaded = index.load(rows[low : low + BATCH])
                signals = [torch.from_numpy(loaded[s.modality]).to(device) for s in self.recipe.signals()]
                parts.append(net(*signals).float().cpu())
                bar.update(len(signals[0]))
        return [x.double().numpy() for x in targets.predicted(torch.cat(parts), self.heads)]


def open_adapter(uri: str, weights: str | None = None) -> Adapter:
    """The adapter at `uri` on its base, which is fetched again from its source; `weights`: where the base's
    weights lie now, if they moved.

    PlethoraError: no adapter is there, or the base is not the one that it was made on.
    """
    found = bundles.open(uri)
    if found.config["kind"] != "adapter" or "targets" not in found.config:
        raise PlethoraError(
            f"{uri} is a bundle of kind {found.config['kind']}, not an adapter of `python -m finetune vision`"
        )
    run = found.config["run"]
    method = dict(run["method"])
    if weights is not None:
        if "encoder" in method:
            method["encoder"] = weights
        else:
            method["backbone"] = {**method.get("backbone", {}), "weights": weights}
    trusted(found.config, f"{uri}/config.json")
    recipe: Any = build_recipe(run["recipe"], method, run.get("seed", 0))
    recipe.remember(found.config["targets"], f"{uri}/config.json")
    modules = recipe.modules()
    here, wanted = recipe.base(modules["net"].body), found.config["base"]
    if here["hash"] != wanted["hash"]:
        raise PlethoraError(
            f"{uri} was made on {wanted['name']} ({wanted['source']}, hash {wanted['hash'][:16]}), here is "
            f"{here['source']}, hash {here['hash'][:16]}: give the same one with --weights"
        )
    state = unflat(weights_of(found), modules)
    try:
        load_trained(modules["net"], state["net"])
    except RuntimeError as error:
        raise PlethoraError(f"{uri}: model.safetensors does not fit its network: {error}") from None
    return Adapter(found, recipe, modules["net"].eval())


@dataclass
class HeldOut:
    """Windows of people whom neither the run nor its base saw: rows of `index`, their subjects, records and
    starts, and all labels of the index. `sides`: {"train", "val", "test": subjects of the run's split};
    `notes`: how tasks were fitted to the corpus, and who was left out.
    """

    corpus: Corpus
    index: Index
    rows: np.ndarray
    subject: np.ndarray
    record: np.ndarray
    start_s: np.ndarray
    labels: Labels
    sides: dict[str, list[str]]
    notes: list[str]


def held_out(adapter: Adapter, uri: str, cache: str) -> HeldOut:
    """The windows of a corpus that the adapter can be judged on: where it was trained on this corpus, those
    of the test subjects of the run's split, else all; subjects that pretraining of its base saw are left out.
    Needs Ray unless the index is in `cache`. PlethoraError: no window is left.
    """
    corpus = open_corpus(uri)
    adapter.recipe.check_corpus(corpus)
    index = build(corpus, adapter.recipe.windows(), cache)
    labels = targets.read_labels(corpus, index.table, adapter.recipe.tasks)
    _same_classes(adapter, labels, uri)
    rows = index.select(None)
    subject = np.asarray(index.table["subject"].take(pa.array(rows)).to_pylist(), str)
    trained_on = {entry["hash"] for entry in adapter.bundle.lineage["corpora"]}
    split = Split(**adapter.bundle.config["run"]["split"])
    seen, notes = seen_by([adapter.bundle], corpus), list(labels.adapted)
    sides: dict[str, list[str]] = {"train": [], "val": [], "test": sorted(set(subject))}
    keep = np.ones(len(rows), bool)
    if corpus.hash in trained_on:
        side = {s: assign(s, split) for s in set(subject)}
        keep = np.array([side[s] == "test" for s in subject], bool)
        sides = {part: sorted(s for s in side if side[s] == part) for part in sides}
    unseen, _ = seen.split(subject)
    gone = set(subject[keep & ~unseen])
    if gone:
        notes.append(f"{len(gone)} test subjects left out: pretraining of the base saw them")
        sides["test"] = [s for s in sides["test"] if s not in gone]
    if seen.kind == "unknown":
        notes.append(f"whether the base saw these people is unknown: {'; '.join(seen.why)}")
    rows, subject = rows[keep & unseen], subject[keep & unseen]
    if not len(rows):
        raise PlethoraError(
            f"{uri} has no window of a subject that neither the run nor its base saw: raise split.test, or "
            "judge it on another corpus (--transfer BUNDLE --corpus OTHER)"
        )
    part = index.table.take(pa.array(rows))
    record = np.asarray(part["record"].to_pylist(), str)
    start_s = part["start_s"].to_numpy()
    return HeldOut(corpus, index, rows, subject, record, start_s, labels, sides, notes)


def _same_classes(adapter: Adapter, labels: Labels, uri: str) -> None:
    for head in adapter.heads:
        if head.classes and tuple(labels.classes.get(head.name, head.classes)) != head.classes:
            raise PlethoraError(
                f"task {head.name} has classes {', '.join(labels.classes[head.name])} in {uri}, the adapter "
                f"knows {', '.join(head.classes)}: they cannot be compared"
            )
