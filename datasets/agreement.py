"""Agreement between derived and given labels of the same quantity, for corpora that have both."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.schema import DERIVED, Corpus

WITHIN = {"hr": 5.0, "sbp": 5.0, "dbp": 5.0, "rr": 2.0}  # in the label's unit: counts as equal


def of_corpus(corpus: Corpus) -> list[dict[str, Any]]:
    """One entry for each derived label of the corpus that is also given; see `compare`."""
    held = corpus.manifest["labels"]["rows"]
    both = [n for n in held if n.endswith(DERIVED) and n.removesuffix(DERIVED) in held]
    if not both:
        return []
    labels = corpus.labels([*both, *(n.removesuffix(DERIVED) for n in both)])
    compared = [compare(labels, name.removesuffix(DERIVED)) for name in sorted(both)]
    return [c for c in compared if c is not None]


def compare(labels: pa.Table, name: str) -> dict[str, Any] | None:
    """`{name}_derived` against the mean of the `name` values whose middle lies in each of its stretches.

    {"derived", "given", "unit", "n" (stretches with both), "mae", "bias" (derived - given), "within",
    "share_within"}; None if no stretch has both, or the units differ.
    """
    derived, given = (_timed(labels, n) for n in (name + DERIVED, name))
    units = [t["unit"].unique().to_pylist() for t in (derived, given)]
    if not derived.num_rows or not given.num_rows or units[0] != units[1]:
        return None
    records = pc.unique(derived["record"])
    given = given.filter(pc.is_in(given["record"], value_set=records))
    d_rec, g_rec = (pc.index_in(t["record"], records).to_numpy() for t in (derived, given))
    d_start, d_end, d_value = (_floats(derived, c) for c in ("start_s", "end_s", "value"))
    middle = (_floats(given, "start_s") + _floats(given, "end_s")) / 2
    order = np.lexsort((d_start, d_rec))
    d_rec, d_start, d_end, d_value = d_rec[order], d_start[order], d_end[order], d_value[order]
    # records are placed on one time axis, far enough apart not to touch
    span = float(max(d_end.max(), middle.max() if len(middle) else 0.0)) + 1.0
    at = np.searchsorted(d_rec * span + d_start, g_rec * span + middle, side="right") - 1
    inside = (at >= 0) & (d_rec[at] == g_rec) & (middle < d_end[at])
    count = np.bincount(at[inside], minlength=len(d_value))
    total = np.bincount(at[inside], _floats(given, "value")[inside], minlength=len(d_value))
    both = count > 0
    if not both.any():
        return None
    error = d_value[both] - total[both] / count[both]
    within = WITHIN.get(name, 5.0)
    return {
        "derived": name + DERIVED,
        "given": name,
        "unit": units[0][0],
        "n": int(both.sum()),
        "mae": round(float(np.abs(error).mean()), 4),
        "bias": round(float(error.mean()), 4),
        "within": within,
        "share_within": round(float((np.abs(error) <= within).mean()), 4),
    }


def line(found: dict[str, Any]) -> str:
    """One comparison as a line for a terminal."""
    unit = found["unit"] or ""
    return (
        f"{found['derived']} against {found['given']}: MAE {found['mae']:.2f} {unit}"
        f", bias {found['bias']:+.2f}, n {found['n']:,}"
        f", {100 * found['share_within']:.1f} % within {found['within']:g} {unit}"
    )


def _timed(labels: pa.Table, name: str) -> pa.Table:
    return labels.filter(
        pc.and_(
            pc.equal(labels["name"], name),
            pc.and_(pc.is_valid(labels["start_s"]), pc.is_valid(labels["value"])),
        )
    )


def _floats(table: pa.Table, column: str) -> np.ndarray:
    return table[column].to_numpy(zero_copy_only=False).astype(float)
