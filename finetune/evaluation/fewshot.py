"""Few-shot curves: the same test subjects, and probes that learn from 1 to 100 % of the training subjects."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from finetune import metrics
from finetune.evaluation.kinds import Answer, Classes
from finetune.evaluation.results import FewShotPoint
from finetune.evaluation.rows import Row
from finetune.probe import Folds

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
REPEATS = 3  # drawn subsets a share; their metrics are averaged
LEAST = 3  # subjects that a probe learns from, or of each class


def few_shot(
    rows: Mapping[str, Row],
    answer: Answer,
    who: np.ndarray,
    folds: Folds,
    score: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]],
    whole: Mapping[str, np.ndarray],
    seed: int,
) -> tuple[FewShotPoint, ...]:
    """Points of the main metric, over the same drawn test subjects as the table. Shares with fewer subjects
    than a probe can learn from are left out; at 100 % stand the table's own figures (`whole`).

    score: predictions of every row → the drawn main metric, (1 + draws,) each.
    """
    curve = []
    for share in (s for s in SHARES if s < 1):
        found: dict[str, list[np.ndarray]] = {}
        sizes: list[int] = []
        for repeat in range(REPEATS):
            few: Folds = []
            for number, (train, test) in enumerate(folds):
                rng = np.random.default_rng([seed, 0xFE, repeat, number])
                part = _subset(answer, who, train, share, rng)
                if part is not None:
                    few.append((part, test))
            if len(few) < len(folds):
                break
            sizes += [len(set(who[train])) for train, _ in few]
            predicted = {n: answer.linear(r.x, who, few, seed, r.subsets).predicted for n, r in rows.items()}
            for name, values in score(predicted | {"mean": answer.baseline(few).predicted}).items():
                found.setdefault(name, []).append(values)
        else:
            averaged = {name: np.mean(values, axis=0) for name, values in found.items()}
            curve.append(_point(share, sizes, averaged))
    return (*curve, _point(1.0, [len(set(who[train])) for train, _ in folds], whole))


def _point(share: float, sizes: list[int], drawn: Mapping[str, np.ndarray]) -> FewShotPoint:
    figures = {name: metrics.interval(values) for name, values in drawn.items()}
    return FewShotPoint(share, float(np.mean(sizes)), figures)


def _subset(
    answer: Answer, who: np.ndarray, train: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray | None:
    """Training windows of a drawn share of the subjects, of each class where there are classes; None where
    that is too few to learn from.
    """
    chosen: set[Any] = set()
    groups = [train]
    if isinstance(answer, Classes):
        groups = [train[answer.y[train] == k] for k in range(len(answer.names))]
    for group in groups:
        people = np.unique(who[group])
        count = round(share * len(people))
        if count < LEAST:
            return None
        chosen.update(rng.permutation(people)[:count].tolist())
    return train[np.isin(who[train], list(chosen))]
