"""Identity as a task: how often a vector finds its own subject among all (see `identify`)."""

from collections.abc import Mapping

import numpy as np

from cluster.errors import PlethoraError
from finetune.evaluation import identify
from finetune.evaluation.choose import Windows
from finetune.metrics import with_point

RANKS = {"rank1": 1, "rank5": 5}


def enrolled(windows: Windows, window_s: float) -> identify.Sides:
    """Who is enrolled on what. PlethoraError where fewer than three subjects can be enrolled and asked."""
    sides = identify.sides(windows.subject, windows.record, windows.start_s, window_s)
    if len(sides.names) < 3:
        raise PlethoraError(
            f"{len(sides.names)} of {len(set(windows.subject))} subjects have windows to enrol and others to "
            "ask with: identity needs at least 3; use shorter windows (--window-s) or longer recordings"
        )
    return sides


def drawn(
    vectors: Mapping[str, np.ndarray], windows: Windows, sides: identify.Sides, weights: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """{row: {metric: (1 + draws,)}}: mean over subjects of the share of a subject's windows that find it,
    among all subjects; draws weigh subjects, the gallery stays whole. Row "mean": a guess.
    """
    names = sides.names
    counts = with_point(weights)
    total = counts.sum(1)
    found: dict[str, dict[str, np.ndarray]] = {}
    for row, x in vectors.items():
        scored = identify.scores(x, windows.subject, sides)
        hits = {m: identify.hits(scored, [len(names)], rank)[:, 0] for m, rank in RANKS.items()}
        found[row] = {m: counts @ h / total for m, h in hits.items()}
    guess = {m: np.full(len(counts), min(1.0, rank / len(names))) for m, rank in RANKS.items()}
    return found | {"mean": guess}
