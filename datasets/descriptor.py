"""What a known set of recordings is: the TOML files in `datasets/corpora/`, strictly checked.

A file name may use the named groups of `records`: with `records = '(?P<record>bidmc(?P<n>\\d+))\\.hea'`,
`"bidmc_csv/bidmc_{n}_Fix.txt"` is the record's own text file.
"""

import re
from pathlib import Path
from typing import Literal

import pydantic

from cluster.config import Config, load
from cluster.errors import PlethoraError
from datasets.schema import MODALITIES
from datasets.validity import Limits


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as wrong:
        raise ValueError(f"not a regular expression: {wrong}") from wrong
    return pattern


class Signal(Config):
    """Where a modality comes from in a source record."""

    channels: tuple[str | tuple[str, ...], ...]  # the first that a record has is taken; a list: all of them,
    # together, as the channels of this modality (an accelerometer's axes)
    rate: float | None = None  # Hz that the source promises; another one is refused. None: any that is stated
    unit: str  # unit in the corpus
    units: dict[str, float]  # unit in the source -> factor to `unit`; a unit not listed is refused
    source_unit: str | None = None  # the source's unit, for formats that state none: one of `units`
    required: bool = False  # a record without it counts its hours as refused (missing_channel)

    @pydantic.model_validator(mode="after")
    def _known_unit(self) -> "Signal":
        if self.source_unit is not None and self.source_unit not in self.units:
            raise ValueError(f"`source_unit` {self.source_unit!r} is not among the keys of `units`")
        return self

    @property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """`channels`, each choice as the names of its channels."""
        return tuple((c,) if isinstance(c, str) else c for c in self.channels)


class SubjectRule(Config):
    """`pattern`'s group 1, searched in the text file `file`, or in the record's name where there is none."""

    file: str | None = None
    pattern: str = "^(.+)$"
    _pattern = pydantic.field_validator("pattern")(_compiles)


class FieldRule(Config):
    """A label of the whole record: `pattern`'s group 1, in a text file or in the header's comment lines."""

    name: str
    pattern: str = r"^\s*(.*\S)"
    file: str | None = None  # None: the header's comments, one a line
    variable: str | None = None  # instead: a scalar or word of the record's own file (.mat)
    text: bool = False  # keep the words; else a number
    values: dict[str, float] = {}  # words that stand for numbers
    missing: tuple[str, ...] = ()  # words that stand for nothing
    unit: str | None = None
    _pattern = pydantic.field_validator("pattern")(_compiles)


class Named(Config):
    name: str
    unit: str


class Numerics(Config):
    """Slow numbers: sample i labels [i/rate, (i+1)/rate); NaN makes no label. A number with a time of its own
    (.vital) labels the time until the next one, `hold_s` at most."""

    record: str | None = None  # a companion record; None: tracks of the record's own file
    channels: dict[str, Named]
    hold_s: float = 2.0


class Array(Config):
    """An array whose channels have no names of their own (.mat): `channels` names them, in order."""

    variable: str
    channels: tuple[str, ...]
    axis: Literal[0, 1] = 0  # 0: a row is a channel; 1: a column is


class Trace(Config):
    """A label a window: value i of `variable` labels [i * step_s, i * step_s + window_s); NaN makes none."""

    name: str
    unit: str
    variable: str
    file: str | None = None  # None: the record's own file
    window_s: float = pydantic.Field(gt=0)
    step_s: float = pydantic.Field(gt=0)


class Descriptor(Config):
    """One set of recordings: what it is, what one may do with it, and how its files are read."""

    name: str
    source: str
    licence: str
    terms: str
    citation: str
    access: str
    reader: str
    records: str  # regular expression over paths below the root, with a group `record`
    id_space: str
    subjects_published: bool
    subject: SubjectRule = SubjectRule()
    signals: dict[str, Signal]
    fields: tuple[FieldRule, ...] = ()
    numerics: Numerics | None = None
    traces: tuple[Trace, ...] = ()
    annotations: str | None = None  # keep the file's own annotations (EDF+) as labels of this name
    arrays: tuple[Array, ...] = ()
    elements: str | None = None  # an array of structs in the file whose every element is a record of its own
    segment_s: float = 3600.0
    limits: Limits = Limits()
    _records = pydantic.field_validator("records")(_compiles)

    @pydantic.field_validator("signals")
    @classmethod
    def _known_modalities(cls, signals: dict[str, Signal]) -> dict[str, Signal]:
        unknown = sorted(set(signals) - set(MODALITIES))
        if unknown or not signals:
            raise ValueError(
                f"no modality {', '.join(unknown) or 'given'}; known are {', '.join(MODALITIES)}"
            )
        return signals

    @pydantic.field_validator("records")
    @classmethod
    def _names_the_record(cls, pattern: str) -> str:
        if "(?P<record>" not in pattern:
            raise ValueError("needs a group (?P<record>...) that names the record")
        return pattern


def read_descriptor(path: str | Path) -> Descriptor:
    """The checked descriptor at `path`; every mistake in it is one PlethoraError line."""
    descriptor = load(path, Descriptor)
    from datasets.readers import READERS

    if descriptor.reader not in READERS:
        raise PlethoraError(
            f"{path}: no reader {descriptor.reader!r}; there are {', '.join(sorted(READERS))}"
        )
    return descriptor
