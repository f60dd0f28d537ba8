"""Messages for a refused modality: what the file has, and the key of [signals] to change."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

from cluster.redact import printable
from datasets.descriptor import Signal

MOST_TOLERANCE = 0.1  # maximum of `rate_tolerance`
NAMES = 20  # maximum number of names in a message


def quoted(names: Iterable[str]) -> str:
    """Names from a file for a message: shortened, quoted, at most `NAMES` of them."""
    shown = list(names)
    more = f" and {len(shown) - NAMES:,} more" if len(shown) > NAMES else ""
    return ", ".join(f"'{printable(name, 40)}'" for name in shown[:NAMES]) + more


def missing(signal: Signal, has: Sequence[str]) -> str:
    wanted = " or ".join("+".join(choice) for choice in signal.choices)
    there = f"the file has {quoted(has)}" if has else "the file names no channel"
    return f"{there}, not {printable(wanted, 200)}: put the right name into `channels`"


def other_unit(unit: str, signal: Signal) -> str:
    known = printable(", ".join(signal.units), 200)
    if not unit:
        return f"the file states no unit: set `source_unit` to one of {known}"
    name = printable(unit, 40)
    return f"the file's unit is '{name}', not {known}: add '{name}' with its factor to `units`"


def other_rate(rate: Fraction | None, signal: Signal) -> str:
    if not rate:
        return "the file states no usable rate: change `channels` or `rate`"
    expected = signal.hz or float(rate)
    near = abs(float(rate) / expected - 1) <= MOST_TOLERANCE
    keys = "change `rate`, or allow it with `rate_tolerance`," if near else "change `rate`"
    return f"the file's rate is {float(rate):.10g} Hz, not {expected:.10g}: {keys}"
