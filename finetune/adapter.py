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
from finetune.evaluation.people import seen_by_pretraining
from finetune.supervised import Tune, Vision
from finetune.targets import Head, Labels
from pretrain.checkpoint import unflat
from pretrain.engine import load_trained
from pretrain.recipe import build as build_recipe
from pretrain.trained import trusted, weights_of

BATCH = 32


@dataclass
class Adapter:
    """An opened adapter: `net` gives (B, columns) as its heads say, in eval mode."""

    bundle: bundles.Bundle
    recipe: Vision | Tune
    net: Any

    @property
    def heads(self) -> list[Head]:
        return self.recipe.heads

    def predict(self, index: Index, rows: np.ndarray) -> list[np.ndarray]:
        """What it says of these rows of an index of its windows, a task each: see `targets.told_of`."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        net, parts = self.net.to(device), []
        with torch.inference_mode(), progress(len(rows), "predict", "windows") as bar:
            for low in range(0, len(rows), BATCH):
                loaded = index.load(rows[low : low + BATCH])
                signals = [torch.from_numpy(loaded[s.modality]).to(device) for s in self.recipe.signals()]
                parts.append(net(*signals).float().cpu())
                bar.update(len(signals[0]))
        return [x.double().numpy() for x in targets.told_of(torch.cat(parts), self.heads)]


def open_adapter(uri: str, weights: str | None = None) -> Adapter:
    """The adapter at `uri` on its base, which is fetched again from where it was; `weights`: the backbone's,
    where they now lie elsewhere.

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
class Held:
    """Windows of people whom neither the run nor its base saw: rows of `index`, who, where, the labels;
    `sides` names the subjects that the run trained and validated on, and those it did not.
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


def held_out(adapter: Adapter, uri: str, cache: str) -> Held:
    """The windows of a corpus on which the adapter can be judged: of a corpus that it was trained on the test
    subjects of the run's split, of another one all; without whoever its base was pretrained on. Needs Ray
    unless the index is in `cache`.
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
    seen, notes = seen_by_pretraining(adapter.bundle, corpus), list(labels.said)
    sides: dict[str, list[str]] = {"train": [], "val": [], "test": sorted(set(subject))}
    keep = np.ones(len(rows), bool)
    if corpus.hash in trained_on:
        side = {s: assign(s, split) for s in set(subject)}
        keep = np.array([side[s] == "test" for s in subject], bool)
        sides = {part: sorted(s for s in side if side[s] == part) for part in sides}
    known = keep & np.isin(subject, list(seen.subjects))
    if known.any():
        gone = sorted(set(subject[known]))
        notes.append(f"{len(gone)} test subjects left out: pretraining of the base saw them")
        sides["test"] = [s for s in sides["test"] if s not in set(gone)]
    if seen.kind == "unknown":
        notes.append(f"whether the base saw these people is unknown: {'; '.join(seen.why)}")
    keep &= ~known
    rows, subject = rows[keep], subject[keep]
    if not len(rows):
        raise PlethoraError(
            f"{uri} has no window of a subject that neither the run nor its base saw: raise split.test, or "
            "judge it on another corpus (--transfer BUNDLE --corpus OTHER)"
        )
    part = index.table.take(pa.array(rows))
    record = np.asarray(part["record"].to_pylist(), str)
    return Held(
        corpus, index, rows, subject, record, part["start_s"].to_numpy(), labels, sides, notes
    )  # fmt: skip


def _same_classes(adapter: Adapter, labels: Labels, uri: str) -> None:
    for head in adapter.heads:
        if head.classes and tuple(labels.classes.get(head.name, head.classes)) != head.classes:
            raise PlethoraError(
                f"task {head.name} has classes {', '.join(labels.classes[head.name])} in {uri}, the adapter "
                f"knows {', '.join(head.classes)}: they cannot be compared"
            )
