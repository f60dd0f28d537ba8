"""The protocol of many published tables, which leaks: windows of one person in training and in test."""

from collections.abc import Mapping

import numpy as np

from finetune import metrics
from finetune.evaluation.choose import Windows
from finetune.evaluation.kinds import Answer
from finetune.evaluation.results import Published
from finetune.evaluation.rows import Row, probed

LABEL = "window-level random folds: windows of one person are on both sides, figures LEAK"


def published(
    rows: Mapping[str, Row],
    answer: Answer,
    windows: Windows,
    honest: Mapping[str, Mapping[str, np.ndarray]],
    folds: int,
    seed: int,
) -> Published:
    """Figures of the same probes, but outside and inside every window is a unit of its own, as if it were
    another person.

    Windows are not pooled, for a subject in one piece cannot leak. Intervals are over drawn subjects, so that
    only the split differs. `honest`: the table's own figures, {row: {metric: (1 + draws,)}}, which say what
    rows there are.
    """
    each = np.arange(len(windows.subject))
    outer = answer.folds(each, folds, seed)
    predicted = {n: p.predicted for n, p in probed(rows, answer, each, outer, seed).items()}
    weights = metrics.draw_weights(len(np.unique(windows.subject)), seed=seed)
    figures = {}
    for name, p in predicted.items():
        if name in honest:
            drawn = answer.drawn(p, predicted["mean"], windows.subject, weights)
            figures[name] = metrics.each_interval(drawn)
    return Published(LABEL, len(each), figures)
