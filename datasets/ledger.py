"""The ledger: the number of windows seen per corpus and pass, and the sum of their ids.

A run counts what it trains on; at its end the ledger must equal the plan's, or windows were lost or repeated.
"""

import numpy as np

from datasets.plan import Plan


def expected(plan: Plan, until: int | None = None) -> dict[tuple[int, int], tuple[int, int]]:
    """The ledger of steps [0, until): {(source, pass): (windows, sum of their ids modulo 2**64)}."""
    places = (plan.steps if until is None else until) * plan.batch
    slots = np.arange(plan.lanes)
    turns = -((slots - places) // plan.lanes)  # of each slot
    ledger: dict[tuple[int, int], tuple[int, int]] = {}
    for number, source in enumerate(plan.sources):
        given = plan.given(number, slots, turns)
        n = len(source)
        for pass_ in range(-(-int((given * plan.lanes + slots).max()) // n)):
            before = -((slots - pass_ * n) // plan.lanes)  # places that each slot takes in earlier passes
            after = -((slots - (pass_ + 1) * n) // plan.lanes)
            taken = np.clip(given, before, after) - before
            if taken.any():
                ledger[number, pass_] = int(taken.sum()), _sum(plan, number, pass_, taken)
    return ledger


def _sum(plan: Plan, number: int, pass_: int, taken: np.ndarray) -> int:
    """The sum of the ids of the first `taken` (lanes,) windows of a pass, per slot."""
    source = plan.sources[number]
    if taken.sum() == len(source):
        return int(source.sums[-1])
    total = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for slot, count in enumerate(taken.tolist()):
            lane = (slot - pass_ * len(source)) % plan.lanes
            borders = plan.order(number, pass_).reels[lane]
            whole = int(np.searchsorted(borders, borders[0] + count, "right")) - 1
            total += _stretch(plan, number, pass_, int(borders[0]), int(borders[whole]))
            if rest := int(borders[0] + count - borders[whole]):
                ids = source.ids[plan.reel(number, pass_, lane, whole)[:rest]]
                total += ids.view(np.uint64).sum(dtype=np.uint64)
    return int(total[0])


def _stretch(plan: Plan, number: int, pass_: int, low: int, high: int) -> np.ndarray:
    """The sum of the ids of windows [low, high), with row groups in the order of a pass."""
    order, source = plan.order(number, pass_), plan.sources[number]
    total = np.zeros(1, np.uint64)
    first, last = np.searchsorted(order.begin, [low, high], "right") - 1
    for at in range(first, min(last + 1, len(order.turn))):
        group = order.turn[at]
        a, b = max(low, order.begin[at]), min(high, order.begin[at + 1])
        if a == order.begin[at] and b == order.begin[at + 1]:
            total += source.sums[group + 1] - source.sums[group]
        elif a < b:
            ids = source.ids[source.starts[group] + np.arange(a, b) - order.begin[at]]
            total += ids.view(np.uint64).sum(dtype=np.uint64)
    return total


def tally(ledger: dict, source: np.ndarray, pass_: np.ndarray, ids: np.ndarray) -> None:
    """Add windows to a ledger {(source, pass): (count, sum of ids modulo 2**64)} in place."""
    for s, p in {(int(a), int(b)) for a, b in np.unique(np.stack([source, pass_]), axis=1).T}:
        which = (source == s) & (pass_ == p)
        count, total = ledger.get((s, p), (0, 0))
        added = int(ids[which].view(np.uint64).sum(dtype=np.uint64))
        ledger[s, p] = (count + int(which.sum()), (total + added) % 2**64)
