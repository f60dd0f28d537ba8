"""Smaller encoders beside the original: size, latency, likeness of vectors, and what tasks lose."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import PlethoraError
from datasets.index import Index
from datasets.schema import Corpus
from datasets.split import Split
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation.people import SeenSubjects, seen_by
from finetune.evaluation.results import CorpusInfo, Counts, Metrics, Overlap, Result, TaskResult, to_json
from finetune.evaluation.study import corpus_info
from finetune.metrics import Difference
from finetune.networks.int8 import Quantised, quantised, sample
from finetune.networks.quantize import Fidelity, Graph, fidelity

ORIGINAL = "original"
COMPARED = 512  # windows at most on which vectors are compared
ROUNDS, WARM, BUDGET_S = 300, 10, 30.0  # of the latency: windows, windows before, seconds at most


@dataclass(frozen=True)
class Latency:
    """`ms`: median over single windows on one core; `ms_ratio`: median ratio to the original."""

    ms: float
    ms_ratio: float


@dataclass(frozen=True)
class EncoderCost(Result):
    """An encoder's size and speed; `likeness` of its vectors to those of the original, which has none."""

    name: str
    uri: str
    run: str | None
    bytes: int  # of the ONNX file
    bundle_bytes: int
    latency: Latency
    likeness: Fidelity | None = None

    def to_json(self) -> dict[str, Any]:
        found = super().to_json()
        latency, likeness = found.pop("latency"), found.pop("likeness", {})
        return found | latency | likeness


@dataclass(frozen=True)
class TaskLoss(Result):
    """A task's main metric by encoder, and what each smaller one loses: paired differences smaller − original
    over the same windows, folds and drawn subjects.
    """

    result: TaskResult
    rows: Metrics
    differences: Mapping[str, Difference]

    def to_json(self) -> dict[str, Any]:
        whole = self.result.to_json()
        kept = {key: whole[key] for key in ("task", "counts", "warnings")}
        return kept | {"rows": to_json(self.rows), "differences": to_json(self.differences)}


@dataclass(frozen=True)
class Compression(Result):
    """`held_out`: the windows that vectors were compared on; `quantised`: how the int8 bundle was made."""

    bundle: str
    mode: str
    dim: int
    window_s: float
    corpus: CorpusInfo
    held_out: Counts
    overlap: Overlap
    quantised: Quantised
    rows: tuple[EncoderCost, ...]
    tasks: tuple[TaskLoss, ...]


def unseen_rows(
    index: Index, encoders: Sequence[BundleEncoder], source: Corpus, split: Split | None = None
) -> tuple[np.ndarray, SeenSubjects]:
    """Rows of the index of subjects that no encoder saw (and who are on the test side of `split`), and the
    overlap. PlethoraError: fewer than two.
    """
    seen = seen_by((e.bundle for e in encoders), source)
    rows = index.select(None if split is None else "test", split)
    subject = np.asarray(index.table["subject"].to_pylist(), object)
    kept = rows[seen.split(subject[rows])[0]]
    if len(kept) < 2:
        raise PlethoraError(
            f"{source.uri} has {len(kept)} windows of subjects that no encoder saw and that the bundle's "
            "split keeps for tests: nothing could be measured, use a corpus with more subjects"
        )
    return kept, seen


def measured(
    encoders: Mapping[str, BundleEncoder],
    source: Corpus,
    index: Index,
    window_s: float,
    tasks: Sequence[TaskLoss],
) -> Compression:
    """Sizes, latency, and likeness on windows of subjects that no encoder saw; `encoders` has "original"
    first, and "int8".
    """
    original = encoders[ORIGINAL]
    rows, seen = unseen_rows(index, list(encoders.values()), source)
    windows = sample(index, original, rows, COMPARED)
    paths = {name: _onnx(encoder) for name, encoder in encoders.items()}
    graphs = {name: Graph(path) for name, path in paths.items()}
    vectors = {name: graph(windows.feed) for name, graph in graphs.items()}
    spent = latency(graphs, windows.feed)
    costs = [
        EncoderCost(
            name=name,
            uri=encoder.bundle.uri,
            run=encoder.bundle.config.get("run", {}).get("name"),
            bytes=paths[name].stat().st_size,
            bundle_bytes=sum(storage.sizes(encoder.bundle.uri).values()),
            latency=spent[name],
            likeness=None if name == ORIGINAL else fidelity(vectors[ORIGINAL], vectors[name]),
        )
        for name, encoder in encoders.items()
    ]
    about = corpus_info(source)
    return Compression(
        bundle=original.bundle.uri,
        mode=original.mode,
        dim=original.dim,
        window_s=window_s,
        corpus=CorpusInfo(about.uri, about.hash, about.source),
        held_out=Counts(windows.windows, subjects=len(windows.subjects)),
        overlap=seen.overlap(),
        quantised=quantised(encoders["int8"].bundle),
        rows=tuple(costs),
        tasks=tuple(tasks),
    )


def _onnx(encoder: BundleEncoder) -> Path:
    return encoder.bundle.path(encoder.bundle.config["modes"][encoder.mode]["file"])


def latency(graphs: Mapping[str, Graph], feed: Mapping[str, np.ndarray]) -> dict[str, Latency]:
    """Of each graph, beside the first one. All take each window in turn, so that whatever else the machine
    does meets all of them alike.
    """
    spent: dict[str, list[float]] = {name: [] for name in graphs}
    count, began = len(next(iter(feed.values()))), time.perf_counter()
    for number in range(WARM + ROUNDS):
        one = {name: x[number % count][None] for name, x in feed.items()}
        for name, graph in graphs.items():
            start = time.perf_counter()
            graph.run(one)
            if number >= WARM:
                spent[name].append(time.perf_counter() - start)
        if number > WARM and time.perf_counter() - began > BUDGET_S:
            break
    first = np.array(next(iter(spent.values())))
    return {
        name: Latency(1e3 * float(np.median(s)), float(np.median(np.array(s) / first)))
        for name, s in spent.items()
    }


def task_loss(result: TaskResult, entrant_of: Mapping[str, str]) -> TaskLoss:
    """`entrant_of`: {encoder: its row in the table}."""
    main, original = result.task.main, entrant_of[ORIGINAL]
    return TaskLoss(
        result,
        {name: result.row(row).metrics[main] for name, row in entrant_of.items()},
        {name: result.differences[row][original] for name, row in entrant_of.items() if name != ORIGINAL},
    )
