"""Rows of a table: which vectors a head gets, and which head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from finetune.evaluation import features
from finetune.evaluation.heads import HEADS, Head
from finetune.evaluation.kinds import Answer
from finetune.probe import Columns, Folds, Probed

NEAREST: Literal["k-NN"] = "k-NN"
WEIGHTS = (0.0, 0.1, 1.0)  # of the vectors beside demographics: three columns drown among hundreds of equals


@dataclass(frozen=True)
class Row:
    """x (n, d): what the head learns from, NaN where missing; `subsets`: columns to choose among."""

    x: np.ndarray
    subsets: tuple[Columns, ...] | None = None
    head: Head | Literal["linear", "k-NN"] = "linear"


def rows_of(
    vectors: Mapping[str, np.ndarray],
    people: np.ndarray,
    encoders: Sequence[str],
    heads: Sequence[str] = (),
) -> dict[str, Row]:
    """{row: what it learns from}. `vectors`: of encoders, their twins and "handcrafted", as far as they are
    there; `people` (n, d) demographics, d = 0 where there are none; `heads`: those beside the linear one.
    """
    own = [*encoders, *(["handcrafted"] if "handcrafted" in vectors else [])]
    found: dict[str, Row] = {}
    for name, x in vectors.items():
        found[name] = Row(x, features.SUBSETS if name == "handcrafted" else None)
    for name in encoders:
        found[f"{name}, {NEAREST}"] = Row(vectors[name], head=NEAREST)
    for head in heads:
        for name in own:
            found[f"{name}, {head}"] = Row(vectors[name], head=HEADS[head])
    if people.shape[1]:
        found["demographics"] = Row(people)
        for name in own:
            fused = "demographics + handcrafted" if name == "handcrafted" else f"{name} + demographics"
            subsets = features.SUBSETS if name == "handcrafted" else (slice(None),)
            found[fused] = beside(people, vectors[name], subsets)
    return found


def beside(people: np.ndarray, x: np.ndarray, subsets: Sequence[slice]) -> Row:
    """Demographics and vectors together. The inner folds choose how much less than a demographic column one
    of the vectors counts (0: they are left out), so adding them need not cost what demographics know.
    """
    choices: list[Columns] = []
    for weight in WEIGHTS:
        for columns in subsets if weight else subsets[:1]:
            each = np.zeros(people.shape[1] + x.shape[1])
            each[: people.shape[1]] = 1
            each[people.shape[1] :][columns] = weight
            choices.append(each)
    return Row(np.concatenate([people, x], axis=1), tuple(choices))


def probed(
    rows: Mapping[str, Row], answer: Answer, who: np.ndarray, folds: Folds, seed: int
) -> dict[str, Probed]:
    """Out-of-fold predictions of every row that its kind of target has a probe for, the baseline last."""
    found: dict[str, Probed] = {}
    for name, row in rows.items():
        one: Probed | None
        if row.head == "linear":
            one = answer.linear(row.x, who, folds, seed, row.subsets)
        elif row.head == NEAREST:
            one = answer.nearest(row.x, who, folds, seed)
        else:
            one = answer.bent(row.head, row.x, who, folds, seed)
        if one is not None:
            found[name] = one
    return found | {"mean": answer.baseline(folds)}
