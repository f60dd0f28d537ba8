"""Few-shot curves: the same test subjects, and probes that learn from 1 to 100 % of the training subjects."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from finetune import metrics
from finetune.kinds import Answer, Classes
from finetune.probe import Folds
from finetune.rows import Row

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
REPEATS = 3  # drawn subsets a share; their metrics are averaged
LEAST = 3  # subjects that a probe learns from, or of each class


def few_shot(
    rows: Mapping[str, Row],
    answer: Answer,
    who: np.ndarray,
    folds: Folds,
    tested: np.ndarray,
    weights: np.ndarray,
    main: str,
    whole: Mapping[str, np.ndarray],
    seed: int,
) -> list[dict[str, Any]]:
    """[{"share", "subjects", "rows": {row: {value, low, high}}}] of the main metric, over the same drawn test
    subjects as the table. Shares with fewer subjects than a probe can learn from are left out; at 100 % stand
    the table's own figures (`whole`: {row: (1 + draws,)}).
    """
    curve = []
    for share in SHARES:
        if share == 1.0:
            everyone = float(np.mean([len(set(who[train])) for train, _ in folds]))
            figures = {
                name: asdict(metrics.interval(v))
                for name, v in whole.items()
                if name in rows or name == "mean"
            }
            curve.append({"share": share, "subjects": everyone, "rows": figures})
            continue
        draws: dict[str, list[np.ndarray]] = {}
        sizes = []
        for repeat in range(REPEATS):
            few = [
                (
                    _subset(answer, who, train, share, np.random.default_rng([seed, 0xFE, repeat, number])),
                    test,
                )
                for number, (train, test) in enumerate(folds)
            ]
            if any(train is None for train, _ in few):
                break
            known: Folds = [(train, test) for train, test in few if train is not None]
            sizes += [len(set(who[train])) for train, _ in known]
            base = answer.baseline(known).predicted
            predicted = {
                name: answer.linear(row.x, who, known, seed, row.subsets).predicted
                for name, row in rows.items()
            } | {"mean": base}
            part, people = answer.at(tested), who[tested]
            for name, p in predicted.items():
                found = part.drawn(p[tested], base[tested], people, weights)[main]
                draws.setdefault(name, []).append(found)
        if len(sizes) == REPEATS * len(folds):
            averaged = {name: np.mean(found, axis=0) for name, found in draws.items()}
            curve.append(
                {
                    "share": share,
                    "subjects": float(np.mean(sizes)),
                    "rows": {name: asdict(metrics.interval(v)) for name, v in averaged.items()},
                }
            )
    return curve


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
