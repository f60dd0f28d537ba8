"""The rate that a file states itself (first step: the engineer of columns has the whole)."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from datasets.descriptor import Signal
from datasets.readers.base import fraction
from datasets.readers.columns import Columns


def rate_of(
    file: Columns, modality: str, signal: Signal, paths: Sequence[str], present: Mapping[str, Signal]
) -> tuple[Fraction | None, str | None]:
    """The rate of a signal that `file` holds, and in words why it must be refused."""
    if isinstance(signal.rate, str):
        return None, f"the file states no rate in {signal.rate!r}"
    return fraction(signal.hz), None
