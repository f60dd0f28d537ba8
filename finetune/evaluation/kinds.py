"""What a task's kind decides: folds, the linear probe, other heads, the baseline and the metrics. A class
for each kind of target, with the same methods, so that tables, curves and subgroups know no kinds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cluster.errors import PlethoraError
from finetune import metrics, probe
from finetune.evaluation import chapters, classes, heads, multilabel, neighbours
from finetune.probe import Columns, Folds, Probed
from finetune.task import Task


class Answer(Protocol):
    """Targets of windows, and all that is done to predict them and to score it. `who`: (n,) the units that
    folds keep apart; `base`: the baseline's predictions of the same windows.
    """

    def at(self, rows: np.ndarray) -> "Answer": ...
    def can_be_scored(self) -> bool: ...
    def folds(self, who: np.ndarray, folds: int, seed: int) -> Folds: ...
    def linear(
        self,
        x: np.ndarray,
        who: np.ndarray,
        folds: Folds,
        seed: int,
        subsets: Sequence[Columns] | None = None,
    ) -> Probed: ...
    def nearest(self, x: np.ndarray, who: np.ndarray, folds: Folds, seed: int) -> Probed | None: ...
    def bent(self, head: heads.Head, x: np.ndarray, who: np.ndarray, folds: Folds, seed: int) -> Probed: ...
    def baseline(self, folds: Folds) -> Probed: ...
    def drawn(
        self, predicted: np.ndarray, base: np.ndarray, who: np.ndarray, weights: np.ndarray
    ) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Numbers:
    """y (n,) in the task's unit."""

    y: np.ndarray

    def at(self, rows: np.ndarray) -> "Numbers":
        return Numbers(self.y[rows])

    def can_be_scored(self) -> bool:
        return len(self.y) > 0

    def folds(self, who: np.ndarray, folds: int, seed: int) -> Folds:
        if np.ptp(self.y) == 0:
            raise PlethoraError(
                f"all {len(self.y)} labels left to evaluate are {self.y[0]:g}: there is nothing to predict"
            )
        return probe.grouped_folds(who, folds, seed)

    def linear(
        self,
        x: np.ndarray,
        who: np.ndarray,
        folds: Folds,
        seed: int,
        subsets: Sequence[Columns] | None = None,
    ) -> Probed:
        return probe.ridge_probe(x, self.y, who, folds, seed, subsets)

    def nearest(self, x: np.ndarray, who: np.ndarray, folds: Folds, seed: int) -> Probed | None:
        return neighbours.number_neighbours(x, self.y, who, folds, seed)

    def bent(self, head: heads.Head, x: np.ndarray, who: np.ndarray, folds: Folds, seed: int) -> Probed:
        return heads.head_probe(head, "number", x, self.y[:, None], who, folds, seed)

    def baseline(self, folds: Folds) -> Probed:
        return probe.mean_probe(self.y, folds)

    def drawn(
        self, predicted: np.ndarray, base: np.ndarray, who: np.ndarray, weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        return metrics.drawn(metrics.subject_sums(self.y, predicted, who), weights)


@dataclass(frozen=True)
class Classes:
    """y (n,) the number of each window's class among `names`."""

    y: np.ndarray
    names: Sequence[str]

    def at(self, rows: np.ndarray) -> "Classes":
        return Classes(self.y[rows], self.names)

    def can_be_scored(self) -> bool:
        return len(np.unique(self.y)) == len(self.names)

    def folds(self, who: np.ndarray, folds: int, seed: int) -> Folds:
        return probe.class_folds(self.y, who, self.names, folds, seed)

    def linear(
        self,
        x: np.ndarray,
        who: np.ndarray,
        folds: Folds,
        seed: int,
        subsets: Sequence[Columns] | None = None,
    ) -> Probed:
        return probe.logistic_probe(x, self.y, who, folds, seed, subsets)

    def nearest(self, x: np.ndarray, who: np.ndarray, folds: Folds, seed: int) -> Probed | None:
        return neighbours.class_neighbours(x, self.y, who, folds, seed)

    def bent(self, head: heads.Head, x: np.ndarray, who: np.ndarray, folds: Folds, seed: int) -> Probed:
        hot = np.eye(len(self.names))[self.y.astype(int)]
        return heads.head_probe(head, "class", x, hot, who, folds, seed)

    def baseline(self, folds: Folds) -> Probed:
        return probe.prevalence_probe(self.y, folds)

    def hot(self) -> np.ndarray:
        return classes.one_hot(self.y, len(self.names))

    def drawn(
        self, predicted: np.ndarray, base: np.ndarray, who: np.ndarray, weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        return classes.drawn(self.hot(), classes.evidence(predicted, base), who, weights)


@dataclass(frozen=True)
class Labels:
    """y (n, labels) 0 or 1, any number of them in a window."""

    y: np.ndarray
    names: Sequence[str]

    def at(self, rows: np.ndarray) -> "Labels":
        return Labels(self.y[rows], self.names)

    def can_be_scored(self) -> bool:
        return bool(np.any(np.ptp(self.y, axis=0) > 0)) if len(self.y) else False

    def folds(self, who: np.ndarray, folds: int, seed: int) -> Folds:
        return probe.grouped_folds(who, folds, seed)

    def linear(
        self,
        x: np.ndarray,
        who: np.ndarray,
        folds: Folds,
        seed: int,
        subsets: Sequence[Columns] | None = None,
    ) -> Probed:
        return multilabel.probe_each(x, self.y, who, folds, seed, subsets)

    def nearest(self, x: np.ndarray, who: np.ndarray, folds: Folds, seed: int) -> Probed | None:
        return None

    def bent(self, head: heads.Head, x: np.ndarray, who: np.ndarray, folds: Folds, seed: int) -> Probed:
        return multilabel.probe_together(head, x, self.y, who, folds, seed)

    def baseline(self, folds: Folds) -> Probed:
        return multilabel.prevalence(self.y, folds)

    def drawn(
        self, predicted: np.ndarray, base: np.ndarray, who: np.ndarray, weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        found = multilabel.drawn_each(self.y, predicted, base, who, weights)
        return {name: chapters.mean_known(values) for name, values in found.items()}


def answer_of(task: Task, target: np.ndarray, names: Sequence[str]) -> Answer:
    """The kind of answer that a task asks for, with its targets; `names` of classes or of labels."""
    if task.kind == "multi-label":
        return Labels(target, names)
    return Classes(target, names) if names else Numbers(target)
